"""What a batch was padded to changes no term: not its value, not a gradient, whatever stands at the padding."""

import math

import feature_references as reference
import pytest
import torch
from feature_helpers import RELATIONS, TERMS, draw, rows_of

from tutelage.errors import ObjectiveError
from tutelage.objectives import CRD, PKT, RKD, VID, AttentionTransfer, CosineHidden, Hint, SimilarityPreserving
from tutelage.signals import Signals

LENGTHS = (5, 2, 7, 3, 1, 6)
WIDE, TO = 4, 6
ADDITIVE = (
    Hint("s", "t"),
    Hint("s", "t", projector="always", per_unit=True),
    CosineHidden("s", "t"),
    AttentionTransfer("s", "t"),
    AttentionTransfer("s", "t", power=1.5, squared=True),
    VID("s", "t", depth=2),
    VID("s", "t", depth=2, per_unit=True),
)
TOGETHER = (*(make("s", "t") for make in RELATIONS), CRD("s", "t", width=8))
KINDS = ("tokens", "attentions")


def texts(width, seed, kind="tokens"):
    """What a layer shows of each text alone, ``[1, T, width]`` or ``[1, width, T, T]``."""
    shapes = ((1, n, width) if kind == "tokens" else (1, width, n, n) for n in LENGTHS)
    return [draw(*shape, seed=seed * 100 + place) for place, shape in enumerate(shapes)]


def padded(parts, to=7, garbage=0.0, left=False):
    """The texts as one batch of ``to`` tokens, and which of them are real."""
    tokens = parts[0].ndim == 3
    shape = (to, parts[0].shape[2]) if tokens else (parts[0].shape[1], to, to)
    batch = torch.full((len(parts), *shape), garbage, dtype=torch.float64)
    mask = torch.zeros(len(parts), to, dtype=torch.bool)
    for row, part in enumerate(parts):
        length = part.shape[1] if tokens else part.shape[2]
        at = slice(to - length, to) if left else slice(length)
        mask[row, at] = True
        if tokens:
            batch[row, at] = part[0].detach()
        else:
            batch[row, :, at, at] = part[0].detach()
    return batch, mask


def leaf(values):
    return values.detach().clone().requires_grad_()


def ask(term, student, teacher, mask=None, teacher_mask=None):
    """A term's sum, and its gradients at the student's features and at its own weights."""
    student = leaf(student)
    said = Signals(features={"s": student}, mask=mask), Signals(features={"t": teacher}, mask=teacher_mask)
    total, count = term(*said, rows_of(len(student)))
    assert int(count) == len(student)
    learnt = list(term.weights.parameters()) if term.weights is not None else []
    return total.detach(), *torch.autograd.grad(total, [student, *learnt])


def fit(term, student, teacher, mask=None, teacher_mask=None):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return term.fitted(
            Signals(features={"s": student}, mask=mask), Signals(features={"t": teacher}, mask=teacher_mask)
        )


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("term", ADDITIVE, ids=repr)
@pytest.mark.parametrize(("garbage", "left"), [(1e4, False), (math.nan, False), (-1e4, True)])
def test_a_padded_batch_is_the_sum_of_its_texts_alone(term, kind, garbage, left):
    """A mean over what is mostly padding is a fraction of the loss, and the gradient teaches how to pad."""
    mine, theirs = texts(WIDE, 1, kind), texts(TO, 2, kind)
    alone = fit(term, mine[0], theirs[0])
    each = [ask(alone, s, t) for s, t in zip(mine, theirs, strict=True)]
    student, mask = padded(mine, 9, garbage, left)
    teacher, _ = padded(theirs, 9, garbage, left)
    total, gradient, *of_weights = ask(alone, student, teacher, mask, mask.clone())
    close(total, sum(one[0] for one in each))
    close(gradient, padded([one[1] for one in each], 9, 0.0, left)[0])
    for place, found in enumerate(of_weights, start=2):
        close(found, sum(one[place] for one in each))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("term", [*ADDITIVE, *TOGETHER], ids=repr)
@pytest.mark.parametrize("left", [False, True])
def test_more_padding_changes_nothing(term, kind, left):
    """Each epoch shuffles a text beside others, and pads it to other lengths: the lesson would be another one each time."""
    mine, theirs = texts(WIDE, 1, kind), texts(TO, 2, kind)
    results = []
    for to, garbage in ((7, 0.0), (9, 1e4), (12, math.nan)):
        student, mask = padded(mine, to, garbage, left)
        teacher, _ = padded(theirs, to, -garbage, left)
        fitted = fit(term, student, teacher, mask, mask)
        total, gradient, *of_weights = ask(fitted, student, teacher, mask, mask)
        own = gradient[:, :, mask.any(0)] if kind == "attentions" else gradient
        own = own[..., mask.any(0)] if kind == "attentions" else own[:, mask.any(0)]
        results.append((total, own, *of_weights))
        assert gradient.count_nonzero() == own.count_nonzero()
    for result in results[1:]:
        for found, expected in zip(result, results[0], strict=True):
            close(found, expected)


