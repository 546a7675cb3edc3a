"""Relational knowledge distillation: the shape that a batch makes in a layer's space."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tutelage.objectives.decoupled import check_parts
from tutelage.objectives.features.layers import AbstractLayerTerm, Adapter, Pair, check_layers
from tutelage.objectives.features.vectors import Distances, distances, flat, nothing
from tutelage.signals import Rows

#: Angles are taken for some of the vertices at a time, about this many in all, and found again on the way back: a batch
#: of B has B³ of them, and kept for the gradient 512 examples would take several GB.
_SLICE = 1 << 22


@dataclass(frozen=True)
class RKD(AbstractLayerTerm):
    """``distance`` · Huber(ψ_D of pairs) + ``angle`` · Huber(ψ_A of triples), each averaged over a batch's tuples.

    Park et al. 2019, §3.2: ψ_D(i, j) = ‖x_i − x_j‖ over its mean over pairs; ψ_A(i, j, k) = the cosine of the angle at j;
    Huber is ½d² up to |d| = 1 and |d| − ½ beyond. An example is all units of its layer in one vector. The paper sums over
    tuples of distinct examples and leaves the rest to the weight; here it is their mean, which does not grow with the
    batch. (Their code takes a mean that also has the tuples that are 0 by definition: (B − 1)/B of this for distances,
    (B − 1)(B − 2)/B² for angles.) A number without unit, 0 where the shapes are similar: no shift, scaling,
    rotation or width of either side matters, and nothing is learnt.

    A property of the batch: the value counts once for each of its rows, so that the mean over rows is the value.
    Accumulated small batches give the mean of theirs, *not* that of the one big batch. Fewer than 3 examples have no
    shape and give 0. Time and memory for angles grow as B³: 128 examples are quick, 512 are not.

    *Misleads*: distances in a wide space are all alike, so the loss is small from the start and its gradient too; it wants
    a weight of tens. One outlier in the batch moves the mean distance and with it every pair. A large class is most of
    the pairs. Examples that agree up to rounding (one part in a million) have distance 0, no direction and no gradient.
    Alone it does not train a head: it says nothing of the classes. Padded tokens are part of the vector.

    Neighbours: :class:`SimilarityPreserving` and :class:`PKT` see directions from the origin, which a shift changes;
    :class:`CRD` tells examples apart instead of placing them.

    Example::

        CrossEntropy() + 25.0 * RKD("pool", "pool", distance=1.0, angle=2.0)

    Args:
        student: name of the student's layer: ``[B, D]``, ``[B, T, D]`` or ``[B, C, H, W]``.
        teacher: name of the teacher's, of any shape for the same B examples.
        distance: weight of the distances, ≥ 0.
        angle: weight of the angles, ≥ 0; twice that of distances, as in the paper.
    """

    student: str
    teacher: str
    distance: float = 1.0
    angle: float = 2.0

    name = "rkd"

    def __post_init__(self) -> None:
        check_layers(self)
        check_parts(self, "distance", "angle")

    def _adapter(self, pair: Pair) -> Adapter:  # noqa: ARG002 - examples are compared, not units: any shapes meet
        return Adapter(None, ())

    def _sum(self, pair: Pair, rows: Rows) -> Tensor:  # noqa: ARG002 - the base's signature
        student_BD, teacher_BD = flat(pair.student), flat(pair.teacher)
        examples = student_BD.shape[0]
        if examples < 3:
            return nothing(student_BD) + nothing(teacher_BD)
        mine, theirs = distances(student_BD), distances(teacher_BD)
        value = student_BD.new_zeros(())
        if self.distance > 0.0:
            pairs = examples * (examples - 1)
            value = value + self.distance * _huber(_relative(mine), _relative(theirs)) / pairs
        if self.angle > 0.0:
            triples = examples * (examples - 1) * (examples - 2)
            value = value + self.angle * _angles_apart(mine, theirs) / triples
        return value * examples


def _huber(a: Tensor, b: Tensor) -> Tensor:
    return F.huber_loss(a, b, reduction="sum", delta=1.0)


def _relative(of: Distances) -> Tensor:
    """ψ_D ``[B, B]``: distances over the mean distance of a pair; zeros where all are alike."""
    examples = of.lengths.shape[0]
    mean = of.lengths.sum() / (examples * (examples - 1))
    return of.lengths / torch.where(mean == 0.0, 1.0, mean)


def _angles_apart(mine: Distances, theirs: Distances) -> Tensor:
    """Σ of Huber(ψ_A) over triples of distinct examples, some vertices at a time."""
    examples = mine.lengths.shape[0]
    step = max(1, _SLICE // examples**2)
    if step >= examples:
        return _at_vertices(0, examples, mine, theirs)
    parts = [
        checkpoint(_at_vertices, start, start + step, mine, theirs, use_reentrant=False, preserve_rng_state=False)
        for start in range(0, examples, step)
    ]
    return torch.stack([part for part in parts if isinstance(part, Tensor)]).sum()


def _at_vertices(start: int, stop: int, mine: Distances, theirs: Distances) -> Tensor:
    return _huber(_cosines(mine, start, stop), _cosines(theirs, start, stop))


def _cosines(of: Distances, start: int, stop: int) -> Tensor:
    """ψ_A ``[vertices, B, B]`` by the law of cosines; 0 unless the three are distinct."""
    squares, inverses = of.squares[start:stop], of.inverses[start:stop]
    products = (squares[:, :, None] + squares[:, None, :] - of.squares) / 2
    cosines = products * inverses[:, :, None] * inverses[:, None, :]
    # the angle between a side and itself is 0 whatever the shape, unless there is no side: no triple, either way
    return cosines.masked_fill(torch.eye(of.squares.shape[0], dtype=torch.bool, device=cosines.device), 0.0)
