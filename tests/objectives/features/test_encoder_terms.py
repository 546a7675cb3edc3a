"""Relations of queries, keys and values, attention maps and one vector a text, against loops written from the papers."""

import math

import numpy as np
import pytest
import torch
from feature_helpers import draw, evaluate, fit, gradient_of, rows_of

from tutelage.errors import ObjectiveError
from tutelage.objectives import AttentionMap, CosineHidden, Patient, Relation
from tutelage.objectives.features import relation
from tutelage.signals import Signals

LENGTHS = (5, 2, 4, 1)
TERMS = (Relation("s", "t", 2), AttentionMap("s", "t"), Patient("s", "t"), Patient("s", "t", "mean"))


def softmax(scores):
    exponentials = [math.exp(score - max(scores)) for score in scores]
    return [value / sum(exponentials) for value in exponentials]


def relation_of_one(student, teacher, heads):
    """Wang et al. 2021, eq. 3–6, the tokens ``[T, D]`` of one text: the mean over relation heads and rows."""
    total = 0.0
    for head in range(heads):
        rows = []
        for side in (teacher, student):
            width = side.shape[1] // heads
            part = side[:, head * width : (head + 1) * width]
            rows.append([softmax([float(np.dot(one, other)) / math.sqrt(width) for other in part]) for one in part])
        for p, q in zip(*rows, strict=True):
            total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return total / heads / len(student)


def attention_map_of_one(student, teacher):
    """Jiao et al. 2020, eq. 7, attentions ``[heads, T, T]`` of one text."""
    heads, tokens, _ = student.shape
    squares = [
        (student[h, i, j] - teacher[h, i, j]) ** 2 for h in range(heads) for i in range(tokens) for j in range(tokens)
    ]
    return sum(squares) / len(squares)


def patient_of_one(student, teacher):
    """Sun et al. 2019, §3.2, one vector of one text at one layer."""
    lengths = [math.sqrt(sum(x * x for x in side)) for side in (student, teacher)]
    return sum((s / lengths[0] - t / lengths[1]) ** 2 for s, t in zip(student, teacher, strict=True))


def texts(width, seed, kind):
    shapes = ((n, width) if kind == "tokens" else (width, n, n) for n in LENGTHS)
    return [draw(*shape, seed=seed * 100 + place) for place, shape in enumerate(shapes)]


def padded(parts, to, garbage, left):
    """The texts as one batch ``[B, to, D]`` or ``[B, heads, to, to]``, and which tokens are real."""
    tokens = parts[0].ndim == 2
    shape = (to, parts[0].shape[1]) if tokens else (parts[0].shape[0], to, to)
    batch = torch.full((len(parts), *shape), garbage, dtype=torch.float64)
    mask = torch.zeros(len(parts), to, dtype=torch.bool)
    for row, part in enumerate(parts):
        length = part.shape[-2]
        at = slice(to - length, to) if left else slice(length)
        mask[row, at] = True
        batch[(row, at) if tokens else (row, slice(None), at, at)] = part
    return batch, mask


def reference(term, mine, theirs):
    sides = [(s.numpy(), t.numpy()) for s, t in zip(mine, theirs, strict=True)]
    match term:
        case Relation():
            return sum(relation_of_one(*pair, term.relation_heads) for pair in sides)
        case AttentionMap():
            return sum(attention_map_of_one(*pair) for pair in sides)
        case Patient(position="first"):
            return sum(patient_of_one(s[0], t[0]) for s, t in sides)
        case _:
            return sum(patient_of_one(s.mean(0), t.mean(0)) for s, t in sides)


def ask(term, student, teacher, mask=None, teacher_mask=None):
    student = student.detach().clone().requires_grad_()
    said = Signals(features={"s": student}, mask=mask), Signals(features={"t": teacher}, mask=teacher_mask)
    total, _ = term(*said, rows_of(len(student)))
    return total.detach(), *torch.autograd.grad(total, student)


def kind_of(term):
    return "attentions" if isinstance(term, AttentionMap) else "tokens"


