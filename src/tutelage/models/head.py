"""A model's last linear layer, found, checked, and left out of a forward pass.

Over a large vocabulary that one matrix product is most of the memory of a step. A model runs with it bypassed, its hooks
firing as ever, and what the head would have been given becomes a :class:`tutelage.signals.HeadLogits`.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeGuard
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tutelage.errors import ModelError, TutelageError
from tutelage.models.calling import Inputs, find_logits, run_model, unwrapped
from tutelage.models.detours import copied_buffers, detour
from tutelage.models.head_check import Verified, a_little, known_numbers, off, ran, verified
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
        untouched: whether the model returns what the layer gives as it is, and must.
    """

    module: nn.Module
    weight: Tensor
    bias: Tensor | None
    scale: float
    softcap: float | None
    untouched: bool = False

    def scores(self, hidden: Tensor) -> HeadLogits:
        """The class scores of hidden states ``[N, D]``."""
        return HeadLogits(hidden, self.weight, self.bias, self.scale, self.softcap)


_known: WeakKeyDictionary[nn.Module, Verified] = WeakKeyDictionary()


def find_head(model: nn.Module, inputs: Inputs, at_least: int = 0) -> Head | None:
    """The head of a model whose logits are those of its last linear layer, scaled and capped; None where there is none.

    A Hugging Face model names it (``get_output_embeddings``), tied to its embeddings or not; in another module it is the
    last ``nn.Linear``. What the model does after it is read from its config, and both are checked once, on a forward pass of
    one example in which the layer's outputs are exchanged for known numbers. What stands for them in every later pass is
    looked at again (:class:`Caught`), and tried in eval and in train mode before it is relied on.

    Args:
        model: any module that :func:`tutelage.models.class_logits` can call, also inside DDP's wrapper or with FSDP2's shards.
        inputs: a view of a batch, of which the check takes a little.
        at_least: how many classes make a head worth looking for.

    Returns:
        None where another module's last linear layer does not make its logits, or its code does anything after it, or the weight
        is not at hand outside the layer's own forward (FSDP1, DeepSpeed ZeRO-3, offloaded, quantised, compiled, adapted by LoRA,
        or made of other parameters, as by ``weight_norm``): the model's own logits serve then.

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
    untouched = not (named and _of_a_library(inner))
    if untouched and _copies_outputs(model):
        return None
    if inner.training not in known.tried:
        known = _known[inner] = _tried(model, inputs, known, named, untouched)
    if known.module is None:
        return None
    bias = known.module.bias
    whole_bias = _whole(bias) if bias is not None else None  # pyright: ignore[reportUnnecessaryComparison]
    return Head(candidate, _whole(candidate.weight), whole_bias, known.scale, known.softcap, untouched)


def leave_dense(model: nn.Module) -> None:
    """From now on a model's own logits serve: what it does after its head is not the same in every pass.

    Raises:
        ModelError: on several processes, where the others would wait for this one's second pass.
    """
    inner = unwrapped(model)
    candidate, _ = _candidate(inner)
    if _watched(model):
        raise ModelError(
            f"{type(inner).__name__} does something to its head's outputs that it did not do in a trial, and on several processes the pass "
            "cannot be made again: a loss computed from the head would be that of another model. Let the head be a subclass of "
            "nn.Linear with a forward of its own, and the model's logits are taken as they are"
        )
    if candidate is not None:
        _known[inner] = Verified(candidate, None)


def head_inputs(model: nn.Module, inputs: Inputs, head: Head, **options: Any) -> tuple[Tensor, Any]:
    """Run a model with its head bypassed, through whatever wraps it.

    Args:
        model: the model.
        inputs: a view of a batch.
        head: :func:`find_head` of it.
        options: more keyword arguments of its ``forward``.

    Returns:
        What the head was given, ``[..., D]``, and what the model returned, with a stand-in (:class:`Caught`) for the logits.

    Raises:
        TouchedError: the model does something else to what its head gives than was found out.
    """
    with bypassed(model, head) as caught:
        output = run_model(model, inputs, **options)
    return caught.hidden(output), output


class TouchedError(RuntimeError):
    """In this pass the model did something else to its head's outputs than was found out about it."""


class Caught:
    """What a bypassed head was given in one forward pass, and what stood for its outputs.

    That is one known number a row, and it must come back as scale and cap make it. Where a module's code is its user's, the
    number is shown in all C columns at once (a view that takes no memory for them), and that very view must come back: whatever is
    done to logits makes a new tensor, or fails. Of an architecture of transformers' the code is known to end in
    a scale and a cap at most, and it is given one column ``[..., 1]``, so that these make no ``[N, C]``. Not seen there: writing
    into some columns by number, for some inputs alone, as none of those architectures does.
    """

    def __init__(self, model: nn.Module, head: Head) -> None:
        self._model, self._head = model, head
        self._put = self._stand_in = torch.empty(0)
        self.given: list[Tensor] = []

    def take(self, hidden: Tensor) -> Tensor:
        """Keep what the head is given, and give what stands for its outputs and depends on all of its parameters."""
        self.given.append(hidden)
        layer, columns = self._head.module, len(self._head.weight) if self._head.untouched else 1
        self._put = known_numbers(torch.Size((*hidden.shape[:-1], 1)), hidden.dtype, hidden.device)
        shown: Any = _InPlaceOfLogits.apply(hidden, self._put, columns, *layer.parameters(recurse=False))
        self._stand_in = shown.detach()
        return shown

    def hidden(self, output: Any) -> Tensor:
        """What the head was given, in a graph that goes through the model's output too where something listens there.

        Raises:
            ModelError: the head did not run, or more than once.
            TouchedError: the output is not what the model makes of its head's.
        """
        if len(self.given) != 1:
            raise ran(self._model, len(self.given))
        logits = find_logits(output)
        if logits is None or not self._as_found_out(logits):
            raise TouchedError(
                f"{type(unwrapped(self._model)).__name__} does something else to what its head gives than it did in a trial: a loss "
                "computed from the head would be that of another model; use the model's own logits"
            )
        if not _watched(self._model) or not logits.requires_grad:
            return self.given[0]
        return _ThroughOutput.apply(self.given[0], logits)  # pyright: ignore[reportReturnType]

    def _as_found_out(self, logits: Tensor) -> bool:
        if not self._head.untouched:
            return off(logits, self._put, self._head.scale, self._head.softcap) <= 1.0
        mine = self._stand_in
        same = logits.data_ptr() == mine.data_ptr() and logits.dtype == mine.dtype
        same = same and logits.shape == mine.shape and logits.stride() == mine.stride()
        # an in-place operation leaves the tensor what it is
        return same and torch.equal(mine[..., :1], self._put)


