"""Rows of answers as they are kept: dense ones as they are, sparse ones without the places that nothing is kept in.

A block is what a store has in memory and, column by column, what is in its files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage.labels.codes import decoded_entropy, decoded_logs, of_raw, raw, smallest_unsigned
from tutelage.labels.form import DTYPES, Form
from tutelage.signals import AnyScores, Logits, MixtureLogits, SparseTargets

Whole = NDArray[np.int64]

#: Raw columns by name, uint8 ``[elements, bytes of one]``, and how many elements of each belong to each row.
Columns = dict[str, tuple[NDArray[np.uint8], Whole]]


@dataclass(frozen=True)
class DenseBlock:
    """Logits ``[R, C]``, or ``[R, M, C]`` of an ensemble's members, in the dtype they are kept in."""

    values: Tensor

    def __len__(self) -> int:
        return len(self.values)

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.values.nbytes

    def columns(self) -> Columns:
        """What is written."""
        return {"values": (raw(self.values), np.full(len(self), math.prod(self.values.shape[1:])))}

    def take(self, rows: Whole) -> DenseBlock:
        """The block of these rows."""
        return DenseBlock(self.values.index_select(0, torch.from_numpy(rows)))

    def scores(self, members: Sequence[float] | None) -> AnyScores:
        """The rows as signals; ``members`` are an ensemble's weights."""
        if members is None:
            return Logits(self.values)
        return MixtureLogits(self.values.transpose(0, 1).contiguous(), torch.tensor(members, dtype=torch.float64))


@dataclass(frozen=True)
class SparseBlock:
    """Kept classes of R rows, one row's after the other's.

    Args:
        form: of the store.
        kept: ``[R]`` how many each row keeps.
        ids: ``[Σ kept]`` classes.
        values: ``[Σ kept]`` counts of draws, codes of logarithms, or float32 probabilities, as the form says.
        entropy: ``[R]`` codes.
        rest: ``[R]`` codes of the mass that is not kept, where the form has them.
    """

    form: Form
    kept: NDArray[Any]
    ids: NDArray[Any]
    values: NDArray[Any]
    entropy: NDArray[Any]
    rest: NDArray[Any] | None

    def __len__(self) -> int:
        return len(self.kept)

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return sum(getattr(self, name).nbytes for name in sparse_columns(self.form)) + 8 * len(self)

    @cached_property
    def starts(self) -> Whole:
        """Where each row's kept classes begin, ``[R]``."""
        ends = np.cumsum(self.kept, dtype=np.int64)
        return ends - self.kept

    def columns(self) -> Columns:
        """What is written."""
        kept, one = self.kept.astype(np.int64), np.ones(len(self), np.int64)
        counts = {"kept": one, "ids": kept, "values": kept, "entropy": one, "rest": one}
        return {name: (raw(getattr(self, name)), counts[name]) for name in sparse_columns(self.form)}

    def take(self, rows: Whole) -> SparseBlock:
        """The block of these rows."""
        kept = self.kept[rows]
        flat = spread(self.starts[rows], kept)
        rest = None if self.rest is None else self.rest[rows]
        return SparseBlock(self.form, kept, self.ids[flat], self.values[flat], self.entropy[rows], rest)

    def scores(self, members: Sequence[float] | None) -> AnyScores:  # noqa: ARG002 - one signature for all blocks
        """The rows as signals; a sparse form has no members."""
        used = np.arange(max(int(self.kept.max(initial=0)), 1)) < self.kept[:, None]
        ids = np.full(used.shape, -1, np.int64)
        ids[used] = self.ids
        probs = np.zeros(used.shape, np.float32)
        probs[used] = self._probs()
        if self.rest is not None:
            # the mass of all other classes is what 1 − Σ probs says it is: the kept ones' rounding must not become theirs
            total = probs.sum(axis=1, dtype=np.float64)
            factor = (1.0 - decoded_logs(self.rest).astype(np.float64)) / np.where(total > 0, total, 1.0)
            probs = (probs * factor[:, None]).astype(np.float32)
        assert self.form.kind != "dense"
        assert self.form.temperature is not None
        entropy = decoded_entropy(self.entropy, self.form.classes)
        return SparseTargets(
            torch.from_numpy(ids),
            torch.from_numpy(probs),
            self.form.classes,
            self.form.temperature,
            self.form.kind,
            None if entropy is None else torch.from_numpy(entropy),
        )

    def _probs(self) -> NDArray[np.float32]:
        if not self.form.weighted:
            assert self.form.draws is not None
            return self.values.astype(np.float32) / np.float32(self.form.draws)
        return self.values if self.form.dtype == "float32" else decoded_logs(self.values)


Block = DenseBlock | SparseBlock


def sparse_columns(form: Form) -> dict[str, Any]:
    """The NumPy dtype of each column of a sparse form."""
    found: dict[str, Any] = {
        "kept": smallest_unsigned(form.most_kept),
        "ids": smallest_unsigned(form.classes - 1),
        "values": smallest_unsigned(form.draws or 0),
        "entropy": np.uint16,
    }
    if form.weighted:
        found["values"] = np.float32 if form.dtype == "float32" else np.uint16
        if form.kind == "top_k" and form.dtype != "float32":
            found["rest"] = np.uint16
    return found


def block_of(columns: Mapping[str, NDArray[np.uint8]], form: Form, members: int | None) -> Block:
    """The block that gave these raw columns."""
    if not form.sparse:
        shape = (-1, form.classes) if members is None else (-1, members, form.classes)
        return DenseBlock(of_raw(columns["values"], DTYPES[form.dtype]).reshape(shape))
    arrays = {name: columns[name].reshape(-1).view(dtype) for name, dtype in sparse_columns(form).items()}
    return SparseBlock(form, arrays["kept"], arrays["ids"], arrays["values"], arrays["entropy"], arrays.get("rest"))


def join(blocks: Sequence[Block]) -> Block:
    """All rows of blocks of one form, one block after the other."""
    first = blocks[0]
    if len(blocks) == 1:
        return first
    if isinstance(first, DenseBlock):
        return DenseBlock(torch.cat([block.values for block in blocks if isinstance(block, DenseBlock)]))
    sparse = [block for block in blocks if isinstance(block, SparseBlock)]

    def all_of(name: str) -> NDArray[Any]:
        return np.concatenate([getattr(block, name) for block in sparse])

    return SparseBlock(
        first.form,
        all_of("kept"),
        all_of("ids"),
        all_of("values"),
        all_of("entropy"),
        None if first.rest is None else all_of("rest"),
    )


def spread(starts: NDArray[Any], counts: NDArray[Any]) -> Whole:
    """The places ``starts[i], starts[i] + 1, …`` of each i, ``counts[i]`` of them, one after the other."""
    counts = counts.astype(np.int64)
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(starts.astype(np.int64) - (ends - counts), counts) + np.arange(total)
