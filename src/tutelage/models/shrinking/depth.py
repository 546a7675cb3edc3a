"""Fewer layers: some of a model's own, everything else as it is (Sanh et al. 2019, section 3)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from tutelage.errors import ModelError
from tutelage.models.calling import unwrapped
from tutelage.models.shrinking.building import blank, built, misfits
from tutelage.models.shrinking.choice import even_layers, rising

#: What tells a layer its number, and nothing else.
_NUMBERS = frozenset({"layer_idx", "layer_id", "layer_number", "block_idx"})

#: Lists in a config that are no lists of layers, however long they are; beside all whose names end as these do.
_OTHER_LISTS = ("architectures", "image_size", "patch_size", "token_id", "token_ids")


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
    kept = even_layers(layers, len(there)) if isinstance(layers, int) else rising(layers, len(there))
    return cut_depth(inner, listed, kept)


def decoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Where a language model holds its decoder layers, and these.

    Raises:
        ModelError: it is no model of transformers, is an encoder and a decoder, or what it holds as often as its config has layers is not
            one list.
    """
    if not _is_plain(model) or getattr(model.config, "is_encoder_decoder", False):
        raise ModelError(
            f"{type(model).__name__} is no decoder-only model of transformers with plain weights, and which of its modules are its layers "
            "is not known: give one of AutoModelForCausalLM, before adapters are put into it, or build the smaller model in a function of "
            "your own"
        )
    return _only_list(model)


def model_layers(model: nn.Module, layer_path: str | None = None) -> tuple[str, nn.ModuleList]:
    """Where an encoder or decoder holds its layers, and these.

    Args:
        model: of transformers.
        layer_path: the name of the list that is meant; None for the only one that is as long as the config has layers.

    Raises:
        ModelError: it is no model of transformers, or the list is not there, not one, or cannot be told from others.
    """
    name = type(model).__name__
    if not _is_plain(model):
        raise ModelError(
            f"{name} is no model of transformers with plain weights, and what would rebuild it smaller is not known: give a "
            "PreTrainedModel, before adapters are put into it, or build the smaller model in a function of your own"
        )
    if layer_path is not None:
        part = dict(model.named_modules()).get(layer_path)
        if not isinstance(part, nn.ModuleList) or not len(part):
            lists = [at for at, other in model.named_modules() if isinstance(other, nn.ModuleList) and len(other)]
            raise ModelError(
                f"layer_path {layer_path!r} is no list of layers of {name}, expected one of {', '.join(lists) or 'those that it has'}"
            )
        return layer_path, part
    if getattr(model.config, "is_encoder_decoder", False):
        raise ModelError(
            f"{name} is an encoder and a decoder: say whose layers are meant with 'layer_path', or the wrong half would be cut"
        )
    return _only_list(model)


def cut_depth(model: Any, listed: str, kept: list[int], *, declared: bool = False) -> Any:
    """The model with some of its layers.

    Args:
        model: of transformers.
        listed: where its layers are (:func:`model_layers`).
        kept: the numbers of those that stay.
        declared: ``listed`` was named by the user: which entry of the config counts these layers is found by trying.

    Raises:
        ModelError: a layer would be another one at its new place; or no entry of the config counts these layers, or several do.
    """
    before: Any = model.get_submodule(listed)
    state = _kept_state(model.state_dict(), listed, kept)
    if kept == list(range(len(before))):
        config = _renamed(model.config)
    elif declared:
        config = _counted(model, listed, len(before), kept, state)
    else:
        config = _renamed(model.config)
        section = config.get_text_config(decoder=True)
        _shorten(section, "num_hidden_layers", len(before), kept)
    _expect_same(model, before, blank(model, config).get_submodule(listed), kept)
    return built(model, config, state)


def _is_plain(model: Any) -> bool:
    return hasattr(getattr(model, "config", None), "get_text_config") and not hasattr(model, "peft_config")


def _only_list(model: Any) -> tuple[str, nn.ModuleList]:
    name = type(model).__name__
    count = getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", None)
    lists = [(at, part) for at, part in model.named_modules() if isinstance(part, nn.ModuleList) and len(part) == count]
    outer = [(at, part) for at, part in lists if not any(at.startswith(f"{other}.") for other, _ in lists)]
    if len(outer) != 1:
        found = ", ".join(at for at, _ in outer) or "none"
        many = "no number of" if count is None else count
        raise ModelError(
            f"{name} has {many} layers by its config, and of its lists of modules {found} hold as many, expected exactly one: other "
            "layers than meant would be dropped; name the list ('layer_path' of shrink), or build the smaller model in a function of "
            "your own"
        )
    return outer[0]


def _renamed(config: Any) -> Any:
    smaller = copy.deepcopy(config)
    smaller.name_or_path = ""  # adapters put into it must not be taken for the whole model's
    return smaller


def _shorten(section: Any, key: str, count: int, kept: list[int]) -> None:
    """Say in a config, or a section of it, which layers there are."""
    if getattr(section, "is_heterogeneous", False):
        raise ModelError(
            f"{type(section).__name__} has a config of its own for some layers ('per_layer_config'), which would meet others; build the "
            "smaller model in a function of your own"
        )
    for name, value in section.to_dict().items():
        if (
            isinstance(value, list | tuple)
            and len(value) == count  # pyright: ignore[reportUnknownArgumentType]
            and hasattr(section, name)
            and not name.endswith(_OTHER_LISTS)
        ):
            setattr(section, name, [value[number] for number in kept])
    # layers from this number on look back over a window
    if isinstance(most := getattr(section, "max_window_layers", None), int):
        section.max_window_layers = sum(number < most for number in kept)
    setattr(section, key, len(kept))


def _counted(model: Any, listed: str, count: int, kept: list[int], state: Mapping[str, Tensor]) -> Any:
    """The config with fewer of the layers that a declared list holds."""
    fitting: dict[str, Any] = {}
    for path, key in _entries(model.config, count):
        config = _renamed(model.config)
        section = config
        for name in path:
            section = getattr(section, name)
        _shorten(section, key, count, kept)
        try:
            smaller = blank(model, config)
        except ModelError:
            continue  # it counts something else as well, or instead
        # what does not fit within the layers has its own reason, which is told later
        others = [name for name in misfits(smaller, state) if not name.startswith(f"{listed}.")]
        if len(smaller.get_submodule(listed)) == len(kept) and not others:
            fitting[".".join((*path, key))] = config
    if len(fitting) != 1:
        raise ModelError(
            f"{', '.join(fitting) or 'no entry'} of {type(model).__name__}'s config counts the {count} layers of {listed!r}, expected "
            "exactly one: the smaller model could not be read back as it is; build it in a function of your own"
        )
    return fitting.popitem()[1]


def _entries(config: Any, count: int, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Whole numbers in a config and its sections that are a count of layers."""
    inner = [name for name in config.sub_configs if getattr(config, name, None) is not None]
    for key, value in config.to_dict().items():
        if key not in inner and type(value) is int and value == count:
            yield path, key
    for name in inner:
        yield from _entries(getattr(config, name), count, (*path, name))


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