@contextmanager
def bypassed(model: nn.Module, head: Head) -> Generator[Caught]:
    """Within it, this thread's forward passes leave out the head's matrix product; others, and later ones, do not.

    Args:
        model: the model.
        head: :func:`find_head` of it; another model may share the layer.

    Raises:
        TouchedError: the model failed after its head, of which it did not get the outputs.
    """
    caught = Caught(model, head)
    with detour(head.module, caught.take):
        try:
            yield caught
        except (IndexError, RuntimeError, ValueError, Warning) as error:
            if not caught.given or isinstance(error, TutelageError | TouchedError | torch.OutOfMemoryError):
                raise
            raise TouchedError(
                f"{type(unwrapped(model)).__name__} failed after its head, which was left out ({error}); use the model's own logits"
            ) from error


class _InPlaceOfLogits(torch.autograd.Function):
    """Numbers ``[..., 1]`` shown in so many columns, in a graph that reaches what gets its gradient another way.

    DDP looks for parameters that an output does not depend on, and would take the head's for unused; FSDP gathers the head's
    for the backward pass when that comes by here, on its way to the hidden states.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, numbers: Tensor, columns: int, *parameters: Tensor) -> Tensor:  # noqa: ARG004
        ctx.inputs = 3 + len(parameters)
        return numbers.clone() if columns == 1 else numbers.clone().expand(*numbers.shape[:-1], columns)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]  # noqa: ARG004
        return (None,) * ctx.inputs


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
        return gradient, torch.zeros((), dtype=dtype, device=device).expand(shape)


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
    """Whether it is a linear layer whose weight is a parameter of its own: one that a hook makes is last step's before the pass."""
    if not isinstance(layer, nn.Linear) or type(layer).forward is not nn.Linear.forward:
        return False
    own = dict(layer.named_parameters(recurse=False, remove_duplicate=False))
    return "weight" in own and own["weight"].is_floating_point() and ("bias" in own or layer.bias is None)  # pyright: ignore[reportUnnecessaryComparison]


def _of_a_library(inner: nn.Module) -> bool:
    """Whether what a model does after its head is an architecture's of transformers, or one that PEFT adapts."""
    return str(type(inner).forward.__module__).startswith(("transformers.", "peft."))


def _copies_outputs(model: nn.Module) -> bool:
    """Whether a wrapper copies what the model returns, and with it every column of a view."""
    return model is not unwrapped(model) and bool(
        getattr(model, "find_unused_parameters", True) or getattr(model, "static_graph", True)
    )


def _tried(model: nn.Module, inputs: Inputs, known: Verified, named: bool, untouched: bool) -> Verified:
    """Leave the head out of a pass of two examples in the mode that the model is in, of which nothing remains."""
    layer, inner = known.module, unwrapped(model)
    assert layer is not None
    head = Head(layer, layer.weight, layer.bias, known.scale, known.softcap, untouched)
    devices = {values.device for values in inner.parameters() if values.device.type != "cpu"}
    kind = next(iter(devices)).type if devices else "cuda"
    try:
        with (
            torch.random.fork_rng(devices=[str(device) for device in devices], device_type=kind),
            torch.no_grad(),
            copied_buffers(inner),
            bypassed(model, head) as caught,
        ):
            caught.hidden(run_model(model, a_little(inputs, short=named, examples=2)))
    except TouchedError:
        return Verified(known.candidate, None)
    except (IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        # a little may be too little, as for BatchNorm in train mode, and each pass is looked at by itself
        if isinstance(error, ModelError):
            if named:
                raise
            return Verified(known.candidate, None)
    return replace(known, tried=known.tried | {inner.training})


def _out_of_reach(model: nn.Module, head: nn.Linear) -> bool:
    """Whether the head's weight is not to be had outside its own forward, or a patched forward would not be run."""
    while True:
        if hasattr(model, "_orig_mod") or isinstance(model, nn.DataParallel):
            return True
        inner = getattr(model, "module", None) if hasattr(model, "device_ids") else None
        if not isinstance(inner, nn.Module):
            break
        model = inner
    # asking a module for an attribute that it lacks takes far longer
    sharded = any("_fsdp_wrapped_module" in module._modules for module in model.modules())  # pyright: ignore[reportPrivateUsage]
    weight = head.weight
    return sharded or weight.device.type == "meta" or weight.numel() == 0 or hasattr(weight, "ds_id")
