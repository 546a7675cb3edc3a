"""Sorted probabilities of two vocabularies, against the paper's sum in float64."""

import numpy as np
import pytest
import torch
from torch import Tensor

from tutelage.errors import ConfigError, ObjectiveError, TeacherError
from tutelage.objectives import CrossEntropy, UniversalLogitDistance, objective_from_config, universal
from tutelage.signals import SORTED, HeadLogits, Logits, Rows, Signals


def drawn(student: int, teacher: int, rows: int = 6) -> tuple[Tensor, Tensor]:
    """Logits of the student's, and sorted probabilities of the teacher's, of which row 2 meets nothing."""
    generator = torch.Generator().manual_seed(student + teacher)
    mine = 2 * torch.randn(rows, student, generator=generator, dtype=torch.float64)
    theirs = 2 * torch.randn(rows, teacher, generator=generator, dtype=torch.float64)
    q = theirs.softmax(-1).sort(-1, descending=True).values
    q[2] = 0
    return mine, q


def rows_of(count: int) -> Rows:
    return {"labels": torch.zeros(count, dtype=torch.int64), "ids": torch.arange(count)}


def distance(student: Tensor, q: Tensor) -> Tensor:
    said = Signals(None, {SORTED: q})
    return UniversalLogitDistance()(Signals(Logits(student)), said, rows_of(len(student)))[0]


def paper(student: Tensor, q: Tensor) -> float:
    """Boizard et al. 2024, eq. 6: both padded to one size, sorted, the absolute differences summed."""
    total = 0.0
    for z, theirs in zip(student.numpy(), q.numpy(), strict=True):
        if theirs.sum() == 0:
            continue
        size = max(len(z), len(theirs))
        p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
        both = [np.sort(np.pad(each, (0, size - len(each))))[::-1] for each in (p, theirs)]
        total += float(sum(abs(a - b) for a, b in zip(*both, strict=True)))
    return total


@pytest.mark.parametrize(("student", "teacher"), [(5, 5), (7, 4), (4, 9)])
def test_it_is_the_papers_sum(student: int, teacher: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one vocabulary has more of than the other would be left out of the distance, and a row that meets nothing pull at it."""
    mine, q = drawn(student, teacher)
    assert float(distance(mine, q)) == pytest.approx(paper(mine, q), rel=1e-12)
    monkeypatch.setattr(universal, "_SLICE", 1)
    assert float(distance(mine, q)) == pytest.approx(paper(mine, q), rel=1e-12)


@pytest.mark.parametrize(("student", "teacher"), [(5, 5), (7, 4), (4, 9)])
def test_the_gradient_is_that_of_the_sum(student: int, teacher: int) -> None:
    """It is worked out beside the value, and a sign or an order mistaken would train away from the teacher."""
    mine, q = drawn(student, teacher)
    mine.requires_grad_()
    assert torch.autograd.gradcheck(lambda logits: distance(logits, q), (mine,))
    (gradient,) = torch.autograd.grad(3 * distance(mine, q), mine)
    (one,) = torch.autograd.grad(distance(mine, q), mine)
    torch.testing.assert_close(gradient, 3 * one)
    assert not bool(gradient[2].any())


def test_it_does_not_see_which_token_is_which() -> None:
    """What its docstring warns of: the distance is 0 for the right distribution over the wrong tokens."""
    mine, _ = drawn(6, 6)
    q = mine.softmax(-1).sort(-1, descending=True).values
    assert float(distance(mine.flip(1), q)) == pytest.approx(0.0, abs=1e-12)
    uniform = torch.zeros(1, 6, dtype=torch.float64)
    sure = torch.eye(6, dtype=torch.float64)[:1]
    assert float(distance(uniform, sure)) == pytest.approx(2 * 5 / 6)


def test_half_precision_is_computed_in_single() -> None:
    """Probabilities in bfloat16 are told apart to three digits: a sorted tail would be a staircase."""
    mine, q = drawn(50, 60)
    low = mine.bfloat16().requires_grad_()
    value = distance(low, q.float())
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(paper(low.detach().double(), q), rel=1e-5)
    (gradient,) = torch.autograd.grad(value, low)
    assert gradient.dtype == torch.bfloat16


def test_every_row_counts_and_a_head_is_multiplied_out() -> None:
    """A count that the rows alone do not tell could not be summed over batches before the loss is known."""
    mine, q = drawn(5, 7)
    weight = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    hidden = mine[:, :3].clone().requires_grad_()
    blend = 0.5 * UniversalLogitDistance() + CrossEntropy()
    said = Signals(None, {SORTED: q})
    found = blend(Signals(HeadLogits(hidden, weight, None)), said, rows_of(6))
    dense = blend(Signals(Logits(hidden @ weight.T)), said, rows_of(6))
    torch.testing.assert_close(found.total, dense.total)
    assert float(found.components["uld"]) == pytest.approx(paper((hidden @ weight.T).detach(), q) / 6)
    grads = [torch.autograd.grad(each.total, hidden)[0] for each in (found, dense)]
    torch.testing.assert_close(*grads)


def test_a_config_names_it() -> None:
    """A term that a config cannot say again could not be resumed."""
    items = [{"term": "uld", "weight": 0.5}, {"term": "cross_entropy"}]
    described = objective_from_config(items).describe()
    assert described[0] == {"term": "uld", "weight": 0.5}
    assert objective_from_config(described).describe() == described
    with pytest.raises(ConfigError, match="has no option 'temperature'"):
        objective_from_config([{"term": "uld", "temperature": 2}])


def test_refused() -> None:
    """A teacher of the same vocabulary, other rows, or an unsorted row would give a number that is no distance."""
    mine, q = drawn(5, 5)
    term, rows = UniversalLogitDistance(), rows_of(6)
    with pytest.raises(ObjectiveError, match="alignment: uld"):
        term(Signals(Logits(mine)), Signals(Logits(mine)), rows)
    with pytest.raises(ObjectiveError, match="sorted probabilities"):
        (term + CrossEntropy()).check(Signals(Logits(mine)), Signals(Logits(mine)), rows)
    with pytest.raises(TeacherError, match=r"\(5, 5\) for 6"):
        distance(mine, q[:5])
    with pytest.raises(TeacherError, match="rise within a row"):
        distance(mine, q.flip(1))
