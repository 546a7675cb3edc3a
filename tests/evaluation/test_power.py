"""How many more would decide: against the noncentral t, the textbook's formula, and simulation of the very interval."""

import json
import math
import re

import numpy as np
import pytest
from scipy import stats

from tutelage.errors import ConfigError, DataError
from tutelage.evaluation import needed_to_decide, paired_comparison
from tutelage.evaluation.power import Components, chance_to_decide, components


def draw(rng, parts, seeds, examples):
    """Differences of the crossed model, as the components say."""
    return (
        parts.difference
        + math.sqrt(parts.seed) * rng.normal(size=(seeds, 1))
        + math.sqrt(parts.example) * rng.normal(size=(1, examples))
        + math.sqrt(parts.residual) * rng.normal(size=(seeds, examples))
    )


def exactly(parts, seeds, examples, seed=0):
    """Differences whose mean and mean squares are just those that the components lead to expect."""
    rng = np.random.default_rng(seed)
    by_seed = rng.normal(size=(seeds, 1))
    by_example = rng.normal(size=(1, examples))
    left = rng.normal(size=(seeds, examples))
    left -= left.mean(axis=0) + left.mean(axis=1, keepdims=True) - left.mean()
    scores = np.full((seeds, examples), parts.difference)
    for effect, variance, df in (
        (by_seed - by_seed.mean(), parts.seed + parts.residual / examples, seeds - 1),
        (by_example - by_example.mean(), parts.example + parts.residual / seeds, examples - 1),
        (left, parts.residual, (seeds - 1) * (examples - 1)),
    ):
        scores = scores + effect * math.sqrt(variance * df / np.square(effect).sum())
    return scores


def crossed(difference, seed, example, residual):
    return Components(difference, seed, example, residual, binary=False, one_model=False)


def share_decided(make, limit, rounds):
    """How often the interval of a fresh pair of arms lies wholly on one side of the limit."""
    decided = 0
    for _ in range(rounds):
        got = paired_comparison(*make(), "m", higher_is_better=True)
        decided += not got.low <= limit <= got.high
    return decided / rounds


@pytest.mark.parametrize("examples", [5, 30, 400])
@pytest.mark.parametrize("ahead", [0.1, 0.5, -0.3])
def test_one_model_is_the_power_of_the_t_test(examples, ahead):
    """The noncentral t distribution knows the answer for one model exactly."""
    parts = Components(0.02 + ahead, 0.0, 1.0, 0.0, binary=False, one_model=True)
    critical = stats.t.ppf(0.975, examples - 1)
    expected = stats.nct.sf(critical, examples - 1, abs(ahead) * math.sqrt(examples))
    assert chance_to_decide(parts, 0.02, 1, examples) == pytest.approx(expected, abs=0.003)


