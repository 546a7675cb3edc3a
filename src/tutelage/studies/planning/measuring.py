"""A few steps of a study's teacher and student, and a few answers kept in each way, timed on this machine."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import TrainerCallback

from tutelage.data import Batch, TransferSet
from tutelage.evaluation.cost import stored_bytes
from tutelage.labels import LabelStore, LabelWriter
from tutelage.labels.sampling import row_keys
from tutelage.objectives import Objective
from tutelage.signals import ClassScores, HeadLogits, MixtureLogits, Signals, whole
from tutelage.studies.arm import build_seeded, trainer_for
from tutelage.studies.certifying import ROWS, certificate_of, in_form
from tutelage.studies.label_binds import rows_in
from tutelage.studies.planning.ways import FormCost, Spread
from tutelage.studies.stored_labels import Labels
from tutelage.studies.study import Study
from tutelage.studies.teaching import Heard, deployed_module
from tutelage.teachers import ShowsLayers, Teacher

#: Training steps that are timed, after one that is not; fewer where they take longer than `STEP_SECONDS` together.
STEPS, LEAST_STEPS, STEP_SECONDS = 12, 3, 10.0
#: Examples that are labelled; fewer, but a batch at least, where the teacher takes longer than `LABEL_SECONDS`.
MOST_LABELLED, LABEL_SECONDS = 1024, 5.0
#: Bytes of answers that are held for it; a batch at least.
MOST_BYTES = 256 << 20
#: Batches that are read back from a store, after one that is not timed.
READS = 16


@dataclass(frozen=True)
class Steps:
    """A training step's seconds: what the teacher takes of it, and the rest."""

    teacher: Spread
    student: Spread


@dataclass
class Timed:
    """A teacher that notes how long each answer took.

    Args:
        teacher: it.
        seconds: of each answer, shared with those that show its layers.
        clock: gives seconds.
    """

    teacher: Teacher
    seconds: list[float] = field(default_factory=list[float])
    clock: Callable[[], float] = time.perf_counter

    def signals(self, batch: Batch) -> Signals:
        """What the teacher says."""
        started = self.clock()
        said = self.teacher.signals(batch)
        self.seconds.append(self.clock() - started)
        return said

    def with_features(self, layers: Sequence[str]) -> Timed:
        """The same, showing these layers."""
        showing = self.teacher.with_features(layers) if isinstance(self.teacher, ShowsLayers) else self.teacher
        return dataclasses.replace(self, teacher=showing)


def time_steps(study: Study, teacher: Teacher, objective: Objective) -> Steps:
    """A few steps of one student, by the trainer that would train it, its teacher asked at each.

    Args:
        study: whose student, data and budget.
        teacher: asked at every step.
        objective: what the student minimises.
    """
    timed = Timed(teacher)
    with tempfile.TemporaryDirectory() as aside:
        setting = study._setting(Path(aside), None)  # pyright: ignore[reportPrivateUsage]  # what its run would begin with
        heard = Heard(timed, study.splits.train)
        plan = setting.plan(
            "kd", setting.seeds[0], Path(aside) / "kd", objective, heard, teacher=lambda: timed, given_teacher=timed
        )
        training = {**study.training, "max_steps": STEPS + 1, **_QUIET}
        plan = dataclasses.replace(plan, training=training)
        trainer = trainer_for(plan, build_seeded(plan.build, plan.seed))
        watch = _Steps(timed)
        trainer.add_callback(watch)
        trainer.train()
    asked = np.asarray(watch.asked[1:] or watch.asked)
    return Steps(_spread(asked), _spread(np.maximum(np.asarray(watch.whole[1:] or watch.whole) - asked, 0.0)))


#: Nothing but steps.
_QUIET: Mapping[str, Any] = {
    "eval_strategy": "no",
    "save_strategy": "no",
    "logging_strategy": "no",
    "load_best_model_at_end": False,
    "eval_on_start": False,
    "push_to_hub": False,
}


