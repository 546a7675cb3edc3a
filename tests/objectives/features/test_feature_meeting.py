"""Layers of other shapes: what is put between them, what is said of it, and what cannot meet."""

import copy
import dataclasses
import pickle

import feature_references as reference
import pytest
import torch
import torch.nn.functional as F
from feature_helpers import RELATIONS, TERMS, draw, evaluate, fit, rows_of, sides

from tutelage.errors import ObjectiveError
from tutelage.objectives import (
    CRD,
    RKD,
    VID,
    AttentionTransfer,
    CosineHidden,
    CrossEntropy,
    Hint,
    Objective,
    as_objective,
)
from tutelage.signals import Logits, Signals, feature_need, layers_needed


@pytest.mark.parametrize(
    ("student", "teacher", "notes"),
    [
        ((6, 5), (6, 5), None),
        ((6, 5), (6, 8), "s → t: a linear projector on the student's side, 5 → 8 wide (48 weights, trained with it)"),
        (
            (6, 7, 5),
            (6, 7, 8),
            "s → t: a linear projector on the student's side, 5 → 8 wide (48 weights, trained with it)",
        ),
        (
            (6, 5, 4, 4),
            (6, 8, 4, 4),
            "s → t: a 1×1 convolution on the student's side, 5 → 8 wide (48 weights, trained with it)",
        ),
        ((6, 5, 8, 8), (6, 5, 4, 4), "s → t: the student's 's' average-pooled from 8×8 to 4×4"),
        (
            (6, 5, 8, 3),
            (6, 5, 4, 7),
            "s → t: the student's 's' average-pooled from 8×3 to 4×3; the teacher's 't' average-pooled from 4×7 to 4×3",
        ),
        ((6, 16, 5), (6, 5, 4, 4), "s → t: the 16 tokens of the student's 's' as a 4×4 map"),
        (
            (6, 5, 2, 2),
            (6, 17, 5),
            "s → t: the 17 tokens of the teacher's 't' without the first, the class token, as a 4×4 map; the teacher's 't' "
            "average-pooled from 4×4 to 2×2",
        ),
        (
            (6, 5, 2, 4),
            (6, 32, 5),
            "s → t: the 32 tokens of the teacher's 't' as a 4×8 map; the teacher's 't' average-pooled from 4×8 to 2×4",
        ),
        ((6, 5), (6, 5, 4, 2), "s → t: the teacher's 't' averaged over its 4×2 positions"),
        ((6, 7, 5), (6, 5), "s → t: the student's 's' averaged over its tokens"),
    ],
)
def test_layers_that_meet_and_what_is_said(student, teacher, notes):
    """What was put between two layers decides what is learnt: unsaid, a pooling would be taken for a hint."""
    student, teacher = draw(*student), draw(*teacher, seed=1)
    for make in (Hint, CosineHidden):
        term = fit(make("s", "t"), student, teacher)
        assert term.adjustments() == notes
        assert (term.weights is not None) == ("wide" in (notes or ""))
        assert evaluate(term, student, teacher).isfinite()
    assert fit(VID("s", "t"), student, teacher).weights is not None


def test_projecting_a_map_is_a_1x1_convolution():
    student, teacher = draw(6, 5, 4, 3), draw(6, 8, 4, 3, seed=1)
    term = fit(Hint("s", "t"), student, teacher)
    convolved = F.conv2d(student, term.weights.weight[:, :, None, None], term.weights.bias)
    expected = sum(reference.hint(s, t) for s, t in zip(convolved.detach().numpy(), teacher.numpy(), strict=True))
    assert evaluate(term, student, teacher).item() == pytest.approx(expected)


def test_pooling_is_the_mean_over_the_cells_touched():
    student, teacher = draw(2, 5, 7, 4), draw(2, 5, 3, 9, seed=1)
    pooled = [[reference.average_pool(x, 3, 4) for x in side.numpy()] for side in (student, teacher)]
    expected = sum(reference.hint(s, t) for s, t in zip(*pooled, strict=True))
    assert evaluate(fit(Hint("s", "t"), student, teacher), student, teacher).item() == pytest.approx(expected)


def test_attention_maps_are_pooled_after_the_sum():
    """Pooled before it, activations of opposite signs would cancel, and the map show where they do not."""
    student, teacher = draw(2, 5, 4, 4), draw(2, 3, 2, 2, seed=1)
    energies = [[(x**2).sum(0, keepdims=True) for x in side.numpy()] for side in (student, teacher)]
    expected = sum(
        reference.attention_transfer(reference.average_pool(s, 2, 2), t, 1.0) for s, t in zip(*energies, strict=True)
    )
    term = fit(AttentionTransfer("s", "t"), student, teacher)
    assert evaluate(term, student, teacher).item() == pytest.approx(expected)
    assert term.weights is None
    assert term.adjustments() == "s → t: the student's 's' average-pooled from 4×4 to 2×2"


