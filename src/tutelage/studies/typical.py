"""The one example whose arithmetic, and whose answer alone, is measured: the same for every number on a page."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tutelage.data import TransferSet, shortest_first
from tutelage.models.calling import Inputs


def typical_row(test: TransferSet) -> Tensor:
    """The row of the test example of middle length (of examples that are all of one shape, one in the middle): int64 ``[1]``.

    The first would do for images; of texts it may be one of three words, or one that is cut.
    """
    order = shortest_first(test.inputs)
    return order[(len(order) - 1) // 2][None]


def typical_example(test: TransferSet) -> dict[str, Any]:
    """That example alone, unpadded, as ``student`` and ``teacher`` see it: a batch of one each."""
    batch: Any = test.for_evaluation().batch(typical_row(test))
    return {"student": batch["student"], "teacher": batch.get("teacher", batch["student"])}


def tokens_in(inputs: Inputs) -> int | None:
    """How many tokens a batch of one text has; None of what is no text, or is padded to a length of its own."""
    mask = None if isinstance(inputs, Tensor) else inputs.get("attention_mask")
    return int(mask.numel()) if mask is not None and bool(mask.all()) else None
