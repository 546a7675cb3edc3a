"""A model's inner layers by name: which there are, which name was meant, and which are its repeated blocks."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from torch import nn

from tutelage.errors import ModelError
from tutelage.models.calling import unwrapped

Kind = Literal["hidden_states", "attentions"]

#: What architectures call the three maps of an attention (BERT, RoBERTa and ELECTRA; DistilBERT; LLaMA, ViT and most others).
_APART = (("query", "key", "value"), ("q_lin", "k_lin", "v_lin"), ("q_proj", "k_proj", "v_proj"))
#: What they call it where it is one; of the first, queries, keys and values are a third each, one after another.
_FUSED = ("Wqkv", "qkv", "qkv_proj", "query_key_value", "c_attn")
_PARTS = ("query", "key", "value")
#: Where a decoder looks at an encoder.
_CROSS = ("crossattention", "cross_attention", "cross_attn", "encoder_attn", "EncDecAttention")

_INDEXED = re.compile(r"(hidden_states|attentions)\.(-?\d+)")
_SHOWN = 6


def indexed(model: nn.Module, layer: str) -> tuple[Kind, int] | None:
    """What ``hidden_states.I`` and ``attentions.I`` mean, where the model has no submodule of that name; None for others."""
    match = _INDEXED.fullmatch(layer)
    if match is None or _submodule(unwrapped(model), layer) is not None:
        return None
    kind: Any = match[1]
    return kind, int(match[2])


def submodule(model: nn.Module, layer: str) -> nn.Module:
    """The submodule of that dotted name, inside any DDP wrapper.

    Raises:
        ModelError: there is none; the message has the nearest names.
    """
    inner = unwrapped(model)
    fused = third(inner, layer)
    found = _submodule(inner, layer if fused is None else fused[0])
    if found is None:
        raise ModelError(f"{type(inner).__name__} has no layer {layer!r}{_instead(inner, layer)}")
    return found


def third(model: nn.Module, layer: str) -> tuple[str, int] | None:
    """The map, and which third of what it gives, that a name such as ``layers.0.attn.Wqkv.key`` means; None for other names.

    ModernBERT makes queries, keys and values in one linear map, a third each. Where keys have fewer heads they are no thirds.
    """
    inner = unwrapped(model)
    fused, _, part = layer.rpartition(".")
    if part not in _PARTS or fused.rpartition(".")[2] != _FUSED[0]:
        return None
    module = _submodule(inner, fused)
    whole = isinstance(module, nn.Linear) and module.out_features == 3 * module.in_features
    return (fused, _PARTS.index(part)) if whole else None


def check_layers(model: nn.Module, layers: Iterable[str]) -> None:
    """Find out, without running the model, that each layer is there and can be tapped.

    Args:
        model: any module, or one inside DDP's wrapper.
        layers: dotted names of submodules (``blocks.1``), and ``hidden_states.I`` or ``attentions.I`` of a Hugging Face
            model, where −1 is the last and ``hidden_states.0`` what enters the first layer.

    Raises:
        ModelError: an unknown name (the message has the nearest), an index that the model does not reach, attentions of a
            model that does not keep them, or a model that ``torch.compile`` has wrapped.
    """
    layers = list(layers)
    if layers and any(_is_compiled(module) for module in model.modules()):
        raise ModelError(
            f"{type(unwrapped(model)).__name__} is compiled, and its layers {', '.join(map(repr, layers))} are to be tapped: a graph that "
            "torch.compile made before runs past the taps, and nothing would be learnt from those layers; give the module itself, not "
            "the compiled one, or leave out the terms that listen to layers"
        )
    for layer in layers:
        meant = indexed(model, layer)
        if meant is None:
            submodule(model, layer)
        else:
            check_indexed(model, layer, *meant)


def block_names(model: nn.Module) -> list[str]:
    """The layers of the model's stack of repeated blocks, from its input to its output.

    They are ``hidden_states.1`` to ``hidden_states.L`` for a Hugging Face model of L layers. For others they are the children
    with weights of the ``ModuleList`` or ``Sequential`` that has most of one class (the outermost of equals); a model that
    is one ``Sequential`` is counted without its last, whose output is the logits.

    Raises:
        ModelError: there is no such stack.
    """
    inner = unwrapped(model)
    depth = _hidden_layers(inner)
    if depth is not None:
        return [f"hidden_states.{index}" for index in range(1, depth + 1)]
    best: list[str] = []
    repeated = 0
    for name, module in inner.named_modules():
        if isinstance(module, nn.ModuleList | nn.Sequential):
            weighty = [(child, part) for child, part in module.named_children() if _has_weights(part)]
            weighty = weighty[:-1] if module is inner else weighty
            alike = max(Counter(type(part) for _, part in weighty).values(), default=0)
            if alike > repeated:
                repeated, best = alike, [f"{name}.{child}" if name else child for child, _ in weighty]
    if not best:
        raise ModelError(
            f"{type(inner).__name__} has no stack of blocks (a ModuleList or Sequential whose children have weights) to choose layers "
            "from: name the pairs of layers one by one"
        )
    return best


def attention_names(model: nn.Module, layer: int = -1) -> dict[str, str]:
    """The submodules that show one layer's queries, keys and values, ``[B, T, D]`` each, all heads side by side.

    They are found by the names that architectures give them; tried are BERT, RoBERTa, DistilBERT, ModernBERT, ViT and LLaMA, alone
    and below a head. Of ModernBERT, whose one map gives all three, the names mean thirds of it. Queries and keys are those before any
    rotation by position. Keys and values of fewer heads are narrower than queries.

    Args:
        model: any module, or one inside DDP's wrapper, with one stack of self-attentions.
        layer: number of the layer, from 0; −1 is the last.

    Returns:
        ``{"query": name, "key": name, "value": name}``, as :func:`check_layers` takes names.

    Raises:
        ModelError: a model without such submodules, such as GPT-2, whose one linear map gives all three; one with several stacks, as an
            encoder with a decoder; or a number that the stack does not reach.
    """
    inner = unwrapped(model)
    stacks = _attention_stacks(inner)
    if not stacks:
        raise _no_attention(inner)
    if len(stacks) > 1:
        raise ModelError(
            f"{type(inner).__name__} has {len(stacks)} stacks of self-attentions ({_listed(list(stacks))}): which layer is meant cannot be "
            "told; list the pairs of layers by name"
        )
    (found,) = stacks.values()
    if not -len(found) <= layer < len(found):
        raise ModelError(
            f"{type(inner).__name__} has no layer {layer}: its self-attentions are those of layers 0 to {len(found) - 1} (-1 is the last)"
        )
    return found[layer]


def _attention_stacks(inner: nn.Module) -> dict[str, list[dict[str, str]]]:
    """Names of queries, keys and values, in order, by the stack's name with # for the layer's number."""
    stacks: dict[str, list[dict[str, str]]] = {}
    for name, module in inner.named_modules():
        steps = name.split(".")
        children = {child for child, _ in module.named_children()}
        apart = next((names for names in _APART if children.issuperset(names)), None)
        if third(inner, f"{name}.{_PARTS[0]}") is not None:
            apart = _PARTS
        if apart is not None and not set(steps).intersection(_CROSS):
            stack = ".".join("#" if step.isdigit() else step for step in steps)
            prefix = f"{name}." if name else ""
            own = {part: prefix + called for part, called in zip(_PARTS, apart, strict=True)}
            stacks.setdefault(stack, []).append(own)
    return stacks


def _no_attention(inner: nn.Module) -> ModelError:
    fused = next((name for name, _ in inner.named_modules() if name.rpartition(".")[2] in _FUSED), None)
    if fused is not None:
        return ModelError(
            f"{type(inner).__name__} makes queries, keys and values in one map ({fused!r}), so that no submodule shows one of them: their "
            "relations cannot be told apart; learn from its hidden states (hint, cosine_hidden) or attentions (attention_map) instead"
        )
    return ModelError(
        f"{type(inner).__name__} has no submodules of queries, keys and values ({_listed([names[0] for names in _APART])} with its "
        "neighbours): list the pairs of layers that show them by name"
    )


def _submodule(inner: nn.Module, layer: str) -> nn.Module | None:
    try:
        return inner.get_submodule(layer) if layer else None
    except AttributeError:
        return None


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _is_compiled(module: nn.Module) -> bool:
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None


def _config(inner: nn.Module) -> Any:
    """A Hugging Face model's config, None for other modules."""
    config = getattr(inner, "config", None)
    return config if hasattr(config, "output_hidden_states") else None


