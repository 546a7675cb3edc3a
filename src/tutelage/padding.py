"""Which positions of a layer are a text's own tokens, and which are padding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def real_tokens(view: object, places: Tensor | None = None) -> Tensor | None:
    """``[B, T]`` truth values: the tokens of a view that are no padding, as the ``attention_mask`` says that its model is given.

    None where there is no such mask, and where the rows have ``places`` of their own in what the model gives: a layer then shows
    supervised tokens alone (:func:`tutelage.models.scores_and_features`), never padding.
    """
    if places is not None or not isinstance(view, Mapping):
        return None
    named: Mapping[str, Any] = view
    mask = named.get("attention_mask")
    return mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None


def real_positions(values: Tensor, mask: Tensor | None) -> Tensor | None:
    """Which of the positions that a layer shows are real ones.

    Args:
        values: what the layer gave.
        mask: ``[B, T]``, True at real tokens; None where all are.

    Returns:
        ``[B, T]`` for tokens ``[B, T, D]``; ``[B, T, T]`` for attentions ``[B, heads, T, T]``, where a pair is real if both of its
        tokens are; None where no mask is given, and for vectors, maps, and another number of positions than there are tokens.
    """
    if mask is None:
        return None
    examples, length = mask.shape
    if values.ndim == 3 and values.shape[:2] == mask.shape:
        return mask
    if values.ndim == 4 and values.shape[0] == examples and values.shape[2:] == (length, length):
        return mask[:, :, None] & mask[:, None, :]
    return None


def without_padding(values: Tensor, mask: Tensor | None) -> Tensor:
    """What a layer gave, with zeros at padded positions, whatever stood there (a NaN too), and no gradient to them."""
    real = real_positions(values, mask)
    return values if real is None else values.masked_fill(~real.unsqueeze(-1 if values.ndim == 3 else 1), 0.0)
