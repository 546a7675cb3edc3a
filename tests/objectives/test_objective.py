import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tutelage
from tutelage.errors import ConfigError, ObjectiveError, TeacherError
from tutelage.objectives import (
    DIST,
    DKD,
    KL,
    Component,
    Constant,
    CrossEntropy,
    Divergence,
    Linear,
    LogitMSE,
    Objective,
    Piecewise,
    as_objective,
    objective_from_config,
)
from tutelage.signals import NO_LABEL, Logits, Signals


def batch(rows=64, classes=10, seed=0, unlabelled=0):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, rows, classes, generator=generator, dtype=torch.float64) * 2
    labels = torch.randint(classes, (rows,), generator=generator)
    labels[torch.randperm(rows, generator=generator)[:unlabelled]] = NO_LABEL
    return student.requires_grad_(), teacher, labels


def call(objective, student, teacher, labels, **options):
    rows = {"labels": labels, "ids": torch.arange(len(labels))}
    return objective(Signals(Logits(student)), None if teacher is None else Signals(Logits(teacher)), rows, **options)


def rows_of(labels):
    return {"labels": labels, "ids": torch.arange(len(labels))}


def test_the_algebra():
    objective = 0.1 * CrossEntropy() + 0.9 * KL(temperature=4)
    assert objective.components == (
        Component("cross_entropy", Constant(0.1), CrossEntropy()),
        Component("kl", Constant(0.9), KL(4.0)),
    )
    assert objective == sum([CrossEntropy() * 0.1, KL(4) * 0.9])
    assert 2 * objective == 0.2 * CrossEntropy() + 1.8 * KL(4)
    assert (CrossEntropy() + KL()).components[0].weight == Constant(1.0)
    scheduled = Linear(1, 0) * KL() + CrossEntropy() * Linear(0, 1)
    assert (0.5 * scheduled).components[0].weight == Linear(0.5, 0)
    assert (Linear(1, 0) * (0.5 * KL())).components[0].weight == Linear(0.5, 0)
    assert [c.name for c in (KL() + KL(4) + CrossEntropy() + Divergence("jensen_shannon") + KL(2)).components] == [
        "kl",
        "kl_2",
        "cross_entropy",
        "jensen_shannon",
        "kl_3",
    ]
    assert as_objective(KL()) == as_objective(1.0 * KL())
    assert objective.needs == {"student.logits", "teacher.logits", "labels"}
    assert hash(objective) == hash(0.1 * CrossEntropy() + 0.9 * KL(4))


@pytest.mark.parametrize("wrong", [lambda: KL() + 1, lambda: "2" * KL(), lambda: KL() * KL(), lambda: 1 + KL()])
def test_what_is_no_algebra(wrong):
    with pytest.raises(TypeError):
        wrong()


def test_weights_are_checked():
    for weight in (-1.0, -1e-9, Linear(1, -0.1), math.nan, math.inf):
        with pytest.raises(ObjectiveError, match="weight"):
            weight * KL()
    with pytest.raises(ObjectiveError, match="schedule times a schedule"):
        Linear(1, 0) * (Linear(0, 1) * KL())
    (0.0 * KL() + CrossEntropy()).validate()
    for nothing in (0.0 * KL() + 0 * CrossEntropy(), Linear(0, 0) * KL(), Objective(())):
        with pytest.raises(ObjectiveError, match="all weights are zero"):
            nothing.validate()
    with pytest.raises(ObjectiveError, match="no objective"):
        as_objective("kl")


def test_the_total_is_the_weighted_sum_of_means():
    student, teacher, labels = batch(unlabelled=40)
    objective = 0.1 * CrossEntropy() + 0.9 * KL(4) + 0.5 * LogitMSE()
    value = call(objective, student, teacher, labels)
    for component in objective.components:
        total, count = component.term(Signals(Logits(student)), Signals(Logits(teacher)), rows_of(labels))
        torch.testing.assert_close(value.components[component.name], (total / count).detach())
        assert not value.components[component.name].requires_grad
    parts = value.components
    torch.testing.assert_close(
        value.total.detach(), 0.1 * parts["cross_entropy"] + 0.9 * parts["kl"] + 0.5 * parts["logit_mse"]
    )
    assert objective.counts(rows_of(labels)).tolist() == [24, 64, 64]


