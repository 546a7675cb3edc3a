"""What every feature term shares: one layer of the student beside one of the teacher, and what was put between them."""

from __future__ import annotations

import contextlib
import copy
import functools
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from tutelage.errors import ObjectiveError
from tutelage.objectives.objective import Term
from tutelage.objectives.response import describe_fields
from tutelage.objectives.schedules import nearest
from tutelage.padding import real_positions, without_padding
from tutelage.signals import Rows, Side, Signals, examples_in, feature_need


class Pair(NamedTuple):
    """The same examples as two layers show them, one row each: ``[B, ...]`` both, the teacher's without gradient.

    What stood at padded tokens is zeros. The masks ``[B, T]`` are True at the real tokens of the student's layer and of the
    teacher's; None where all are, or where that layer shows no tokens. Both are the same for a term that compares position
    with position, unless one side is vectors.
    """

    student: Tensor
    teacher: Tensor
    mask: Tensor | None = None
    teacher_mask: Tensor | None = None


class Adapter(NamedTuple):
    """What a term puts between the two sides: weights to learn, or none, and each thing it does, in words."""

    weights: nn.Module | None
    notes: Sequence[str]


class AbstractLayerTerm(Term):
    """A term on one layer of each side, named by ``student`` and ``teacher``, both fields of the final dataclass.

    A layer shows vectors ``[B, D]``, tokens ``[B, T, D]`` or feature maps ``[B, C, H, W]``; three axes are always
    tokens, and attentions ``[B, heads, T, T]`` count as maps. Padding has no part in it: padded tokens, and an
    attention's rows and columns of them, are zeros in a :class:`Pair`, and a term leaves them out of what it counts. An
    example without a single real token adds 0 to a mean over positions.
    """

    student: str
    teacher: str

    #: Whether position i of one side meets position i of the other, so that both have to show the same tokens.
    by_position: ClassVar[bool] = True

    # no dataclass fields: what was fitted is neither compared nor shown nor described, and ``replace`` drops it
    _weights: nn.Module | None = None
    _notes: str | None = None

    @property
    def needs(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The two layers' features."""
        return frozenset({feature_need("student", self.student), feature_need("teacher", self.teacher)})

    @property
    def weights(self) -> nn.Module | None:
        """The adapter's weights; None before :meth:`fitted`, and where the sides meet without."""
        return self._weights

    def adjustments(self) -> str | None:
        """What :meth:`fitted` put between the two layers, in words."""
        return self._notes

    def fitted(self, student: Signals, teacher: Signals | None) -> Term:
        """The term with the weights it needs for layers of these shapes, drawn from torch's generator.

        Raises:
            ObjectiveError: a layer that is not there, or shapes that cannot meet.
        """
        made = self._adapter(self._pair(student, teacher))
        fitted = copy.copy(self)
        object.__setattr__(fitted, "_weights", made.weights)
        said = [*made.notes, *self._of_no_token(student, "student"), *self._of_no_token(teacher, "teacher")]
        object.__setattr__(fitted, "_notes", f"{self.student} → {self.teacher}: {'; '.join(said)}" if said else None)
        return fitted

    def __call__(
        self,
        student: Signals,
        teacher: Signals | None,
        rows: Rows,
        progress: float = 0.0,  # noqa: ARG002 - every term's signature
    ) -> tuple[Tensor, Tensor]:
        """(sum over the batch's examples, their number), in float32 or better, also under autocast.

        Raises:
            ObjectiveError: a layer that is not there, shapes that cannot meet, or weights that were never fitted.
        """
        pair = self._pair(student, teacher)
        examples = examples_in(rows)
        if pair.student.shape[0] != examples:
            raise ObjectiveError(
                f"the term {self.name!r} got {pair.student.shape[0]:,} rows of {self.student!r} for {examples:,} examples: "
                "a layer must show one row an example, or rows of one would be compared with those of another"
            )
        dtype = functools.reduce(torch.promote_types, (side.dtype for side in pair[:2]), torch.float32)
        with _without_autocast(pair.student.device.type):
            total = self._sum(pair._replace(student=pair.student.to(dtype), teacher=pair.teacher.to(dtype)), rows)
        return total.to(dtype), self.count(rows)

    def describe(self) -> dict[str, Any]:
        """``{"term": name, "student": layer, "teacher": layer, …}``."""
        return describe_fields(self)

    @abstractmethod
    def _adapter(self, pair: Pair) -> Adapter:
        """What has to stand between layers of these shapes, or an ObjectiveError where nothing could."""

    @abstractmethod
    def _sum(self, pair: Pair, rows: Rows) -> Tensor:
        """The sum over examples, 0-dim, of features in float32 or better."""

    def _pair(self, student: Signals, teacher: Signals | None) -> Pair:
        mine = self._layer(student, "student", self.student)
        theirs = self._layer(teacher, "teacher", self.teacher).detach()
        if mine.shape[0] != theirs.shape[0]:
            raise ObjectiveError(
                f"the term {self.name!r} got {mine.shape[0]:,} rows of the student's {self.student!r} and "
                f"{theirs.shape[0]:,} of the teacher's {self.teacher!r}: they are not the same examples; give both "
                "models the same batch"
            )
        mask, teacher_mask = self._mask(student, mine, "student"), self._mask(teacher, theirs, "teacher")
        if self.by_position and mine.ndim > 2 and theirs.ndim > 2 and not _same(mask, teacher_mask):
            raise ObjectiveError(
                f"the term {self.name!r} compares the student's {self.student!r}, {_padded(mine, mask)}, with the teacher's "
                f"{self.teacher!r}, {_padded(theirs, teacher_mask)}, token by token, and their real tokens are not the same "
                "ones: a word would be compared with another word, or with padding. With other tokenizers or other views for "
                "student and teacher, compare whole texts: vectors (an embedding, a pooled layer), or a term of relations "
                "(similarity_preserving, rkd, pkt, crd). With the same view, a teacher of your own says which tokens are real: "
                "Signals(…, mask=attention_mask.bool())"
            )
        return Pair(without_padding(mine, mask), without_padding(theirs, teacher_mask), mask, teacher_mask)

    def _mask(self, signals: Signals | None, values: Tensor, whose: Side) -> Tensor | None:
        """``[B, T]``, where the layer shows the tokens of a mask and some are padding."""
        mask = signals.mask if signals is not None else None
        if mask is None or values.ndim == 2:
            return None
        if mask.shape[0] != values.shape[0]:
            raise ObjectiveError(
                f"the {whose}'s mask is {list(mask.shape)} for {values.shape[0]:,} rows of features: expected one row an example, "
                "or one example's padding would be taken for another's"
            )
        mask = mask.to(values.device)
        return None if real_positions(values, mask) is None or bool(mask.all()) else mask

    def _of_no_token(self, signals: Signals | None, whose: Side) -> list[str]:
        """In words, that a layer's positions are no tokens of which padding could be told; nothing where they are."""
        mask = signals.mask if signals is not None else None
        layer = getattr(self, whose)
        if signals is None or mask is None or signals.features[layer].ndim != 3:
            return []
        shown = signals.features[layer].shape[1]
        if shown == mask.shape[1]:
            return []
        return [f"the {whose}'s {layer!r} shows {shown:,} positions for {mask.shape[1]:,} tokens, and each counts"]

    def _layer(self, signals: Signals | None, whose: Side, layer: str) -> Tensor:
        if signals is None or layer not in signals.features:
            there = {} if signals is None else signals.features
            raise ObjectiveError(
                f"the term {self.name!r} needs {feature_need(whose, layer)}, and there is no such layer"
                f"{nearest(layer, there)} (there is: {', '.join(there) or 'none'}): tap it, or leave the term out"
            )
        values = signals.features[layer]
        if not values.is_floating_point() or values.ndim not in _RANKS:
            raise ObjectiveError(
                f"{whose}'s {layer!r} shows {values.dtype} of shape {list(values.shape)}: the term {self.name!r} takes "
                f"floating-point {', '.join(_RANKS.values())}; name another layer"
            )
        return values


def _same(mask: Tensor | None, teacher_mask: Tensor | None) -> bool:
    if mask is None or teacher_mask is None:
        return mask is teacher_mask
    return torch.equal(mask, teacher_mask)


def _padded(values: Tensor, mask: Tensor | None) -> str:
    real = "without padding" if mask is None else f"{int(mask.sum()):,} of {mask.numel():,} tokens real"
    return f"{list(values.shape)} ({real})"


_RANKS = {2: "vectors [B, D]", 3: "tokens [B, T, D]", 4: "feature maps [B, C, H, W]"}


def check_layers(term: Any) -> None:
    """Raise ObjectiveError unless ``term.student`` and ``term.teacher`` are names."""
    for side in ("student", "teacher"):
        layer = getattr(term, side)
        if not isinstance(layer, str) or not layer:
            raise ObjectiveError(
                f"{term.name}'s {side} is {layer!r}: expected the name of one of the {side}'s layers, such as 'blocks.1'"
            )


def check_choice(term: Any, name: str, choices: Sequence[str]) -> None:
    """Raise ObjectiveError unless the field is one of the choices."""
    value = getattr(term, name)
    if value not in choices:
        raise ObjectiveError(
            f"{term.name}'s {name} is {value!r}{nearest(str(value), list(choices))}: expected one of {', '.join(choices)}"
        )


def check_whole(term: Any, name: str, least: int, why: str) -> None:
    """Raise ObjectiveError unless the field is a whole number of at least ``least``; below it, ``why`` says."""
    value = getattr(term, name)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ObjectiveError(f"{term.name}'s {name} is {value!r}: expected a whole number of at least {least}; {why}")


def not_fitted(term: AbstractLayerTerm) -> ObjectiveError:
    """The error for a term whose weights are yet to be made."""
    return ObjectiveError(
        f"the term {term.name!r} between {term.student!r} and {term.teacher!r} has weights to learn and was not fitted: "
        "made anew at each call they would never be trained; call Objective.fitted with a first batch's signals, and "
        "give the optimiser Objective.weights"
    )


def _without_autocast(device: str) -> contextlib.AbstractContextManager[Any]:
    # the products of an autocast region are rounded to half precision, whatever dtype they are given
    if torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()
