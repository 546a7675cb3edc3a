"""What a few seconds of scikit-learn reach on the same labels: a mark that a teacher should be above."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Examples and inputs an example beyond which the baseline is not cheap any more.
MOST_EXAMPLES = 5_000
MOST_INPUTS = 4_096

#: What a baseline takes: numbers ``[N, F]``, or N texts.
BaselineInputs = NDArray[Any] | Sequence[str]


def cheap_baselines(
    inputs: BaselineInputs | None, labels: NDArray[Any], asked: BaselineInputs | None, rows: int, seed: int = 0
) -> dict[str, NDArray[np.int64]]:
    """What simple classifiers, fitted in seconds, answer on other examples.

    Args:
        inputs: of the labelled examples, numbers ``[N, F]`` or texts; None where there is nothing a simple model could read.
        labels: ``[N]`` class indices, none missing.
        asked: the inputs to answer, of the same kind.
        rows: how many answers are wanted.
        seed: of which examples are kept where there are more than `MOST_EXAMPLES`.

    Returns:
        Answers ``[rows]`` by the baseline's name: ``majority``, always the commonest class, and ``logistic regression`` (on
        standardised numbers, or on TF-IDF word weights) where the inputs are given, are at most `MOST_INPUTS` wide, and
        show two classes or more.
    """
    labels_N = np.asarray(labels)
    if not len(labels_N):
        return {}
    answers = {"majority": np.full(rows, np.bincount(labels_N).argmax(), dtype=np.int64)}
    if inputs is None or asked is None or len(np.unique(labels_N)) < 2:
        return answers
    if isinstance(inputs, np.ndarray) and inputs.shape[1] > MOST_INPUTS:
        return answers
    kept = np.sort(np.random.default_rng(seed).permutation(len(labels_N))[:MOST_EXAMPLES])
    model = _classifier(isinstance(inputs, np.ndarray))
    chosen: Any = inputs[kept] if isinstance(inputs, np.ndarray) else [inputs[row] for row in kept.tolist()]
    with warnings.catch_warnings():
        # a baseline that has not quite converged is a baseline all the same
        warnings.simplefilter("ignore")
        model.fit(chosen, labels_N[kept])
        answers["logistic regression"] = np.asarray(model.predict(asked), dtype=np.int64)
    return answers


def _classifier(numeric: bool) -> Any:
    # scikit-learn's import takes longer than most of an inspection
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    first: Any = StandardScaler() if numeric else TfidfVectorizer(max_features=20_000)
    return make_pipeline(first, LogisticRegression(max_iter=200))
