"""Similarity-preserving distillation: which examples of a batch excite a layer alike."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tutelage.objectives.features.layers import AbstractLayerTerm, Adapter, Pair, check_layers
from tutelage.objectives.features.vectors import directions, flat
from tutelage.signals import Rows


@dataclass(frozen=True)
class SimilarityPreserving(AbstractLayerTerm):
    """‖G_T − G_S‖²_F / B², where G is the B × B matrix of the examples' products, each row at length 1.

    Tung & Mori 2019, §3, eq. 1–4, an example being all units of its layer in one vector. A number without unit in
    [0, 4/B], 0 where the batch's similarities agree; no change of either side's scale, rotation of its units, width or
    resolution matters, and nothing is learnt.

    A property of the batch: the value counts once for each of its rows, so that the mean over rows is the value.
    Accumulated small batches give the mean of theirs, *not* that of the one big batch.

    *Misleads*: each row has length 1, so the value falls as 1/B with the batch: their weight of 3,000 is for batches
    of 128. After a ReLU all products are positive, and an uncentred G is near 1 throughout: what tells classes apart
    is a small rest. Features with many positions compare pictures place by place, hence backgrounds: take a late
    layer. Of texts an example is its real tokens one after another, with zeros for padding: which words stand at which
    place decides what is alike, so prefer one pooled vector a text.

    Neighbours: :class:`PKT` compares the same cosines as distributions, :class:`RKD` distances and angles between
    differences; :class:`tutelage.objectives.DIST` does it with predictions.

    Example::

        0.1 * CrossEntropy() + 0.9 * KL(4.0) + 3000.0 * SimilarityPreserving("layer4", "layer4")

    Args:
        student: name of the student's layer: ``[B, D]``, ``[B, T, D]`` or ``[B, C, H, W]``.
        teacher: name of the teacher's, of any shape for the same B examples.
    """

    student: str
    teacher: str

    name = "similarity_preserving"
    by_position = False

    def __post_init__(self) -> None:
        check_layers(self)

    def _adapter(self, pair: Pair) -> Adapter:  # noqa: ARG002 - examples are compared, not units: any shapes meet
        return Adapter(None, ())

    def _sum(self, pair: Pair, rows: Rows) -> Tensor:  # noqa: ARG002 - the base's signature
        mine, theirs = (_similarities(flat(values)) for values in pair[:2])
        examples = mine.shape[0]
        # rows × batch value: B · ‖…‖² / B²
        return (mine - theirs).square().sum() / max(examples, 1)


def _similarities(rows_BD: Tensor) -> Tensor:
    similarities_BB, _ = directions(rows_BD @ rows_BD.T)
    return similarities_BB
