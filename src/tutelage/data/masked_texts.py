"""Texts as the transfer set of a masked language model."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress

import torch
from torch import Tensor

from tutelage.data.ids import content_ids
from tutelage.data.masking import MaskedTokens
from tutelage.data.randomness import Draws
from tutelage.data.transfer_set import TransferSet
from tutelage.errors import DataError
from tutelage.signals import NO_LABEL

_READ_TOGETHER = 1024


def masked_texts(texts: Sequence[str], view: MaskedTokens, seed: int = 0) -> TransferSet:
    """Texts of which the tokens that the view hides are to be told; rows are these tokens.

    A text in which there is nothing to hide (no word that the tokenizer knows) is left out. ``labels`` are all tokens that may be
    asked for, of which each epoch's batches ask some; for a ``fixed`` view they are those that are asked.

    Args:
        texts: B of them.
        view: how they are read and masked.
        seed: of what is hidden.

    Raises:
        DataError: there is nothing to hide in any of them.
    """
    parts: list[Tensor] = []
    for start in range(0, len(texts), _READ_TOGETHER):
        some = list(texts[start : start + _READ_TOGETHER])
        parts.append(view(some, Draws(seed, 0, content_ids(some))).labels if view.fixed else view.candidates(some))
    width = max((part.shape[1] for part in parts), default=0)
    labels_BT = torch.full((len(texts), max(width, 2)), NO_LABEL, dtype=torch.int64)
    for start, part in zip(range(0, len(texts), _READ_TOGETHER), parts, strict=True):
        labels_BT[start : start + len(part), : part.shape[1]] = part
    kept = (labels_BT != NO_LABEL).any(dim=1)
    if not bool(kept.any()):
        raise DataError(
            f"in none of {len(texts):,} texts is there a token to hide: they are empty, or in a script that the tokenizer does not know; "
            "give other texts, or the tokenizer of a model that reads them"
        )
    return TransferSet(list(compress(texts, kept.tolist())), labels_BT[kept], student_view=view, seed=seed)
