"""Numbers in few bits: logarithms of probabilities, entropies, and the bytes of an array."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: The range of logarithms that 16 bits hold; code 0 is a probability of 0.
_LOW, _HIGH = -32.0, 8.0
_STEP = (_HIGH - _LOW) / 65534
_UNKNOWN = 65535

#: The greatest probability (with its importance weight) that 16 bits hold.
MOST = math.exp(_HIGH)

_DECODED: NDArray[np.float32] = np.concatenate([[0.0], np.exp(_LOW + _STEP * np.arange(65535))]).astype(np.float32)


def smallest_unsigned(greatest: int) -> Any:
    """The smallest unsigned NumPy dtype that holds ``greatest``."""
    return np.uint8 if greatest < 1 << 8 else np.uint16 if greatest < 1 << 16 else np.uint32


def log_codes(probs: NDArray[Any]) -> NDArray[np.uint16]:
    """Probabilities in ``[0, MOST]`` as 16 bits of their logarithm: a relative error of at most 3.1e-4, below 1.3e-14 as 1.3e-14."""
    some = probs > 0
    logs = np.log(np.where(some, probs, 1.0).astype(np.float64)).clip(_LOW, _HIGH)
    return np.where(some, 1 + np.rint((logs - _LOW) / _STEP), 0).astype(np.uint16)


def decoded_logs(codes: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The probabilities of :func:`log_codes`."""
    return _DECODED[codes]


def entropy_codes(entropy: Tensor | None, rows: int, classes: int) -> NDArray[np.uint16]:
    """Entropies ``[rows]`` in nats as 65,535 equal steps from 0 to ln C: at C = 49,152 an error of at most 8.3e-5."""
    if entropy is None:
        return np.full(rows, _UNKNOWN, np.uint16)
    share = entropy.detach().to("cpu", torch.float64).numpy() / math.log(max(classes, 2))
    return np.rint(share.clip(0.0, 1.0) * (_UNKNOWN - 1)).astype(np.uint16)


def decoded_entropy(codes: NDArray[np.uint16], classes: int) -> NDArray[np.float32] | None:
    """The entropies of :func:`entropy_codes`; None where one of them is not known."""
    if bool((codes == _UNKNOWN).any()):
        return None
    return (codes.astype(np.float64) * (math.log(max(classes, 2)) / (_UNKNOWN - 1))).astype(np.float32)


def raw(values: Tensor | NDArray[Any]) -> NDArray[np.uint8]:
    """The bytes of an array, uint8 ``[elements, bytes of one]``."""
    if isinstance(values, Tensor):
        flat = values.detach().cpu().contiguous().reshape(-1)
        return flat.view(torch.uint8).numpy().reshape(len(flat), values.element_size())
    flat = np.ascontiguousarray(values).reshape(-1)
    return flat.view(np.uint8).reshape(len(flat), values.itemsize)


def of_raw(contents: NDArray[np.uint8], dtype: torch.dtype) -> Tensor:
    """The flat tensor that :func:`raw` took apart."""
    return torch.from_numpy(contents.reshape(-1)).view(dtype)
