"""What all trainings of one study share, so that an arm says only what is its own."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch import nn

from tutelage.data import Splits, TransferSet, View
from tutelage.errors import ConfigError
from tutelage.objectives import Objective
from tutelage.studies.arm import ArmPlan, ArmRun, Progress
from tutelage.studies.starting import Maker, bound, splits_with
from tutelage.studies.teaching import Heard
from tutelage.studies.together import run_all
from tutelage.teachers import Teacher

Json = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """A study's data, student and budget, and the folder that it is run in.

    Args:
        folder: of the whole run.
        splits: the data.
        student: makes a fresh student.
        training: the student's budget, the same for every arm.
        seeds: of the students.
        fingerprint: facts that must not change between a run and its resumption.
        progress: who watches.
        origin: gives the teacher that students may be made of.
        processing: saved beside every student, or None.
        together: whether students are trained at once; see :func:`run_all`.
        view: what these students see, where it is not what the data's student view says; the splits have it already.
        begin: gives what makes the students of a seed, where they pass something before the task; called when one is planned.
    """

    folder: Path
    splits: Splits
    student: Callable[[], nn.Module]
    training: Mapping[str, Any]
    seeds: Sequence[int]
    progress: Progress
    origin: Callable[[], nn.Module | Teacher]
    fingerprint: Mapping[str, Any] = field(default_factory=dict[str, Any])
    processing: Any = None
    together: bool | None = None
    view: View | None = None
    begin: Callable[[int], Callable[[], nn.Module]] | None = None

    @property
    def identity(self) -> Json:
        """The fingerprint with what must not change under finished arms besides: what they were measured on."""
        return {**self.fingerprint, **held_out_identity(self.splits)}

    def plan(
        self, arm: str, seed: int, folder: Path, objective: Objective, heard: Heard | None, **changes: Any
    ) -> ArmPlan:
        """The plan of one student.

        Args:
            arm: its name.
            seed: of initialisation, data order and dropout.
            folder: where it is left.
            objective: what it minimises.
            heard: its teacher; None for one that has none.
            changes: other fields of :class:`ArmPlan` than those of every student.
        """
        teaching: Json = {}
        if heard is not None:
            train = heard.train if self.view is None else heard.train.with_student_view(self.view)
            teaching = {"train": train, "teacher": heard.answering, "given_teacher": heard.teacher}
        build = changes.get("build") or (self.student if self.begin is None else self.begin(seed))
        identity = {**self.identity, **({"teacher": heard.identity} if heard is not None else {})}
        plan = ArmPlan(
            arm=arm,
            seed=seed,
            folder=folder,
            build=build,
            objective=objective,
            training=self.training,
            train=self.splits.train,
            validation=self.splits.validation,
            test=self.splits.test,
            processing=self.processing,
            fingerprint=identity,
        )
        return replace(plan, **{**teaching, **changes})

    def made(self, maker: Maker) -> Callable[[], nn.Module]:
        """A function that makes fresh models, of the study's teacher where they are made of it."""
        return bound(maker, self.origin)

    def seeing(self, view: View | None) -> Setting:
        """The setting of a student that sees this of an example; the same where the view is None."""
        return self if view is None else replace(self, splits=splits_with(self.splits, view), view=view)

    def run(self, plans: Sequence[ArmPlan], *, arms: bool = False) -> list[ArmRun]:
        """Run what is not done of these plans; the results are in their order.

        Args:
            plans: them.
            arms: whether they are the study's arms, of which ``together=True`` demands that all be trained at once; for
                teachers, assistants and recipes it is chosen.
        """
        return run_all(plans, self.progress, self.together if arms or self.together is False else None)


def held_out_identity(splits: Splits) -> Json:
    """The validation and the test split, by a hash of their ids and labels."""
    return {
        name: f"{len(part)} examples, {sha256(bytes_of(part)).hexdigest()[:16]}"
        for name, part in (("validation_set", splits.validation), ("test_set", splits.test))
    }


def data_digest(splits: Splits) -> str:
    """A hash of every id and label."""
    return sha256(b"".join(bytes_of(part) for part in (splits.train, splits.validation, splits.test))).hexdigest()


def bytes_of(part: TransferSet) -> bytes:
    """A split's ids and labels."""
    return part.ids.numpy().tobytes() + part.known_labels.numpy().tobytes()


@contextmanager
def alone_in(folder: Path) -> Generator[None]:
    """Hold the output folder against a second run, which would delete this one's checkpoints; it is made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(
            f"another run is at work in {folder}: two would overwrite each other's checkpoints; wait for it, or name another folder"
        ) from None
    try:
        yield
    finally:
        lock.release()
