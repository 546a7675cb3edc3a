"""Augmentation randomness as a function of (seed, epoch, id): no global state, the same in any batch, worker or run.

Draws come from a counter-based generator (:mod:`tutelage.counters`) over a key made of the seed, the epoch, the example's
id, the stream's name and a counter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tutelage.counters import counted_bits, mix, name_word


@dataclass(frozen=True)
class Draws:
    """The random numbers of one batch in one epoch.

    Two views that draw from the same stream get the same numbers, which is how a teacher and a student see the same
    crop; give a view another stream name to make it independent.

    Args:
        seed: the run's data seed.
        epoch: the epoch, from 0.
        ids: int64 ``[B]`` content ids.
    """

    seed: int
    epoch: int
    ids: Tensor

    def bits(self, stream: str, draws: int) -> npt.NDArray[np.uint64]:
        """Uniform 64-bit words ``[B, draws]``."""
        name = name_word(f"{self.seed}|{self.epoch}|{stream}")
        return counted_bits(mix(self.ids.numpy().view(np.uint64) ^ name), draws)

    def uniform(self, stream: str, draws: int = 1) -> Tensor:
        """Uniform in [0, 1), float32 ``[B, draws]``."""
        return torch.from_numpy((self.bits(stream, draws) >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24))

    def integers(self, stream: str, low: int, high: int, draws: int = 1) -> Tensor:
        """Integers in [low, high], both ends included, int64 ``[B, draws]``."""
        return low + (self.uniform(stream, draws).double() * (high - low + 1)).long()

    def normal(self, stream: str, draws: int = 1) -> Tensor:
        """Standard normal, float32 ``[B, draws]`` (Box–Muller)."""
        words = self.bits(stream, 2 * draws) >> np.uint64(11)
        uniform = (words.astype(np.float64) + 0.5) * 2.0**-53
        radius = np.sqrt(-2.0 * np.log(uniform[:, :draws]))
        return torch.from_numpy((radius * np.cos(2.0 * np.pi * uniform[:, draws:])).astype(np.float32))