def _hidden_layers(inner: nn.Module) -> int | None:
    depth = getattr(_config(inner), "num_hidden_layers", None)
    return depth if isinstance(depth, int) and depth > 0 else None


def check_indexed(model: nn.Module, layer: str, kind: Kind, index: int) -> None:
    """Raise ModelError where a model cannot give this hidden state or attention, as far as its config says."""
    inner = unwrapped(model)
    if _config(inner) is None:
        raise ModelError(
            f"{type(inner).__name__} has no layer {layer!r}: {kind} by index are a Hugging Face model's, and this is none; name one of its "
            f"submodules{_instead(inner, layer)}"
        )
    if kind == "attentions":
        _check_keeps_attentions(inner, layer)
    depth = _hidden_layers(inner)
    count = None if depth is None else depth + (1 if kind == "hidden_states" else 0)
    if count is not None:
        check_index(inner, layer, index, count)


def check_index(inner: nn.Module, layer: str, index: int, count: int) -> None:
    """Raise ModelError for an index that a model with ``count`` of them does not reach."""
    if not -count <= index < count:
        kind = layer.partition(".")[0]
        raise ModelError(
            f"{type(inner).__name__} has no layer {layer!r}: it gives {count} {kind.replace('_', ' ')}, {kind}.0 to "
            f"{kind}.{count - 1} ({kind}.-1 is the last)"
        )


def _check_keeps_attentions(inner: nn.Module, layer: str) -> None:
    """Raise ModelError where the attention that a model runs keeps no probabilities."""
    used = getattr(_config(inner), "_attn_implementation", "eager")
    if used not in (None, "eager"):
        raise ModelError(
            f"{type(inner).__name__} runs {used!r} attention, which never has its probabilities in memory, so there is no {layer!r} to "
            'learn from: load the model with attn_implementation="eager" (in a config, model: {hub: …, arguments: '
            "{attn_implementation: eager}})"
        )


def _instead(inner: nn.Module, layer: str) -> str:
    """What could have been meant, for the end of a message."""
    names = [name for name, _ in inner.named_modules() if name]
    near = difflib.get_close_matches(layer, names, n=_SHOWN, cutoff=0.5)
    tail = layer.rpartition(".")[2]
    near += [name for name in names if name.rpartition(".")[2] == tail and name not in near]
    if near:
        return f"; the nearest are {_listed(near[:_SHOWN])}"
    return f"; there are {_listed(names[:_SHOWN])}{f' and {len(names) - _SHOWN} more' if names[_SHOWN:] else ''}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
