"""Sparse targets: their value and gradient against float64 formulas, and what each form refuses."""

import math

import numpy as np
import objective_references as reference
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.errors import ObjectiveError, TeacherError
from tutelage.objectives.definitions import DEFINITIONS, MASKED_LOG_PROB
from tutelage.objectives.divergence import row_divergence
from tutelage.objectives.sparse import log_rest, refuse_sparse, row_sparse, sparse_terms, write_kept
from tutelage.signals import SparseTargets

# every divergence that the top-k form serves: the alpha-beta ones are f-divergences where the exponents sum to 1
TOP_K = [
    ("forward_kl", {}),
    ("reverse_kl", {}),
    ("jensen_shannon", {"beta": 0.5}),
    ("jensen_shannon", {"beta": 0.003}),
    ("skew_forward_kl", {"alpha": 0.1}),
    ("skew_reverse_kl", {"alpha": 0.1}),
    ("total_variation", {}),
    ("alpha_beta", {"alpha": 0.3, "beta": 0.7}),
    ("alpha_beta", {"alpha": 1.4, "beta": -0.4}),
]
IDS = [f"{name}-{'-'.join(map(str, options.values()))}" for name, options in TOP_K]
each = pytest.mark.parametrize(("name", "options"), TOP_K, ids=IDS)

FORWARD = [
    ("forward_kl", {}, 1.0),
    ("jensen_shannon", {"beta": 0.0}, 0.25),
    ("skew_forward_kl", {"alpha": 0.0}, 1.0),
    ("alpha_beta", {"alpha": 1.0, "beta": 0.0}, 1.0),
]


def logits(rows, classes, spread=2.0, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, rows, classes, generator=generator, dtype=torch.float64) * spread
    return student.to(dtype), teacher.to(dtype)


def kept(teacher, k, temperature=1.0, unused=0):
    """The k most probable of each row; ``unused`` places are scattered among them."""
    probs, ids = (teacher.double() / temperature).softmax(-1).topk(k)
    for place in range(unused):
        at = (2 * place) % (k + place + 1)
        ids = torch.cat([ids[:, :at], torch.full_like(ids[:, :1], -1), ids[:, at:]], 1)
        probs = torch.cat([probs[:, :at], torch.zeros_like(probs[:, :1]), probs[:, at:]], 1)
    return SparseTargets(ids, probs, teacher.shape[1], temperature, "top_k")


def drawn(teacher, n=20, temperature=1.0, seed=0):
    """n independent draws a row, counted."""
    generator = torch.Generator().manual_seed(seed)
    q = (teacher.double() / temperature).softmax(-1)
    draws = torch.multinomial(q, n, replacement=True, generator=generator)
    counts = torch.zeros_like(q).scatter_add_(1, draws, torch.ones_like(draws, dtype=q.dtype))
    probs, ids = (counts / n).topk(min(n, q.shape[1]))
    entropy = torch.distributions.Categorical(probs=q).entropy()
    return SparseTargets(ids.where(probs > 0, -1), probs, q.shape[1], temperature, "sampled", entropy)


def value_and_gradient(function, student, *arguments):
    student = student.detach().clone().requires_grad_()
    value = function(student, *arguments)
    (gradient,) = torch.autograd.grad(value.sum(), student)
    return value.detach(), gradient


def sparse(name, student, targets, options):
    return value_and_gradient(lambda z: row_sparse(name, z, targets, targets.temperature, options), student)


def dense(name, student, teacher, temperature, options):
    full = {**DEFINITIONS[name].parameters, **options}
    return value_and_gradient(lambda z: row_divergence(name, z, teacher, temperature, full), student)


def joined(z, ids, temperature):
    """The distribution over the kept classes and all others as one, as logits at T, row by row in NumPy."""
    rows = []
    for row, places in zip(reference.softmax(z, temperature), ids.tolist(), strict=True):
        places = [c for c in places if c >= 0]
        others = [row[c] for c in range(len(row)) if c not in places]
        rows.append([*(row[c] for c in places), sum(others)])
    return temperature * np.log(np.array(rows))


