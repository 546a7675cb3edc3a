"""What a cut took from a model and what it kept: layers, widths, vocabulary, parameters by part, bytes and FLOPs, before and after."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.errors import ModelError
from tutelage.evaluation.cost import count_flops, stored_bytes
from tutelage.models import count_parameters
from tutelage.models.calling import Inputs, unwrapped
from tutelage.models.shrinking.depth import model_layers

#: A size by its name here, and as configs of transformers call it.
_SIZES = {
    "layers": ("num_hidden_layers",),
    "hidden": ("hidden_size",),
    "heads": ("num_attention_heads",),
    "feed_forward": ("intermediate_size", "hidden_dim"),
    "vocabulary": ("vocab_size",),
}

Json = dict[str, Any]


def surgery_table(
    before: nn.Module, after: nn.Module, inputs: Inputs, inputs_after: Inputs | None = None
) -> dict[str, Any]:
    """The model that was cut beside what was made of it.

    Args:
        before: the model that was cut, with a head or without.
        after: what was made of it.
        inputs: a batch as both take it, of which the first example's FLOPs are counted; a tensor ``[B, ...]`` or a mapping of them.
        inputs_after: the same batch for ``after``, where its vocabulary is another one.

    Returns:
        ``rows``, each ``{"what", "before", "after", "ratio"}``: the sizes that both configs say, parameters (``parameters``, and of
        ``embeddings``, ``layer_weights`` and ``others``), ``bytes`` and ``flops_per_example`` (a multiply-add is two; None where an
        operator cannot be counted); ``kept_layers``, the numbers from 0 of the layers whose weights are those of before, or None
        where they cannot be told by that: narrower or drawn anew.
    """
    before, after = unwrapped(before), unwrapped(after)
    values = {name: (_size(before, keys), _size(after, keys)) for name, keys in _SIZES.items()}
    values = {name: pair for name, pair in values.items() if None not in pair}
    parts = _parts(before), _parts(after)
    values["parameters"] = (count_parameters(before), count_parameters(after))
    values |= {part: (parts[0][part], parts[1][part]) for part in parts[0] if part in parts[1]}
    values["bytes"] = (stored_bytes(before), stored_bytes(after))
    values["flops_per_example"] = (
        _flops(before, inputs),
        _flops(after, inputs if inputs_after is None else inputs_after),
    )
    rows = [
        {"what": name, "before": a, "after": b, "ratio": b / a if a and b is not None else None}
        for name, (a, b) in values.items()
    ]
    return {"rows": rows, "kept_layers": _kept_layers(before, after)}


def _size(model: nn.Module, keys: tuple[str, ...]) -> int | None:
    config: Any = getattr(model, "config", None)
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    found = (getattr(config, key, None) for key in keys)
    return next((value for value in found if isinstance(value, int)), None)


def _layers(model: nn.Module) -> tuple[str, nn.ModuleList] | None:
    """Where the layers are, and these; None where that cannot be told."""
    try:
        return model_layers(model)
    except ModelError:
        return None


def _parts(model: nn.Module) -> dict[str, int]:
    """Parameters by part, a shared one once, with the first part that has it."""
    listed = _layers(model)
    tables = {id(values) for part in model.modules() if isinstance(part, nn.Embedding) for values in part.parameters()}
    counts = {"embeddings": 0, "layer_weights": 0, "others": 0}
    for name, values in model.named_parameters():
        inside = listed is not None and name.startswith(f"{listed[0]}.")
        part = "embeddings" if id(values) in tables else "layer_weights" if inside else "others"
        counts[part] += values.numel()
    if listed is None:
        counts["others"] += counts.pop("layer_weights")
    return counts


def _kept_layers(before: nn.Module, after: nn.Module) -> list[int] | None:
    there, here = _layers(before), _layers(after)
    if there is None or here is None:
        return None
    kept: list[int] = []
    for layer in here[1]:
        same = [number for number, other in enumerate(there[1]) if number not in kept and _same(layer, other)]
        if not same:
            return None
        kept.append(same[0])
    return kept


def _same(layer: nn.Module, other: nn.Module) -> bool:
    ours, theirs = dict(layer.named_parameters()), dict(other.named_parameters())
    return ours.keys() == theirs.keys() and all(
        values.shape == theirs[name].shape
        and torch.equal(values.detach().cpu(), theirs[name].detach().cpu().to(values.dtype))
        for name, values in ours.items()
    )


def _flops(model: nn.Module, inputs: Inputs) -> int | None:
    """Of the first example, in eval mode; the model's flags are as before afterwards."""
    device = next((values.device for values in model.parameters()), torch.device("cpu"))
    training = [part for part in model.modules() if part.training]
    model.eval()
    try:
        return count_flops(model, _first(inputs, device))
    finally:
        for part in training:
            part.training = True


def _first(inputs: Inputs, device: torch.device) -> Inputs:
    if isinstance(inputs, Mapping):
        return {name: values[:1].to(device) for name, values in inputs.items()}
    first: Tensor = inputs[:1]
    return first.to(device)
