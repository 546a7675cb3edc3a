"""Seven divergences between a teacher's and a student's distribution, per row and in nats.

Each function takes ``student_logits[N, C]``, ``teacher_logits[N, C]`` and a temperature, and returns ``[N]`` values; none
has a T² of its own, and none averages over anything. What holds for all of them:

- *Precision.* float32 or better whatever comes in (also under autocast): the values have the wider of the two inputs'
  dtypes and float32. Outside 1 ≤ T ≤ 16 the inside is float64, because a softmax at a high temperature is a constant
  plus a small difference which is all that matters. The gradient comes back in the student's dtype.
- *Gradient.* To the student only: the teacher is a constant. It is computed with the value, in one pass; a second
  derivative is an error.
- *Masks.* A class that both mask (logit −inf) adds nothing. Where only one masks it and the divergence is really
  infinite, the masked log-probability counts as −100 nats, so that value and gradient stay finite and large.
- *NaN.* A NaN or +inf logit, or a row that is masked throughout, gives NaN: never a silent zero.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tutelage.errors import ObjectiveError, TeacherError
from tutelage.objectives.definitions import DEFINITIONS, Definition, pair_of

#: Rows are taken in slices of about this many numbers: on a CPU so that the dozen passes over them stay in its caches, and
#: few enough that its threads seldom wait for each other; on an accelerator so that what is needed in between stays small.
_CPU_SLICE, _DEVICE_SLICE = 1 << 19, 1 << 25


def forward_kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(q‖p) = Σ q log(q/p): what the student misses of the teacher. Covers every mode.

    Zero (its minimum) exactly where p = q. Hinton, Vinyals & Dean 2015, §2, less the teacher's entropy, which is constant.

    Args:
        student_logits: ``[N, C]``; p is their softmax at ``temperature``.
        teacher_logits: ``[N, C]``; q is their softmax at ``temperature``.
        temperature: T > 0. As T → ∞, T² times the value tends to half the mean square of the centred logit difference.

    Returns:
        ``[N]``, nats.

    Raises:
        ObjectiveError: a temperature that is not positive and finite; logits that are not ``[N, C]`` floats.
        TeacherError: teacher and student with different rows or classes.
    """
    return row_divergence("forward_kl", student_logits, teacher_logits, temperature)