def test_a_mean_over_no_padding_is_the_paper_s():
    """Equal shares by construction would agree with themselves if both took the wrong mean."""
    mine, theirs = texts(WIDE, 1), texts(WIDE, 2)
    expected = sum(reference.cosine_hidden(s[0].numpy(), t[0].numpy()) for s, t in zip(mine, theirs, strict=True))
    student, mask = padded(mine, 9, 1e4)
    teacher, _ = padded(theirs, 9, 1e4)
    assert ask(CosineHidden("s", "t"), student, teacher, mask, mask)[0].item() == pytest.approx(expected)
    expected = sum(reference.hint(s[0].numpy(), t[0].numpy()) / s.numel() for s, t in zip(mine, theirs, strict=True))
    assert ask(Hint("s", "t", per_unit=True), student, teacher, mask, mask)[0].item() == pytest.approx(expected)


@pytest.mark.parametrize("term", [SimilarityPreserving("s", "t"), RKD("s", "t"), PKT("s", "t")], ids=repr)
def test_relations_are_those_of_texts_with_zeros_for_padding(term):
    """Padding that is not zero would make all short texts neighbours of each other; tokenizers may differ, each side has its own."""
    of = {
        "similarity_preserving": lambda s, t: len(s) * reference.similarity_preserving(s, t),
        "rkd": lambda s, t: len(s) * (reference.rkd_distance(s, t) + 2 * reference.rkd_angle(s, t)),
        "pkt": reference.pkt,
    }[term.name]
    mine, theirs = texts(WIDE, 1), list(reversed(texts(TO, 2)))
    expected = of(padded(mine)[0].numpy(), padded(theirs, 8)[0].numpy())
    student, mask = padded(mine, 9, 1e4)
    teacher, teacher_mask = padded(theirs, 11, math.nan)
    assert ask(term, student, teacher, mask, teacher_mask)[0].item() == pytest.approx(expected)


def test_contrast_takes_the_mean_over_each_side_s_own_words():
    """Divided by the padded length, short texts would be short vectors that no map can tell apart."""
    mine, theirs = texts(WIDE, 1), list(reversed(texts(TO, 2)))
    student, mask = padded(mine, 9, 1e4)
    teacher, teacher_mask = padded(theirs, 11, math.nan)
    term = fit(CRD("s", "t", width=8), student, teacher, mask, teacher_mask)
    means = [torch.stack([part[0].mean(0) for part in side]) for side in (mine, theirs)]
    close(ask(term, student, teacher, mask, teacher_mask)[0], ask(term, *means)[0])


