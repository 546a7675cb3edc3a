"""Each term against its paper's formula, its gradient against its value, and what must not change it."""

import feature_references as reference
import numpy as np
import pytest
import torch
from feature_helpers import RELATIONS, TERMS, draw, evaluate, fit, gradient_of, mean_of, rows_of, sides
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.objectives import CRD, PKT, RKD, VID, AttentionTransfer, CosineHidden, Hint, SimilarityPreserving
from tutelage.signals import NO_LABEL

MAPS = (6, 4, 3, 3)
SHAPES = [(6, 5), (6, 4, 5), MAPS]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=["vectors", "tokens", "maps"])


def two(shape):
    return draw(*shape), draw(*shape, seed=1)


@each_shape
def test_hint(shape):
    """Averaged over the units it is no longer FitNets', and thousands of times weaker than the weight says."""
    student, teacher = two(shape)
    expected = sum(reference.hint(s, t) for s, t in zip(student.numpy(), teacher.numpy(), strict=True))
    assert evaluate(Hint("s", "t"), student, teacher).item() == pytest.approx(expected)
    per_unit = evaluate(Hint("s", "t", per_unit=True), student, teacher).item()
    assert per_unit == pytest.approx(expected / student[0].numel())


@pytest.mark.parametrize("power", [1.0, 2.0, 3.5])
def test_attention_transfer(power):
    student, teacher = draw(6, 4, 3, 5), draw(6, 7, 3, 5, seed=1)
    each = [reference.attention_transfer(s, t, power) for s, t in zip(student.numpy(), teacher.numpy(), strict=True)]
    assert evaluate(AttentionTransfer("s", "t", power), student, teacher).item() == pytest.approx(sum(each))
    squared = evaluate(AttentionTransfer("s", "t", power, squared=True), student, teacher).item()
    assert squared == pytest.approx(sum(0.5 * (2 * value) ** 2 for value in each))
    assert max(each) <= np.sqrt(0.5)


def test_attention_transfer_of_tokens_is_that_of_the_map_they_lie_on():
    student, teacher = draw(6, 4, 3, 5), draw(6, 7, 3, 5, seed=1)
    of_maps = evaluate(AttentionTransfer("s", "t"), student, teacher)
    tokens = [values.flatten(2).transpose(1, 2) for values in (student, teacher)]
    torch.testing.assert_close(evaluate(AttentionTransfer("s", "t"), *tokens), of_maps)


def test_cosine_hidden():
    """Averaged over the batch's tokens at once, a batch of long texts would weigh more than one of short ones."""
    student, teacher = draw(6, 4, 5), draw(6, 4, 5, seed=1)
    each = [reference.cosine_hidden(s, t) for s, t in zip(student.numpy(), teacher.numpy(), strict=True)]
    assert evaluate(CosineHidden("s", "t"), student, teacher).item() == pytest.approx(sum(each))
    as_maps = [values.unflatten(1, (2, 2)).movedim(-1, 1) for values in (student, teacher)]
    assert evaluate(CosineHidden("s", "t"), *as_maps).item() == pytest.approx(sum(each))
    vectors = evaluate(CosineHidden("s", "t"), student[:, 0], teacher[:, 0]).item()
    cosines = [reference.cosine(s, t) for s, t in zip(student[:, 0].numpy(), teacher[:, 0].numpy(), strict=True)]
    assert vectors == pytest.approx(6 - sum(cosines))


@each_shape
def test_similarity_preserving(shape):
    student, teacher = draw(*shape), draw(shape[0], 9, seed=1)
    expected = reference.similarity_preserving(student.numpy(), teacher.numpy())
    assert mean_of(SimilarityPreserving("s", "t"), student, teacher) == pytest.approx(expected)
    assert expected <= 4 / len(student)


@each_shape
def test_rkd(shape):
    student, teacher = draw(*shape), draw(shape[0], 9, seed=1) ** 3
    distance = reference.rkd_distance(student.numpy(), teacher.numpy())
    angle = reference.rkd_angle(student.numpy(), teacher.numpy())
    assert mean_of(RKD("s", "t", 1.0, 0.0), student, teacher) == pytest.approx(distance)
    assert mean_of(RKD("s", "t", 0.0, 1.0), student, teacher) == pytest.approx(angle)
    assert mean_of(RKD("s", "t"), student, teacher) == pytest.approx(distance + 2 * angle)


