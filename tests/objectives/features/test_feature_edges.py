"""What a dead layer, a batch of one, half precision and a NaN do to each term."""

import math

import feature_references as reference
import pytest
import torch
from feature_helpers import LEARNING, RELATIONS, TERMS, draw, evaluate, fit, gradient_of, mean_of, rows_of, sides

from tutelage.errors import ObjectiveError
from tutelage.objectives import CRD, PKT, RKD, VID, AttentionTransfer, CosineHidden, Hint, SimilarityPreserving
from tutelage.objectives.features.vectors import directions
from tutelage.signals import NO_LABEL, Signals

SHAPE = (6, 4, 3, 3)
SPOILT = (
    "all zero",
    "one zero",
    "one position zero",
    "all alike",
    "two alike",
    "nearly alike",
    "opposite",
    "tiny",
    "huge",
)
each_term = pytest.mark.parametrize("make", TERMS)


def spoilt(how, dtype=torch.float32):
    values = draw(*SHAPE, dtype=dtype)
    match how:
        case "all zero":
            return torch.zeros_like(values)
        case "one zero":
            values[2] = 0.0
        case "one position zero":
            values[2, :, 1, 1] = 0.0
        case "all alike":
            values[:] = values[0].clone()
        case "two alike":
            values[3] = values[2]
        case "nearly alike":
            values[3] = values[2] * (1 + 1e-7)
        case "opposite":
            values[3] = -values[2]
        case "tiny":
            values *= 1e-30
        case "huge":
            values *= 1e15
    return values


@each_term
@pytest.mark.parametrize("whose", ["student", "teacher", "both"])
def test_degenerate_features_have_finite_values_and_gradients(make, whose):
    """A layer that a ReLU has silenced, or a picture twice in a batch, is a division by a length of 0: NaN weights."""
    for how in SPOILT:
        sound, broken = draw(*SHAPE, seed=1, dtype=torch.float32), spoilt(how)
        student = sound if whose == "teacher" else broken
        teacher = sound if whose == "student" else broken
        term = fit(make("s", "t"), sound, sound)
        assert evaluate(term, student, teacher).isfinite(), how
        gradient = gradient_of(term, student, teacher)
        assert gradient.isfinite().all(), how


def test_gradients_do_not_explode_where_directions_end():
    """An epsilon under the root in place of a case of its own makes a gradient of 1/ε at a silenced layer."""
    teacher = draw(*SHAPE, seed=1, dtype=torch.float32)
    for term in (AttentionTransfer("s", "t"), CosineHidden("s", "t"), SimilarityPreserving("s", "t"), PKT("s", "t")):
        assert gradient_of(term, torch.zeros(SHAPE), teacher).abs().max() == 0.0, term
    assert gradient_of(RKD("s", "t"), spoilt("all alike"), teacher).abs().max() == 0.0
    for how in ("two alike", "nearly alike"):
        assert gradient_of(RKD("s", "t"), spoilt(how), teacher).abs().max() < 1.0


def test_examples_that_are_alike_have_no_angles():
    """A side without a length has no direction: taken for one, a picture twice in the batch would be a false lesson."""
    student, teacher = draw(6, 5), draw(6, 5, seed=1)
    student[3] = student[2]
    expected = reference.rkd_angle(student.numpy(), teacher.numpy())
    assert mean_of(RKD("s", "t", 0.0, 1.0), student, teacher) == pytest.approx(expected)
    expected = reference.rkd_distance(teacher.numpy(), student.numpy())
    assert mean_of(RKD("s", "t", 1.0, 0.0), teacher, student) == pytest.approx(expected)


def test_a_vector_of_zeros_agrees_with_zeros_alone():
    zero, one = torch.zeros(1, 3), torch.ones(1, 3)
    assert evaluate(CosineHidden("s", "t"), zero, zero).item() == 0.0
    assert evaluate(CosineHidden("s", "t"), zero, one).item() == 1.0
    assert evaluate(CosineHidden("s", "t"), one, zero).item() == 1.0
    assert evaluate(CosineHidden("s", "t"), one, -one).item() == pytest.approx(2.0)


