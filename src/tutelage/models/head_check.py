"""Whether a model's logits are those of its last linear layer, scaled and capped as its config says: held against the model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.errors import ModelError
from tutelage.models.calling import Inputs, find_logits, run_model, unwrapped
from tutelage.models.detours import detour
from tutelage.signals import HeadLogits

#: What a config calls a factor of the logits; some models multiply by it and some divide.
_FACTORS = ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")
_SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "final_logit_softcap", "softcap")

_PROBED_TOKENS = 4
#: How many sizes the known numbers have: a prime, so that rows of logits differ.
_SIZES = 997
#: What a scale and a cap may cost, in roundings of the logits' dtype.
_ROUNDINGS = 4
#: What sums of products in float32 or better may cost beside the rounding of what goes in and comes out.
_SUM_ROUNDINGS = 32


@dataclass(frozen=True)
class Verified:
    """What was found out about one layer of one model; ``module`` None where it cannot stand for the model's logits.

    ``tried`` says in which modes (training or not) it has been left out for a trial.
    """

    candidate: nn.Module
    module: nn.Linear | None
    scale: float = 1.0
    softcap: float | None = None
    tried: frozenset[bool] = frozenset()


def verified(model: nn.Module, inputs: Inputs, candidate: nn.Linear, named: bool) -> Verified:
    """Run a model once on a little of a view, with known numbers in the place of what its last layer gives.

    Args:
        model: the model.
        inputs: the view.
        candidate: its last linear layer.
        named: whether the model itself says that it is the head; any other may turn out not to be.

    Raises:
        ModelError: a head that the model names does not make its logits.
    """
    try:
        probed = _probe(model, inputs, candidate, named)
    except (IndexError, KeyError, RuntimeError, TypeError, ValueError, ModelError):
        if named:
            raise
        return Verified(candidate, None)
    difference = probed.difference()
    if difference is None:
        ways = _ways(unwrapped(model))
        apart, best = min((probed.off(*way), index) for index, way in enumerate(ways))
        if apart <= 1.0:
            return Verified(candidate, candidate, *ways[best])
        difference = probed.difference_after(ways)
    if not named:
        return Verified(candidate, None)
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
        products: the size of the products that were summed up for it, as a norm.
        put, found: what was put in the place of it, and the model's logits, ``[..., C]``.
    """

    given: Tensor
    made: Tensor
    expected: Tensor
    products: float
    put: Tensor
    found: Tensor | None

    def difference(self) -> str | None:
        """How the layer differs from its weight and bias, in words; None where it does not."""
        fine = self.expected.isfinite() & self.made.isfinite()
        off = (self.made.double() - self.expected.double()).where(fine, 0.0).norm()
        size = self.expected.double().where(fine, 0.0).norm().clamp_min(self.products)
        coarsest = max(torch.finfo(values.dtype).eps for values in (self.made, self.given))
        slack = _ROUNDINGS / 2 * coarsest + _SUM_ROUNDINGS * torch.finfo(self.expected.dtype).eps
        if float(off) <= slack * max(float(size), 1e-6):
            return None
        return f"what its head gave is {float(off / size):.3g} of its size off what its weight and bias make"

    def off(self, scale: float, softcap: float | None) -> float:
        """How far the model's logits are off the numbers put in, scaled and capped so; above 1 it is more than rounding."""
        return off(self.found, self.put, scale, softcap) if self.found is not None else math.inf

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


def off(found: Tensor, put: Tensor, scale: float, softcap: float | None) -> float:
    """How far logits are off the numbers ``[..., K]`` that were put in the place of a head's outputs, scaled and capped.

    Each is allowed a few roundings, but one way and the other: a scale of 1.02, which bfloat16 hardly shows in a single number,
    moves all of them alike.

    Returns:
        In units of what rounding may do: above 1 it is more. Infinity for another shape.
    """
    if found.shape != put.shape or not found.is_floating_point():
        return math.inf
    if found.numel() == 0:
        return 0.0
    expected = put.double() * scale
    expected = expected if softcap is None else softcap * torch.tanh(expected / softcap)
    relative = (found.double() - expected) / expected
    largest, shift = torch.stack([relative.abs().max(), relative.mean().abs()]).tolist()
    rounding, least = torch.finfo(found.dtype).eps, torch.finfo(torch.float32).eps
    apart = max(largest / (_ROUNDINGS * rounding), shift / (rounding + _ROUNDINGS * least))
    return apart if math.isfinite(largest) else math.inf


def _probe(model: nn.Module, inputs: Inputs, candidate: nn.Linear, named: bool) -> _Probe:
    seen: list[tuple[Tensor, Tensor, Tensor, float, Tensor]] = []
    plain = candidate.forward

    def exchanged(hidden: Tensor) -> Tensor:
        made = plain(hidden)
        bias = candidate.bias
        expected = HeadLogits(hidden.flatten(0, -2), candidate.weight, bias).at(1.0).view_as(made)
        columns = torch.linalg.vector_norm(candidate.weight, dim=0, dtype=expected.dtype)
        products = float((hidden.to(expected.dtype) * columns).nan_to_num(0.0, 0.0, 0.0).norm())
        put = known_numbers(made.shape, made.dtype, made.device)
        seen.append((hidden, made, expected, products, put))
        return put.clone()

    modules = [module for module in unwrapped(model).modules() if module.training]
    with torch.random.fork_rng(devices=[]), torch.no_grad(), detour(candidate, exchanged):
        for module in modules:
            module.training = False
        try:
            output = run_model(model, a_little(inputs, short=named))
        finally:
            for module in modules:
                module.training = True
    if len(seen) != 1:
        raise ran(model, len(seen))
    return _Probe(*seen[0], find_logits(output))


def known_numbers(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers from 0.01 to 300 of both signs: small ones tell a scale, large ones a cap. Never coarser than float32, so that
    what comes back tells a scale of 1.02 from 1 in a model of half precision too."""
    steps = torch.arange(2 * _SIZES, device=device)
    # a lone number shall tell both, so the first is neither small nor large
    sizes = 10 ** (2.5 - 4.5 * ((399 + 616 * steps) % _SIZES) / _SIZES)
    numbers = torch.where(steps % 2 == 0, sizes, -sizes).to(torch.promote_types(dtype, torch.float32))
    return numbers.repeat(shape.numel() // len(numbers) + 1)[: shape.numel()].view(shape)


def a_little(inputs: Inputs, short: bool, examples: int = 1) -> Inputs:
    """The first examples, and where everything is ``[B, T]`` their first tokens."""
    if isinstance(inputs, Tensor):
        return inputs[:examples, :_PROBED_TOKENS] if short and inputs.ndim == 2 else inputs[:examples]
    shapes = {values.shape for values in inputs.values()}
    shortened = short and len(shapes) == 1 and len(next(iter(shapes))) == 2
    return {
        name: values[:examples, :_PROBED_TOKENS] if shortened else values[:examples] for name, values in inputs.items()
    }


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


def ran(model: nn.Module, times: int) -> ModelError:
    """What to raise for a head that did not run once in a forward pass."""
    return ModelError(
        f"the head of {type(unwrapped(model)).__name__} ran {times} times in one forward pass, expected once: which of its outputs are "
        "the logits cannot be told; wrap the model in a module of your own that returns them"
    )
