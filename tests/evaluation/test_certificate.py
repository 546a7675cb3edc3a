"""The certificate of a compressed form: its errors are those of the gradients, computed here one by one."""

import json
import math

import numpy as np
import pytest
import torch

from tutelage.errors import ConfigError, ObjectiveError, TeacherError
from tutelage.evaluation import certificate
from tutelage.evaluation.certificate import certify
from tutelage.labels.sampling import row_keys, sample, top_k
from tutelage.signals import Logits, SparseTargets


def logits(rows, classes, spread=2.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, classes, generator=generator, dtype=torch.float64) * spread


def softmax(z, temperature=1.0):
    z = np.asarray(z, np.float64) / temperature
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def drawing(draws=10, scheme="independent", temperature=1.0):
    def compress(scores, rows, repeat):
        return sample(scores, row_keys(rows, seed=repeat), draws=draws, scheme=scheme, temperature=temperature)

    return compress


def keeping(k):
    return lambda scores, rows, repeat: top_k(scores, k)


def test_the_variance_of_independent_draws_is_the_multinomials():
    """n throws have the variance Σ q(1 − q)/n: any other number would be told to users as what the compression costs."""
    z = logits(20, 30)
    found = certify(Logits(z), drawing(10), repeats=400)
    q = softmax(z)
    exact = (q.mean(0) - q) ** 2
    expected = math.sqrt((q * (1 - q) / 10).sum() / exact.sum())
    assert found["relative_deviation"] == pytest.approx(expected, rel=0.03)
    assert found["gradient_norm"] == pytest.approx(math.sqrt(exact.sum() / 20), rel=1e-6)
    # unbiased: what is left is below what so many repeats can tell
    assert found["relative_bias"] <= found["relative_bias_noise"] < 0.2 * expected
    assert found["relative_error"] == pytest.approx(math.hypot(found["relative_bias"], found["relative_deviation"]))
    assert (found["form"], found["rows"], found["repeats"], found["reference"]) == ("sampled", 20, 400, "marginal")


def test_two_repeats_are_enough_for_the_variance():
    """Taken about a mean of so few without the correction, it would seem half of what it is."""
    z = logits(300, 30)
    q = softmax(z)
    expected = math.sqrt((q * (1 - q) / 10).sum() / ((q.mean(0) - q) ** 2).sum())
    found = certify(Logits(z), drawing(10), rows=300, repeats=2)
    assert found["relative_deviation"] == pytest.approx(expected, rel=0.08)
    assert found["relative_bias"] < found["relative_bias_noise"]


def test_the_bias_of_top_k_is_what_its_gradient_is_off():
    """Joined into one, the rest's classes get the student's shares of it: that difference stays however long one trains."""
    z, student = logits(12, 30), logits(12, 30, seed=1)
    found = certify(Logits(z), keeping(5), student=Logits(student))
    q, p = softmax(z), softmax(student)
    exact, off = p - q, np.zeros_like(q)
    for row in range(12):
        rest = np.argsort(-q[row])[5:]
        off[row, rest] = q[row, rest] - p[row, rest] / p[row, rest].sum() * q[row, rest].sum()
    assert found["relative_bias"] == pytest.approx(math.sqrt((off**2).sum() / (exact**2).sum()), rel=1e-5)
    assert found["relative_deviation"] == found["relative_bias_noise"] == 0.0
    assert (found["form"], found["repeats"], found["reference"]) == ("top_k", 1, "student")
    assert (found["kept_mean"], found["kept_max"]) == (5.0, 5)


def test_a_biased_draw_is_found_out():
    """Draws renormalised after dropping those that came once look like a fine store, and teach another distribution."""

    def compress(scores, rows, repeat):
        targets = drawing(10)(scores, rows, repeat)
        probs = targets.probs * (targets.probs > 0.15)
        probs = probs / probs.sum(-1, keepdim=True).clamp(min=1e-9)
        return SparseTargets(targets.ids, probs, targets.classes, 1.0, "sampled")

    found = certify(Logits(logits(20, 30)), compress, repeats=100)
    assert found["relative_bias"] > 3 * found["relative_bias_noise"]
    assert found["relative_bias"] > 0.1


def test_dense_logits_in_reduced_precision_are_measured_too():
    z = logits(8, 40)
    exact = certify(Logits(z), lambda scores, rows, repeat: scores)
    half = certify(Logits(z), lambda scores, rows, repeat: Logits(scores.at(1.0).half()))
    brain = certify(Logits(z), lambda scores, rows, repeat: Logits(scores.at(1.0).bfloat16()))
    assert exact["relative_error"] == 0.0
    assert 0.0 < 4 * half["relative_bias"] < brain["relative_bias"] < 0.05
    assert (half["form"], half["kept_max"]) == ("dense", 40)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_other_divergences_and_temperatures(temperature):
    compress = lambda scores, rows, repeat: top_k(scores, 40, temperature)  # noqa: E731
    for divergence, parameters in (("reverse_kl", None), ("jensen_shannon", {"beta": 0.3})):
        found = certify(
            Logits(logits(8, 40)), compress, divergence=divergence, parameters=parameters, temperature=temperature
        )
        # all classes kept: what is left is float32
        assert found["relative_bias"] < 1e-5
        assert found["gradient_norm"] > 1e-3
        assert found["divergence"] == divergence
    assert found["parameters"] == {"beta": 0.3}


def test_each_row_is_given_with_its_own_number(monkeypatch):
    """Rows shifted by one slice would be drawn with other rows' keys, and a student's compared with another example."""
    monkeypatch.setattr(certificate, "_AT_ONCE", 4 * 30)
    z = logits(50, 30)
    seen = []

    def compress(scores, rows, repeat):
        torch.testing.assert_close(scores.at(1.0), z[rows])
        seen.extend(rows.tolist())
        return Logits(scores.at(1.0))

    found = certify(Logits(z), compress, rows=22, student=Logits(z), seed=3)
    assert len(set(seen)) == len(seen) == found["rows"] == 22
    # a student that is its teacher has no gradient to be relative to
    assert found["gradient_norm"] < 1e-9
    assert found["relative_error"] is None
    assert seen != list(range(22))


def test_it_is_plain_json_and_the_same_again():
    z = logits(9, 20)
    first, second = (certify(Logits(z), drawing(4), rows=5, repeats=3) for _ in range(2))
    assert json.loads(json.dumps(first, allow_nan=False)) == first
    assert {**first, "seconds": 0} == {**second, "seconds": 0}
    assert first["seconds"] > 0


def test_what_cannot_be_certified_is_refused():
    scores = Logits(logits(4, 6))
    with pytest.raises(ConfigError, match="repeats"):
        certify(scores, drawing(), repeats=1)
    with pytest.raises(ConfigError, match="rows"):
        certify(scores, drawing(), rows=0)
    with pytest.raises(TeacherError, match="no rows"):
        certify(Logits(torch.zeros(0, 6)), drawing())
    with pytest.raises(TeacherError, match="rows"):
        certify(scores, lambda part, rows, repeat: top_k(Logits(part.at(1.0)[:1]), 2))
    with pytest.raises(TeacherError, match="classes"):
        certify(scores, drawing(), student=Logits(logits(4, 7)))
    with pytest.raises(ObjectiveError, match="sampled targets"):
        certify(scores, drawing(), divergence="reverse_kl")
    with pytest.raises(TeacherError, match="not finite"):
        certify(scores, lambda part, rows, repeat: Logits(part.at(1.0) * math.nan))
