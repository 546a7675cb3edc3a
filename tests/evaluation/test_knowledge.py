"""What soft targets hold: limits that are known in closed form, gradients against autograd, permutations that were planted."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F

from tutelage.errors import ConfigError, DataError
from tutelage.evaluation.knowledge import (
    best_renumbering,
    beyond_label,
    compare_pull,
    entropy,
    hard_gradient,
    look_at,
    quality,
    soft_gradient,
    soft_targets,
    softness,
)
from tutelage.evaluation.knowledge_baseline import cheap_baselines
from tutelage.evaluation.knowledge_classes import (
    both_ways,
    class_similarity,
    cluster_order,
    most_alike,
    telling_examples,
    telling_temperature,
)
from tutelage.objectives.divergence import forward_kl
from tutelage.signals import NO_LABEL, Logits, MixtureLogits

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(scale=3.0, size=(40, 7))
LABELS = RNG.integers(7, size=40)


def scores(values: np.ndarray = LOGITS) -> Logits:
    return Logits(torch.from_numpy(values))


def test_entropy_of_what_is_known() -> None:
    """A log of the wrong base, or 0 · log 0, would make every number of classes wrong."""
    rows = np.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [1 / 3, 1 / 3, 1 / 3]])
    np.testing.assert_allclose(entropy(rows), [0.0, math.log(2), math.log(3)], atol=1e-15)
    rare = np.array([[1 - 3e-5, 2e-5, 1e-5]])
    assert entropy(rare)[0] == pytest.approx(scipy.stats.entropy(rare[0]), rel=1e-9)


def test_a_hot_target_tends_to_uniform_and_a_cold_one_to_one_hot() -> None:
    """Divided by T twice, or not at all, the curve would look plausible and end elsewhere."""
    hot, cold = (softness(soft_targets(scores(), t)) for t in (1e6, 1e-3))
    assert hot["entropy"]["mean"] == pytest.approx(math.log(7), abs=1e-9)
    assert hot["effective_classes"]["mean"] == pytest.approx(7.0, abs=1e-8)
    assert cold["effective_classes"]["mean"] == pytest.approx(1.0, abs=1e-6)
    table = look_at(scores(), LABELS)
    means = [row["entropy"]["mean"] for row in table]
    assert means == sorted(means)


def test_a_masked_class_is_no_class() -> None:
    """−∞ times 0 is NaN, which would reach the page as 'not known'."""
    values = LOGITS.copy()
    values[:, 2] = -np.inf
    q = soft_targets(scores(values), 1e6)
    assert (q[:, 2] == 0).all()
    assert softness(q)["effective_classes"]["mean"] == pytest.approx(6.0, abs=1e-6)


def test_an_ensemble_is_mixed_at_each_temperature() -> None:
    """The softmax of the members' mean logits is another distribution than the students hear."""
    members = RNG.normal(scale=3.0, size=(2, 40, 7))
    weights = torch.tensor([0.25, 0.75], dtype=torch.float64)
    mixture = MixtureLogits(torch.from_numpy(members), weights)
    for t in (1.0, 4.0, 64.0):
        each = [np.exp(m / t) / np.exp(m / t).sum(1, keepdims=True) for m in members]
        np.testing.assert_allclose(soft_targets(mixture, t), 0.25 * each[0] + 0.75 * each[1], rtol=1e-9)


