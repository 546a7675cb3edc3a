"""The limits that a distilled encoder must meet to be shipped."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tutelage.errors import ConfigError

#: Limits that any number may be.
_SIGNED = ("gain_over_untouched",)
#: Limits that are shares of 1, and more of which nobody could ask.
_SHARES = ("spearman", "recall_drop", "worst_task_drop")


@dataclass(frozen=True)
class EmbeddingGates:
    """The limits; None leaves a gate out.

    Args:
        spearman: rank correlation of the student's similarities with the teacher's on held-out pairs, at least.
        gain_over_untouched: what training must add to it, more than this; asked only where there is the arm ``untouched``.
        recall_drop: how much of the teacher's recall at the largest k the student may lose, at most; asked only where texts have
            groups.
        worst_task_drop: the same, of the task that loses most; tasks that are too small to say anything of are left out.
        size_ratio: bytes of the student over bytes of the teacher, at most.
        throughput_ratio: texts a second of the student over those of the teacher, from text to embedding, at least.
    """

    spearman: float | None = 0.95
    gain_over_untouched: float | None = 0.0
    recall_drop: float | None = 0.02
    worst_task_drop: float | None = None
    size_ratio: float | None = None
    throughput_ratio: float | None = None

    def __post_init__(self) -> None:
        for name, limit in vars(self).items():
            if limit is None:
                continue
            if isinstance(limit, bool) or not math.isfinite(limit):
                raise ConfigError(
                    f"gate {name} has the limit {limit}, expected a finite number, or null to leave it out"
                )
            if limit < 0 and name not in _SIGNED:
                raise ConfigError(
                    f"gate {name} has the limit {limit}, expected 0 or more: no student could be on its other side"
                )
            if limit > 1 and name in _SHARES:
                raise ConfigError(
                    f"gate {name} has the limit {limit}, and it is a number up to 1: every student would be on the same side of it; "
                    "write 0.95 for 95 in a hundred"
                )