def test_rkd_beyond_the_square_part_of_huber():
    """Small test batches have ratios near 1, and a squared loss in Huber's place would pass unnoticed."""
    student, teacher = draw(6, 3), draw(6, 3, seed=1)
    teacher[0] = 200.0
    expected = reference.rkd_distance(student.numpy(), teacher.numpy())
    assert mean_of(RKD("s", "t", 1.0, 0.0), student, teacher) == pytest.approx(expected)
    opposite = torch.tensor([[0.0, 0], [1, 0], [-1, 0.1]], dtype=torch.float64)
    folded = torch.tensor([[0.0, 0], [1, 0], [1, 0.1]], dtype=torch.float64)
    expected = reference.rkd_angle(opposite.numpy(), folded.numpy())
    assert mean_of(RKD("s", "t", 0.0, 1.0), opposite, folded) == pytest.approx(expected)


def test_angles_taken_some_at_a_time_are_the_same(monkeypatch):
    """A large batch takes another way, which no small test would enter: its last slice is a short one."""
    student, teacher = draw(7, 5), draw(7, 5, seed=1)
    whole = evaluate(RKD("s", "t"), student, teacher), gradient_of(RKD("s", "t"), student, teacher)
    monkeypatch.setattr("tutelage.objectives.features.rkd._CPU_SLICE", 2 * 7**2)
    sliced = evaluate(RKD("s", "t"), student, teacher), gradient_of(RKD("s", "t"), student, teacher)
    for a, b in zip(whole, sliced, strict=True):
        torch.testing.assert_close(a, b)


@each_shape
def test_pkt(shape):
    student, teacher = draw(*shape), draw(shape[0], 9, seed=1)
    expected = reference.pkt(student.numpy(), teacher.numpy())
    assert evaluate(PKT("s", "t"), student, teacher).item() == pytest.approx(expected)


def embedded(term, student, teacher):
    maps = {side: term.weights[side] for side in ("student", "teacher")}
    return [
        values.detach().numpy() @ maps[side].weight.detach().numpy().T + maps[side].bias.detach().numpy()
        for side, values in (("student", student), ("teacher", teacher))
    ]


def test_crd():
    student, teacher = draw(6, 5), draw(6, 9, seed=1)
    term = fit(CRD("s", "t", width=4, temperature=0.3), student, teacher)
    expected = reference.crd(*embedded(term, student, teacher), 0.3)
    assert evaluate(term, student, teacher).item() == pytest.approx(expected)


def test_crd_leaves_out_negatives_of_the_same_class():
    """An example of the same class as negative teaches to tell apart what the teacher holds to be one; one without a
    label has a class that nobody knows, and must not count as a class of its own with the others that have none."""
    student, teacher = draw(6, 5), draw(6, 9, seed=1)
    labels = torch.tensor([0, 1, 0, 2, NO_LABEL, NO_LABEL])
    term = fit(CRD("s", "t", 4, 0.3, "other_classes"), student, teacher)
    expected = reference.crd(*embedded(term, student, teacher), 0.3, labels.tolist())
    assert evaluate(term, student, teacher, labels).item() == pytest.approx(expected)
    assert "labels" in term.needs
    assert "labels" not in CRD("s", "t").needs
    alone = evaluate(term, student, teacher, torch.zeros(6, dtype=torch.int64))
    assert alone.item() == pytest.approx(0.0)
    assert gradient_of(term, student, teacher, torch.zeros(6, dtype=torch.int64)).abs().max() < 1e-12


def test_crd_starts_near_chance_and_falls_when_partners_are_found():
    """Its value has no zero to check: the bounds are chance, 2 log B, and 0."""
    student = draw(64, 32)
    term = fit(CRD("s", "t", width=32, temperature=1.0), student, student)
    assert mean_of(term, student, draw(64, 32, seed=2)) == pytest.approx(2 * np.log(64), rel=0.05)
    with torch.no_grad():
        for linear in term.weights.values():
            linear.weight.copy_(torch.eye(32))
            linear.bias.zero_()
    sharp = fit(CRD("s", "t", width=32, temperature=0.05), student, student)
    sharp.weights.load_state_dict(term.weights.state_dict())
    assert mean_of(sharp, student, student) < 0.01


