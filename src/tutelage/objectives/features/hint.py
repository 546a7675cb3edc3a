"""FitNets' hint: regress the teacher's features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from tutelage.objectives.features.layers import AbstractLayerTerm, Adapter, Pair, check_choice, check_layers
from tutelage.objectives.features.meeting import meet, projected, projector_for, summed
from tutelage.objectives.response import check_flags
from tutelage.signals import Rows


@dataclass(frozen=True)
class Hint(AbstractLayerTerm):
    """½ ‖r(student) − teacher‖² over all units of a layer, per example. Romero et al. 2015 (FitNets), §2.2, eq. 3.

    r is a linear map from the student's width to the teacher's, at each position of a map a 1×1 convolution. The
    paper's regressor is a larger convolution that also meets the teacher's resolution; here both sides are
    average-pooled to the smaller one (:func:`tutelage.objectives.features.meeting.meet`). In squared units of the
    teacher's layer; 0, its minimum, where they agree.

    *Misleads*: it is a sum, so its size is that of the layer (64×8×8 units of spread 1: about 2,000 an example), and at
    weight 1 drowns a cross-entropy of 2: use ``per_unit``, or a small weight. A few units of large spread decide it.
    With a projector it can be small while the student's features are of no use to the layers that follow. A hint taken
    late asks a small student to be its teacher; the paper takes the middle, and trains it as a stage of its own, for
    which a weight that falls to 0 stands in: ``Piecewise([[0, 1], [0.3, 0]]) * Hint(…)``. Of
    tokens the real ones alone are summed, so that a long text weighs more than a short one unless ``per_unit``.

    Neighbours: :class:`CosineHidden` sees directions alone, :class:`VID` learns how much each channel is worth,
    :class:`AttentionTransfer` sees where, not what.

    Example::

        0.1 * CrossEntropy() + 0.9 * KL(4.0) + 0.5 * Hint("blocks.1", "layers.3", per_unit=True)

    Args:
        student: name of the student's layer: ``[B, D]``, ``[B, T, D]`` or ``[B, C, H, W]``.
        teacher: name of the teacher's.
        projector: ``"auto"``, where the widths differ; ``"always"``, also where they agree, so that the student need
            not use the teacher's own axes.
        per_unit: divide by the number of units (those of real tokens), for a value that does not depend on the layer's
            size; ½ stays.
    """

    student: str
    teacher: str
    projector: Literal["auto", "always"] = "auto"
    per_unit: bool = False

    name = "hint"
    additive = True

    def __post_init__(self) -> None:
        check_layers(self)
        check_choice(self, "projector", ("auto", "always"))
        check_flags(self, "per_unit")

    def _adapter(self, pair: Pair) -> Adapter:
        met = meet(pair, self)
        return Adapter(projector_for(met, self.projector == "always", met.notes), met.notes)

    def _sum(self, pair: Pair, rows: Rows) -> Tensor:  # noqa: ARG002 - the base's signature
        met = meet(pair, self)
        apart = (projected(met, self.weights, self) - met.teacher).square()
        return summed(apart, met.mask, mean=self.per_unit) / 2
