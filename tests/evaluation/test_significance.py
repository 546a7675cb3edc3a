"""Intervals: closed forms, coverage by simulation, and the cases in which a plain variance would lie."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tutelage.errors import ConfigError, DataError
from tutelage.evaluation import crossed_interval, paired_comparison

SEEDS, EXAMPLES = 5, 40


def anova(scores):
    """The textbook's two-way table with one observation a cell, summed cell by cell."""
    S, N = scores.shape
    grand = scores.mean()
    ss_seeds = sum(N * (scores[s].mean() - grand) ** 2 for s in range(S))
    ss_examples = sum(S * (scores[:, n].mean() - grand) ** 2 for n in range(N))
    ss_total = sum((scores[s, n] - grand) ** 2 for s in range(S) for n in range(N))
    return ss_seeds / (S - 1), ss_examples / (N - 1), (ss_total - ss_seeds - ss_examples) / ((S - 1) * (N - 1))


def draw(rng, seed_sd, example_sd, residual_sd, seeds=SEEDS, examples=EXAMPLES):
    return (
        seed_sd * rng.normal(size=(seeds, 1))
        + example_sd * rng.normal(size=(1, examples))
        + residual_sd * rng.normal(size=(seeds, examples))
    )


def covers(interval, truth):
    return interval[0] <= truth <= interval[1]


def test_the_interval_is_the_textbook_one():
    scores = 2.0 + draw(np.random.default_rng(0), 0.3, 2.0, 1.0)
    ms_s, ms_n, ms_r = anova(scores)
    assert ms_s > ms_r < ms_n
    variance = (ms_s + ms_n - ms_r) / scores.size
    squares = ms_s**2 / 4 + ms_n**2 / 39 + ms_r**2 / (4 * 39)
    df = (ms_s + ms_n - ms_r) ** 2 / squares
    margin = stats.t.ppf(0.975, df) * math.sqrt(variance)
    got = crossed_interval(scores)
    assert got.mean == pytest.approx(scores.mean())
    assert (got.low, got.high) == pytest.approx((scores.mean() - margin, scores.mean() + margin))
    assert got.df == pytest.approx(df)
    assert (got.seeds, got.examples) == (SEEDS, EXAMPLES)
    assert "crossed" in got.method


def test_two_scores_by_two_by_hand():
    # rows differ by 2, columns by 6, no residual: MS_S = 4, MS_N = 36, MS_R = 0, so that the variance is (4 + 36) / 4 with
    # 40² / (4² + 36²) = 1.2 degrees of freedom; the columns alone, 36 / 4 with one degree of freedom, leave more room
    got = crossed_interval(np.array([[1.0, 7.0], [3.0, 9.0]]))
    assert got.mean == 5.0
    assert got.df == 1.0
    assert got.high - 5.0 == pytest.approx(stats.t.ppf(0.975, 1) * 3.0)
    assert stats.t.ppf(0.975, 1) * 3.0 > stats.t.ppf(0.975, 1600 / 1312) * math.sqrt(10.0)


@pytest.mark.parametrize(
    "shares", [(0.5, 0.5, 0.0), (0.7, 0.3, 0.0), (0.2, 0.6, 0.2), (1.0, 0.0, 0.0), (0.0, 0.9, 0.1)]
)
@pytest.mark.parametrize("seeds", [3, 5])
def test_coverage_is_nominal_where_the_naive_intervals_fall_short(seeds, shares):
    """``shares`` of Var(mean) are due to seeds, examples and residual; whatever they are, 95% must mean about 95%."""
    rng = np.random.default_rng(7)
    sds = [math.sqrt(share * count) for share, count in zip(shares, (seeds, EXAMPLES, seeds * EXAMPLES), strict=True)]
    by_seeds, by_examples = stats.t.ppf(0.975, seeds - 1), stats.t.ppf(0.975, EXAMPLES - 1)
    rounds = 600
    hits = seeds_only = examples_only = 0
    for _ in range(rounds):
        scores = draw(rng, *sds, seeds=seeds)
        estimate = crossed_interval(scores)
        hits += covers((estimate.low, estimate.high), 0.0)
        means_S, means_N = scores.mean(axis=1), scores.mean(axis=0)
        seeds_only += abs(estimate.mean) <= by_seeds * means_S.std(ddof=1) / math.sqrt(seeds)
        examples_only += abs(estimate.mean) <= by_examples * means_N.std(ddof=1) / math.sqrt(EXAMPLES)
    assert 0.92 <= hits / rounds <= 0.99
    if shares[0] >= 0.5:
        assert examples_only / rounds < 0.88
    if shares[1] >= 0.6:
        assert seeds_only / rounds < 0.90


def test_pooled_scores_are_not_independent_draws():
    """Taking S·N scores for independent is the commonest way to a tiny p-value."""
    rng = np.random.default_rng(3)
    pooled = 0
    for _ in range(300):
        scores = draw(rng, 0.3, 1.0, 0.3)
        pooled += abs(scores.mean()) <= 1.96 * scores.std(ddof=1) / math.sqrt(scores.size)
    assert pooled / 300 < 0.75


