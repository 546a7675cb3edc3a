import math
from itertools import product

import numpy as np
import objective_references as reference
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.errors import ObjectiveError, TeacherError
from tutelage.objectives import divergence as D
from tutelage.objectives.definitions import DEFINITIONS, MASKED_LOG_PROB, Pair, pair_of

NAMES = sorted(DEFINITIONS)
SETTINGS = [
    *[(name, {}) for name in NAMES],
    ("jensen_shannon", {"beta": 0.1}),
    ("jensen_shannon", {"beta": 0.97}),
    ("skew_forward_kl", {"alpha": 0.0}),
    ("skew_forward_kl", {"alpha": 0.8}),
    ("skew_reverse_kl", {"alpha": 0.0}),
    ("skew_reverse_kl", {"alpha": 0.8}),
    ("alpha_beta", {"alpha": 1.0, "beta": 0.0}),
    ("alpha_beta", {"alpha": 0.0, "beta": 1.0}),
    ("alpha_beta", {"alpha": 0.0, "beta": 0.5}),
    ("alpha_beta", {"alpha": 0.7, "beta": 0.0}),
    ("alpha_beta", {"alpha": 0.5, "beta": -0.5}),
    ("alpha_beta", {"alpha": -0.5, "beta": 0.5}),
    ("alpha_beta", {"alpha": 0.0, "beta": 0.0}),
    ("alpha_beta", {"alpha": 1.3, "beta": 0.4}),
    ("alpha_beta", {"alpha": -0.4, "beta": 1.1}),
]
IDS = [f"{name}-{'-'.join(f'{k}={v}' for k, v in options.items())}" for name, options in SETTINGS]
each = pytest.mark.parametrize(("name", "options"), SETTINGS, ids=IDS)
each_name = pytest.mark.parametrize("name", NAMES)


def logits(rows, classes, spread=2.0, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, rows, classes, generator=generator, dtype=torch.float64) * spread
    return student.to(dtype), teacher.to(dtype)


def value_and_gradient(name, student, teacher, temperature=1.0, **options):
    student = student.detach().clone().requires_grad_()
    value = getattr(D, name)(student, teacher, temperature, **options)
    (gradient,) = torch.autograd.grad(value.sum(), student)
    return value.detach(), gradient


@each
def test_equals_the_published_formula(name, options):
    student, teacher = logits(7, 11)
    for temperature in (0.5, 1.0, 4.0, 30.0):
        expected = reference.DIVERGENCES[name](student.numpy(), teacher.numpy(), temperature, **options)
        found = getattr(D, name)(student, teacher, temperature, **options)
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-13, err_msg=f"T = {temperature}")


@each
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_gradient_is_that_of_the_value(name, options, temperature):
    student, teacher = logits(3, 5)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: getattr(D, name)(s, teacher, temperature, **options), (student,))


@each
def test_phi_is_the_derivative_by_p(name, options):
    """φ may differ from ∂D/∂p by a constant in each row: p ⊙ (φ − ⟨p, φ⟩) does not see it."""
    student, teacher = logits(1, 6)
    pair = pair_of(student, teacher, 1.0, torch.float64)
    parameters = {**DEFINITIONS[name].parameters, **options}
    _, p_phi = DEFINITIONS[name].terms(Pair(*(x.clone() for x in pair)), parameters)
    derivative: list[float] = []
    for c in range(6):
        step = 1e-4 * float(pair.p_NC[0, c])
        ends = []
        for sign in (1, -1):
            p = pair.p_NC.clone()
            p[0, c] += sign * step
            moved = Pair(p.log(), p, pair.log_q_NC.clone(), pair.q_NC.clone())
            ends.append(DEFINITIONS[name].terms(moved, parameters)[0].item())
        derivative.append((ends[0] - ends[1]) / (2 * step))
    phi = (p_phi / pair.p_NC)[0].numpy()
    difference = phi - np.array(derivative)
    np.testing.assert_allclose(difference, difference.mean(), atol=1e-7 * np.abs(phi).max())


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    rows=st.integers(1, 5),
    classes=st.integers(1, 9),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    teacher_dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
    exponent=st.floats(-3, 4),
    spread=st.floats(0, 30),
    seed=st.integers(0, 2**31),
    masked=st.sampled_from(["none", "both", "student", "teacher"]),
)
def test_finite_and_never_negative_whatever_comes_in(
    name, rows, classes, dtype, teacher_dtype, exponent, spread, seed, masked
):
    student, teacher = logits(rows, classes, spread, seed)
    student, teacher = student.to(dtype), teacher.to(teacher_dtype)
    if classes > 1:
        for who, values in (("student", student), ("teacher", teacher)):
            if masked in ("both", who):
                values[:, 0] = -math.inf
    value, gradient = value_and_gradient(name, student, teacher, 10**exponent)
    assert value.dtype == torch.promote_types(torch.promote_types(dtype, teacher_dtype), torch.float32)
    assert gradient.dtype == dtype
    assert value.isfinite().all()
    assert gradient.isfinite().all()
    assert (value >= 0).all()


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    rows=st.integers(1, 4),
    classes=st.integers(2, 40),
    exponent=st.floats(-1, 4),
    seed=st.integers(0, 2**31),
)
def test_float32_agrees_with_float64(name, rows, classes, exponent, seed):
    student, teacher = logits(rows, classes, 3.0, seed, torch.float32)
    value, gradient = value_and_gradient(name, student, teacher, 10**exponent)
    exact_value, exact_gradient = value_and_gradient(name, student.double(), teacher.double(), 10**exponent)
    torch.testing.assert_close(value.double(), exact_value, rtol=2e-4, atol=1e-6 * float(exact_value.max()))
    if name != "total_variation":  # whose gradient jumps where p = q
        scale = float(exact_gradient.abs().max())
        torch.testing.assert_close(gradient.double(), exact_gradient, rtol=1e-3, atol=1e-5 * scale)


