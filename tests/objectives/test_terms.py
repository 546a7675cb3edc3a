import math

import numpy as np
import objective_references as reference
import pytest
import torch
import torch.nn.functional as F

from tutelage.errors import ObjectiveError, TeacherError
from tutelage.objectives import DIST, DKD, KL, CrossEntropy, Divergence, Linear, LogitMSE
from tutelage.objectives.response import standardised
from tutelage.signals import NO_LABEL, Logits, MixtureLogits, Signals

SOFT = [
    KL(4.0),
    KL(2.0, "reverse"),
    Divergence("jensen_shannon", 2.0, beta=0.3),
    Divergence("alpha_beta", standardise=True),
    KL(2.0, standardise=True),
    LogitMSE(),
    LogitMSE(centred=True),
    DKD(),
    DKD(standardise=True),
    DIST(temperature=4.0),
    DIST(standardise=True),
]
each_soft = pytest.mark.parametrize("term", SOFT, ids=repr)


def batch(rows=6, classes=5, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, rows, classes, generator=generator, dtype=torch.float64) * 2
    labels = torch.randint(classes, (rows,), generator=generator)
    return student.to(dtype).requires_grad_(), teacher.to(dtype), labels


def signals(values):
    return Signals(Logits(values))


def rows_of(labels):
    return {"labels": labels, "ids": torch.arange(len(labels))}


def evaluate(term, student, teacher, labels, progress=0.0):
    total, count = term(signals(student), None if teacher is None else signals(teacher), rows_of(labels), progress)
    assert total.ndim == count.ndim == 0
    assert count.dtype == torch.int64
    assert int(count) == int(term.count(rows_of(labels)))
    return total, int(count)


def gradient_of(term, student, teacher, labels):
    (gradient,) = torch.autograd.grad(evaluate(term, student, teacher, labels)[0], student)
    return gradient


def test_cross_entropy_with_and_without_smoothing():
    student, _, labels = batch()
    for smoothing in (0.0, 0.1):
        total, count = evaluate(CrossEntropy(smoothing), student, None, labels)
        expected = sum(
            reference.cross_entropy(row, label, smoothing)
            for row, label in zip(student.detach().numpy(), labels, strict=True)
        )
        assert total.item() == pytest.approx(float(expected))
        assert count == 6
        theirs = F.cross_entropy(student, labels, reduction="sum", label_smoothing=smoothing)
        torch.testing.assert_close(
            gradient_of(CrossEntropy(smoothing), student, None, labels), torch.autograd.grad(theirs, student)[0]
        )


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_uses_the_labelled_rows_alone(smoothing):
    student, _, labels = batch()
    labels[[1, 4]] = NO_LABEL
    total, count = evaluate(CrossEntropy(smoothing), student, None, labels)
    kept = labels != NO_LABEL
    expected, _ = evaluate(CrossEntropy(smoothing), student[kept], None, labels[kept])
    assert count == 4
    torch.testing.assert_close(total, expected)
    assert (gradient_of(CrossEntropy(smoothing), student, None, labels)[[1, 4]] == 0).all()


@pytest.mark.parametrize("term", [CrossEntropy(), CrossEntropy(0.1), DKD()], ids=repr)
def test_without_any_label_a_hard_term_is_zero_of_zero(term):
    """The mean over no rows is 0/0: a NaN loss from the first unlabelled batch."""
    student, teacher, labels = batch()
    labels[:] = NO_LABEL
    total, count = evaluate(term, student, teacher, labels)
    assert total.item() == 0.0
    assert count == 0
    assert (gradient_of(term, student, teacher, labels) == 0).all()


def test_smoothing_is_shared_among_the_classes_that_are_not_masked():
    """torch's own gives +inf here, as a class of probability 0 has a share of the target."""
    student, _, labels = batch()
    wide = torch.cat([student, torch.full((6, 2), -math.inf, dtype=torch.float64)], 1)
    torch.testing.assert_close(
        evaluate(CrossEntropy(0.1), wide, None, labels)[0], evaluate(CrossEntropy(0.1), student, None, labels)[0]
    )
    assert gradient_of(CrossEntropy(0.1), student, None, labels).isfinite().all()
    assert F.cross_entropy(wide, labels, label_smoothing=0.1).isinf()
    # a label that the student masks cannot be met: infinite, so that the trainer stops
    labels[0] = 6
    assert evaluate(CrossEntropy(0.1), wide, None, labels)[0].isinf()
    assert evaluate(CrossEntropy(), wide, None, labels)[0].isinf()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("term", [CrossEntropy(), CrossEntropy(0.1), *SOFT], ids=repr)
def test_half_precision_is_computed_in_float32(term, dtype):
    student, teacher, labels = batch(dtype=dtype)
    total, _ = evaluate(term, student, teacher, labels)
    exact, _ = evaluate(term, student.float(), teacher.float(), labels)
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, exact, rtol=1e-6, atol=0)
    assert gradient_of(term, student, teacher, labels).dtype == dtype