def test_coverage_of_high_accuracies():
    """Near 100% a plain variance often sees no error at all, and its interval then has width 0."""
    rng = np.random.default_rng(5)
    rounds, truth = 600, 0.99
    hits = plain = 0
    for _ in range(rounds):
        # examples are hard or easy for all seeds alike, with a mean of 0.99
        chance = rng.beta(0.99, 0.01, size=(1, 120))
        scores = (rng.random((SEEDS, 120)) < chance).astype(float)
        estimate = crossed_interval(scores)
        hits += covers((estimate.low, estimate.high), truth)
        plain += abs(scores.mean() - truth) <= 1.98 * scores.mean(axis=0).std(ddof=1) / math.sqrt(120)
    assert hits / rounds > 0.94
    assert plain / rounds < 0.85


@pytest.mark.parametrize("seeds", [1, 3, 5])
def test_p_values_are_uniform_under_the_null(seeds):
    rng = np.random.default_rng(11)
    p_values = []
    for _ in range(600):
        shared = draw(rng, 0.5, 2.0, 0.0, seeds=seeds)
        # with one seed, another training run is out of the question, and so are its effects
        noise = 0.15 if seeds > 1 else 0.0
        a = shared + draw(rng, noise, 1.0, 1.0, seeds=seeds)
        b = shared + draw(rng, noise, 1.0, 1.0, seeds=seeds)
        p_values.append(paired_comparison(a, b, "nll", higher_is_better=False).p_value)
    below = np.asarray(p_values)
    assert (below < 0.05).mean() < 0.08
    assert 0.06 < (below < 0.1).mean() < 0.13
    assert 0.4 < np.median(below) < 0.6


def test_p_values_find_a_real_difference():
    rng = np.random.default_rng(13)
    b = draw(rng, 0.1, 3.0, 0.5)
    a = b + 1.0 + draw(rng, 0.1, 0.3, 0.3)
    got = paired_comparison(a, b, "brier", higher_is_better=False)
    assert got.p_value < 1e-3
    assert got.low > 0.5
    # unpaired, the hard and easy examples would drown it
    assert crossed_interval(b).high - crossed_interval(b).low > 1.0


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(2, 8), st.booleans())
def test_order_does_not_matter_and_arms_are_antisymmetric(seed, seeds, examples, binary):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, seeds, examples))
    if binary:
        a, b = (a > 0).astype(float), (b > 0).astype(float)
    rows, columns = rng.permutation(seeds), rng.permutation(examples)
    got = paired_comparison(a, b, "m", higher_is_better=True)
    shuffled = paired_comparison(a[rows][:, columns], b[rows][:, columns], "m", higher_is_better=True)
    swapped = paired_comparison(b, a, "m", higher_is_better=True)
    for name in ("difference", "low", "high", "p_value"):
        assert getattr(got, name) == pytest.approx(getattr(shuffled, name), abs=1e-9)
    assert (swapped.low, swapped.high) == pytest.approx((-got.high, -got.low), abs=1e-9)
    assert swapped.p_value == pytest.approx(got.p_value, abs=1e-9)
    assert got.low <= got.difference <= got.high
    assert 0.0 <= got.p_value <= 1.0
    if not binary:
        assert (got.p_value < 0.05) == (not got.low <= 0.0 <= got.high)


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 10.0), st.floats(-5.0, 5.0))
def test_units_do_not_matter(seed, scale, shift):
    scores = draw(np.random.default_rng(seed), 0.3, 1.0, 0.5, examples=6)
    one, other = crossed_interval(scores), crossed_interval(scale * scores + shift)
    assert other.low == pytest.approx(scale * one.low + shift, rel=1e-6, abs=1e-6)
    assert other.high == pytest.approx(scale * one.high + shift, rel=1e-6, abs=1e-6)


def test_more_confidence_is_a_wider_interval():
    scores = draw(np.random.default_rng(0), 0.3, 1.0, 0.5)
    widths = [crossed_interval(scores, level).high - crossed_interval(scores, level).low for level in (0.5, 0.9, 0.99)]
    assert widths == sorted(widths)


def test_never_narrower_than_a_t_interval_over_the_seeds():
    """Three seeds that lie close together by chance would otherwise be taken for a small variance known well."""
    rng = np.random.default_rng(17)
    for _ in range(200):
        scores = draw(rng, 0.3, 1.0, 0.5, seeds=3)
        got = crossed_interval(scores)
        margin = stats.t.ppf(0.975, 2) * stats.sem(scores.mean(axis=1))
        assert (got.high - got.low) / 2 >= margin * (1 - 1e-12)


