"""The limits that a student must meet to be shipped; :mod:`tutelage.studies.judging` holds the evidence against them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from tutelage.errors import ConfigError

#: The arm that is judged.
JUDGED = "kd"

G = TypeVar("G")

#: The gates that compare with another arm than the teacher.
CONTROL_OF = {"gain_over_scratch": "scratch", "gain_over_label_smoothing": "label_smoothing"}


@dataclass(frozen=True)
class Gates:
    """The limits a student must meet; None leaves a gate out.

    Args:
        accuracy_drop_vs_teacher: non-inferiority margin: how much accuracy (0 … 1) the student may lose to the teacher.
        gain_over_scratch: the accuracy gain over the same student trained on labels alone must exceed this; the default is not
            asked of a study without that arm.
        gain_over_label_smoothing: the same, over the student trained with label smoothing.
        size_ratio: bytes of the student over bytes of the teacher, at most.
        latency_ratio: median latency at batch 1, student over teacher, at most.
        ece: expected calibration error of the student, at most.
        negative_flips: fraction of the test examples that the teacher gets right and the student wrong, at most.
        worst_class_drop: the same as ``accuracy_drop_vs_teacher``, of the class that loses most.
        worst_slice_drop: the same, of the slice by a metadata column (``data.metadata``) that loses most.
        negative_flips_vs_baseline: fraction of the test examples that a previously shipped artefact gets right and this one wrong,
            at most; asked only where an artefact is checked beside a baseline.
    """

    accuracy_drop_vs_teacher: float | None = 0.03
    gain_over_scratch: float | None = 0.0
    gain_over_label_smoothing: float | None = None
    size_ratio: float | None = None
    latency_ratio: float | None = None
    ece: float | None = None
    negative_flips: float | None = None
    worst_class_drop: float | None = None
    worst_slice_drop: float | None = None
    negative_flips_vs_baseline: float | None = None

    def __post_init__(self) -> None:
        for name, limit in vars(self).items():
            if limit is None:
                continue
            if isinstance(limit, bool) or not math.isfinite(limit):
                raise ConfigError(
                    f"gate {name} has the limit {limit}, expected a finite number, or null to leave it out"
                )
            if limit < 0 and name not in ("gain_over_scratch", "gain_over_label_smoothing"):
                raise ConfigError(f"gate {name} has the limit {limit}: no student could pass it; expected 0 or more")
            if abs(limit) >= 1 and name not in ("size_ratio", "latency_ratio"):
                raise ConfigError(
                    f"gate {name} has the limit {limit}, and it is a fraction: every student would be on the same side of it; write "
                    f"{limit / 100:g} for {limit:g} in a hundred"
                )


def decidable(gates: G, lacking: Mapping[str, str]) -> G:
    """The gates without those that are there by default and that a study could never decide.

    Args:
        gates: a dataclass of limits, None for a gate that is not asked.
        lacking: what the study has not got, in words, by the gate that would need it.

    Raises:
        ConfigError: one that is not the default could never be decided.
    """
    given: Any = gates
    asked = {
        each.name: each for each in fields(given) if each.name in lacking and getattr(given, each.name) is not None
    }
    for name, each in asked.items():
        if getattr(given, name) != each.default:
            raise ConfigError(
                f"the gate {name} needs {lacking[name]}, which this study has not got: everything would be trained, and the gate could "
                "never be decided; add that, or set the gate to None (in a config: null)"
            )
    return replace(given, **dict.fromkeys(asked)) if asked else gates
