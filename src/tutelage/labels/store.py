"""A store of a teacher's answers, read by content id."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage.errors import TeacherError
from tutelage.labels.blocks import Block, join, spread
from tutelage.labels.form import DTYPES
from tutelage.labels.index import Index
from tutelage.labels.manifest import MANIFEST, Manifest, read_manifest, refuse_differences
from tutelage.labels.place import Place
from tutelage.labels.positions import UNTOLD, position_digests
from tutelage.labels.sampling import NO_VIEW
from tutelage.labels.shards import Damage, Keys, ShardReader, UnsoundShard, check_whole
from tutelage.signals import AnyScores

Whole = NDArray[np.int64]

#: Bytes of row groups that a store keeps once they were read.
MEMORY = 64 * 1024**2


class LabelStore:
    """A teacher's answers on disk: written once by :class:`tutelage.labels.LabelWriter`, read by content id and view.

    Open it with :meth:`open`. Only its index is loaded then; rows are read a row group at a time as they are asked for, and the
    last ones are kept.
    A damaged shard does not keep the store from opening: ``damage`` lists what was seen (:meth:`verify` looks at every byte), and
    its examples are as if they were not there.

    Attributes:
        manifest: what it holds and was made from.
        damage: shards that are missing, of another size or another file, as far as opening shows.
    """

    def __init__(self, place: Place, manifest: Manifest, memory_bytes: int = MEMORY) -> None:
        self.place, self.manifest = place, manifest
        self.damage: list[Damage] = []
        self._readers: list[ShardReader] = []
        keys: list[Keys] = []
        for shard in manifest.shards:
            try:
                reader = ShardReader(place, shard)
                keys.append(reader.keys())
                self._readers.append(reader)
            except UnsoundShard as error:
                self.damage.append(error.damage)
        self._index = Index(keys)
        self._groups = [(reader, group) for reader in self._readers for group in range(reader.groups)]
        self._remember(memory_bytes)

    @classmethod
    def open(cls, path: str | os.PathLike[str], memory_bytes: int = MEMORY) -> LabelStore:
        """The store in a folder.

        Args:
            path: local path or fsspec URL.
            memory_bytes: what it may keep in memory of what was read; with room for everything, everything is read at the
                first look-up (taking twice its size while it is joined) and kept.

        Raises:
            TeacherError: there is no store, or its manifest is not what was written.
        """
        place = Place(path)
        manifest = read_manifest(place)
        if manifest is None:
            raise TeacherError(
                f"{place} has no {MANIFEST}: there is no label store, or nothing was labelled yet; write one with `tutelage label CONFIG`"
            )
        return cls(place, manifest, memory_bytes)

    def within(self, memory_bytes: int) -> LabelStore:
        """The same store with another budget of memory."""
        other = copy(self)
        other._remember(memory_bytes)
        return other

    def _remember(self, memory_bytes: int) -> None:
        rows = self.manifest.memory
        self.memory_bytes = memory_bytes
        self._in_memory = rows <= memory_bytes
        self._whole: tuple[Block, Whole] | None = None
        # what rows leave is the features'; where rows do not fit as a whole, each has half
        of_rows = min(rows, memory_bytes) if self._in_memory or not self.manifest.form.features else memory_bytes // 2
        self._blocks, self._features = _Recent[Block](of_rows), _Recent[Tensor](memory_bytes - of_rows)

    def __len__(self) -> int:
        """Examples that can be read, each as often as it has views."""
        return len(self._index)

    @property
    def complete(self) -> bool:
        """Whether its writer finished and every shard is there; otherwise some examples may be missing."""
        return self.manifest.complete and not self.damage

    @property
    def views(self) -> tuple[int, ...]:
        """Views that can be read, sorted; −1 where examples have one view only."""
        return self._index.views

    @property
    def bytes(self) -> int:
        """Bytes of all its files."""
        return self.manifest.bytes + (self.place.size(MANIFEST) or 0)

    def has(self, ids: Tensor, view: int | Tensor | None = None) -> Tensor:
        """Of which examples ``[B]`` there are rows, bool ``[B]``."""
        return torch.from_numpy(self._index.find(*_keys(ids, view)) >= 0)

    def rows(self, ids: Tensor, view: int | Tensor | None = None) -> Tensor:
        """The number of rows of each example, int64 ``[B]``.

        Raises:
            TeacherError: an example is not there.
        """
        return torch.from_numpy(self._index.rows[self._entries(ids, view)])

    @property
    def positions_told(self) -> bool:
        """Whether it is known of every example at which positions its rows are."""
        return bool((self._index.positions != UNTOLD).all())

    def elsewhere(self, ids: Tensor, supervised: Tensor, view: int | Tensor | None = None) -> Tensor:
        """Of which examples the rows are known to be at other positions, bool ``[B]``; none where nobody told which they are.

        Args:
            ids: int64 ``[B]`` content ids.
            supervised: bool ``[B, T]``, which positions are rows now.
            view: as for :meth:`lookup`.

        Raises:
            TeacherError: an example is not there.
        """
        kept = self._index.positions[self._entries(ids, view)]
        return torch.from_numpy((kept != UNTOLD) & (kept != position_digests(supervised)))

    def __getitem__(self, ids: Tensor | Sequence[int] | int) -> AnyScores:
        """The rows of examples that have one view only; as :meth:`lookup`."""
        return self.lookup(torch.as_tensor(ids, dtype=torch.int64).reshape(-1))

    def lookup(self, ids: Tensor, view: int | Tensor | None = None) -> AnyScores:
        """The rows of examples, all rows of an example together, examples in the order asked.

        Args:
            ids: int64 ``[B]`` content ids.
            view: which view of them, ``[B]`` or one for all; None where examples have one view only.

        Returns:
            ``Logits`` or ``MixtureLogits`` in the dtype they are kept in, or ``SparseTargets``, on the CPU.

        Raises:
            TeacherError: an example is not there, or its shard is damaged; the message names it.
        """
        groups, rows = self._places(ids, view)
        if self._in_memory and self._whole is None:
            self._whole = self._everything()
        if self._whole is not None:
            block, before = self._whole
            taken = block.take(rows + before[groups])
        else:
            taken = self._gathered(groups, rows)
        return taken.scores(self.manifest.members)

    def _places(self, ids: Tensor, view: int | Tensor | None) -> tuple[Whole, Whole]:
        """The row group of each row of some examples, and its place in there, ``[N]`` each."""
        entries = self._entries(ids, view)
        counts = self._index.rows[entries]
        return np.repeat(self._index.groups[entries], counts), spread(self._index.starts[entries], counts)

    def _everything(self) -> tuple[Block, Whole] | None:
        """All rows, and how many come before those of each row group; None where a shard turns out to be damaged."""
        counts = self._index.group_rows
        try:
            blocks = [self._block(group) for group in range(len(counts))]
        except TeacherError:
            self._in_memory = False  # whoever asks for that shard's examples hears of it
            return None
        return (join(blocks), np.cumsum(counts) - counts) if blocks else None

    def _gathered(self, groups: Whole, rows: Whole) -> Block:
        """Rows of several row groups: each group's together, and then in the order asked."""
        order = np.argsort(groups, kind="stable")
        present, first = np.unique(groups[order], return_index=True)
        if not len(present):
            present, first = np.zeros(1, np.int64), np.zeros(1, np.int64)
        parts = np.split(rows[order], first[1:])
        blocks = [
            self._blocks.get((group, ""), partial(self._block, group)).take(part)
            for group, part in zip(present.tolist(), parts, strict=True)
        ]
        taken = join(blocks)
        return taken if np.array_equal(order, np.arange(len(order))) else taken.take(np.argsort(order))

    def _block(self, group: int) -> Block:
        reader, local = self._groups[group]
        members = None if self.manifest.members is None else len(self.manifest.members)
        try:
            return reader.block(local, self.manifest.form, members)
        except UnsoundShard as error:
            raise error.told() from error

    def features(self, ids: Tensor, layer: str, view: int | Tensor | None = None) -> Tensor:
        """What a layer gave for the rows of examples, ``[N, ...]`` in the dtype it is kept in, on the CPU.

        Args:
            ids: int64 ``[B]`` content ids.
            layer: its name.
            view: as for :meth:`lookup`.

        Raises:
            TeacherError: the layer was not kept, an example is not there, or its shard is damaged.
        """
        kept = self.manifest.form.features
        if layer not in kept:
            raise TeacherError(
                f"the label store {self.place} does not keep the features of {layer!r} (it keeps: {', '.join(map(repr, kept)) or 'none'}): "
                f"label again with features: [{layer}], or ask the teacher itself"
            )
        groups, rows = self._places(ids, view)
        found = torch.empty(
            len(rows), *self.manifest.feature_shapes[layer], dtype=DTYPES[self.manifest.form.feature_dtype]
        )
        for group in np.unique(groups).tolist():
            held = self._features.get((group, layer), partial(self._read_features, group, layer))
            here = groups == group
            found[torch.from_numpy(here)] = held[torch.from_numpy(rows[here])]
        return found

    def _read_features(self, group: int, layer: str) -> Tensor:
        reader, local = self._groups[group]
        try:
            return reader.features(local, layer, self.manifest.form, self.manifest.feature_shapes[layer])
        except UnsoundShard as error:
            raise error.told() from error

    def verify(self) -> list[Damage]:
        """Read every byte of every shard, and list what is not as it was written."""
        found = (check_whole(self.place, shard) for shard in self.manifest.shards)
        return [damage for damage in found if damage is not None]

    def check(self, binds: Mapping[str, Any]) -> None:
        """Refuse a store that was made from something else than ``binds`` says.

        Raises:
            TeacherError: each difference, as the store says and as it is now.
        """
        refuse_differences(self.manifest.binds, binds, self.place)

    def _entries(self, ids: Tensor, view: int | Tensor | None) -> Whole:
        try:
            return self._index.entries(*_keys(ids, view), self.place)
        except TeacherError as error:
            if not self.damage:
                raise
            lost = "; ".join(str(damage) for damage in self.damage)
            raise TeacherError(
                f"{error}. The store is damaged: {lost}. They may have been there: run `tutelage label` again, which labels those and no "
                "others anew"
            ) from error


