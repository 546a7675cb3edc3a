"""Content ids: what an example *is*, whatever its position, so that a stored label can never meet the wrong row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from tutelage.data.completions import Completions

#: The raw inputs of a set, before any view: a tensor ``[B, ...]``, named tensors ``[B, ...]``, B texts, or B prompts and completions.
RawInputs = Tensor | Mapping[str, Tensor] | Sequence[str] | Completions


def content_ids(inputs: RawInputs) -> Tensor:
    """A 64-bit id for each example, from its content alone (labels and positions do not enter).

    Equal examples have equal ids. The id depends on dtype and shape as well as on the bytes.

    Args:
        inputs: a tensor ``[B, ...]``, a mapping of tensors ``[B, ...]``, B strings, or B prompts and completions.

    Returns:
        int64 ``[B]``.
    """
    if isinstance(inputs, Tensor):
        return _digest_rows([("", inputs)])
    if isinstance(inputs, Mapping):
        return _digest_rows(sorted(inputs.items()))
    if isinstance(inputs, Completions):
        return inputs.ids()
    return torch.tensor(
        [_as_int64(blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()) for text in inputs],
        dtype=torch.int64,
    )


def hex_id(content_id: int) -> str:
    """A content id as people read it: 16 hexadecimal digits."""
    return f"{content_id & 0xFFFF_FFFF_FFFF_FFFF:016x}"


def _digest_rows(columns: list[tuple[str, Tensor]]) -> Tensor:
    count = len(columns[0][1])
    header = "|".join(f"{name}:{values.dtype}:{tuple(values.shape[1:])}" for name, values in columns).encode()
    rows_by_column = [
        values.detach().cpu().contiguous().reshape(count, -1).view(torch.uint8).numpy() for _, values in columns
    ]
    base = blake2b(header, digest_size=8)
    digests = np.empty(count, dtype=np.int64)
    for index in range(count):
        row = base.copy()
        for rows in rows_by_column:
            row.update(rows[index])
        digests[index] = _as_int64(row.digest())
    return torch.from_numpy(digests)


def _as_int64(digest: bytes) -> int:
    return int.from_bytes(digest, "little", signed=True)
