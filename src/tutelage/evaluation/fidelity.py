"""How faithful a student is to its teacher, example by example: agreement, KL divergence, and answers that flipped.

Two models of the same accuracy can disagree on many examples; the users of a deployed model feel each right answer that
turns wrong (a *negative flip*; Yan et al. 2021, "Positive-Congruent Training"), which accuracy alone cannot show.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import DataError
from tutelage.evaluation.inputs import Floats, checked_labels, checked_logits
from tutelage.evaluation.metrics import log_probabilities


def per_example_fidelity(
    student_logits: NDArray[Any], teacher_logits: NDArray[Any], labels: NDArray[Any]
) -> dict[str, Floats]:
    """Fidelity of each example, before the mean is taken: what intervals are computed from.

    Args:
        student_logits: ``[N, C]``.
        teacher_logits: ``[N, C]``, the same examples and class order.
        labels: ``[N]`` class indices.

    Returns:
        Arrays ``[N]``: ``agreement`` (1.0 where both predict the same class), ``kl`` = KL(teacher ‖ student) in nats at
        temperature 1, ``negative_flips`` (1.0 where the teacher is right and the student wrong), ``positive_flips``
        (the reverse).

    Raises:
        DataError: shapes differ; NaN; a label missing or out of range; a class that the student masks and the teacher
            does not, since the KL is infinite.
    """
    student_NC, teacher_NC = _checked_pair(student_logits, teacher_logits)
    labels_N = checked_labels(labels, *student_NC.shape)
    student_choice_N, teacher_choice_N = student_NC.argmax(axis=1), teacher_NC.argmax(axis=1)
    student_right_N, teacher_right_N = student_choice_N == labels_N, teacher_choice_N == labels_N
    return {
        "agreement": (student_choice_N == teacher_choice_N).astype(np.float64),
        "kl": _kl(teacher_NC, student_NC),
        "negative_flips": (teacher_right_N & ~student_right_N).astype(np.float64),
        "positive_flips": (~teacher_right_N & student_right_N).astype(np.float64),
    }


def fidelity(student_logits: NDArray[Any], teacher_logits: NDArray[Any], labels: NDArray[Any]) -> dict[str, float]:
    """Means over examples of `per_example_fidelity`: ``agreement``, ``kl`` (nats), ``negative_flips``, ``positive_flips``.

    Flips are fractions of *all* examples, so that accuracy(teacher) − accuracy(student) = negative − positive flips.

    Raises:
        DataError: as `per_example_fidelity`.
    """
    scores = per_example_fidelity(student_logits, teacher_logits, labels)
    return {name: float(values_N.mean()) for name, values_N in scores.items()}


def flips(student_logits: NDArray[Any], teacher_logits: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.intp]:
    """Row indices of the negative flips, the student's most confident mistake first.

    Raises:
        DataError: as `per_example_fidelity`.
    """
    negative_N = per_example_fidelity(student_logits, teacher_logits, labels)["negative_flips"]
    rows = np.flatnonzero(negative_N)
    confidence = log_probabilities(student_logits).max(axis=1)[rows]
    return rows[np.argsort(-confidence, kind="stable")]


def _checked_pair(student_logits: NDArray[Any], teacher_logits: NDArray[Any]) -> tuple[Floats, Floats]:
    student_NC = checked_logits(student_logits, "student logits")
    teacher_NC = checked_logits(teacher_logits, "teacher logits")
    if student_NC.shape != teacher_NC.shape:
        raise DataError(
            f"student logits are {list(student_NC.shape)}, teacher logits {list(teacher_NC.shape)}, expected the same "
            "[N, C]: rows would be compared with another example or class; run both on the same split and class order"
        )
    return student_NC, teacher_NC


def _kl(teacher_NC: Floats, student_NC: Floats) -> Floats:
    log_t_NC, log_s_NC = log_probabilities(teacher_NC), log_probabilities(student_NC)
    possible_NC = np.isfinite(log_t_NC)
    infinite_N = (possible_NC & ~np.isfinite(log_s_NC)).any(axis=1)
    if infinite_N.any():
        raise DataError(
            f"the student masks (logit −inf) classes that the teacher allows in {int(infinite_N.sum())} rows, the first is "
            f"row {int(np.flatnonzero(infinite_N)[0])}: the mean KL would be infinite; give both models the same mask"
        )
    ratio_NC = np.subtract(log_t_NC, log_s_NC, out=np.zeros_like(log_t_NC), where=possible_NC)
    # rounding can leave −1e-17 where the two are equal, and a divergence below zero would look like a bug in the page
    return np.maximum((np.exp(log_t_NC) * ratio_NC).sum(axis=1), 0.0)
