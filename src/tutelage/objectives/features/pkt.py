"""Probabilistic knowledge transfer: which examples are neighbours, as a distribution."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.objectives.features.layers import AbstractLayerTerm, Adapter, Pair, check_layers
from tutelage.objectives.features.vectors import directions, flat, nothing
from tutelage.signals import Rows

#: The smallest similarity: opposite vectors have 0, whose logarithm is infinite. The authors' own floor.
_LEAST = 1e-7


@dataclass(frozen=True)
class PKT(AbstractLayerTerm):
    """Σ_j≠i p(j|i) log(p(j|i) / q(j|i)) per example i: the teacher's neighbours against the student's, in nats.

    Passalis & Tefas 2018, §3, with their cosine kernel K(i, j) = ½(1 + cos(x_i, x_j)) and p(j|i) = K(i, j) / Σ_k≠i
    K(i, k). An example is all units of its layer in one vector. (Their code also counts j = i, and averages over all
    B² pairs.) 0 where the cosines agree; no scale of an example, rotation of the units or width of either side
    matters, and nothing is learnt. A vector of zeros is orthogonal to all others, without gradient.

    Each example's neighbours are those of its batch: accumulated small batches give the mean of theirs, *not* that of
    the one big batch. Fewer than 3 examples have no choice of neighbours and give 0.

    *Misleads*: the kernel is flat: its values lie between 0 and 1, so p is nearly uniform and the KL small (1e-3 and
    less after a ReLU): its weight is in the hundreds, and a small value says nothing. A batch of a few examples, or
    with one example a class, has no neighbours to speak of. Of texts an example is its real tokens one after another, with
    zeros for padding: which words stand at which place decides who is near, so prefer one pooled vector a text.

    Neighbours: :class:`SimilarityPreserving` compares the same cosines by squares, weighing all pairs alike;
    :class:`RKD` does not depend on where the origin is; :class:`CRD` has only one right neighbour, the example itself.

    Example::

        0.1 * CrossEntropy() + 0.9 * KL(4.0) + 500.0 * PKT("pool", "pool")

    Args:
        student: name of the student's layer: ``[B, D]``, ``[B, T, D]`` or ``[B, C, H, W]``.
        teacher: name of the teacher's, of any shape for the same B examples.
    """

    student: str
    teacher: str

    name = "pkt"
    by_position = False

    def __post_init__(self) -> None:
        check_layers(self)

    def _adapter(self, pair: Pair) -> Adapter:  # noqa: ARG002 - examples are compared, not units: any shapes meet
        return Adapter(None, ())

    def _sum(self, pair: Pair, rows: Rows) -> Tensor:  # noqa: ARG002 - the base's signature
        student_BD, teacher_BD = flat(pair.student), flat(pair.teacher)
        if student_BD.shape[0] < 3:
            return nothing(student_BD) + nothing(teacher_BD)
        log_q_BB, log_p_BB = _log_neighbours(student_BD), _log_neighbours(teacher_BD)
        itself_BB = torch.eye(len(log_q_BB), dtype=torch.bool, device=log_q_BB.device)
        terms_BB = log_p_BB.exp() * (log_p_BB - log_q_BB)
        return terms_BB.masked_fill(itself_BB, 0.0).sum()


def _log_neighbours(rows_BD: Tensor) -> Tensor:
    """log p(j|i) ``[B, B]``; its diagonal is no neighbour and means nothing."""
    units_BD, _ = directions(rows_BD)
    similar_BB = ((1.0 + units_BD @ units_BD.T) / 2.0).clamp_min(_LEAST)
    others_B1 = (similar_BB - torch.diag_embed(similar_BB.diagonal())).sum(-1, keepdim=True)
    return similar_BB.log() - others_B1.log()
