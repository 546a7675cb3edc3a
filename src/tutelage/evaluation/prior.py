"""What a student knows of a class that its transfer set did not show, once its prior for it is put right.

A student that never met a class has learnt to expect none of it: its logit there is too low for every example alike, and
hides what the teacher's soft targets said of the class. One number a class, added to the logit, takes that away.

Reference: Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural Network", 2015, section 3, where the number was
chosen on the test set; here it is chosen on validation data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax

from tutelage.errors import DataError
from tutelage.evaluation.inputs import Floats, checked_labels, checked_logits

#: How far an offset may go, in logits: where the classes are told apart without a mistake there is no best one.
REACH = 50.0


def fit_class_offsets(logits: NDArray[Any], labels: NDArray[Any], classes: Sequence[int]) -> Floats:
    """Offsets for the logits of ``classes`` with the least NLL on these examples; the other classes keep theirs.

    The problem is convex, and at its minimum the mean probability of each of the classes equals its share of the examples:
    the student's prior is what the data says.

    Args:
        logits: ``[N, C]`` on validation data.
        labels: ``[N]`` class indices, with some of each of the classes.
        classes: K class indices.

    Returns:
        ``[C]`` in logits, 0 for every other class, each within ±``REACH``.

    Raises:
        DataError: a class is not there, or validation has no example of it or no example of another.
    """
    logits_NC = checked_logits(logits, "validation logits")
    labels_N = checked_labels(labels, *logits_NC.shape)
    chosen = np.asarray(sorted(set(classes)), dtype=np.int64)
    shares_K = (labels_N[:, None] == chosen[None]).mean(axis=0) if len(chosen) else np.zeros(0)
    if (
        not len(chosen)
        or chosen[0] < 0
        or chosen[-1] >= logits_NC.shape[1]
        or not 0 < shares_K.sum() < 1
        or not shares_K.all()
    ):
        raise DataError(
            f"classes {chosen.tolist()} of {logits_NC.shape[1]} make up {[round(float(share), 4) for share in shares_K]} of the "
            "validation examples, expected some of each and some of others: without them no offset is better than another; keep the "
            "class in the validation split"
        )

    def loss(offsets_K: Floats) -> tuple[float, Floats]:
        shifted_NC = logits_NC.copy()
        shifted_NC[:, chosen] += offsets_K
        log_p_NC = log_softmax(shifted_NC, axis=1)
        nll = -float(log_p_NC[np.arange(len(labels_N)), labels_N].mean())
        return nll, np.exp(log_p_NC[:, chosen]).mean(axis=0) - shares_K

    bounds = [(-REACH, REACH)] * len(chosen)
    found = minimize(
        loss, np.zeros(len(chosen)), jac=True, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-14, "gtol": 1e-9}
    )
    offsets_C = np.zeros(logits_NC.shape[1])
    offsets_C[chosen] = found.x
    return offsets_C
