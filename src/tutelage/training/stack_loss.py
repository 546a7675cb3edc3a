"""The gradient of many students' objectives at their logits, each term asked once for all students that share it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.objectives import Objective, Schedule, Term
from tutelage.signals import AnyScores, ClassScores, Logits, MixtureLogits, Rows, Signals


@dataclass(frozen=True)
class Heard:
    """What a student meets in one step.

    Args:
        said: its teacher's signals on its batch; None without a teacher.
        rows: labels and ids of its batch.
    """

    said: Signals | None
    rows: Rows


@dataclass(frozen=True)
class _Shared:
    """One term, and for each student that has it the weight it gives it."""

    term: Term
    students: list[int]
    weights: list[Schedule]


class StackedLoss:
    """``Σ_k weight_k · sum_k / count_k`` of S students at once.

    A term whose sum is over rows alone (:attr:`Term.additive`) is asked once about the joined rows of all students that
    have it, and each student's share of the gradient is then scaled by its own weight and count; the others are asked
    student by student.
    """

    def __init__(self, objectives: Sequence[Objective]) -> None:
        self._objectives = objectives
        self._shared: list[_Shared] = []
        for student, objective in enumerate(objectives):
            for component in objective.components:
                same = next(
                    (s for s in self._shared if _same(s.term, component.term) and student not in s.students), None
                )
                if same is None or not component.term.additive:
                    same = _Shared(component.term, [], [])
                    self._shared.append(same)
                same.students.append(student)
                same.weights.append(component.weight)

    def gradients(self, logits: Tensor, heard: Sequence[Heard], progress: float) -> tuple[Tensor, bool]:
        """The gradient ``[S, B, C]`` at the logits ``[S, B, C]``, and whether every sum was finite.

        Args:
            logits: without a graph.
            heard: what each student meets.
            progress: fraction of the training that is done.
        """
        gradient = torch.zeros_like(logits)
        totals: list[Tensor] = []
        for shared in self._shared:
            # left out, not multiplied by 0, which would turn a NaN that weighs nothing into a NaN loss
            weights = [weight(progress) for weight in shared.weights]
            active = [(s, weight) for s, weight in zip(shared.students, weights, strict=True) if weight > 0.0]
            if not active:
                continue
            joined = _joined([heard[s] for s, _ in active], shared.term)
            parts = [active] if joined is not None else [[one] for one in active]
            for part in parts:
                met = joined if joined is not None else heard[part[0][0]]
                students = [s for s, _ in part]
                which = torch.tensor(students)
                total, own = _at(shared.term, logits.index_select(0, which), met, progress)
                totals.append(total)
                shares = logits.new_tensor([weight for _, weight in part]) / _counts(
                    shared.term, [heard[s] for s in students]
                )
                gradient.index_add_(0, which, own.mul_(shares[:, None, None]))
        fine = not totals or bool(torch.isfinite(torch.stack(totals)).all())
        return gradient, fine

    def values(self, student: int, logits: Tensor, heard: Heard, progress: float) -> tuple[float, dict[str, float]]:
        """One student's loss, and each component's mean, for its logits ``[B, C]``: what is logged."""
        with torch.no_grad():
            outcome = self._objectives[student](Signals(Logits(logits)), heard.said, heard.rows, progress=progress)
        return float(outcome.total), {name: float(value) for name, value in outcome.components.items()}


def _counts(term: Term, heard: Sequence[Heard]) -> Tensor:
    """``[A]``: the rows that the term counts for each student; students of one feed are counted once."""
    found: dict[int, Tensor] = {}
    for one in heard:
        if id(one.rows) not in found:
            found[id(one.rows)] = term.count(one.rows).clamp_min(1)
    return torch.stack([found[id(one.rows)] for one in heard])


def _same(a: Term, b: Term) -> bool:
    return type(a) is type(b) and a == b


def _at(term: Term, logits: Tensor, heard: Heard, progress: float) -> tuple[Tensor, Tensor]:
    """A term's sum over the rows of ``logits[A, B, C]``, and its gradient there."""
    rows_NC = logits.detach().flatten(0, 1).requires_grad_()
    with torch.enable_grad():
        total, _ = term(Signals(Logits(rows_NC)), heard.said, heard.rows, progress)
        (own,) = torch.autograd.grad(total, rows_NC, allow_unused=True) if total.requires_grad else (None,)
    return total.detach(), torch.zeros_like(logits) if own is None else own.view_as(logits)


def _joined(heard: Sequence[Heard], term: Term) -> Heard | None:
    """What several students meet as one batch of all their rows; None where a term or signal cannot be joined."""
    if not term.additive:
        return None
    rows: Rows = {
        "labels": torch.cat([one.rows["labels"] for one in heard]),
        "ids": torch.cat([one.rows["ids"] for one in heard]),
    }
    if "teacher.logits" not in term.needs:
        return Heard(None, rows)
    scores = _joined_scores([one.said.logits if one.said is not None else None for one in heard])
    return Heard(Signals(scores), rows) if scores is not None else None


def _joined_scores(scores: Sequence[AnyScores | None]) -> ClassScores | None:
    dense = [one for one in scores if isinstance(one, Logits)]
    if len(dense) == len(scores):
        return Logits(torch.cat([one.values for one in dense]))
    mixtures = [one for one in scores if isinstance(one, MixtureLogits)]
    if len(mixtures) < len(scores) or any(not torch.equal(one.weights, mixtures[0].weights) for one in mixtures):
        return None
    return MixtureLogits(torch.cat([one.members for one in mixtures], dim=1), mixtures[0].weights)
