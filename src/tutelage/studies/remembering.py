"""A study's teacher, asked once for all arms and seeds, with as many of its features as memory holds."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from tutelage.data import Batch, TransferSet
from tutelage.signals import Signals
from tutelage.teachers import MemoryTeacher, ShowsLayers, Teacher, why_not_kept

logger = logging.getLogger(__name__)


def remembered(teacher: Teacher, train: TransferSet) -> Teacher:
    """The teacher; where what it sees is the same in every epoch, one that asks it once and remembers."""
    return teacher if train.teacher_varies else RememberingTeacher(teacher, train)


class RememberingTeacher:
    """Answers from memory, which is filled when an answer is first needed.

    Logits are always kept. Features are kept for the layers that were asked for last, within
    :data:`tutelage.teachers.FEATURE_BUDGET`; those that do not fit, or that depend on the rest of the batch (texts padded to
    the longest), are asked of the teacher itself.

    Args:
        teacher: whom to ask.
        train: the transfer set, on which the teacher's view is the same in every epoch.
    """

    def __init__(self, teacher: Teacher, train: TransferSet) -> None:
        self._teacher = teacher
        self._train = train
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
            return MemoryTeacher.of(self._teacher, self._train)
        if not isinstance(self._teacher, ShowsLayers):
            return self._teacher  # it may give features unasked
        reason = why_not_kept(self._teacher, self._train, layers)
        if reason is None:
            return MemoryTeacher.of(self._teacher, self._train, layers=layers)
        logger.info("the teacher is asked at each step: %s", reason)
        return self._teacher.with_features(layers)
