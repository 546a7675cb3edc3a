"""Token sequences of different lengths, held end to end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.errors import DataError


@dataclass(frozen=True, eq=False)
class Ragged:
    """B sequences of whole numbers, each of a length of its own.

    Args:
        values: int64, all sequences end to end.
        offsets: int64 ``[B + 1]``, where each begins; the last is where the last one ends.

    Raises:
        DataError: offsets that do not cut the values into sequences.
    """

    values: Tensor
    offsets: Tensor

    def __post_init__(self) -> None:
        rising = bool((self.offsets.diff() >= 0).all()) if self.offsets.ndim == 1 and len(self.offsets) else False
        if not rising or int(self.offsets[0]) != 0 or int(self.offsets[-1]) != len(self.values):
            raise DataError(
                f"offsets {tuple(self.offsets.shape)} do not cut {len(self.values):,} values into sequences: expected [B + 1] rising "
                "from 0 to the number of values; use Ragged.of"
            )

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int] | Tensor]) -> Ragged:
        """Of lists, or 1-D tensors, of whole numbers."""
        parts = [torch.as_tensor(sequence, dtype=torch.int64).reshape(-1) for sequence in sequences]
        lengths = torch.tensor([0, *(len(part) for part in parts)], dtype=torch.int64)
        return cls(torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64), lengths.cumsum(0))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> Tensor:
        """Sequence ``row``, int64."""
        if not 0 <= row < len(self):  # also what ends an iteration
            raise IndexError(row)
        return self.values[int(self.offsets[row]) : int(self.offsets[row + 1])]

    def __iter__(self) -> Iterator[Tensor]:
        return (self[row] for row in range(len(self)))

    @property
    def lengths(self) -> Tensor:
        """int64 ``[B]``."""
        return self.offsets.diff()

    def take(self, rows: Tensor) -> Ragged:
        """Those sequences, rows int64 ``[B']``, in that order."""
        lengths = self.lengths[rows]
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        within = torch.arange(int(offsets[-1]), device=rows.device) - offsets[:-1].repeat_interleave(lengths)
        return Ragged(self.values[self.offsets[:-1][rows].repeat_interleave(lengths) + within], offsets)

    def to(self, device: torch.device | str) -> Ragged:
        """The same on a device."""
        return Ragged(self.values.to(device), self.offsets.to(device))

    def lists(self) -> list[list[int]]:
        """As plain lists."""
        return [sequence.tolist() for sequence in self]

    def padded(self, fill: int, *, left: bool = False, at_least: int = 0) -> tuple[Tensor, Tensor]:
        """``[B, T]`` with ``fill`` behind each sequence, or before it, and a mask ``[B, T]`` of what is no padding.

        Args:
            fill: the number in the gaps.
            left: padding in front, as generation wants it.
            at_least: the least T.
        """
        lengths = self.lengths
        longest = max(int(lengths.max()) if len(self) else 0, at_least)
        place = torch.arange(longest, device=self.values.device)
        mask = place >= longest - lengths[:, None] if left else place < lengths[:, None]
        values = torch.full(mask.shape, fill, dtype=torch.int64, device=self.values.device)
        return values.masked_scatter_(mask, self.values), mask