def reverse_kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(p‖q) = Σ p log(p/q): what the student claims beyond the teacher. Seeks a mode.

    Zero (its minimum) exactly where p = q. Gu et al. 2024 (MiniLLM), here per row. Arguments, result and errors as in
    :func:`forward_kl`.
    """
    return row_divergence("reverse_kl", student_logits, teacher_logits, temperature)


def jensen_shannon(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0, *, beta: float = 0.5
) -> Tensor:
    """Generalised Jensen–Shannon divergence, normalised: [β KL(q‖m) + (1−β) KL(p‖m)] / (4β(1−β)), m = βq + (1−β)p.

    The published one (Agarwal et al. 2024, GKD, §2) vanishes as β → 0 and β → 1, gradient and all, and
    implementations that switch to the full KL at exactly 0 and 1 have a cliff there: β = 0.001 trains a thousandth as
    fast as β = 0. Divided by 4β(1−β) it equals the published value at β = ½ and tends to forward KL / 4 at β = 0 and to
    reverse KL / 4 at β = 1, continuously. To reproduce a published β, multiply the weight by 4β(1−β).

    Zero (its minimum) exactly where p = q; at β = ½ at most log 2. Arguments, result and errors as in
    :func:`forward_kl`, and

    Args:
        student_logits: ``[N, C]``.
        teacher_logits: ``[N, C]``.
        temperature: T > 0.
        beta: the teacher's share of the mixture, in [0, 1]; an ObjectiveError outside.
    """
    return row_divergence("jensen_shannon", student_logits, teacher_logits, temperature, {"beta": beta})


def skew_forward_kl(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0, *, alpha: float = 0.1
) -> Tensor:
    """KL(q ‖ αq + (1−α)p): forward KL with a bounded gradient.

    Zero (its minimum) exactly where p = q; at most −log α. Ko et al. 2024 (DistiLLM), §3.1. Arguments, result and errors
    as in :func:`forward_kl`, and

    Args:
        student_logits: ``[N, C]``.
        teacher_logits: ``[N, C]``.
        temperature: T > 0.
        alpha: the share of the teacher mixed in, in [0, 1); an ObjectiveError outside.
    """
    return row_divergence("skew_forward_kl", student_logits, teacher_logits, temperature, {"alpha": alpha})


def skew_reverse_kl(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0, *, alpha: float = 0.1
) -> Tensor:
    """KL(p ‖ αp + (1−α)q): reverse KL that stays bounded where the teacher has no mass.

    Zero (its minimum) exactly where p = q; at most −log α. Ko et al. 2024 (DistiLLM), §3.1. Arguments, result and errors
    as in :func:`forward_kl`, and

    Args:
        student_logits: ``[N, C]``.
        teacher_logits: ``[N, C]``.
        temperature: T > 0.
        alpha: the share of the student mixed in, in [0, 1); an ObjectiveError outside.
    """
    return row_divergence("skew_reverse_kl", student_logits, teacher_logits, temperature, {"alpha": alpha})


def total_variation(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """½ Σ |p − q|: the largest difference in the probability of any event. Symmetric, in [0, 1], a number without unit.

    Zero (its minimum) exactly where p = q. Its gradient does not fade towards the minimum, and is 0 for a class on which
    the two agree. Wen et al. 2023 (f-distill). Arguments, result and errors as in :func:`forward_kl`.
    """
    return row_divergence("total_variation", student_logits, teacher_logits, temperature)


def alpha_beta(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0, *, alpha: float = 0.2, beta: float = 0.7
) -> Tensor:
    """Alpha-beta divergence −1/(αβ) Σ [q^α p^β − α/(α+β) q^(α+β) − β/(α+β) p^(α+β)], with its limits.

    (1, 0) is forward KL, (0, 1) reverse KL, (½, ½) four times the squared Hellinger distance, (0, 0) half the squared
    difference of log-probabilities. Zero (its minimum) exactly where p = q. Wang et al. 2025 (ABKD), with
    the limits at α = 0, β = 0 and α + β = 0 of Cichocki, Cruces & Amari 2011 (1/β², not 1/β, at α = 0). With a
    negative exponent a power may grow beyond any number: it is cut at e^60. Arguments, result and errors as in
    :func:`forward_kl`, and

    Args:
        student_logits: ``[N, C]``.
        teacher_logits: ``[N, C]``.
        temperature: T > 0.
        alpha: exponent of the teacher's probabilities; an ObjectiveError unless finite.
        beta: exponent of the student's probabilities; an ObjectiveError unless finite.
    """
    parameters = {"alpha": alpha, "beta": beta}
    return row_divergence("alpha_beta", student_logits, teacher_logits, temperature, parameters)


def row_divergence(
    name: str,
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float,
    parameters: Mapping[str, float] | None = None,
    *,
    scale: float = 1.0,
    summed: bool = False,
) -> Tensor:
    """The divergence called ``name``, times ``scale``, for each row or over all: the one path that all seven take.

    Args:
        name: a key of ``DEFINITIONS``.
        student_logits: ``[N, C]``.
        teacher_logits: ``[N, C]``.
        temperature: T > 0.
        parameters: all of the divergence's own.
        scale: factor of value and gradient, e.g. T².
        summed: return the sum over rows, which spares a small batch a step of autograd.

    Returns:
        ``[N]``, or 0-dim where ``summed``: nats times ``scale``. Errors as in :func:`forward_kl`.
    """
    definition = DEFINITIONS[name]
    parameters = parameters or {}
    definition.check(parameters)
    check_temperature(temperature)
    _check_shapes(student_logits, teacher_logits)
    how = _How(definition, parameters, temperature, scale)
    if torch.is_grad_enabled() and student_logits.requires_grad:
        return _RowDivergence.apply(student_logits, teacher_logits, how, summed)  # pyright: ignore[reportReturnType]
    value_N, _ = _value_and_gradient(student_logits, teacher_logits, how)
    return value_N.sum() if summed else value_N


def check_temperature(temperature: float) -> None:
    """Raise ObjectiveError unless 0 < T < ∞."""
    if not 0.0 < temperature < math.inf:
        raise ObjectiveError(
            f"temperature {temperature} is not a positive finite number: the softmax at it is no distribution "
            "(a negative one ranks the classes upside down); use T = 1 to leave the logits as they are"
        )


def working_dtype(temperature: float, *dtypes: torch.dtype) -> tuple[torch.dtype, torch.dtype]:
    """(dtype of the result, dtype to compute in) at a temperature, given the inputs' dtypes."""
    result = functools.reduce(torch.promote_types, dtypes, torch.float32)
    return result, result if 1.0 <= temperature <= 16.0 else torch.float64


