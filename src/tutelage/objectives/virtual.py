"""A teacher that nobody trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tutelage.errors import ObjectiveError
from tutelage.objectives.divergence import row_divergence
from tutelage.objectives.objective import Term
from tutelage.objectives.response import (
    check_flags,
    describe_fields,
    logits_of,
    set_number,
    set_temperature,
    value_at,
)
from tutelage.objectives.row_loss import check_labels
from tutelage.objectives.schedules import Schedule
from tutelage.signals import NO_LABEL, Rows, Signals


@dataclass(frozen=True)
class TeacherFree(Term):
    """KL from a virtual teacher that gives the label ``correct`` and shares the rest evenly, softened at T. In nats.

    Yuan et al. 2020 (Tf-KD_reg), §5.2: what a teacher without any knowledge of the classes' likeness is worth, that is,
    label smoothing with a temperature. A control for distillation as a regulariser: where it does as well, the teacher's
    dark knowledge was not what helped. The virtual teacher is softened as any other, ``softmax(log p / T)``, and so is the
    student; the paper has no T², which is the default here as for every soft term (``scale_by_t2=False`` leaves it out).

    At T = 1 its gradient is that of :class:`CrossEntropy` with ``label_smoothing = (1 − correct) · C / (C − 1)``.

    Args:
        temperature: T > 0, or a schedule.
        correct: the label's probability at T = 1, in (1/C, 1).
        scale_by_t2: multiply by T².
    """

    temperature: float | Schedule = 20.0
    correct: float = 0.9
    scale_by_t2: bool = True

    name = "teacher_free"
    needs = frozenset({"student.logits", "labels"})
    additive = True

    def __post_init__(self) -> None:
        set_temperature(self)
        set_number(self, "correct")
        check_flags(self, "scale_by_t2")
        if not 0.0 < self.correct < 1.0:
            raise ObjectiveError(
                f"correct={self.correct}: expected a probability inside (0, 1); at 1 the virtual teacher is the label itself, which "
                "cross_entropy is for"
            )

    def __call__(
        self,
        student: Signals,
        teacher: Signals | None,  # noqa: ARG002 - every term's signature
        rows: Rows,
        progress: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """(sum over labelled rows in nats, times T² by default; their number).

        Raises:
            ObjectiveError: a label outside the classes, or ``correct`` not above 1/C, which would teach the wrong classes.
        """
        temperature = value_at(self.temperature, progress)
        student_NC, labels_N = logits_of(student, "student", self.name).at(temperature), rows["labels"]
        classes = student_NC.shape[1]
        if self.correct * classes <= 1.0:
            raise ObjectiveError(
                f"teacher_free gives the label {self.correct:g} of {classes:,} classes, which is no more than its share: the student "
                "would be driven away from the labels; raise correct"
            )
        check_labels(labels_N, classes)
        labelled_N = labels_N != NO_LABEL
        student_NC, labels_N = student_NC[labelled_N], labels_N[labelled_N]
        dtype = torch.promote_types(student_NC.dtype, torch.float32)
        rest = math.log((1.0 - self.correct) / (classes - 1))
        virtual_NC = torch.full(student_NC.shape, rest, dtype=dtype, device=student_NC.device)
        # a class that the student masks has no share: its virtual probability would make the divergence infinite
        virtual_NC.masked_fill_(student_NC == -torch.inf, -torch.inf)
        virtual_NC.scatter_(1, labels_N[:, None], math.log(self.correct))
        scale = temperature * temperature if self.scale_by_t2 else 1.0
        total = row_divergence("forward_kl", student_NC, virtual_NC, temperature, scale=scale, summed=True)
        return total, self.count(rows)

    def describe(self) -> dict[str, Any]:
        """``{"term": "teacher_free", "temperature": T, …}``."""
        return describe_fields(self)
