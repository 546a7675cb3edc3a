"""A smaller language model from a bigger one: some of its layers, everything else as it is (Sanh et al. 2019, section 3)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.errors import ModelError
from tutelage.models.calling import unwrapped

#: What tells a layer its number, and nothing else.
_NUMBERS = frozenset({"layer_idx", "layer_id", "layer_number", "block_idx"})


def even_layers(layers: int, of: int) -> list[int]:
    """So many layers' numbers of those of a model, evenly apart, the first and the last among them; of one, the first.

    Raises:
        ModelError: fewer than one, or more than there are.
    """
    if not 1 <= layers <= of:
        raise ModelError(f"{layers} layers are to be kept of {of}, expected 1 to {of}")
    apart = max(layers - 1, 1)
    return [(2 * place * (of - 1) + apart) // (2 * apart) for place in range(layers)]


def keep_layers(model: nn.Module, layers: int | Sequence[int]) -> Any:
    """A new model of the same class with some of a language model's decoder layers; embeddings, last norm and head are copied.

    Its config says so, so that ``from_pretrained`` reads what its ``save_pretrained`` writes; per-layer lists in it follow the layers that
    stay. All its weights are to be trained, whatever was frozen in the model. It is in the mode (train or eval) that the model is in.

    Args:
        model: a decoder-only model of transformers, whole on one device.
        layers: how many, evenly apart with the first and the last (:func:`even_layers`); or their numbers from 0, rising.

    Returns:
        The smaller ``PreTrainedModel``; the given one is as before.

    Raises:
        ModelError: no list of as many layers as the config has, or several; numbers that do not rise within it; a layer that would be
            another one at its new place, as where it reads another one's keys, or its number is part of its formula.
    """
    inner: Any = unwrapped(model)
    listed, there = decoder_layers(inner)
    kept = even_layers(layers, len(there)) if isinstance(layers, int) else _numbers(layers, len(there))
    config = _shrunk(inner.config, len(there), kept)
    smaller = _built(inner, config)
    _expect_same(inner, there, decoder_layers(smaller)[1], kept)
    state = _kept_state(inner.state_dict(), listed, kept)
    _load(smaller, state, type(inner).__name__)
    smaller.generation_config = copy.deepcopy(getattr(inner, "generation_config", None))
    return smaller.train(inner.training)


def decoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Where a language model holds its decoder layers, and these.

    Raises:
        ModelError: it is no model of transformers, is an encoder and a decoder, or what it holds as often as its config has layers is not
            one list.
    """
    config: Any = getattr(model, "config", None)
    name = type(model).__name__
    if (
        not hasattr(config, "get_text_config")
        or getattr(config, "is_encoder_decoder", False)
        or hasattr(model, "peft_config")
    ):
        raise ModelError(
            f"{name} is no decoder-only model of transformers with plain weights, and which of its modules are its layers is not "
            "known: give one of AutoModelForCausalLM, before adapters are put into it, or build the smaller model in a function of your own"
        )
    count = config.get_text_config(decoder=True).num_hidden_layers
    lists = [(at, part) for at, part in model.named_modules() if isinstance(part, nn.ModuleList) and len(part) == count]
    outer = [(at, part) for at, part in lists if not any(at.startswith(f"{other}.") for other, _ in lists)]
    if len(outer) != 1:
        found = ", ".join(at for at, _ in outer) or "none"
        raise ModelError(
            f"{name} has {count} layers by its config, and of its lists of modules {found} hold as many, expected exactly one: other "
            "layers than meant would be dropped; build the smaller model in a function of your own"
        )
    return outer[0]


def _numbers(layers: Sequence[int], of: int) -> list[int]:
    kept = list(layers)
    if not kept or kept != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= of:
        raise ModelError(
            f"layers to keep are {kept}, expected numbers from 0 to {of - 1}, rising and each once: in another order or twice, a layer "
            "would be given what it never saw"
        )
    return kept