@pytest.mark.parametrize("shape", [(6, 5), (6, 4, 5), MAPS], ids=["vectors", "tokens", "maps"])
@pytest.mark.parametrize("depth", [1, 3])
def test_vid(shape, depth):
    student, teacher = two(shape)
    term = fit(VID("s", "t", depth, variance=0.7), student, teacher)
    with torch.no_grad():
        term.weights.alpha.add_(draw(*term.weights.alpha.shape, seed=3))
    variance = np.log1p(np.exp(term.weights.alpha.detach().numpy())) + 1e-5
    expected = 0.0
    for s, t in zip(student.numpy(), teacher.numpy(), strict=True):
        # channels first, positions after, whatever the layer
        channels = [x if len(shape) == 4 else x.reshape(-1, 5).T for x in (s, t)]
        hidden = channels[0].reshape(len(variance), -1)
        linears = [module for module in term.weights.mean if isinstance(module, torch.nn.Linear)]
        for number, linear in enumerate(linears):
            hidden = linear.weight.detach().numpy() @ (np.maximum(hidden, 0) if number else hidden)
            hidden = hidden + linear.bias.detach().numpy()[:, None]
        expected += reference.vid(hidden, channels[1].reshape(len(variance), -1), variance)
    assert evaluate(term, student, teacher).item() == pytest.approx(expected)
    channels = len(variance)
    assert [linear.out_features for linear in linears] == [2 * channels] * (depth - 1) + [channels]
    assert " → ".join(str(width) for width in [channels, *[2 * channels] * (depth - 1), channels]) in term.adjustments()
    per_unit = fit(VID("s", "t", depth, 0.7, per_unit=True), student, teacher)
    per_unit.weights.load_state_dict(term.weights.state_dict())
    assert mean_of(per_unit, student, teacher) == pytest.approx(expected / student.numel())


def test_vids_variance_starts_where_asked_and_finds_the_errors():
    """A variance that is not learnt, or learnt on the wrong scale, makes it a hint with an odd weight."""
    student, teacher = draw(200, 3), draw(200, 2, seed=1) * torch.tensor([0.5, 3.0])
    for start in (5.0, 0.01, 1e-4):
        term = fit(VID("s", "t", depth=1, variance=start), student, teacher)
        _, variance = term.weights(student)
        torch.testing.assert_close(variance, torch.full((2,), start, dtype=torch.float64))
    term = fit(VID("s", "t", depth=1), student, teacher)
    optimiser = torch.optim.Adam(term.weights.parameters(), 0.05)
    for _ in range(400):
        optimiser.zero_grad()
        (evaluate(term, student, teacher) / 200).backward()
        optimiser.step()
    mean, variance = term.weights(student)
    torch.testing.assert_close(variance, (teacher - mean).square().mean(0), rtol=0.02, atol=1e-3)


@pytest.mark.parametrize(
    ("make", "shape"),
    [(make, shape) for make in TERMS for shape in SHAPES if make is not AttentionTransfer or len(shape) > 2],
)
def test_gradients_are_those_of_the_values(make, shape):
    student, teacher = two(shape)
    term = fit(make("s", "t"), student, teacher)
    assert torch.autograd.gradcheck(lambda s: evaluate(term, s, teacher), (student.requires_grad_(),))


