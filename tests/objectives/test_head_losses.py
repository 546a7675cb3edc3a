"""Losses on a head that is not multiplied out, beside the published formulas over logits multiplied out in float64."""

import math

import numpy as np
import objective_references as reference
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tutelage.errors import ObjectiveError, TeacherError
from tutelage.objectives import KL, CrossEntropy, Divergence, LogitMSE
from tutelage.objectives.definitions import DEFINITIONS
from tutelage.objectives.head import Blocks, head_divergence, head_losses
from tutelage.objectives.objective import as_objective
from tutelage.objectives.row_loss import RowLoss
from tutelage.objectives.sparse import row_sparse
from tutelage.signals import NO_LABEL, HeadLogits, Logits, MixtureLogits, Signals, SparseTargets

N, C, D = 11, 157, 16
SETTINGS = [
    ("forward_kl", {}),
    ("reverse_kl", {}),
    ("jensen_shannon", {"beta": 0.3}),
    ("skew_forward_kl", {"alpha": 0.2}),
    ("skew_reverse_kl", {"alpha": 0.2}),
    ("total_variation", {}),
    ("alpha_beta", {"alpha": 0.4, "beta": 0.5}),
]
each = pytest.mark.parametrize(("name", "options"), SETTINGS, ids=[name for name, _ in SETTINGS])


def head(seed=0, dtype=torch.float64, rows=C, width=D, learns=True, **options) -> HeadLogits:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(N, width, generator=generator, dtype=torch.float64).to(dtype)
    weight = (0.6 * torch.randn(rows, width, generator=generator, dtype=torch.float64)).to(dtype)
    bias = torch.randn(rows, generator=generator, dtype=torch.float64).to(dtype)
    return HeadLogits(*(t.requires_grad_(learns) for t in (hidden, weight, bias)), **options)


def multiplied(given: HeadLogits) -> torch.Tensor:
    """The logits in float64, written out anew."""
    logits = given.hidden.double() @ given.weight.double().T
    if given.bias is not None:
        logits = logits + given.bias.double()
    logits = logits * given.scale
    if given.softcap is not None:
        logits = given.softcap * torch.tanh(logits / given.softcap)
    if isinstance(given.kept, int):
        return logits[:, : given.kept]
    return logits if given.kept is None else logits[:, given.kept]


def gradients(total: torch.Tensor, of: HeadLogits) -> list[torch.Tensor]:
    return [g.double() for g in torch.autograd.grad(total, [of.hidden, of.weight, of.bias])]


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def dense_gradients(name, options, mine: HeadLogits, theirs: torch.Tensor, temperature: float) -> list[torch.Tensor]:
    """By autograd through the formula in plain float64 operations, without the project's own gradient."""
    log_p = torch.log_softmax(multiplied(mine) / temperature, -1)
    log_q = torch.log_softmax(theirs.double() / temperature, -1)
    p, q = log_p.exp(), log_q.exp()
    if name == "forward_kl":
        value = q * (log_q - log_p)
    elif name == "reverse_kl":
        value = p * (log_p - log_q)
    elif name == "jensen_shannon":
        beta = options["beta"]
        log_m = (beta * q + (1 - beta) * p).log()
        value = (beta * q * (log_q - log_m) + (1 - beta) * p * (log_p - log_m)) / (4 * beta * (1 - beta))
    elif name == "skew_forward_kl":
        value = q * (log_q - (options["alpha"] * q + (1 - options["alpha"]) * p).log())
    elif name == "skew_reverse_kl":
        value = p * (log_p - (options["alpha"] * p + (1 - options["alpha"]) * q).log())
    elif name == "total_variation":
        value = (p - q).abs() / 2
    else:
        a, b = options["alpha"], options["beta"]
        value = -(q**a * p**b - a / (a + b) * q ** (a + b) - b / (a + b) * p ** (a + b)) / (a * b)
    return gradients(value.sum(), mine)


