"""Keys and values of a generation, in memory that is set aside once.

transformers' own dynamic cache joins old and new at every token, which copies all that was kept, for each layer and token.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer


class GrowingLayer(DynamicLayer):
    """One layer's keys and values ``[B, heads, T, D]``, as views of memory for ``room`` tokens.

    Args:
        room: the most tokens of a row, prompt and padding included.
    """

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.kept: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Write new keys and values ``[B, heads, T', D]`` behind those that are there, and give all of them."""
        if self.kept is None:
            self.lazy_initialization(key_states, value_states)
            self.kept = self._memory(key_states), self._memory(value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        self.keys, self.values = (memory[:, :, :end] for memory in self.kept)
        self.keys[:, :, start:] = key_states
        self.values[:, :, start:] = value_states
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Only those rows, int64 ``[B']``, in that order; one may be there more than once."""
        if self.kept is None or self.keys is None or self.values is None:
            return
        there = self.keys[beam_idx], self.values[beam_idx]
        self.kept = self._memory(there[0]), self._memory(there[1])
        self.keys, self.values = (memory[:, :, : part.shape[2]] for memory, part in zip(self.kept, there, strict=True))
        self.keys.copy_(there[0])
        self.values.copy_(there[1])

    def _memory(self, like: Tensor) -> Tensor:
        rows, heads, _, width = like.shape
        return torch.empty(rows, heads, self.room, width, dtype=like.dtype, device=like.device)


def growing_cache(config: Any, room: int) -> DynamicCache:
    """A cache for a model of that config.

    Layers that look back over a window alone keep everything too: the window is in the model's masks, and rows can then be
    taken back. Layers that keep something else than keys and values are transformers' own.

    Args:
        config: the model's.
        room: the most tokens of a row, prompt and padding included.
    """
    cache = DynamicCache(config=config)
    cache.layers = [
        GrowingLayer(room) if type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) else layer
        for layer in cache.layers
    ]
    return cache
