"""How good a classifier is on labelled examples: accuracy, macro-F1, NLL, Brier score, calibration, class by class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import DataError
from tutelage.evaluation.inputs import Floats, checked_labels, checked_logits

#: Bins of the expected calibration error.
ECE_BINS = 15

#: Which of the several quantities called ECE this is, for a reader of the numbers.
ECE_VARIANT = f"top-label ECE, {ECE_BINS} equal-width bins, closed on the right"


def log_probabilities(logits: NDArray[Any]) -> Floats:
    """``log softmax(logits)`` as float64 ``[N, C]``; the largest logit is subtracted first, so nothing overflows.

    Args:
        logits: ``[N, C]``, any real dtype; −inf is a masked class and gets log-probability −inf.

    Raises:
        DataError: NaN, +inf, an empty array, or a row that masks every class.
    """
    logits_NC = checked_logits(logits)
    shifted_NC = logits_NC - logits_NC.max(axis=1, keepdims=True)
    return shifted_NC - np.log(np.exp(shifted_NC).sum(axis=1, keepdims=True))


def per_example(logits: NDArray[Any], labels: NDArray[Any]) -> dict[str, Floats]:
    """The metrics that are means over examples, before the mean is taken: what intervals are computed from.

    Args:
        logits: ``[N, C]``.
        labels: ``[N]`` class indices.

    Returns:
        Arrays ``[N]``: ``accuracy`` (1.0 right, 0.0 wrong; the first class wins a tie), ``nll`` in nats, and ``brier``,
        the squared distance between the probabilities and the one-hot label *summed over classes* (0 … 2; Brier 1950).

    Raises:
        DataError: as `log_probabilities`; a label missing or out of range; a label whose class the model masks, since
            its NLL is infinite.
    """
    log_p_NC = log_probabilities(logits)
    labels_N = checked_labels(labels, *log_p_NC.shape)
    rows = np.arange(len(labels_N))
    nll_N = 0.0 - log_p_NC[rows, labels_N]
    if not np.isfinite(nll_N).all():
        first = int(np.flatnonzero(~np.isfinite(nll_N))[0])
        raise DataError(
            f"the model masks (logit −inf) the true class of {int((~np.isfinite(nll_N)).sum())} examples, the first in row "
            f"{first}: the mean NLL would be infinite; unmask the class or leave those examples out of the test split"
        )
    errors_NC = np.exp(log_p_NC)
    errors_NC[rows, labels_N] -= 1.0
    return {
        "accuracy": (log_p_NC.argmax(axis=1) == labels_N).astype(np.float64),
        "nll": nll_N,
        "brier": np.square(errors_NC).sum(axis=1),
    }


def classification_metrics(logits: NDArray[Any], labels: NDArray[Any]) -> dict[str, float]:
    """One number for each metric: ``accuracy``, ``macro_f1``, ``nll`` (nats), ``brier`` (0 … 2) and ``ece``.

    Args:
        logits: ``[N, C]``.
        labels: ``[N]`` class indices.

    Raises:
        DataError: as `per_example`.

    See also: `macro_f1` for which classes count, `ECE_VARIANT` for which ECE this is.
    """
    scores = per_example(logits, labels)
    log_p_NC = log_probabilities(logits)
    return {
        "accuracy": float(scores["accuracy"].mean()),
        "macro_f1": float(macro_f1(log_p_NC.argmax(axis=1)[None], np.asarray(labels)[None])[0]),
        "nll": float(scores["nll"].mean()),
        "brier": float(scores["brier"].mean()),
        "ece": float(expected_calibration_error(np.exp(log_p_NC.max(axis=1))[None], scores["accuracy"][None])[0]),
    }


def macro_f1(predictions: NDArray[Any], labels: NDArray[Any]) -> Floats:
    """Unweighted mean of the classes' F1, over the classes that occur in the labels *or* the predictions.

    A class absent from both has no F1: counting it as 0 would punish a test split for being small, as 1 would flatter the
    model. One that is only ever predicted, or never predicted, counts as 0. This is scikit-learn's ``average="macro"``
    without ``labels=``; here for S models at once, which is what makes `bootstrap_interval` affordable.

    Args:
        predictions: ``[S, N]`` class indices, one row a model.
        labels: ``[S, N]``, or ``[1, N]`` if all models meet the same examples.

    Returns:
        ``[S]``.
    """
    predictions_SN, labels_SN = np.broadcast_arrays(predictions, labels)
    seeds = len(predictions_SN)
    classes = int(max(predictions_SN.max(), labels_SN.max())) + 1
    offsets_S1 = classes * np.arange(seeds)[:, None]

    def count(classes_SN: NDArray[Any], weights_SN: Floats | None = None) -> Floats:
        weights = None if weights_SN is None else weights_SN.ravel()
        counts = np.bincount((classes_SN + offsets_S1).ravel(), weights, minlength=seeds * classes)
        return counts.reshape(seeds, classes).astype(np.float64)

    hits_SC = count(labels_SN, (predictions_SN == labels_SN).astype(np.float64))
    named_SC = count(labels_SN) + count(predictions_SN)
    f1_SC = 2 * hits_SC / np.maximum(named_SC, 1)
    return f1_SC.sum(axis=1) / (named_SC > 0).sum(axis=1)


def expected_calibration_error(confidence: NDArray[Any], correct: NDArray[Any], bins: int = ECE_BINS) -> Floats:
    """Top-label ECE: ``Σ_bins (count / N) · |accuracy − mean confidence|`` (Guo et al. 2017, eq. 3), for S models at once.

    The bins have equal width and are closed on the right; confidence 1.0 belongs to the last. ECE is biased upwards on
    small samples, and two ECEs compare only under the same bins (`ECE_VARIANT`).

    Args:
        confidence: ``[S, N]`` probability of the predicted class.
        correct: ``[S, N]`` 1 where the prediction is right, else 0.
        bins: number of bins.

    Returns:
        ``[S]``, each 0 … 1.
    """
    confidence_SN = np.asarray(confidence, dtype=np.float64)
    seeds, examples = confidence_SN.shape
    gaps_SN = np.asarray(correct, dtype=np.float64) - confidence_SN
    cells_SN = _bin_index(confidence_SN, bins) + bins * np.arange(seeds)[:, None]
    gaps_SK = np.bincount(cells_SN.ravel(), gaps_SN.ravel(), minlength=seeds * bins).reshape(seeds, bins)
    return np.abs(gaps_SK).sum(axis=1) / examples


def reliability(
    logits: NDArray[Any], labels: NDArray[Any], bins: int = ECE_BINS
) -> list[dict[str, float | int | None]]:
    """The reliability diagram behind the ECE: for each bin of confidence, how often the model was right.

    Returns:
        For each bin, lowest first: ``low`` (excluded) and ``high`` (included), the mean ``confidence`` and the
        ``accuracy`` in it (both None where it is empty), and ``count``.

    Raises:
        DataError: as `per_example`.
    """
    correct_N = per_example(logits, labels)["accuracy"]
    confidence_N = np.exp(log_probabilities(logits).max(axis=1))
    index_N = _bin_index(confidence_N, bins)
    edges = np.linspace(0.0, 1.0, bins + 1)
    table: list[dict[str, float | int | None]] = []
    for index in range(bins):
        inside_N = index_N == index
        count = int(inside_N.sum())
        table.append(
            {
                "low": float(edges[index]),
                "high": float(edges[index + 1]),
                "confidence": float(confidence_N[inside_N].mean()) if count else None,
                "accuracy": float(correct_N[inside_N].mean()) if count else None,
                "count": count,
            }
        )
    return table


def per_class(
    logits: NDArray[Any], labels: NDArray[Any], names: Sequence[str]
) -> list[dict[str, str | float | int | None]]:
    """Precision, recall and F1 of each class.

    Args:
        logits: ``[N, C]``.
        labels: ``[N]`` class indices.
        names: the C classes' names, in the order of the logits.

    Returns:
        For each class, in order: ``class``, ``support`` (examples that have it), ``precision`` (None where it is never
        predicted), ``recall`` (None where it has no support) and ``f1`` (None where it is neither).

    Raises:
        DataError: as `per_example`, or another number of names than of classes.
    """
    logits_NC = checked_logits(logits)
    classes = logits_NC.shape[1]
    labels_N = checked_labels(labels, *logits_NC.shape)
    if len(names) != classes:
        raise DataError(
            f"{len(names)} class names for logits of {classes} classes: rows of the table would carry another class's name; "
            "give one name for each class, in the order of the logits"
        )
    predictions_N = logits_NC.argmax(axis=1)
    support_C = np.bincount(labels_N, minlength=classes)
    predicted_C = np.bincount(predictions_N, minlength=classes)
    hits_C = np.bincount(labels_N[predictions_N == labels_N], minlength=classes)
    return [
        {
            "class": name,
            "support": int(support),
            "precision": float(hits / predicted) if predicted else None,
            "recall": float(hits / support) if support else None,
            "f1": float(2 * hits / (support + predicted)) if support + predicted else None,
        }
        for name, support, predicted, hits in zip(names, support_C, predicted_C, hits_C, strict=True)
    ]


def _bin_index(confidence: Floats, bins: int) -> NDArray[np.intp]:
    """The right-closed bin of each confidence; searching the inner edges alone leaves no bin beyond 1.0 to fall into."""
    return np.searchsorted(np.linspace(0.0, 1.0, bins + 1)[1:-1], confidence, side="left")
