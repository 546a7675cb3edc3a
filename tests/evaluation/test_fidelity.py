"""Fidelity against numbers worked out by hand and SciPy's relative entropy."""

import numpy as np
import pytest
from scipy.special import rel_entr, softmax

from tutelage.errors import DataError
from tutelage.evaluation import fidelity, flips, per_example, per_example_fidelity

# right/right, right/wrong, wrong/right, wrong/wrong alike, wrong/wrong apart
TEACHER = np.array([[2.0, 0, 0], [2, 0, 0], [0, 2, 0], [0, 2, 0], [0, 2, 0]])
STUDENT = np.array([[3.0, 0, 0], [0, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
LABELS = np.zeros(5, dtype=int)


def test_five_examples_by_hand():
    got = fidelity(STUDENT, TEACHER, LABELS)
    assert got["agreement"] == pytest.approx(2 / 5)
    assert got["negative_flips"] == pytest.approx(1 / 5)
    assert got["positive_flips"] == pytest.approx(1 / 5)


def test_kl_is_from_teacher_to_student_in_nats():
    """The reverse direction, or bits, would look just as plausible in a table."""
    teacher, student = np.log([[3.0, 1.0]]), np.log([[1.0, 1.0]])
    by_hand = 0.75 * np.log(0.75 / 0.5) + 0.25 * np.log(0.25 / 0.5)
    assert fidelity(student, teacher, np.array([0]))["kl"] == pytest.approx(by_hand)
    rng = np.random.default_rng(0)
    teacher, student = 5 * rng.normal(size=(40, 7)), 5 * rng.normal(size=(40, 7))
    expected = rel_entr(softmax(teacher, axis=1), softmax(student, axis=1)).sum(axis=1)
    got = per_example_fidelity(student, teacher, rng.integers(0, 7, 40))["kl"]
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_a_student_equal_to_its_teacher():
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(50, 4))
    got = fidelity(logits + 3.0, logits, rng.integers(0, 4, 50))
    assert got["agreement"] == 1.0
    assert 0.0 <= got["kl"] < 1e-15
    assert got["negative_flips"] == got["positive_flips"] == 0.0


def test_flips_account_for_the_difference_in_accuracy():
    rng = np.random.default_rng(2)
    teacher, student, labels = rng.normal(size=(200, 3)), rng.normal(size=(200, 3)), rng.integers(0, 3, 200)
    lost = per_example(teacher, labels)["accuracy"].mean() - per_example(student, labels)["accuracy"].mean()
    got = fidelity(student, teacher, labels)
    assert got["negative_flips"] - got["positive_flips"] == pytest.approx(lost)


def test_flips_list_the_most_confident_mistake_first():
    teacher = np.tile([5.0, 0.0], (5, 1))
    student = np.array([[0.0, 1.0], [2.0, 0.0], [0.0, 9.0], [0.0, 3.0], [0.0, 1.0]])
    labels = np.array([0, 0, 0, 1, 0])
    assert flips(student, teacher, labels).tolist() == [2, 0, 4]


def test_masked_classes():
    teacher, student = np.array([[0.0, 0.0, -np.inf]]), np.array([[0.0, 0.0, 0.0]])
    assert fidelity(student, teacher, np.array([0]))["kl"] == pytest.approx(np.log(1.5))
    with pytest.raises(DataError, match="infinite"):
        fidelity(teacher, student, np.array([0]))


def test_bad_input_is_an_error_and_not_a_number():
    with pytest.raises(DataError, match="same"):
        fidelity(STUDENT, TEACHER[:4], LABELS)
    with pytest.raises(DataError, match="teacher logits"):
        fidelity(STUDENT, TEACHER * np.nan, LABELS)
    with pytest.raises(DataError, match="missing"):
        fidelity(STUDENT, TEACHER, np.full(5, -100))
