"""Relational knowledge distillation: the shape that a batch makes in a layer's space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from tutelage.objectives.decoupled import check_parts
from tutelage.objectives.features.layers import AbstractLayerTerm, Adapter, Pair, check_layers
from tutelage.objectives.features.vectors import Distances, distances, flat, nothing
from tutelage.signals import Rows

#: Angles are taken at some vertices at a time, about this many in all: on a CPU so that the dozen passes over them stay
#: in its caches, on an accelerator so that the B³ of a large batch are never in memory together.
_CPU_SLICE, _DEVICE_SLICE = 1 << 17, 1 << 25


@dataclass(frozen=True)
class RKD(AbstractLayerTerm):
    """``distance`` · Huber(ψ_D of pairs) + ``angle`` · Huber(ψ_A of triples), each averaged over a batch's tuples.

    Park et al. 2019, §3.2: ψ_D(i, j) = ‖x_i − x_j‖ over its mean over pairs; ψ_A(i, j, k) = the cosine of the angle
    at j; Huber is ½d² up to |d| = 1 and |d| − ½ beyond. An example is all units of its layer in one vector. The paper
    sums over tuples of distinct examples and leaves the rest to the weight; here it is their mean, which does not
    grow with the batch. (Their code takes a mean that also has the tuples that are 0 by definition: (B − 1)/B of this
    for distances, (B − 1)(B − 2)/B² for angles.) A number without unit, 0 where the shapes are similar: no shift,
    scaling, rotation or width of either side matters, and nothing is learnt.

    A property of the batch: the value counts once for each of its rows, so that the mean over rows is the value.
    Accumulated small batches give the mean of theirs, *not* that of the one big batch. Fewer than 3 examples have no
    shape and give 0. The time for angles grows as B³, memory as B².

    *Misleads*: distances in a wide space are all alike, so the loss is small from the start and its gradient too; it
    wants a weight of tens. One outlier in the batch moves the mean distance and with it every pair. A large class is
    most of the pairs. Examples that agree up to rounding (one part in a million) have distance 0, no direction and no
    gradient. Alone it does not train a head: it says nothing of the classes. Of texts an example is its real tokens one
    after another, with zeros for padding: texts of other lengths are far apart for that alone, so prefer one pooled
    vector a text.

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
    by_position = False

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
            value = value + self.distance * F.huber_loss(_relative(mine), _relative(theirs), reduction="sum") / pairs
        if self.angle > 0.0:
            triples = examples * (examples - 1) * (examples - 2)
            apart: Any = _AnglesApart.apply(mine.squares, mine.inverses, theirs.squares, theirs.inverses)
            value = value + self.angle * apart / triples
        return value * examples


def _relative(of: Distances) -> Tensor:
    """ψ_D ``[B, B]``: distances over the mean distance of a pair; zeros where all are alike."""
    examples = of.lengths.shape[0]
    mean = of.lengths.sum() / (examples * (examples - 1))
    return of.lengths / torch.where(mean == 0.0, 1.0, mean)


class _AnglesApart(torch.autograd.Function):
    """Σ of Huber(ψ_A) over triples of distinct examples, given the squares and inverses ``[B, B]`` of both sides.

    Value and gradient are formed together, some vertices at a time: autograd would keep a dozen tensors of B³.
    """

    @staticmethod
    def forward(
        ctx: Any, squares_BB: Tensor, inverses_BB: Tensor, their_squares_BB: Tensor, their_inverses_BB: Tensor
    ) -> Tensor:
        examples = squares_BB.shape[0]
        step = max(1, (_CPU_SLICE if squares_BB.device.type == "cpu" else _DEVICE_SLICE) // examples**2)
        total = squares_BB.new_zeros(())
        to_squares_BB, to_inverses_BB = torch.zeros_like(squares_BB), torch.zeros_like(inverses_BB)
        for start in range(0, examples, step):
            at = slice(start, start + step)
            products, sides = _corners(squares_BB, inverses_BB, at)
            their_products, their_sides = _corners(their_squares_BB, their_inverses_BB, at)
            apart = torch.addcmul(products * sides, their_products, their_sides, value=-1)
            # a side has no angle with itself
            apart.diagonal(dim1=1, dim2=2).zero_()
            slope = apart.clamp(-1.0, 1.0)
            total += (slope * (apart - slope / 2)).sum()
            to_products = slope * sides
            to_squares_BB[at] += to_products.sum(-1)
            to_squares_BB -= to_products.sum(0) / 2
            to_inverses_BB[at] = 2 * ((slope * products) @ inverses_BB[at].unsqueeze(-1)).squeeze(-1)
        ctx.save_for_backward(to_squares_BB, to_inverses_BB)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        to_squares_BB, to_inverses_BB = ctx.saved_tensors
        return grad * to_squares_BB, grad * to_inverses_BB, None, None


def _corners(squares_BB: Tensor, inverses_BB: Tensor, at: slice) -> tuple[Tensor, Tensor]:
    """⟨x_i − x_j, x_k − x_j⟩ by the law of cosines, and 1/(‖x_i − x_j‖ ‖x_k − x_j‖), ``[j, i, k]``.

    Their product is ψ_A, 0 where a side has no length.
    """
    squares, inverses = squares_BB[at], inverses_BB[at]
    products = (squares[:, :, None] + squares[:, None, :] - squares_BB) / 2
    return products, inverses[:, :, None] * inverses[:, None, :]