@pytest.mark.parametrize(
    "term", [Hint("s", "t", per_unit=True), CosineHidden("s", "t"), VID("s", "t", depth=2)], ids=repr
)
@pytest.mark.parametrize("vectors", ["student", "teacher"])
def test_a_vector_meets_the_mean_of_real_tokens(term, vectors):
    """A pooled embedding would be compared with a mean that shrinks the more the batch is padded."""
    parts, pooled = texts(WIDE, 1), draw(len(LENGTHS), TO, seed=5)
    tokens, mask = padded(parts, 9, math.nan)
    means = torch.stack([part[0].mean(0) for part in parts])
    other = torch.ones(len(LENGTHS), 3, dtype=torch.bool)  # of vectors no token is asked, of whatever tokenizer
    if vectors == "teacher":
        fitted = fit(term, tokens, pooled, mask, other)
        found, expected = ask(fitted, tokens, pooled, mask, other), ask(fitted, means, pooled)
        close(found[0], expected[0])
        close(found[1], (expected[1] / mask.sum(1, keepdim=True))[:, None] * mask[..., None])
    else:
        fitted = fit(term, pooled, tokens, other, mask)
        found, expected = ask(fitted, pooled, tokens, other, mask), ask(fitted, pooled, means)
        close(found[0], expected[0])
        close(found[1], expected[1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", TERMS)
def test_without_padding_nothing_changes_bit_for_bit(make, kind):
    """A masked sum rounds otherwise: a run on unpadded inputs would end with other weights than before."""
    shapes = ((6, 7, WIDE), (6, 7, TO)) if kind == "tokens" else ((6, WIDE, 7, 7), (6, TO, 7, 7))
    student, teacher = draw(*shapes[0]), draw(*shapes[1], seed=1)
    whole = torch.ones(6, 7, dtype=torch.bool)
    term = fit(make("s", "t"), student, teacher)
    for found, expected in zip(ask(term, student, teacher, whole, whole), ask(term, student, teacher), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("term", [*ADDITIVE, *TOGETHER], ids=repr)
def test_a_text_without_a_token_adds_nothing_and_spoils_nothing(term):
    """The mean over no token is 0/0, and one empty text would end the run."""
    student, mask = padded(texts(WIDE, 1), 7, math.nan)
    teacher, _ = padded(texts(TO, 2), 7, math.nan)
    fitted = fit(term, student, teacher, mask, mask)
    emptied = mask.clone()
    emptied[2] = False
    total, gradient, *of_weights = ask(fitted, student, teacher, emptied, emptied)
    assert total.isfinite()
    assert all(values.isfinite().all() for values in (gradient, *of_weights))
    assert gradient[2].count_nonzero() == 0
    if term.additive:
        others = torch.arange(len(LENGTHS)) != 2
        close(total, ask(fitted, student[others], teacher[others], mask[others], mask[others])[0])


@pytest.mark.parametrize("make", [Hint, CosineHidden, AttentionTransfer, VID])
@pytest.mark.parametrize("kind", KINDS)
def test_other_real_tokens_are_refused(make, kind):
    """Two tokenizers cut one text into other pieces: word by word of the one, a loss over nonsense would fall all the same."""
    mine, theirs = texts(WIDE, 1, kind), texts(TO, 2, kind)
    student, mask = padded(mine, 9)
    teacher, other = padded(list(reversed(theirs)), 9)
    for masks in ((mask, other), (mask, None), (None, other)):
        with pytest.raises(
            ObjectiveError, match=r"not the same ones.*other tokenizers.*similarity_preserving.*Signals\("
        ):
            fit(make("s", "t"), student, teacher, *masks)
    longer, longer_mask = padded(theirs, 10)
    with pytest.raises(ObjectiveError, match=r"24 of 54 tokens real.*24 of 60 tokens real"):
        fit(make("s", "t"), student, longer, mask, longer_mask)


def test_padded_tokens_are_no_map():
    """Laid out as a grid, the end of a short text would be the picture's lower edge."""
    tokens, mask = padded(texts(WIDE, 1), 9)
    with pytest.raises(ObjectiveError, match="not the same ones"):
        fit(Hint("s", "t"), tokens, draw(6, 4, 3, 3), mask)
    attentions = padded(texts(WIDE, 2, "attentions"), 9)[0]
    with pytest.raises(ObjectiveError, match="some are padding are no places of a map"):
        fit(Hint("s", "t"), tokens, attentions, mask, mask)


def test_positions_that_are_no_tokens_count_and_that_is_said():
    """A resampler's queries have no padding, but of a layer that halves its tokens some still hold it: nobody would know."""
    mask = padded(texts(WIDE, 1), 9)[1]
    student, teacher = draw(6, 4, WIDE), draw(6, 4, WIDE, seed=1)
    term = fit(CosineHidden("s", "t"), student, teacher, mask, mask)
    said = "shows 4 positions for 9 tokens, and each counts"
    assert term.adjustments() == f"s → t: the student's 's' {said}; the teacher's 't' {said}"
    for found, expected in zip(ask(term, student, teacher, mask, mask), ask(term, student, teacher), strict=True):
        assert torch.equal(found, expected)


def test_a_mask_of_other_examples_is_refused():
    """One text's padding would be cut out of another."""
    student, mask = padded(texts(WIDE, 1), 9)
    with pytest.raises(ObjectiveError, match=r"the student's mask is \[5, 9\] for 6 rows"):
        fit(Hint("s", "t"), student, student, mask[:5], mask)


@pytest.mark.parametrize("make", TERMS)
def test_a_nan_in_a_word_is_still_a_nan_loss(make):
    """What hides a NaN at padding must not hide one where the student learns."""
    student, mask = padded(texts(WIDE, 1), 9, math.nan)
    teacher, _ = padded(texts(WIDE, 2), 9, math.nan)
    term = fit(make("s", "t"), student, teacher, mask, mask)
    student[2, 3, 1] = math.nan
    assert ask(term, student, teacher, mask, mask)[0].isnan()
