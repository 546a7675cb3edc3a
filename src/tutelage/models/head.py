"""A model's last linear layer, found, checked, and left out of a forward pass.

Over a large vocabulary that one matrix product is most of the memory of a step. A model runs with it bypassed, its hooks
firing as ever, and what the head would have been given becomes a :class:`tutelage.signals.HeadLogits`.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeGuard
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tutelage.errors import ModelError
from tutelage.models.calling import Inputs, find_logits, run_model, unwrapped
from tutelage.signals import HeadLogits

#: Below so many classes a head is not worth bypassing, unless there are many rows an example.
WIDE = 8192

#: What a config calls a factor of the logits; some models multiply by it and some divide.
_FACTORS = ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")
_SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "final_logit_softcap", "softcap")

_PROBED_TOKENS = 4
#: Relative slack of a comparison, in units of the coarsest dtype's rounding.
_ROUNDINGS = 32


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


@dataclass(frozen=True)
class _Verified:
    """What was found out about one layer of one model; ``module`` None where it cannot stand for the model's logits."""

    candidate: nn.Module
    module: nn.Linear | None
    scale: float = 1.0
    softcap: float | None = None


_known: WeakKeyDictionary[nn.Module, _Verified] = WeakKeyDictionary()


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
        known = _known[inner] = _verified(model, inputs, candidate, named)
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
            raise _ran(self._model, len(self.given))
        logits = find_logits(output)
        if not _watched(self._model) or logits is None or not logits.requires_grad:
            return self.given[0]
        return _ThroughOutput.apply(self.given[0], logits)  # pyright: ignore[reportReturnType]


def _ran(model: nn.Module, times: int) -> ModelError:
    return ModelError(
        f"the head of {type(unwrapped(model)).__name__} ran {times} times in one forward pass, expected once: which of its outputs are "
        "the logits cannot be told; wrap the model in a module of your own that returns them"
    )


@contextmanager
def bypassed(model: nn.Module, head: Head) -> Generator[Caught]:
    """Within it, this thread's forward passes leave out the head's matrix product; others, and later ones, do not.

    Args:
        model: the model.
        head: :func:`find_head` of it; another model may share the layer.
    """
    caught = Caught(model, head.module)
    with _detour(head.module, caught.take):
        yield caught


class _Detour:
    """Stands for a layer's ``forward``; each thread that has put something in its place gets that."""

    def __init__(self, module: nn.Module) -> None:
        self.before = vars(module).get("forward")
        self.forward = module.forward
        self.ways: dict[int, list[Any]] = {}

    def __call__(self, *args: Any, **options: Any) -> Any:
        ways = self.ways.get(threading.get_ident())
        return ways[-1](*args, **options) if ways else self.forward(*args, **options)


_detours_lock = threading.Lock()


@contextmanager
def _detour(module: nn.Module, way: Any) -> Generator[None]:
    mine = threading.get_ident()
    with _detours_lock:
        detour = vars(module).get("forward")
        if not isinstance(detour, _Detour):
            detour = _Detour(module)
            module.forward = detour
        detour.ways.setdefault(mine, []).append(way)
    try:
        yield
    finally:
        with _detours_lock:
            detour.ways[mine].pop()
            if not detour.ways[mine]:
                del detour.ways[mine]
            if not detour.ways:
                del module.forward
                if detour.before is not None:
                    module.forward = detour.before


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


# The check


def _verified(model: nn.Module, inputs: Inputs, candidate: nn.Linear, named: bool) -> _Verified:
    try:
        probed = _probe(model, inputs, candidate, named)
    except (IndexError, KeyError, RuntimeError, TypeError, ValueError, ModelError):
        if named:
            raise
        return _Verified(candidate, None)
    difference = probed.difference()
    if difference is None:
        ways = _ways(unwrapped(model))
        for scale, softcap in ways:
            if probed.fits(scale, softcap):
                return _Verified(candidate, candidate, scale, softcap)
        difference = probed.difference_after(ways)
    if not named:
        return _Verified(candidate, None)
    raise ModelError(
        f"{type(unwrapped(model)).__name__} makes other logits than its head and its config say: {difference}. A loss computed from the "
        "head would be that of another model; wrap the model in a module of your own that returns the logits, and they are taken as "
        "they are"
    )