def test_directions():
    vectors = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-15, 0.0], [1e-25, 0.0], [math.nan, 1.0]])
    units, zero = directions(vectors)
    torch.testing.assert_close(units[:4], torch.tensor([[0.6, 0.8], [0.0, 0.0], [1.0, 0.0], [0.0, 0.0]]))
    assert zero.tolist() == [False, True, False, True, False]
    assert units[4].isnan().all()


@each_term
@pytest.mark.parametrize("examples", [0, 1, 2])
def test_small_batches(make, examples):
    """The last batch of an epoch may hold one example: a mean over no pairs is 0/0."""
    student, teacher = draw(*SHAPE, dtype=torch.float32), draw(*SHAPE, seed=1, dtype=torch.float32)
    term = fit(make("s", "t"), student, teacher)
    total = evaluate(term, student[:examples], teacher[:examples])
    assert total.isfinite()
    assert gradient_of(term, student[:examples], teacher[:examples]).isfinite().all()
    if make in (RKD, PKT) or (make is CRD and examples < 2) or (make is SimilarityPreserving and examples < 2):
        assert total.item() == pytest.approx(0.0, abs=1e-6)


@each_term
@pytest.mark.parametrize("whose", ["student", "teacher"])
@pytest.mark.parametrize("examples", [6, 2])
def test_a_nan_is_a_nan_loss(make, whose, examples):
    """A case for zero lengths, or for small batches, that swallows it would train on nothing, silently."""
    student, teacher = draw(*SHAPE), draw(*SHAPE, seed=1)
    term = fit(make("s", "t"), student, teacher)
    (student if whose == "student" else teacher)[1, 2, 1, 1] = math.nan
    assert evaluate(term, student[:examples], teacher[:examples]).isnan()


@each_term
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_or_better(make, dtype):
    """Squares of half-precision features overflow above 256, and sums over many units lose their small parts."""
    student, teacher = draw(*SHAPE).to(dtype) * 300, draw(*SHAPE, seed=1).to(dtype) * 300
    term = fit(make("s", "t"), student, teacher)
    total = evaluate(term, student, teacher)
    assert total.dtype == torch.float32
    assert total.isfinite()
    torch.testing.assert_close(total, evaluate(term, student.float(), teacher.float()))
    assert gradient_of(term, student, teacher).dtype == dtype
    if term.weights is not None:
        assert {parameter.dtype for parameter in term.weights.parameters()} == {torch.float32}