def test_one_seed_gives_the_examples_alone_and_says_so():
    scores = np.random.default_rng(0).normal(size=(1, 30))
    got = crossed_interval(scores)
    expected = stats.t.interval(0.95, 29, scores.mean(), stats.sem(scores[0]))
    assert (got.low, got.high) == pytest.approx(expected)
    assert got.method == "examples only; one seed"
    comparison = paired_comparison(scores, np.zeros((1, 30)), "nll", higher_is_better=False)
    assert comparison.p_value == pytest.approx(stats.ttest_1samp(scores[0], 0.0).pvalue)
    assert comparison.seeds == 1
    assert "one seed" in comparison.method


def test_one_example_gives_the_seeds_alone_and_says_so():
    scores = np.random.default_rng(0).normal(size=(6, 1))
    got = crossed_interval(scores)
    assert (got.low, got.high) == pytest.approx(stats.t.interval(0.95, 5, scores.mean(), stats.sem(scores[:, 0])))
    assert got.method == "seeds only; one example"


def test_all_right_is_not_certainty():
    """The plain interval of 360 right answers of 360 is [100%, 100%]: any gate would pass on it."""
    for seeds in (1, 5):
        got = crossed_interval(np.ones((seeds, 360)))
        assert got.mean == got.high == 1.0
        # the exact (Clopper–Pearson) bound is 0.9898, the rule of three gives 0.9917
        assert 0.985 < got.low < 0.9898
        assert crossed_interval(np.zeros((seeds, 360))).high == pytest.approx(1 - got.low)
        alike = paired_comparison(np.ones((seeds, 360)), np.ones((1, 360)), "accuracy", higher_is_better=True)
        assert alike.difference == 0.0
        assert alike.p_value == 1.0
        assert -0.012 < alike.low < -0.003
        assert alike.high == pytest.approx(-alike.low)


@pytest.mark.parametrize(
    "scores", [np.full((3, 4), 0.1), np.array([[0.3]]), np.full((1, 9), 0.7), np.array([[0.1, 0.2], [0.2, 0.1]])]
)
def test_scores_without_variance_bound_nothing(scores):
    got = crossed_interval(scores)
    assert (got.low, got.high) == (-math.inf, math.inf)
    assert got.method.startswith("no interval")
    comparison = paired_comparison(scores, scores, "nll", higher_is_better=False)
    assert comparison.p_value == 1.0
    assert json.loads(json.dumps(comparison.to_json(), allow_nan=False))["ci95"] == [None, None]


@pytest.mark.parametrize(("won", "lost"), [(5, 0), (6, 0), (8, 1), (10, 2), (1, 0), (3, 3)])
def test_few_discordant_examples_agree_with_the_exact_test(won, lost):
    """With 5 wins and no loss the plain variance gives p = 0.02, the exact McNemar test 0.06."""
    a, b = np.ones((1, 300)), np.ones((1, 300))
    b[0, :won] = 0.0
    a[0, won : won + lost] = 0.0
    got = paired_comparison(a, b, "accuracy", higher_is_better=True)
    exact = stats.binomtest(won, won + lost).pvalue
    assert got.difference == pytest.approx((won - lost) / 300)
    assert (got.p_value < 0.05) == (exact < 0.05)
    if exact < 0.2:
        assert got.p_value == pytest.approx(exact, abs=0.02)


def test_the_teacher_meets_every_seed():
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(4, 20)), rng.normal(size=(1, 20))
    got = paired_comparison(student, teacher, "nll", higher_is_better=False)
    repeated = paired_comparison(student, np.repeat(teacher, 4, axis=0), "nll", higher_is_better=False)
    assert got == repeated
    assert got.seeds == 4


def test_gain_is_positive_where_a_is_better():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 4, 20))
    more = paired_comparison(a, b, "m", higher_is_better=True)
    less = paired_comparison(a, b, "m", higher_is_better=False)
    assert more.gain == (more.low, more.difference, more.high)
    assert less.gain == (-less.high, -less.difference, -less.low)


def test_json():
    got = crossed_interval(np.arange(6.0).reshape(2, 3))
    assert json.loads(json.dumps(got.to_json())) == {
        "mean": 2.5,
        "ci95": [got.low, got.high],
        "df": got.df,
        "method": got.method,
        "seeds": 2,
        "examples": 3,
    }
    assert "ci90" in crossed_interval(np.arange(6.0).reshape(2, 3), 0.9).to_json()


def test_bad_input_is_an_error():
    with pytest.raises(DataError, match=r"\[S, N\]"):
        crossed_interval(np.zeros(5))
    with pytest.raises(DataError, match=r"\[S, N\]"):
        crossed_interval(np.zeros((0, 5)))
    with pytest.raises(DataError, match="NaN"):
        crossed_interval(np.array([[0.0, np.nan]]))
    with pytest.raises(DataError, match="pair"):
        paired_comparison(np.zeros((2, 5)), np.zeros((2, 6)), "m", higher_is_better=True)
    with pytest.raises(DataError, match="pair"):
        paired_comparison(np.zeros((2, 5)), np.zeros((3, 5)), "m", higher_is_better=True)
    with pytest.raises(ConfigError, match="95"):
        crossed_interval(np.arange(6.0).reshape(2, 3), confidence=95)
