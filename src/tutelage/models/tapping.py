"""What inner layers give while a model runs, by their names, without editing the model."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from tutelage.errors import ModelError
from tutelage.models.calling import Inputs, describe_output, logits_in, run_model, unwrapped
from tutelage.models.layers import Kind, check_index, check_indexed, indexed, submodule, third

_CAPTURING = "transformers.utils.output_capturing"
_CAPTURING_MARK = "_output_capturing_hooks_installed"


def logits_and_features(model: nn.Module, inputs: Inputs, layers: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
    """Run ``model`` once, and return its class logits ``[B, C]`` with what the named layers gave, ``[B, ...]`` each.

    Submodules are tapped by forward hooks that live during this call only. A layer that gives a tuple or a mapping is
    taken to mean the first tensor of it. What a layer gave is copied, since a later layer may write into it (an in-place
    ReLU), and another thing would be compared.

    Args:
        model: any module that :func:`tutelage.models.class_logits` can call, also inside DDP's wrapper.
        inputs: a view, as for :func:`tutelage.models.class_logits`.
        layers: names, as for :func:`tutelage.models.check_layers`.

    Raises:
        ModelError: as ``class_logits`` and ``check_layers``; a layer that did not run, or ran more than once, or gave no
            floating-point tensor with one row an example.
    """
    output, found = run_tapped(model, inputs, layers)
    logits = logits_in(model, output)
    expect_examples(model, found, len(logits))
    return logits, found


def run_tapped(
    model: nn.Module, inputs: Inputs, layers: Sequence[str], **options: Any
) -> tuple[Any, dict[str, Tensor]]:
    """Run ``model`` once, and return whatever it returns with what the named layers gave.

    Args:
        model, inputs, layers: as for :func:`logits_and_features`.
        options: more keyword arguments of the model's ``forward``.

    Raises:
        ModelError: as :func:`logits_and_features`, but for what concerns the logits and the number of rows.
    """
    if not layers:
        return run_model(model, inputs, **options), {}
    asked: dict[str, tuple[Kind, int]] = {}
    taps: dict[str, _Tap] = {}
    for layer in layers:
        meant = indexed(model, layer)
        if meant is not None:
            check_indexed(model, layer, *meant)
            asked[layer] = meant
        else:
            fused = third(model, layer)
            taps[layer] = _Tap() if fused is None else _Tap(fused[1])
    wanted = {f"output_{kind}": True for kind in sorted({kind for kind, _ in asked.values()})}
    with _tapped(model, taps), _without_capturing_left(model, bool(wanted)):
        output = run_model(model, inputs, **options, **wanted)
    found = {layer: _given(model, output, layer, *asked[layer]) for layer in asked}
    found |= {layer: _heard(model, layer, tap) for layer, tap in taps.items()}
    return output, {layer: found[layer] for layer in layers}


class _Tap:
    """A forward hook that keeps what one layer gave, or a third of it."""

    def __init__(self, third: int | None = None) -> None:
        self.third = third
        self.runs = 0
        self.values: Any = None

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:  # noqa: ARG002 - a hook's signature
        self.runs += 1
        found = _first_tensor(output)
        if found is not None and self.third is not None:
            found = found.chunk(3, dim=-1)[self.third]
        self.values = output if found is None else found.clone()


@contextmanager
def _tapped(model: nn.Module, taps: Mapping[str, _Tap]) -> Generator[None]:
    handles = [submodule(model, layer).register_forward_hook(tap) for layer, tap in taps.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _without_capturing_left(model: nn.Module, asked: bool) -> Generator[None]:
    """Remove the hooks that ``transformers`` puts into a model when it is first asked for hidden states.

    They are local functions, so the model could not be pickled any more.
    """
    modules: list[Any] = list(unwrapped(model).modules()) if asked else []
    before = [(set(module._forward_hooks), _CAPTURING_MARK in vars(module)) for module in modules]
    try:
        yield
    finally:
        # their handles were thrown away
        for module, (hooks, marked) in zip(modules, before, strict=True):
            for key, hook in list(module._forward_hooks.items()):
                if key not in hooks and getattr(hook, "__module__", "") == _CAPTURING:
                    del module._forward_hooks[key]
            if not marked:
                vars(module).pop(_CAPTURING_MARK, None)


def _first_tensor(output: Any) -> Tensor | None:
    if isinstance(output, Tensor):
        return output
    parts: Any = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else ()
    return next((part for part in parts if isinstance(part, Tensor)), None)


def _given(model: nn.Module, output: Any, layer: str, kind: Kind, index: int) -> Tensor:
    """One of the hidden states or attentions in a Hugging Face output."""
    inner = unwrapped(model)
    every: Any = getattr(output, kind, None)
    if not every:
        raise ModelError(
            f"{type(inner).__name__} was asked for its {kind.replace('_', ' ')} and returned {describe_output(output)} without any, so "
            f"there is no {layer!r}: name one of its submodules instead"
        )
    check_index(inner, layer, index, len(every))
    if every[index] is None:
        raise ModelError(
            f'{type(inner).__name__} gives None for {layer!r}: load it with attn_implementation="eager", or name another layer'
        )
    return every[index]


def _heard(model: nn.Module, layer: str, tap: _Tap) -> Tensor:
    who = f"layer {layer!r} of {type(unwrapped(model)).__name__}"
    if tap.runs == 0:
        raise ModelError(
            f"{who} did not run in this forward, so it gave nothing: its parent may use its weights without calling it (as "
            "nn.MultiheadAttention does with out_proj), take another branch, or be compiled; name a layer that is called"
        )
    if tap.runs > 1:
        raise ModelError(
            f"{who} ran {tap.runs} times in one forward (a module that is used in several places): which of its outputs is meant cannot "
            "be told; name a layer around one of the uses"
        )
    if not isinstance(tap.values, Tensor):
        raise ModelError(
            f"{who} gave {describe_output(tap.values)}, expected a tensor, or a tuple or mapping that holds one: name a layer inside or "
            "after it"
        )
    return tap.values


def expect_examples(model: nn.Module, features: Mapping[str, Tensor], rows: int) -> None:
    """Raise ModelError unless each layer gave floats with one row an example."""
    for layer, values in features.items():
        who = f"layer {layer!r} of {type(unwrapped(model)).__name__}"
        if values.ndim == 0 or len(values) != rows:
            raise ModelError(
                f"{who} gave shape {tuple(values.shape)} for {rows} examples, expected [examples, ...]: another axis would be taken for "
                "examples and one example compared with another; name a layer whose first axis is the batch"
            )
        if not values.is_floating_point():
            raise ModelError(
                f"{who} gave {values.dtype}, expected floating-point values: whole numbers have no gradient; name another layer"
            )