@pytest.mark.parametrize("term", TERMS, ids=repr)
@pytest.mark.parametrize(("garbage", "left"), [(0.0, False), (1e4, True), (math.nan, False)])
def test_a_padded_batch_is_the_papers_sum_over_its_texts(term, garbage, left):
    """A formula read wrongly, or padding among the tokens, would teach something that has the paper's name and not its effect."""
    mine, theirs = texts(8, 1, kind_of(term)), texts(8, 2, kind_of(term))
    student, mask = padded(mine, 7, garbage, left)
    teacher, _ = padded(theirs, 7, garbage, left)
    total, gradient = ask(term, student, teacher, mask, mask)
    assert total.item() == pytest.approx(reference(term, mine, theirs), rel=1e-10)
    assert gradient.isfinite().all()
    real = mask if kind_of(term) == "tokens" else (mask[:, :, None] & mask[:, None, :])
    at_padding = gradient[~real] if kind_of(term) == "tokens" else gradient.movedim(1, -1)[~real]
    assert at_padding.abs().max() == 0.0
    alone = [ask(term, s[None], t[None])[1][0] for s, t in zip(mine, theirs, strict=True)]
    torch.testing.assert_close(gradient, padded(alone, 7, 0.0, left)[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("heads", [1, 2, 3, 6])
def test_relation_heads_and_widths_may_differ(heads):
    """The promise of MiniLMv2: a student of another width and another number of heads."""
    student, teacher = draw(3, 5, 6), draw(3, 5, 12, seed=1)
    expected = sum(relation_of_one(s.numpy(), t.numpy(), heads) for s, t in zip(student, teacher, strict=True))
    assert evaluate(Relation("s", "t", heads), student, teacher).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("term", TERMS, ids=repr)
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_are_those_of_the_values(term, masked):
    """Relation's gradient is written by hand: wrong by a factor, it would still go down, and to another student."""
    shape = (3, 4, 6) if kind_of(term) == "tokens" else (3, 2, 4, 4)
    student, teacher = draw(*shape), draw(*shape, seed=1)
    mask = torch.tensor([[True, True, True, False], [True] * 4, [False, True, True, False]]) if masked else None

    def value(values):
        said = Signals(features={"s": values}, mask=mask), Signals(features={"t": teacher}, mask=mask)
        return term(*said, rows_of(3))[0]

    assert torch.autograd.gradcheck(value, (student.requires_grad_(),))


@pytest.mark.parametrize("term", [*TERMS, AttentionMap("s", "t", "mean")], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_zero_with_zero_gradient_at_the_teacher(term, dtype):
    shape = (3, 4, 6) if kind_of(term) == "tokens" else (3, 2, 4, 4)
    student = draw(*shape, dtype=dtype)
    assert evaluate(term, student, student.clone()).item() == pytest.approx(0.0, abs=1e-12)
    assert gradient_of(term, student, student.clone()).abs().max() < 1e-6
    assert evaluate(term, student, draw(*shape, seed=1, dtype=dtype)).item() > 0
    assert evaluate(term, student, draw(*shape, seed=1, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("numbers", [1, 70, 200])
@pytest.mark.parametrize("masked", [False, True])
def test_some_heads_at_a_time_are_all_of_them(monkeypatch, numbers, masked):
    """A slice that is left out, or met with another's mask, would show only on batches too large for a test."""
    student, teacher = draw(3, 5, 6), draw(3, 5, 12, seed=1)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False], [False, True, True, True, True]])
    given = (mask, mask) if masked else ()
    whole = ask(Relation("s", "t", 3), student, teacher, *given)
    monkeypatch.setattr(relation, "_CPU_SLICE", numbers)
    for found, expected in zip(ask(Relation("s", "t", 3), student, teacher, *given), whole, strict=True):
        torch.testing.assert_close(found, expected)


def test_relations_are_not_kept_for_the_backward_pass():
    """48 relation heads of 32 texts of 128 tokens are 100 MB a tensor: half a dozen of them would end a training."""
    kept = []
    student, teacher = draw(2, 40, 24).requires_grad_(), draw(2, 40, 24, seed=1)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()), lambda kept: kept):
        evaluate(Relation("s", "t", 12), student, teacher)
    assert 0 < sum(kept) < 2 * 12 * 40 * 40