@each
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 3.0, 40.0])
def test_value_and_gradients_are_those_of_the_logits_multiplied_out(name, options, dtype, temperature) -> None:
    """A head's loss that drifts from the dense one trains another student, with a falling loss to show for it."""
    mine, theirs = head(0, dtype, scale=1.3, softcap=6.0), head(1, dtype, width=24, learns=False)
    total, count = head_divergence(
        mine, theirs, name, temperature, parameters=options, blocks=Blocks(rows=4, classes=50)
    )
    student, teacher = (multiplied(h).detach().numpy() for h in (mine, theirs))
    expected = np.sum(
        [getattr(reference, name)(s, t, temperature, **options) for s, t in zip(student, teacher, strict=True)]
    )
    limit = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 5e-3}[dtype]
    assert total.item() == pytest.approx(expected, rel=limit)
    assert float(count) == N
    found = gradients(total, mine)
    for own, wanted in zip(found, dense_gradients(name, options, mine, multiplied(theirs), temperature), strict=True):
        assert relative(own, wanted) < limit


@each
@pytest.mark.parametrize(
    "blocks", [Blocks(1, 1), Blocks(3, 40), Blocks(N, None), Blocks(None, 13), Blocks(memory_bytes=1)]
)
def test_how_it_is_cut_changes_nothing(name, options, blocks) -> None:
    """A block's edge that drops or counts a row or class twice would show on some machines alone."""
    mine, theirs = head(0), head(1, learns=False)
    whole, _ = head_divergence(mine, theirs, name, 2.0, parameters=options)
    cut, _ = head_divergence(mine, theirs, name, 2.0, parameters=options, blocks=blocks)
    assert cut.item() == pytest.approx(whole.item(), rel=1e-12)
    for one, other in zip(gradients(whole, mine), gradients(cut, mine), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_batches_add_up() -> None:
    """If a part of a batch counted otherwise than in the whole, accumulation would change what is learnt."""
    mine, theirs = head(0), head(1, learns=False)
    whole, _ = head_divergence(mine, theirs)
    parts = [
        head_divergence(
            HeadLogits(mine.hidden[of], mine.weight, mine.bias),
            HeadLogits(theirs.hidden[of], theirs.weight, theirs.bias),
        )[0]
        for of in (slice(0, 3), slice(3, N))
    ]
    for one, other in zip(gradients(whole, mine), gradients(parts[0] + parts[1], mine), strict=True):
        torch.testing.assert_close(one, other)


def sparse(logits: torch.Tensor, form: str, temperature: float, k: int = 9) -> SparseTargets:
    probs, ids = (torch.softmax(logits.detach().double() / temperature, -1)).topk(k, -1)
    if form == "sampled":
        probs = torch.round(probs * 40) / 40
        ids = ids.masked_fill(probs == 0, -1)
    entropy = torch.distributions.Categorical(logits=logits.detach().double() / temperature).entropy()
    return SparseTargets(ids, probs, logits.shape[1], temperature, form, entropy)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize(
    ("form", "name"),
    [("sampled", "forward_kl"), *[("top_k", name) for name, _ in SETTINGS if name != "alpha_beta"]],
)
def test_sparse_targets_on_a_head_are_those_on_dense_logits(form, name, temperature) -> None:
    """A stored teacher would otherwise teach a language model something else than a classifier."""
    mine, teacher = head(0), multiplied(head(1, learns=False))
    targets = sparse(teacher, form, temperature)
    parameters = DEFINITIONS[name].parameters
    total, _ = head_divergence(mine, targets, name, temperature, blocks=Blocks(rows=3))
    expected = row_sparse(name, multiplied(mine), targets, temperature, parameters).sum()
    assert total.item() == pytest.approx(expected.item(), rel=1e-9)
    for one, other in zip(gradients(total, mine), gradients(expected, mine), strict=True):
        torch.testing.assert_close(one, other)


def test_what_a_sparse_form_cannot_serve_is_refused() -> None:
    """A class that was not drawn would count as impossible, and a whole training be biased by it."""
    mine = head(0)
    targets = sparse(multiplied(head(1, learns=False)), "sampled", 1.0)
    with pytest.raises(ObjectiveError, match="sampled"):
        head_divergence(mine, targets, "reverse_kl")
    with pytest.raises(ObjectiveError, match="T = 2"):
        head_divergence(mine, targets, "forward_kl", 2.0)


@pytest.mark.parametrize("kind", ["logits", "mixture"])
def test_other_teachers_reach_the_head(kind) -> None:
    """An ensemble on a head must be mixed at the objective's temperature, as everywhere."""
    mine = head(0)
    values = torch.stack([multiplied(head(seed, learns=False)) for seed in (1, 2)])
    said = Logits(values[0]) if kind == "logits" else MixtureLogits(values, torch.tensor([0.3, 0.7]).double())
    total, _ = head_divergence(mine, said, "forward_kl", 2.0, blocks=Blocks(rows=2))
    q = torch.softmax(values / 2, -1)
    q = q[0] if kind == "logits" else 0.3 * q[0] + 0.7 * q[1]
    expected = (q * (q.log() - torch.log_softmax(multiplied(mine) / 2, -1))).sum()
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    for one, other in zip(gradients(total, mine), gradients(expected, mine), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_scores_of_a_users_own_kind_are_made_once() -> None:
    """Made anew for each slice of a few rows, a teacher's own kind of scores would cost as many times its work."""
    values, asked = multiplied(head(1, learns=False)), []

    class Own:
        classes = C

        def at(self, temperature: float) -> torch.Tensor:
            asked.append(temperature)
            return values

    mine = head(0)
    total, _ = head_divergence(mine, Own(), temperature=2.0, blocks=Blocks(rows=2))
    expected, _ = head_divergence(mine, Logits(values), temperature=2.0)
    assert total.item() == pytest.approx(expected.item(), rel=1e-12)
    # once to count the rows, once for the temperature
    assert len(asked) <= 2


@pytest.mark.parametrize("kept", [150, torch.arange(C + 8).flip(0)[:150]])
def test_padded_vocabularies_meet_in_the_classes_they_share(kept) -> None:
    """Padding that took part in the softmax would get probability mass; a class out of order would be another word."""
    mine, theirs = head(0, rows=C + 8, kept=kept), head(1, kept=150, learns=False)
    total, _ = head_divergence(mine, theirs, blocks=Blocks(rows=4, classes=64))
    p, q = torch.log_softmax(multiplied(mine), -1), torch.log_softmax(multiplied(theirs), -1)
    expected = (q.exp() * (q - p)).sum()
    assert total.item() == pytest.approx(expected.item(), rel=1e-10)
    found = gradients(total, mine)
    for one, other in zip(found, gradients(expected, mine), strict=True):
        torch.testing.assert_close(one, other)
    assert int((found[1].abs().sum(1) > 0).sum()) == 150


def test_other_classes_are_an_error_until_they_are_declared() -> None:
    """A truncated or padded row would put the teacher's mass on other words."""
    with pytest.raises(TeacherError, match="classes"):
        head_divergence(head(0, rows=C + 8), head(1, learns=False))


def test_labels_and_row_weights_in_the_same_pass() -> None:
    """A row's weight, or a missing label, that met only one of two losses would shift their balance."""
    mine, theirs = head(0), head(1, learns=False)
    labels = torch.arange(N) * 5
    labels[2] = NO_LABEL
    weights = torch.linspace(0, 2, N, dtype=torch.float64)
    total, count = head_divergence(
        mine, theirs, "reverse_kl", 2.0, weights, scale=4.0, labels=labels, label_weight=0.3, blocks=Blocks(rows=4)
    )
    log_p, log_q = (torch.log_softmax(multiplied(h) / 2, -1) for h in (mine, theirs))
    soft = 4 * (log_p.exp() * (log_p - log_q)).sum(-1)
    hard = F.cross_entropy(multiplied(mine), labels, reduction="none", ignore_index=NO_LABEL)
    expected = (weights * (soft + 0.3 * hard)).sum()
    assert total.item() == pytest.approx(expected.item(), rel=1e-10)
    assert float(count) == pytest.approx(weights.sum().item())
    for one, other in zip(gradients(total, mine), gradients(expected, mine), strict=True):
        torch.testing.assert_close(one, other)


def test_a_frozen_head_costs_no_gradient() -> None:
    """Under LoRA the head's gradient, as large as the head, would be made and thrown away."""
    given = head(0)
    mine = HeadLogits(given.hidden, given.weight.detach(), given.bias.detach())
    theirs, made = head(1, learns=False), Largest()
    with made:
        total, _ = head_divergence(mine, theirs, blocks=Blocks(rows=1))
        (found,) = torch.autograd.grad(total, mine.hidden)
    assert made.numbers < C * D
    expected, _ = head_divergence(given, theirs)
    torch.testing.assert_close(found, torch.autograd.grad(expected, given.hidden)[0])


class Largest(TorchDispatchMode):
    """The most numbers of any floating tensor that an operation made; a view of another is none."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        before = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                own = tensor.untyped_storage().data_ptr() not in before
                self.numbers = max(self.numbers, tensor.numel() if own else 0)
        return made


@pytest.mark.parametrize("said", ["head", "sampled", "top_k"])
def test_no_tensor_of_rows_by_classes_is_made(said) -> None:
    """At 100,000 tokens and words each such tensor is 40 GB: one slip, and a training that fitted does not."""
    generator = torch.Generator().manual_seed(0)
    rows, classes = 64, 4096
    hidden = torch.randn(rows, 4, generator=generator, requires_grad=True)
    weight = torch.randn(classes, 4, generator=generator, requires_grad=True)
    teacher = HeadLogits(torch.randn(rows, 4, generator=generator), torch.randn(classes, 4, generator=generator))
    targets = teacher if said == "head" else sparse(teacher.at(1.0), said, 1.0)
    losses, labels = [RowLoss("forward_kl"), RowLoss(None)], torch.zeros(rows, dtype=torch.int64)
    with Largest() as made:
        total, _ = head_losses(
            HeadLogits(hidden, weight), targets, losses, [1.0, 0.5], labels=labels, blocks=Blocks(rows=2)
        )
        total.backward()
    # the weight's gradient, and two rows of student's and teacher's logits side by side
    assert made.numbers <= classes * 4


@pytest.mark.parametrize("place", ["student", "teacher"])
def test_a_nan_is_reported(place) -> None:
    """A NaN that a mask or a clamp turned into a zero would end as a healthy-looking loss."""
    mine, theirs = head(0), head(1, learns=False)
    spoilt = mine if place == "student" else theirs
    with torch.no_grad():
        spoilt.hidden[3, 2] = math.nan
    total, _ = head_divergence(mine, theirs, blocks=Blocks(rows=2))
    assert math.isnan(total.item())
    assert gradients(total, mine)[0][3].isnan().all()


def test_a_row_of_weight_zero_takes_no_part() -> None:
    """What is not supervised may hold anything, NaN included: it must neither cost nor spoil."""
    mine, theirs = head(0), head(1, learns=False)
    with torch.no_grad():
        mine.hidden[3] = math.nan
    weights = torch.ones(N, dtype=torch.float64)
    weights[3] = 0.0
    total, _ = head_divergence(mine, theirs, row_weights=weights)
    found = gradients(total, mine)
    assert all(bool(g.isfinite().all()) for g in found)
    assert float(found[0][3].abs().sum()) == 0.0


def test_no_rows_at_all() -> None:
    """A batch whose every token is a prompt's must be a loss of 0, not a crash in the middle of a night."""
    mine = head(0)
    labels = torch.full((N,), NO_LABEL)
    total, sums = head_losses(mine, None, [RowLoss(None)], [1.0], labels=labels)
    assert (total.item(), sums[0].item()) == (0.0, 0.0)
    assert all(float(g.abs().sum()) == 0.0 for g in gradients(total, mine))


def test_backward_twice_and_a_second_derivative_are_errors() -> None:
    """The gradients are handed over; rescaled a second time they would silently be squared."""
    mine = head(0)
    total, _ = head_divergence(mine, head(1, learns=False))
    (2 * total).backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second time"):
        total.backward()
    total, _ = head_divergence(mine, head(1, learns=False))
    with pytest.raises(RuntimeError, match="second derivative"):
        torch.autograd.grad(total, mine.hidden, create_graph=True)


def test_autocast_does_not_lower_the_precision() -> None:
    """Logits rounded to bfloat16 before the softmax are 4 to 23% off in the gradient."""
    mine, theirs = head(0, torch.float32), head(1, torch.float32, learns=False)
    plain, _ = head_divergence(mine, theirs)
    with torch.autocast("cpu", torch.bfloat16):
        inside, _ = head_divergence(mine, theirs)
    assert inside.item() == plain.item()


def test_a_loss_scaler_meets_small_gradients_before_they_are_rounded() -> None:
    """Under float16 a student near its teacher would get a gradient of zero, with a finite loss to show for it."""
    given = head(0)
    hidden = given.hidden.detach().half().requires_grad_()
    weight = given.weight.detach().float()
    near = Logits((hidden.detach().float() @ weight.T) * 1.001)
    total, _ = head_divergence(HeadLogits(hidden, weight), near)
    (found,) = torch.autograd.grad(total * 1e-3, hidden, torch.tensor(65536.0))
    exact = hidden.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(head_divergence(HeadLogits(exact, weight.double()), near)[0] * 1e-3, exact)
    assert relative(found.double() / 65536, expected) < 2e-3


def test_a_teacher_of_low_precision_does_not_lower_the_students(monkeypatch) -> None:
    """On a CPU that multiplies bfloat16 a float32 student's gradient would be rounded to 8 bits for its teacher's sake."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    seen: list[tuple[torch.dtype, bool]] = []
    plain = torch.mm

    def watched(a, b, *, out):
        seen.append((a.dtype, torch.backends.mkldnn.matmul.fp32_precision == "bf16"))
        return plain(a, b, out=out)

    monkeypatch.setattr(torch, "mm", watched)
    mine, theirs = head(0, torch.float32), head(1, torch.bfloat16, learns=False)
    before = torch.backends.mkldnn.matmul.fp32_precision
    head_divergence(mine, theirs, blocks=Blocks(N, C))[0].backward()
    # the student's logits, the teacher's, and the student's two gradients
    assert [lowered for _, lowered in seen] == [False, True, False, False]
    seen.clear()
    head_divergence(head(0, torch.bfloat16), head(1, torch.float32, learns=False), blocks=Blocks(N, C))[0].backward()
    assert [lowered for _, lowered in seen] == [True, False, True, True]
    assert torch.backends.mkldnn.matmul.fp32_precision == before


def test_an_ensemble_at_a_high_temperature_keeps_its_precision() -> None:
    """At T = 1,000 the probabilities differ in their last digits alone, which float32 rounds away."""
    mine = head(0, torch.float32)
    values = torch.stack([multiplied(head(seed, learns=False)).float() for seed in (1, 2)])
    said = MixtureLogits(values, torch.tensor([0.3, 0.7]).double())
    total, _ = head_divergence(mine, said, "forward_kl", 1000.0, scale=1e6)
    exact = head(0)
    with torch.no_grad():
        for own, given in ((exact.hidden, mine.hidden), (exact.weight, mine.weight), (exact.bias, mine.bias)):
            own.copy_(given)
    q = (torch.softmax(values.double() / 1000, -1) * torch.tensor([0.3, 0.7]).double()[:, None, None]).sum(0)
    expected = 1e6 * (q * (q.log() - torch.log_softmax(multiplied(exact) / 1000, -1))).sum()
    for one, other in zip(gradients(total, mine), gradients(expected, exact), strict=True):
        assert relative(one, other) < 1e-5


def test_a_finite_difference_agrees() -> None:
    """Asks the function itself, through softcap, scale, bias and both losses, in random directions."""
    given, theirs, labels = head(0), head(1, learns=False), torch.arange(N)

    def value(*parts: torch.Tensor) -> torch.Tensor:
        mine = HeadLogits(*parts, 0.7, 4.0)
        return head_divergence(
            mine, theirs, "jensen_shannon", 2.0, labels=labels, label_weight=0.5, blocks=Blocks(rows=4)
        )[0]

    parts = [given.hidden, given.weight, given.bias]
    found = torch.autograd.grad(value(*parts), parts)
    generator, step = torch.Generator().manual_seed(5), 1e-6
    for _ in range(5):
        ways = [torch.randn(part.shape, generator=generator, dtype=torch.float64) for part in parts]
        with torch.no_grad():
            ahead, behind = (
                value(*[part + sign * step * way for part, way in zip(parts, ways, strict=True)]) for sign in (1, -1)
            )
        slope = sum((own * way).sum().item() for own, way in zip(found, ways, strict=True))
        assert (ahead - behind).item() / (2 * step) == pytest.approx(slope, rel=1e-6)


OBJECTIVES = [
    0.3 * CrossEntropy() + 0.7 * KL(temperature=4.0),
    0.3 * CrossEntropy() + 0.7 * KL(temperature=1.0),
    CrossEntropy(label_smoothing=0.2) + KL(direction="reverse"),
    0.5 * Divergence("jensen_shannon", temperature=2.0, beta=0.1) + 0.5 * KL(standardise=True),
    KL() + 0.0 * CrossEntropy(),
    0.2 * LogitMSE(centred=True),
    as_objective(CrossEntropy()),
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
@pytest.mark.parametrize("counted", [False, True])
def test_an_objective_is_the_same_on_a_head_as_on_logits(objective, counted) -> None:
    """Terms reach the head by themselves; a weight, a count or a T² lost on that road would go unnoticed."""
    mine, theirs = head(0), head(1, learns=False)
    labels = torch.arange(N) * 7
    labels[4] = NO_LABEL
    rows = {"labels": labels, "ids": torch.arange(N)}
    counts = torch.tensor([17, 23])[: len(objective.components)] if counted else None
    dense = objective(Signals(Logits(multiplied(mine))), Signals(Logits(multiplied(theirs))), rows, counts=counts)
    found = objective(Signals(mine), Signals(theirs), rows, counts=counts)
    assert found.total.item() == pytest.approx(dense.total.item(), rel=1e-9)
    assert list(found.components) == list(dense.components)
    for name, value in dense.components.items():
        assert float(found.components[name]) == pytest.approx(float(value), rel=1e-9)
    for one, other in zip(gradients(found.total, mine), gradients(dense.total, mine), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("term", [CrossEntropy(), CrossEntropy(0.1), KL(2.0), Divergence("total_variation")], ids=str)
def test_a_term_alone_is_the_same_on_a_head(term) -> None:
    """A term of a user's own sum calls terms one by one."""
    mine, theirs = head(0), head(1, learns=False)
    rows = {"labels": torch.arange(N), "ids": torch.arange(N)}
    found, count = term(Signals(mine), Signals(theirs), rows)
    dense, expected = term(Signals(Logits(multiplied(mine))), Signals(Logits(multiplied(theirs))), rows)
    assert found.item() == pytest.approx(dense.item(), rel=1e-9)
    assert int(count) == int(expected)


def test_a_masked_class_is_a_masked_class() -> None:
    """A bias of −inf masks a class: smoothing must not share with it, and a divergence must stay finite."""
    mine, theirs = head(0), head(1, learns=False)
    with torch.no_grad():
        mine.bias[5], theirs.bias[5] = -math.inf, -math.inf
    objective = CrossEntropy(label_smoothing=0.1) + KL()
    rows = {"labels": torch.full((N,), 9), "ids": torch.arange(N)}
    dense = objective(Signals(Logits(multiplied(mine))), Signals(Logits(multiplied(theirs))), rows)
    found = objective(Signals(mine), Signals(theirs), rows)
    assert found.total.item() == pytest.approx(dense.total.item(), rel=1e-9)


def test_a_tied_head_learns_from_both_sides() -> None:
    """With tied embeddings the weight has two gradients; one of them lost halves what the embeddings learn."""
    embedding = nn.Embedding(40, 8, dtype=torch.float64)
    tokens = torch.arange(12)
    teacher = Logits(torch.randn(12, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    total, _ = head_divergence(HeadLogits(embedding(tokens).tanh(), embedding.weight), teacher)
    (found,) = torch.autograd.grad(total, embedding.weight)
    logits = embedding(tokens).tanh() @ embedding.weight.T
    q = torch.softmax(teacher.values, -1)
    (expected,) = torch.autograd.grad(-(q * torch.log_softmax(logits, -1)).sum(), embedding.weight)
    torch.testing.assert_close(found, expected)


def test_what_makes_no_sense_is_refused() -> None:
    """Each would be a wrong number without a word."""
    mine, theirs = head(0), head(1, learns=False)
    with pytest.raises(ObjectiveError, match="unknown divergence"):
        head_divergence(mine, theirs, "kl")
    with pytest.raises(ObjectiveError, match="no parameter 'beta'"):
        head_divergence(mine, theirs, parameters={"beta": 0.1})
    with pytest.raises(ObjectiveError, match="temperature"):
        head_divergence(mine, theirs, temperature=0.0)
    with pytest.raises(ObjectiveError, match="row weight"):
        head_divergence(mine, theirs, row_weights=-torch.ones(N))
    with pytest.raises(TeacherError, match="rows"):
        head_divergence(mine, Logits(torch.zeros(N + 1, C)))
    with pytest.raises(ObjectiveError, match="label 900"):
        head_divergence(mine, theirs, labels=torch.full((N,), 900), label_weight=1.0)
    with pytest.raises(ObjectiveError, match="expected at least 1"):
        Blocks(rows=0)
    with pytest.raises(ObjectiveError, match="softcap"):
        head(0, softcap=-1.0)
    with pytest.raises(ObjectiveError, match="same D"):
        HeadLogits(torch.zeros(2, 3), torch.zeros(5, 4))