@each_term
def test_autocast_does_not_round_the_products(make):
    """Under ``bf16: true`` the loss is computed inside an autocast region, where a Gram matrix would keep 8 bits."""
    student, teacher = draw(*SHAPE, dtype=torch.float32), draw(8, 7, 3, 3, seed=1, dtype=torch.float32)[:6]
    term = fit(make("s", "t"), student, teacher)
    student.requires_grad_()
    outside = evaluate(term, student, teacher)
    with torch.autocast("cpu", torch.bfloat16):
        inside = evaluate(term, student, teacher)
        assert torch.is_autocast_enabled("cpu")
    # backward runs outside the region, as a trainer does it
    for a, b in zip(*([total, *torch.autograd.grad(total, student)] for total in (outside, inside)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@each_term
def test_float64_stays_float64(make):
    student, teacher = draw(6, 5, 2, 2), draw(6, 4, 2, 2, seed=1)
    term = fit(make("s", "t"), student, teacher)
    assert evaluate(term, student, teacher).dtype == torch.float64
    if term.weights is not None:
        assert {parameter.dtype for parameter in term.weights.parameters()} == {torch.float64}


@pytest.mark.parametrize("make", RELATIONS)
def test_relations_survive_a_large_common_part(make):
    """Features after a ReLU share most of their length: in float32 the distances would be differences of rounding."""
    exact_student, exact_teacher = (draw(8, 16, seed=seed) + 1000.0 for seed in (0, 1))
    student, teacher = exact_student.float(), exact_teacher.float()
    expected = {
        SimilarityPreserving: reference.similarity_preserving,
        RKD: lambda s, t: reference.rkd_distance(s, t) + 2 * reference.rkd_angle(s, t),
        PKT: lambda s, t: reference.pkt(s, t) / 8,
    }[make](student.double().numpy(), teacher.double().numpy())
    assert mean_of(make("s", "t"), student, teacher) == pytest.approx(expected, rel=1e-5)


@each_term
def test_unlabelled_examples_teach(make):
    """Features need no labels, and a term that counted the labelled alone would weigh too much where they are few."""
    student, teacher = draw(*SHAPE), draw(*SHAPE, seed=1)
    labels = torch.full((6,), NO_LABEL)
    term = fit(make("s", "t"), student, teacher)
    torch.testing.assert_close(evaluate(term, student, teacher, labels), evaluate(term, student, teacher))
    if make is CRD:
        named = fit(CRD("s", "t", negatives="other_classes"), student, teacher)
        torch.testing.assert_close(evaluate(named, student, teacher, labels), evaluate(term, student, teacher))


@each_term
def test_what_a_term_refuses(make):
    student, teacher = draw(6, 4, 5), draw(6, 4, 5, seed=1)
    term = make("s", "t")
    signals, said = sides(student, teacher)
    with pytest.raises(ObjectiveError, match=r'needs teacher\.features\["t"\]'):
        term(signals, None, rows_of(6))
    with pytest.raises(ObjectiveError, match=r'needs student\.features\["s"\].*there is: S, t'):
        term(Signals(features={"S": student, "t": student}), said, rows_of(6))
    with pytest.raises(ObjectiveError, match="6 rows of the student's 's' and 5 of the teacher's 't'"):
        fit(term, student, teacher[:5])
    with pytest.raises(ObjectiveError, match="6 rows of 's' for 4 examples"):
        term(signals, said, rows_of(4))
    for wrong in (torch.ones(6), torch.ones(6, 2, 2, 2, 2), torch.ones(6, 4, dtype=torch.int64)):
        with pytest.raises(ObjectiveError, match="student's 's' shows"):
            fit(term, wrong, teacher)


@pytest.mark.parametrize("make", LEARNING)
def test_weights_that_were_never_fitted_are_refused(make):
    """Made anew at each call, a projector would be random for ever, and the student chase it."""
    with pytest.raises(ObjectiveError, match=r"not fitted.*Objective\.fitted"):
        evaluate(make("s", "t"), draw(6, 5), draw(6, 5))
    for term in (Hint("s", "t"), CosineHidden("s", "t")):
        with pytest.raises(ObjectiveError, match="not fitted"):
            evaluate(term, draw(6, 4), draw(6, 5))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Hint("", "t"), "student is ''"),
        (lambda: PKT("s", 3), "teacher is 3"),
        (lambda: Hint("s", "t", projector="allways"), "did you mean 'always'"),
        (lambda: Hint("s", "t", per_unit="no"), "true or false"),
        (lambda: CosineHidden("s", "t", projector=True), "expected one of auto, always"),
        (lambda: AttentionTransfer("s", "t", power=0.5), "at least 1"),
        (lambda: AttentionTransfer("s", "t", power="2"), "finite number"),
        (lambda: AttentionTransfer("s", "t", squared=1), "true or false"),
        (lambda: RKD("s", "t", distance=-1), "at least 0"),
        (lambda: RKD("s", "t", 0, 0), "learn nothing"),
        (lambda: CRD("s", "t", temperature=0), "τ > 0"),
        (lambda: CRD("s", "t", width=1), "at least 2"),
        (lambda: CRD("s", "t", width=64.0), "whole number"),
        (lambda: CRD("s", "t", negatives="other_class"), "did you mean 'other_classes'"),
        (lambda: VID("s", "t", depth=0), "at least 1"),
        (lambda: VID("s", "t", variance=0), "expected more than 1e-05"),
        (lambda: VID("s", "t", per_unit=None), "true or false"),
    ],
)
def test_what_a_term_refuses_when_made(build, message):
    with pytest.raises(ObjectiveError, match=message):
        build()