def test_what_a_relation_does_not_see():
    """Rotations within a part are no lesson; across parts, or a scale, they are."""
    student, teacher = draw(3, 5, 8), draw(3, 5, 8, seed=1)
    term = Relation("s", "t", 2)
    plain = evaluate(term, student, teacher)
    rotation = torch.linalg.qr(draw(4, 4, seed=2)).Q
    turned = (student.unflatten(-1, (2, 4)) @ rotation).flatten(-2)
    torch.testing.assert_close(evaluate(term, turned, teacher), plain)
    across = student @ torch.linalg.qr(draw(8, 8, seed=3)).Q
    assert evaluate(term, across, teacher).item() != pytest.approx(plain.item(), rel=1e-3)
    assert evaluate(term, 2 * student, teacher).item() != pytest.approx(plain.item(), rel=1e-3)


@pytest.mark.parametrize("term", TERMS, ids=repr)
def test_a_text_without_a_real_token_adds_nothing_but_finite_numbers(term):
    """A row of minus infinities has no softmax: one empty text would make NaN of every weight."""
    shape = (3, 4, 6) if kind_of(term) == "tokens" else (3, 2, 4, 4)
    student, teacher = draw(*shape), draw(*shape, seed=1)
    mask = torch.tensor([[True] * 4, [False] * 4, [True, True, False, False]])
    total, gradient = ask(term, student, teacher, mask, mask)
    others, _ = ask(term, student[[0, 2]], teacher[[0, 2]], mask[[0, 2]], mask[[0, 2]])
    torch.testing.assert_close(total, others)
    assert gradient[1].abs().max() == 0.0
    assert gradient.isfinite().all()


@pytest.mark.parametrize("term", TERMS, ids=repr)
def test_a_nan_is_a_nan_loss(term):
    """Swallowed with what the mask blocks, it would train on nothing."""
    shape = (3, 4, 6) if kind_of(term) == "tokens" else (3, 2, 4, 4)
    for whose in (0, 1):
        sides = [draw(*shape), draw(*shape, seed=1)]
        sides[whose][1, 0, 0] = math.nan
        assert evaluate(term, *sides).isnan()


@pytest.mark.parametrize("term", [*TERMS, Patient("s", "t", projector="always")], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(term, dtype):
    shape = (3, 4, 6) if kind_of(term) == "tokens" else (3, 2, 4, 4)
    student, teacher = draw(*shape).to(dtype), draw(*shape, seed=1).to(dtype)
    term = fit(term, student, teacher)
    with torch.autocast("cpu", torch.bfloat16):
        inside = evaluate(term, student, teacher)
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, evaluate(term, student.float(), teacher.float()), rtol=0, atol=0)
    assert gradient_of(term, student, teacher).dtype == dtype


@pytest.mark.parametrize("term", TERMS, ids=repr)
def test_batches_may_be_cut_and_the_teacher_gets_no_gradient(term):
    """Accumulated batches are added up where a term says that it is additive; a teacher that learns would come to meet it."""
    shape = (6, 4, 6) if kind_of(term) == "tokens" else (6, 2, 4, 4)
    student, teacher = draw(*shape).requires_grad_(), draw(*shape, seed=1).requires_grad_()
    whole = evaluate(term, student, teacher)
    halves = evaluate(term, student[:2], teacher[:2]) + evaluate(term, student[2:], teacher[2:])
    torch.testing.assert_close(whole, halves)
    assert term.additive
    assert evaluate(term, student[:0], teacher[:0]).item() == 0.0
    whole.backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


def test_attention_maps_of_other_numbers_of_heads():
    student, teacher = draw(2, 3, 4, 4), draw(2, 5, 4, 4, seed=1)
    expected = sum(
        attention_map_of_one(s.mean(0, keepdims=True), t.mean(0, keepdims=True))
        for s, t in zip(student.numpy(), teacher.numpy(), strict=True)
    )
    assert evaluate(AttentionMap("s", "t", "mean"), student, teacher).item() == pytest.approx(expected)


