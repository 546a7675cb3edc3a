"""Token-level rows: one supervised row a position instead of one an example."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tutelage.errors import DataError
from tutelage.signals import NO_LABEL, Rows

if TYPE_CHECKING:
    from tutelage.data.transfer_set import Batch


def next_token_labels(
    input_ids: Tensor, attention_mask: Tensor | None = None, supervised: Tensor | None = None
) -> Tensor:
    """Labels ``[B, T]`` of a causal language model: ``labels[b, t]`` is token t + 1, which position t has to predict.

    The last position has nothing to predict. Neither has one whose next token is padding, or is not among those that the
    model shall learn to write.

    Args:
        input_ids: integer ``[B, T]``.
        attention_mask: ``[B, T]``, 0 where ``input_ids`` is padding; None for no padding.
        supervised: ``[B, T]`` truth values, of each *token* whether it shall be learnt (a completion's, not its prompt's);
            None for all.

    Raises:
        DataError: shapes that differ, or tokens that are no integers.
    """
    if input_ids.ndim != 2 or input_ids.is_floating_point() or input_ids.dtype is torch.bool:
        raise DataError(
            f"input_ids are {input_ids.dtype} of shape {tuple(input_ids.shape)}: expected whole token numbers [B, T]"
        )
    learnt = torch.ones_like(input_ids, dtype=torch.bool)
    for name, mask in (("attention_mask", attention_mask), ("supervised", supervised)):
        if mask is None:
            continue
        if mask.shape != input_ids.shape:
            raise DataError(
                f"{name} is {tuple(mask.shape)}, input_ids {tuple(input_ids.shape)}: another token's mask would decide what is learnt; "
                "give one value a token"
            )
        learnt &= mask.bool()
    labels = torch.full(input_ids.shape, NO_LABEL, dtype=torch.int64, device=input_ids.device)
    labels[:, :-1] = torch.where(learnt[:, 1:], input_ids[:, 1:].long(), NO_LABEL)
    if attention_mask is not None:
        labels.masked_fill_(~attention_mask.bool(), NO_LABEL)
    return labels


def rows_of(batch: Batch) -> Rows:
    """What an objective may know of a batch besides the signals: flat labels and ids, one a supervised row.

    A row is an example where labels are ``[B]``, and a position with a label, in row-major order, where they are ``[B, T]``;
    the id of an example then comes once for each of its rows. Of the latter, layers show all B examples, but for prompts and completions,
    of which they show the rows (:func:`tutelage.models.scores_and_features`).
    """
    labels, ids = batch["labels"], batch["ids"]
    if labels.ndim == 1:
        return {"labels": labels, "ids": ids}
    mask = labels != NO_LABEL
    rows: Rows = {"labels": labels[mask], "ids": ids.repeat_interleave(mask.sum(dim=1))}
    return rows if "student_rows" in batch else {**rows, "examples": len(ids)}
