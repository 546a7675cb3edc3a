"""Contrastive representation distillation, within a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tutelage.errors import ObjectiveError
from tutelage.objectives.features.layers import (
    AbstractLayerTerm,
    Adapter,
    Pair,
    check_choice,
    check_layers,
    check_whole,
    not_fitted,
)
from tutelage.objectives.features.meeting import averaged, linear_for
from tutelage.objectives.features.vectors import directions
from tutelage.objectives.response import set_number
from tutelage.signals import NO_LABEL, Rows, examples_in


@dataclass(frozen=True)
class CRD(AbstractLayerTerm):
    """−log of an example's own partner's share among the batch's, student to teacher plus teacher to student; nats.

    With a_ij = ⟨g_S(s_i), g_T(t_j)⟩/τ, both at length 1 after a linear map to ``width``:
    L_i = −log(e^a_ii / Σ_j e^a_ij) − log(e^a_ii / Σ_j e^a_ji), j over i and its negatives.

    *The variant*: after Tian, Krishnan & Isola 2020 (CRD), §3, with the batch's other examples as negatives and no
    memory bank. The paper draws 16,384 negatives from a bank of every example's last seen embedding, and asks of each
    by itself whether it is the partner (noise-contrastive estimation, with the data set's size in the critic). That
    bank is as large as the data, holds embeddings up to an epoch old, and would have to be in every checkpoint for a
    run to resume bit for bit. A batch's negatives are always fresh, and choosing the partner among them (InfoNCE, van
    den Oord et al. 2018) needs no guess of the noise; both are lower bounds of the mutual information, this one never
    above log B. As in their code both directions are summed, τ is fixed and both maps are trained; features with
    positions are averaged over them first, as their pooled last layer is, tokens over the real ones: each side over its
    own, so that the tokenizers may differ.

    About 2 log B before training, *not* 0 where student and teacher agree: what is left is how alike the teacher's
    examples are. A property of the batch: accumulated small batches have fewer negatives each and a smaller loss.

    *Misleads*: negatives are few, so use batches of 128 or more; 16 are told apart without learning much. The value
    moves with the batch's size, also in an epoch's last batch, and cannot be compared between runs of two sizes.
    Among ``others`` are examples of the same class, which the student learns to tell apart although the teacher need
    not: ``other_classes`` leaves them out, where labels are known.

    Neighbours: :class:`RKD`, :class:`PKT` and :class:`SimilarityPreserving` copy the teacher's geometry; this asks only
    that each example be recognised. :class:`VID` bounds the same information by regression.

    Example::

        CrossEntropy() + KL(4.0) + 0.8 * CRD("pool", "pool", negatives="other_classes")

    Args:
        student: name of the student's layer: ``[B, D]``, ``[B, T, D]`` or ``[B, C, H, W]``.
        teacher: name of the teacher's, of any kind for the same B examples.
        width: of the common space.
        temperature: τ > 0; 0.1 or 0.07 in the paper.
        negatives: ``"others"``, all other examples of the batch; ``"other_classes"``, those that are not known to be of
            the same class, which needs labels. An example without a label is everyone's negative.
    """

    student: str
    teacher: str
    width: int = 128
    temperature: float = 0.1
    negatives: Literal["others", "other_classes"] = "others"

    name = "crd"
    by_position = False

    def __post_init__(self) -> None:
        check_layers(self)
        check_choice(self, "negatives", ("others", "other_classes"))
        set_number(self, "temperature")
        if not self.temperature > 0.0:
            raise ObjectiveError(
                f"crd's temperature is {self.temperature:g}: expected τ > 0; at 0 the shares are undefined, and below it "
                "the partner would be pushed away"
            )
        check_whole(self, "width", 2, "on a line there are but two directions")

    @property
    def needs(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The two layers' features, and labels where the negatives are of other classes."""
        return super().needs | ({"labels"} if self.negatives == "other_classes" else frozenset())

    def count(self, rows: Rows) -> Tensor:
        """All examples, 0-dim int64: one without a label has its partner as well."""
        return rows["labels"].new_full((), examples_in(rows), dtype=torch.int64)

    def _adapter(self, pair: Pair) -> Adapter:
        notes: list[str] = []
        sides = (
            ("student", self.student, pair.student, pair.mask),
            ("teacher", self.teacher, pair.teacher, pair.teacher_mask),
        )
        maps = nn.ModuleDict()
        for side, layer, values, mask in sides:
            vectors = averaged(values, f"the {side}'s {layer!r}", notes, mask)
            maps[side] = linear_for(vectors, vectors.shape[1], self.width)
            notes.append(f"a linear map of the {side}'s side, {vectors.shape[1]:,} → {self.width:,} wide")
        weights = sum(parameter.numel() for parameter in maps.parameters())
        return Adapter(maps, [*notes, f"{weights:,} weights, trained with the student"])

    def _sum(self, pair: Pair, rows: Rows) -> Tensor:
        mine_BD = self._embedded("student", pair.student, pair.mask)
        theirs_BD = self._embedded("teacher", pair.teacher, pair.teacher_mask)
        scores_BB = mine_BD @ theirs_BD.T / self.temperature
        if self.negatives == "other_classes":
            if "examples" in rows:
                raise ObjectiveError(
                    "crd's negatives are 'other_classes', and the labels here are of tokens, not of examples: a text has no class of its "
                    "own; say negatives: others"
                )
            labels_B = rows["labels"]
            same_BB = (labels_B[:, None] == labels_B[None, :]) & (labels_B != NO_LABEL)[:, None]
            itself_BB = torch.eye(len(labels_B), dtype=torch.bool, device=same_BB.device)
            scores_BB = scores_BB.masked_fill(same_BB & ~itself_BB, -torch.inf)
        own = 2.0 * scores_BB.diagonal().sum()
        return scores_BB.logsumexp(1).sum() + scores_BB.logsumexp(0).sum() - own

    def _embedded(self, side: str, values: Tensor, mask: Tensor | None) -> Tensor:
        if not isinstance(self.weights, nn.ModuleDict):
            raise not_fitted(self)
        units_BD, _ = directions(self.weights[side](averaged(values, "", [], mask)))
        return units_BD