@pytest.mark.parametrize("term", [CrossEntropy(), CrossEntropy(0.1), DKD()], ids=repr)
@pytest.mark.parametrize("label", [5, -1, 10**6])
def test_a_label_outside_the_classes_is_named(term, label):
    student, teacher, labels = batch()
    labels[3] = label
    with pytest.raises(ObjectiveError, match=f"label {label} in row 3, but the student has 5 classes"):
        evaluate(term, student, teacher, labels)


def test_a_nan_student_is_a_nan_loss():
    student, teacher, labels = batch()
    broken = student.detach().clone()
    broken[2, 1] = math.nan
    for term in (CrossEntropy(), CrossEntropy(0.1), *SOFT):
        assert evaluate(term, broken, teacher, labels)[0].isnan(), term


@each_soft
def test_a_nan_teacher_is_a_nan_loss(term):
    """A mask or an epsilon that swallows it would train the student on nothing."""
    student, teacher, labels = batch()
    teacher[2, 1] = math.nan
    assert evaluate(term, student, teacher, labels)[0].isnan()


@each_soft
def test_zero_with_zero_gradient_at_the_teacher(term):
    student, _, labels = batch()
    same = student.detach().clone()
    assert evaluate(term, student, same, labels)[0].item() == pytest.approx(0, abs=1e-13)
    assert gradient_of(term, student, same, labels).abs().max() < 1e-13


@each_soft
def test_gradients_are_those_of_the_values(term):
    student, teacher, labels = batch()
    assert torch.autograd.gradcheck(lambda s: evaluate(term, s, teacher, labels)[0], (student,))


@each_soft
def test_unlabelled_rows_teach_the_soft_terms(term):
    student, teacher, labels = batch()
    labels[[0, 3]] = NO_LABEL
    _, count = evaluate(term, student, teacher, labels)
    assert count == (4 if term.name == "dkd" else 6)
    gradient = gradient_of(term, student, teacher, labels)
    assert (gradient[[0, 3]].abs().sum() > 0) == (term.name != "dkd")


@each_soft
def test_a_class_that_both_mask_is_harmless(term):
    student, teacher, labels = batch()
    with torch.no_grad():
        student[:, 4] = -math.inf
    teacher[:, 4] = -math.inf
    labels.clamp_(max=3)
    total, _ = evaluate(term, student, teacher, labels)
    without, _ = evaluate(term, student[:, :4], teacher[:, :4], labels)
    gradient = gradient_of(term, student, teacher, labels)
    assert gradient.isfinite().all()
    if term.name != "dist":  # whose intra part is a mean over classes
        torch.testing.assert_close(total, without)
    assert total.isfinite()


def test_t2_keeps_the_balance_when_the_temperature_moves():
    """Dropped on one path, or applied to the log but not to the gradient, it makes T = 8 train 64 times too weakly."""
    student, teacher, labels = batch()
    for make in (KL, lambda T, **o: Divergence("forward_kl", T, **o), lambda T, **o: DKD(temperature=T, **o)):
        scaled, plain = make(8.0), make(8.0, scale_by_t2=False)
        torch.testing.assert_close(
            evaluate(scaled, student, teacher, labels)[0], 64 * evaluate(plain, student, teacher, labels)[0]
        )
        torch.testing.assert_close(
            gradient_of(scaled, student, teacher, labels), 64 * gradient_of(plain, student, teacher, labels)
        )


def test_kl_is_a_sum_over_classes_not_a_mean():
    """Averaged over classes as well as rows it is C times too weak (the default of several published codes)."""
    student, teacher, labels = batch()
    total, _ = evaluate(KL(3.0), student, teacher, labels)
    expected = 9 * reference.forward_kl(student.detach().numpy(), teacher.numpy(), 3.0).sum()
    assert total.item() == pytest.approx(expected)
    total, _ = evaluate(KL(3.0, "reverse"), student, teacher, labels)
    assert total.item() == pytest.approx(9 * reference.reverse_kl(student.detach().numpy(), teacher.numpy(), 3.0).sum())


def test_kl_tends_to_half_the_centred_logit_mse():
    student, teacher, labels = batch(dtype=torch.float32)
    kl, _ = evaluate(KL(1e4), student, teacher, labels)
    mse, _ = evaluate(LogitMSE(centred=True), student, teacher, labels)
    assert float(kl.detach()) == pytest.approx(float(mse.detach()) / 2, rel=1e-3)


