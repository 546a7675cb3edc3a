"""Decoupled knowledge distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tutelage.errors import ObjectiveError
from tutelage.objectives.divergence import row_divergence, working_dtype
from tutelage.objectives.objective import Term
from tutelage.objectives.response import (
    SOFT_NEEDS,
    check_flags,
    describe_fields,
    logit_pair,
    set_number,
    set_temperature,
    standardised,
    value_at,
)
from tutelage.objectives.row_loss import check_labels
from tutelage.objectives.schedules import Schedule
from tutelage.signals import NO_LABEL, Rows, Signals


@dataclass(frozen=True)
class DKD(Term):
    """α · KL over {target, the rest} + β · KL over the non-target classes alone, times T². Zhao et al. 2022 (DKD), §3.

    Forward KL is the same sum with α = 1 and β = the teacher's non-target mass; freeing β lets a confident teacher's
    dark knowledge count. In nats; zero (its minimum) where the distributions agree; over the rows that have a label. An
    ensemble is mixed at T. The paper ramps the weight up over 20 epochs: ``Piecewise([[0, 0], [0.1, 1]]) * DKD()``.

    Args:
        alpha: weight of the target part, ≥ 0.
        beta: weight of the non-target part, ≥ 0.
        temperature: T > 0, or a schedule.
        scale_by_t2: multiply by T², as the authors' code does.
        standardise: z-score each row of logits first, see :func:`tutelage.objectives.response.standardised`.
    """

    alpha: float = 1.0
    beta: float = 8.0
    temperature: float | Schedule = 4.0
    scale_by_t2: bool = True
    standardise: bool = False

    name = "dkd"
    needs = SOFT_NEEDS | {"labels"}
    additive = True

    def __post_init__(self) -> None:
        set_temperature(self)
        check_flags(self, "scale_by_t2", "standardise")
        check_parts(self, "alpha", "beta")

    def __call__(
        self, student: Signals, teacher: Signals | None, rows: Rows, progress: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """(sum over labelled rows in nats, times T² by default; their number).

        Raises:
            ObjectiveError: a label outside the classes, or a single class.
        """
        temperature = value_at(self.temperature, progress)
        student_NC, teacher_NC = logit_pair(self, student, teacher, 1.0 if self.standardise else temperature)
        labels_N = rows["labels"]
        if student_NC.shape[1] < 2:
            raise ObjectiveError(
                "dkd needs at least two classes: one class has no others to tell apart; use another term"
            )
        check_labels(labels_N, student_NC.shape[1])
        labelled_N = labels_N != NO_LABEL
        student_NC, teacher_NC, labels_N = student_NC[labelled_N], teacher_NC[labelled_N], labels_N[labelled_N]
        if self.standardise:
            student_NC, teacher_NC = standardised(student_NC), standardised(teacher_NC)
        _, dtype = working_dtype(temperature, student_NC.dtype, teacher_NC.dtype)
        mine = _decoupled(student_NC.to(dtype), labels_N, temperature)
        theirs = _decoupled(teacher_NC.to(dtype), labels_N, temperature)
        scale = temperature * temperature if self.scale_by_t2 else 1.0
        target, others = (
            row_divergence("forward_kl", of_student, of_teacher, temperature, scale=scale, summed=True)
            for of_student, of_teacher in zip(mine, theirs, strict=True)
        )
        return self.alpha * target + self.beta * others, self.count(rows)

    def describe(self) -> dict[str, Any]:
        """``{"term": "dkd", "alpha": α, …}``."""
        return describe_fields(self)


def _decoupled(logits_NC: Tensor, labels_N: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Logits of {target, the rest} ``[N, 2]``, and of the rest with the target masked ``[N, C]``, at a temperature."""
    labels_N1 = labels_N[:, None]
    others_NC = logits_NC.scatter(1, labels_N1, -torch.inf)
    rest_N1 = temperature * torch.logsumexp(others_NC / temperature, dim=-1, keepdim=True)
    return torch.cat([logits_NC.gather(1, labels_N1), rest_N1], dim=1), others_NC


def check_parts(term: Any, *names: str) -> None:
    """Make the fields floats; raise ObjectiveError unless they are ≥ 0 and not all 0."""
    for name in names:
        set_number(term, name)
    values = [getattr(term, name) for name in names]
    if min(values) < 0.0 or max(values) == 0.0:
        given = ", ".join(f"{name}={value}" for name, value in zip(names, values, strict=True))
        raise ObjectiveError(
            f"{term.name} has {given}: expected weights of at least 0 and one above; a negative one would drive the "
            "student away from its teacher, and with none it would learn nothing"
        )