def _keys(ids: Tensor, view: int | Tensor | None) -> tuple[Whole, Whole]:
    if ids.ndim != 1 or ids.is_floating_point():
        raise TeacherError(f"ids are {ids.dtype} of shape {tuple(ids.shape)}: expected int64 content ids [B]")
    asked = ids.detach().to("cpu", torch.int64).numpy()
    if isinstance(view, Tensor):
        views = view.detach().to("cpu", torch.int64).expand(len(asked)).numpy()
    else:
        views = np.full(len(asked), NO_VIEW if view is None else view, np.int64)
    return asked, views


class _Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


_Kept = TypeVar("_Kept", bound=_Sized)


class _Recent(Generic[_Kept]):
    """What was read last, within a budget of bytes; what alone is greater is not kept."""

    def __init__(self, budget: int) -> None:
        self._budget, self._held = budget, 0
        self._kept: OrderedDict[tuple[int, str], tuple[_Kept, int]] = OrderedDict()

    def get(self, key: tuple[int, str], read: Callable[[], _Kept]) -> _Kept:
        """What is kept under a key, or what ``read`` gives."""
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key][0]
        value = read()
        size = value.nbytes
        if size <= self._budget:
            self._kept[key] = value, size
            self._held += size
            while self._held > self._budget:
                self._held -= self._kept.popitem(last=False)[1][1]
        return value