def _check_shapes(student: Tensor, teacher: Tensor) -> None:
    if student.shape == teacher.shape and student.ndim == 2 and student.shape[1] > 0:
        if student.is_floating_point() and teacher.is_floating_point():
            return
        raise ObjectiveError(f"logits must be floating point, got student {student.dtype} and teacher {teacher.dtype}")
    for who, logits in (("student", student), ("teacher", teacher)):
        if logits.ndim != 2 or logits.shape[1] == 0:
            raise ObjectiveError(
                f"{who} logits must be rows [N, C] with at least one class, got shape {tuple(logits.shape)}: gather the "
                "supervised rows first, or positions and classes would be mixed up"
            )
    check_classes(teacher.shape[1], student.shape[1])
    raise TeacherError(
        f"teacher has {teacher.shape[0]:,} rows, student {student.shape[0]:,}: they describe different examples; give "
        "both the same batch"
    )


def check_classes(teacher: int, student: int) -> None:
    """Raise TeacherError where the class counts differ."""
    if teacher != student:
        raise TeacherError(
            f"teacher has {teacher:,} classes, student {student:,}: rows cannot be compared, and a truncated or padded "
            "one would put the teacher's mass on other classes; resize the student's head, or say which classes both know: "
            f"class_map=ClassMap(student={min(teacher, student):_}, teacher={min(teacher, student):_}) where the first ones are the same, "
            "in a config teacher.classes"
        )


class _How(NamedTuple):
    """What to compute of two sets of logits."""

    definition: Definition
    parameters: Mapping[str, float]
    temperature: float
    scale: float


class _RowDivergence(torch.autograd.Function):
    """Value and gradient are formed together in the forward pass; the backward pass only rescales."""

    @staticmethod
    def forward(ctx: Any, student_NC: Tensor, teacher_NC: Tensor, how: _How, summed: bool) -> Tensor:
        value_N, gradient_NC = _value_and_gradient(student_NC, teacher_NC, how)
        ctx.save_for_backward(gradient_NC)
        ctx.student_dtype = student_NC.dtype
        return value_N.sum() if summed else value_N

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        # once_differentiable costs a small batch more than the product, and matters only where a graph of this is made
        return _rescaled_once(ctx, grad) if torch.is_grad_enabled() else _rescaled(ctx, grad)


def _rescaled(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (gradient_NC,) = ctx.saved_tensors
    gradient_NC = gradient_NC * (grad if grad.ndim == 0 else grad.unsqueeze(1))
    if gradient_NC.dtype != ctx.student_dtype:
        gradient_NC = gradient_NC.to(ctx.student_dtype)
    return gradient_NC, None, None, None


_rescaled_once = once_differentiable(_rescaled)


def _value_and_gradient(student_NC: Tensor, teacher_NC: Tensor, how: _How) -> tuple[Tensor, Tensor]:
    """Values ``[N]`` and student-logit gradients ``[N, C]``, both times the scale and in the result's dtype."""
    rows, classes = student_NC.shape
    result, inside = working_dtype(how.temperature, student_NC.dtype, teacher_NC.dtype)
    if how.definition.needs_double(how.parameters):
        inside = torch.float64
    step = max(1, (_CPU_SLICE if student_NC.device.type == "cpu" else _DEVICE_SLICE) // classes)
    if rows <= step:
        value_N, gradient_NC = _slice(student_NC, teacher_NC, how, inside)
        return (value_N, gradient_NC) if inside == result else (value_N.to(result), gradient_NC.to(result))
    value_N = student_NC.new_empty(rows, dtype=result)
    gradient_NC = student_NC.new_empty(rows, classes, dtype=result)
    for start in range(0, rows, step):
        of = slice(start, start + step)
        value_N[of], gradient_NC[of] = _slice(student_NC[of], teacher_NC[of], how, inside)
    return value_N, gradient_NC


def _slice(student_NC: Tensor, teacher_NC: Tensor, how: _How, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    pair = pair_of(student_NC, teacher_NC, how.temperature, dtype)
    value_N, gradient_NC = how.definition.value_and_gradient(pair, how.parameters)
    if how.scale != how.temperature:
        gradient_NC = gradient_NC.mul_(how.scale / how.temperature)
    if student_NC.dtype == torch.float16:
        # A legitimate gradient at a low T may leave float16's range. What a loss scaler multiplies this with overflows as
        # ever, and is seen by it.
        gradient_NC = gradient_NC.clamp_(-65504.0, 65504.0)
    # what is below zero is rounding; NaN stays NaN
    value_N = value_N.relu_()
    return (value_N if how.scale == 1.0 else value_N.mul_(how.scale)), gradient_NC
