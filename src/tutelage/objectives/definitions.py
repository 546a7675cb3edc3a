"""The seven divergences, each defined once: its value and φ = ∂D/∂p, as plain tensor code without autograd.

Throughout, q is the teacher's distribution, p the student's and d = log p − log q. Every divergence here is a sum over
classes, so a definition may be given any slice of the classes and its values added up; the gradient with respect to the
student's logits is then ``G = p ⊙ (φ − ⟨p, φ⟩) / T``. φ matters only up to a constant: each is chosen to be exactly zero
where p = q, so that a student that equals its teacher gets a gradient of exactly zero.

Values are sums of Bregman terms (``q log(q/p) − q + p`` instead of ``q log(q/p)``): the added parts sum to zero, and the
rounding of the normalisers then enters squared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tutelage.errors import ObjectiveError

#: What a masked class (logit −inf) counts as on the side that masks it, in nats: log p = −100, as in PyTorch's own
#: ``binary_cross_entropy``. Its probability is exactly 0.
MASKED_LOG_PROB = -100.0
#: Log-probabilities at or below this come from a mask (−inf, or a dtype's lowest number), not from a model.
_MASK_BELOW = -1e9
#: Mixing weights below this are the limit itself: nothing that float64 can hold tells them from 0.
_TINY_WEIGHT = 1e-200
#: alpha, beta and alpha + beta below this are 0: the limit is then nearer than the rounding of the difference quotient.
_TINY_EXPONENT = 1e-8
#: Powers above e^60 (only negative exponents reach them) are cut there, so that float32 stays finite.
_LARGEST_EXPONENT = 60.0


class Pair(NamedTuple):
    """Teacher and student over the same rows and classes; ``log_p`` and ``log_q`` are finite unless a row is NaN."""

    log_p_NC: Tensor
    p_NC: Tensor
    log_q_NC: Tensor
    q_NC: Tensor


Terms = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Definition:
    """A divergence: value and φ, its parameters, and when float32 is not enough for it.

    Args:
        terms: (pair, parameters) -> (value_N in nats, p ⊙ φ as ``[N, C]``).
        parameters: names and defaults.
        check: raises ObjectiveError for parameters outside the domain.
        needs_double: whether these parameters lose too much in float32.
        centred: ⟨p, φ⟩ is zero by construction, and need not be subtracted.
    """

    terms: Callable[[Pair, Mapping[str, float]], Terms]
    parameters: Mapping[str, float]
    check: Callable[[Mapping[str, float]], None]
    needs_double: Callable[[Mapping[str, float]], bool]
    centred: bool = False

    def value_and_gradient(self, pair: Pair, parameters: Mapping[str, float]) -> Terms:
        """Values ``[N]`` in nats and ``p ⊙ (φ − ⟨p, φ⟩)``, which over T is the gradient by the student's logits ``[N, C]``."""
        value_N, p_phi_NC = self.terms(pair, parameters)
        if not self.centred:
            p_phi_NC = torch.addcmul(p_phi_NC, pair.p_NC, p_phi_NC.sum(-1, keepdim=True), value=-1)
        return value_N, p_phi_NC


def pair_of(student_NC: Tensor, teacher_NC: Tensor, temperature: float, dtype: torch.dtype) -> Pair:
    """Log-probabilities and probabilities at ``temperature``, computed in ``dtype``."""
    # one pass over both: on a small batch the number of operations is what costs
    logits_2NC = torch.stack((student_NC, teacher_NC))
    if logits_2NC.dtype != dtype:
        logits_2NC = logits_2NC.to(dtype)
    if temperature != 1.0:
        logits_2NC = logits_2NC.div_(temperature)
    log_p_2NC = torch.log_softmax(logits_2NC, dim=-1)
    p_2NC = log_p_2NC.exp()
    # threshold_ leaves NaN as it is, which masked_fill of a comparison on p would not
    log_p_NC, log_q_NC = torch.threshold_(log_p_2NC, _MASK_BELOW, MASKED_LOG_PROB).unbind()
    p_NC, q_NC = p_2NC.unbind()
    return Pair(log_p_NC, p_NC, log_q_NC, q_NC)


def _forward_kl(pair: Pair, parameters: Mapping[str, float]) -> Terms:  # noqa: ARG001 - it has none
    log_p_NC, p_NC, log_q_NC, q_NC = pair
    difference_NC = p_NC - q_NC
    value_N = torch.addcmul(difference_NC, q_NC, log_p_NC - log_q_NC, value=-1).sum(-1)
    return value_N, difference_NC