def test_one_model_needs_the_textbooks_number():
    """n = ((z₀.₉₇₅ + z₀.₈) σ / Δ)², Cohen's formula, which every power calculator gives."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.0, 1.0, size=(1, 500)), np.zeros((1, 500))
    a += 0.08 - a.mean()
    got = needed_to_decide(a, b, 0.0)
    expected = ((stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * a.std(ddof=1) / 0.08) ** 2
    assert got.examples == pytest.approx(expected, rel=0.02)
    assert got.seeds is None
    assert "chance of 80%" in got.why
    assert "seeds" not in got.why


def test_seeds_alone_need_what_a_t_test_over_seeds_needs():
    """Where the seeds make all of the variance, the layout is a one-sample t-test of S means."""
    parts = Components(1.0, 1.5**2, 0.0, 1e-12, binary=False, one_model=False)
    for seeds in (3, 8, 20):
        critical = stats.t.ppf(0.975, seeds - 1)
        expected = stats.nct.sf(critical, seeds - 1, math.sqrt(seeds) / 1.5)
        assert chance_to_decide(parts, 0.0, seeds, 50) == pytest.approx(expected, abs=0.004)


def test_components_are_those_of_the_table():
    """Averaged over many layouts the moments must give back what they were drawn from."""
    rng = np.random.default_rng(1)
    truth = crossed(0.3, 0.5, 2.0, 1.0)
    found = [components(draw(rng, truth, 6, 30), np.zeros((1, 30))) for _ in range(600)]
    assert np.mean([parts.seed for parts in found]) == pytest.approx(0.5, rel=0.1)
    assert np.mean([parts.example for parts in found]) == pytest.approx(2.0, rel=0.05)
    assert np.mean([parts.residual for parts in found]) == pytest.approx(1.0, rel=0.05)
    assert min(parts.seed for parts in found) >= 0.0
    (one,) = [components(exactly(truth, 4, 20), np.zeros((1, 20)))]
    assert (one.difference, one.seed, one.example, one.residual) == pytest.approx((0.3, 0.5, 2.0, 1.0))


LAYOUTS = [crossed(0.5, 0.15, 4.0, 1.0), crossed(-0.6, 0.02, 6.0, 4.0), crossed(1.0, 0.5, 0.5, 1.0)]


@pytest.mark.parametrize("parts", LAYOUTS, ids=["mixed", "examples", "seeds"])
@pytest.mark.parametrize(("seeds", "examples"), [(3, 40), (6, 120)])
def test_the_chance_is_that_of_the_interval_itself(parts, seeds, examples):
    """The interval is the widest of three: the power of any one of them promises too much."""
    rng = np.random.default_rng(2)
    zero = np.zeros((1, examples))
    share = share_decided(lambda: (draw(rng, parts, seeds, examples), zero), 0.0, 500)
    assert chance_to_decide(parts, 0.0, seeds, examples) == pytest.approx(share, abs=0.06)


@pytest.mark.parametrize(("power", "present"), [(0.5, 34), (0.8, 80), (0.9, 100)])
def test_the_number_asked_for_decides_as_often_as_it_says(power, present):
    """A number that is too small sends people to run what will again say hold; one too large wastes their week."""
    rng = np.random.default_rng(3)
    parts, zero = crossed(0.65, 0.05, 3.0, 1.0), np.zeros((1, present))
    got = needed_to_decide(exactly(parts, 4, present), zero, 0.0, power=power)
    assert got.seeds is not None
    assert got.examples is not None
    for seeds, examples in ((got.seeds, present), (4, got.examples)):
        blank = np.zeros((1, examples))
        share = share_decided(lambda s=seeds, n=examples, z=blank: (draw(rng, parts, s, n), z), 0.0, 400)
        chance = chance_to_decide(parts, 0.0, seeds, examples)
        assert share == pytest.approx(chance, abs=0.06)
        assert chance >= power
    assert chance_to_decide(parts, 0.0, got.seeds - 1, present) < power
    assert chance_to_decide(parts, 0.0, 4, math.floor(0.98 * got.examples)) < power


def right_and_wrong(rng, seeds, examples, won, lost):
    """0/1 answers: an example is won or lost by the same chances for every seed alike, most of them by all seeds."""
    kind = rng.choice(3, p=[won, lost, 1 - won - lost], size=(1, examples))
    seen = rng.random((seeds, examples)) < 0.8
    student = np.where(kind == 1, ~seen, True).astype(float)
    teacher = np.where(kind == 0, 0.0, 1.0)
    student = np.where(kind == 0, seen, student).astype(float)
    return student, teacher


@pytest.mark.parametrize("examples", [300, 1500])
@pytest.mark.parametrize("seeds", [1, 4])
def test_right_and_wrong_answers(seeds, examples):
    """Accuracies are what gates ask: few discordant answers, whose interval has pseudo-examples."""
    rng = np.random.default_rng(4)
    parts = components(*right_and_wrong(rng, seeds, 100_000, 0.01, 0.025))
    assert parts.binary
    share = share_decided(lambda: right_and_wrong(rng, seeds, examples, 0.01, 0.025), -0.03, 400)
    assert chance_to_decide(parts, -0.03, seeds, examples) == pytest.approx(share, abs=0.07)


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize(("lost", "limit"), [(0.0, -0.03), (1.0, -0.9)])
def test_all_alike_still_needs_enough_examples(seeds, lost, limit):
    """Answers that do not vary are no certainty: 20 examples prove nothing, and the pseudo-examples say how many do."""
    student, teacher = np.full((seeds, 20), 1.0 - lost), np.ones((1, 20))
    got = needed_to_decide(student, teacher, limit)
    assert got.examples is not None
    assert got.examples > 20
    for examples, decided in ((got.examples, True), (got.examples - 1, False)):
        interval = paired_comparison(
            np.full((seeds, examples), 1.0 - lost), np.ones((1, examples)), "m", higher_is_better=True
        )
        assert (not interval.low <= limit <= interval.high) == decided


def test_no_number_is_said_where_none_would_do():
    """More seeds cannot narrow what the test examples leave open, nor the other way round."""
    zero = np.zeros((1, 100))
    got = needed_to_decide(exactly(crossed(0.5, 0.001, 9.0, 0.5), 4, 100), zero, 0.0)
    assert got.seeds is None
    assert 280 < got.examples < 400
    assert "more seeds alone would not" in got.why
    got = needed_to_decide(exactly(crossed(0.5, 0.3, 0.5, 0.5), 4, 100), zero, 0.0)
    assert got.examples is None
    assert 10 < got.seeds < 20
    assert "more test examples alone would not" in got.why


def test_neither_alone_names_both_together():
    """An estimate close to the limit, with seeds and examples that both vary."""
    parts = crossed(0.12, 0.3, 3.0, 0.5)
    got = needed_to_decide(exactly(parts, 4, 50), np.zeros((1, 50)), 0.0)
    assert (got.seeds, got.examples) == (None, None)
    assert "neither more seeds nor more test examples would alone" in got.why
    seeds, examples = (int(number.replace(",", "")) for number in re.findall(r"bout ([\d,]+)", got.why))
    assert examples == pytest.approx(50 * seeds / 4, rel=0.1)
    assert chance_to_decide(parts, 0.0, seeds, examples) == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize("seeds", [1, 3])
def test_an_estimate_on_the_limit_is_never_decided(seeds):
    """Its interval will hold the limit in 95 of 100 repetitions whatever the number."""
    scores = np.random.default_rng(7).normal(size=(seeds, 60))
    scores += 0.25 - scores.mean()
    got = needed_to_decide(scores, np.zeros((1, 60)), 0.25)
    assert (got.seeds, got.examples) == (None, None)
    assert "too near the limit: not even" in got.why
    assert ("1,000 seeds" in got.why) == (seeds > 1)


def test_both_sides_of_a_limit_are_alike():
    """To fail a gate for certain takes as many as to pass it."""
    scores = draw(np.random.default_rng(8), LAYOUTS[0], 4, 60)
    zero = np.zeros((1, 60))
    got, mirrored = needed_to_decide(scores, zero, 0.0), needed_to_decide(-scores, zero, 0.0)
    assert got == mirrored
    assert needed_to_decide(zero, scores, 0.0) == mirrored


def test_nearer_limits_and_surer_answers_need_more():
    """An order that must hold whatever the formula."""
    scores, zero = exactly(crossed(0.6, 0.01, 3.0, 1.0), 4, 60), np.zeros((1, 60))
    by_limit = [needed_to_decide(scores, zero, limit).examples for limit in (0.05, 0.1, 0.2)]
    by_power = [needed_to_decide(scores, zero, 0.1, power=power).examples for power in (0.5, 0.8, 0.95)]
    by_confidence = [needed_to_decide(scores, zero, 0.1, confidence=level).examples for level in (0.9, 0.95, 0.995)]
    for numbers in (by_limit, by_power, by_confidence):
        assert numbers == sorted(set(numbers))
        assert numbers[0] > 60


@pytest.mark.parametrize("scores", [np.full((3, 8), 0.25), np.zeros((1, 5)) + 0.5, np.array([[1.0], [2.0]])])
def test_nothing_that_varies_says_nothing(scores):
    """A variance of zero would otherwise make one more example enough."""
    got = needed_to_decide(scores, np.zeros((1, scores.shape[1])), 0.1)
    assert (got.seeds, got.examples) == (None, None)
    assert "Nothing varies" in got.why


def test_the_sentence_counts_for_people():
    """The number is a plan: 1,873 examples to the last one would claim what nobody knows."""
    got = needed_to_decide(exactly(crossed(0.32, 0.02, 3.0, 1.0), 4, 300), np.zeros((1, 300)), 0.0)
    assert got.seeds is not None
    assert got.examples is not None
    assert f"About {got.seeds} seeds in all, or about " in got.why
    said = int(got.why.split("or about ")[1].split(" test")[0].replace(",", ""))
    assert got.examples <= said <= 1.1 * got.examples
    assert len(str(said).rstrip("0")) <= 2
    assert json.loads(json.dumps(got.to_json())) == {"seeds": got.seeds, "examples": got.examples, "why": got.why}


def test_impossible_questions_are_refused():
    """A power of 80 for 80% would ask for everything there is."""
    scores = np.random.default_rng(0).normal(size=(2, 9))
    with pytest.raises(ConfigError, match="power 80"):
        needed_to_decide(scores, scores[:1], 0.0, power=80)
    with pytest.raises(ConfigError, match="limit nan"):
        needed_to_decide(scores, scores[:1], math.nan)
    with pytest.raises(ConfigError, match="confidence 95"):
        needed_to_decide(scores, scores[:1], 0.0, confidence=95)
    with pytest.raises(DataError, match="cannot pair"):
        needed_to_decide(scores, scores[:, 1:], 0.0)
