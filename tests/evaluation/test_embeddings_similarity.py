"""Agreement of similarities: SciPy's correlations, repeated data, and coverage where pairs share texts."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from tutelage.errors import ConfigError, DataError
from tutelage.evaluation.embeddings import (
    _Correlation,
    agreement_difference,
    correlation,
    pair_similarities,
    similarity_agreement,
)
from tutelage.evaluation.embeddings_pairs import Pairs


def all_pairs(texts):
    first, second = np.array(list(combinations(range(texts), 2))).T
    return Pairs(first, second, texts, "all")


def disjoint(texts):
    return Pairs(np.arange(0, texts, 2), np.arange(1, texts, 2), texts, "disjoint")


def similarities_of(rng, pairs, seeds=1, text_sd=1.0, pair_sd=1.0, seed_sd=0.0):
    """A teacher's similarities by text and pair, and students' that err by text, by pair and by seed; all normal."""
    shared = rng.normal(size=pairs.texts)
    teacher = shared[pairs.first] + shared[pairs.second] + rng.normal(size=len(pairs))
    by_text = text_sd * rng.normal(size=pairs.texts)
    error = by_text[pairs.first] + by_text[pairs.second]
    slope = 1.0 + seed_sd * rng.normal(size=(seeds, 1))
    return teacher, slope * teacher + error + pair_sd * rng.normal(size=(seeds, len(pairs)))


def population(text_sd, pair_sd):
    """Spearman's ρ of a bivariate normal with this share of noise, from Pearson's."""
    r = np.sqrt(3.0 / (3.0 + 2 * text_sd**2 + pair_sd**2))
    return 6 / np.pi * np.arcsin(r / 2)


@pytest.mark.parametrize("digits", [1, 8])
def test_correlations_are_scipys(digits):
    """Ranks without ties in the middle give a coarse student a better order than it has."""
    rng = np.random.default_rng(0)
    teacher, students = similarities_of(rng, all_pairs(12), seeds=3)
    teacher, students = teacher.round(digits), students.round(digits)
    expected = [stats.spearmanr(teacher, student).statistic for student in students]
    np.testing.assert_allclose(correlation(teacher, students), expected, rtol=1e-12)
    expected = [stats.pearsonr(teacher, student).statistic for student in students]
    np.testing.assert_allclose(correlation(teacher, students, "pearson"), expected, rtol=1e-12)


@pytest.mark.parametrize("kind", ["spearman", "pearson"])
def test_a_weight_is_a_number_of_repetitions(kind):
    """The bootstrap is of weights; wrongly weighted ranks would give it another statistic's spread."""
    rng = np.random.default_rng(1)
    teacher, students = similarities_of(rng, all_pairs(9), seeds=2)
    teacher = teacher.round(1)
    weights = rng.integers(0, 4, size=len(teacher))
    reference = stats.spearmanr if kind == "spearman" else stats.pearsonr
    expected = [reference(np.repeat(teacher, weights), np.repeat(row, weights)).statistic for row in students]
    np.testing.assert_allclose(_Correlation(teacher, students, kind)(weights.astype(float)), expected, rtol=1e-10)


def test_texts_in_many_pairs_are_covered_and_pairs_taken_for_draws_are_not():
    """Over pairs alone the interval of 1,225 pairs of 50 texts would be far too narrow, and any gain significant."""
    rng = np.random.default_rng(2)
    pairs, rounds, truth = all_pairs(50), 40, population(1.0, 0.3)
    hits = naive_hits = 0
    for _ in range(rounds):
        teacher, students = similarities_of(rng, pairs, text_sd=1.0, pair_sd=0.3)
        got = similarity_agreement(teacher, students, pairs, resamples=50)
        hits += got.low <= truth <= got.high
        margin = 1.96 * np.sqrt((1 + got.mean**2 / 2) / (len(pairs) - 3))
        naive_hits += abs(np.arctanh(got.mean) - np.arctanh(truth)) <= margin
    assert hits / rounds >= 0.75
    assert naive_hits / rounds < 0.6


def test_pairs_that_share_nothing_are_as_good_as_draws():
    """Products of draws count a pair's own noise three times: uncorrected, intervals would be √3 too wide."""
    rng = np.random.default_rng(3)
    pairs = disjoint(400)
    teacher, students = similarities_of(rng, pairs, text_sd=0.0)
    got = similarity_agreement(teacher, students, pairs, resamples=300)
    draws = [rng.integers(200, size=200) for _ in range(300)]
    spread = np.std([stats.spearmanr(teacher[rows], students[0][rows]).statistic for rows in draws])
    assert (got.high - got.low) / 2 == pytest.approx(1.97 * spread, rel=0.2)
    assert got.examples == 400
    assert "one seed" in got.method


def test_seeds_widen_the_interval():
    """An interval over texts alone finds gains that another training takes back."""
    rng = np.random.default_rng(4)
    pairs = all_pairs(25)
    teacher, students = similarities_of(rng, pairs, seeds=4, text_sd=0.2, seed_sd=0.0)
    students = students + np.linspace(0.0, 3.0, 4)[:, None] * rng.normal(size=(4, len(pairs)))
    got = similarity_agreement(teacher, students, pairs, resamples=200)
    values = correlation(teacher, students)
    assert got.mean == pytest.approx(values.mean())
    margin = stats.t.ppf(0.975, 3) * values.std(ddof=1) / 2
    assert got.high - got.low >= 0.99 * (min(1.0, got.mean + margin) - (got.mean - margin))
    assert got.seeds == 4
    assert "crossed with seeds" in got.method