@each
def test_zero_with_zero_gradient_where_the_student_equals_the_teacher(name, options):
    dtypes = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    for case in product(dtypes, (1e-3, 1.0, 4.0, 1e4)):
        dtype, temperature = case
        student, _ = logits(6, 13, 4.0, dtype=dtype)
        student[2, 5] = -math.inf
        value, gradient = value_and_gradient(name, student, student.clone(), temperature, **options)
        assert (value == 0).all(), case
        assert (gradient == 0).all(), case


@each
def test_zero_nowhere_else(name, options):
    student, teacher = logits(50, 5)
    assert (getattr(D, name)(student, teacher, **options) > 1e-4).all()
    # another additive constant in a row is the same distribution
    shifted = getattr(D, name)(student + torch.arange(50.0)[:, None], student, **options)
    assert (shifted < 1e-12).all()


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl"])
@pytest.mark.parametrize("classes", [10, 1000])
def test_at_a_high_temperature_kl_is_half_the_centred_logit_mse(name, classes):
    """In plain float32 the difference of two nearly uniform softmaxes is rounding: at T = 1e4 the loss would be noise."""
    student, teacher = logits(16, classes, dtype=torch.float32)
    temperature = 1e4
    value, gradient = value_and_gradient(name, student, teacher, temperature)
    difference = (student - teacher).double()
    centred = difference - difference.mean(-1, keepdim=True)
    torch.testing.assert_close(value.double() * temperature**2, 0.5 * centred.square().mean(-1), rtol=1e-3, atol=0)
    scale = float(centred.abs().max()) / classes
    torch.testing.assert_close(gradient.double() * temperature**2, centred / classes, rtol=1e-3, atol=1e-3 * scale)


def test_jensen_shannon_has_no_cliff_at_its_ends():
    """The published JSD fades as β → 0 while β = 0 is taken for the full KL: β = 1e-3 would train a thousandth as fast."""
    student, teacher = logits(8, 10, dtype=torch.float32)
    for end, towards, limit in ((0.0, 1.0, "forward_kl"), (1.0, -1.0, "reverse_kl")):
        value, gradient = value_and_gradient(limit, student, teacher)
        for distance in (0.0, 1e-300, 1e-12, 1e-6):
            near, near_gradient = value_and_gradient("jensen_shannon", student, teacher, beta=end + towards * distance)
            torch.testing.assert_close(near, value / 4, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(near_gradient, gradient / 4, rtol=1e-3, atol=5e-5)
        previous = value / 4
        for distance in (1e-6, 1e-4, 1e-3, 1e-2, 0.1):
            exact = value_and_gradient(
                "jensen_shannon", student.double(), teacher.double(), beta=end + towards * distance
            )
            near, near_gradient = value_and_gradient("jensen_shannon", student, teacher, beta=end + towards * distance)
            torch.testing.assert_close(near.double(), exact[0], rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(near_gradient.double(), exact[1], rtol=1e-3, atol=1e-6)
            assert (near - previous).abs().max() < 2 * distance**0.5 * previous.max()


def test_jensen_shannon_continues_across_one_half():
    student, teacher = logits(8, 10)
    below, above = (value_and_gradient("jensen_shannon", student, teacher, beta=0.5 + e) for e in (-1e-9, 1e-9))
    torch.testing.assert_close(below, above, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "options"), [("skew_forward_kl", {"alpha": 1e-6}), ("skew_reverse_kl", {"alpha": 1e-6})]
)
def test_a_vanishing_skew_is_the_plain_kl(name, options):
    student, teacher = logits(8, 10, dtype=torch.float32)
    near, plain = value_and_gradient(name, student, teacher, **options), value_and_gradient(name[5:], student, teacher)
    torch.testing.assert_close(near, plain, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("distance", [1e-3, 1e-6, 1e-8, 1e-10])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.0), (0.0, 1.0), (0.6, -0.6), (0.0, 0.0)])
