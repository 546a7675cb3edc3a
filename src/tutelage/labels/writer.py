"""Writing a store: finished shards stay, whatever happens to the process."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage.errors import TeacherError
from tutelage.labels.encoding import encode, encode_features
from tutelage.labels.form import Form
from tutelage.labels.index import Index
from tutelage.labels.manifest import MANIFEST, Manifest, read_manifest, refuse_differences
from tutelage.labels.place import Place
from tutelage.labels.positions import UNTOLD, position_digests
from tutelage.labels.sampling import NO_VIEW
from tutelage.labels.shards import (
    FOLDER,
    SHARD_NAME,
    Damage,
    ShardReader,
    Table,
    UnsoundShard,
    check_whole,
    keys_of,
    shard_of,
    table_of,
)
from tutelage.labels.store import LabelStore
from tutelage.signals import AnyScores

#: Bytes of a shard before compression.
SHARD_BYTES = 32 * 1024**2

#: Seconds after which a shard is finished, however small: what a killed process loses.
SHARD_SECONDS = 300.0

#: Bytes of a row group before compression: what is read for one example.
GROUP_BYTES = 128 * 1024


class LabelWriter:
    """Writes a teacher's answers to a store, or goes on with one that was begun; a context manager.

    One writer at a time: a local store is locked until the process ends, however it ends, and a second writer is refused at
    once. At a remote URL nothing can be locked: a second writer is noticed, and the first stopped, when it next finishes a shard.
    Begun again after a crash, it goes on after the last finished shard; shards that are damaged are dropped, and
    :meth:`missing` lists their examples again.

    Args:
        path: local path or fsspec URL of the folder.
        form: what is kept of each row.
        binds: what the answers depend on, as JSON values; a store that was begun with others is refused.
        shard_examples: examples of a shard, at most; None for no such limit.
        shard_bytes: of a shard before compression, about.
        shard_seconds: after which a shard is finished, however small.
        group_bytes: of a row group before compression: what is read for one example.

    Raises:
        TeacherError: another process writes here, or the store is of another form or was made from something else.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        form: Form,
        binds: Mapping[str, Any],
        *,
        shard_examples: int | None = None,
        shard_bytes: int = SHARD_BYTES,
        shard_seconds: float = SHARD_SECONDS,
        group_bytes: int = GROUP_BYTES,
    ) -> None:
        if shard_examples is not None and shard_examples < 1:
            raise TeacherError(f"shard_examples is {shard_examples}: expected at least 1, or None")
        self.place = Place(path)
        self.shard_examples, self.shard_bytes, self.shard_seconds = shard_examples, shard_bytes, shard_seconds
        self.group_bytes = group_bytes
        #: Shards that were damaged and are labelled again.
        self.dropped: list[Damage] = []
        self._pending: list[Table] = []
        self._pending_examples = self._pending_bytes = 0
        self._waiting: set[tuple[int, int]] = set()
        self._written: str | None = None
        self._failed = False
        self._since = time.monotonic()
        self.place.lock()
        try:
            self._manifest = self._begun(form, json.loads(json.dumps(dict(binds))))
        except BaseException:
            self.place.unlock()
            raise

    def _begun(self, form: Form, binds: Mapping[str, Any]) -> Manifest:
        """The manifest to go on from, with what is damaged or was cut short cleared away."""
        found = read_manifest(self.place)
        manifest = Manifest(form, binds)
        if found is None:
            self._refuse_orphans()
        else:
            self._written = found.to_text()
            refuse_differences(found.form.to_json(), form.to_json(), self.place)
            refuse_differences(found.binds, binds, self.place)
            damage = {shard: check_whole(self.place, shard) for shard in found.shards}
            self.dropped = [what for what in damage.values() if what is not None]
            manifest = replace(found, shards=tuple(shard for shard, what in damage.items() if what is None))
        try:
            self._keys = [ShardReader(self.place, shard).keys() for shard in manifest.shards]
        except UnsoundShard as error:  # it was whole a moment ago
            raise error.told() from error
        self._finished = Index(self._keys)
        gone = {*manifest.unlisted, *(what.shard for what in self.dropped)} - {shard.name for shard in manifest.shards}
        if found is None or self.dropped:
            self._write(replace(manifest, views=self._finished.views, complete=False, unlisted=tuple(sorted(gone))))
            manifest = self._manifest
        for name in gone:
            if _is_shard(name):
                self.place.remove(name)
        return manifest

    def _refuse_orphans(self) -> None:
        """Refuse a folder whose shards nothing lists: whose answers they are is not known, nor that nobody wants them."""
        orphans = [name for name in self.place.names(FOLDER) if _is_shard(f"{FOLDER}/{name}")]
        if orphans:
            raise TeacherError(
                f"{self.place} has {len(orphans):,} shard{'s' if len(orphans) > 1 else ''} of labels in {FOLDER}/ and no {MANIFEST}: which "
                f"teacher's they are is not known, and nothing was written or removed. Restore {MANIFEST}, or remove {FOLDER}/ if "
                "those labels may be lost, or label in another folder"
            )

    @property
    def manifest(self) -> Manifest:
        """What is finished so far."""
        return self._manifest

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish the shard that was begun, and let others write."""
        try:
            if error is None:
                self.flush()
            elif not self._failed:
                with suppress(OSError, TeacherError):  # what went wrong first is what the user must hear of
                    self.flush()
        finally:
            self.place.unlock()

    def missing(self, ids: Tensor, views: Sequence[int] | None = None) -> dict[int | None, Tensor]:
        """What is still to be labelled.

        Args:
            ids: int64 ``[B]`` content ids; an id that is there several times is one entry, at its first place.
            views: the views of each; None where examples have one view only.

        Returns:
            For each view (None for the only one) the places in ``ids`` that are missing, int64, ascending.
        """
        _, first = np.unique(ids.detach().cpu().numpy(), return_index=True)
        places = torch.from_numpy(np.sort(first))
        found: dict[int | None, Tensor] = {}
        for view in [None] if views is None else views:
            held = self._has(ids[places], torch.full((len(places),), NO_VIEW if view is None else view))
            found[view] = places[~held]
        return found

    def _has(self, ids: Tensor, views: Tensor) -> Tensor:
        finished = self._finished.find(ids.cpu().numpy(), views.numpy()) >= 0
        pairs = zip(ids.tolist(), views.tolist(), strict=True)
        return torch.from_numpy(finished) | torch.tensor([pair in self._waiting for pair in pairs], dtype=torch.bool)

    def _new(self, ids: Tensor, views: Tensor) -> Tensor:
        """Which of these are not here yet, bool ``[B]``; of equal ones the first."""
        new = ~self._has(ids, views)
        seen: set[tuple[int, int]] = set()
        for place, pair in enumerate(zip(ids.tolist(), views.tolist(), strict=True)):
            new[place] &= pair not in seen
            seen.add(pair)
        return new

    def add(
        self,
        ids: Tensor,
        view: int | Tensor | None,
        rows: Tensor,
        scores: AnyScores,
        features: Mapping[str, Tensor] | None = None,
    ) -> int:
        """Keep a batch's answers; what is there already is left as it is.

        Args:
            ids: int64 ``[B]`` content ids.
            view: their view, ``[B]`` or one for all; None where examples have one view only.
            rows: int64 ``[B]`` how many rows each example has, or bool ``[B, T]`` which positions of each are its rows: told that,
                the store gives them to these positions and no others.
            scores: of ``rows.sum()`` rows, an example's together.
            features: what layers gave, ``[N, ...]`` by name, as many rows as the scores, where the form keeps some.

        Returns:
            Number of examples that are new.

        Raises:
            TeacherError: the answer is of another form than the store, or cannot be kept as it is; there is no room on the disk.
        """
        ids = ids.detach().cpu()
        rows, positions = _counted(rows.detach().cpu())
        views = torch.as_tensor(NO_VIEW if view is None else view, dtype=torch.int64).cpu().expand(len(ids))
        if rows.shape != ids.shape or bool((rows < 0).any()):
            raise TeacherError(
                f"rows is {tuple(rows.shape)} for {len(ids)} examples: expected how many rows each has, ≥ 0, or which positions they are"
            )
        form = self._manifest.form
        row_ids = ids.repeat_interleave(rows)
        block, members = encode(form, scores, row_ids)
        kept = encode_features(form, features, row_ids, self._manifest.feature_shapes)
        self._settle(members, {layer: tuple(values.shape[1:]) for layer, values in kept.items()})
        new = self._new(ids, views)
        if not bool(new.all()):
            chosen = new.repeat_interleave(rows)
            block = block.take(np.flatnonzero(chosen.numpy()))
            kept = {layer: values[chosen] for layer, values in kept.items()}
            ids, views, rows, positions = ids[new], views[new], rows[new], positions[new.numpy()]
        if len(ids):
            self._queue(table_of(ids.numpy(), views.numpy(), rows.numpy(), positions, block, kept))
            self._waiting.update(zip(ids.tolist(), views.tolist(), strict=True))
        if self._pending and time.monotonic() - self._since >= self.shard_seconds:
            self.flush()
        return len(ids)

    def _settle(self, members: tuple[float, ...] | None, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """What the first answer says of all."""
        manifest = self._manifest
        if not manifest.shards and not self._pending:
            self._manifest = replace(manifest, members=members, feature_shapes=dict(shapes))
        elif members != manifest.members:
            raise TeacherError(
                f"the teacher's answer is of members with weights {members}, the label store of {manifest.members}: it would be mixed with "
                "the wrong weights; write it to a store of its own"
            )

    def _queue(self, table: Table) -> None:
        """Add examples to the shard that is being made, and finish it when it is full."""
        start, limit = 0, self.shard_examples or len(table) + self._pending_examples
        while start < len(table):
            if not self._pending:
                self._since = time.monotonic()
            part = table.slice(start, limit - self._pending_examples)
            start += len(part)
            self._pending.append(part)
            self._pending_examples += len(part)
            self._pending_bytes += part.nbytes
            if self._pending_bytes >= self.shard_bytes or self._pending_examples == self.shard_examples:
                self.flush()

    def flush(self) -> None:
        """Finish the shard that is being made, however small.

        Raises:
            TeacherError: there is no room for it; what was finished before stays.
        """
        if not self._pending:
            return
        self._failed = True
        table = pa.concat_tables(self._pending)
        shards = self._manifest.shards
        number = 1 + max((int(shard.name.removeprefix(f"{FOLDER}/")[:5]) for shard in shards), default=-1)
        shard, contents = shard_of(table, number, self.group_bytes)
        # told before it is there, so that what is left of it by a death is known to be this store's
        self._write(replace(self._manifest, unlisted=(shard.name,)))
        self.place.write(shard.name, contents)
        keys = [*self._keys, keys_of(table, np.zeros(len(table), np.int64))]
        finished = Index(keys)
        self._write(replace(self._manifest, shards=(*shards, shard), views=finished.views, complete=False, unlisted=()))
        self._keys, self._finished = keys, finished
        self._pending, self._pending_examples, self._pending_bytes = [], 0, 0
        self._waiting.clear()
        self._failed = False

    def finish(self, certificate: Mapping[str, Any] | None = None) -> LabelStore:
        """Finish the last shard and say that nothing is missing.

        Args:
            certificate: what the compression costs, as JSON values; None leaves the one that is there.

        Returns:
            The store, to be read.
        """
        self.flush()
        given = self._manifest.certificate if certificate is None else dict(certificate)
        self._write(replace(self._manifest, complete=True, certificate=given, unlisted=()))
        return LabelStore(self.place, self._manifest)

    def _write(self, manifest: Manifest) -> None:
        """Replace the manifest, and be sure that it is still this writer's."""
        if not self.place.local:
            found = read_manifest(self.place)
            if (None if found is None else found.to_text()) != self._written:
                raise TeacherError(
                    f"another process has written to the label store {self.place} since this one began: both would list their own shards "
                    "alone; run one of them again when the other has ended"
                )
        text = manifest.to_text()
        self.place.write(MANIFEST, text.encode())
        self._written, self._manifest = text, manifest


def _counted(rows: Tensor) -> tuple[Tensor, NDArray[np.int64]]:
    """How many rows each example has ``[B]``, and the digest of their positions ``[B]`` where they were told."""
    if rows.ndim == 2 and rows.dtype == torch.bool:
        return rows.sum(dim=1), position_digests(rows)
    return rows, np.full(len(rows), UNTOLD, np.int64)


def _is_shard(name: str) -> bool:
    folder, _, file = name.rpartition("/")
    return folder == FOLDER and SHARD_NAME.fullmatch(file) is not None
