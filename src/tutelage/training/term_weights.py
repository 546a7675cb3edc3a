"""What an objective's terms learn themselves (projectors): trained beside the student, and never a part of it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tutelage.errors import CheckpointError, ConfigError

TERM_WEIGHTS_FILE = "term_weights.safetensors"

#: Where every process has all of the student's weights.
UNSHARDED = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)

#: Optimisers of ``transformers`` that step during the backward pass, each parameter for itself.
_STEPPING_IN_BACKWARD = ("lomo", "layerwise")


class TermWeights:
    """The weights of an objective's terms.

    Args:
        module: them, by the component's name; none until the objective is fitted.
    """

    def __init__(self, module: nn.ModuleDict | None = None) -> None:
        self.module = module if module is not None else nn.ModuleDict()

    def __bool__(self) -> bool:
        return len(self.module) > 0

    def check(self, scheduler: Any, accelerator: Accelerator) -> None:
        """Find out that they can be trained.

        Args:
            scheduler: the one that the user made, or None.
            accelerator: knows how the training is distributed.

        Raises:
            ConfigError: they would stay as they are, or their learning rate would.
        """
        if not self:
            return
        who = f"the terms {', '.join(self.module)} have weights of their own"
        if scheduler is not None:
            raise ConfigError(
                f"{who}, which join the optimiser now, and the scheduler was made for it without them: their learning rate would never "
                "move; give the optimiser alone, and lr_scheduler_type"
            )
        if accelerator.distributed_type not in UNSHARDED:
            raise ConfigError(
                f"{who}, and the student is sharded ({accelerator.distributed_type.value}), by an optimiser that would not train them; "
                "train with DDP (torchrun without FSDP or DeepSpeed)"
            )

    def beside(self, student: nn.Module) -> nn.Module:
        """Student and terms in one, for what concerns all that is learnt (the gradient's norm)."""
        return nn.ModuleList([student, self.module]) if self else student

    def join(self, optimizer: Any, kind: str, decayed: Collection[str] | None, weight_decay: float) -> None:
        """Give the optimiser the weights too, at its own learning rate; once, however often it is asked.

        Args:
            optimizer: any that takes ``add_param_group``.
            kind: what the arguments call it.
            decayed: the names of those that decay; None to leave that to the optimiser's own default.
            weight_decay: by how much these do.

        Raises:
            ConfigError: the optimiser does not take them.
        """
        if not self:
            return
        known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        named = [(name, weight) for name, weight in self.module.named_parameters() if id(weight) not in known]
        if decayed is None:
            groups: list[dict[str, Any]] = [{"params": [weight for _, weight in named]}]
        else:
            groups = [
                {"params": [weight for name, weight in named if (name in decayed) is decays], "weight_decay": amount}
                for decays, amount in ((True, weight_decay), (False, 0.0))
            ]
        refusal = f"optim={kind} steps while gradients are still made" if _steps_in_backward(kind) else None
        try:
            for group in groups:
                if group["params"] and refusal is None:
                    optimizer.add_param_group(group)
        except (AttributeError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            refusal = f"{type(optimizer).__name__}.add_param_group failed ({type(error).__name__}: {error})"
        if refusal is not None:
            raise ConfigError(
                f"the terms {', '.join(self.module)} have weights of their own to train, and {refusal}: they would stay as they were "
                "drawn; use another optimiser, such as adamw_torch"
            )

    def zero_grad(self) -> None:
        """Forget the last step's gradients."""
        if self:
            self.module.zero_grad()

    def average_gradients(self) -> None:
        """The mean over all processes, as DDP makes it for the student's."""
        weights = [weight for weight in self.module.parameters() if weight.requires_grad]
        if not weights:
            return
        here = [float(weight.grad is not None) for weight in weights]
        # one message for all, in float64 so that nothing is rounded on the way; the flags tell an absent gradient from 0
        flat: list[Tensor] = [torch.tensor(here, dtype=torch.float64, device=weights[0].device)]
        flat += [(torch.zeros_like(w) if w.grad is None else w.grad).double().flatten() for w in weights]
        together = torch.cat(flat)
        torch.distributed.all_reduce(together)
        together[len(weights) :] /= torch.distributed.get_world_size()
        sizes = [len(weights), *(weight.numel() for weight in weights)]
        flags, *means = together.split(sizes)
        for flag, mean, weight in zip(flags.tolist(), means, weights, strict=True):
            weight.grad = mean.view_as(weight).to(weight) if flag else None

    def save(self, folder: Path) -> None:
        """Write them into a checkpoint."""
        if self:
            state = {name: values.detach().cpu().contiguous() for name, values in self.module.state_dict().items()}
            save_file(state, str(folder / TERM_WEIGHTS_FILE))

    def load(self, folder: Path) -> None:
        """Take them from a checkpoint, bit for bit.

        Raises:
            CheckpointError: it has none, or those of other terms.
        """
        if not self:
            return
        try:
            self.module.load_state_dict(load_file(folder / TERM_WEIGHTS_FILE))
        except (OSError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(
                f"{folder / TERM_WEIGHTS_FILE} does not hold the weights of the terms {', '.join(self.module)} ({error}): a projector "
                "drawn anew would send the student elsewhere; resume from an earlier checkpoint, or start anew"
            ) from error


def _steps_in_backward(kind: str) -> bool:
    return any(word in kind.lower() for word in _STEPPING_IN_BACKWARD)
