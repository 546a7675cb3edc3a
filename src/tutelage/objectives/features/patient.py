"""Patient knowledge distillation: one vector of each text, at many depths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tutelage.errors import ObjectiveError
from tutelage.objectives.features.layers import AbstractLayerTerm, Adapter, Pair, check_choice, check_layers
from tutelage.objectives.features.meeting import Met, averaged, projected, projector_for
from tutelage.objectives.features.vectors import directions
from tutelage.signals import Rows


@dataclass(frozen=True)
class Patient(AbstractLayerTerm):
    """‖s/‖s‖ − t/‖t‖‖² of one vector of each text, by default its first token's, per example.

    Sun et al. 2019 (PKD), §3.2, whose β is the weight here. A number without unit in [0, 4], 0 where the
    directions agree: it is 2 (1 − cos). Their code takes the mean over the D units, which is D times smaller, so that
    their β of 10 to 1,000 is 0.01 to 1.3 here at D = 768. A vector of zeros has no direction: it counts 1 beside
    another, else 0, without gradient. Each text is met as a whole, so the tokenizers may differ.

    The paper pairs the student's layers with every second of the teacher's (skip) or with its last (``layers:
    uniform``, ``layers: last``), and leaves out the student's last, which learns from the logits.

    *Misleads*: what the first token holds below the last layers is what a classifier later makes of it, in a model
    that was trained to classify by it; in others (decoders, mean-pooled encoders) it is one word among many, and in a
    decoder the first word sees nothing of the text: use ``mean``. Lengths are not compared.

    Neighbours: :class:`CosineHidden` compares every token; :class:`Hint` compares lengths too;
    :class:`tutelage.objectives.EmbeddingCosine` is half of it at a sentence encoder's output.

    Example::

        0.5 * CrossEntropy() + 0.5 * KL(5.0) + 0.5 * Patient("hidden_states.1", "hidden_states.2")

    Args:
        student: name of the student's layer: ``[B, T, D]``, or ``[B, D]`` taken as it is.
        teacher: name of the teacher's.
        position: ``"first"``, the first real token; ``"mean"``, the mean over real tokens.
        projector: ``"auto"``, a linear one where the widths differ; ``"always"``, also where they agree.
    """

    student: str
    teacher: str
    position: Literal["first", "mean"] = "first"
    projector: Literal["auto", "always"] = "auto"

    name = "patient"
    additive = True
    by_position = False

    def __post_init__(self) -> None:
        check_layers(self)
        check_choice(self, "position", ("first", "mean"))
        check_choice(self, "projector", ("auto", "always"))

    def _adapter(self, pair: Pair) -> Adapter:
        met = self._meet(pair)
        return Adapter(projector_for(met, self.projector == "always", met.notes), met.notes)

    def _sum(self, pair: Pair, rows: Rows) -> Tensor:  # noqa: ARG002 - the base's signature
        met = self._meet(pair)
        mine, _ = directions(projected(met, self.weights, self))
        theirs, _ = directions(met.teacher)
        return (mine - theirs).square().sum()

    def _meet(self, pair: Pair) -> Met:
        notes: list[str] = []
        mine = self._vector(pair.student, pair.mask, f"the student's {self.student!r}", notes)
        theirs = self._vector(pair.teacher, pair.teacher_mask, f"the teacher's {self.teacher!r}", notes)
        return Met(mine, theirs, notes)

    def _vector(self, values: Tensor, mask_BT: Tensor | None, what: str, notes: list[str]) -> Tensor:
        if values.ndim == 4:
            raise ObjectiveError(
                f"{what} shows {list(values.shape)}: patient takes tokens [B, T, D] or a vector of each text [B, D]; name such a "
                "layer, or use hint or attention_transfer for maps"
            )
        if values.ndim == 2 or self.position == "mean":
            return averaged(values, what, notes, mask_BT)
        notes.append(f"the first token of {what}")
        if mask_BT is None:
            return values[:, 0]
        # with padding on the left, place 0 is none of the text's
        first_B = mask_BT.to(torch.uint8).argmax(1)
        return values[torch.arange(len(values), device=values.device), first_B]
