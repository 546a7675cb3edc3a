"""Rows of a model's scores, taken before anything is multiplied out or mixed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import overload

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


def row_count(scores: AnyScores) -> int:
    """Number of rows N."""
    if isinstance(scores, Logits):
        return scores.values.shape[0]
    if isinstance(scores, HeadLogits):
        return scores.hidden.shape[0]
    if isinstance(scores, MixtureLogits):
        return scores.members.shape[1]
    return (scores.ids if isinstance(scores, SparseTargets) else scores.at(1.0)).shape[0]