@pytest.mark.parametrize("t", [1.0, 4.0, 32.0])
def test_gradients_are_those_of_the_terms(t: float) -> None:
    """Without the T² or with a T too many, the balance of the two terms would be off by T."""
    student = torch.from_numpy(RNG.normal(size=(40, 7))).requires_grad_()
    (soft,) = torch.autograd.grad(t * t * forward_kl(student, torch.from_numpy(LOGITS), t).sum(), student)
    (hard,) = torch.autograd.grad(F.cross_entropy(student, torch.from_numpy(LABELS), reduction="sum"), student)
    at = student.detach().numpy()
    targets = soft_targets(scores(), t)
    np.testing.assert_allclose(soft_gradient(at, targets, t), soft.numpy(), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(hard_gradient(at, LABELS), hard.numpy(), rtol=1e-9, atol=1e-12)
    pull = compare_pull(at, targets, LABELS, t)
    assert pull.ratio == pytest.approx(float(soft.norm() / hard.norm()), rel=1e-6)
    assert pull.cosine == pytest.approx(float(F.cosine_similarity(soft.flatten(), hard.flatten(), dim=0)), rel=1e-6)
    assert pull.even_weight is not None
    assert pull.even_weight * soft.norm() == pytest.approx(float((1 - pull.even_weight) * hard.norm()), rel=1e-6)


def test_at_a_high_temperature_the_pull_is_a_regression_of_logits() -> None:
    """Hinton et al. 2015, section 2.1: T²·KL tends to half the mean square of centred logits."""
    centred = LOGITS - LOGITS.mean(axis=1, keepdims=True)
    soft = soft_gradient(np.zeros_like(LOGITS), soft_targets(scores(), 1e5), 1e5)
    np.testing.assert_allclose(soft, -centred / 7, atol=1e-3)


def test_a_one_hot_teacher_says_nothing_beyond_the_label() -> None:
    one_hot = np.eye(7)[LABELS]
    assert beyond_label(one_hot, LABELS) == pytest.approx(0.0, abs=1e-12)
    pull = compare_pull(np.zeros((40, 7)), one_hot, LABELS, 1.0)
    assert pull.ratio == pytest.approx(1.0)
    assert pull.cosine == pytest.approx(1.0)
    assert beyond_label(np.full((40, 7), 1 / 7), LABELS) is None


def test_beyond_the_label_by_hand() -> None:
    """The share of a right triangle's shorter side: three classes, the label's share fixed, the rest moved to one of two."""
    q, y = np.array([[0.6, 0.4, 0.0]]), np.array([0])
    soft = np.array([1 / 3 - 0.6, 1 / 3 - 0.4, 1 / 3])
    across = np.array([0.0, 1.0, -1.0]) / math.sqrt(2)
    assert beyond_label(q, y) == pytest.approx((soft @ across) ** 2 / (soft @ soft))


def test_examples_without_a_label_are_left_out_of_what_needs_one() -> None:
    """NO_LABEL is −100: as an index it would be another class's, or an error in the middle of a table."""
    labels = LABELS.copy()
    labels[10:] = NO_LABEL
    some, few = look_at(scores(), labels)[2], look_at(scores(LOGITS[:10]), LABELS[:10])[2]
    assert some["pull"] == few["pull"]
    assert some["off_label"] == few["off_label"]
    assert some["beyond_label"] == few["beyond_label"]
    none = look_at(scores(), np.full(40, NO_LABEL))[0]
    assert none["pull"] == {"untrained": None, "trained": None}
    assert none["beyond_label"] is None
    assert none["off_label"] is None


def test_the_trained_student_is_its_own_column() -> None:
    student = RNG.normal(size=(40, 7))
    row = look_at(scores(), LABELS, student)[3]
    assert row["pull"]["trained"] == compare_pull(student, soft_targets(scores(), 8.0), LABELS, 8.0).to_json()
    assert row["pull"]["trained"] != row["pull"]["untrained"]


def test_labels_of_other_examples_are_refused() -> None:
    with pytest.raises(DataError, match="39 labels for 40 rows"):
        look_at(scores(), LABELS[1:])
    with pytest.raises(ConfigError, match="no softmax"):
        soft_targets(scores(), 0.0)


def test_over_confidence_is_confidence_less_accuracy() -> None:
    logits = np.array([[math.log(9.0), 0.0], [math.log(9.0), 0.0], [0.0, math.log(9.0)], [0.0, math.log(9.0)]])
    found = quality(logits, np.array([0, 1, 1, 1]))
    assert found["confidence"] == pytest.approx(0.9)
    assert found["over_confidence"] == pytest.approx(0.15)
    gaps = [-0.1, 0.9, -0.1, -0.1]
    assert found["over_confidence_se"] == pytest.approx(np.std(gaps, ddof=1) / 2)


def test_a_planted_permutation_is_found() -> None:
    """A teacher whose classes are in another order teaches every class wrongly, and looks merely bad."""
    order = np.array([3, 0, 1, 2, 4, 6, 5])
    labels = np.tile(np.arange(7), 12)
    predictions = np.argsort(order)[labels]
    predictions[::9] = RNG.integers(7, size=len(predictions[::9]))
    found = best_renumbering(predictions, labels, 7)
    assert found.mapping.tolist() == order.tolist()
    assert found.gain > 0.5


def test_chance_is_no_permutation() -> None:
    """Fitted and judged on the same examples, some renumbering of a guessing teacher always helps."""
    gains = []
    for seed in range(20):
        draws = np.random.default_rng(seed)
        gains.append(best_renumbering(draws.integers(10, size=60), draws.integers(10, size=60), 10).gain)
    assert max(gains) < 0.1
    right = np.tile(np.arange(5), 8)
    assert best_renumbering(right, right, 9).mapping.tolist() == list(range(9)), "classes that nobody shows stay"


def test_similarity_shares_what_is_kept_off_the_answer() -> None:
    q = np.array([[0.8, 0.15, 0.05], [0.6, 0.1, 0.3], [0.1, 0.7, 0.2]])
    found = class_similarity(q)
    np.testing.assert_allclose(found[0], [0.0, (0.75 + 0.25) / 2, (0.25 + 0.75) / 2])
    np.testing.assert_allclose(found[1], [1 / 3, 0.0, 2 / 3])
    assert np.isnan(found[2]).all(), "nobody's answer"
    np.testing.assert_allclose(both_ways(found)[0, 1], (0.5 + 1 / 3) / 2)
    np.testing.assert_allclose(both_ways(found)[1, 2], 2 / 3)
    assert [pair[:2] for pair in most_alike(found)] == [(1, 2), (0, 2), (0, 1)]


def test_classes_thought_alike_stand_together() -> None:
    """Two families dealt out alternately: in the order of their numbers nothing could be seen."""
    similarity = np.full((6, 6), 0.05)
    for family in ((0, 2, 4), (1, 3, 5)):
        for i in family:
            for j in family:
                similarity[i, j] = 0.4
    np.fill_diagonal(similarity, 0.0)
    order = cluster_order(similarity)
    assert sorted(order) == list(range(6))
    assert {tuple(sorted(order[:3])), tuple(sorted(order[3:]))} == {(0, 2, 4), (1, 3, 5)}
    assert cluster_order(np.zeros((2, 2))) == [0, 1]


def test_one_hot_targets_have_no_likeness() -> None:
    found = class_similarity(np.eye(3))
    assert np.isnan(found).all()
    assert most_alike(found) == []
    assert sorted(cluster_order(found)) == [0, 1, 2]


def test_telling_examples_are_right_diverse_and_largest_first() -> None:
    """Examples of one confusion twelve times over would show one thing; wrong ones show a mistake."""
    q = np.array([[0.6, 0.4, 0.0], [0.7, 0.3, 0.0], [0.55, 0.05, 0.4], [0.1, 0.9, 0.0], [0.45, 0.55, 0.0]])
    found = telling_examples(q, np.array([0, 0, 0, 1, 0]))
    assert [(t.row, t.answer, t.second) for t in found] == [(0, 0, 1), (2, 0, 2), (3, 1, 0)]
    assert found[1].probabilities == pytest.approx((0.55, 0.4))
    assert len(telling_examples(q, np.array([0, 0, 0, 1, 0]), most=1)) == 1
    assert telling_examples(np.eye(3), np.arange(3)) == []
    assert telling_examples(q, np.full(5, NO_LABEL)) == []


def test_the_telling_temperature_is_neither_cold_nor_hot() -> None:
    table = look_at(scores(8 * LOGITS), LABELS)
    chosen = telling_temperature(table, 7)
    share = {row["temperature"]: row["entropy"]["mean"] / math.log(7) for row in table}
    assert min(share.values()) < share[chosen] < max(share.values())
    assert abs(share[chosen] - 0.4) == min(abs(value - 0.4) for value in share.values())


def test_baselines_learn_what_is_there() -> None:
    draws = np.random.default_rng(3)
    labels = np.repeat([0, 1, 2], [30, 20, 10])
    inputs = np.eye(3)[labels] * 4 + draws.normal(size=(60, 3))
    found = cheap_baselines(inputs, labels, inputs[::2], 30)
    assert (found["majority"] == 0).all()
    assert (found["logistic regression"] == labels[::2]).mean() > 0.9
    texts = ["red apple" if label else "blue whale" for label in labels]
    said = cheap_baselines(texts, (labels > 0).astype(int), ["whale", "apple"], 2)["logistic regression"]
    assert said.tolist() == [0, 1]
    assert list(cheap_baselines(None, labels, None, 4)) == ["majority"]
    assert list(cheap_baselines(np.zeros((60, 5000)), labels, np.zeros((4, 5000)), 4)) == ["majority"]
    assert cheap_baselines(inputs, labels[:0], inputs, 60) == {}