@each
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 30.0])
def test_top_k_is_the_formula_over_k_plus_one_classes(name, options, temperature):
    """A rest that is dropped, or shared evenly, would still give a plausible loss, lower or higher than the formula's."""
    student, teacher = logits(7, 11)
    targets = kept(teacher, 4, temperature, unused=2)
    expected = reference.DIVERGENCES[name](
        joined(student.numpy(), targets.ids, temperature),
        joined(teacher.numpy(), targets.ids, temperature),
        temperature,
        **options,
    )
    value, _ = sparse(name, student, targets, options)
    np.testing.assert_allclose(value, expected, rtol=1e-8, atol=1e-13)


@pytest.mark.parametrize(("name", "options", "share"), FORWARD)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 30.0])
def test_sampled_is_the_cross_entropy_with_the_draws_less_the_entropy(name, options, share, temperature):
    """A renormalised student, or a rest counted as impossible, would bias the gradient of every step."""
    student, teacher = logits(5, 9)
    targets = drawn(teacher, 20, temperature)
    log_p = np.log(reference.softmax(student.numpy(), temperature))
    q = reference.softmax(teacher.numpy(), temperature)
    expected_value, expected_gradient = np.zeros(5), np.zeros((5, 9))
    for row in range(5):
        weights = np.zeros(9)
        for c, w in zip(targets.ids[row].tolist(), targets.probs[row].tolist(), strict=True):
            if c >= 0:
                weights[c] += w
        expected_value[row] = share * ((q[row] * np.log(q[row])).sum() - (weights * log_p[row]).sum())
        expected_gradient[row] = share * (np.exp(log_p[row]) * weights.sum() - weights) / temperature
    value, gradient = sparse(name, student, targets, options)
    np.testing.assert_allclose(value, expected_value, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-9, atol=1e-12)


