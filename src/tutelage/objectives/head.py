"""Losses on a head that is not multiplied out: no ``[N, C]`` tensor of logits, probabilities or gradients is ever kept.

A block of rows at a time, the logits of student and teacher are computed, the values of all losses and the gradient at the
logits, ``G = p ⊙ (φ − ⟨p, φ⟩) / T``, and from it at once the gradients of the hidden states and of the head, so that the
backward pass only rescales. Every divergence is the one of :mod:`tutelage.objectives.divergence`, by the same definition.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tutelage.errors import ObjectiveError, TeacherError
from tutelage.objectives.definitions import DEFINITIONS
from tutelage.objectives.divergence import check_classes, check_temperature, working_dtype
from tutelage.objectives.head_block import BlockLosses, rows_said
from tutelage.objectives.head_products import HeadGradients, HeadProducts
from tutelage.objectives.row_loss import RowLoss, check_labels
from tutelage.objectives.sparse import refuse_sparse
from tutelage.rows import for_slices, row_count
from tutelage.signals import NO_LABEL, AnyScores, ClassScores, HeadLogits, Logits, MixtureLogits, SparseTargets

#: Bytes that the logits of a block of rows may take, on a CPU and on an accelerator.
_CPU_MEMORY, _DEVICE_MEMORY = 256 << 20, 1 << 30


@dataclass(frozen=True)
class Blocks:
    """How a head is cut; what is None is chosen from the shapes and the memory.

    Args:
        rows: rows in a block.
        classes: classes that are multiplied at a time.
        memory_bytes: what the logits of a block may take; 256 MiB on a CPU, 1 GiB on an accelerator where None.

    Raises:
        ObjectiveError: a number below 1.
    """

    rows: int | None = None
    classes: int | None = None
    memory_bytes: int | None = None

    def __post_init__(self) -> None:
        for name in ("rows", "classes", "memory_bytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ObjectiveError(f"{name} of a head's blocks is {value}: expected at least 1, or None")

    def rows_for(self, rows: int, bytes_each: int, device: torch.device) -> int:
        """Rows in a block: as few blocks as the memory allows, of about the same size."""
        if self.rows is not None:
            return self.rows
        allowed = self.memory_bytes or (_CPU_MEMORY if device.type == "cpu" else _DEVICE_MEMORY)
        most = max(1, allowed // max(bytes_each, 1))
        blocks = -(-rows // most)
        return -(-rows // max(blocks, 1))


def head_divergence(
    student: HeadLogits,
    teacher: HeadLogits | Logits | MixtureLogits | SparseTargets,
    divergence: str = "forward_kl",
    temperature: float = 1.0,
    row_weights: Tensor | None = None,
    *,
    parameters: Mapping[str, float] | None = None,
    scale: float = 1.0,
    labels: Tensor | None = None,
    label_weight: float = 0.0,
    blocks: Blocks | None = None,
) -> tuple[Tensor, Tensor]:
    """A divergence between a teacher's and a student's distribution over all rows, without their ``[N, C]`` logits.

    Args:
        student: ``[N, D]`` hidden states and their head; the gradient goes to hidden, weight and bias, each only if it
            requires one.
        teacher: over the same N rows and C classes; a constant.
        divergence: a name of :mod:`tutelage.objectives.divergence`.
        temperature: T > 0.
        row_weights: ``[N]``, ≥ 0; a row of weight 0 is not computed. None for 1 each.
        parameters: the divergence's own (``beta``; ``alpha``); its defaults where left out.
        scale: factor of the divergence, e.g. T².
        labels: int64 ``[N]`` hard labels, ``NO_LABEL`` where there is none, whose cross-entropy is added.
        label_weight: factor of that cross-entropy.
        blocks: how to cut; by default chosen.

    Returns:
        (Σ row_weights · (scale · divergence + label_weight · cross-entropy) in nats, Σ row_weights), both 0-dim.

    Raises:
        ObjectiveError: a name, parameter, temperature or label outside its domain; sparse targets that cannot serve it.
        TeacherError: teacher and student with other classes or rows.
    """
    if divergence not in DEFINITIONS:
        raise ObjectiveError(f"unknown divergence {divergence!r}: one of {', '.join(DEFINITIONS)}")
    known = DEFINITIONS[divergence].parameters
    for key in parameters or {}:
        if key not in known:
            takes = ", ".join(known) or "none of its own"
            raise ObjectiveError(f"{divergence} has no parameter {key!r}: it takes {takes}")
    full = {**known, **(parameters or {})}
    losses = [RowLoss(divergence, temperature, full, scale)]
    factors = [1.0]
    if labels is not None:
        losses.append(RowLoss(None))
        factors.append(label_weight)
    total, _ = head_losses(student, teacher, losses, factors, labels=labels, row_weights=row_weights, blocks=blocks)
    rows = student.hidden.shape[0]
    return total, total.new_tensor(rows) if row_weights is None else row_weights.sum().to(total.dtype)


def head_losses(
    student: HeadLogits,
    teacher: AnyScores | None,
    losses: Sequence[RowLoss],
    factors: Sequence[float] | Tensor,
    *,
    labels: Tensor | None = None,
    row_weights: Tensor | None = None,
    blocks: Blocks | None = None,
) -> tuple[Tensor, Tensor]:
    """Several losses in one pass over the head.

    Args:
        student: hidden states and their head.
        teacher: as in :func:`head_divergence`; None where no loss is a divergence.
        losses: K of them.
        factors: ``[K]``; one that is exactly 0 has its value computed and takes no part in the gradient.
        labels: ``[N]``, for the cross-entropies.
        row_weights: ``[N]`` or None.
        blocks: how to cut.

    Returns:
        (Σ_k factor_k · sum_k with its gradient, the sums ``[K]`` without): 0-dim and ``[K]``, nats.
    """
    _check(student, teacher, losses, labels, row_weights)
    factors_K = torch.as_tensor(factors, dtype=torch.float64).tolist()
    if isinstance(teacher, ClassScores) and not isinstance(teacher, Logits | HeadLogits | MixtureLogits):
        teacher = for_slices(teacher)
    job = _Job(student, teacher, tuple(losses), tuple(factors_K), labels, row_weights, blocks or Blocks())
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in _learning(student)):
        return _HeadLosses.apply(student.hidden, student.weight, student.bias, job)  # pyright: ignore[reportReturnType]
    total, sums_K, *_ = _run(job, (False, False, False))
    return total, sums_K


@dataclass(frozen=True)
class _Job:
    student: HeadLogits
    teacher: AnyScores | None
    losses: tuple[RowLoss, ...]
    factors: tuple[float, ...]
    labels: Tensor | None
    row_weights: Tensor | None
    blocks: Blocks


def _learning(head: HeadLogits) -> tuple[Tensor | None, ...]:
    return head.hidden, head.weight, head.bias


class _HeadLosses(torch.autograd.Function):
    """The gradients are formed with the values; the backward pass rescales them."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, job: _Job) -> tuple[Tensor, Tensor]:
        total, sums_K, *gradients = _run(job, tuple(ctx.needs_input_grad[:3]))
        ctx.gradients = gradients
        ctx.dtypes = [hidden.dtype, weight.dtype, None if bias is None else bias.dtype]
        ctx.mark_non_differentiable(sums_K)
        return total, sums_K

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the losses of a head have no second derivative: call backward without create_graph=True"
            )
        if ctx.gradients is None:
            raise RuntimeError(
                "backward a second time through the losses of a head: their gradients, as large as the head, were handed over the first "
                "time; add the losses up before backward"
            )
        gradients, ctx.gradients = ctx.gradients, None
        if not (grad.device.type == "cpu" and float(grad) == 1.0):
            # in place: the weight's is as large as the weight
            gradients = [None if gradient is None else gradient.mul_(grad) for gradient in gradients]
        pairs = zip(gradients, ctx.dtypes, strict=True)
        return *(None if gradient is None else gradient.to(dtype) for gradient, dtype in pairs), None


