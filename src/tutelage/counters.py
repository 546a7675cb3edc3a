"""Random bits as a function of a key and a counter: no state, the same in any order, batch or process."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(z: Words) -> Words:
    """SplitMix64's finaliser (Steele, Lea & Flood 2014): a bijection of 64-bit words in which every bit moves every other."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def name_word(name: str) -> np.uint64:
    """A 64-bit word that stands for a text."""
    return np.uint64(int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little"))


def counted_bits(keys: Words, draws: int) -> Words:
    """Uniform 64-bit words ``[N, draws]`` for ``keys[N]``; those of a key do not depend on how many are drawn."""
    with np.errstate(over="ignore"):
        counters = np.arange(1, draws + 1, dtype=np.uint64) * _GOLDEN
        return mix(mix(keys[:, None] + counters[None, :]) ^ keys[:, None])