def test_one_vector_a_text_of_any_layers():
    """Pooled vectors meet tokens, widths meet through a projector, and texts may be cut into tokens otherwise."""
    student, teacher = draw(3, 5, 6), draw(3, 9, 6, seed=1)
    longer = torch.ones(3, 9, dtype=torch.bool)
    longer[:, :2] = False
    total, _ = ask(Patient("s", "t"), student, teacher, None, longer)
    expected = sum(patient_of_one(s[0], t[2]) for s, t in zip(student.numpy(), teacher.numpy(), strict=True))
    assert total.item() == pytest.approx(expected)
    pooled = evaluate(Patient("s", "t"), student, teacher[:, 0])
    torch.testing.assert_close(pooled, evaluate(Patient("s", "t"), student, teacher))
    wide = fit(Patient("s", "t"), student, draw(3, 5, 8, seed=1))
    assert "the first token of the student's 's'" in wide.adjustments()
    assert "6 → 8 wide" in wide.adjustments()
    assert evaluate(wide, student, draw(3, 5, 8, seed=1)).isfinite()
    with pytest.raises(ObjectiveError, match="was not fitted"):
        evaluate(Patient("s", "t"), student, draw(3, 5, 8, seed=1))


def test_patient_is_twice_the_cosine_loss():
    """Two terms of one thing that disagree: one of them is wrong."""
    student, teacher = draw(4, 6), draw(4, 6, seed=1)
    twice = 2 * evaluate(CosineHidden("s", "t"), student, teacher)
    torch.testing.assert_close(evaluate(Patient("s", "t"), student, teacher), twice)
    student[1] = 0.0
    assert gradient_of(Patient("s", "t"), student, teacher)[1].abs().max() == 0.0
    assert evaluate(Patient("s", "t"), student[1:2], teacher[1:2]).item() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("term", "student", "teacher", "message"),
    [
        (Relation("s", "t", 2), (3, 8), (3, 8), r"\[3, 8\].*takes queries, keys or values \[B, T, D\]"),
        (Relation("s", "t", 2), (3, 4, 8), (3, 8, 4, 4), "compares tokens with tokens"),
        (Relation("s", "t", 2), (3, 4, 8), (3, 5, 8), r"\[3, 4, 8\].*\[3, 5, 8\].*two lengths.*patient"),
        (Relation("s", "t", 5), (3, 4, 12), (3, 4, 18), "12 and 18, are multiples.*give one of 1, 2, 3, 6"),
        (Relation("s", "t", 2), (3, 1, 8), (3, 1, 8), "one token.*always 1"),
        (AttentionMap("s", "t"), (3, 2, 4, 4), (3, 6, 4, 4), "2 heads and 6 have no pairs; say heads: mean"),
        (AttentionMap("s", "t", "mean"), (3, 2, 4, 4), (3, 2, 5, 5), "of the same tokens"),
        (AttentionMap("s", "t"), (3, 2, 4, 5), (3, 2, 4, 5), r"takes attentions \[B, heads, T, T\]"),
        (AttentionMap("s", "t"), (3, 4, 4), (3, 4, 4), r"takes attentions \[B, heads, T, T\]"),
        (Patient("s", "t"), (3, 2, 4, 4), (3, 2), "takes tokens"),
    ],
)
def test_layers_that_cannot_meet(term, student, teacher, message):
    """Reshaped somehow, they would be compared place by wrong place."""
    with pytest.raises(ObjectiveError, match=message):
        fit(term, draw(*student), draw(*teacher, seed=1))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Relation("s", "t", 0), "at least 1"),
        (lambda: Relation("s", "t", 2.0), "whole number"),
        (lambda: Relation("", "t"), "student is ''"),
        (lambda: AttentionMap("s", "t", "eech"), "did you mean 'each'"),
        (lambda: Patient("s", "t", "last"), "expected one of first, mean"),
        (lambda: Patient("s", "t", projector="allways"), "did you mean 'always'"),
    ],
)
def test_what_a_term_refuses_when_made(build, message):
    with pytest.raises(ObjectiveError, match=message):
        build()