def _run(job: _Job, learn: tuple[bool, ...]) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Total, sums ``[K]``, and the gradients of hidden ``[N, D]``, weight ``[R, D]`` and bias ``[R]`` where they learn."""
    student, device = job.student, job.student.hidden.device
    dtype, _ = working_dtype(1.0, *_dtypes(student), *_dtypes(job.teacher))
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        rows = _chosen_rows(job)
        count = student.hidden.shape[0] if rows is None else len(rows)
        products = HeadProducts(student, dtype, job.blocks.classes)
        theirs = HeadProducts(job.teacher, dtype, job.blocks.classes) if isinstance(job.teacher, HeadLogits) else None
        bytes_each = (1 if theirs is None else 2) * student.classes * dtype.itemsize
        step = max(1, min(job.blocks.rows_for(count, bytes_each, device), count))
        gradients = HeadGradients(products, learn)
        sums_K = torch.zeros(len(job.losses), dtype=torch.float64, device=device)
        block = BlockLosses(job.losses, job.factors, products, theirs, step, any(learn))
        for start in range(0, count, step):
            of = slice(start, min(start + step, count)) if rows is None else rows[start : start + step]
            hidden_ND = student.hidden[of].to(dtype)
            said = (
                job.teacher.hidden[of].to(dtype) if isinstance(job.teacher, HeadLogits) else rows_said(job.teacher, of)
            )
            labels_N = job.labels[of] if job.labels is not None else None
            weights_N = job.row_weights[of] if job.row_weights is not None else None
            gradient_NC = block.add(hidden_ND, said, labels_N, weights_N, sums_K)
            if gradient_NC is not None:
                gradients.add(gradient_NC, hidden_ND, of)
        del block  # its buffers, before the gradients are made what their weights are
        active = [k for k, factor in enumerate(job.factors) if factor != 0.0]
        total = sum((sums_K[k] * job.factors[k] for k in active), start=sums_K.new_zeros(()))
        return total.to(dtype), sums_K.to(dtype), *gradients.finished()


def _chosen_rows(job: _Job) -> Tensor | None:
    """The rows that some loss counts, int64; None for all."""
    counted = job.row_weights != 0 if job.row_weights is not None else None
    if all(loss.divergence is None for loss in job.losses):
        assert job.labels is not None
        labelled = job.labels != NO_LABEL
        counted = labelled if counted is None else counted & labelled
    return None if counted is None or bool(counted.all()) else counted.nonzero().squeeze(1)


def _dtypes(scores: AnyScores | None) -> list[torch.dtype]:
    if isinstance(scores, HeadLogits):
        return [scores.hidden.dtype, scores.weight.dtype]
    if isinstance(scores, MixtureLogits):
        return [scores.members.dtype]
    # sparse probabilities say nothing of how logits are computed
    return [scores.values.dtype] if isinstance(scores, Logits) else []


def _check(
    student: HeadLogits,
    teacher: AnyScores | None,
    losses: Sequence[RowLoss],
    labels: Tensor | None,
    row_weights: Tensor | None,
) -> None:
    rows, classes = student.hidden.shape[0], student.classes
    for loss in losses:
        check_temperature(loss.temperature)
        if loss.divergence is None:
            if labels is None:
                raise ObjectiveError("a cross-entropy is asked for, and there are no labels: give labels [N]")
            check_labels(labels, classes)
            _check_rows("labels", labels.shape[0], rows)
            continue
        DEFINITIONS[loss.divergence].check(loss.parameters)
        if teacher is None:
            raise ObjectiveError(f"{loss.divergence} is asked for, and there is no teacher: give its scores")
        check_classes(teacher.classes, classes)
        if isinstance(teacher, SparseTargets):
            refuse_sparse(loss.divergence, loss.parameters, teacher, loss.temperature)
    if teacher is not None:
        _check_rows("the teacher's scores", row_count(teacher), rows)
    if row_weights is not None:
        _check_rows("row_weights", row_weights.shape[0], rows)
        if bool((row_weights < 0).any()):
            raise ObjectiveError(
                f"a row weight is {float(row_weights.min()):g}: expected at least 0; below, a row would teach the opposite of its target"
            )


def _check_rows(what: str, got: int, rows: int) -> None:
    if got != rows:
        raise TeacherError(
            f"{what} have {got:,} rows, the student {rows:,}: they describe different rows; gather the same ones"
        )