def test_alpha_beta_tends_to_its_limits(alpha, beta, distance):
    """The quotient by αβ(α+β) cancels to nothing near a limit: at α = 1e-8 the naive formula is wrong in every digit."""
    student, teacher = logits(8, 10, dtype=torch.float32)
    at = value_and_gradient("alpha_beta", student, teacher, alpha=alpha, beta=beta)
    near = value_and_gradient("alpha_beta", student, teacher, alpha=alpha + distance, beta=beta + distance)
    for exact, close in zip(at, near, strict=True):
        assert (exact - close).abs().max() <= (30 * distance + 1e-5) * max(1.0, float(exact.abs().max()))


def test_alpha_beta_names_its_special_cases():
    student, teacher = logits(8, 10)
    forward = D.alpha_beta(student, teacher, alpha=1.0, beta=0.0)
    torch.testing.assert_close(forward, D.forward_kl(student, teacher))
    torch.testing.assert_close(D.alpha_beta(student, teacher, alpha=0.0, beta=1.0), D.reverse_kl(student, teacher))
    roots = student.softmax(-1).sqrt() - teacher.softmax(-1).sqrt()
    hellinger = D.alpha_beta(student, teacher, alpha=0.5, beta=0.5)
    torch.testing.assert_close(hellinger, 2 * roots.square().sum(-1))


@each
def test_a_class_that_both_mask_adds_nothing(name, options):
    """−∞ − (−∞) and 0 · (−∞) are NaN: one masked class would turn the loss of the row into NaN."""
    student, teacher = logits(4, 6)
    value, gradient = value_and_gradient(name, student, teacher, 2.0, **options)
    wide = [torch.cat([x, torch.full((4, 1), -math.inf, dtype=x.dtype)], 1) for x in (student, teacher)]
    masked_value, masked_gradient = value_and_gradient(name, *wide, 2.0, **options)
    torch.testing.assert_close(masked_value, value)
    torch.testing.assert_close(masked_gradient[:, :-1], gradient)
    assert (masked_gradient[:, -1] == 0).all()


@each
def test_a_class_that_one_masks_is_finite(name, options):
    for case in product(("student", "teacher"), (1e-3, 1.0, 1e4), (-math.inf, torch.finfo(torch.float32).min)):
        who, temperature, mask = case
        student, teacher = logits(4, 6, dtype=torch.float32)
        (student if who == "student" else teacher)[:, 2] = mask
        value, gradient = value_and_gradient(name, student, teacher, temperature, **options)
        assert value.isfinite().all(), case
        assert gradient.isfinite().all(), case


def test_the_floor_of_a_mask_is_the_documented_one():
    student, teacher = torch.zeros(1, 2), torch.tensor([[0.0, -math.inf]])
    half = 0.5 * (math.log(0.5) - MASKED_LOG_PROB) + 0.5 * math.log(0.5)
    assert float(D.reverse_kl(student, teacher)) == pytest.approx(half)
    assert float(D.forward_kl(teacher, student)) == pytest.approx(half)
    # no floor where the true value is finite
    assert float(D.forward_kl(student, teacher)) == pytest.approx(math.log(2))
    _, gradient = value_and_gradient("reverse_kl", student, teacher)
    assert gradient[0, 1] > 20  # away from what the teacher forbids


@each_name
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("who", ["student", "teacher"])
def test_nan_stays_nan(name, bad, who):
    """A floor or a mask that swallows NaN (clamps, torch.sign, TRL's masks) shows a broken teacher as a zero loss."""
    student, teacher = logits(3, 4, dtype=torch.float32)
    (student if who == "student" else teacher)[1, 2] = bad
    value, gradient = value_and_gradient(name, student, teacher)
    assert value[1].isnan()
    assert gradient[1].isnan().any()
    assert value[[0, 2]].isfinite().all()
    assert gradient[[0, 2]].isfinite().all()


