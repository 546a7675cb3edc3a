"""The student as an exporter takes it: a copy in eval mode, without what training hung on it, its tensors in a row."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.errors import ExportError, TutelageError
from tutelage.export.refusals import HELD_AS, first_line
from tutelage.export.specs import BATCH, LONE_INPUT, named
from tutelage.models import class_logits
from tutelage.models.calling import Inputs, on_device, unwrapped

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def copy_as_deployed(model: nn.Module, sample: Inputs) -> nn.Module:
    """A copy in eval mode, without hooks, which an exporter may treat as it likes; the model itself stays as it is.

    Hooks watch or train a model, except those by which ``torch.nn.utils`` makes weights (weight norm, spectral norm, pruning):
    what they make in eval mode the copy has as weights of its own.

    Args:
        model: on any device; called as :func:`tutelage.models.class_logits` does.
        sample: at least one example.

    Raises:
        ExportError: it fails on ``sample``, or cannot be copied.
        ModelError: it cannot be called with ``sample``, or gives no class logits.
    """
    model = unwrapped(model)
    kind = type(model).__name__
    with _as_deployed(model), torch.no_grad():
        try:
            device = next((weight.device for weight in model.parameters()), None)
            # weights that a hook makes are made here, without the gradient that cannot be copied
            class_logits(model, on_device(sample, device))
        except TutelageError:
            raise
        except Exception as error:  # whatever the model's own code raises
            shapes = ", ".join(f"{name!r} {list(values.shape)}" for name, values in named(sample).items())
            raise ExportError(
                f"{kind} cannot be run in eval mode on its own sample ({shapes}): {type(error).__name__}: {first_line(error)} An exporter "
                f"runs it on that; give a sample that it takes, and if it takes one batch size alone, take that (axis 0, {BATCH!r}) from "
                "the tensor's shape instead of writing it as a number"
            ) from error
        try:
            return _with_weights_made(copy.deepcopy(model))
        except Exception as error:  # whatever the model's parts raise at being copied
            raise ExportError(
                f"{kind} cannot be copied: {type(error).__name__}: {first_line(error)} The export works on a copy, and leaves "
                "the original as it is; give a model that copy.deepcopy takes, without open files, locks or tensors kept of a forward"
            ) from error


@contextmanager
def _as_deployed(model: nn.Module) -> Generator[None]:
    """Eval mode, and no hooks but those that make weights; then as before."""
    flags = {module: module.training for module in model.modules()}
    hooks = [(module, name, module.__dict__[name]) for module in flags for name in _HOOKS]
    try:
        model.eval()
        for module, name, found in hooks:
            module.__dict__[name] = OrderedDict((key, hook) for key, hook in found.items() if _makes_weights(hook))
        yield
    finally:
        for module, training in flags.items():
            module.training = training
        for module, name, found in hooks:
            module.__dict__[name] = found


def _makes_weights(hook: Any) -> bool:
    """Whether it is one of ``torch.nn.utils``, or of a class derived from theirs, as one's own way of pruning is."""
    homes = [getattr(hook, "__module__", None), *(kind.__module__ for kind in type(hook).__mro__)]
    return any(str(home).startswith("torch.nn.utils.") for home in homes)


def _with_weights_made(model: nn.Module) -> nn.Module:
    """The same with the weights that hooks made as plain tensors of its own, and the hooks gone."""
    for module in model.modules():
        if module.__dict__["_forward_pre_hooks"]:
            module.__dict__["_forward_pre_hooks"] = OrderedDict()
            made = [name for name, value in vars(module).items() if isinstance(value, Tensor)]
            for name in made:
                module.register_buffer(name, module.__dict__.pop(name))
    return model


class ByPosition(nn.Module):
    """The user's model with its tensors in a row, as an exporter numbers them, and its logits ``[B, C]`` as the one result.

    Args:
        model: from `copy_as_deployed`.
        names: the tensors' names, in their order; ``input`` alone for a lone tensor.
        seen: called with the tensors after each forward that is run and not read as source.
    """

    def __init__(
        self, model: nn.Module, names: Sequence[str], seen: Callable[[Sequence[Tensor]], None] | None = None
    ) -> None:
        super().__init__()
        self.add_module(HELD_AS, model)
        self._names = list(names)
        self._seen = seen

    def forward(self, *tensors: Tensor) -> Tensor:
        inputs = tensors[0] if self._names == [LONE_INPUT] else dict(zip(self._names, tensors, strict=True))
        logits = class_logits(self.get_submodule(HELD_AS), inputs)
        # an exporter's second attempt reads this code instead of running it
        if self._seen is not None and not torch.compiler.is_dynamo_compiling():
            self._seen(tensors)
        return logits