def test_logit_mse():
    student, teacher, labels = batch()
    difference = (student - teacher).detach().numpy()
    total, _ = evaluate(LogitMSE(), student, teacher, labels)
    assert total.item() == pytest.approx((difference**2).mean(-1).sum())
    total, _ = evaluate(LogitMSE(centred=True), student, teacher, labels)
    assert total.item() == pytest.approx(difference.var(-1).sum())
    shifted, _ = evaluate(LogitMSE(centred=True), student + 3, teacher, labels)
    torch.testing.assert_close(shifted, total)


def test_logit_mse_leaves_out_what_either_masks():
    student, teacher, labels = batch()
    teacher[0, 1] = -math.inf
    for centred in (False, True):
        total, _ = evaluate(LogitMSE(centred), student, teacher, labels)
        kept = [0, 2, 3, 4]
        first, _ = evaluate(LogitMSE(centred), student[:1, kept], teacher[:1, kept], labels[:1])
        others, _ = evaluate(LogitMSE(centred), student[1:], teacher[1:], labels[1:])
        torch.testing.assert_close(total, first + others)
        assert gradient_of(LogitMSE(centred), student, teacher, labels).isfinite().all()
    teacher[0] = -math.inf
    assert evaluate(LogitMSE(), student, teacher, labels)[0].isnan()


def test_dkd():
    student, teacher, labels = batch()
    total, _ = evaluate(DKD(1.5, 3.0, 4.0), student, teacher, labels)
    expected = sum(
        reference.dkd(s, t, int(y), 1.5, 3.0, 4.0)
        for s, t, y in zip(student.detach().numpy(), teacher.numpy(), labels, strict=True)
    )
    assert total.item() == pytest.approx(float(expected))


def test_dkd_with_the_teachers_own_weight_is_kl():
    """Zhao et al. 2022: forward KL = target part + (1 − q_target) · non-target part."""
    student, teacher, labels = batch(rows=1)
    rest = 1 - float(torch.softmax(teacher, -1)[0, labels[0]])
    total, _ = evaluate(DKD(1.0, rest, 1.0), student, teacher, labels)
    torch.testing.assert_close(total, evaluate(KL(), student, teacher, labels)[0])


def test_dkd_at_its_edges():
    student, teacher, labels = batch(dtype=torch.float32)
    sure = teacher * 1000
    assert gradient_of(DKD(), student, sure, labels).isfinite().all()
    with pytest.raises(ObjectiveError, match="two classes"):
        evaluate(DKD(), student[:, :1], teacher[:, :1], labels * 0)
    masked = teacher.clone()
    masked[torch.arange(6), labels] = -math.inf
    assert gradient_of(DKD(), student, masked, labels).isfinite().all()


def test_dist():
    student, teacher, labels = batch()
    total, count = evaluate(DIST(2.0, 0.5, 4.0), student, teacher, labels)
    expected = reference.dist(student.detach().numpy(), teacher.numpy(), 2.0, 0.5, 4.0)
    assert total.item() / count == pytest.approx(float(expected))


def test_dist_at_its_edges():
    """A class that nobody predicts, a batch of one, a student that starts uniform: a correlation of 0/0 each."""
    student, teacher, labels = batch(dtype=torch.float32)
    uniform = torch.zeros_like(student).requires_grad_()
    total, count = evaluate(DIST(), uniform, teacher, labels)
    assert total.item() / count == pytest.approx(2.0)
    assert gradient_of(DIST(), uniform, teacher, labels).isfinite().all()
    one, _ = evaluate(DIST(0.0, 1.0), student[:1], teacher[:1], labels[:1])
    assert one.item() == 0.0
    wide = [torch.cat([x, torch.full((6, 1), -math.inf)], 1) for x in (student, student.detach())]
    assert evaluate(DIST(), *wide, labels)[0].item() == pytest.approx(0.0, abs=1e-6)
    # at a high temperature the columns hardly vary: an epsilon in the quotient would call them uncorrelated
    hot, _ = evaluate(DIST(temperature=1e4, scale_by_t2=False), student * 3, student.detach() * 2, labels)
    assert hot.item() < 1e-3


def test_standardised_rows():
    student, _, _ = batch()
    np.testing.assert_allclose(standardised(student.detach()), reference.standardised(student.detach().numpy()))
    masked = torch.cat([student, torch.full((6, 1), -math.inf, dtype=torch.float64)], 1)
    torch.testing.assert_close(standardised(masked)[:, :-1], standardised(student))
    assert (standardised(masked)[:, -1] == -math.inf).all()
    lowest = torch.cat([student.float(), torch.full((6, 1), torch.finfo(torch.float32).min)], 1)
    assert (standardised(lowest)[:, -1] == -math.inf).all()
    # a row that is masked throughout stays one, and every divergence of it is NaN
    assert (standardised(torch.full((1, 3), -math.inf)) == -math.inf).all()
    broken = standardised(torch.tensor([[1.0, math.nan, 2.0]]))
    assert broken.isnan().any()


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e4])
def test_a_constant_row_is_standardised_to_zeros(constant):
    """A zero-initialised head gives one: divided by its deviation, 0/0 is NaN and 0/ε a gradient of 1/ε."""
    student = torch.full((2, 7), constant, requires_grad=True)
    _, teacher, labels = batch(2, 7, dtype=torch.float32)
    assert (standardised(student).abs() < 1e-2).all()
    gradient = gradient_of(KL(2.0, standardise=True), student, teacher, labels)
    assert gradient.isfinite().all()
    assert gradient.abs().max() < 10


