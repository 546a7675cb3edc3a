"""Bringing two layers of other shapes to the same positions, and a student's width to its teacher's."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.errors import ObjectiveError
from tutelage.objectives.features.layers import AbstractLayerTerm, Pair, not_fitted
from tutelage.padding import real_positions


class Met(NamedTuple):
    """Both sides at the same positions, width last: ``[B, D]``, ``[B, T, D]`` or ``[B, H, W, C]``; and what it took.

    The mask is True at real positions, ``[B, T]``, or ``[B, T, T]`` of attentions; None where all are.
    """

    student: Tensor
    teacher: Tensor
    notes: list[str]
    mask: Tensor | None = None


def meet(pair: Pair, term: AbstractLayerTerm) -> Met:
    """The two sides at the same positions; their widths may still differ.

    - Maps of two resolutions: each axis is average-pooled to the smaller one of the two.
    - Tokens against a map: T = h·w tokens in the map's proportions, or 1 + h·w with a class token first, which is left
      out, are laid out row by row as a map.
    - Vectors against maps or tokens: these are averaged over their real positions.

    Raises:
        ObjectiveError: tokens of two lengths, tokens that are no grid of the map's proportions, or some of them padding.
    """
    mine, theirs = pair.student, pair.teacher
    notes: list[str] = []
    if pair.mask is not None and {mine.ndim, theirs.ndim} == {3, 4}:
        raise _cannot_meet(pair, term, "tokens of which some are padding are no places of a map")
    if mine.ndim == 3 and theirs.ndim == 4:
        mine = _as_map(mine, theirs, term, notes, tokens_of="student")
    elif mine.ndim == 4 and theirs.ndim == 3:
        theirs = _as_map(theirs, mine, term, notes, tokens_of="teacher")
    if mine.ndim == theirs.ndim == 4:
        size = (min(mine.shape[2], theirs.shape[2]), min(mine.shape[3], theirs.shape[3]))
        mine = _pooled(mine, size, f"the student's {term.student!r}", notes)
        theirs = _pooled(theirs, size, f"the teacher's {term.teacher!r}", notes)
        real = real_positions(mine, pair.mask)
        return Met(mine.movedim(1, -1), theirs.movedim(1, -1), notes, real)
    if mine.ndim == theirs.ndim == 3:
        if mine.shape[1] != theirs.shape[1]:
            raise _cannot_meet(
                pair, term, "position i of one would be compared with another word or patch of the other"
            )
        return Met(mine, theirs, notes, pair.mask)
    mine = averaged(mine, f"the student's {term.student!r}", notes, pair.mask)
    return Met(mine, averaged(theirs, f"the teacher's {term.teacher!r}", notes, pair.teacher_mask), notes)


def averaged(values: Tensor, what: str, notes: list[str], mask: Tensor | None = None) -> Tensor:
    """``[B, width]``: the mean over a map's positions or over tokens; vectors as they are.

    Args:
        values: a side of a :class:`Pair`, zeros at padding.
        what: its name in the notes.
        notes: to which what was done is added.
        mask: that side's ``[B, T]``, True at the tokens that count; None for all. The mean of none is zeros.
    """
    if values.ndim == 2:
        return values
    if values.ndim == 3:
        notes.append(f"{what} averaged over its tokens")
    else:
        notes.append(f"{what} averaged over its {values.shape[2]}×{values.shape[3]} positions")
    places = (1,) if values.ndim == 3 else (2, 3)
    real = real_positions(values, mask)
    if real is None:
        return values.mean(places)
    return values.sum(places) / real.flatten(1).sum(1, keepdim=True).clamp_min(1)


def summed(each: Tensor, mask: Tensor | None, *, mean: bool) -> Tensor:
    """Σ over examples of the sum of ``each[B, *positions, ...]`` over an example's real positions, or of its mean there.

    Args:
        each: a number a position, or one a unit of it, finite also at padding.
        mask: ``[B, *positions]``, True at the real ones; None for all. The mean of none is 0.
        mean: whether each example's sum is divided by its number of positions, or units.
    """
    if mask is None:
        return each.sum() / each.shape[1:].numel() if mean else each.sum()
    units = each.shape[mask.ndim :].numel()
    sums_B = each.masked_fill(~mask.reshape(*mask.shape, *[1] * (each.ndim - mask.ndim)), 0.0).flatten(1).sum(1)
    return (sums_B / (mask.flatten(1).sum(1) * units).clamp_min(1)).sum() if mean else sums_B.sum()


def projector_for(met: Met, always: bool, notes: list[str]) -> nn.Linear | None:
    """A linear map from the student's width to the teacher's, where they differ or ``always``.

    It is applied at each position, which makes it a 1×1 convolution of a map.
    """
    wide, to = met.student.shape[-1], met.teacher.shape[-1]
    if wide == to and not always:
        return None
    linear = linear_for(met.student, wide, to)
    kind = "a 1×1 convolution" if met.student.ndim == 4 else "a linear projector"
    notes.append(f"{kind} on the student's side, {wide:,} → {to:,} wide ({wide * to + to:,} weights, trained with it)")
    return linear


def linear_for(like: Tensor, wide: int, to: int) -> nn.Linear:
    """A linear layer on ``like``'s device, in float32 or its float64.

    Its values are drawn on the CPU, so that one seed gives one set of weights whatever the device.
    """
    linear = nn.Linear(wide, to, device="cpu")
    return linear.to(like.device, like.dtype if like.dtype.itemsize > linear.weight.dtype.itemsize else None)


def projected(met: Met, weights: nn.Module | None, term: AbstractLayerTerm) -> Tensor:
    """The student's side at the teacher's width; an ObjectiveError where that takes a projector and none was fitted."""
    if weights is not None:
        return weights(met.student)
    if met.student.shape[-1] != met.teacher.shape[-1]:
        raise not_fitted(term)
    return met.student


def _as_map(tokens_BTD: Tensor, map_BCHW: Tensor, term: AbstractLayerTerm, notes: list[str], tokens_of: str) -> Tensor:
    height, width = map_BCHW.shape[2:]
    length = tokens_BTD.shape[1]
    layer = term.student if tokens_of == "student" else term.teacher
    for class_tokens in (0, 1):
        rows = math.isqrt((length - class_tokens) * height // width)
        if rows and rows * rows * width == (length - class_tokens) * height:
            columns = (length - class_tokens) // rows
            without = " without the first, the class token," if class_tokens else ""
            notes.append(f"the {length} tokens of the {tokens_of}'s {layer!r}{without} as a {rows}×{columns} map")
            return tokens_BTD[:, class_tokens:].unflatten(1, (rows, columns)).movedim(-1, 1)
    pair = Pair(tokens_BTD, map_BCHW) if tokens_of == "student" else Pair(map_BCHW, tokens_BTD)
    raise _cannot_meet(
        pair,
        term,
        f"{length} tokens, with or without a class token, are no grid in the proportions of {height}×{width}",
    )


def _pooled(map_BCHW: Tensor, size: tuple[int, int], what: str, notes: list[str]) -> Tensor:
    height, width = map_BCHW.shape[2:]
    if (height, width) == size:
        return map_BCHW
    notes.append(f"{what} average-pooled from {height}×{width} to {size[0]}×{size[1]}")
    return F.adaptive_avg_pool2d(map_BCHW, size)


def _cannot_meet(pair: Pair, term: AbstractLayerTerm, why: str) -> ObjectiveError:
    return ObjectiveError(
        f"the student's {term.student!r} shows {list(pair.student.shape)} and the teacher's {term.teacher!r} "
        f"{list(pair.teacher.shape)}, which the term {term.name!r} cannot bring together: {why}; name other layers (a "
        "pooled one, an embedding), or use a term of relations (similarity_preserving, rkd, pkt, crd), which compares "
        "examples and not positions"
    )
