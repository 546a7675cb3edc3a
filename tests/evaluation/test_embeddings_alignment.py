"""Alignment and uniformity: kernels written out, SciPy's Procrustes, torch's distances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial import procrustes

from tutelage.errors import DataError
from tutelage.evaluation.embeddings_alignment import (
    alignment,
    cosine_to_teacher,
    linear_cka,
    procrustes_residual,
    uniformity,
)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def draw(texts=50, width=6, seed=0):
    return np.random.default_rng(seed).normal(size=(texts, width))


def rotation(width, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(width, width)))[0]


def hsic_by_hand(x, y):
    """Song et al. (2012), equation 5, with the kernels written out."""
    n = len(x)
    k, q = x @ x.T, y @ y.T
    np.fill_diagonal(k, 0.0)
    np.fill_diagonal(q, 0.0)
    one = np.ones(n)
    total = (
        np.trace(k @ q) + (one @ k @ one) * (one @ q @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (one @ k @ q @ one)
    )
    return total / (n * (n - 3))


def test_cka_is_the_kernels_written_out():
    """The estimator through feature sums is easily wrong by the diagonal, and then biased again."""
    teacher, student = draw(), draw(width=9, seed=1) + np.pad(draw(), ((0, 0), (0, 3)))
    x, y = unit(teacher), unit(student)
    expected = hsic_by_hand(x, y) / np.sqrt(hsic_by_hand(x, x) * hsic_by_hand(y, y))
    assert linear_cka(teacher, student) == pytest.approx(expected, rel=1e-9)


def test_turned_axes_are_the_same_structure_and_unrelated_ones_are_none():
    """The plain estimator calls two unrelated encoders of 64 axes on 80 texts half alike."""
    teacher = draw(80, 64)
    assert linear_cka(teacher, 3.0 * teacher @ rotation(64)) == pytest.approx(1.0)
    assert procrustes_residual(teacher, 3.0 * teacher @ rotation(64)) == pytest.approx(0.0, abs=1e-9)
    unrelated = draw(80, 64, seed=5)
    assert abs(linear_cka(teacher, unrelated)) < 0.15
    x, y = unit(teacher) - unit(teacher).mean(0), unit(unrelated) - unit(unrelated).mean(0)
    plain = np.linalg.norm(y.T @ x) ** 2 / np.linalg.norm(x.T @ x) / np.linalg.norm(y.T @ y)
    assert plain > 0.3


@pytest.mark.parametrize("width", [6, 4])
def test_the_residual_is_scipys(width):
    """Without a common width SciPy refuses; zeros in the missing axes change no distance."""
    teacher, student = unit(draw()), unit(draw(width=width, seed=1) + draw()[:, :width])
    padded = np.pad(student, ((0, 0), (0, 6 - width)))
    expected = procrustes(teacher, padded)[2]
    assert procrustes_residual(teacher, student) == pytest.approx(expected, rel=1e-9)
    assert 0.05 < expected < 0.95


def test_uniformity_is_that_of_torchs_distances(monkeypatch):
    """The pairs of a text with itself, left in, would hide a collapse of few texts."""
    monkeypatch.setattr("tutelage.evaluation.embeddings_alignment._ROWS_AT_ONCE", 7)
    rows = draw()
    distances = torch.pdist(torch.from_numpy(unit(rows)))
    expected = distances.square().mul(-2).exp().mean().log().item()
    assert uniformity(rows) == pytest.approx(expected, rel=1e-9)
    assert uniformity(np.ones((5, 3))) == pytest.approx(0.0, abs=1e-9)
    with pytest.raises(DataError, match="one text"):
        uniformity(rows[:1])


def test_cosines_to_the_teacher_are_of_each_text():
    """Averaged too early, no interval over texts is left."""
    teacher, student = draw(), draw(seed=1)
    expected = [t @ s / np.linalg.norm(t) / np.linalg.norm(s) for t, s in zip(teacher, student, strict=True)]
    np.testing.assert_allclose(cosine_to_teacher(teacher, student), expected)
    with pytest.raises(DataError, match="no cosine between them"):
        cosine_to_teacher(teacher, student[:, :4])


def test_alignment_has_a_cosine_only_where_widths_agree():
    """A cosine of cut axes would be a number about nothing."""
    teacher, student = draw(), draw(seed=1)
    both = alignment(teacher, student)
    assert both["cosine"] == pytest.approx(cosine_to_teacher(teacher, student).mean())
    assert both["cka"] == linear_cka(teacher, student)
    narrow = alignment(teacher, student[:, :4])
    assert narrow["cosine"] is None
    assert narrow["procrustes"] == procrustes_residual(teacher, student[:, :4])


def test_a_collapsed_student_is_aligned_with_nothing():
    """0 / 0 would be NaN, or rounding noise that passes for a structure."""
    teacher, collapsed = draw(), np.full((50, 6), 0.1)
    assert linear_cka(teacher, collapsed) == 0.0
    assert procrustes_residual(teacher, collapsed) == 1.0
    with pytest.raises(DataError, match="one embedding"):
        linear_cka(collapsed, teacher)
    with pytest.raises(DataError, match="at least 4"):
        linear_cka(teacher[:3], teacher[:3])
    with pytest.raises(DataError, match="50 embeddings of the teacher and 49"):
        procrustes_residual(teacher, teacher[:49])
