"""Variational information distillation: regression with a learnt variance."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.errors import ObjectiveError
from tutelage.objectives.features.layers import AbstractLayerTerm, Adapter, Pair, check_layers, check_whole, not_fitted
from tutelage.objectives.features.meeting import linear_for, meet, summed
from tutelage.objectives.response import check_flags, set_number
from tutelage.signals import Rows

#: The least variance, which keeps the likelihood bounded: the authors' ε.
_EPSILON = 1e-5


@dataclass(frozen=True)
class VID(AbstractLayerTerm):
    """Σ over units of log σ_c + (t − μ(s))² / (2σ_c²) per example: −log of a Gaussian, less ½ log 2π a unit, in nats.

    Ahn et al. 2019, §2: the bound log q(t|s) of the information that the student's layer has of the teacher's. μ is
    ``depth`` linear layers at each position (1×1 convolutions of a map) with ReLUs between, twice the teacher's width
    inside; σ_c² = log(1 + e^α_c) + ε is learnt for each of the teacher's channels, the same for all inputs. Resolutions
    meet by average-pooling (:func:`tutelage.objectives.features.meeting.meet`).

    *Misleads*: it is no distance: it may be negative, falls as σ does, and has no known minimum; look at accuracy.
    Channels that the student cannot predict get a large σ and stop teaching, which is the point, and also how it can
    come to teach nothing. μ is strong enough to do the student's work for it: with a deep one the student's features
    need not resemble the teacher's. As a sum it grows with the layer: use ``per_unit`` or a small weight. Weight
    decay on α is a prior on the variance. Of tokens the real ones alone are summed.

    Neighbours: :class:`Hint` is this with σ = 1 and a linear μ; :class:`CRD` bounds the same information by contrast.

    Example::

        0.1 * CrossEntropy() + 0.9 * KL(4.0) + VID("layer3", "layer3", per_unit=True)

    Args:
        student: name of the student's layer: ``[B, D]``, ``[B, T, D]`` or ``[B, C, H, W]``.
        teacher: name of the teacher's.
        depth: number of layers of μ, at least 1.
        variance: σ² at the start, above 1e-5; 5 in the authors' code.
        per_unit: divide by the number of units (those of real tokens), as their code does.
    """

    student: str
    teacher: str
    depth: int = 3
    variance: float = 5.0
    per_unit: bool = False

    name = "vid"
    additive = True

    def __post_init__(self) -> None:
        check_layers(self)
        check_flags(self, "per_unit")
        set_number(self, "variance")
        check_whole(self, "depth", 1, "without a layer the student's width could not meet the teacher's")
        if not self.variance > _EPSILON:
            raise ObjectiveError(
                f"vid's variance is {self.variance:g}: expected more than {_EPSILON:g}, the least that a channel may have"
            )

    def _adapter(self, pair: Pair) -> Adapter:
        met = meet(pair, self)
        wide, to = met.student.shape[-1], met.teacher.shape[-1]
        widths = [wide, *[2 * to] * (self.depth - 1), to]
        layers = [linear_for(met.student, *widths[i : i + 2]) for i in range(self.depth)]
        gaussian = _Gaussian(layers, self.variance)
        weights = sum(parameter.numel() for parameter in gaussian.parameters())
        kind = "1×1 convolutions" if met.student.ndim == 4 else "linear layers"
        path = " → ".join(f"{width:,}" for width in widths)
        learnt = f"and a variance a channel ({weights:,} weights, trained with it)"
        return Adapter(gaussian, [*met.notes, f"{kind} on the student's side, {path} wide, {learnt}"])

    def _sum(self, pair: Pair, rows: Rows) -> Tensor:  # noqa: ARG002 - the base's signature
        if self.weights is None:
            raise not_fitted(self)
        met = meet(pair, self)
        mean, variance_C = self.weights(met.student)
        each = (met.teacher - mean).square() / variance_C + variance_C.log()
        return summed(each, met.mask, mean=self.per_unit) / 2


class _Gaussian(nn.Module):
    """μ of a student's features ``[..., width]`` and the variance ``[C]`` of each of the teacher's channels."""

    def __init__(self, layers: list[nn.Linear], variance: float) -> None:
        super().__init__()
        between = [module for layer in layers for module in (layer, nn.ReLU())]
        self.mean = nn.Sequential(*between[:-1])
        # softplus backwards, so that the variance starts at what was asked for
        start = variance - _EPSILON
        self.alpha = nn.Parameter(torch.full_like(layers[-1].bias.detach(), start + math.log(-math.expm1(-start))))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.mean(features), F.softplus(self.alpha) + _EPSILON
