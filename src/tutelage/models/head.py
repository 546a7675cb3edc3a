"""A model's last linear layer, found, checked, and left out of a forward pass.

Over a large vocabulary that one matrix product is most of the memory of a step. A model runs with it bypassed, its hooks
firing as ever, and what the head would have been given becomes a :class:`tutelage.signals.HeadLogits`.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeGuard
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tutelage.models.calling import Inputs, find_logits, run_model, unwrapped
from tutelage.models.detours import detour
from tutelage.models.head_check import Verified, ran, verified
from tutelage.signals import HeadLogits

#: Below so many classes a head is not worth bypassing, unless there are many rows an example.
WIDE = 8192


@dataclass(frozen=True)
class Head:
    """A model's last linear layer and what the model does with its outputs: ``cap(scale · (hidden @ weight.T + bias))``.

    Args:
        module: the layer.
        weight: ``[C, D]``, whole also where it is sharded over processes.
        bias: ``[C]``, or None.
        scale: factor of its outputs.
        softcap: bound of the logits, or None.
    """

    module: nn.Module
    weight: Tensor
    bias: Tensor | None
    scale: float
    softcap: float | None

    def scores(self, hidden: Tensor) -> HeadLogits:
        """The class scores of hidden states ``[N, D]``."""
        return HeadLogits(hidden, self.weight, self.bias, self.scale, self.softcap)


_known: WeakKeyDictionary[nn.Module, Verified] = WeakKeyDictionary()


def find_head(model: nn.Module, inputs: Inputs, at_least: int = 0) -> Head | None:
    """The head of a model whose logits are those of its last linear layer, scaled and capped; None where there is none.

    A Hugging Face model names it (``get_output_embeddings``), tied to its embeddings or not; in another module it is the
    last ``nn.Linear``. What the model does after it is read from its config, and both are checked once, on a forward pass of
    one example in which the layer's outputs are exchanged for known numbers.

    Args:
        model: any module that :func:`tutelage.models.class_logits` can call, also inside DDP's wrapper or with FSDP2's shards.
        inputs: a view of a batch, of which the check takes a little.
        at_least: how many classes make a head worth looking for.

    Returns:
        None where another module's last linear layer does not make its logits, or its weight is not at hand outside its own
        forward (FSDP1, DeepSpeed ZeRO-3, offloaded, quantised, compiled or adapted by LoRA): the model's own logits serve then.

    Raises:
        ModelError: a model that names its head, and does something else to the logits than its config says.
    """
    inner = unwrapped(model)
    candidate, named = _candidate(inner)
    if candidate is None or candidate.out_features < at_least or _out_of_reach(model, candidate):
        return None
    known = _known.get(inner)
    if known is None or known.candidate is not candidate:
        known = _known[inner] = verified(model, inputs, candidate, named)
    if known.module is None:
        return None
    bias = known.module.bias
    whole_bias = _whole(bias) if bias is not None else None  # pyright: ignore[reportUnnecessaryComparison]
    return Head(candidate, _whole(candidate.weight), whole_bias, known.scale, known.softcap)


def head_inputs(model: nn.Module, inputs: Inputs, head: Head, **options: Any) -> tuple[Tensor, Any]:
    """Run a model with its head bypassed, through whatever wraps it.

    Args:
        model: the model.
        inputs: a view of a batch.
        head: :func:`find_head` of it.
        options: more keyword arguments of its ``forward``.

    Returns:
        What the head was given, ``[..., D]``, and what the model returned, with one column of it in the place of the logits.
    """
    with bypassed(model, head) as caught:
        output = run_model(model, inputs, **options)
    return caught.hidden(output), output


class Caught:
    """What a bypassed head was given in one forward pass."""

    def __init__(self, model: nn.Module, head: nn.Module) -> None:
        self._model, self._head = model, head
        self.given: list[Tensor] = []

    def take(self, hidden: Tensor) -> Tensor:
        """Keep what the head is given, and give something small for it that depends on all of the head's parameters."""
        self.given.append(hidden)
        return _InPlaceOfLogits.apply(hidden[..., :1], *self._head.parameters(recurse=False))  # pyright: ignore[reportReturnType]

    def hidden(self, output: Any) -> Tensor:
        """What the head was given, in a graph that goes through the model's output too where something listens there.

        Raises:
            ModelError: the head did not run, or more than once.
        """
        if len(self.given) != 1:
            raise ran(self._model, len(self.given))
        logits = find_logits(output)
        if not _watched(self._model) or logits is None or not logits.requires_grad:
            return self.given[0]
        return _ThroughOutput.apply(self.given[0], logits)  # pyright: ignore[reportReturnType]