@dataclass(frozen=True)
class _Probe:
    """One forward pass with known numbers in the place of the head's outputs.

    Args:
        given, made: what the head was given and made of it, ``[..., D]`` and ``[..., C]``.
        expected: what its weight and bias make of it.
        put, found: what was put in the place of it, and the model's logits, ``[..., C]``.
    """

    given: Tensor
    made: Tensor
    expected: Tensor
    put: Tensor
    found: Tensor | None

    def difference(self) -> str | None:
        """How the layer differs from its weight and bias, in words; None where it does not."""
        fine = self.expected.isfinite() & self.made.isfinite()
        off = (self.made.double() - self.expected.double()).abs().where(fine, 0.0)
        largest = float(self.expected.double().abs().where(fine, 0.0).max())
        if float(off.max()) <= _slack(self.made, self.given) * max(largest, 1e-6):
            return None
        return f"its head gave a number {float(off.max()):.3g} off what its weight and bias make, at most {largest:.3g}"

    def fits(self, scale: float, softcap: float | None) -> bool:
        """Whether the model's logits are the numbers put in, scaled and capped so."""
        if self.found is None or self.found.shape != self.put.shape:
            return False
        expected = self.put.double() * scale
        expected = expected if softcap is None else softcap * torch.tanh(expected / softcap)
        off = (self.found.double() - expected).abs() / expected.abs().clamp_min(1e-6)
        return float(off.max()) <= _slack(self.found, self.put)

    def difference_after(self, ways: Sequence[tuple[float, float | None]]) -> str:
        """How the model's logits differ from the numbers put in, however they are scaled and capped, in words."""
        if self.found is None or self.found.shape != self.put.shape:
            got = "none" if self.found is None else f"{tuple(self.found.shape)}"
            return f"for outputs {tuple(self.put.shape)} of its head it returned logits of shape {got}"
        off = torch.nan_to_num((self.found.double() - self.put.double()).abs(), nan=torch.inf)
        largest = int(off.argmax())
        put, got = (float(values.flatten()[largest]) for values in (self.put, self.found))
        scales = ", ".join(f"{scale:g}" for scale in dict.fromkeys(scale for scale, _ in ways))
        caps = ", ".join("none" if cap is None else f"{cap:g}" for cap in dict.fromkeys(cap for _, cap in ways))
        return (
            f"where its head gives {put:.6g}, its logit is {got:.6g}, and no scale ({scales}) and softcap ({caps}) of its config make "
            "all of its logits"
        )


def _slack(*tensors: Tensor) -> float:
    return _ROUNDINGS * max(torch.finfo(values.dtype).eps for values in tensors)


def _probe(model: nn.Module, inputs: Inputs, candidate: nn.Linear, named: bool) -> _Probe:
    seen: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    plain = candidate.forward

    def exchanged(hidden: Tensor) -> Tensor:
        made = plain(hidden)
        bias = candidate.bias
        expected = HeadLogits(hidden.flatten(0, -2), candidate.weight, bias).at(1.0).view_as(made)
        put = _known_numbers(made)
        seen.append((hidden, made, expected, put))
        return put.clone()

    modules = [module for module in unwrapped(model).modules() if module.training]
    with torch.random.fork_rng(devices=[]), torch.no_grad(), _detour(candidate, exchanged):
        for module in modules:
            module.training = False
        try:
            output = run_model(model, _a_little(inputs, short=named))
        finally:
            for module in modules:
                module.training = True
    if len(seen) != 1:
        raise _ran(model, len(seen))
    return _Probe(*seen[0], find_logits(output))


def _known_numbers(like: Tensor) -> Tensor:
    """Numbers from 0.01 to 300 of both signs, of that shape: small ones tell a scale, large ones a cap."""
    steps = torch.arange(like.numel(), device=like.device)
    sizes = 10 ** (2.5 - 4.5 * ((steps * 0.6180339887) % 1.0))
    return torch.where(steps % 2 == 0, sizes, -sizes).to(like.dtype).view_as(like)


def _a_little(inputs: Inputs, short: bool) -> Inputs:
    """The first example, and where everything is ``[B, T]`` its first tokens."""
    if isinstance(inputs, Tensor):
        return inputs[:1, :_PROBED_TOKENS] if short and inputs.ndim == 2 else inputs[:1]
    shapes = {values.shape for values in inputs.values()}
    shortened = short and len(shapes) == 1 and len(next(iter(shapes))) == 2
    return {name: values[:1, :_PROBED_TOKENS] if shortened else values[:1] for name, values in inputs.items()}


def _ways(inner: nn.Module) -> list[tuple[float, float | None]]:
    """The scales and softcaps that a model's config may mean; the least that is said first."""
    config: Any = getattr(inner, "config", None)
    text: Any = config.get_text_config() if hasattr(config, "get_text_config") else None
    sources = [source for source in (config, text) if source is not None]
    factors, caps = (_numbers(sources, names) for names in (_FACTORS, _SOFTCAPS))
    scales = dict.fromkeys([1.0, *(way for factor in factors for way in (factor, 1.0 / factor))])
    return [(scale, cap) for cap in (None, *caps) for scale in scales]


def _numbers(sources: list[Any], names: tuple[str, ...]) -> list[float]:
    found = [
        source.get(name) if isinstance(source, Mapping) else getattr(source, name, None)
        for source in sources
        for name in names
    ]
    return [float(value) for value in found if isinstance(value, int | float) and value > 0]
