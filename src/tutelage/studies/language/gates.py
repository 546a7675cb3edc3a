"""The limits that a distilled language model must meet to be shipped."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from tutelage.errors import ConfigError

#: The gates that compare with another arm than the teacher.
CONTROL_OF = {"gain_over_sft": "sft", "gain_over_untouched": "untouched", "gap_closed": "untouched"}

_GAINS = ("gain_over_sft", "gain_over_untouched")


@dataclass(frozen=True)
class LanguageGates:
    """The limits; None leaves a gate out. Gains and the gap are of the task's score, or where there is none, of the per-token KL.

    Args:
        score_drop_vs_teacher: how much of the task's score the student may lose to the teacher; asked only where there is a score.
        gain_over_sft: what the student must gain over the one fine-tuned on the same completions without a teacher, more than this; the
            default, as that of the next, is not asked of a study without that arm.
        gain_over_untouched: the same, over the student before any training.
        gap_closed: the share of the way from the untouched student to the teacher that must be gone, at least.
        kl: per-token KL(teacher‖student) on the test completions in nats, at most. A teacher that tells its likeliest tokens
            alone leaves a lower bound of it, which may fail and never passes.
        size_ratio: bytes of the student over bytes of the teacher, at most.
        latency_ratio: time of one request (its own prompt, and a completion of mean length), student over teacher, at most.
    """

    score_drop_vs_teacher: float | None = 0.03
    gain_over_sft: float | None = 0.0
    gain_over_untouched: float | None = 0.0
    gap_closed: float | None = None
    kl: float | None = None
    size_ratio: float | None = None
    latency_ratio: float | None = None

    def __post_init__(self) -> None:
        for name, limit in vars(self).items():
            if limit is None:
                continue
            if isinstance(limit, bool) or not math.isfinite(limit):
                raise ConfigError(
                    f"gate {name} has the limit {limit}, expected a finite number, or null to leave it out"
                )
            if limit < 0 and name not in _GAINS:
                raise ConfigError(f"gate {name} has the limit {limit}: no student could pass it; expected 0 or more")
            if limit > 1 and name == "gap_closed":
                raise ConfigError(
                    f"gate {name} has the limit {limit}, and it is a share of the gap to the teacher: expected 0 to 1 (0.9 for 90%)"
                )


def lacking(arms: Collection[str], *, score: bool, shared: bool, measured: bool) -> dict[str, str]:
    """What a study has not got, in words, by the gate that would need it.

    Args:
        arms: of the study, by name.
        score: whether the task has one of its own.
        shared: whether teacher and student speak of the same tokens, so that a KL can be told.
        measured: whether the teacher is a model that this machine runs.
    """
    found = {gate: f"the arm {arm!r}" for gate, arm in CONTROL_OF.items() if arm not in arms}
    if not score:
        found["score_drop_vs_teacher"] = "a score of the task"
    if not shared:
        found["kl"] = "a vocabulary that teacher and student share (alignment 'text' tells of none)"
        if not score:
            found |= dict.fromkeys(CONTROL_OF, "a score of the task, or a vocabulary that teacher and student share")
    if not measured:
        found |= dict.fromkeys(("size_ratio", "latency_ratio"), "a teacher that is one model on this machine")
    return found
