"""``label``: a teacher's answers to a whole transfer set, asked for once and kept in a store."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from tutelage import __version__
from tutelage.data import Batch, Completions, TransferSet, hex_id
from tutelage.errors import TeacherError
from tutelage.labels import Form, LabelStore, LabelWriter
from tutelage.labels.manifest import Manifest, read_manifest
from tutelage.labels.place import Place
from tutelage.signals import NO_LABEL, AnyScores, HeadLogits, MixtureLogits, Signals, SparseTargets
from tutelage.studies.arm import Progress, Silent
from tutelage.studies.certifying import answers_in_form, certificate_of, refuse_no_rows, showing_layers
from tutelage.studies.label_binds import label_binds, refuse_others, rows_in, settled
from tutelage.studies.spot_check import spot_check
from tutelage.teachers import Teacher, as_teacher
from tutelage.teachers.stored import refuse_whole_texts

#: Bytes of an answer that the teacher gives in one call, as far as that can be chosen.
_CALL_BYTES = 128 << 20
#: Most examples in a call of the teacher.
_MOST = 256
#: Of one that tells its most probable classes alone: it answers from afar, and what it was asked in vain is asked again.
_MOST_AFAR = 32
#: Examples that are asked about again before a labelling that was stopped goes on.
_CHECKED = 8
_EARLIER = "done in an earlier run"
#: Where a manifest's certificate says how the labels were made.
MADE = "made"

Json = dict[str, Any]


@runtime_checkable
class CountsRows(Protocol):
    """A :class:`Progress` that is told of rows and their speed instead of steps."""

    def labelling(self, what: str, rows: int, done: int) -> None:
        """Labelling begins, or goes on at row ``done``."""
        ...

    def labelled(self, done: int, rows_a_second: float) -> None:
        """So many rows are labelled, at this speed."""
        ...


def label(
    teacher: Teacher | nn.Module,
    transfer_set: TransferSet,
    path: str | Path,
    form: Form,
    *,
    batch_size: int | None = None,
    binds: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    what: str = "labels",
    verify: bool = True,
) -> LabelStore:
    """Ask ``teacher`` about what is not in the store yet, and keep its answers there.

    The store is written a shard at a time, so that a call that was killed is gone on with by the same call, and a shard that
    was damaged is made again alone. Where the teacher gives a head that is not multiplied out, no more than a slice of its logits
    is made at once.

    Args:
        teacher: a teacher, or a module to be one.
        transfer_set: about what. Where what the teacher sees is random, every one of its ``views`` is labelled.
        path: of the store, a folder or an fsspec URL.
        form: what is kept of an answer; its ``features`` are layers of the teacher.
        batch_size: examples in a call of the teacher; chosen from the size of its answers where None.
        binds: more facts that the labels depend on, by name.
        progress: who watches; told of rows where it is a :class:`CountsRows`.
        what: the labels' name there.
        verify: read every byte of a store that is complete; otherwise its index has to do.

    Raises:
        OtherLabelsError: the store holds other labels (of another teacher, of other examples, in another form), and the difference
            is shown; or, of a labelling that was stopped, not what the teacher says now.
        TeacherError: no example has a row; another process writes the store; the disk is full; the teacher's answers cannot be kept.
    """
    teacher = as_teacher(teacher)
    if transfer_set.teacher_varies and transfer_set.views is None:
        raise TeacherError(
            "what the teacher sees is random and ever new: no number of stored answers would do; give the transfer set a number of views "
            "(TransferSet(..., views=8)), or make its views deterministic (random = False)"
        )
    watch = progress if progress is not None else Silent()
    found = read_manifest(Place(path))
    facts = {**label_binds(teacher, transfer_set, form), **(binds or {})}
    facts = settled(facts, found.binds if found is not None else {})
    if found is not None:
        # before its shards are looked at: they may be of another teacher's labels
        refuse_others(found, form, facts, path)
        if not verify and found.complete and (store := LabelStore.open(path)).complete:
            watch.finished(what, _EARLIER)
            return store
    asking = _Asking(teacher, transfer_set, form, batch_size)
    with LabelWriter(path, form, facts) as writer:
        return _complete(asking, writer, found, watch, what)


def _complete(
    asking: _Asking, writer: LabelWriter, found: Manifest | None, progress: Progress, what: str
) -> LabelStore:
    """Label what is missing of a store, and certify it."""
    views = asking.views
    missing = writer.missing(asking.transfer_set.ids, views)
    if writer.manifest.complete:
        progress.finished(what, _EARLIER)
        return LabelStore.open(writer.place.url)
    there, teacher = LabelStore(writer.place, writer.manifest), asking.teacher
    left = asking.rows_of(missing)
    if left and there.manifest.rows:
        # code that changed since would put two teachers into one store, of which a later check may only see one
        spot_check(there, teacher, asking.transfer_set, _CHECKED)
    watched = _Watched(progress, what, left, asking.rows(views))
    made = _write(asking, writer, missing, watched)
    if found is not None and found.complete and found.certificate is not None:
        made = found.certificate.get(MADE, made)  # a few shards made again do not say how fast all were made
    certificate = certificate_of(teacher, asking.transfer_set, writer.manifest.form, asking.batch_size)
    store = writer.finish({**(certificate or {}), MADE: made})
    watched.finished(f"{store.manifest.rows:,} rows in {store.bytes:,} bytes")
    return LabelStore.open(writer.place.url)


def class_count(teacher: Teacher, transfer_set: TransferSet) -> int:
    """Number of classes C of a teacher's answers, asked about one example.

    Raises:
        TeacherError: it gives no logits.
    """
    return _scores(teacher.signals(transfer_set.batch(torch.arange(1))), teacher).classes


class _Asking:
    """The teacher's answers to some examples in some views, in batches of a size that memory bears."""

    def __init__(self, teacher: Teacher, transfer_set: TransferSet, form: Form, batch_size: int | None) -> None:
        self.transfer_set, self.form = transfer_set, form
        self._batch_size = batch_size
        self.seconds = 0.0
        self.teacher = teacher
        #: Of each example; None where there is one only.
        self.views = list(range(transfer_set.views or 1)) if transfer_set.teacher_varies else None
        self._teacher = showing_layers(teacher, form.features)
        self._rows = rows_in(transfer_set.known_labels)
        refuse_no_rows(int(self._rows.sum()))
        if form.features:
            refuse_whole_texts(transfer_set.batch(torch.arange(1)), form.features)
        _refuse_other_rows_of_one(transfer_set)

    @cached_property
    def batch_size(self) -> int:
        """Examples in a call: as said, or as many as memory bears, which the example with most rows tells."""
        if self._batch_size is not None:
            return self._batch_size
        with torch.no_grad():
            said = self._teacher.signals(self.transfer_set.batch(self._rows.argmax()[None]))
        scores = _scores(said, self._teacher)
        if isinstance(scores, SparseTargets):
            return _MOST_AFAR
        held = scores.hidden if isinstance(scores, HeadLogits) and self.form.sparse else None
        if held is None:
            held = scores.members if isinstance(scores, MixtureLogits) else scores.at(1.0)
        each = held.nbytes + sum(values.nbytes for values in said.features.values())
        return max(1, min(_MOST, _CALL_BYTES // max(each, 1)))

    def rows_of(self, places: Mapping[int | None, Tensor]) -> int:
        """Rows of these examples."""
        return sum(int(self._rows[of].sum()) for of in places.values())

    def rows(self, views: Sequence[int] | None) -> int:
        """Rows of all examples in all views."""
        _, inverse = self.transfer_set.ids.unique(return_inverse=True)
        each = torch.zeros(int(inverse.max()) + 1, dtype=torch.int64).scatter_(0, inverse, self._rows)
        return int(each.sum()) * (1 if views is None else len(views))

    def answers(self, places: Tensor, view: int | None) -> Iterator[tuple[Batch, Signals, Tensor]]:
        """Batch, answer and rows of each example, for these examples; texts of like length together, since padding is computed too."""
        inputs = self.transfer_set.inputs
        if isinstance(inputs, Completions):
            places = places[inputs.lengths("teacher")[places].argsort(stable=True)]
        while len(places):
            now, places = places[: self.batch_size], places[self.batch_size :]
            yield self._ask(now, view)

    def _ask(self, places: Tensor, view: int | None) -> tuple[Batch, Signals, Tensor]:
        batch = self.transfer_set.batch(places, view or 0)
        started = time.perf_counter()
        with torch.no_grad():
            said = self._teacher.signals(batch)
        self.seconds += time.perf_counter() - started
        counts = rows_in(batch["labels"])
        scores = answers_in_form(_scores(said, self._teacher), self.form, batch, self.transfer_set.seed)
        return batch, Signals(scores, said.features), counts


class _Watched:
    """How far labelling is, to whoever watches."""

    def __init__(self, progress: Progress, what: str, missing: int, rows: int) -> None:
        self._progress, self._what = progress, what
        self._done = self._before = rows - missing
        self._started = time.perf_counter()
        if isinstance(progress, CountsRows):
            progress.labelling(what, rows, self._done)
        else:
            progress.started(what, rows, self._done)

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.perf_counter() - self._started

    def advance(self, rows: int) -> None:
        """So many more rows are labelled."""
        self._done += rows
        if isinstance(self._progress, CountsRows):
            self._progress.labelled(self._done, (self._done - self._before) / max(self.seconds, 1e-9))
        else:
            self._progress.advanced(self._done)

    def finished(self, outcome: str) -> None:
        """All is labelled."""
        self._progress.finished(self._what, outcome)


def _write(asking: _Asking, writer: LabelWriter, missing: Mapping[int | None, Tensor], watched: _Watched) -> Json:
    """Label what is missing; returns how it was made."""
    started = datetime.now(UTC)
    rows = 0
    for view, places in missing.items():
        for batch, said, counts in asking.answers(places, view):
            assert said.logits is not None
            labels = batch["labels"]
            rows_at = counts if labels.ndim == 1 else labels != NO_LABEL
            writer.add(batch["ids"], batch.get("view"), rows_at, said.logits, said.features or None)
            rows += int(counts.sum())
            watched.advance(int(counts.sum()))
    return {
        "tutelage": __version__,
        "started": started.isoformat(timespec="seconds"),
        "rows": rows,
        "seconds": watched.seconds,
        "teacher_seconds": asking.seconds,
    }


def _scores(said: Signals, teacher: Teacher) -> AnyScores:
    if said.logits is None:
        raise TeacherError(
            f"{type(teacher).__name__} gives no logits: there is nothing to keep as labels; use a teacher that classifies"
        )
    return said.logits


def _refuse_other_rows_of_one(transfer_set: TransferSet) -> None:
    """Equal examples share one entry, which is right only where the same positions of them are supervised."""
    if not transfer_set.token_level:
        return
    _, inverse = transfer_set.ids.unique(return_inverse=True)
    first = torch.zeros(int(inverse.max()) + 1, dtype=torch.int64).scatter_(0, inverse, torch.arange(len(inverse)))
    supervised = transfer_set.known_labels != NO_LABEL
    other = (supervised != supervised[first[inverse]]).any(1)
    if bool(other.any()):
        example = int(transfer_set.ids[other.nonzero()[0, 0]])
        raise TeacherError(
            f"the example {hex_id(example)} is there more than once, with other positions supervised: labels are kept by content, and one "
            "of the two would be given the other's rows; drop one of them"
        )