def test_importance_weights_need_not_sum_to_one():
    """Σw is the factor of the student's own part of the gradient: taken for 1, weighted draws would no longer be unbiased."""
    student, _ = logits(1, 4)
    targets = SparseTargets(torch.tensor([[2, -1, 0]]), torch.tensor([[0.5, 0.0, 0.9]]), 4, 1.0, "sampled")
    _, gradient = sparse("forward_kl", student, targets, {})
    w = torch.tensor([[0.9, 0.0, 0.5, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(gradient, 1.4 * student.softmax(-1) - w, rtol=1e-6, atol=1e-7)


@each
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_gradient_of_top_k_is_that_of_its_value(name, options, temperature):
    student, teacher = logits(3, 6)
    targets = kept(teacher, 3, temperature, unused=1)
    function = lambda z: row_sparse(name, z, targets, temperature, options, 2.0)  # noqa: E731
    assert torch.autograd.gradcheck(function, (student.requires_grad_(),))


def test_the_gradient_of_sampled_targets_is_that_of_their_value():
    student, teacher = logits(3, 6)
    targets = drawn(teacher, 5, 3.0)
    assert torch.autograd.gradcheck(
        lambda z: row_sparse("forward_kl", z, targets, 3.0, {}, 2.0), (student.requires_grad_(),)
    )


@each
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_top_k_of_all_classes_is_the_dense_divergence(name, options, temperature):
    """What is left of either's mass is rounding then: taken for a class, it would add up to 100 nats of its logarithm."""
    student, teacher = logits(6, 9)
    targets = kept(teacher, 9, temperature, unused=1)
    expected = dense(name, student, teacher, temperature, options)
    torch.testing.assert_close(sparse(name, student, targets, options), expected, rtol=1e-9, atol=1e-12)
    stored = SparseTargets(targets.ids, targets.probs.half().float(), 9, temperature, "top_k")
    torch.testing.assert_close(sparse(name, student, stored, options), expected, rtol=5e-2, atol=5e-3)


@settings(max_examples=80, deadline=None)
@given(
    which=st.sampled_from(TOP_K),
    classes=st.integers(2, 30),
    k=st.integers(1, 30),
    spread=st.floats(0.1, 8),
    temperature=st.sampled_from([0.7, 1.0, 5.0, 40.0]),
    seed=st.integers(0, 2**31),
)
def test_top_k_is_a_lower_bound_of_the_dense_divergence(which, classes, k, spread, temperature, seed):
    """The documented bias. A value above the dense one would show that the rest was counted twice or lost."""
    name, options = which
    student, teacher = logits(3, classes, spread, seed)
    targets = kept(teacher, min(k, classes), temperature)
    value, gradient = sparse(name, student, targets, options)
    whole, _ = dense(name, student, teacher, temperature, options)
    assert (value <= whole * (1 + 1e-6) + 1e-9).all()
    assert (value >= 0).all()
    assert gradient.isfinite().all()
    # a gradient by logits moves no mass in sum
    torch.testing.assert_close(
        gradient.sum(-1), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-9 * float(1 + gradient.abs().max())
    )


# the total variation's gradient is a sign, and that of a rounding error is as large as any
@pytest.mark.parametrize(("name", "options"), [one for one in TOP_K if one[0] != "total_variation"])
def test_a_student_that_equals_its_teacher_has_no_gradient(name, options):
    _, teacher = logits(4, 12)
    value, gradient = sparse(name, teacher, kept(teacher, 3), options)
    torch.testing.assert_close(value, torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-10)
    torch.testing.assert_close(gradient, torch.zeros(4, 12, dtype=torch.float64), rtol=0, atol=1e-6)


@each
def test_a_teachers_rest_below_its_rounding_is_not_taken_for_impossible(name, options):
    """1 − Σ of float32 is 0 for a peaked teacher: reverse KL would then push with −log 0 at classes that are only improbable."""
    student, teacher = logits(1, 40)
    teacher[0, 0] = 26.0
    student[0, 0] = 20.0
    targets = kept(teacher, 3)
    targets = SparseTargets(targets.ids, targets.probs.float(), 40, 1.0, "top_k")
    expected, _ = dense(name, student, teacher, 1.0, options)
    value, gradient = sparse(name, student, targets, options)
    assert value.item() <= expected.item() * 1.001 + 1e-6
    assert gradient.abs().max() < 1e-4


def test_classes_that_the_teacher_masks_stay_impossible():
    """Where the least kept class has no mass, none below it has: the rest is exactly nothing, as the dense divergence sees it."""
    student, teacher = logits(2, 10)
    teacher[:, 4:] = -math.inf
    targets = kept(teacher, 6)
    targets = SparseTargets(targets.ids, targets.probs.float(), 10, 1.0, "top_k")
    value, _ = sparse("reverse_kl", student, targets, {})
    expected, _ = dense("reverse_kl", student, teacher, 1.0, {})
    # both are a floor in place of infinity, once for the rest or for each of its classes
    torch.testing.assert_close(value, expected, rtol=0.05, atol=0)


@pytest.mark.parametrize("form", ["sampled", "top_k"])
def test_a_class_that_the_student_masks_counts_as_in_the_dense_divergence(form):
    """−∞ in one row would make the whole batch's loss infinite."""
    student, _ = logits(2, 6)
    student[0, 3] = -math.inf
    targets = SparseTargets(torch.tensor([[3, 1], [3, 1]]), torch.tensor([[0.75, 0.25]] * 2), 6, 1.0, form)
    value, gradient = sparse("forward_kl", student, targets, {})
    assert value.isfinite().all()
    assert gradient.isfinite().all()
    assert value[0] == pytest.approx(-0.75 * MASKED_LOG_PROB, rel=0.05)


@pytest.mark.parametrize("form", ["sampled", "top_k"])
@pytest.mark.parametrize("who", ["student", "teacher"])
def test_nan_stays_nan(form, who):
    """A mask for unused places that swallows NaN would show a broken model as a small loss."""
    student, teacher = logits(3, 6)
    targets = drawn(teacher) if form == "sampled" else kept(teacher, 2, unused=1)
    if who == "student":
        student[1, int(teacher[1].argmin())] = math.nan
    else:
        targets.probs[1, int(targets.ids[1].argmax())] = math.nan
    value, gradient = sparse("forward_kl", student, targets, {})
    assert value[1].isnan()
    assert gradient[1].isnan().any()
    assert value[[0, 2]].isfinite().all()
    assert gradient[[0, 2]].isfinite().all()


@each
def test_a_student_with_nothing_on_the_rest_is_finite(name, options):
    """The rest's factor is a quotient by a mass that underflows: ∞ · 0 would be NaN in the gradient, and only there."""
    student, teacher = logits(2, 8, dtype=torch.float32)
    targets = kept(teacher, 2)
    student[0] = -400.0
    student[0, targets.ids[0, 0]] = 0.0
    value, gradient = sparse(name, student, targets, options)
    assert value.isfinite().all()
    assert gradient.isfinite().all()


def test_the_kept_gradient_is_written_not_added():
    """Where the student has 1e-25 on the rest its factor is 1e24: added to a · p and taken off again, the kept gradient is lost."""
    student = torch.tensor([[0.0, -1.0, -58.0, -58.0]])
    targets = SparseTargets(torch.tensor([[0, 1]]), torch.tensor([[0.3, 0.3]]), 4, 1.0, "top_k")
    _, gradient = sparse("forward_kl", student, targets, {})
    expected = student.softmax(-1) - torch.tensor([[0.3, 0.3, 0.2, 0.2]])
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def test_the_terms_are_the_gradient_of_every_class():
    """The chunked head forms the gradient of all classes from the terms alone: kept ones, and a · p for the others."""
    student, teacher = logits(4, 12)
    for targets in (kept(teacher, 3, 2.0, unused=1), drawn(teacher, 8, 2.0)):
        log_p = (student / 2.0).log_softmax(-1)
        rest = log_rest(student / 2.0, targets.ids)
        value, kept_gradient, factor = sparse_terms(
            "forward_kl", log_p.gather(1, targets.ids.clamp(min=0)), rest, targets
        )
        whole = write_kept(factor[:, None] * log_p.exp(), targets.ids, kept_gradient) / 2.0
        expected = sparse("forward_kl", student, targets, {})
        torch.testing.assert_close((value, whole), expected, rtol=1e-9, atol=1e-12)


def test_the_rest_is_found_where_one_minus_the_kept_is_zero():
    student = torch.tensor([[40.0, 0.0, 0.0, -1.0]])
    found = log_rest(student, torch.tensor([[0, -1]]))
    expected = math.log((2 + math.exp(-1)) / (math.exp(40) + 2 + math.exp(-1)))
    assert found.item() == pytest.approx(expected, rel=1e-6)
    assert log_rest(student, torch.tensor([[0, 2, 1, 3]])).item() == -math.inf


@each
@pytest.mark.parametrize("temperature", [0.3, 1.0, 100.0])
def test_float32_agrees_with_float64(name, options, temperature):
    # the spread leaves the teacher a rest that float32 can tell
    student, teacher = logits(6, 30, dtype=torch.float32, spread=min(3.0, 3.0 * temperature))
    targets = kept(teacher, 5, temperature)
    stored = SparseTargets(targets.ids, targets.probs.float(), 30, temperature, "top_k")
    value, gradient = sparse(name, student, stored, options)
    exact, exact_gradient = sparse(name, student.double(), targets, options)
    assert value.dtype == gradient.dtype == torch.float32
    torch.testing.assert_close(value.double(), exact, rtol=2e-4, atol=2e-6)
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=2e-4, atol=2e-6)


def test_half_precision_is_computed_in_float32():
    student, teacher = logits(4, 20, dtype=torch.bfloat16)
    targets = kept(teacher, 5)
    value, gradient = sparse("forward_kl", student, targets, {})
    exact, exact_gradient = sparse("forward_kl", student.float(), targets, {})
    torch.testing.assert_close(value, exact, rtol=0, atol=0)
    torch.testing.assert_close(gradient, exact_gradient.bfloat16(), rtol=0, atol=0)


@pytest.mark.parametrize("form", ["sampled", "top_k"])
def test_slices_change_nothing(form, monkeypatch):
    """A row lost or doubled at a seam would not show in the loss."""
    student, teacher = logits(103, 7, dtype=torch.float32)
    targets = drawn(teacher) if form == "sampled" else kept(teacher, 3)
    whole = sparse("forward_kl", student, targets, {})
    monkeypatch.setattr("tutelage.objectives.sparse._CPU_SLICE", 70)
    torch.testing.assert_close(sparse("forward_kl", student, targets, {}), whole, rtol=1e-6, atol=1e-7)


def test_without_an_entropy_the_value_is_a_cross_entropy():
    student, teacher = logits(3, 6)
    targets = drawn(teacher)
    bare = SparseTargets(targets.ids, targets.probs, 6, 1.0, "sampled")
    (value, gradient), (without, same) = (sparse("forward_kl", student, t, {}) for t in (targets, bare))
    torch.testing.assert_close(without - value, targets.entropy)
    torch.testing.assert_close(same, gradient, rtol=0, atol=0)


@pytest.mark.parametrize("name", sorted(DEFINITIONS))
def test_sampled_targets_serve_the_forward_kl_alone(name):
    """Any other gradient of the draws is biased by an unknown amount, and training would run all the same."""
    targets = drawn(logits(2, 5)[1])
    parameters = DEFINITIONS[name].parameters
    if name == "forward_kl":
        refuse_sparse(name, parameters, targets, 1.0)
        return
    with pytest.raises(ObjectiveError, match="linear in the teacher's probabilities"):
        refuse_sparse(name, parameters, targets, 1.0)


@pytest.mark.parametrize(("alpha", "beta"), [(0.2, 0.7), (1.0, 1.0), (0.0, 0.0)])
def test_an_alpha_beta_divergence_whose_value_depends_on_the_joining_is_refused(alpha, beta):
    """(1, 1) is half the squared distance: of a hundred classes off by ε alike, joined, it is a hundred times too large."""
    targets = kept(logits(2, 5)[1], 2)
    with pytest.raises(ObjectiveError, match=r"unless alpha \+ beta = 1"):
        row_sparse("alpha_beta", torch.zeros(2, 5), targets, 1.0, {"alpha": alpha, "beta": beta})


@pytest.mark.parametrize("form", ["sampled", "top_k"])
def test_another_temperature_is_refused(form):
    """The kept probabilities at T = 1 raised to 1/2 are not those at T = 2: the classes that are missing had a share."""
    targets = SparseTargets(torch.tensor([[0]]), torch.tensor([[0.5]]), 3, 1.0, form)
    with pytest.raises(ObjectiveError, match=r"T = 2, .* taken at T = 1"):
        row_sparse("forward_kl", torch.zeros(1, 3), targets, 2.0)


def test_other_rows_and_classes_are_refused():
    targets = kept(logits(2, 5)[1], 2)
    with pytest.raises(TeacherError, match="classes"):
        row_sparse("forward_kl", torch.zeros(2, 6), targets, 1.0)
    with pytest.raises(TeacherError, match="rows"):
        row_sparse("forward_kl", torch.zeros(3, 5), targets, 1.0)
    with pytest.raises(ObjectiveError, match="rows"):
        row_sparse("forward_kl", torch.zeros(2, 5, dtype=torch.int64), targets, 1.0)
    with pytest.raises(ObjectiveError, match="log_rest_N"):
        sparse_terms("forward_kl", torch.zeros(2, 2), None, targets)


def test_a_second_derivative_is_an_error():
    student, teacher = logits(3, 4)
    student.requires_grad_()
    value = row_sparse("forward_kl", student, drawn(teacher), 1.0).square().sum()
    (gradient,) = torch.autograd.grad(value, student, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()