def _shrunk(config: Any, count: int, kept: list[int]) -> Any:
    """The config of a model with those layers."""
    smaller = copy.deepcopy(config)
    smaller.name_or_path = ""  # adapters put into it must not be taken for the whole model's
    text = smaller.get_text_config(decoder=True)
    if getattr(text, "is_heterogeneous", False):
        raise ModelError(
            f"{type(text).__name__} has a config of its own for some layers ('per_layer_config'), which would meet others; build the "
            "smaller model in a function of your own"
        )
    for key, value in text.to_dict().items():
        if isinstance(value, list | tuple) and len(value) == count and hasattr(text, key):  # pyright: ignore[reportUnknownArgumentType]
            setattr(text, key, [value[number] for number in kept])
    # layers from this number on look back over a window
    if isinstance(most := getattr(text, "max_window_layers", None), int):
        text.max_window_layers = sum(number < most for number in kept)
    text.num_hidden_layers = len(kept)
    return smaller


def _built(model: Any, config: Any) -> Any:
    """A model of the same class, its weights yet to come."""
    from transformers.initialization import no_init_weights

    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())), no_init_weights():
            return type(model)(config).to(device=model.device, dtype=model.dtype)
    except (IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ModelError(
            f"{type(model).__name__} could not be built with {config.get_text_config(decoder=True).num_hidden_layers} layers: {error}. "
            "Something else in its config counts them; build the smaller model in a function of your own"
        ) from error


def _expect_same(model: Any, before: nn.ModuleList, after: nn.ModuleList, kept: list[int]) -> None:
    """Refuse a layer that is another one at its new place but for its number."""
    if getattr(model.config, "scale_attn_by_inverse_layer_idx", False) and kept != list(range(len(kept))):
        raise ModelError(
            f"{type(model).__name__} divides its attention by the layer's number ('scale_attn_by_inverse_layer_idx'): a layer at another "
            "place would be another one; keep its first layers, or build the smaller model in a function of your own"
        )
    for place, number in enumerate(kept):
        old, new = _facts(before[number]), _facts(after[place])
        other = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
        if other:
            what = f"{other[0]} was {old.get(other[0])!r} and would be {new.get(other[0])!r}"
            raise ModelError(
                f"layer {number} of {type(model).__name__} would be another one as layer {place} of {len(kept)} ({what}): what it "
                "does depends on its number, and its weights would serve something else; keep other layers, or build the smaller "
                "model in a function of your own"
            )


def _facts(layer: nn.Module) -> dict[str, Any]:
    """What a layer is but for its weights' values and its number: kinds of modules, shapes, settings."""
    found: dict[str, Any] = {}
    for at, part in layer.named_modules():
        found[f"{at}:"] = type(part).__qualname__
        for name, value in vars(part).items():
            if not name.startswith("_") and name not in _NUMBERS | {"training"} and _plain(value):
                found[f"{at}.{name}"] = value
    return found | {name: value.shape for name, value in layer.state_dict().items()}


def _plain(value: object) -> bool:
    return value is None or isinstance(value, bool | int | float | str | list | tuple)


def _kept_state(state: Mapping[str, Tensor], listed: str, kept: list[int]) -> dict[str, Tensor]:
    """Copies of the weights that stay, by their new names."""
    places = {str(number): str(place) for place, number in enumerate(kept)}
    new: dict[str, Tensor] = {}
    for name, values in state.items():
        if name.startswith(f"{listed}."):
            number, rest = name.removeprefix(f"{listed}.").split(".", 1)
            if number not in places:
                continue
            name = f"{listed}.{places[number]}.{rest}"
        new[name] = values.detach().clone()
    return new


def _load(smaller: Any, state: dict[str, Tensor], name: str) -> None:
    # assigned, not copied: what is kept in another precision than the rest stays in it
    keys = smaller.load_state_dict(state, strict=False, assign=True)
    wrong = [*keys.missing_keys, *keys.unexpected_keys]
    if wrong:
        raise ModelError(
            f"{name} has weights that its smaller self does not, or lacks some ({', '.join(wrong[:4])}): they would be random or lost; "
            "build the smaller model in a function of your own"
        )
    smaller.tie_weights()
    smaller.requires_grad_(True)
