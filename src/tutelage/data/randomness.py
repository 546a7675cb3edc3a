"""Augmentation randomness as a function of (seed, epoch, id): no global state, the same in any batch, worker or run.

Draws come from a counter-based generator: SplitMix64's finaliser (Steele, Lea & Flood 2014) over a key made of the
seed, the epoch, the example's id, the stream's name and a counter.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


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
        name = int.from_bytes(blake2b(f"{self.seed}|{self.epoch}|{stream}".encode(), digest_size=8).digest(), "little")
        with np.errstate(over="ignore"):
            keys = _mix(self.ids.numpy().view(np.uint64) ^ np.uint64(name))
            counters = np.arange(1, draws + 1, dtype=np.uint64) * _GOLDEN
            return _mix(_mix(keys[:, None] + counters[None, :]) ^ keys[:, None])

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
