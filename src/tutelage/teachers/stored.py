"""A teacher that was asked once, and whose answers are read from a store."""

from __future__ import annotations

import os
from collections.abc import Sequence
from copy import copy

import torch
from torch import Tensor

from tutelage.data import Batch, hex_id
from tutelage.errors import TeacherError
from tutelage.labels import LabelStore
from tutelage.signals import NO_LABEL, AnyScores, Logits, MixtureLogits, Signals, SparseTargets

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

    def signals(self, batch: Batch) -> Signals:
        """The stored rows of the batch's examples, and their features ``[N, ...]``, on the batch's device.

        Raises:
            TeacherError: an example or its view is not in the store, or it has another number of rows there than the batch has
                supervised positions; the message names it.
        """
        ids, view = batch["ids"], batch.get("view")
        _refuse_other_rows(self.store.rows(ids, view), batch["labels"], ids)
        scores = _on(self.store.lookup(ids, view), ids.device)
        features = {layer: self.store.features(ids, layer, view).to(ids.device) for layer in self.layers}
        return Signals(scores, features)


def _refuse_other_rows(stored: Tensor, labels: Tensor, ids: Tensor) -> None:
    """Refuse answers that would meet other positions than they were given for."""
    asked = torch.ones_like(stored) if labels.ndim == 1 else (labels != NO_LABEL).sum(dim=1).cpu()
    if torch.equal(stored, asked):
        return
    first = int((stored != asked).nonzero()[0])
    raise TeacherError(
        f"the example with id {hex_id(int(ids[first]))} has {int(stored[first]):,} rows in the label store and {int(asked[first]):,} "
        "supervised positions in this batch: answers would meet other tokens than they were given for; label this very transfer set, "
        "with the same tokenizer, length and mask"
    )


def _on(scores: AnyScores, device: torch.device) -> AnyScores:
    """The same scores on a device."""
    if device.type == "cpu":
        return scores
    if isinstance(scores, MixtureLogits):
        return MixtureLogits(scores.members.to(device), scores.weights.to(device))
    if isinstance(scores, SparseTargets):
        entropy = None if scores.entropy is None else scores.entropy.to(device)
        return SparseTargets(
            scores.ids.to(device), scores.probs.to(device), scores.classes, scores.temperature, scores.form, entropy
        )
    return Logits(scores.at(1.0).to(device))
