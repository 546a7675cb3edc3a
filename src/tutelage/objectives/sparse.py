"""Divergences from a teacher of which only some classes are kept: sampled ones without bias, or the k most probable.

Each is still that of :mod:`tutelage.objectives.definitions`. What a form cannot serve is refused:

- *sampled* targets estimate what is linear in the teacher's probabilities. Of the seven divergences that is the gradient of
  the forward KL alone, and of those that are forward KL at their end of the scale.
- *top-k* targets give the divergence between the two distributions over K + 1 classes: the kept ones, and all others as one.
  Joining classes never makes an f-divergence larger, so that this is a lower bound of the whole one; what it leaves out is
  how the teacher's tail is shared among its classes. The gradient is that of this bound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tutelage.errors import ObjectiveError, TeacherError
from tutelage.objectives.definitions import DEFINITIONS, MASKED_LOG_PROB, Pair
from tutelage.objectives.divergence import check_classes, check_temperature, working_dtype
from tutelage.signals import SparseTargets

#: Log-probabilities at or below this come from a mask (−inf, or a dtype's lowest number), not from a model.
_MASK_BELOW = -1e9
#: A student with less than this on all of the rest together has no gradient there: the factor of a smaller mass would leave
#: float32's range, and its product with a probability that underflowed would be NaN.
_LEAST_REST = 1e-30
#: That factor is cut here, which only negative exponents of the alpha-beta divergence reach besides.
_LARGEST_FACTOR = 1e37
#: Exponents of the alpha-beta divergence that sum to 1 within this make an f-divergence of it.
_SUM_TO_ONE = 1e-9
#: Rows are taken in slices of about this many numbers, as dense divergences are.
_CPU_SLICE, _DEVICE_SLICE = 1 << 19, 1 << 25


def refuse_sparse(name: str, parameters: Mapping[str, float], targets: SparseTargets, temperature: float) -> None:
    """Raise ObjectiveError, with the reason, where these targets cannot serve this divergence at this temperature.

    Args:
        name: a key of ``DEFINITIONS``.
        parameters: all of the divergence's own.
        targets: the teacher's; only their form and temperature are looked at.
        temperature: the T that is asked for.
    """
    if not math.isclose(temperature, targets.temperature, rel_tol=1e-6):
        raise ObjectiveError(
            f"{name} is asked for at T = {temperature:g}, and the teacher's {targets.form} targets were taken at T = "
            f"{targets.temperature:g}: without the classes that were not kept there is no going from one temperature to the other; "
            f"set the term's temperature to {targets.temperature:g}, or store targets at {temperature:g}"
        )
    shown = name + (f" ({', '.join(f'{key} = {value:g}' for key, value in parameters.items())})" if parameters else "")
    if targets.form == "sampled":
        if _share_of_forward_kl(name, parameters) is None:
            raise ObjectiveError(
                f"{shown} cannot be had from sampled targets: they estimate what is linear in the teacher's probabilities, which is the "
                "gradient of forward_kl alone; a class that was not drawn would count as impossible, and the gradient would be biased by "
                "an unknown amount; use forward_kl, or store top-k or dense targets"
            )
    elif name == "alpha_beta" and abs(parameters["alpha"] + parameters["beta"] - 1.0) > _SUM_TO_ONE:
        raise ObjectiveError(
            f"{shown} cannot be had from top-k targets: unless alpha + beta = 1, its value for classes joined into one is no bound of "
            "their own, and would change with how many were joined; let the exponents sum to 1, or store dense targets"
        )


def sparse_terms(
    name: str,
    log_p_NK: Tensor,
    log_rest_N: Tensor | None,
    targets: SparseTargets,
    parameters: Mapping[str, float] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Value and student-logit gradient of each row, from the student's log-probabilities at the kept places alone.

    Nothing is checked here (it is called for every chunk): call :func:`refuse_sparse` once before. A sampled value may be
    negative in a single row, as an estimate of something near zero; without the entropy it is a cross-entropy. A student's
    masked class counts as −100 nats, as in the dense divergences. NaN stays NaN.

    Args:
        name: a key of ``DEFINITIONS``.
        log_p_NK: the student's log-probabilities at ``targets.ids`` and ``targets.temperature``; anything where not used. In
            float64 where T is outside 1..16.
        log_rest_N: log of the student's probability of all other classes together, see :func:`log_rest`; may be None for
            sampled targets, which do not need it.
        targets: N rows of kept classes.
        parameters: all of the divergence's own.

    Returns:
        ``value[N]`` in nats; ``G[N, K]``, the derivative by T · z at the kept classes (divide by T), 0 where not used; and ``a[N]``,
        such that every other class j has ``G_j = a · p_j``. All in float32 or better. Write G over a · p (:func:`write_kept`): a may
        be so large that adding the difference would lose it.
    """
    definition = DEFINITIONS[name]
    parameters = {**definition.parameters, **(parameters or {})}
    result, inside = working_dtype(targets.temperature, log_p_NK.dtype)
    if definition.needs_double(parameters):
        inside = torch.float64
    used_NK = targets.ids >= 0
    log_p_NK = log_p_NK.to(inside).masked_fill(~used_NK, MASKED_LOG_PROB)
    p_NK = log_p_NK.exp().masked_fill(~used_NK, 0.0)
    log_p_NK = torch.threshold(log_p_NK, _MASK_BELOW, MASKED_LOG_PROB)
    if targets.form == "sampled":
        share = _share_of_forward_kl(name, parameters)
        terms = _sampled_terms(log_p_NK, p_NK, targets, 1.0 if share is None else share)
    else:
        if log_rest_N is None:
            raise ObjectiveError(
                "top-k targets need log_rest_N, the student's mass on the classes that are not kept: compare with that of the teacher"
            )
        terms = _top_k_terms(name, log_p_NK, p_NK, log_rest_N.to(inside), targets, parameters)
    value_N, gradient_NK, factor_N = terms
    return value_N.to(result), gradient_NK.to(result), factor_N.to(result)


