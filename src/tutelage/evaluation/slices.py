"""Accuracy slice by slice against the teacher: a student may hold the average and lose a class, a hospital, a device.

The worst of many slices is looked at *because* it is the worst, so that an interval of its own would be too narrow: of
twenty slices without any loss, one will show a "significant" one. The intervals here are simultaneous (Bonferroni):
with the stated confidence *all* of them hold, the worst one's included.

References: Bonett & Price, J. Educ. Behav. Stat. 37 (2012); Agresti & Min, Biometrics 61 (2005).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import ConfigError, DataError
from tutelage.evaluation.inputs import Floats
from tutelage.evaluation.significance import paired_comparison

Row = dict[str, Any]

#: Examples below which a slice has no interval.
MIN_EXAMPLES = 2


def slice_table(
    correct: NDArray[Any],
    reference_correct: NDArray[Any],
    membership: Sequence[str],
    *,
    slices: Sequence[str] | None = None,
    confidence: float = 0.95,
    family: int | None = None,
) -> list[Row]:
    """For each slice, the accuracy lost to the reference on the same examples, with simultaneous intervals.

    A slice's interval is that of `paired_comparison` at confidence ``1 − (1 − confidence) / family``. The pseudo-examples of
    Bonett & Price are those of a 95% interval (z²/4 ≈ 1 won and 1 lost); further out z²/4 is more, and with one of each
    a 99.5% interval of a small slice misses up to three times as often as it says. So as many are added as the confidence
    asks for.

    Args:
        correct: 0/1, ``[S, N]`` or ``[N]`` for one model; with several, the intervals speak of other seeds as well.
        reference_correct: 0/1 of the teacher, ``[1, N]``, ``[N]`` or ``[S, N]``.
        membership: N names, one slice an example.
        slices: which ones, those without examples included; by default all that occur.
        confidence: that *all* intervals hold.
        family: how many intervals share the confidence, where the worst of several tables will be picked; by default those
            of this table.

    Returns:
        Most lost first: ``slice``, ``examples``, ``accuracy`` and ``teacher_accuracy`` (None without examples), ``drop``
        (teacher less model, 0 … 1, positive is a loss) and its interval ``ci``, ``[None, None]`` with fewer than two
        examples.

    Raises:
        DataError: scores that are not 0 or 1 or do not match each other or the names.
        ConfigError: ``confidence`` out of range, or a family smaller than the table.
    """
    if not 0.0 < confidence < 1.0:
        raise ConfigError(f"confidence {confidence}, expected a number between 0 and 1, such as 0.95")
    correct_SN, reference_SN = _checked(correct, "correct"), _checked(reference_correct, "reference_correct")
    examples = {correct_SN.shape[1], reference_SN.shape[1], len(membership)}
    if len(examples) > 1:
        raise DataError(
            f"{correct_SN.shape[1]} answers, {reference_SN.shape[1]} of the reference and {len(membership)} slice names: an answer "
            "would count for another example's slice; give one of each for every example, in one order"
        )
    rows_of: dict[str, list[int]] = {name: [] for name in (sorted(set(membership)) if slices is None else slices)}
    for row, name in enumerate(membership):
        if name in rows_of:
            rows_of[name].append(row)
    judged = sum(len(rows) >= MIN_EXAMPLES for rows in rows_of.values())
    if family is not None and family < judged:
        raise ConfigError(
            f"family is {family}, expected at least the {judged} slices of this table: their intervals would be too narrow"
        )
    each = 1.0 - (1.0 - confidence) / max(judged if family is None else family, 1)
    table = [_row(name, correct_SN[:, rows], reference_SN[:, rows], each) for name, rows in rows_of.items()]
    return sorted(
        table, key=lambda row: (-math.inf if row["drop"] is None else row["drop"], row["examples"]), reverse=True
    )


def worst(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The row with the largest drop among those that have an interval, the larger slice of two alike; None if none has.

    Being simultaneous, the intervals answer for every slice at once: no slice loses more than a limit if every ``ci`` ends
    below it, and some slice does if any ``ci`` begins above it.
    """
    judged = [row for row in rows if None not in row["ci"]]
    return max(judged, key=lambda row: (row["drop"], row["examples"]), default=None)


def _row(name: str, correct_SN: Floats, reference_SN: Floats, confidence: float) -> Row:
    examples = correct_SN.shape[1]
    if not examples:
        unknown = {"accuracy": None, "teacher_accuracy": None, "drop": None}
        return {"slice": name, "examples": 0, **unknown, "ci": [None, None]}
    interval: list[float | None] = [None, None]
    if examples >= MIN_EXAMPLES:
        more = _further_pairs(confidence)
        compared = paired_comparison(
            _with_columns(reference_SN, more, (1.0, 0.0)),
            _with_columns(correct_SN, more, (0.0, 1.0)),
            "accuracy",
            higher_is_better=True,
            confidence=confidence,
        )
        interval = [compared.low, compared.high]
    accuracy, teacher = float(correct_SN.mean()), float(reference_SN.mean())
    return {
        "slice": name,
        "examples": examples,
        "accuracy": accuracy,
        "teacher_accuracy": teacher,
        "drop": teacher - accuracy,
        "ci": interval,
    }


def _further_pairs(confidence: float) -> int:
    """Pairs of pseudo-examples that a confidence asks for beyond the one that `paired_comparison` adds."""
    # SciPy's import takes longer than everything else here
    from scipy.special import ndtri

    # 0.96 at 95%, where one pair is the published choice
    return max(0, math.ceil(float(ndtri(0.5 + confidence / 2)) ** 2 / 4) - 1)


def _with_columns(scores_SN: Floats, times: int, values: tuple[float, float]) -> Floats:
    return np.concatenate([scores_SN, np.tile(values, (len(scores_SN), times))], axis=1)


def _checked(scores: NDArray[Any], name: str) -> Floats:
    scores_SN = np.atleast_2d(np.asarray(scores, dtype=np.float64))
    if scores_SN.ndim != 2 or not np.isin(scores_SN, (0.0, 1.0)).all():
        raise DataError(
            f"{name} of shape {list(np.shape(scores))}, expected right (1) and wrong (0) answers alone, [S, N] or [N]: the interval "
            "of an accuracy is of nothing else; compare predictions with labels first"
        )
    return scores_SN