def test_the_same_draws_give_the_same_interval():
    """A report that cannot be made again cannot be checked."""
    teacher, students = similarities_of(np.random.default_rng(5), all_pairs(15))
    one, two = (similarity_agreement(teacher, students, all_pairs(15), resamples=50) for _ in range(2))
    other = similarity_agreement(teacher, students, all_pairs(15), resamples=50, seed=1)
    assert one == two != other


def test_a_difference_is_paired_and_narrower_than_its_parts():
    """Unpaired, what both arms share (hard texts) would drown what they differ in."""
    rng = np.random.default_rng(6)
    pairs = all_pairs(40)
    teacher, a = similarities_of(rng, pairs, seeds=3)
    b = a + 0.6 * rng.normal(size=a.shape)
    got = agreement_difference(teacher, a, b, pairs, resamples=200)
    assert got.difference == pytest.approx((correlation(teacher, a) - correlation(teacher, b)).mean())
    assert 0.0 < got.low < got.difference < got.high
    assert got.p_value < 0.05
    assert got.gain == (got.low, got.difference, got.high)
    alone = similarity_agreement(teacher, a, pairs, resamples=200)
    assert got.high - got.low < alone.high - alone.low
    back = agreement_difference(teacher, b, a, pairs, resamples=200)
    assert back.difference == pytest.approx(-got.difference)


def test_an_arm_with_one_model_meets_every_seed():
    """The untouched student has no seeds; it would have to be trained to be compared."""
    rng = np.random.default_rng(7)
    pairs = all_pairs(20)
    teacher, a = similarities_of(rng, pairs, seeds=3)
    got = agreement_difference(teacher, a, a[:1], pairs, resamples=50)
    assert got.seeds == 3
    expected = correlation(teacher, a) - correlation(teacher, a[:1])
    assert got.difference == pytest.approx(expected.mean())
    same = agreement_difference(teacher, a, a, pairs, resamples=50)
    assert (same.difference, same.p_value, same.low, same.high) == (0.0, 1.0, -2.0, 2.0)
    with pytest.raises(DataError, match="cannot pair 3 seeds with 2"):
        agreement_difference(teacher, a, a[:2], pairs)


def test_a_student_that_has_collapsed_orders_nothing():
    """NaN in one arm would sort anywhere in a table, or stop the study after its training."""
    rng = np.random.default_rng(8)
    pairs = all_pairs(15)
    teacher, students = similarities_of(rng, pairs, seeds=2)
    students[1] = 0.1 + 0.2
    for kind in ("spearman", "pearson"):
        values = correlation(teacher, students, kind)
        assert values[1] == 0.0
        assert values[0] > 0.1
    got = similarity_agreement(teacher, students, pairs, resamples=50)
    assert np.isfinite([got.mean, got.low, got.high]).all()


def test_what_has_no_correlation_is_refused():
    """A teacher that finds all texts alike teaches nothing, and NaN is ranked anywhere."""
    pairs = all_pairs(5)
    teacher, students = similarities_of(np.random.default_rng(9), pairs)
    with pytest.raises(DataError, match="every pair one similarity"):
        correlation(np.ones(10), students)
    with pytest.raises(DataError, match="NaN or infinite"):
        correlation(teacher, np.where(students > 0, np.nan, students))
    with pytest.raises(DataError, match=r"expected \[P\] and \[S, P\]"):
        similarity_agreement(teacher, students[:, :-1], pairs)
    with pytest.raises(ConfigError, match="kind 'kendall'"):
        correlation(teacher, students, "kendall")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="1 resamples"):
        similarity_agreement(teacher, students, pairs, resamples=1)
    few = Pairs(np.array([0, 0]), np.array([1, 2]), 3, "two")
    with pytest.raises(DataError, match="too few pairs"):
        similarity_agreement(teacher[:2], students[:, :2], few)


def test_pair_similarities_are_cosines_of_the_pairs_texts():
    """One text too few, and every pair after it would be of other texts."""
    rng = np.random.default_rng(10)
    embeddings = rng.normal(size=(6, 4))
    embeddings[2] = 0.0
    pairs = all_pairs(6)
    expected = [
        0.0
        if 2 in (i, j)
        else embeddings[i] @ embeddings[j] / np.linalg.norm(embeddings[i]) / np.linalg.norm(embeddings[j])
        for i, j in combinations(range(6), 2)
    ]
    np.testing.assert_allclose(pair_similarities(embeddings, pairs), expected, atol=1e-12)
    with pytest.raises(DataError, match="5 embeddings for pairs of 6 texts"):
        pair_similarities(embeddings[:5], pairs)
    embeddings[1, 1] = np.inf
    with pytest.raises(DataError, match="1 of 6 rows hold NaN or infinite"):
        pair_similarities(embeddings, pairs)
    with pytest.raises(DataError, match=r"expected \[texts, width\]"):
        pair_similarities(embeddings[0], pairs)