def _sampled_terms(
    log_p_NK: Tensor, p_NK: Tensor, targets: SparseTargets, share: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy with the weights w, less the entropy: its gradient p · Σw − w is linear in them."""
    w_NK = targets.probs.to(log_p_NK.dtype)
    mass_N = w_NK.sum(-1)
    value_N = -(w_NK * log_p_NK).sum(-1)
    if targets.entropy is not None:
        value_N = value_N - targets.entropy.to(value_N)
    gradient_NK = p_NK * mass_N[:, None] - w_NK
    return value_N * share, gradient_NK * share, mass_N * share


def _top_k_terms(
    name: str,
    log_p_NK: Tensor,
    p_NK: Tensor,
    log_rest_N: Tensor,
    targets: SparseTargets,
    parameters: Mapping[str, float],
) -> tuple[Tensor, Tensor, Tensor]:
    """The dense definition over K + 1 classes; the last one's gradient is shared as the student shares its mass."""
    q_NK1 = _with_rest(targets).to(log_p_NK.dtype)
    log_q_NK1 = torch.threshold(q_NK1.log(), _MASK_BELOW, MASKED_LOG_PROB)
    full_N = (targets.ids >= 0).sum(-1) >= targets.classes
    # where every class is kept, what is left of the student's mass is rounding
    log_rest_N = torch.where(full_N & ~log_rest_N.isnan(), -torch.inf, log_rest_N)
    p_NK1 = torch.cat((p_NK, log_rest_N.exp()[:, None]), dim=1)
    log_rest_N = torch.threshold(log_rest_N, _MASK_BELOW, MASKED_LOG_PROB)
    log_p_NK1 = torch.cat((log_p_NK, log_rest_N[:, None]), dim=1)
    pair = Pair(log_p_NK1, p_NK1, log_q_NK1, q_NK1)
    value_N, gradient_NK1 = DEFINITIONS[name].value_and_gradient(pair, parameters)
    factor_N = gradient_NK1[:, -1] / p_NK1[:, -1].clamp(min=_LEAST_REST)
    factor_N = factor_N.clamp(-_LARGEST_FACTOR, _LARGEST_FACTOR)
    return value_N.relu(), gradient_NK1[:, :-1], factor_N


def _with_rest(targets: SparseTargets) -> Tensor:
    """The teacher's distribution ``[N, K + 1]`` over the kept classes and the rest, float64.

    The rest is 1 − Σ, of which rounding leaves nothing where it is small. Two bounds hold then: it is not told from the
    probabilities' own rounding, and no class of it is more probable than the least of the kept.
    """
    q_NK = targets.probs.double()
    used_NK = targets.ids >= 0
    least_N = q_NK.masked_fill(~used_NK, torch.inf).amin(-1)
    others_N = targets.classes - used_NK.sum(-1)
    rounding = torch.finfo(targets.probs.dtype).eps
    # nothing is left where every class is kept, whatever the least of them (∞ · 0 is NaN in a row without any)
    most_N = torch.where(others_N > 0, others_N * least_N, 0.0)
    rest_N = torch.minimum((1.0 - q_NK.sum(-1)).clamp(min=rounding), most_N)
    q_NK1 = torch.cat((q_NK, rest_N[:, None]), dim=1)
    return q_NK1 / q_NK1.sum(-1, keepdim=True)


def sparse_gradient(
    name: str, log_p_NC: Tensor, p_NC: Tensor, targets: SparseTargets, parameters: Mapping[str, float]
) -> tuple[Tensor, Tensor]:
    """:func:`sparse_terms` over all classes of a few rows.

    Args:
        name: a key of ``DEFINITIONS``.
        log_p_NC: the student's log-probabilities at ``targets.temperature``.
        p_NC: and its probabilities; neither is written to.
        targets: of these rows.
        parameters: all of the divergence's own.

    Returns:
        ``value[N]`` in nats, and the gradient ``[N, C]`` by T · z (divide by T).
    """
    rest_N = log_rest(log_p_NC, targets.ids) if targets.form == "top_k" else None
    log_p_NK = log_p_NC.gather(1, targets.ids.clamp(min=0))
    value_N, kept_NK, factor_N = sparse_terms(name, log_p_NK, rest_N, targets, parameters)
    return value_N, write_kept(p_NC * factor_N[:, None], targets.ids, kept_NK)


def log_rest(logits_NC: Tensor, ids_NK: Tensor) -> Tensor:
    """Log of the probability that the softmax gives to all classes but the kept ones, from the rest's own logits.

    1 − Σ p would be lost to rounding where the kept classes hold nearly everything; −inf where every class is kept.

    Args:
        logits_NC: already divided by the temperature, in float32 or better.
        ids_NK: kept classes, −1 where not used; at least one a row is.

    Returns:
        ``[N]``, nats, ≤ 0.
    """
    return torch.logsumexp(_without(logits_NC, ids_NK), dim=-1) - torch.logsumexp(logits_NC, dim=-1)


def _without(logits_NC: Tensor, ids_NK: Tensor) -> Tensor:
    # an unused place strikes out again what another one does: class 0 in its stead would be taken from the rest
    again_NK = torch.where(ids_NK < 0, ids_NK.amax(-1, keepdim=True), ids_NK)
    return logits_NC.scatter(1, again_NK, -torch.inf)


def write_kept(gradient_NC: Tensor, ids_NK: Tensor, kept_NK: Tensor) -> Tensor:
    """The kept classes' own gradient in place of the rest's; an unused place writes again what another one writes."""
    last_N1, place_N1 = ids_NK.max(-1, keepdim=True)
    # a row that keeps nothing has nothing to teach: its gradient is 0 throughout, at class 0 too
    again_NK = torch.where(ids_NK < 0, last_N1.clamp(min=0), ids_NK)
    return gradient_NC.scatter_(1, again_NK, torch.where(ids_NK < 0, kept_NK.gather(1, place_N1), kept_NK))


def row_sparse(
    name: str,
    student_logits: Tensor,
    targets: SparseTargets,
    temperature: float,
    parameters: Mapping[str, float] | None = None,
    scale: float = 1.0,
) -> Tensor:
    """The divergence called ``name`` from sparse targets, times ``scale``, for each row of a dense student.

    Args:
        name: a key of ``DEFINITIONS``.
        student_logits: ``[N, C]``; the gradient comes back in its dtype.
        targets: N rows of kept classes, see :class:`tutelage.signals.SparseTargets`.
        temperature: T > 0, the targets' own.
        parameters: all of the divergence's own.
        scale: factor of value and gradient, e.g. T².

    Returns:
        ``[N]``, nats times ``scale``, in float32 or better. A second derivative is an error.

    Raises:
        ObjectiveError: a divergence or a temperature that the targets cannot serve; logits that are not ``[N, C]`` floats.
        TeacherError: targets of other rows or classes.
    """
    parameters = {**DEFINITIONS[name].parameters, **(parameters or {})}
    DEFINITIONS[name].check(parameters)
    check_temperature(temperature)
    refuse_sparse(name, parameters, targets, temperature)
    if student_logits.ndim != 2 or not student_logits.is_floating_point():
        raise ObjectiveError(
            f"student logits must be floating-point rows [N, C], got {student_logits.dtype} {tuple(student_logits.shape)}: gather the "
            "supervised rows first, or positions and classes would be mixed up"
        )
    check_classes(targets.classes, student_logits.shape[1])
    if targets.ids.shape[0] != student_logits.shape[0]:
        raise TeacherError(
            f"teacher has {targets.ids.shape[0]:,} rows, student {student_logits.shape[0]:,}: they describe different examples; give "
            "both the same batch"
        )
    how = _How(name, parameters, temperature, scale)
    if torch.is_grad_enabled() and student_logits.requires_grad:
        return _RowSparse.apply(student_logits, targets, how)  # pyright: ignore[reportReturnType]
    return _value_and_gradient(student_logits, targets, how)[0]


class _How(NamedTuple):
    """What to compute of logits and targets."""

    name: str
    parameters: Mapping[str, float]
    temperature: float
    scale: float


class _RowSparse(torch.autograd.Function):
    """Value and gradient are formed together in the forward pass; the backward pass only rescales."""

    @staticmethod
    def forward(ctx: Any, student_NC: Tensor, targets: SparseTargets, how: _How) -> Tensor:
        value_N, gradient_NC = _value_and_gradient(student_NC, targets, how)
        ctx.save_for_backward(gradient_NC)
        ctx.student_dtype = student_NC.dtype
        return value_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient_NC,) = ctx.saved_tensors
        return (gradient_NC * grad[:, None]).to(ctx.student_dtype), None, None