def test_neither_term_is_diluted_by_rows_the_other_uses():
    """Divided by the batch size, cross-entropy on 4 labels of 64 rows would weigh a sixteenth of what was asked for."""
    student, teacher, labels = batch(unlabelled=60)
    kept = labels != NO_LABEL
    mixed = call(CrossEntropy() + KL(), student, teacher, labels).components
    torch.testing.assert_close(
        mixed["cross_entropy"],
        call(as_objective(CrossEntropy()), student[kept], None, labels[kept]).components["cross_entropy"],
    )
    torch.testing.assert_close(mixed["kl"], call(as_objective(KL()), student, teacher, labels).components["kl"])


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.sampled_from([[16, 16, 16, 16], [1, 40, 20, 3], [64], [0, 60, 4], [7, 57]]),
    unlabelled=st.sampled_from([0, 10, 55, 64]),
    seed=st.integers(0, 2**31),
)
def test_accumulation_changes_nothing(sizes, unlabelled, seed):
    """A mean of micro-batch means weighs a row of a small or little-labelled micro-batch more than the others."""
    student, teacher, labels = batch(seed=seed, unlabelled=unlabelled)
    objective = 0.3 * CrossEntropy(0.1) + 0.9 * KL(4) + 0.2 * Divergence("jensen_shannon") + LogitMSE() + 0.1 * DKD()
    (whole,) = torch.autograd.grad(call(objective, student, teacher, labels).total, student)
    counts = objective.counts(rows_of(labels))
    accumulated = torch.zeros_like(student)
    total = 0.0
    for part in torch.split(torch.arange(64), sizes):
        value = call(objective, student[part], teacher[part], labels[part], counts=counts)
        accumulated += torch.autograd.grad(value.total, student)[0]
        total += float(value.total.detach())
    torch.testing.assert_close(accumulated, whole)
    assert total == pytest.approx(float(call(objective, student, teacher, labels).total.detach()))
    parts = [objective.counts(rows_of(labels[part])) for part in torch.split(torch.arange(64), sizes)]
    assert torch.stack(parts).sum(0).equal(counts)


def test_a_batch_without_labels_is_no_nan():
    student, teacher, labels = batch(unlabelled=64)
    value = call(0.5 * CrossEntropy() + 0.5 * KL(), student, teacher, labels)
    assert value.components["cross_entropy"] == 0
    torch.testing.assert_close(value.total.detach(), 0.5 * value.components["kl"])


def test_weights_follow_their_schedules():
    student, teacher, labels = batch()
    objective = Linear(1, 0) * KL() + Linear(0, 1) * CrossEntropy()
    for progress in (0.0, 0.25, 1.0):
        value = call(objective, student, teacher, labels, progress=progress)
        expected = (1 - progress) * value.components["kl"] + progress * value.components["cross_entropy"]
        torch.testing.assert_close(value.total.detach(), expected)


def test_what_weighs_nothing_cannot_poison_the_total():
    """0 · NaN is NaN: a term that is scheduled to come in later would stop the run before it counts."""
    student, teacher, labels = batch()
    teacher[3] = math.nan
    objective = Piecewise([[0, 0], [1, 1]]) * KL() + CrossEntropy()
    value = call(objective, student, teacher, labels, progress=0.0)
    assert value.components["kl"].isnan()
    (gradient,) = torch.autograd.grad(value.total, student)
    alone = call(as_objective(CrossEntropy()), student, None, labels)
    torch.testing.assert_close(value.total, alone.total)
    torch.testing.assert_close(gradient, torch.autograd.grad(alone.total, student)[0])
    assert call(objective, student, teacher, labels, progress=0.1).total.isnan()


def test_a_moment_without_any_weight_is_a_zero_that_can_be_differentiated():
    student, teacher, labels = batch()
    value = call(Linear(0, 1) * KL(), student, teacher, labels, progress=0.0)
    value.total.backward()
    assert value.total == 0
    assert value.components["kl"] > 0


def test_without_gradient_it_is_the_same_value():
    student, teacher, labels = batch()
    objective = CrossEntropy() + KL(4) + DIST()
    with torch.no_grad():
        evaluated = call(objective, student, teacher, labels)
    torch.testing.assert_close(evaluated.total, call(objective, student, teacher, labels).total.detach())
    assert not evaluated.total.requires_grad


def test_mixed_dtypes_add_up():
    """Stored float16 labels, a bfloat16 student, a float64 teacher: one total."""
    student, teacher, labels = batch()
    objective = CrossEntropy() + KL(4) + LogitMSE()
    expected = call(objective, student, teacher, labels).total.detach()
    for mine, theirs in (
        (torch.float32, torch.float64),
        (torch.bfloat16, torch.float16),
        (torch.float64, torch.float32),
    ):
        value = call(objective, student.detach().to(mine).requires_grad_(), teacher.to(theirs), labels)
        value.total.backward()
        assert float(value.total.detach()) == pytest.approx(float(expected), rel=2e-2)


