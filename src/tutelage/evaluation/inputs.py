"""Check what the metrics are given, so that a NaN or a missing label is an error and never a number in a table."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import DataError
from tutelage.signals import NO_LABEL

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def checked_logits(logits: NDArray[Any], name: str = "logits") -> Floats:
    """``logits[N, C]`` in float64; −inf (a masked class) is allowed, as long as a row has a finite entry.

    Raises:
        DataError: not ``[N, C]``, empty, fewer than two classes, NaN, +inf, or a row that masks every class.
    """
    logits_NC = np.asarray(logits, dtype=np.float64)
    if logits_NC.ndim != 2 or logits_NC.shape[0] == 0 or logits_NC.shape[1] < 2:
        raise DataError(
            f"{name} have shape {logits_NC.shape}, expected [N, C] with at least one example and two classes: no metric "
            "has a value otherwise; give one row of class logits for each test example"
        )
    usable_N = ~np.isnan(logits_NC).any(axis=1) & np.isfinite(logits_NC.max(axis=1))
    if not usable_N.all():
        first = int(np.flatnonzero(~usable_N)[0])
        raise DataError(
            f"{name}: {int((~usable_N).sum())} of {len(usable_N)} rows hold NaN or +inf, or mask every class (the first is "
            f"row {first}): the largest logit of such a row would still count as a prediction; find out where the model "
            "overflows before evaluating it"
        )
    return logits_NC


def checked_labels(labels: NDArray[Any], rows: int, classes: int) -> Ints:
    """``labels[N]`` as int64 class indices in ``0 … C−1``.

    Raises:
        DataError: another length than the logits, not integers, missing (``NO_LABEL``) or out of range.
    """
    labels_N = np.asarray(labels)
    if labels_N.shape != (rows,) or not np.issubdtype(labels_N.dtype, np.integer):
        raise DataError(
            f"labels have shape {labels_N.shape} and type {labels_N.dtype}, expected {rows} integers, one for each row of "
            "logits: predictions would be compared with another example's label; pass both from the same split, in one order"
        )
    missing = int((labels_N == NO_LABEL).sum())
    if missing:
        raise DataError(
            f"{missing} of {rows} labels are missing ({NO_LABEL}): they would count as wrong answers; evaluate on "
            "labelled examples only"
        )
    if labels_N.min() < 0 or labels_N.max() >= classes:
        raise DataError(
            f"labels run from {labels_N.min()} to {labels_N.max()}, expected 0 … {classes - 1} for logits of {classes} "
            "classes: an example of an unknown class can only ever be wrong; check the class order and the model's head"
        )
    return labels_N.astype(np.int64)
