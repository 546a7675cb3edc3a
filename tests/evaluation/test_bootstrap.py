"""The bootstrap against the closed form, and its coverage on a metric that has none."""

import numpy as np
import pytest

from tutelage.errors import ConfigError, DataError
from tutelage.evaluation import bootstrap_interval, crossed_interval, expected_calibration_error, macro_f1


def means(scores):
    return scores.mean(axis=1)


def test_on_a_mean_it_agrees_with_the_closed_form():
    rng = np.random.default_rng(0)
    for sds in [(0.1, 1.0, 0.5), (0.5, 1.0, 0.5), (0.0, 0.2, 1.0)]:
        scores = (
            sds[0] * rng.normal(size=(5, 1)) + sds[1] * rng.normal(size=(1, 200)) + sds[2] * rng.normal(size=(5, 200))
        )
        exact, got = crossed_interval(scores), bootstrap_interval(means, scores, resamples=2000)
        assert got.mean == pytest.approx(exact.mean)
        assert got.high - got.low == pytest.approx(exact.high - exact.low, rel=0.08)
    assert "bootstrap" in got.method


def test_macro_f1_covers_over_seeds_and_examples():
    """Seeds of different quality and a fresh test set each time; over the examples alone it would fall far short."""
    rng = np.random.default_rng(1)
    rounds, truth = 150, 0.8
    hits = examples_only = 0
    for _ in range(rounds):
        labels = rng.integers(0, 4, size=(1, 150))
        quality = 0.8 + 0.04 * rng.normal(size=(5, 1))
        # wrong answers go round the classes evenly, so that every class has F1 = quality
        wrong = (labels + rng.integers(1, 4, size=(5, 150))) % 4
        predictions = np.where(rng.random((5, 150)) < quality, labels, wrong)
        got = bootstrap_interval(macro_f1, predictions, labels, bounds=(0.0, 1.0), resamples=100)
        hits += got.low <= truth <= got.high
        one = bootstrap_interval(macro_f1, predictions[:1], labels, resamples=100)
        examples_only += one.low <= truth <= one.high
    assert 0.90 <= hits / rounds <= 1.0
    assert examples_only / rounds < 0.92


def test_the_interval_contains_an_ece_that_resampling_inflates():
    rng = np.random.default_rng(2)
    confidence = rng.uniform(0.5, 1.0, size=(3, 300))
    correct = (rng.random((3, 300)) < confidence).astype(float)
    got = bootstrap_interval(expected_calibration_error, confidence, correct, bounds=(0.0, 1.0))
    assert 0.0 <= got.low < got.mean < got.high <= 1.0


def test_the_same_seed_gives_the_same_interval():
    scores = np.random.default_rng(0).normal(size=(1, 20)) + np.zeros((3, 1))
    assert bootstrap_interval(means, scores) == bootstrap_interval(means, scores)
    assert bootstrap_interval(means, scores, seed=1) != bootstrap_interval(means, scores)


def test_one_seed_is_named():
    got = bootstrap_interval(means, np.random.default_rng(0).normal(size=(1, 50)))
    assert got.method == "examples only; one seed, bootstrap"
    assert got.seeds == 1


def test_a_statistic_that_does_not_vary_bounds_nothing():
    """A perfect F1 on 30 examples is perfect in every resample; a zero-width interval would be taken for certainty."""
    labels = np.arange(30)[None] % 3
    got = bootstrap_interval(macro_f1, np.repeat(labels, 3, axis=0), labels, bounds=(0.0, 1.0))
    assert (got.mean, got.low, got.high) == (1.0, 0.0, 1.0)
    assert got.method.startswith("no interval")


def test_bad_input_is_an_error():
    with pytest.raises(DataError, match="one N"):
        bootstrap_interval(macro_f1, np.zeros((2, 5), dtype=int), np.zeros((1, 6), dtype=int))
    with pytest.raises(DataError, match="one S"):
        bootstrap_interval(macro_f1, np.zeros((2, 5), dtype=int), np.zeros((3, 5), dtype=int))
    with pytest.raises(DataError, match="expected"):
        bootstrap_interval(means)
    with pytest.raises(DataError, match="finite"):
        bootstrap_interval(lambda x: x.mean(axis=1) * np.nan, np.ones((2, 5)))
    with pytest.raises(ConfigError, match="resamples"):
        bootstrap_interval(means, np.ones((2, 5)), resamples=1)
