"""Which positions of a text its rows are, in 8 bytes: as many rows at other positions would be other tokens' answers."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage.counters import mix

#: Of an example whose positions nobody told, or whose rows are none of a text's.
UNTOLD = 0

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
#: Examples whose mask is held as 64-bit words at once.
_AT_ONCE = 1024


def position_digests(supervised: Tensor) -> NDArray[np.int64]:
    """A number for each example that other positions would change, never :data:`UNTOLD`; padding at the end changes nothing.

    Args:
        supervised: bool ``[B, T]``, which positions are rows.

    Returns:
        int64 ``[B]``.
    """
    positions = np.arange(1, supervised.shape[1] + 1, dtype=np.uint64)
    words = torch.from_numpy(mix(positions * _GOLDEN).view(np.int64))
    # a sum modulo 2^64 of one word a position
    sums = [part.long().mul_(words).sum(dim=1) for part in supervised.cpu().split(_AT_ONCE)]
    mixed = mix(torch.cat(sums).numpy().view(np.uint64) + _GOLDEN)
    return (mixed | np.uint64(1)).view(np.int64)