def _value_and_gradient(student_NC: Tensor, targets: SparseTargets, how: _How) -> tuple[Tensor, Tensor]:
    """Values ``[N]`` and student-logit gradients ``[N, C]``, both times the scale and in the result's dtype."""
    rows, classes = student_NC.shape
    result, inside = working_dtype(how.temperature, student_NC.dtype)
    if DEFINITIONS[how.name].needs_double(how.parameters):
        inside = torch.float64
    value_N = student_NC.new_empty(rows, dtype=result)
    gradient_NC = student_NC.new_empty(rows, classes, dtype=result)
    step = max(1, (_CPU_SLICE if student_NC.device.type == "cpu" else _DEVICE_SLICE) // classes)
    for start in range(0, rows, step):
        of = slice(start, start + step)
        log_p_NC = torch.log_softmax(student_NC[of].to(inside) / how.temperature, dim=-1)
        found = sparse_gradient(how.name, log_p_NC, log_p_NC.exp(), targets.rows(of), how.parameters)
        value_N[of], gradient_NC[of] = found[0] * how.scale, found[1] * (how.scale / how.temperature)
    if student_NC.dtype == torch.float16:
        # as in the dense divergences: what leaves float16's range here is a gradient, not an error
        gradient_NC.clamp_(-65504.0, 65504.0)
    return value_N, gradient_NC


def _share_of_forward_kl(name: str, parameters: Mapping[str, float]) -> float | None:
    """What multiple of the forward KL the divergence is at exactly these parameters; None where it is another."""
    forward = {
        "forward_kl": (1.0, {}),
        "jensen_shannon": (0.25, {"beta": 0.0}),
        "skew_forward_kl": (1.0, {"alpha": 0.0}),
        "alpha_beta": (1.0, {"alpha": 1.0, "beta": 0.0}),
    }
    if name not in forward:
        return None
    share, needed = forward[name]
    return share if all(parameters[key] == value for key, value in needed.items()) else None
