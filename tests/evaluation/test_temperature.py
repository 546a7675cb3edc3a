"""Temperature scaling: the least NLL, proved on other examples, and left alone where nothing bounds it."""

import json

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from tutelage.errors import ConfigError, DataError
from tutelage.evaluation import fit_temperature
from tutelage.evaluation.temperature import MIN_EXAMPLES


def sample(rng, examples, temperature, classes=5, sharpness=2.0):
    """Logits whose softmax at ``temperature`` is where the labels are drawn from: the truth is known."""
    logits = sharpness * rng.normal(size=(examples, classes))
    p = np.exp(logits / temperature)
    p /= p.sum(axis=1, keepdims=True)
    labels = np.array([rng.choice(classes, p=row) for row in p])
    return logits, labels


def torch_nll(logits, labels, temperature):
    """The quantity written with somebody else's functions."""
    return float(torch.nn.functional.cross_entropy(torch.tensor(logits) / temperature, torch.tensor(labels)))


def test_the_fit_has_the_least_nll():
    """An optimiser that stops early, or fits 1/T for T, still returns a plausible number."""
    logits, labels = sample(np.random.default_rng(0), 400, 2.5)
    got = fit_temperature(logits, labels)
    best = minimize_scalar(lambda t: torch_nll(logits, labels, t), bounds=(0.01, 100), method="bounded")
    assert got.fitted == pytest.approx(best.x, rel=1e-3)
    assert torch_nll(logits, labels, got.fitted) <= best.fun + 1e-12
    assert got.nll[0] == pytest.approx(torch_nll(logits, labels, 1.0))


def test_the_true_temperature_is_found_and_used():
    """Overconfident by a factor of three: calibration must come back, on examples that the fit did not see."""
    logits, labels = sample(np.random.default_rng(1), 4000, 3.0)
    got = fit_temperature(logits, labels)
    assert got.helps
    assert got.temperature == got.fitted == pytest.approx(3.0, rel=0.1)
    assert got.nll[1] < got.nll[0] - 0.1
    assert got.ece[1] < 0.03 < 0.1 < got.ece[0]
    assert "did not see" in got.why
    other, other_labels = sample(np.random.default_rng(2), 4000, 3.0)
    assert torch_nll(other, other_labels, got.temperature) == pytest.approx(got.nll[1], rel=0.05)


def test_a_calibrated_model_is_left_alone():
    """In its own sample the fitted T always has the lower NLL: judged by that, every model would be 'improved'."""
    rng = np.random.default_rng(3)
    helped = better_in_sample = 0
    for _ in range(150):
        logits, labels = sample(rng, 100, 1.0)
        got = fit_temperature(logits, labels)
        helped += got.helps
        better_in_sample += torch_nll(logits, labels, got.fitted) < got.nll[0]
        assert got.helps or got.temperature == 1.0
    assert better_in_sample == 150
    assert helped <= 6


def test_sorted_labels_are_spread_over_the_folds():
    """Folds of neighbours in data sorted by class would each judge a temperature fitted without that class."""
    logits, labels = sample(np.random.default_rng(4), 1000, 1.0, classes=5)
    # one class alone is overconfident: without its examples the others ask for T = 1, and it is judged by that
    logits[labels == 0] *= 6.0
    order = np.argsort(labels, kind="stable")
    got, by_class = fit_temperature(logits, labels), fit_temperature(logits[order], labels[order])
    assert by_class.fitted == pytest.approx(got.fitted)
    assert by_class.nll[1] == pytest.approx(got.nll[1], rel=0.01)


@pytest.mark.parametrize("margin", [1.0, 5.0, 1e4, 1e30])
def test_perfect_answers_bound_nothing(margin):
    """T near 0 has the least NLL there is, and makes the first mistake in production an infinite surprise."""
    labels = np.arange(60) % 3
    logits = margin * (1 + np.random.default_rng(5).random((60, 1))) * np.eye(3)[labels]
    got = fit_temperature(logits, labels)
    assert (got.temperature, got.helps) == (1.0, False)
    assert got.fitted < margin / 10
    assert "every example is answered right" in got.why
    assert np.isfinite([*got.nll, *got.ece]).all()