@pytest.mark.parametrize(
    "term",
    [
        Hint("s", "t"),
        AttentionTransfer("s", "t"),
        AttentionTransfer("s", "t", squared=True),
        CosineHidden("s", "t"),
        SimilarityPreserving("s", "t"),
        RKD("s", "t"),
        PKT("s", "t"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_zero_with_zero_gradient_at_the_teacher(term, dtype):
    """A square root at 0 has an infinite slope: NaN gradients where a student starts as its teacher."""
    student = draw(6, 4, 3, 3, dtype=dtype)
    assert evaluate(term, student, student.clone()).item() == pytest.approx(0.0, abs=1e-12)
    assert gradient_of(term, student, student.clone()).abs().max() < 1e-6
    student = student.requires_grad_()
    assert evaluate(term, student, draw(6, 4, 3, 3, seed=1, dtype=dtype)).item() > 0


def rotation(width, seed):
    return torch.linalg.qr(draw(width, width, seed=seed)).Q


@settings(max_examples=25, deadline=None)
@given(scale=st.floats(1e-3, 1e3), shift=st.floats(-100, 100), seed=st.integers(0, 1000))
def test_what_the_relations_do_not_see(scale, shift, seed):
    """Each is the promise of its paper: a student need not share its teacher's scale, axes or (RKD) origin."""
    student, teacher = draw(6, 5, seed=seed), draw(6, 5, seed=seed + 1)
    turned = student @ rotation(5, seed)
    for make in RELATIONS:
        plain = evaluate(make("s", "t"), student, teacher)
        torch.testing.assert_close(evaluate(make("s", "t"), scale * turned, teacher), plain)
        torch.testing.assert_close(evaluate(make("s", "t"), student, scale * teacher), plain)
        order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(evaluate(make("s", "t"), student[order], teacher[order]), plain)
    moved = scale * turned + shift
    torch.testing.assert_close(evaluate(RKD("s", "t"), moved, teacher), evaluate(RKD("s", "t"), student, teacher))
    each_its_own = student * torch.linspace(0.5, 2, 6, dtype=torch.float64)[:, None]
    torch.testing.assert_close(
        evaluate(PKT("s", "t"), each_its_own, teacher), evaluate(PKT("s", "t"), student, teacher)
    )


def test_what_the_relations_do_see():
    """A term that nothing can change would pass every invariance."""
    student, teacher = draw(6, 5), draw(6, 5, seed=1)
    for make in (SimilarityPreserving, PKT):
        plain = evaluate(make("s", "t"), student, teacher).item()
        assert evaluate(make("s", "t"), student + 3, teacher).item() != pytest.approx(plain, rel=0.01)
    for make in RELATIONS:
        plain = evaluate(make("s", "t"), student, teacher).item()
        assert evaluate(make("s", "t"), student[[1, 0, 2, 3, 4, 5]], teacher).item() != pytest.approx(plain, rel=0.01)


@settings(max_examples=25, deadline=None)
@given(scale=st.floats(1e-3, 1e3), seed=st.integers(0, 1000))
def test_what_the_position_terms_do_not_see(scale, seed):
    student, teacher = draw(5, 4, 3, 3, seed=seed), draw(5, 4, 3, 3, seed=seed + 1)
    for term in (AttentionTransfer("s", "t"), CosineHidden("s", "t")):
        torch.testing.assert_close(evaluate(term, scale * student, teacher), evaluate(term, student, teacher))
    plain = evaluate(AttentionTransfer("s", "t"), student, teacher)
    torch.testing.assert_close(evaluate(AttentionTransfer("s", "t"), -student[:, [2, 0, 3, 1]], teacher), plain)


@pytest.mark.parametrize("make", TERMS)
def test_only_additive_terms_may_be_cut(make):
    """Whoever joins or cuts batches trusts ``additive``: a relation cut in two is another loss."""
    student, teacher = draw(8, 4, 3, 3), draw(8, 4, 3, 3, seed=1)
    term = fit(make("s", "t"), student, teacher)
    whole = evaluate(term, student, teacher)
    halves = evaluate(term, student[:4], teacher[:4]) + evaluate(term, student[4:], teacher[4:])
    assert term.additive == torch.allclose(whole, halves, rtol=1e-6)


@pytest.mark.parametrize("make", TERMS)
def test_the_teacher_gets_no_gradient(make):
    """A projector's loss would flow on into a teacher that shares its graph, and it would come to meet the student."""
    student, teacher = draw(6, 4, 3, 3), draw(6, 4, 3, 3, seed=1).requires_grad_()
    term = fit(make("s", "t"), student, teacher)
    student.requires_grad_()
    total, _ = term(*sides(student, teacher), rows_of(6))
    total.backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0
    if term.weights is not None:
        assert all(parameter.grad.abs().sum() > 0 for parameter in term.weights.parameters())
