"""Metrics against numbers worked out by hand, scikit-learn, and SciPy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import log_softmax
from sklearn.metrics import f1_score, precision_recall_fscore_support

from tutelage.errors import DataError
from tutelage.evaluation import (
    classification_metrics,
    expected_calibration_error,
    log_probabilities,
    macro_f1,
    per_class,
    per_example,
    reliability,
)

# softmax gives (3/4, 1/4), (1/2, 1/2), (1/10, 9/10)
BY_HAND = np.log([[3.0, 1.0], [1.0, 1.0], [1.0, 9.0]])
LABELS = np.array([0, 1, 1])

logits_and_labels = st.tuples(st.integers(1, 30), st.integers(2, 6)).flatmap(
    lambda shape: st.tuples(
        arrays(np.float64, shape, elements=st.floats(-30, 30)),
        arrays(np.int64, shape[0], elements=st.integers(0, shape[1] - 1)),
    )
)


def test_three_examples_worked_out_by_hand():
    got = classification_metrics(BY_HAND, LABELS)
    # the tie in the second row goes to class 0, which is wrong
    assert got["accuracy"] == pytest.approx(2 / 3)
    assert got["nll"] == pytest.approx(-(np.log(3 / 4) + np.log(1 / 2) + np.log(9 / 10)) / 3)
    # 2·(1/4)², 2·(1/2)², 2·(1/10)²
    assert got["brier"] == pytest.approx((0.125 + 0.5 + 0.02) / 3)
    # class 0: one hit, two predicted, one true: 2/3; class 1: one hit, one predicted, two true: 2/3
    assert got["macro_f1"] == pytest.approx(2 / 3)
    # three bins of one example each
    assert got["ece"] == pytest.approx((abs(1 - 3 / 4) + abs(0 - 1 / 2) + abs(1 - 9 / 10)) / 3)


@given(logits_and_labels)
def test_against_independent_references(case):
    logits, labels = case
    log_p = log_softmax(logits, axis=1)
    one_hot = np.eye(logits.shape[1])[labels]
    predictions = log_p.argmax(axis=1)
    got = classification_metrics(logits, labels)
    assert got["nll"] == pytest.approx(-(one_hot * log_p).sum(axis=1).mean(), abs=1e-12)
    assert got["brier"] == pytest.approx(((np.exp(log_p) - one_hot) ** 2).sum(axis=1).mean(), abs=1e-12)
    assert got["accuracy"] == pytest.approx((labels == predictions).mean())
    assert got["macro_f1"] == pytest.approx(f1_score(labels, predictions, average="macro", zero_division=0.0))
    assert 0.0 <= got["ece"] <= 1.0
    assert 0.0 <= got["brier"] <= 2.0


@given(logits_and_labels)
def test_the_means_of_per_example_scores_are_the_metrics(case):
    got = classification_metrics(*case)
    for name, values in per_example(*case).items():
        assert values.shape == case[1].shape
        assert values.mean() == pytest.approx(got[name])


@given(logits_and_labels)
def test_ece_is_what_the_reliability_table_says(case):
    rows = reliability(*case)
    total = sum(row["count"] for row in rows)
    assert total == len(case[1])
    ece = sum(row["count"] * abs(row["accuracy"] - row["confidence"]) for row in rows if row["count"]) / total
    assert classification_metrics(*case)["ece"] == pytest.approx(ece, abs=1e-12)
    for row in rows:
        if row["count"]:
            assert row["low"] - 1e-12 < row["confidence"] <= row["high"] + 1e-12
        else:
            assert row["confidence"] is row["accuracy"] is None


def test_confidence_of_exactly_one_is_in_the_last_bin():
    """In a bin of its own beyond the last it would drop out of the ECE: an overconfident model would look calibrated."""
    logits = np.array([[1000.0, 0.0], [1000.0, 0.0]])
    labels = np.array([0, 1])
    assert reliability(logits, labels)[-1] == {
        "low": pytest.approx(14 / 15),
        "high": 1.0,
        "confidence": 1.0,
        "accuracy": 0.5,
        "count": 2,
    }
    assert classification_metrics(logits, labels)["ece"] == 0.5


def test_bins_are_closed_on_the_right():
    # 0.5 belongs to (0.25, 0.5]; alone there it is off by 0.5, together with 0.6 it would be off by 0.05
    assert expected_calibration_error(np.array([[0.5, 0.6]]), np.array([[1, 0]]), bins=4) == pytest.approx([0.55])


def test_ece_and_macro_f1_of_several_models_are_those_of_each():
    rng = np.random.default_rng(0)
    confidence, correct = rng.random((4, 50)), rng.integers(0, 2, (4, 50))
    predictions, labels = rng.integers(0, 5, (4, 50)), rng.integers(0, 4, (1, 50))
    eces, f1s = expected_calibration_error(confidence, correct), macro_f1(predictions, labels)
    for s in range(4):
        assert eces[s] == expected_calibration_error(confidence[[s]], correct[[s]])[0]
        assert f1s[s] == pytest.approx(f1_score(labels[0], predictions[s], average="macro", zero_division=0.0))


def test_macro_f1_leaves_out_a_class_that_occurs_nowhere():
    """Counted as 0, a class that the test split happens to lack would halve the score of a perfect model."""
    logits = np.array([[5.0, 0.0, 0.0, 0.0], [0.0, 5.0, 0.0, 0.0]])
    assert classification_metrics(logits, np.array([0, 1]))["macro_f1"] == 1.0


def test_per_class_table():
    logits = np.array([[2.0, 1, 0, 0], [2, 1, 0, 0], [0, 2, 1, 0], [0, 0, 2, 0]])
    labels = np.array([0, 1, 1, 1])
    rows = per_class(logits, labels, ["a", "b", "c", "d"])
    assert rows[0] == {"class": "a", "support": 1, "precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3)}
    assert rows[1] == {"class": "b", "support": 3, "precision": 1.0, "recall": pytest.approx(1 / 3), "f1": 0.5}
    assert rows[2] == {"class": "c", "support": 0, "precision": 0.0, "recall": None, "f1": 0.0}
    assert rows[3] == {"class": "d", "support": 0, "precision": None, "recall": None, "f1": None}
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, logits.argmax(axis=1), labels=range(4), zero_division=0.0
    )
    for index, row in enumerate(rows):
        assert (row["precision"] or 0.0) == pytest.approx(precision[index])
        assert (row["recall"] or 0.0) == pytest.approx(recall[index])
        assert (row["f1"] or 0.0) == pytest.approx(f1[index])
        assert row["support"] == support[index]


def test_huge_half_precision_and_masked_logits_stay_finite():
    assert log_probabilities(np.array([[1e300, -1e300]])).tolist() == [[0.0, -2e300]]
    assert log_probabilities(np.array([[6e4, 6e4]], dtype=np.float16))[0] == pytest.approx(np.log([0.5, 0.5]))
    got = classification_metrics(np.array([[0.0, -np.inf, 0.0]]), np.array([0]))
    assert got["nll"] == pytest.approx(np.log(2))
    assert got["brier"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("logits", "labels", "words"),
    [
        ([[np.nan, 0.0]], [0], "NaN"),
        ([[np.inf, 0.0]], [0], "row 0"),
        ([[-np.inf, -np.inf]], [0], "mask every class"),
        (np.zeros((0, 3)), np.zeros(0, dtype=int), "shape"),
        (np.zeros((3, 1)), [0, 0, 0], "two classes"),
        (np.zeros(3), [0, 0, 0], "shape"),
        (np.zeros((2, 3)), [0, -100], "missing"),
        (np.zeros((2, 3)), [0, 3], "0 … 2"),
        (np.zeros((2, 3)), [0, -1], "0 … 2"),
        (np.zeros((2, 3)), [0], "one for each row"),
        (np.zeros((2, 3)), [0.0, 1.0], "integers"),
        ([[0.0, -np.inf]], [1], "masks"),
    ],
)
def test_bad_input_is_an_error_and_not_a_number(logits, labels, words):
    """A NaN row has an argmax and a missing label compares unequal: both would pass for ordinary wrong answers."""
    with pytest.raises(DataError, match=words):
        classification_metrics(np.asarray(logits, dtype=float), np.asarray(labels))


def test_per_class_refuses_a_wrong_number_of_names():
    with pytest.raises(DataError, match="3 class names"):
        per_class(BY_HAND, LABELS, ["a", "b", "c"])
