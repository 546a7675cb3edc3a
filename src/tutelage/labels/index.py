"""Where each example's rows are, by content id and view."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import TeacherError
from tutelage.labels.encoding import named
from tutelage.labels.sampling import NO_VIEW
from tutelage.labels.shards import Keys

Whole = NDArray[np.int64]


class Index:
    """The keys of every sound shard; a few dozen bytes an example, loaded once.

    Args:
        shards: the keys of each shard, in the order of its lines. Row groups are numbered through all of them.

    Attributes:
        groups: ``[entries]`` the row group that holds an entry.
        starts: ``[entries]`` its first row in the group.
        rows: ``[entries]`` how many rows it has.
        positions: ``[entries]`` the digest of which positions they are (:mod:`tutelage.labels.positions`).
        group_rows: ``[groups]`` rows of each row group.
    """

    def __init__(self, shards: Sequence[Keys]) -> None:
        def together(name: str) -> Whole:
            return np.concatenate([np.empty(0, np.int64), *(getattr(keys, name) for keys in shards)])

        counts = [int(keys.groups[-1]) + 1 if len(keys.groups) else 0 for keys in shards]
        before = np.cumsum([0, *counts])
        self.groups = np.concatenate(
            [np.empty(0, np.int64), *(keys.groups + first for keys, first in zip(shards, before[:-1], strict=True))]
        )
        self.rows, self.positions = together("rows"), together("positions")
        total = int(before[-1])
        self.group_rows = np.bincount(self.groups, weights=self.rows, minlength=total).astype(np.int64)
        self.starts = np.cumsum(self.rows) - self.rows - (np.cumsum(self.group_rows) - self.group_rows)[self.groups]
        self._ids, self._views = np.unique(together("ids")), np.unique(together("views"))
        codes = self._codes(together("ids"), together("views"))
        self._order = np.argsort(codes, kind="stable")
        self._sorted = codes[self._order]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def views(self) -> tuple[int, ...]:
        """Views that are there, sorted."""
        return tuple(self._views.tolist())

    def _codes(self, ids: Whole, views: Whole) -> Whole:
        """One number for each pair of an id and a view; −1 where one of the two is nowhere."""
        if not len(self._ids):
            return np.full(len(ids), -1)
        of_id = np.searchsorted(self._ids, ids).clip(max=len(self._ids) - 1)
        of_view = np.searchsorted(self._views, views).clip(max=len(self._views) - 1)
        known = (self._ids[of_id] == ids) & (self._views[of_view] == views)
        return np.where(known, of_id * len(self._views) + of_view, -1)

    def find(self, ids: Whole, views: Whole) -> Whole:
        """The entry of each example ``[B]``; −1 where it is not there."""
        codes = self._codes(ids, views)
        if not len(self._sorted):
            return codes
        places = np.searchsorted(self._sorted, codes).clip(max=len(self._sorted) - 1)
        return np.where((codes >= 0) & (self._sorted[places] == codes), self._order[places], -1)

    def entries(self, ids: Whole, views: Whole, where: object) -> Whole:
        """The entry of each example ``[B]``.

        Raises:
            TeacherError: one is not there; the message names the first.
        """
        found = self.find(ids, views)
        unknown = np.flatnonzero(found < 0)
        if not len(unknown):
            return found
        first = int(unknown[0])
        known = (
            bool(len(self._ids))
            and self._ids[np.searchsorted(self._ids, ids[first]).clip(max=len(self._ids) - 1)] == ids[first]
        )
        raise TeacherError(
            f"{len(unknown):,} of {len(ids):,} examples are not in the label store {where}, the first with id "
            f"{named(int(ids[first]))}{_view(int(views[first]))}"
            + (f" (it is there with other views: {_few(self.views)})" if known else "")
            + ": the wrong answers would be learnt; label this very transfer set, with these views"
        )


def _view(view: int) -> str:
    return "" if view == NO_VIEW else f", view {view}"


def _few(views: Sequence[int]) -> str:
    shown = ["none" if view == NO_VIEW else str(view) for view in views[:8]]
    return ", ".join(shown) + (" …" if len(views) > 8 else "")
