"""Parquet shards: one line an example, its rows as byte planes.

Each column of a block is written as one binary column a byte of its elements (``ids/0`` the low bytes, ``ids/1`` the high ones):
high bytes are alike and compress to little, and an example's bytes lie together however many rows it has. Row groups are
small, so that an example is read without its shard. Pages carry checksums, and the footer a hash of all contents, so that
the footer alone tells one shard from another.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from torch import Tensor

from tutelage.errors import TeacherError
from tutelage.labels.blocks import Block, block_of, sparse_columns
from tutelage.labels.codes import of_raw, raw
from tutelage.labels.form import DTYPES, Form
from tutelage.labels.manifest import Shard
from tutelage.labels.place import Place
from tutelage.labels.positions import UNTOLD

#: A pyarrow table; pyarrow has no types.
Table = Any

FOLDER = "shards"
_POSITIONS = "positions"
KEYS = ("id", "view", "rows", _POSITIONS)
#: What a shard is called, so that nothing else in its folder is taken for one.
SHARD_NAME = re.compile(r"\d{5,}-[0-9a-f]{12}\.parquet")
_REPEATING: Any = ["view", "rows"]
_CONTENTS = b"tutelage.contents"
_FEATURE = "feature "
_MOST_BYTES = 2**31 - 1
_TAIL = 8  # the footer's length in 4 bytes, and PAR1


def table_of(
    ids: NDArray[np.int64],
    view: NDArray[np.int64],
    rows: NDArray[np.int64],
    positions: NDArray[np.int64],
    block: Block,
    features: Mapping[str, Tensor],
) -> Table:
    """Examples as lines: their keys, their rows of the block in order, and these rows' features ``[N, ...]``."""
    columns: dict[str, Any] = {
        "id": pa.array(ids, pa.int64()),
        "view": pa.array(view, pa.int64()),
        "rows": pa.array(rows, pa.int32()),
        _POSITIONS: pa.array(positions, pa.int64()),
    }
    row_ends = np.concatenate([[0], np.cumsum(rows)])
    for name, (elements, of_row) in block.columns().items():
        ends = np.concatenate([[0], np.cumsum(of_row)])[row_ends]
        columns |= _planes(name, elements, ends)
    for layer, values in features.items():
        columns |= _planes(f"{_FEATURE}{layer}", raw(values), math.prod(values.shape[1:]) * row_ends)
    return pa.table(columns)


def _planes(name: str, elements: NDArray[np.uint8], ends: NDArray[np.int64]) -> dict[str, Any]:
    """One binary column a byte of the elements; example i has the elements from ``ends[i]`` to ``ends[i + 1]``."""
    if ends[-1] > _MOST_BYTES:
        raise TeacherError(
            f"{len(ends) - 1:,} examples at once have {ends[-1]:,} elements of {name!r}, a file's column holds {_MOST_BYTES:,}: label in "
            "smaller batches, or keep a sparse form"
        )
    offsets = pa.py_buffer(ends.astype(np.int32))
    return {
        f"{name}/{byte}": pa.Array.from_buffers(
            pa.binary(), len(ends) - 1, [None, offsets, pa.py_buffer(np.ascontiguousarray(elements[:, byte]))]
        )
        for byte in range(elements.shape[1])
    }


