"""Rows of a model's scores, taken before anything is multiplied out or mixed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import overload

import torch
from torch import Tensor

from tutelage.signals import AnyScores, ClassScores, HeadLogits, Logits, MixtureLogits, SparseTargets


@overload
def some_rows(scores: ClassScores, of: slice | Tensor) -> ClassScores: ...
@overload
def some_rows(scores: AnyScores, of: slice | Tensor) -> AnyScores: ...
def some_rows(scores: AnyScores, of: slice | Tensor) -> AnyScores:
    """The same scores for some of the rows, of the same kind."""
    if isinstance(scores, Logits):
        return Logits(scores.values[of])
    if isinstance(scores, HeadLogits):
        return replace(scores, hidden=scores.hidden[of])
    if isinstance(scores, MixtureLogits):
        return MixtureLogits(scores.members[:, of], scores.weights)
    return scores.rows(of) if isinstance(scores, SparseTargets) else _SomeRows(scores, of)


@dataclass(frozen=True)
class _SomeRows:
    """Rows of scores of a kind that cannot be taken apart."""

    scores: ClassScores
    of: slice | Tensor

    @property
    def classes(self) -> int:
        return self.scores.classes

    def at(self, temperature: float) -> Tensor:
        return self.scores.at(temperature)[self.of]


def for_slices(scores: ClassScores) -> ClassScores:
    """The same scores for a loop over :func:`some_rows`: what each slice would do again for itself is done once.

    A head's weight, gathered and converted, takes as much memory as each slice would take for it; scores of a kind that cannot be
    taken apart are all made at once, as each slice would have.
    """
    if isinstance(scores, HeadLogits):
        return _converted(scores)
    return scores if isinstance(scores, Logits | MixtureLogits) else _Whole(scores)


def _converted(head: HeadLogits) -> HeadLogits:
    """The head in the dtype that :meth:`HeadLogits.at` multiplies in, of the kept rows alone."""
    of = slice(head.kept) if isinstance(head.kept, int) else slice(None) if head.kept is None else head.kept
    dtype = torch.promote_types(torch.promote_types(head.hidden.dtype, head.weight.dtype), torch.float32)
    bias = None if head.bias is None else head.bias[of].to(dtype)
    return replace(head, weight=head.weight[of].to(dtype), bias=bias, kept=None)


@dataclass(frozen=True)
class _Whole:
    """Scores whose rows are made all together, once for each temperature."""

    scores: ClassScores
    made: dict[float, Tensor] = field(default_factory=dict[float, Tensor])

    @property
    def classes(self) -> int:
        return self.scores.classes

    def at(self, temperature: float) -> Tensor:
        if temperature not in self.made:
            self.made[temperature] = self.scores.at(temperature)
        return self.made[temperature]


def row_count(scores: AnyScores) -> int:
    """Number of rows N."""
    if isinstance(scores, Logits):
        return scores.values.shape[0]
    if isinstance(scores, HeadLogits):
        return scores.hidden.shape[0]
    if isinstance(scores, MixtureLogits):
        return scores.members.shape[1]
    return (scores.ids if isinstance(scores, SparseTargets) else scores.at(1.0)).shape[0]


@overload
def scores_on(scores: Logits | HeadLogits, device: torch.device) -> Logits | HeadLogits: ...
@overload
def scores_on(scores: SparseTargets, device: torch.device) -> SparseTargets: ...
@overload
def scores_on(scores: AnyScores, device: torch.device) -> AnyScores: ...
def scores_on(scores: AnyScores, device: torch.device) -> AnyScores:
    """The same scores on a device; a kind that cannot be moved as it is becomes its logits there."""
    if isinstance(scores, Logits):
        return Logits(scores.values.to(device))
    if isinstance(scores, HeadLogits):
        bias = None if scores.bias is None else scores.bias.to(device)
        return replace(scores, hidden=scores.hidden.to(device), weight=scores.weight.to(device), bias=bias)
    if isinstance(scores, MixtureLogits):
        return MixtureLogits(scores.members.to(device), scores.weights.to(device))
    if isinstance(scores, SparseTargets):
        entropy = None if scores.entropy is None else scores.entropy.to(device)
        return replace(scores, ids=scores.ids.to(device), probs=scores.probs.to(device), entropy=entropy)
    return Logits(scores.at(1.0).to(device))