@pytest.mark.parametrize("class_tokens", [0, 1])
def test_tokens_lie_row_by_row_on_a_map(class_tokens):
    """Laid column by column, or with the class token at the first place, every position would be another's."""
    grid = draw(6, 5, 3, 6)
    tokens = torch.cat([draw(6, class_tokens, 5, seed=2), grid.flatten(2).transpose(1, 2)], 1)
    teacher = draw(6, 5, 3, 6, seed=1)
    for make in (Hint, CosineHidden, AttentionTransfer):
        expected = evaluate(make("s", "t"), grid, teacher)
        torch.testing.assert_close(evaluate(make("s", "t"), tokens, teacher), expected)
        torch.testing.assert_close(evaluate(make("s", "t"), teacher, tokens), expected)


@pytest.mark.parametrize(
    ("student", "teacher", "why"),
    [
        ((6, 7, 5), (6, 8, 5), r"\[6, 7, 5\].*\[6, 8, 5\].*another word or patch"),
        ((6, 15, 5), (6, 5, 4, 4), r"\[6, 15, 5\].*\[6, 5, 4, 4\].*15 tokens.*no grid in the proportions of 4×4"),
        ((6, 5, 2, 4), (6, 16, 5), r"16 tokens.*proportions of 2×4"),
        ((6, 5, 4, 4), (6, 3, 5), "3 tokens"),
    ],
)
def test_layers_that_cannot_meet(student, teacher, why):
    """Cut to the shorter, or reshaped somehow, they would be compared place by wrong place."""
    student, teacher = draw(*student), draw(*teacher, seed=1)
    for make in (Hint, CosineHidden, VID):
        with pytest.raises(ObjectiveError, match=why) as raised:
            Objective.of((0.5 * make("s", "t")).parts()).fitted(*sides(student, teacher), 0)
        assert "'s'" in str(raised.value)
        assert "'t'" in str(raised.value)
    for make in (*RELATIONS, CRD):
        assert evaluate(fit(make("s", "t"), student, teacher), student, teacher).isfinite()


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 1, 1), (6, 1, 5)])
def test_attention_needs_positions(shape):
    """The normalised map of one position is 1: the loss would be 0 from the first step on, and look like success."""
    other = draw(6, 5, 4, 4)
    for pair in ((draw(*shape), other), (other, draw(*shape))):
        with pytest.raises(ObjectiveError, match="always 1"):
            fit(AttentionTransfer("s", "t"), *pair)


def test_a_batch_may_be_longer_than_the_one_fitted():
    """Texts are padded to their batch: weights for the first batch's length would fail at the second."""
    for make in TERMS:
        term = fit(make("s", "t"), draw(4, 5, 6), draw(4, 5, 8, seed=1))
        assert evaluate(term, draw(6, 9, 6), draw(6, 9, 8, seed=1)).isfinite()
    with pytest.raises(ObjectiveError, match="cannot bring together"):
        evaluate(fit(Hint("s", "t"), draw(4, 5, 6), draw(4, 5, 8)), draw(6, 9, 6), draw(6, 8, 8))


def test_always_puts_a_projector_between_equal_widths():
    student, teacher = draw(6, 5), draw(6, 5, seed=1)
    for make in (Hint, CosineHidden):
        term = fit(make("s", "t", projector="always"), student, teacher)
        assert term.weights.weight.shape == (5, 5)
        assert "5 → 5 wide" in term.adjustments()


@pytest.mark.parametrize(
    ("shape", "words"),
    [((6, 7), "7 → 16"), ((6, 3, 7), "averaged over its tokens"), ((6, 7, 3, 2), "averaged over its 3×2 positions")],
)
def test_crd_takes_the_mean_over_positions(shape, words):
    student, teacher = draw(6, 5), draw(*shape, seed=1)
    term = fit(CRD("s", "t", width=16), student, teacher)
    assert words in term.adjustments()
    assert "224 weights" in term.adjustments()
    vectors = teacher if len(shape) == 2 else teacher.mean(1) if len(shape) == 3 else teacher.mean((2, 3))
    torch.testing.assert_close(evaluate(term, student, teacher), evaluate(term, student, vectors))