def _reverse_kl(pair: Pair, parameters: Mapping[str, float]) -> Terms:  # noqa: ARG001 - it has none
    log_p_NC, p_NC, log_q_NC, q_NC = pair
    p_phi_NC = (log_p_NC - log_q_NC).mul_(p_NC)
    return (p_phi_NC - p_NC).add_(q_NC).sum(-1), p_phi_NC


def _log_mix(d_NC: Tensor, weight: float) -> Tensor:
    """log(1 − w + w·e^d): exactly 0 at d = 0, and accurate for any d and any w in [0, 1]."""
    if weight > 0.5:
        return _log_mix(-d_NC, 1.0 - weight).add_(d_NC)
    # beyond the knee e^d would overflow, and there 1 − w is lost beside w·e^d in any case
    knee = 80.0 if d_NC.dtype == torch.float32 else 700.0
    return d_NC.clamp(max=knee).expm1_().mul_(weight).log1p_().add_((d_NC - knee).clamp_(min=0.0))


def _jensen_shannon(pair: Pair, parameters: Mapping[str, float]) -> Terms:
    beta = parameters["beta"]
    log_p_NC, p_NC, log_q_NC, q_NC = pair
    rest = 1.0 - beta
    if beta < _TINY_WEIGHT or rest < _TINY_WEIGHT:
        value_N, p_phi_NC = (_forward_kl if beta < 0.5 else _reverse_kl)(pair, {})
        return value_N / 4, p_phi_NC / 4
    d_NC = log_p_NC - log_q_NC
    m_NC = q_NC * beta + p_NC * rest
    # Both forms are the same function; each divides log(m/·) by the smaller weight, which keeps its limit in sight.
    if beta <= 0.5:
        x_NC = _log_mix(-d_NC, beta).div_(beta)  # log(m/p) / β
        value_N = (m_NC.mul_(x_NC).addcmul_(q_NC, d_NC)).sum(-1).div_(-4 * rest)
        return value_N, (x_NC.mul_(p_NC)).div_(-4)
    y_NC = _log_mix(d_NC, rest).div_(rest)  # log(m/q) / (1 − β)
    value_N = (m_NC.mul_(y_NC).addcmul_(p_NC, d_NC, value=-1)).sum(-1).div_(-4 * beta)
    return value_N, (d_NC.sub_(y_NC, alpha=rest).mul_(p_NC)).div_(4 * beta)


def _skew_forward_kl(pair: Pair, parameters: Mapping[str, float]) -> Terms:
    alpha = parameters["alpha"]
    if alpha < _TINY_WEIGHT:
        return _forward_kl(pair, {})
    log_p_NC, p_NC, log_q_NC, q_NC = pair
    y_NC = _log_mix(log_p_NC - log_q_NC, 1.0 - alpha)  # log(m/q)
    difference_NC = (p_NC - q_NC).mul_(1.0 - alpha)
    value_N = difference_NC.addcmul_(q_NC, y_NC, value=-1).sum(-1)
    return value_N, y_NC.neg_().expm1_().mul_(p_NC).mul_(alpha - 1.0)


def _skew_reverse_kl(pair: Pair, parameters: Mapping[str, float]) -> Terms:
    alpha = parameters["alpha"]
    if alpha < _TINY_WEIGHT:
        return _reverse_kl(pair, {})
    log_p_NC, p_NC, log_q_NC, q_NC = pair
    minus_x_NC = _log_mix(log_q_NC - log_p_NC, 1.0 - alpha).neg_()  # log(p/m)
    difference_NC = (q_NC - p_NC).mul_(1.0 - alpha)
    value_N = difference_NC.addcmul_(p_NC, minus_x_NC).sum(-1)
    return value_N, torch.expm1(minus_x_NC).mul_(-alpha).add_(minus_x_NC).mul_(p_NC)


def _total_variation(pair: Pair, parameters: Mapping[str, float]) -> Terms:  # noqa: ARG001 - it has none
    difference_NC = pair.p_NC - pair.q_NC
    value_N = difference_NC.abs().sum(-1).div_(2)
    # half the sign, but NaN where the difference is: torch.sign(NaN) is 0
    half_sign_NC = difference_NC.div_(torch.finfo(difference_NC.dtype).tiny).clamp_(-0.5, 0.5)
    return value_N, half_sign_NC.mul_(pair.p_NC)