def test_check_names_what_is_missing():
    student, teacher, labels = batch(rows=4)
    objective = CrossEntropy() + KL()
    mine, theirs, rows = Signals(Logits(student)), Signals(Logits(teacher)), rows_of(labels)
    objective.check(mine, theirs, rows)
    as_objective(CrossEntropy()).check(mine, None, rows)
    with pytest.raises(ObjectiveError, match=r"'kl' needs teacher\.logits, which nobody provides"):
        objective.check(mine, None, rows)
    with pytest.raises(ObjectiveError, match=r"'cross_entropy' needs student\.logits"):
        objective.check(Signals(), theirs, rows)
    with pytest.raises(ObjectiveError, match="'cross_entropy' needs labels"):
        objective.check(mine, theirs, {"ids": rows["ids"]})
    with pytest.raises(TeacherError, match="teacher has 9 classes, student 10"):
        objective.check(mine, Signals(Logits(teacher[:, :9])), rows)
    with pytest.raises(ObjectiveError, match="label 10 in row 2"):
        objective.check(mine, theirs, rows_of(torch.tensor([0, 1, 10, 2])))
    with pytest.raises(ObjectiveError, match="int64"):
        objective.check(mine, theirs, rows_of(labels.int()))
    with pytest.raises(ObjectiveError, match="all weights are zero"):
        (0 * KL()).check(mine, theirs, rows)


EVERYTHING = [
    {"term": "cross_entropy", "weight": 0.1, "label_smoothing": 0.1},
    {"term": "kl", "temperature": 4, "weight": {"schedule": "linear", "start": 1, "end": 0}, "standardise": True},
    {"term": "kl", "temperature": {"schedule": "piecewise", "points": [[0, 8], [0.5, 2]]}, "direction": "reverse"},
    {"term": "jensen_shannon", "beta": 0.1, "temperature": 2, "scale_by_t2": False},
    {"term": "alpha_beta", "alpha": 0.5, "beta": 0.25},
    {"term": "logit_mse", "centred": True},
    {"term": "dkd", "alpha": 1, "beta": 2, "temperature": 4},
    {"term": "dist", "beta": 2, "gamma": 2},
]


def test_a_config_and_its_description_are_one():
    objective = objective_from_config(EVERYTHING)
    assert [c.name for c in objective.components] == [
        "cross_entropy",
        "kl",
        "kl_2",
        "jensen_shannon",
        "alpha_beta",
        "logit_mse",
        "dkd",
        "dist",
    ]
    described = json.loads(json.dumps(objective.describe()))
    assert objective_from_config(described) == objective
    assert objective.components[3].term == Divergence("jensen_shannon", 2, scale_by_t2=False, beta=0.1)
    assert objective_from_config([{"term": "kl", "temperature": 4, "weight": 0.9}]) == 0.9 * KL(4)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "expected a list"),
        ("kl", "expected a list"),
        ({"term": "kl"}, "expected a list"),
        (["kl"], r"objective\.0.*no term"),
        ([{"weight": 1}], "no 'term'"),
        ([{"term": "kll"}], "did you mean 'kl'"),
        ([{"term": ["kl"]}], "unknown term"),
        ([{"term": "kl"}, {"term": "kl", "temprature": 2}], r"objective\.1.*did you mean 'temperature'"),
        ([{"term": "kl", "temperature": 0}], "temperature 0"),
        ([{"term": "kl", "temperature": "4"}], "finite number"),
        ([{"term": "kl", "temperature": {"schedule": "linear", "start": 4, "end": -1}}], "temperature -1"),
        ([{"term": "kl", "weight": -1}], "weight of 'kl'"),
        ([{"term": "kl", "weight": "1"}], "finite number"),
        ([{"term": "kl", "weight": 0}, {"term": "cross_entropy", "weight": 0}], "all weights are zero"),
        ([{"term": "kl", "direction": "sideways"}], "direction"),
        ([{"term": "jensen_shannon", "beta": 1.5}], "beta"),
        ([{"term": "jensen_shannon", "alpha": 0.5}], "no option 'alpha'"),
        ([{"term": "cross_entropy", "label_smoothing": 1}], "label_smoothing"),
    ],
)
def test_what_a_config_refuses(items, message):
    with pytest.raises(ConfigError, match=message):
        objective_from_config(items)


def test_the_package_exports_them():
    assert tutelage.KL is KL
    assert tutelage.DIST is DIST