class _Steps(TrainerCallback):
    """Notes each step's seconds, and stops when there are enough."""

    def __init__(self, teacher: Timed) -> None:
        self._teacher, self._asked = teacher, 0.0
        self._began = self._before = 0.0
        self.whole: list[float] = []
        self.asked: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        self._began = self._before = time.perf_counter()
        self._asked = sum(self._teacher.seconds)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        now, asked = time.perf_counter(), sum(self._teacher.seconds)
        self.whole.append(now - self._before)
        self.asked.append(asked - self._asked)
        self._before, self._asked = now, asked
        if now - self._began > STEP_SECONDS and len(self.whole) > LEAST_STEPS:
            control.should_training_stop = True


@dataclass(frozen=True)
class Answer:
    """What the teacher said of a batch: ``rows[B]`` how many rows each example has, and their scores and features."""

    ids: Tensor
    rows: Tensor
    scores: ClassScores | None
    features: Mapping[str, Tensor]

    @property
    def bytes(self) -> int:
        """As it is kept in memory: logits multiplied out."""
        features = sum(values.nbytes for values in self.features.values())
        if self.scores is None:
            return features
        members, values = 1, self.scores
        if isinstance(values, MixtureLogits):
            members, width = values.members.shape[0], values.members.element_size()
        else:
            dtype = values.hidden.dtype if isinstance(values, HeadLogits) else values.at(1.0).dtype
            width = (
                torch.promote_types(dtype, torch.float32).itemsize if isinstance(values, HeadLogits) else dtype.itemsize
            )
        return features + int(self.rows.sum()) * values.classes * width * members

    @property
    def held(self) -> int:
        """Bytes that it takes while it is looked at: of a head, what it is given."""
        if not isinstance(self.scores, HeadLogits):
            return self.bytes
        return self.scores.hidden.nbytes + sum(values.nbytes for values in self.features.values())


@dataclass(frozen=True)
class Answers:
    """The answers to a few batches, and the seconds an example that they took, batches made included."""

    given: Sequence[Answer]
    label: Spread

    @property
    def examples(self) -> int:
        """How many examples were asked about."""
        return sum(len(each.ids) for each in self.given)

    @property
    def classes(self) -> int:
        """Number of classes C; 0 where there are features alone."""
        return next((each.scores.classes for each in self.given if each.scores is not None), 0)

    @property
    def rows(self) -> int:
        """How many rows they have."""
        return sum(int(each.rows.sum()) for each in self.given)

    @property
    def bytes(self) -> float:
        """An example's answer in memory."""
        return sum(each.bytes for each in self.given) / max(self.examples, 1)


def ask_some(teacher: Teacher, train: TransferSet, batch: int, layers: Sequence[str]) -> Answers:
    """Ask about a few examples, drawn at random, as labelling would."""
    shows = teacher.with_features(layers) if layers and isinstance(teacher, ShowsLayers) else teacher
    _, first = np.unique(train.ids.numpy(), return_index=True)
    chosen = torch.from_numpy(np.random.default_rng(0).permutation(first)[:MOST_LABELLED])
    parts = list(chosen.split(batch))
    shows.signals(train.batch(parts[0]))
    given: list[Answer] = []
    seconds: list[float] = []
    held = 0
    started = time.perf_counter()
    for rows in parts:
        begun = time.perf_counter()
        shown = train.batch(rows)
        said = shows.signals(shown)
        seconds.append((time.perf_counter() - begun) / len(rows))
        scores = whole(said.logits, "labelling") if said.logits is not None else None
        given.append(Answer(shown["ids"], rows_in(shown["labels"]), scores, {n: said.features[n] for n in layers}))
        held += given[-1].held
        if time.perf_counter() - started > LABEL_SECONDS or held + given[-1].held > MOST_BYTES:
            break
    return Answers(given, _spread(np.asarray(seconds)))


def time_recall(answers: Answers) -> Spread:
    """Seconds an example of answers looked up in memory."""
    scores = [each for each in answers.given if each.scores is not None]
    if not scores:
        return Spread(0.0, 0.0, 0.0, 0)
    first = scores[0]
    assert first.scores is not None
    values = first.scores.members.transpose(0, 1) if isinstance(first.scores, MixtureLogits) else first.scores.at(1.0)
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(0))
    seconds: list[float] = []
    for _ in range(READS):
        begun = time.perf_counter()
        values.index_select(0, order)
        seconds.append((time.perf_counter() - begun) / len(first.ids))
    return _spread(np.asarray(seconds[1:]))