@each_name
@pytest.mark.parametrize("who", ["student", "teacher", "both"])
def test_a_row_that_is_masked_throughout_is_nan(name, who):
    """It has no distribution: zero would be the loss of a perfect student."""
    student, teacher = logits(2, 4, dtype=torch.float32)
    for side, values in (("student", student), ("teacher", teacher)):
        if who in (side, "both"):
            values[0] = -math.inf
    value = getattr(D, name)(student, teacher)
    assert value[0].isnan()
    assert value[1].isfinite()


@each_name
def test_half_precision_is_computed_in_float32(name):
    """A softmax in bfloat16 has 3 digits: 4-23% of gradient error was seen in published code."""
    student, teacher = logits(8, 50, dtype=torch.bfloat16)
    value, gradient = value_and_gradient(name, student, teacher, 2.0)
    exact, exact_gradient = value_and_gradient(name, student.float(), teacher.float(), 2.0)
    torch.testing.assert_close(value, exact, rtol=0, atol=0)
    torch.testing.assert_close(gradient, exact_gradient.bfloat16(), rtol=0, atol=0)


@each_name
def test_autocast_does_not_lower_the_precision(name):
    student, teacher = logits(8, 50, dtype=torch.float32)
    plain = value_and_gradient(name, student, teacher, 2.0)
    with torch.autocast("cpu", torch.bfloat16):
        cast = value_and_gradient(name, student, teacher, 2.0)
    torch.testing.assert_close(cast, plain, rtol=0, atol=0)


@each_name
def test_slices_change_nothing(name, monkeypatch):
    """Rows are computed in slices that fit a cache: a row lost or doubled at a seam would not show in the loss."""
    student, teacher = logits(103, 7, dtype=torch.float32)
    whole = value_and_gradient(name, student, teacher, 2.0)
    monkeypatch.setattr(D, "_CPU_SLICE", 70)
    torch.testing.assert_close(value_and_gradient(name, student, teacher, 2.0), whole, rtol=1e-6, atol=1e-7)


def test_no_gradient_reaches_the_teacher():
    student, teacher = logits(3, 4)
    student.requires_grad_()
    teacher.requires_grad_()
    D.forward_kl(student, teacher).sum().backward()
    assert teacher.grad is None
    assert student.grad is not None


def test_a_second_derivative_is_an_error():
    """The saved gradient is a constant: differentiated again, it would give a plausible number."""
    student, teacher = logits(3, 4)
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(D.forward_kl(student, teacher).square().sum(), student, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()


def test_inputs_are_left_as_they_are():
    student, teacher = logits(3, 4)
    before = student.clone(), teacher.clone()
    for name in NAMES:
        value_and_gradient(name, student, teacher, 2.0)
        getattr(D, name)(student, teacher, 1.0)
    torch.testing.assert_close((student, teacher), before, rtol=0, atol=0)


def test_no_rows_give_no_values():
    assert D.forward_kl(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0,)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_a_temperature_must_be_positive(temperature):
    with pytest.raises(ObjectiveError, match="temperature"):
        D.forward_kl(torch.zeros(2, 3), torch.zeros(2, 3), temperature)


def test_other_classes_are_refused():
    """Broadcasting, padding or truncating would compare other classes with each other."""
    with pytest.raises(TeacherError, match=r"teacher has 32,000 classes, student 32,100"):
        D.forward_kl(torch.zeros(1, 32100), torch.zeros(1, 32000))
    with pytest.raises(TeacherError, match="rows"):
        D.forward_kl(torch.zeros(1, 3), torch.zeros(2, 3))
    with pytest.raises(ObjectiveError, match=r"rows \[N, C\]"):
        D.forward_kl(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4))
    with pytest.raises(ObjectiveError, match="floating"):
        D.forward_kl(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3))


@pytest.mark.parametrize("beta", [-0.1, 1.1, math.nan])
def test_a_mixing_weight_must_be_one(beta):
    with pytest.raises(ObjectiveError, match="beta"):
        D.jensen_shannon(torch.zeros(2, 3), torch.zeros(2, 3), beta=beta)


@pytest.mark.parametrize("alpha", [-0.1, 1.0, math.nan])
def test_a_skew_must_leave_something_of_the_student(alpha):
    with pytest.raises(ObjectiveError, match="alpha"):
        D.skew_forward_kl(torch.zeros(2, 3), torch.zeros(2, 3), alpha=alpha)
    with pytest.raises(ObjectiveError, match="alpha"):
        D.skew_reverse_kl(torch.zeros(2, 3), torch.zeros(2, 3), alpha=alpha)


def test_alpha_beta_takes_finite_exponents():
    with pytest.raises(ObjectiveError, match="alpha"):
        D.alpha_beta(torch.zeros(2, 3), torch.zeros(2, 3), alpha=math.inf)
