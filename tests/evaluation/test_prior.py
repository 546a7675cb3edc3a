"""The prior of a class never seen, chosen on validation data."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import softmax

from tutelage.errors import DataError
from tutelage.evaluation import fit_class_offsets


def _sample(seed: int = 0, rows: int = 400, classes: int = 4):
    generator = np.random.default_rng(seed)
    labels = generator.integers(classes, size=rows)
    logits = generator.normal(size=(rows, classes)) + 2.0 * np.eye(classes)[labels]
    return logits, labels


def test_it_finds_what_was_taken_away():
    """An offset that only goes the right way, or is fitted to accuracy's steps, would leave errors that it could mend."""
    logits, labels = _sample()
    own = fit_class_offsets(logits, labels, [2])
    biased = logits - 5.0 * np.eye(4)[2]
    found = fit_class_offsets(biased, labels, [2])
    assert found[2] == pytest.approx(own[2] + 5.0, abs=1e-4)
    assert np.count_nonzero(found) == 1


def test_the_mean_probability_becomes_the_share():
    """That is what "correcting the prior" means; with several classes each needs its own."""
    logits, labels = _sample(rows=600)
    found = fit_class_offsets(logits - np.array([3.0, 0, 6.0, 0]), labels, [0, 2])
    shares = softmax(logits - np.array([3.0, 0, 6.0, 0]) + found, axis=1).mean(axis=0)
    np.testing.assert_allclose(shares[[0, 2]], np.bincount(labels)[[0, 2]] / 600, atol=1e-6)


def test_it_is_the_least_nll_by_another_search():
    """A wrong gradient would stop the search before the minimum, and nobody would see it."""
    logits, labels = _sample(seed=3)
    logits = logits - 4.0 * np.eye(4)[1]

    def loss(offset: float) -> float:
        p = softmax(logits + offset * np.eye(4)[1], axis=1)
        return float(-np.log(p[np.arange(400), labels]).mean())

    assert fit_class_offsets(logits, labels, [1])[1] == pytest.approx(minimize_scalar(loss).x, abs=1e-3)


def test_a_perfect_student_gets_a_finite_offset():
    """Where the classes are told apart without a mistake the best offset lies at infinity, and would make NaN logits."""
    labels = np.arange(20) % 2
    logits = np.where(np.eye(2)[labels] > 0, 1000.0, -1000.0)
    assert np.isfinite(fit_class_offsets(logits, labels, [1])).all()


@pytest.mark.parametrize("classes", [[], [7], [-1], [0, 1, 2, 3]])
def test_classes_that_validation_cannot_speak_of(classes: list[int]):
    """Without examples of the class, and of another, every offset is as good: a made-up one would be published."""
    logits, labels = _sample()
    with pytest.raises(DataError, match="validation"):
        fit_class_offsets(logits, labels, classes)


def test_a_class_missing_from_validation_is_an_error():
    """Its offset would run to −infinity, and the class would never be said."""
    logits, labels = _sample()
    with pytest.raises(DataError, match="keep the class in the validation split"):
        fit_class_offsets(logits[labels != 2], labels[labels != 2], [2])