def time_form(teacher: Teacher, train: TransferSet, answers: Answers, labels: Labels, near: Path) -> FormCost:
    """Write a few answers to a temporary store, read them back in random batches, and certify the form.

    Args:
        teacher: whose.
        train: of which examples.
        answers: what to keep.
        labels: in which form.
        near: a folder on the disk where the store would be.
    """
    form = labels.form_of(answers.classes)
    with tempfile.TemporaryDirectory(dir=near, prefix=".plan-") as aside:
        begun = time.perf_counter()
        with LabelWriter(Path(aside) / "labels", form, {"plan": "a trial"}) as writer:
            for each in answers.given:
                if each.scores is not None:
                    keys = row_keys(each.ids, each.rows, seed=0) if form.kind == "sampled" else None
                    writer.add(each.ids, None, each.rows, in_form(each.scores, form, keys), each.features)
            writer.finish(None)
        write = (time.perf_counter() - begun) / answers.examples
        store = LabelStore.open(Path(aside) / "labels")
        # an example at a time, as each of a batch lies in a row group of its own where a store is large
        read = _time_reads(store.within(0), answers, 1)
        warm = _time_reads(store.within(1 << 40), answers, len(answers.given[0].ids))
        manifest = store.manifest
        disk, cached = manifest.bytes, sum(shard.memory for shard in manifest.shards)
    # of a slow teacher fewer rows than labelling will look at
    rows = max(1, min(ROWS, int(LABEL_SECONDS / max(answers.label.median, 1e-9))))
    begun = time.perf_counter()
    certificate_of(teacher, train, form, len(answers.given[0].ids), rows)
    once = (time.perf_counter() - begun) * ROWS / rows + labels.spot_check * answers.label.median
    section: dict[str, Any] = {"form": labels.form, "dtype": labels.dtype, "temperature": labels.temperature}
    section |= {
        "draws": labels.draws,
        "scheme": labels.scheme,
        "k": labels.k,
        "features": list(labels.features) or None,
    }
    features = sum(values.nbytes for each in answers.given for values in each.features.values())
    return FormCost(
        section={name: value for name, value in section.items() if value is not None},
        once=Spread(once, once, once, 1),
        write=Spread(write, write, write, 1),
        read=read,
        warm=warm,
        bytes=disk / answers.examples,
        row_bytes=max(disk - features, 0) / max(answers.rows, 1),
        cached=cached / answers.examples,
    )


def _time_reads(store: LabelStore, answers: Answers, size: int) -> Spread:
    """Seconds an example, in batches of ``size`` random ones; the first is not counted."""
    ids = torch.cat([each.ids for each in answers.given])
    generator = torch.Generator().manual_seed(0)
    seconds: list[float] = []
    for _ in range(READS + 1):
        wanted = ids[torch.randperm(len(ids), generator=generator)[:size]]
        begun = time.perf_counter()
        scores = store.lookup(wanted)
        for layer in store.manifest.form.features:
            store.features(wanted, layer)
        assert scores.classes
        seconds.append((time.perf_counter() - begun) / size)
    return _spread(seconds[1:])


def teacher_bytes(teacher: Teacher) -> int:
    """Of the teacher's weights; 0 where they are not ours to see."""
    module = deployed_module(teacher)
    return stored_bytes(module) if module is not None else 0


def free_disk(folder: Path) -> int:
    """Bytes that this user may still write where a folder is."""
    return shutil.disk_usage(folder).free


def free_memory(root: Path = Path("/")) -> int:
    """Bytes of memory that this process may still take: of the machine's, or of the container's, whichever is less."""
    free = [_available(root)]
    try:
        group = root / "sys/fs/cgroup"
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            free.append(max(int(limit) - int((group / "memory.current").read_text()), 0))
    except (OSError, ValueError):
        pass  # no such group here
    return min(free)


def _available(root: Path) -> int:
    try:
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass  # no Linux
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (ValueError, OSError, AttributeError):
        return 4 << 30


def _spread(seconds: Sequence[float] | NDArray[np.float64]) -> Spread:
    """Median and quartiles."""
    low, middle, high = np.percentile(np.asarray(seconds, dtype=np.float64), (25, 50, 75))
    return Spread(float(middle), float(low), float(high), len(seconds))
