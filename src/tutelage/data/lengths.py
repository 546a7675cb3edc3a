"""How long examples are, so that those of one batch can be padded to much the same length."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tutelage.data.completions import Completions
from tutelage.data.ids import RawInputs
from tutelage.errors import ConfigError

#: The column of token ids' company that says which positions are padding.
_MASK = "attention_mask"


def shortest_first(inputs: RawInputs) -> Tensor:
    """The rows in an order in which neighbours are of much the same length, so that batches of them are hardly padded.

    Args:
        inputs: as of :func:`input_lengths`; of tensors of one shape the order stays as it is.

    Returns:
        int64 ``[B]``.
    """
    if isinstance(inputs, Tensor) or (isinstance(inputs, Mapping) and _MASK not in inputs):
        return torch.arange(len(inputs) if isinstance(inputs, Tensor) else len(next(iter(inputs.values()))))
    return input_lengths(inputs).argsort(stable=True)


def input_lengths(inputs: RawInputs) -> Tensor:
    """How long each example is, in whatever unit its inputs are: tokens, or the characters of a text that no tokenizer has read.

    Args:
        inputs: B texts, B prompts and completions, or named tensors ``[B, ...]`` with an ``attention_mask`` ``[B, T]``.

    Returns:
        int64 ``[B]``.

    Raises:
        ConfigError: tensors without a mask, whose examples are all of one shape.
    """
    if isinstance(inputs, Completions):
        return inputs.prompts.lengths + inputs.completions.lengths
    if isinstance(inputs, Mapping):
        if _MASK in inputs:
            return inputs[_MASK].sum(dim=-1, dtype=torch.int64)
    elif not isinstance(inputs, Tensor):
        return torch.tensor([len(text) for text in inputs], dtype=torch.int64)
    raise ConfigError(
        "train_sampling_strategy is 'group_by_length', and the examples are tensors of one shape: there is no length to group them by; "
        "use 'random'"
    )
