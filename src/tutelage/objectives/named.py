"""Objectives that have a name: ``{recipe: distilbert}`` in a config stands for that paper's terms and weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from tutelage.errors import ConfigError
from tutelage.objectives.schedules import as_schedule, nearest

_Items = tuple[Mapping[str, Any], ...]

#: Sanh et al. 2019, §3, and their released training: soft targets 5, hard ones 2, the last hidden states' direction 1.
_DISTILBERT: _Items = (
    {"term": "kl", "temperature": 2.0, "weight": 5.0},
    {"term": "cross_entropy", "weight": 2.0},
    {"term": "cosine_hidden", "student": "hidden_states.-1", "teacher": "hidden_states.-1", "weight": 1.0},
)
#: Jiao et al. 2020, §3, eq. 7–11: squares of embeddings, hidden states and attentions, and the soft targets at T = 1.
#: ``hint`` halves its square, hence 2. Layers share a weight; the paper adds them up.
_TINYBERT: _Items = (
    {"term": "hint", "student": "hidden_states.0", "teacher": "hidden_states.0", "per_unit": True, "weight": 2.0},
    {"term": "hint", "layers": "uniform", "per_unit": True, "weight": 2.0},
    {"term": "attention_map", "layers": "uniform", "weight": 1.0},
    {"term": "kl", "temperature": 1.0, "weight": 1.0},
)
#: Wang et al. 2021, §3: queries, keys and values of the last layers, each at 1.
_MINILM: _Items = ({"term": "relation", "layers": "queries_keys_values", "weight": 3.0},)
#: Sun et al. 2019, §3, with α in the middle of those they tried, and β = 768 in the units of their code.
_PATIENT: _Items = (
    {"term": "cross_entropy", "weight": 0.5},
    {"term": "kl", "temperature": 5.0, "weight": 0.5},
    {"term": "patient", "layers": "uniform", "weight": 1.0},
)

#: The terms that each name stands for.
RECIPES: Mapping[str, _Items] = MappingProxyType(
    {"distilbert": _DISTILBERT, "tinybert": _TINYBERT, "minilm": _MINILM, "patient": _PATIENT}
)


def expand_recipes(items: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """A config's objective with each ``{recipe: NAME, weight: W}`` replaced by the terms it stands for.

    Their weights are multiplied by W. All else stays as it is, also what
    :func:`tutelage.objectives.objective_from_config` will refuse. To change a part of a recipe, write its terms instead.

    Args:
        items: the list of a config's ``objective:``. A recipe is one of ``distilbert``, ``tinybert``, ``minilm``,
            ``patient``; its weight, 1 if absent, may be a schedule.

    Raises:
        ConfigError: an unknown recipe, another key beside it, or a weight that is none; the message names the item.
    """
    expanded: list[Mapping[str, Any]] = []
    for number, item in enumerate(items):
        try:
            expanded.extend(expand(item))
        except ConfigError as error:
            raise ConfigError(f"objective.{number}: {error}") from error
    return expanded


def expand(item: Mapping[str, Any]) -> _Items:
    """The items that one item of an objective stands for: itself, unless it is a recipe.

    Raises:
        ConfigError: as :func:`expand_recipes`, without the item's number.
    """
    if not isinstance(item, Mapping) or "recipe" not in item:  # pyright: ignore[reportUnnecessaryIsInstance]
        return (item,)
    name = item["recipe"]
    if not isinstance(name, str) or name not in RECIPES:
        raise ConfigError(f"unknown recipe {name!r}{nearest(str(name), RECIPES)}: one of {', '.join(RECIPES)}")
    others = [key for key in item if key not in ("recipe", "weight")]
    if others:
        instead = ", ".join(f"{{term: {part['term']}, …}}" for part in RECIPES[name])
        raise ConfigError(
            f"recipe {name!r} has {', '.join(map(repr, others))} beside it, and takes nothing but a weight: what a paper's name stands "
            f"for would no longer be it; write the terms themselves ({instead})"
        )
    weight = as_schedule(item.get("weight", 1.0))
    return tuple({**part, "weight": weight.scaled(part["weight"]).describe()} for part in RECIPES[name])
