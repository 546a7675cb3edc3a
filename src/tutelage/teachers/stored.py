"""A teacher that was asked once, and whose answers are read from a store."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from copy import copy
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

from tutelage.data import Batch, Chain, TransferSet, hex_id, rows_of
from tutelage.errors import TeacherError
from tutelage.labels import LabelStore
from tutelage.labels.manifest import refuse_differences
from tutelage.rows import scores_on
from tutelage.signals import NO_LABEL, Signals
from tutelage.teachers.module import real_tokens_of

GIB = 1024**3

#: Bytes that stored answers may take in memory.
ANSWER_BUDGET = 2 * GIB


class StoredTeacher:
    """A teacher's answers from a :class:`tutelage.labels.LabelStore`, by content id and view; there is no teacher to run.

    Where everything fits into its memory it is read at the first batch and kept; otherwise row groups are read as they are
    needed, and the last ones kept.

    Args:
        store: the store, or its path or fsspec URL.
        memory_bytes: what it may keep in memory.

    Raises:
        TeacherError: there is no such store.
    """

    def __init__(self, store: LabelStore | str | os.PathLike[str], memory_bytes: int = ANSWER_BUDGET) -> None:
        opened = store if isinstance(store, LabelStore) else LabelStore.open(store)
        self.store = opened.within(memory_bytes)
        self.layers: tuple[str, ...] = ()

    @property
    def classes(self) -> int:
        """Number of classes C."""
        return self.store.manifest.form.classes

    def with_features(self, layers: Sequence[str]) -> StoredTeacher:
        """The same answers with the features of these layers and no others.

        Raises:
            TeacherError: a layer that the store does not keep.
        """
        kept = self.store.manifest.form.features
        missing = [layer for layer in layers if layer not in kept]
        if missing:
            raise TeacherError(
                f"the features of {', '.join(map(repr, missing))} are not in the label store {self.store.place} (there are: "
                f"{', '.join(map(repr, kept)) or 'none'}): label again with these features, or give the teacher itself"
            )
        chosen = copy(self)
        chosen.layers = tuple(dict.fromkeys(layers))
        return chosen

    def check(self, transfer_set: TransferSet) -> None:
        """Refuse a set to train on that would meet answers to something else; a trainer asks before its first step.

        A part of the set that was labelled will do, and fewer of its views.

        Raises:
            TeacherError: views without end, an example or a view that is not in the store, other supervised positions, or another
                augmentation or seed than the store was written with (where :func:`tutelage.studies.label` wrote it).
        """
        varies = transfer_set.teacher_varies
        if varies and transfer_set.views is None:
            raise TeacherError(
                f"what the teacher sees is random and ever new, and the label store {self.store.place} has answers to a number of views "
                f"({len(self.store.views)}): training would end at the first other one; give the transfer set that number of views"
            )
        now = {
            "augmentation": _in_words(transfer_set.augment),
            "augmentation seed": transfer_set.seed if varies else None,
        }
        bound = self.store.manifest.binds
        if transfer_set.token_level and not self.store.positions_told:
            # all positions of the whole set are known by one hash; of a part of it only how many they are
            distinct = transfer_set.ids.unique()
            if len(distinct) == bound.get("examples"):
                now["transfer set"] = _set_digest(distinct, transfer_set)
        known = [name for name in now if name in bound]
        refuse_differences({name: bound[name] for name in known}, {name: now[name] for name in known}, self.store.place)
        for view in range(transfer_set.views or 1) if varies else (None,):
            self._refuse_other_rows(transfer_set.ids, transfer_set.known_labels, view)

    def _refuse_other_rows(self, ids: Tensor, labels: Tensor, view: int | Tensor | None) -> None:
        """Refuse answers that would meet other positions than they were given for."""
        stored = self.store.rows(ids, view)
        supervised = labels != NO_LABEL
        asked = torch.ones_like(stored) if labels.ndim == 1 else supervised.sum(dim=1).cpu()
        other, how = stored != asked, ""
        if labels.ndim == 2 and not bool(other.any()):
            other, how = self.store.elsewhere(ids, supervised, view), ", at other places"
        if not bool(other.any()):
            return
        first = int(other.nonzero()[0])
        raise TeacherError(
            f"the example with id {hex_id(int(ids[first]))} has {int(stored[first]):,} rows in the label store and {int(asked[first]):,} "
            f"supervised positions here{how}: answers would meet other tokens than they were given for; label this very transfer set, "
            "with the same tokenizer, length and mask"
        )

    def signals(self, batch: Batch) -> Signals:
        """The stored rows of the batch's examples, their features ``[N, ...]`` and which tokens are real, on the batch's device.

        Raises:
            TeacherError: an example or its view is not in the store, or its rows are not those of the batch's supervised positions,
                by their number or, where the store was told them, by their places; the message names it. Features, and the batch's
                rows are tokens of texts that layers show whole.
        """
        if self.layers:
            refuse_whole_texts(batch, self.layers)
        ids, view = batch["ids"], batch.get("view")
        self._refuse_other_rows(ids, batch["labels"], view)
        scores = scores_on(self.store.lookup(ids, view), ids.device)
        features = {layer: self.store.features(ids, layer, view).to(ids.device) for layer in self.layers}
        return Signals(scores, features, real_tokens_of(batch) if features else None)


def refuse_whole_texts(batch: Batch, layers: Sequence[str]) -> None:
    """Refuse to keep what layers show of whole texts: a store keeps a row of features for each of labels.

    Raises:
        TeacherError: the batch's rows are tokens, and layers show the texts they are from.
    """
    if "examples" in rows_of(batch):
        raise TeacherError(
            f"{', '.join(map(repr, layers))} show whole texts [B, T, D], and the rows of this set are single tokens of them, of which a "
            "label store keeps features one a row: a word would be compared with another one, or a text with a word; store the logits "
            "alone, and ask the teacher itself where a term listens to its layers"
        )


def _set_digest(distinct: Tensor, transfer_set: TransferSet) -> str:
    """A set's examples and supervised positions, as the facts say them that labels are bound to."""
    found = sha256(distinct.numpy().tobytes())
    supervised = transfer_set.known_labels != NO_LABEL
    found.update(supervised.index_select(0, transfer_set.ids.argsort(stable=True)).numpy().tobytes())
    return found.hexdigest()[:16]


def _in_words(augment: Any) -> str:
    """An augmentation as the facts say it that labels are bound to."""
    if isinstance(augment, Chain):
        return ", then ".join(_in_words(step) for step in augment.views)
    return "none" if augment is None else re.sub(r" at 0x[0-9a-fA-F]+", "", repr(augment))
