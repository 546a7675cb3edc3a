"""What a teacher's soft targets hold: how soft they are at each temperature, and how they would pull a student.

All of it is computed from the teacher's class scores and the labels alone, so that it can be known before any student is
trained. Distributions are those of the objective: ``q_T = softmax(z / T)``, an ensemble mixed at T.

Reference: Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural Network", 2015, sections 2 and 2.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tutelage.errors import ConfigError, DataError
from tutelage.evaluation.inputs import Floats, Ints, checked_labels, checked_logits
from tutelage.evaluation.metrics import classification_metrics, log_probabilities
from tutelage.signals import NO_LABEL, ClassScores

#: Where soft targets are looked at.
TEMPERATURES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)

#: The quantiles over examples that are given beside a mean.
QUANTILES = {"p10": 0.1, "p50": 0.5, "p90": 0.9}

Json = dict[str, Any]


def soft_targets(scores: ClassScores, temperature: float) -> Floats:
    """``q_T[N, C]`` in float64: what the student is asked to match at that temperature. A masked class gets 0.

    Raises:
        ConfigError: a temperature that is not positive and finite.
        DataError: NaN or +inf in the scores, or a row that masks every class.
    """
    if not 0.0 < temperature < math.inf:
        raise ConfigError(f"temperature {temperature}, expected a positive finite number: there is no softmax at it")
    logits_NC = checked_logits(scores.at(temperature).detach().to("cpu", torch.float64).numpy(), "the teacher's logits")
    return np.exp(log_probabilities(logits_NC / temperature))


def entropy(p: NDArray[Any]) -> Floats:
    """``H[N] = −Σ_c p log p`` of each row of ``p[N, C]``, in nats: 0 for a one-hot row, ``ln C`` for a uniform one."""
    p_NC = np.asarray(p, dtype=np.float64)
    return 0.0 - (p_NC * np.log(np.where(p_NC > 0.0, p_NC, 1.0))).sum(axis=1)


def softness(targets: NDArray[Any], labels: NDArray[Any] | None = None) -> Json:
    """How much a set of soft targets says besides one class.

    Args:
        targets: ``q[N, C]``, rows that sum to 1.
        labels: ``[N]`` class indices, ``NO_LABEL`` where there is none; None for none at all.

    Returns:
        ``entropy`` in nats and ``effective_classes`` = exp(H) of each example (1 … C; Hill's number of order 1), each with
        its ``mean`` and quantiles over examples; ``top``, the mean probability of the likeliest class; and ``off_label``, the
        mean probability of all classes but the label, over labelled examples (None without any).
    """
    q_NC = np.asarray(targets, dtype=np.float64)
    entropy_N = entropy(q_NC)
    off_label = None
    if labels is not None and (kept_N := np.asarray(labels) != NO_LABEL).any():
        rows = np.flatnonzero(kept_N)
        off_label = float(1.0 - q_NC[rows, np.asarray(labels)[rows]].mean())
    return {
        "entropy": spread(entropy_N),
        "effective_classes": spread(np.exp(entropy_N)),
        "top": float(q_NC.max(axis=1).mean()),
        "off_label": off_label,
    }


def spread(values: NDArray[Any]) -> Json:
    """The mean over examples and the quantiles of `QUANTILES`."""
    return {"mean": float(np.mean(values))} | {
        name: float(np.quantile(values, share)) for name, share in QUANTILES.items()
    }


def quality(logits: NDArray[Any], labels: NDArray[Any]) -> Json:
    """How good and how sure of itself the teacher is on labelled examples, at T = 1.

    Args:
        logits: ``[N, C]`` (effective ones for an ensemble).
        labels: ``[N]`` class indices, none missing.

    Returns:
        The metrics of `classification_metrics`; ``examples``; ``confidence``, the mean probability of its answer; and
        ``over_confidence`` = confidence − accuracy with ``over_confidence_se``, its standard error over examples.

    Raises:
        DataError: as `classification_metrics`.
    """
    metrics = classification_metrics(logits, labels)
    log_p_NC = log_probabilities(logits)
    confidence_N = np.exp(log_p_NC.max(axis=1))
    gap_N = confidence_N - (log_p_NC.argmax(axis=1) == np.asarray(labels))
    examples = len(gap_N)
    error = float(gap_N.std(ddof=1) / math.sqrt(examples)) if examples > 1 else None
    return {
        **metrics,
        "examples": examples,
        "confidence": float(confidence_N.mean()),
        "over_confidence": float(gap_N.mean()),
        "over_confidence_se": error,
    }


@dataclass(frozen=True)
class Pull:
    """How the soft term's gradient at the student's logits compares with the hard term's, over the same labelled examples.

    Args:
        ratio: ‖soft‖ / ‖hard‖, of all examples' gradients taken as one vector; None where the hard one is 0.
        cosine: between the two; None where either is 0.
        even_weight: the share w of the soft term at which ``w · soft`` and ``(1 − w) · hard`` have equal length; None as the ratio.
    """

    ratio: float | None
    cosine: float | None
    even_weight: float | None

    def to_json(self) -> Json:
        """The fields."""
        return {"ratio": self.ratio, "cosine": self.cosine, "even_weight": self.even_weight}


def soft_gradient(student_logits: NDArray[Any], targets: NDArray[Any], temperature: float) -> Floats:
    """``T² ∂KL(q_T‖p_T)/∂z = T (p_T − q_T)`` of each example, ``[N, C]`` in nats per unit of logit (Hinton 2015, eq. 2, times T²).

    Args:
        student_logits: ``z[N, C]``.
        targets: the teacher's ``q_T[N, C]`` at the same temperature.
        temperature: T.
    """
    return temperature * (np.exp(log_probabilities(np.asarray(student_logits) / temperature)) - targets)


def hard_gradient(student_logits: NDArray[Any], labels: NDArray[Any]) -> Floats:
    """``∂CE/∂z = p_1 − onehot(label)`` of each example, ``[N, C]`` in nats per unit of logit.

    Raises:
        DataError: a label missing or out of range.
    """
    gradient_NC = np.exp(log_probabilities(student_logits))
    labels_N = checked_labels(labels, *gradient_NC.shape)
    gradient_NC[np.arange(len(labels_N)), labels_N] -= 1.0
    return gradient_NC


def compare_pull(student_logits: NDArray[Any], targets: NDArray[Any], labels: NDArray[Any], temperature: float) -> Pull:
    """The soft term's pull against the hard term's on a student with these logits.

    Length and angle are those of the gradients at the logits, before the student's weights turn them; with T² in it,
    the soft one tends to a constant as T grows (section 2.1: the regression of centred logits), so that the
    balance of the two terms stays where it was.

    Args:
        student_logits: ``[N, C]``; zeros for a student that knows nothing yet.
        targets: the teacher's ``q_T[N, C]``.
        labels: ``[N]``, none missing.
        temperature: T.
    """
    soft_NC = soft_gradient(student_logits, targets, temperature)
    hard_NC = hard_gradient(student_logits, labels)
    soft, hard = float(np.linalg.norm(soft_NC)), float(np.linalg.norm(hard_NC))
    if hard == 0.0:
        return Pull(None, None, None)
    ratio = soft / hard
    cosine = float((soft_NC * hard_NC).sum() / (soft * hard)) if soft > 0.0 else None
    return Pull(ratio, cosine, 1.0 / (1.0 + ratio))


def beyond_label(targets: NDArray[Any], labels: NDArray[Any]) -> float | None:
    """The share of the teacher's signal that is not about the label, 0 … 1.

    At a student that knows nothing (uniform), the soft targets pull along ``u − q``, the label along ``u − onehot``. The
    part of the first that is at right angles to the second is what no label could have said; this is its squared length
    over the whole. A one-hot target has 0 of it; an example on which the teacher contradicts the label counts too.

    Args:
        targets: ``q[N, C]``.
        labels: ``[N]``, none missing.

    Returns:
        The share, summed over the examples before dividing; None where every target is uniform.
    """
    q_NC = np.asarray(targets, dtype=np.float64)
    classes = q_NC.shape[1]
    soft_NC = 1.0 / classes - q_NC
    hard_NC = hard_gradient(np.zeros_like(q_NC), labels)
    along_N = (soft_NC * hard_NC).sum(axis=1) / np.square(hard_NC).sum(axis=1)
    whole = float(np.square(soft_NC).sum())
    rest = float(np.square(soft_NC - along_N[:, None] * hard_NC).sum())
    return rest / whole if whole > 0.0 else None


def look_at(
    scores: ClassScores,
    labels: NDArray[Any],
    student_logits: NDArray[Any] | None = None,
    temperatures: Sequence[float] = TEMPERATURES,
) -> list[Json]:
    """The soft targets at each temperature.

    Args:
        scores: the teacher's, N rows.
        labels: ``[N]``, ``NO_LABEL`` where there is none; what needs a label is asked of the others.
        student_logits: ``[N, C]`` of a trained student on the same examples, or None.
        temperatures: where to look.

    Returns:
        For each temperature, in order: ``temperature``, what `softness` gives, ``beyond_label`` and ``pull``: ``untrained``
        and ``trained``, each a `Pull` or None.
    """
    labels_N = np.asarray(labels)
    known = np.flatnonzero(labels_N != NO_LABEL)
    table: list[Json] = []
    for temperature in temperatures:
        q_NC = soft_targets(scores, temperature)
        if len(labels_N) != len(q_NC):
            raise DataError(
                f"{len(labels_N)} labels for {len(q_NC)} rows of the teacher: give one for each, in one order"
            )
        pulls: dict[str, Json | None] = {"untrained": None, "trained": None}
        if len(known):
            blank_NC = np.zeros((len(known), q_NC.shape[1]))
            pulls["untrained"] = compare_pull(blank_NC, q_NC[known], labels_N[known], temperature).to_json()
            if student_logits is not None:
                at_NC = np.asarray(student_logits, dtype=np.float64)[known]
                pulls["trained"] = compare_pull(at_NC, q_NC[known], labels_N[known], temperature).to_json()
        row: Json = {"temperature": temperature, **softness(q_NC, labels_N)}
        row["beyond_label"] = beyond_label(q_NC[known], labels_N[known]) if len(known) else None
        table.append({**row, "pull": pulls})
    return table


@dataclass(frozen=True)
class Renumbering:
    """The renumbering of the teacher's classes that agrees best with the labels.

    Args:
        mapping: ``[C]``: the teacher's class c looks like the label ``mapping[c]``.
        accuracy: as it is numbered.
        renumbered: with each half of the examples renumbered by what the other half shows: an accuracy that the fit has not seen.
    """

    mapping: Ints
    accuracy: float
    renumbered: float

    @property
    def gain(self) -> float:
        """Accuracy gained by renumbering, on examples that the renumbering was not fitted to."""
        return self.renumbered - self.accuracy


def best_renumbering(predictions: NDArray[Any], labels: NDArray[Any], classes: int, seed: int = 0) -> Renumbering:
    """Look for a label map that is permuted: the assignment of the teacher's classes to the labels with most agreement.

    An assignment problem on the confusion matrix (Kuhn 1955, "the Hungarian method"; solved by SciPy). Fitted and judged on the
    same few examples, some renumbering always helps a little; so each half is judged by the other's.

    Args:
        predictions: ``[N]`` the teacher's answers.
        labels: ``[N]``, none missing.
        classes: C.
        seed: of the halves.
    """
    predictions_N, labels_N = np.asarray(predictions), np.asarray(labels)
    half_N = np.random.default_rng(seed).permutation(len(labels_N)) % 2
    right = 0
    for half in (0, 1):
        mapping_C = _assignment(predictions_N[half_N != half], labels_N[half_N != half], classes)
        right += int((mapping_C[predictions_N[half_N == half]] == labels_N[half_N == half]).sum())
    return Renumbering(
        mapping=_assignment(predictions_N, labels_N, classes),
        accuracy=float((predictions_N == labels_N).mean()),
        renumbered=right / len(labels_N),
    )


def _assignment(predictions_N: NDArray[Any], labels_N: NDArray[Any], classes: int) -> Ints:
    # SciPy's import takes longer than everything else here
    from scipy.optimize import linear_sum_assignment

    counts_CC = np.zeros((classes, classes))
    np.add.at(counts_CC, (predictions_N, labels_N), 1.0)
    # between assignments that agree alike, classes keep their own number
    counts_CC += np.eye(classes) * 0.5 / max(classes, 1)
    mapping: Any = linear_sum_assignment(counts_CC, maximize=True)[1]
    return np.asarray(mapping, dtype=np.int64)
