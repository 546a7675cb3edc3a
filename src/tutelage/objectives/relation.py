"""Relations between the predictions instead of the predictions themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tutelage.objectives.decoupled import check_parts
from tutelage.objectives.divergence import working_dtype
from tutelage.objectives.objective import Term
from tutelage.objectives.response import (
    SOFT_NEEDS,
    check_flags,
    describe_fields,
    logit_pair,
    set_temperature,
    standardised,
    value_at,
)
from tutelage.objectives.schedules import Schedule
from tutelage.signals import Rows, Signals


@dataclass(frozen=True)
class DIST(Term):
    """β · (1 − Pearson correlation of each row's probabilities) + γ · (the same of each class's over the batch), times T².

    Huang et al. 2022 (DIST), §3: a student much smaller than its teacher keeps the order of the classes (inter), and of the
    examples within a class (intra), instead of the probabilities. A number without unit, 0 at the teacher, at most
    2(β + γ)T². The intra part is a property of a batch: accumulating small batches gives the mean of theirs, which is
    *not* that of the one big batch, and the last, smaller batch of an epoch gives a noisier one.

    A row or column that is constant has no correlation: it counts 0 where the other side's is constant too (a class
    that both mask), else 1, without gradient. An ensemble is mixed at T.

    Args:
        beta: weight of the inter-class part, ≥ 0.
        gamma: weight of the intra-class part, ≥ 0.
        temperature: T > 0, or a schedule.
        scale_by_t2: multiply by T², as the authors' code does.
        standardise: z-score each row of logits first, see :func:`tutelage.objectives.response.standardised`.
    """

    beta: float = 1.0
    gamma: float = 1.0
    temperature: float | Schedule = 1.0
    scale_by_t2: bool = True
    standardise: bool = False

    name = "dist"
    needs = SOFT_NEEDS

    def __post_init__(self) -> None:
        set_temperature(self)
        check_flags(self, "scale_by_t2", "standardise")
        check_parts(self, "beta", "gamma")

    def __call__(
        self, student: Signals, teacher: Signals | None, rows: Rows, progress: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """(number of rows times the batch's distance, times T² by default; the number of rows)."""
        temperature = value_at(self.temperature, progress)
        student_NC, teacher_NC = logit_pair(self, student, teacher, 1.0 if self.standardise else temperature)
        if self.standardise:
            student_NC, teacher_NC = standardised(student_NC), standardised(teacher_NC)
        result, dtype = working_dtype(temperature, student_NC.dtype, teacher_NC.dtype)
        p_NC = torch.softmax(student_NC.to(dtype) / temperature, dim=-1)
        q_NC = torch.softmax(teacher_NC.to(dtype) / temperature, dim=-1)
        inter = _distances(p_NC, q_NC).sum()
        intra = _distances(p_NC.T, q_NC.T).mean() * p_NC.shape[0]
        scale = temperature * temperature if self.scale_by_t2 else 1.0
        return ((self.beta * inter + self.gamma * intra) * scale).to(result), self.count(rows)

    def describe(self) -> dict[str, Any]:
        """``{"term": "dist", "beta": β, …}``."""
        return describe_fields(self)


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """1 − Pearson correlation of each row of ``a`` with that of ``b``, as half the squared distance of unit vectors."""
    (unit_a, constant_a), (unit_b, constant_b) = _unit(a), _unit(b)
    # for unit vectors that is the same, without the cancellation of 1 − ρ near ρ = 1
    distance = (unit_a - unit_b).square().sum(-1) / 2
    alone = (constant_a ^ constant_b).to(distance.dtype)
    return torch.where(constant_a | constant_b, alone, distance)


def _unit(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Each row centred and of length 1 (0 where constant), and whether it is constant up to rounding."""
    centred = rows - rows.mean(-1, keepdim=True)
    squares = centred.square().sum(-1, keepdim=True)
    noise = (4 * torch.finfo(rows.dtype).eps) ** 2 * rows.detach().square().sum(-1, keepdim=True)
    constant = squares <= noise
    return centred / torch.where(constant, 1.0, squares).sqrt(), constant.squeeze(-1)