def test_one_mistake_is_no_ground_to_sharpen():
    """All folds but one hold the mistake and sharpen; 59 of 60 examples gain by it: the one that pays must count."""
    labels = np.arange(60) % 3
    logits = 3.0 * np.eye(3)[labels]
    logits[7] = 0.01 * np.eye(3)[(labels[7] + 1) % 3]
    got = fit_temperature(logits, labels)
    assert got.temperature == 1.0
    assert "it hangs on a few examples" in got.why


@pytest.mark.parametrize("flat", [True, False])
def test_logits_that_say_nothing_bound_nothing(flat):
    """Equal or reversed logits are best at infinite T, which answers uniformly: that is a broken model, not a calibrated one."""
    labels = np.arange(60) % 3
    logits = np.ones((60, 3)) if flat else -2.0 * np.eye(3)[labels] + 0.1 * np.random.default_rng(0).random((60, 3))
    got = fit_temperature(logits, labels)
    assert (got.temperature, got.helps) == (1.0, False)
    assert "nothing to do with the logits" in got.why


@pytest.mark.parametrize("factor", [1e-3, 1e5, 1e30])
def test_the_unit_of_the_logits_does_not_matter(factor):
    """Fixed bounds such as 0.05 … 20 would stop half way for cosine similarities or for a huge head."""
    logits, labels = sample(np.random.default_rng(6), 500, 2.0)
    one, other = fit_temperature(logits, labels), fit_temperature(factor * logits, labels)
    assert other.fitted == pytest.approx(factor * one.fitted, rel=1e-6)
    assert other.nll[1] == pytest.approx(one.nll[1])


def test_masked_classes_change_nothing():
    """−inf × 0 is NaN in an expected logit written without care, and a NaN slope looks like no sign change."""
    logits, labels = sample(np.random.default_rng(7), 500, 2.0)
    masked = np.concatenate([logits, np.full((500, 2), -np.inf)], axis=1)
    plain, padded = fit_temperature(logits, labels), fit_temperature(masked, labels)
    assert padded.fitted == pytest.approx(plain.fitted)
    assert padded.nll == pytest.approx(plain.nll)
    assert padded.ece == pytest.approx(plain.ece)
    masked[3, labels[3]] = -np.inf
    with pytest.raises(DataError, match="masks"):
        fit_temperature(masked, labels)


def test_float16_logits_are_fitted_in_float64():
    """Exponentials of float16 logits overflow at 11: the artefact's own precision must not be the fit's."""
    logits, labels = sample(np.random.default_rng(8), 300, 2.0, sharpness=8.0)
    got = fit_temperature(logits.astype(np.float16), labels.astype(np.int32))
    assert got.fitted == pytest.approx(fit_temperature(logits, labels).fitted, rel=1e-2)


def test_too_few_examples_are_said():
    """A temperature from ten examples is an accident with a decimal point."""
    logits, labels = sample(np.random.default_rng(9), MIN_EXAMPLES, 5.0)
    few = fit_temperature(logits[1:], labels[1:])
    assert (few.temperature, few.helps) == (1.0, False)
    assert f"{MIN_EXAMPLES - 1} validation examples are too few" in few.why
    assert few.nll[0] == few.nll[1]
    assert "too few" not in fit_temperature(logits, labels).why
    assert fit_temperature(logits[:1], labels[:1]).temperature == 1.0


def test_what_is_no_prediction_is_refused():
    """A fit to misaligned rows would be stored in the artefact without a word."""
    logits, labels = sample(np.random.default_rng(10), 50, 1.0)
    with pytest.raises(DataError, match="expected 50 integers"):
        fit_temperature(logits, labels[1:])
    with pytest.raises(DataError, match="NaN"):
        fit_temperature(np.where(np.arange(5) == 1, np.nan, logits), labels)
    with pytest.raises(ConfigError, match="1 folds"):
        fit_temperature(logits, labels, folds=1)
    with pytest.raises(ConfigError, match="confidence 95"):
        fit_temperature(logits, labels, confidence=95)


def test_the_record_is_plain_json():
    """What the artefact's manifest and the page read."""
    logits, labels = sample(np.random.default_rng(11), 200, 2.0)
    record = json.loads(json.dumps(fit_temperature(logits, labels).to_json(), allow_nan=False))
    assert {"temperature", "helps", "nll", "ece", "why"} <= set(record)
    assert len(record["nll"]) == len(record["ece"]) == 2
    assert record == json.loads(json.dumps(fit_temperature(logits, labels).to_json()))
