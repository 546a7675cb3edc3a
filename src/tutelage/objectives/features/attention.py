"""Attention transfer: where a layer looks, whatever it sees there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.errors import ObjectiveError
from tutelage.objectives.features.layers import AbstractLayerTerm, Adapter, Pair, check_layers
from tutelage.objectives.features.meeting import meet
from tutelage.objectives.features.vectors import directions
from tutelage.objectives.response import check_flags, set_number
from tutelage.signals import Rows


@dataclass(frozen=True)
class AttentionTransfer(AbstractLayerTerm):
    """½ ‖Q_S/‖Q_S‖₂ − Q_T/‖Q_T‖₂‖₂ per example, with Q = Σ_channels |A|^power at each position.

    Zagoruyko & Komodakis 2017, §3.1, eq. 2, whose β is the weight here; the ½ is theirs, and so is power 2. Their
    code minimises the square instead, averaged over positions: ``squared`` squares the norm, and 1/positions goes
    into the weight. A number without unit in [0, 0.71] (a map of positive numbers has an angle of at most 90° with
    another), 0 where the maps are proportional. Widths need not agree, as channels are summed: nothing is learnt.
    Resolutions meet by average-pooling the finer Q.

    *Misleads*: after a ReLU a map of zeros has no direction: it counts as zeros, without gradient. A map that ends in
    one strong corner (a border artefact, a register token of a vision transformer) is followed as willingly as one
    that finds the object. The norm's gradient has the same length however near the maps are, so that a large weight
    makes the student tremble about the minimum; the square's does not. Among tokens the class token is a position;
    padded ones are none.

    Neighbours: :class:`Hint` and :class:`CosineHidden` compare what stands at each position;
    :class:`SimilarityPreserving` compares examples instead of positions.

    Example::

        0.1 * CrossEntropy() + 0.9 * KL(4.0) + 0.1 * AttentionTransfer("layer3", "layer3")

    Args:
        student: name of the student's layer: ``[B, C, H, W]`` or ``[B, T, D]`` (T or T − 1 a grid, against a map).
        teacher: name of the teacher's.
        power: exponent of the activations, at least 1; the higher, the more the strongest channels count.
        squared: square the norm, whose gradient then fades towards the minimum.
    """

    student: str
    teacher: str
    power: float = 2.0
    squared: bool = False

    name = "attention_transfer"
    additive = True

    def __post_init__(self) -> None:
        check_layers(self)
        check_flags(self, "squared")
        set_number(self, "power")
        if self.power < 1.0:
            raise ObjectiveError(
                f"attention_transfer's power is {self.power:g}: expected at least 1, below which the gradient of |A|^power "
                "at a unit of 0 is infinite"
            )

    def _adapter(self, pair: Pair) -> Adapter:
        for side, layer, values in (("student", self.student, pair.student), ("teacher", self.teacher, pair.teacher)):
            positions = values.shape[1] if values.ndim == 3 else values.shape[2:].numel()
            if values.ndim == 2 or positions == 1:
                raise ObjectiveError(
                    f"{side}'s {layer!r} shows {list(values.shape)}: attention_transfer compares positions, and of one "
                    "alone the normalised map is always 1, so that nothing would be learnt; name a layer before the "
                    "pooling, or use hint"
                )
        return Adapter(None, meet(pair, self).notes)

    def _sum(self, pair: Pair, rows: Rows) -> Tensor:  # noqa: ARG002 - the base's signature
        energies = pair._replace(student=self._energy(pair.student), teacher=self._energy(pair.teacher))
        # at padding the energies are zeros, which have no part in a length or a difference
        met = meet(energies, self)
        mine, _ = directions(met.student.flatten(1))
        theirs, _ = directions(met.teacher.flatten(1))
        difference = mine - theirs
        # the norm's derivative at 0 is taken as 0, not as 0/0
        each = difference.square().sum(-1) if self.squared else torch.linalg.vector_norm(difference, dim=-1)
        return each.sum() / 2

    def _energy(self, values: Tensor) -> Tensor:
        magnitudes = values.square() if self.power == 2.0 else values.abs().pow(self.power)
        return magnitudes.sum(1 if values.ndim == 4 else -1, keepdim=True)