def shard_of(table: Table, number: int, group_bytes: int) -> tuple[Shard, bytes]:
    """A table as a file, and how the manifest lists it."""
    table = table.combine_chunks()
    contents = sha256()
    for column in table.columns:
        for chunk in column.chunks:
            for value in chunk.buffers()[-1:]:
                contents.update(str(len(chunk)).encode())
                contents.update(value)
    buffer = io.BytesIO()
    with pq.ParquetWriter(
        buffer,
        table.schema,
        compression="zstd",
        compression_level=1,
        use_dictionary=_REPEATING,
        write_statistics=False,
        write_page_checksum=True,
        store_schema=False,
    ) as writer:
        writer.write_table(table, row_group_size=max(1, group_bytes * len(table) // max(table.nbytes, 1)))
        writer.add_key_value_metadata({_CONTENTS: contents.hexdigest()})
    file = buffer.getvalue()
    digest = sha256(file).hexdigest()
    shard = Shard(
        name=f"{FOLDER}/{number:05d}-{digest[:12]}.parquet",
        sha256=digest,
        footer=sha256(_footer(file)).hexdigest(),
        bytes=len(file),
        memory=sum(
            table[name].nbytes for name in table.column_names if name not in KEYS and not name.startswith(_FEATURE)
        ),
        examples=len(table),
        rows=int(np.asarray(table["rows"]).sum()),
    )
    return shard, file


def _footer(tail: bytes) -> bytes:
    length = int.from_bytes(tail[-_TAIL:-4], "little")
    return tail[-_TAIL - length :]


@dataclass(frozen=True)
class Damage:
    """What is wrong with a shard.

    Args:
        shard: its name.
        what: ``"missing"``, ``"checksum"`` (not the bytes that were written) or ``"unreadable"``.
        detail: for people.
    """

    shard: str
    what: str
    detail: str

    def __str__(self) -> str:
        return f"{self.shard} {self.detail}"


class UnsoundShard(Exception):  # caught in this room, where it becomes a TeacherError or a line of a list
    """A shard cannot be read, or is not the one that was written."""

    def __init__(self, place: Place, damage: Damage) -> None:
        super().__init__(damage)
        self.place, self.damage = place, damage

    def told(self) -> TeacherError:
        """The error for whoever asked for its examples."""
        return TeacherError(
            f"in the label store {self.place}, {self.damage}: its examples cannot be read. Run `tutelage label` again, which labels them "
            "and no others anew"
        )


def check_whole(place: Place, shard: Shard) -> Damage | None:
    """Read a shard to its end and compare it with what was written."""
    found = _sized(place, shard)
    if found is None and place.sha256(shard.name) != shard.sha256:
        found = Damage(shard.name, "checksum", "is not what was written (its hash differs)")
    return found


def _sized(place: Place, shard: Shard) -> Damage | None:
    size = place.size(shard.name)
    if size is None:
        return Damage(shard.name, "missing", "is missing, though the manifest lists it")
    if size != shard.bytes:
        return Damage(shard.name, "checksum", f"has {size:,} bytes, {shard.bytes:,} were written")
    return None


@dataclass(frozen=True)
class Keys:
    """What is known of a shard's examples, in the order of its lines, ``[B]`` each: ids, views, rows and where these are, row groups."""

    ids: NDArray[np.int64]
    views: NDArray[np.int64]
    rows: NDArray[np.int64]
    positions: NDArray[np.int64]
    groups: NDArray[np.int64]


class ShardReader:
    """Reads parts of one shard.

    Raises:
        UnsoundShard: it is missing, of another size, or has another footer than the one that was written.
    """

    def __init__(self, place: Place, shard: Shard) -> None:
        self.place, self.shard = place, shard
        damage = _sized(place, shard)
        if damage is not None:
            raise UnsoundShard(place, damage)
        try:
            tail = place.tail(shard.name, _TAIL)
            tail = place.tail(shard.name, _TAIL + int.from_bytes(tail[:4], "little"))
            if sha256(_footer(tail)).hexdigest() != shard.footer:
                damage = Damage(shard.name, "checksum", "is not what was written (its footer differs)")
                raise UnsoundShard(place, damage)
            self._metadata = pq.read_metadata(pa.BufferReader(b"PAR1" + tail))
        except (OSError, pa.ArrowException) as error:
            raise self._unreadable(error) from error

    @property
    def groups(self) -> int:
        """Number of row groups."""
        return self._metadata.num_row_groups

    def keys(self) -> Keys:
        """The keys of all examples; nothing else is read."""
        table = self._read(list(range(self.groups)), list(KEYS))
        lengths = [self._metadata.row_group(group).num_rows for group in range(self.groups)]
        return keys_of(table, np.repeat(np.arange(self.groups), lengths))

    def block(self, group: int, form: Form, members: int | None) -> Block:
        """The rows of a row group's examples."""
        dtypes = sparse_columns(form) if form.sparse else {"values": _numpy(form.dtype)}
        names = {name: [f"{name}/{byte}" for byte in range(np.dtype(dtype).itemsize)] for name, dtype in dtypes.items()}
        table = self._read([group], [plane for planes in names.values() for plane in planes])
        return block_of({name: _elements(table, planes) for name, planes in names.items()}, form, members)

    def features(self, group: int, layer: str, form: Form, shape: Sequence[int]) -> Tensor:
        """The features ``[N, ...]`` of a row group's rows."""
        dtype = DTYPES[form.feature_dtype]
        planes = [f"{_FEATURE}{layer}/{byte}" for byte in range(dtype.itemsize)]
        return of_raw(_elements(self._read([group], planes), planes), dtype).reshape(-1, *shape)

    def _read(self, groups: list[int], columns: list[str]) -> Table:
        try:
            with (
                self.place.open(self.shard.name) as file,
                pq.ParquetFile(
                    file, metadata=self._metadata, page_checksum_verification=True, pre_buffer=not self.place.local
                ) as parquet,
            ):
                return parquet.read_row_groups(groups, columns=columns, use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> UnsoundShard:
        damage = Damage(self.shard.name, "unreadable", f"cannot be read ({type(error).__name__}: {error})")
        return UnsoundShard(self.place, damage)


def keys_of(table: Table, groups: NDArray[np.int64]) -> Keys:
    """The keys of a table's lines, in these row groups ``[B]``."""
    ids, views, rows = (np.asarray(table[name]).astype(np.int64) for name in ("id", "view", "rows"))
    # shards of the first versions have no positions
    told = _POSITIONS in table.column_names
    positions = np.asarray(table[_POSITIONS]).astype(np.int64) if told else np.full_like(ids, UNTOLD)
    return Keys(ids, views, rows, positions, groups)


def _numpy(dtype: str) -> Any:
    return {2: np.uint16, 4: np.uint32}[DTYPES[dtype].itemsize]


def _elements(table: Table, planes: list[str]) -> NDArray[np.uint8]:
    """The elements ``[n, bytes of one]`` of byte planes, of all examples together."""
    parts: list[NDArray[np.uint8]] = []
    for plane in planes:
        chunk = table[plane].combine_chunks()
        chunk = chunk.chunk(0) if isinstance(chunk, pa.ChunkedArray) else chunk
        _, offsets, values = chunk.buffers()
        ends = np.frombuffer(offsets, np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
        flat = np.frombuffer(values, np.uint8) if values is not None else np.empty(0, np.uint8)
        parts.append(flat[ends[0] : ends[-1]])
    return np.stack(parts, axis=1)