@contextmanager
def bypassed(model: nn.Module, head: Head) -> Generator[Caught]:
    """Within it, this thread's forward passes leave out the head's matrix product; others, and later ones, do not.

    Args:
        model: the model.
        head: :func:`find_head` of it; another model may share the layer.
    """
    caught = Caught(model, head.module)
    with detour(head.module, caught.take):
        yield caught


class _InPlaceOfLogits(torch.autograd.Function):
    """The tensor itself, in a graph that reaches parameters whose gradient comes another way.

    DDP looks for those that an output does not depend on, and would take the head's for unused.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, *parameters: Tensor) -> Tensor:
        ctx.parameters = len(parameters)
        return values.view_as(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return gradient, *(None,) * ctx.parameters


class _ThroughOutput(torch.autograd.Function):
    """Hidden states themselves; backward, the model's output gets a gradient of zeros, at which FSDP's hooks fire."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, output: Tensor) -> Tensor:
        ctx.of_output = output.shape, output.dtype, output.device
        return hidden.view_as(hidden)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        shape, dtype, device = ctx.of_output
        return gradient, torch.zeros(shape, dtype=dtype, device=device)


def _watched(model: nn.Module) -> bool:
    """Whether gradients of what the model returns have hooks that must fire."""
    return model is not unwrapped(model) or hasattr(model, "_get_fsdp_state")


def _whole(values: Tensor) -> Tensor:
    """A parameter, gathered from all processes where it is sharded; with a gradient, which goes back as FSDP's do."""
    if not hasattr(values, "full_tensor"):
        return values
    from torch.distributed.tensor import DTensor, Partial

    assert isinstance(values, DTensor)
    processes = values.device_mesh.size()
    gathered = values.full_tensor(grad_placements=[Partial()] * values.device_mesh.ndim)
    if gathered.requires_grad:
        # each process has its own rows' share, and FSDP's gradients are means over processes
        gathered.register_hook(lambda gradient: gradient / processes)
    return gathered


def _candidate(inner: nn.Module) -> tuple[nn.Linear | None, bool]:
    """The layer that may be the head, and whether the model itself says that it is."""
    named: Any = getattr(inner, "get_output_embeddings", None)
    layer = named() if callable(named) else None
    if layer is not None:
        return (layer, True) if _plain_linear(layer) else (None, True)
    linear = [module for module in inner.modules() if isinstance(module, nn.Linear)]
    last = linear[-1] if linear and linear[-1] is not inner else None
    return (last, False) if last is not None and _plain_linear(last) else (None, False)


def _plain_linear(layer: object) -> TypeGuard[nn.Linear]:
    return (
        isinstance(layer, nn.Linear) and type(layer).forward is nn.Linear.forward and layer.weight.is_floating_point()
    )


def _out_of_reach(model: nn.Module, head: nn.Linear) -> bool:
    """Whether the head's weight is not to be had outside its own forward, or a patched forward would not be run."""
    while True:
        if hasattr(model, "_orig_mod") or isinstance(model, nn.DataParallel):
            return True
        inner = getattr(model, "module", None) if hasattr(model, "device_ids") else None
        if not isinstance(inner, nn.Module):
            break
        model = inner
    sharded = any(hasattr(module, "_fsdp_wrapped_module") for module in model.modules())
    weight = head.weight
    return sharded or weight.device.type == "meta" or weight.numel() == 0 or hasattr(weight, "ds_id")
