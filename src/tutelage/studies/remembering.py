"""A study's teacher, asked once for all arms and seeds: its answers are kept in memory, or on the disk where there are too many."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from tutelage.data import Batch, TransferSet
from tutelage.errors import OtherLabelsError, TeacherError
from tutelage.labels import Form
from tutelage.signals import ClassScores, MixtureLogits, Signals
from tutelage.studies.arm import Progress, Silent
from tutelage.studies.label_binds import rows_in
from tutelage.studies.labelling import label
from tutelage.teachers import (
    ANSWER_BUDGET,
    MemoryTeacher,
    ShowsLayers,
    StoredTeacher,
    Teacher,
    why_not_kept,
)

logger = logging.getLogger(__name__)

#: The folder of a run in which answers are kept that memory does not hold.
ANSWERS = "answers"
#: The share of the disk's free bytes that they may take.
_OF_THE_DISK = 0.5
#: Dtypes that float32 on the disk holds without rounding.
_EXACT = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Disk:
    """Where answers may be kept that memory does not hold.

    Args:
        folder: for them alone.
        uses: how often the students will hear each answer.
        progress: who watches them being written.
        memory_bytes: what answers may take in memory, kept there or read from the disk.
    """

    folder: Path
    uses: int
    progress: Progress = field(default_factory=Silent)
    memory_bytes: int = ANSWER_BUDGET


def passes(training: Mapping[str, Any], examples: int) -> int:
    """How often a training on this budget goes through its transfer set, the last time perhaps in part."""
    steps = training.get("max_steps", -1)
    if steps > 0:
        each = training.get("per_device_train_batch_size", 8) * training.get("gradient_accumulation_steps", 1)
        return math.ceil(steps * each / examples)
    return math.ceil(training.get("num_train_epochs", 3))


def remembered(teacher: Teacher, train: TransferSet, disk: Disk | None = None) -> Teacher:
    """The teacher; where what it sees is the same in every epoch, one that asks it once and remembers."""
    if train.teacher_varies or isinstance(teacher, StoredTeacher):
        return teacher
    return RememberingTeacher(teacher, train, disk)


class RememberingTeacher:
    """Answers from memory or disk, which are filled when an answer is first needed.

    Logits are kept in memory where they fit (:class:`Disk`'s ``memory_bytes``), else in a label store on the disk, where it has room
    and the answers are used more than once: writing them takes a pass of the teacher, which is all that one use would take.
    Features are kept in memory for the layers that were asked for last, within :data:`tutelage.teachers.FEATURE_BUDGET`; those that
    do not fit, or that depend on the rest of the batch (texts padded to the longest), are asked of the teacher itself.

    Args:
        teacher: whom to ask.
        train: the transfer set, on which the teacher's view is the same in every epoch.
        disk: where answers may be kept that memory does not hold; None for nowhere.
    """

    def __init__(self, teacher: Teacher, train: TransferSet, disk: Disk | None = None) -> None:
        self._teacher = teacher
        self._train = train
        self._disk = disk
        self._kept: dict[tuple[str, ...], Teacher] = {}

    def with_features(self, layers: Sequence[str]) -> Teacher:
        """The kept answers with these layers' features, or the teacher itself where it has to be asked each time.

        Raises:
            TeacherError, ModelError: a layer that the teacher cannot show.
        """
        wanted = tuple(layers)
        if wanted not in self._kept:
            # one set of features at a time, beside the logits alone
            self._kept = {known: kept for known, kept in self._kept.items() if not known or not wanted}
            self._kept[wanted] = self._ask(wanted)
        return self._kept[wanted]

    def signals(self, batch: Batch) -> Signals:
        """The kept logits."""
        return self.with_features(()).signals(batch)

    def _ask(self, layers: tuple[str, ...]) -> Teacher:
        if not layers:
            return self._logits()
        if not isinstance(self._teacher, ShowsLayers):
            return self._teacher  # it may give features unasked
        reason = "its rows are tokens" if self._train.token_level else why_not_kept(self._teacher, self._train, layers)
        if reason is None:
            return MemoryTeacher.of(self._teacher, self._train, layers=layers)
        logger.info("the teacher is asked at each step: %s", reason)
        return self._teacher.with_features(layers)

    def _logits(self) -> Teacher:
        size = _Size.of(self._teacher, self._train)
        budget = self._disk.memory_bytes if self._disk is not None else ANSWER_BUDGET
        if size is None or (size.in_memory <= budget and not self._train.token_level):
            return MemoryTeacher.of(self._teacher, self._train)
        reason = self._why_not_on_disk(size)
        if reason is None:
            assert self._disk is not None
            return self._written(self._disk, size.classes)
        logger.info(
            "the teacher is asked at each step: its answers take %s bytes, %s are allowed in memory, and %s",
            f"{size.in_memory:,}",
            f"{budget:,}",
            reason,
        )
        return self._teacher

    def _written(self, disk: Disk, classes: int) -> Teacher:
        # float32 holds what the teacher gave, bit for bit
        form = Form("dense", classes, dtype="float32")
        disk.folder.parent.mkdir(parents=True, exist_ok=True)
        # a sweep's workers share their teacher: who comes second waits, and reads
        with FileLock(disk.folder.with_suffix(".lock")):
            try:
                store = label(
                    self._teacher, self._train, disk.folder, form, progress=disk.progress, what="answers", verify=False
                )
            except OtherLabelsError as error:
                raise TeacherError(
                    f"delete the folder {disk.folder} and run the same command again, which asks the teacher anew: an earlier run kept "
                    f"answers there that memory did not hold, and they are not this run's. In full: {error}"
                ) from error
        return StoredTeacher(store, disk.memory_bytes)

    def _why_not_on_disk(self, size: _Size) -> str | None:
        if self._disk is None:
            return "there is no folder for them on the disk"
        if self._disk.uses < 2:
            return "on the disk they would be used once"
        if size.dtype not in _EXACT:
            return f"{size.dtype} would be rounded there"
        if self._disk.folder.is_dir():
            return None  # begun already
        folder = next(parent for parent in self._disk.folder.absolute().parents if parent.is_dir())
        free = shutil.disk_usage(folder).free
        if size.on_disk > _OF_THE_DISK * free:
            return f"of the {free:,} bytes that are free on the disk no more than half may be taken"
        return None


@dataclass(frozen=True)
class _Size:
    """How many numbers a teacher's answers to a whole set are, of what kind."""

    numbers: int
    classes: int
    dtype: torch.dtype

    @property
    def in_memory(self) -> int:
        """Bytes, as they were given."""
        return self.numbers * self.dtype.itemsize

    @property
    def on_disk(self) -> int:
        """Bytes, as float32."""
        return self.numbers * torch.float32.itemsize

    @staticmethod
    def of(teacher: Teacher, train: TransferSet) -> _Size | None:
        """None where the teacher gives no dense logits, of which others complain with more words."""
        said = teacher.signals(train.batch(torch.arange(1))).logits
        if not isinstance(said, ClassScores):
            return None
        rows = int(rows_in(train.known_labels).sum())
        if isinstance(said, MixtureLogits):
            return _Size(rows * len(said.weights) * said.classes, said.classes, said.members.dtype)
        return _Size(rows * said.classes, said.classes, said.at(1.0).dtype)