def objective():
    return (
        0.1 * CrossEntropy()
        + 0.5 * Hint("s", "t")
        + 0.25 * Hint("s", "t", projector="always")
        + RKD("s", "t")
        + CRD("s", "t")
        + VID("s", "t")
    )


def said(seed=0):
    student, teacher = sides(draw(6, 5, seed=seed), draw(6, 8, seed=seed + 1))
    return Signals(Logits(draw(6, 3, seed=seed + 2)), student.features), teacher


def test_one_seed_makes_one_set_of_weights():
    """Weights from the global generator would differ between a run and its resumption, or shift the student's own."""
    before = torch.get_rng_state()
    first, second, other = (objective().fitted(*said(), seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert list(first.weights) == ["hint", "hint_2", "crd", "vid"]
    mine, same, another = (fitted.weights.state_dict() for fitted in (first, second, other))
    assert all(torch.equal(mine[name], same[name]) for name in mine)
    assert any(not torch.equal(mine[name], another[name]) for name in mine)
    assert not torch.equal(mine["hint.weight"], mine["hint_2.weight"])
    # of another batch of the same shapes, and in another precision
    later = objective().fitted(*said(seed=9), 3).weights.state_dict()
    assert all(torch.equal(mine[name], later[name]) for name in mine)
    assert not objective().weights


def test_fitted_weights_are_part_of_the_objective_and_learn():
    fitted = objective().fitted(*said(), 0)
    parameters = dict(fitted.weights.named_parameters())
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in parameters.values())
    optimiser = torch.optim.SGD(parameters.values(), 0.01)
    first = fitted(*said(), rows_of(6)).total
    first.backward()
    assert all(parameter.grad is not None for parameter in parameters.values())
    optimiser.step()
    assert fitted(*said(), rows_of(6)).total < first


def test_what_was_fitted_is_neither_compared_nor_shown_nor_described():
    """A run's identity is hashed from its objective: with weights in it, no run could be resumed."""
    plain = objective()
    fitted = plain.fitted(*said(), 0)
    assert not plain.weights
    assert len(fitted.weights) == 4
    assert fitted == plain
    assert hash(fitted) == hash(plain)
    assert repr(fitted) == repr(plain)
    assert fitted.describe() == plain.describe()
    assert (
        fitted.needs
        == plain.needs
        == {"student.logits", "labels", feature_need("student", "s"), feature_need("teacher", "t")}
    )
    assert layers_needed(fitted.needs, "student") == ["s"]
    assert [dataclasses.replace(c.term).weights for c in fitted.components] == [None] * 6
    assert as_objective(Hint("s", "t")) != as_objective(Hint("s", "u"))
    for make in TERMS:
        term = make("s", "t")
        assert eval(repr(term), {make.__name__: make}) == term
        assert term != make("s", "u")
        assert [field.name for field in dataclasses.fields(term)][:2] == ["student", "teacher"]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda fitted: pickle.loads(pickle.dumps(fitted))])
def test_a_copy_has_weights_of_its_own(copied):
    """A copy that shares them, or comes without, would train another run's projector, or none."""
    fitted = objective().fitted(*said(), 0)
    twin = copied(fitted)
    value = fitted(*said(), rows_of(6)).total
    torch.testing.assert_close(twin(*said(), rows_of(6)).total, value)
    assert [c.term.adjustments() for c in twin.components] == [c.term.adjustments() for c in fitted.components]
    with torch.no_grad():
        for parameter in twin.weights.parameters():
            parameter.add_(1.0)
    torch.testing.assert_close(fitted(*said(), rows_of(6)).total, value)
    # arithmetic passes the weights on
    assert next((2 * fitted).weights.parameters()) is next(fitted.weights.parameters())


def test_fitting_again_starts_anew():
    fitted = objective().fitted(*said(), 0)
    with torch.no_grad():
        for parameter in fitted.weights.parameters():
            parameter.add_(1.0)
    again, fresh = fitted.fitted(*said(), 0).weights.state_dict(), objective().fitted(*said(), 0).weights.state_dict()
    assert all(torch.equal(again[name], fresh[name]) for name in fresh)


def test_a_missing_layer_is_found_before_the_first_step():
    student, teacher = said()
    with pytest.raises(ObjectiveError, match=r"hint.*needs student\.features"):
        as_objective(Hint("x", "t")).check(student, teacher, rows_of(6))
    with pytest.raises(ObjectiveError, match=r"needs teacher\.features.*there is: none"):
        as_objective(Hint("s", "t")).fitted(student, Signals(), 0)