def _power_difference(u_NC: Tensor, v_NC: Tensor, d_NC: Tensor, k: float) -> Tensor:
    """(e^u − e^v) / k where u − v = k·d; its limit e^v·d at k = 0."""
    power_NC = v_NC.clamp(max=_LARGEST_EXPONENT).exp_()
    if k == 0.0:
        return power_NC * d_NC
    kd_NC = d_NC * k
    apart_NC = u_NC.clamp(max=_LARGEST_EXPONENT).exp_() - power_NC
    return torch.where(kd_NC > 1.0, apart_NC, power_NC * torch.expm1(kd_NC)).div_(k)


def _alpha_beta(pair: Pair, parameters: Mapping[str, float]) -> Terms:
    # With E(k) = (e^{kd} − 1)/k, the divergence is Σ q^s (E(s) − E(β)) / (s − β) where s = α + β: a difference quotient,
    # whose derivative is the limit at α = 0, and E(0) = d the limits at β = 0 and s = 0.
    a_NC, b_NC = pair.log_q_NC, pair.log_p_NC
    alpha, beta = (0.0 if abs(x) < _TINY_EXPONENT else x for x in (parameters["alpha"], parameters["beta"]))
    both = 0.0 if abs(alpha + beta) < _TINY_EXPONENT else alpha + beta
    d_NC = b_NC - a_NC
    cross_NC, teacher_NC, student_NC = a_NC * alpha + b_NC * beta, a_NC * both, b_NC * both
    if alpha != 0.0:
        value_NC = _power_difference(student_NC, teacher_NC, d_NC, both)
        value_NC = value_NC.sub_(_power_difference(cross_NC, teacher_NC, d_NC, beta)).div_(alpha)
    elif beta != 0.0:
        value_NC = student_NC.clamp(max=_LARGEST_EXPONENT).exp_().mul_(d_NC)
        value_NC = value_NC.sub_(_power_difference(student_NC, teacher_NC, d_NC, beta)).div_(beta)
    else:
        value_NC = d_NC.square().div_(2)
    return value_NC.sum(-1), _power_difference(student_NC, cross_NC, d_NC, alpha)


def _no_parameters(parameters: Mapping[str, float]) -> None:  # noqa: ARG001 - there are none to check
    return


def _check_jensen_shannon(parameters: Mapping[str, float]) -> None:
    if not 0.0 <= parameters["beta"] <= 1.0:
        raise ObjectiveError(
            f"beta={parameters['beta']} is no mixing weight: jensen_shannon takes 0 ≤ beta ≤ 1 "
            "(0 is forward KL / 4, 1 reverse KL / 4); outside, the mixture would have negative probabilities"
        )


def _check_skew(parameters: Mapping[str, float]) -> None:
    if not 0.0 <= parameters["alpha"] < 1.0:
        raise ObjectiveError(
            f"alpha={parameters['alpha']} is no skew: it takes 0 ≤ alpha < 1 (0 is the plain KL); "
            "at 1 the loss is zero for every student and would teach nothing"
        )


def _check_alpha_beta(parameters: Mapping[str, float]) -> None:
    for name, value in parameters.items():
        if not math.isfinite(value):
            raise ObjectiveError(f"{name}={value} is no exponent of the alpha-beta divergence: give a finite number")


def _never(parameters: Mapping[str, float]) -> bool:  # noqa: ARG001 - float32 is always enough
    return False


def _near_an_end(parameters: Mapping[str, float]) -> bool:
    weight = next(iter(parameters.values()))
    return min(weight, 1.0 - weight) < 1e-2


def _small_exponent(parameters: Mapping[str, float]) -> bool:
    alpha, beta = parameters["alpha"], parameters["beta"]
    return any(0.0 < abs(x) < 0.1 for x in (alpha, beta, alpha + beta))


#: Every divergence by its public name.
DEFINITIONS: Mapping[str, Definition] = {
    "forward_kl": Definition(_forward_kl, {}, _no_parameters, _never, centred=True),
    "reverse_kl": Definition(_reverse_kl, {}, _no_parameters, _never),
    "jensen_shannon": Definition(_jensen_shannon, {"beta": 0.5}, _check_jensen_shannon, _near_an_end),
    "skew_forward_kl": Definition(_skew_forward_kl, {"alpha": 0.1}, _check_skew, _near_an_end),
    "skew_reverse_kl": Definition(_skew_reverse_kl, {"alpha": 0.1}, _check_skew, _near_an_end),
    "total_variation": Definition(_total_variation, {}, _no_parameters, _never),
    "alpha_beta": Definition(_alpha_beta, {"alpha": 0.2, "beta": 0.7}, _check_alpha_beta, _small_exponent),
}
