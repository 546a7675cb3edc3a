"""Gates that a config's own arms and data could never decide: refused where they are named, left out where they are defaults."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, TypeVar

from tutelage.config.sections import Section

if TYPE_CHECKING:
    from tutelage.config.language.schema import LanguageConfig
    from tutelage.config.schema import StudyConfig

S = TypeVar("S", bound=Section)

#: By gate the arm that it compares with.
CONTROL_OF = {"gain_over_scratch": "scratch", "gain_over_label_smoothing": "label_smoothing"}
LANGUAGE_CONTROL_OF = {"gain_over_sft": "sft", "gain_over_untouched": "untouched", "gap_closed": "untouched"}

_RATIOS = ("size_ratio", "latency_ratio")


def lacking(config: StudyConfig) -> dict[str, str]:
    """What a classifier's config has not got, by the gate that would need it."""
    found = _arms_lacking(config.study.arms, CONTROL_OF)
    # a function of the user's may bring metadata of its own
    if config.data.metadata is None and config.data.source != "python":
        found["worst_slice_drop"] = "the key data.metadata"
    return found


def language_lacking(config: LanguageConfig) -> dict[str, str]:
    """What a language model's config has not got, by the gate that would need it."""
    found = _arms_lacking(config.study.arms, LANGUAGE_CONTROL_OF)
    if config.score is None:
        found["score_drop_vs_teacher"] = "the section score"
    if config.teacher.alignment == "text":
        found["kl"] = "a vocabulary that teacher and student share (teacher.alignment: text)"
        if config.score is None:
            found |= dict.fromkeys(
                LANGUAGE_CONTROL_OF, "the section score, or a vocabulary that teacher and student share"
            )
    if config.teacher.remote is not None or config.teacher.ensemble is not None:
        found |= dict.fromkeys(_RATIOS, "a teacher that is one model on this machine")
    return found


def check_gates(gates: Section, missing: Mapping[str, str]) -> list[str]:
    """What is wrong with the gates that the config names: those that could never be decided.

    One that is named as it is by default anyway, as in the config that a run leaves, is left out like a default.

    Args:
        gates: the section.
        missing: of :func:`lacking`.
    """
    limits = type(gates).model_fields
    named = [gate for gate in missing if getattr(gates, gate) not in (None, limits[gate].default)]
    return [
        f"gates.{gate} needs {missing[gate]}, which is not there: everything would be trained, and the gate could never be decided; add "
        "that, or leave the gate out"
        for gate in named
    ]


def askable(gates: S, missing: Collection[str]) -> S:
    """The section without the default gates that could never be decided."""
    idle = {gate: None for gate in missing if getattr(gates, gate) is not None}
    return gates.model_copy(update=idle) if idle else gates


def _arms_lacking(arms: Collection[object], control_of: Mapping[str, str]) -> dict[str, str]:
    return {gate: f"the arm {arm} (study.arms)" for gate, arm in control_of.items() if arm not in arms}
