"""Distributions over two vocabularies, compared without asking which token is which."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tutelage.errors import ObjectiveError, TeacherError
from tutelage.objectives.objective import Term
from tutelage.objectives.response import describe_fields, logits_of
from tutelage.signals import SORTED, Rows, Signals, feature_need

#: Numbers in a slice of rows: what is needed in between stays small.
_SLICE = 1 << 22


@dataclass(frozen=True)
class UniversalLogitDistance(Term):
    """Σ_i |p₍ᵢ₎ − q₍ᵢ₎|, the student's and the teacher's probabilities each from the largest to the smallest, at T = 1. Per row 0 to 2.

    Boizard et al. 2024 (ULD), §3: the optimal transport between two distributions where moving mass costs the same from each token to each;
    the smaller vocabulary has 0 for what it lacks. The authors let the i-th token of one text meet the i-th of the other; here rows meet
    where a token of both begins in the text. The student's other rows add 0 and count, so that where a share a of the rows meets the term
    weighs a times what its weight says.

    It misleads by what it does not see: a student that is as sure as the teacher of the wrong token has distance 0, and the same
    distribution over shuffled tokens is the minimum too. It teaches how sure to be, and the labels have to say of what: add
    ``cross_entropy``. Where both vocabularies are byte-exact, :class:`tutelage.teachers.crossing.CrossTokenizerTeacher` tells token
    from token; where they are one, use ``kl``.
    """

    name = "uld"
    needs = frozenset({"student.logits", feature_need("teacher", SORTED)})
    additive: ClassVar[bool] = True

    def __call__(
        self,
        student: Signals,
        teacher: Signals | None,
        rows: Rows,
        progress: float = 0.0,  # noqa: ARG002 - every term's signature
    ) -> tuple[Tensor, Tensor]:
        """(sum over the rows that meet, the number of all rows).

        Raises:
            ObjectiveError: no logits of the student's, or no sorted probabilities of the teacher's.
            TeacherError: another number of rows, or probabilities that are not sorted.
        """
        student_NC = logits_of(student, "student", self.name).at(1.0)
        q_NC = None if teacher is None else teacher.features.get(SORTED)
        if q_NC is None:
            raise ObjectiveError(
                f"the term 'uld' needs the teacher's feature {SORTED!r}, and there is none: wrap the teacher, SortedTeacher(teacher, "
                "crossing), or say alignment: uld in a config"
            )
        _check(q_NC, len(student_NC))
        return _Distance.apply(student_NC, q_NC.detach()), self.count(rows)  # pyright: ignore[reportUnknownMemberType, reportReturnType]

    def describe(self) -> dict[str, Any]:
        """``{"term": "uld"}``."""
        return describe_fields(self)


def _check(q_NC: Tensor, rows: int) -> None:
    if q_NC.ndim != 2 or len(q_NC) != rows:
        raise TeacherError(
            f"the teacher's {SORTED} are {tuple(q_NC.shape)} for {rows:,} of the student's rows: expected [N, C], a row of zeros where "
            "none meets; rows would meet other text's rows"
        )
    if bool((q_NC.diff(dim=1) > 0).any()):
        raise TeacherError(
            f"the teacher's {SORTED} rise within a row: they are compared place by place, and the sum would be no distance; sort them from "
            "the largest to the smallest"
        )


class _Distance(torch.autograd.Function):
    """The sum and its gradient in one pass; no permutation is kept."""

    @staticmethod
    def forward(ctx: Any, student_NC: Tensor, q_NC: Tensor) -> Tensor:
        dtype = torch.promote_types(torch.promote_types(student_NC.dtype, q_NC.dtype), torch.float32)
        gradient_NC = torch.zeros_like(student_NC)
        total = student_NC.new_zeros((), dtype=dtype)
        meeting = (q_NC[:, 0] > 0).nonzero()[:, 0]
        wide = max(student_NC.shape[1], q_NC.shape[1])
        for rows in meeting.split(max(_SLICE // wide, 1)):
            p_RC = torch.softmax(student_NC[rows].to(dtype), dim=-1)
            sorted_RC, order_RC = p_RC.sort(dim=-1, descending=True)
            theirs_RC = q_NC[rows].to(dtype)
            shared = min(sorted_RC.shape[1], theirs_RC.shape[1])
            difference_RC = sorted_RC.clone()
            difference_RC[:, :shared] -= theirs_RC[:, :shared]
            total += difference_RC.abs().sum() + theirs_RC[:, shared:].sum()
            phi_RC = torch.zeros_like(p_RC).scatter_(1, order_RC, difference_RC.sign())
            phi_RC -= (p_RC * phi_RC).sum(dim=-1, keepdim=True)
            gradient_NC[rows] = (p_RC * phi_RC).to(gradient_NC.dtype)
        ctx.save_for_backward(gradient_NC)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient_NC,) = ctx.saved_tensors
        return gradient_NC * grad, None