def test_standardised_terms_see_neither_shift_nor_spread():
    student, teacher, labels = batch()
    for term in (KL(2.0, standardise=True), Divergence("reverse_kl", standardise=True), DKD(standardise=True)):
        moved = evaluate(term, 3 * student + 5, teacher, labels)[0]
        torch.testing.assert_close(moved, evaluate(term, student, teacher, labels)[0])


def test_an_ensemble_is_mixed_at_the_temperature_asked_for():
    """The mean of the members' logits, or their mixture at T = 1, is another distribution at T = 4, silently."""
    student, teacher, labels = batch()
    members = torch.stack([teacher, teacher.flip(1)])
    weights = torch.tensor([0.3, 0.7], dtype=torch.float64)
    mixture = Signals(MixtureLogits(members, weights))
    total, _ = KL(4.0)(signals(student), mixture, rows_of(labels))
    p = reference.softmax(student.detach().numpy(), 4.0)
    q = 0.3 * reference.softmax(members[0].numpy(), 4.0) + 0.7 * reference.softmax(members[1].numpy(), 4.0)
    assert total.item() == pytest.approx(16 * reference.kl(q, p).sum())


def test_a_temperature_may_follow_a_schedule():
    student, teacher, labels = batch()
    for progress, temperature in ((0.0, 8.0), (0.5, 4.5), (1.0, 1.0)):
        for scheduled, fixed in (
            (KL(Linear(8, 1)), KL(temperature)),
            (Divergence("jensen_shannon", Linear(8, 1)), Divergence("jensen_shannon", temperature)),
            (DKD(temperature=Linear(8, 1)), DKD(temperature=temperature)),
            (DIST(temperature=Linear(8, 1)), DIST(temperature=temperature)),
        ):
            a, b = (evaluate(t, student, teacher, labels, progress)[0] for t in (scheduled, fixed))
            torch.testing.assert_close(a, b)


@each_soft
def test_what_a_soft_term_refuses(term):
    student, teacher, labels = batch()
    with pytest.raises(ObjectiveError, match=r"needs teacher\.logits"):
        evaluate(term, student, None, labels)
    with pytest.raises(ObjectiveError, match=r"needs student\.logits"):
        term(Signals(), signals(teacher), rows_of(labels))
    with pytest.raises(TeacherError, match="teacher has 4 classes, student 5"):
        evaluate(term, student, teacher[:, :4], labels)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KL(0), "temperature 0"),
        (lambda: KL(-1), "temperature -1"),
        (lambda: KL("4"), "finite number"),
        (lambda: KL(Linear(4, 0)), "temperature 0"),
        (lambda: KL(direction="backward"), "forward"),
        (lambda: KL(scale_by_t2="no"), "scale_by_t2"),
        (lambda: CrossEntropy(1.0), "label_smoothing"),
        (lambda: CrossEntropy(Linear(0.1, 0)), "schedule"),
        (lambda: Divergence("jensen_shanon"), "did you mean 'jensen_shannon'"),
        (lambda: Divergence("jensen_shannon", betta=0.5), "did you mean 'beta'"),
        (lambda: Divergence("forward_kl", beta=0.5), "none of its own"),
        (lambda: Divergence("jensen_shannon", beta=2), "beta"),
        (lambda: Divergence("jensen_shannon", beta="x"), "finite number"),
        (lambda: DKD(alpha=-1), "alpha"),
        (lambda: DKD(alpha=0, beta=0), "learn nothing"),
        (lambda: DIST(temperature=0), "temperature"),
        (lambda: LogitMSE(centred=1), "true or false"),
    ],
)
def test_what_a_term_refuses_when_made(make, message):
    with pytest.raises(ObjectiveError, match=message):
        make()


def test_terms_are_values():
    assert KL(4) == KL(temperature=4.0)
    assert hash(KL(4)) == hash(KL(4.0))
    assert KL(4) != KL(4, "reverse")
    assert Divergence("jensen_shannon") == Divergence("jensen_shannon", beta=0.5)
    assert Divergence("jensen_shannon").name == "jensen_shannon"
    assert eval(repr(Divergence("alpha_beta", 2, alpha=0.1))) == Divergence("alpha_beta", 2, alpha=0.1)
    for term in (CrossEntropy(), *SOFT):
        assert eval(repr(term)) == term
