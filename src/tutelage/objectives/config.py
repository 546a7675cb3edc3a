"""An objective from a config's list: ``[{term: kl, temperature: 4, weight: 0.9}, {term: cross_entropy, weight: 0.1}]``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from tutelage.errors import ConfigError, ObjectiveError
from tutelage.objectives.decoupled import DKD
from tutelage.objectives.definitions import DEFINITIONS
from tutelage.objectives.embeddings import EmbeddingCosine, EmbeddingMSE, MarginMSE, SimilarityMatrix
from tutelage.objectives.features import (
    CRD,
    PKT,
    RKD,
    VID,
    AttentionMap,
    AttentionTransfer,
    CosineHidden,
    Hint,
    Patient,
    Relation,
    SimilarityPreserving,
)
from tutelage.objectives.layer_maps import listed_pairs
from tutelage.objectives.named import RECIPES, expand
from tutelage.objectives.objective import Objective, Term
from tutelage.objectives.relation import DIST
from tutelage.objectives.response import KL, CrossEntropy, Divergence, LogitMSE
from tutelage.objectives.schedules import Schedule, as_schedule, nearest
from tutelage.objectives.universal import UniversalLogitDistance
from tutelage.objectives.virtual import TeacherFree

_Entry = tuple[Callable[..., Term], tuple[str, ...]]


_ON_EMBEDDINGS = (EmbeddingCosine, EmbeddingMSE, SimilarityMatrix, MarginMSE)
_ON_LAYERS = (
    *(Hint, AttentionTransfer, CosineHidden, SimilarityPreserving, RKD, PKT, CRD, VID),
    *(Relation, Patient, AttentionMap),
    *_ON_EMBEDDINGS,
)


def _entries() -> dict[str, _Entry]:
    classes = (CrossEntropy, KL, LogitMSE, DKD, DIST, TeacherFree, UniversalLogitDistance, *_ON_LAYERS)
    entries: dict[str, _Entry] = {c.name: (c, tuple(f.name for f in dataclasses.fields(c))) for c in classes}
    for name, definition in DEFINITIONS.items():
        options = ("temperature", "scale_by_t2", "standardise", *definition.parameters)
        entries[name] = (partial(Divergence, name), options)
    return entries


_TERMS = _entries()


def objective_from_config(items: Sequence[Mapping[str, Any]]) -> Objective:
    """The objective that a config's ``objective:`` describes; what :meth:`Objective.describe` gives back.

    Each item has ``term`` (``cross_entropy``, ``kl``, ``logit_mse``, ``dkd``, ``dist``, ``teacher_free``, ``uld``, a
    divergence's name, or a term on layers: ``hint``, ``attention_transfer``, ``cosine_hidden``,
    ``similarity_preserving``, ``rkd``, ``pkt``, ``crd``, ``vid``, ``relation``, ``patient``, ``attention_map``,
    ``embedding_cosine``, ``embedding_mse``, ``similarity_matrix``, ``margin_mse``), ``weight`` (a number or a schedule;
    1 if absent), and the term's own options. A term on layers has ``student`` and ``teacher``, or ``layers: [[student
    layer, teacher layer], …]``: one component a pair, each at the weight over the number of pairs, so that the number
    of pairs does not move the balance with other terms. One on embeddings has both at ``embedding`` if it says nothing.

    ``{recipe: distilbert, weight: 1}`` in place of a term stands for the terms of a paper
    (:func:`tutelage.objectives.expand_recipes`).

    Raises:
        ConfigError: an empty list, an unknown term or option, T ≤ 0, a negative weight, weights that are all zero,
            layers that are missing or still a map's name (:func:`tutelage.objectives.resolve_layers`). The message
            names the item.
    """
    if isinstance(items, (str, Mapping)) or not isinstance(items, Sequence) or not items:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(
            f"objective is {items!r}: expected a list of terms, such as [{{term: kl, temperature: 4, weight: 0.9}}]"
        )
    parts: list[tuple[Schedule, Term]] = []
    for number, item in enumerate(items):
        try:
            for part in expand(item):
                parts.extend(Objective.of(_parts(part)).parts())
        except (ConfigError, ObjectiveError) as error:
            raise ConfigError(f"objective.{number}: {error}") from error
    objective = Objective.of(parts)
    try:
        objective.validate()
    except ObjectiveError as error:
        raise ConfigError(f"objective: {error}") from error
    return objective


def _parts(item: Mapping[str, Any]) -> list[tuple[Schedule, Term]]:
    if not isinstance(item, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"{item!r} is no term: expected a mapping such as {{term: kl, temperature: 4, weight: 0.9}}")
    options = dict(item)
    weight = as_schedule(options.pop("weight", 1.0))
    if "term" not in options:
        raise ConfigError(
            f"no 'term' among {', '.join(map(repr, options)) or 'nothing'}: say which, one of {', '.join(_TERMS)}; or a "
            f"recipe, one of {', '.join(RECIPES)}"
        )
    name = options.pop("term")
    if not isinstance(name, str) or name not in _TERMS:
        raise ConfigError(f"unknown term {name!r}{nearest(str(name), _TERMS)}: one of {', '.join(_TERMS)}")
    make, known = _TERMS[name]
    on_layers = any(term.name == name for term in _ON_LAYERS)
    if on_layers and isinstance(options.get("layers"), str):
        # the words of a map that nobody resolved may bring options of their own
        listed_pairs(options["layers"])
    allowed = ("layers", *known) if on_layers else known
    for key in options:
        if key not in allowed:
            raise ConfigError(
                f"term {name!r} has no option {key!r}{nearest(str(key), (*allowed, 'weight', 'term'))}: it takes "
                f"{', '.join((*allowed, 'weight'))}"
            )
    at_home = any(term.name == name for term in _ON_EMBEDDINGS) and "layers" not in options
    if at_home or not on_layers:
        return [(weight, make(**options))]
    pairs = _pairs(name, options)
    share = weight.scaled(1.0 / len(pairs)) if len(pairs) > 1 else weight
    return [(share, make(**options, student=student, teacher=teacher)) for student, teacher in pairs]


def _pairs(name: str, options: dict[str, Any]) -> list[tuple[Any, Any]]:
    """The layers of an item, taken out of its options."""
    given = [key for key in ("student", "teacher", "layers") if key in options]
    if given == ["layers"]:
        return list(listed_pairs(options.pop("layers")))
    if given == ["student", "teacher"]:
        return [(options.pop("student"), options.pop("teacher"))]
    raise ConfigError(
        f"term {name!r} has {' and '.join(given) or 'no layers'}: give both student and teacher, or layers alone, such as "
        f"{{term: {name}, student: blocks.1, teacher: layers.3}} or {{term: {name}, layers: [[blocks.1, layers.3]]}}"
    )
