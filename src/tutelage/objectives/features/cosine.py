"""DistilBERT's cosine loss on hidden states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tutelage.objectives.features.layers import AbstractLayerTerm, Adapter, Pair, check_choice, check_layers
from tutelage.objectives.features.meeting import meet, projected, projector_for, summed
from tutelage.objectives.features.vectors import directions
from tutelage.signals import Rows


@dataclass(frozen=True)
class CosineHidden(AbstractLayerTerm):
    """1 − cos(student, teacher) of the hidden vector at each position, averaged over an example's positions.

    Sanh et al. 2019 (DistilBERT), §3, who align the last hidden states of equal width. A number without unit in [0, 2],
    0 where the directions agree. Their code averages over all unpadded tokens of the batch at once; here each example
    counts alike, as every other term's does, whatever its length. Padding has no part in it. A vector of zeros has no
    direction: it counts 0 beside another, else 1, without gradient.

    *Misleads*: lengths of vectors are not compared, and in many transformers one or two axes are a hundred times longer
    than the rest: the cosine is near 1 whatever the others do, and a small value says little. With a projector (widths
    that differ) a student can meet the direction without using it.

    Neighbours: :class:`Hint` compares lengths too; :class:`PKT` and :class:`SimilarityPreserving` compare cosines
    between examples, which need no common axes.

    Example::

        5.0 * KL(2.0) + 2.0 * CrossEntropy() + 1.0 * CosineHidden("hidden_states.-1", "hidden_states.-1")

    Args:
        student: name of the student's layer: ``[B, D]``, ``[B, T, D]`` or ``[B, C, H, W]`` (a vector of C at each
            place).
        teacher: name of the teacher's.
        projector: ``"auto"``, a linear one where the widths differ; ``"always"``, also where they agree.
    """

    student: str
    teacher: str
    projector: Literal["auto", "always"] = "auto"

    name = "cosine_hidden"
    additive = True

    def __post_init__(self) -> None:
        check_layers(self)
        check_choice(self, "projector", ("auto", "always"))

    def _adapter(self, pair: Pair) -> Adapter:
        met = meet(pair, self)
        return Adapter(projector_for(met, self.projector == "always", met.notes), met.notes)

    def _sum(self, pair: Pair, rows: Rows) -> Tensor:  # noqa: ARG002 - the base's signature
        met = meet(pair, self)
        mine, none_here = directions(projected(met, self.weights, self))
        theirs, none_there = directions(met.teacher)
        # half the squared distance of unit vectors is the same, without the cancellation of 1 − cos near cos = 1
        distance = (mine - theirs).square().sum(-1) / 2
        alone = (none_here ^ none_there).to(distance.dtype)
        distance = torch.where(none_here | none_there, alone, distance)
        return summed(distance, met.mask, mean=True)
