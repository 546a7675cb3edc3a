"""Losses that are sums over rows of something of that row's logits alone: what a head can be asked for block by block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tutelage.errors import ObjectiveError
from tutelage.objectives.definitions import DEFINITIONS
from tutelage.signals import NO_LABEL


@dataclass(frozen=True)
class RowLoss:
    """A divergence from the teacher, or the cross-entropy with hard labels, of each row of logits.

    Args:
        divergence: a key of ``DEFINITIONS``; None for the cross-entropy, over the rows that have a label.
        temperature: T > 0; a cross-entropy has 1.
        parameters: all of the divergence's own.
        scale: factor of value and gradient, e.g. T².
        label_smoothing: ε of a cross-entropy.
    """

    divergence: str | None
    temperature: float = 1.0
    parameters: Mapping[str, float] = field(default_factory=dict[str, float])
    scale: float = 1.0
    label_smoothing: float = 0.0

    @property
    def needs_double(self) -> bool:
        """Whether float32 is not enough for it."""
        if not 1.0 <= self.temperature <= 16.0:
            return True
        return self.divergence is not None and DEFINITIONS[self.divergence].needs_double(self.parameters)


def check_labels(labels_N: Tensor, classes: int) -> None:
    """Raise ObjectiveError unless labels are int64 ``[N]``, each 0 ≤ label < classes or ``NO_LABEL``."""
    if labels_N.ndim != 1 or labels_N.dtype != torch.int64:
        raise ObjectiveError(
            f"labels are {labels_N.dtype} of shape {tuple(labels_N.shape)}: expected int64 class indices [N]"
        )
    wrong_N = (labels_N != NO_LABEL) & ((labels_N < 0) | (labels_N >= classes))
    if bool(wrong_N.any()):
        row = int(wrong_N.nonzero()[0])
        raise ObjectiveError(
            f"label {int(labels_N[row])} in row {row}, but the student has {classes:,} classes (0 to {classes - 1:,}; "
            f"{NO_LABEL} means no label): the loss would be read off another row's memory or crash the device; give the "
            "student more classes, or renumber the labels"
        )
