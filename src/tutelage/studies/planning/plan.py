"""``plan.json``: what the teacher's answers would cost a study in each way, found out before anything is trained."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from tutelage import __version__
from tutelage.errors import ConfigError, TutelageError
from tutelage.export.machine import cpu_facts
from tutelage.files import write_atomically
from tutelage.models.saving import load_student
from tutelage.objectives import Objective, as_objective
from tutelage.objectives.response import value_at
from tutelage.objectives.schedules import Schedule
from tutelage.studies.arm import RECORD, build_seeded
from tutelage.studies.faculty import TEACHER, Member, TeacherTraining, given_teacher
from tutelage.studies.planning.asks import Asks, asks_of, asks_of_sweep, budget_of, hearing
from tutelage.studies.planning.measuring import (
    Answers,
    Steps,
    ask_some,
    free_disk,
    free_memory,
    teacher_bytes,
    time_form,
    time_recall,
    time_steps,
)
from tutelage.studies.planning.ways import Costs, FormCost, Limits, pick, ways_of
from tutelage.studies.stored_labels import Labels, check_form, refuse_tokens
from tutelage.studies.study import Study
from tutelage.studies.sweeping.search import Search
from tutelage.teachers import ANSWER_BUDGET, EnsembleTeacher, ModuleTeacher, Teacher, why_not_kept

PLAN = "plan.json"

#: Of a sparse form, where the config says nothing.
DRAWS, KEPT = 50, 32

Json = dict[str, Any]


@dataclass(frozen=True)
class Measured:
    """What was measured, and what stands in the way."""

    costs: Costs
    limits: Limits
    steps: Steps
    answers: int
    rows: int


#: Measures a study with its teacher: what :func:`measure` does, unless a caller knows the costs.
Measure = Callable[[Study, Teacher, Asks, Path], Measured]


def plan_study(
    study: Study, out: str | Path, *, search: Search | None = None, command: str = "", measure: Measure | None = None
) -> Json:
    """Measure a study's teacher and student for a few steps, and write what each way to the answers would cost into ``plan.json``.

    Nothing is trained: a teacher that the run would train is measured with fresh weights, which take the same time, unless it
    lies trained in ``out`` already.

    Args:
        study: it.
        out: the folder of its run, there or to be; a store would lie on its disk.
        search: a sweep of it, to plan for in place of the single run.
        command: how the plan was asked for, for the record.
        measure: gives the costs; measured here where None.

    Returns:
        What ``plan.json`` holds.

    Raises:
        TutelageError: the study does not fit together, or none of its arms hears the teacher.
    """
    started, clock = datetime.now(UTC), time.perf_counter()
    folder = Path(out)
    refuse_tokens(study.splits.train)
    study._check(folder)  # pyright: ignore[reportPrivateUsage]  # what its run would do first
    teacher, source = teacher_here(study, folder)
    asks = _asked(study, teacher, search)
    found = (measure or measure_here)(study, teacher, asks, folder)
    ways = ways_of(asks, found.costs, found.limits)
    chosen, why = pick(ways, found.costs)
    machine = cpu_facts()
    result: Json = {
        "tutelage": __version__,
        "started": started.isoformat(timespec="seconds"),
        "seconds": time.perf_counter() - clock,
        "title": study.title,
        "command": command,
        "sweep": search is not None,
        "machine": {"cpu": machine.name, "cores": machine.cores, "threads": torch.get_num_threads()},
        "teacher": {"source": source, "bytes": found.costs.teacher_bytes},
        "asks": vars(asks) | {"layers": list(asks.layers)},
        "measured": _measured(found),
        "students": found.steps.student.times(asks.student_steps).to_json(),
        "ways": {way.name: way.to_json() for way in ways},
        "pick": {"way": chosen.name, "why": why, "labels": dict(chosen.labels) if chosen.labels is not None else None},
        "notes": _notes(asks, found, study, source, sweep=search is not None),
    }
    write_atomically(folder / PLAN, json.dumps(result, indent=1, allow_nan=False))
    return result


def _asked(study: Study, teacher: Teacher, search: Search | None) -> Asks:
    asks = asks_of(study, teacher)
    if not asks.trainings:
        raise ConfigError(
            "no arm's objective listens to the teacher, so that it is never asked and there is nothing to plan: give the objective a soft "
            "term such as kl"
        )
    return asks_of_sweep(search, asks) if search is not None else asks


def teacher_here(study: Study, folder: Path) -> tuple[Teacher, str]:
    """The teacher to measure, and whose weights it has: ``given``, ``trained`` in this folder, or ``fresh``."""
    if not isinstance(study.teacher, Sequence):
        return _one(study.teacher, study.teacher_training, folder / TEACHER)
    members = cast("Sequence[Member]", study.teacher)
    found = [
        _one(member.model, member.training, folder / TEACHER / f"member-{number}")
        for number, member in enumerate(members, start=1)
    ]
    sources = {source for _, source in found}
    source = next(name for name in ("fresh", "trained", "given") if name in sources)
    return EnsembleTeacher([teacher for teacher, _ in found], [member.weight for member in members]), source


def _one(model: object, recipe: TeacherTraining | None, home: Path) -> tuple[Teacher, str]:
    if recipe is None:
        return given_teacher(model), "given"
    module = build_seeded(cast("Callable[[], nn.Module]", model), recipe.seed)
    if (home / RECORD).is_file():
        return ModuleTeacher(load_student(module, home)), "trained"
    return ModuleTeacher(module), "fresh"


def measure_here(study: Study, teacher: Teacher, asks: Asks, folder: Path) -> Measured:
    """Time a few training steps, a few answers, and each form of keeping them."""
    train, own = study.splits.train, as_objective(study.objective)
    # with assistants on every road, the teacher is heard by them alone
    objectives = hearing(study) or {"assistant": own}
    answers = ask_some(teacher, train, asks.batch, asks.layers)
    steps = time_steps(study, teacher, next(iter(objectives.values())))
    disk = disk_of(study, folder)
    kept = _Trial(study, teacher, objectives, answers, disk)
    dense, no_dense = kept.first_that_fits(_dense_forms(study, asks))
    sparse, no_sparse = kept.first_that_fits(_sparse_forms(study, asks, objectives, answers.classes))
    remembered = None
    if train.token_level:
        remembered = "its rows are tokens, whose logits a run puts on the disk by itself, whole and in float32"
    elif asks.layers and not train.teacher_varies:
        remembered = why_not_kept(teacher, train, asks.layers)
    budget = budget_of(study.training, train)
    costs = Costs(
        ask=steps.teacher.times(budget.steps / budget.examples),
        label=answers.label,
        recall=time_recall(answers),
        answer_bytes=answers.bytes,
        teacher_bytes=teacher_bytes(teacher),
        cache_bytes=ANSWER_BUDGET,
        free_memory=free_memory(),
        free_disk=free_disk(disk),
        dense=dense,
        sparse=sparse,
    )
    views = study.labels.views if study.labels is not None else train.views
    limits = Limits(train.teacher_varies, views, remembered, no_dense, no_sparse)
    return Measured(costs, limits, steps, answers.examples, answers.rows)


def disk_of(study: Study, folder: Path) -> Path:
    """A folder that is there, on the disk where the study's store would be; the run's own where that is another machine's."""
    place = study.labels.place(folder) if study.labels is not None else folder
    if _elsewhere(study):
        return folder
    return next(path for path in (Path(place).absolute(), *Path(place).absolute().parents) if path.is_dir())


def _elsewhere(study: Study) -> bool:
    return study.labels is not None and "://" in str(study.labels.store)


@dataclass(frozen=True)
class _Trial:
    """What it takes to try a form: a few answers, those who would learn from them, and the disk."""

    study: Study
    teacher: Teacher
    objectives: Mapping[str, Objective]
    answers: Answers
    folder: Path

    def first_that_fits(self, forms: Sequence[Labels]) -> tuple[FormCost | None, str | None]:
        """The cost of the first form that every arm can learn from, or why the last one cannot be."""
        why = None
        setting = self.study._setting(self.folder, None)  # pyright: ignore[reportPrivateUsage]  # what its run would begin with
        student = build_seeded(setting.student, self.study.seed_list[0])
        # who has a student of its own is looked at by the run itself
        own = self.study.own_starts
        objectives = {arm: objective for arm, objective in self.objectives.items() if arm not in own}
        for labels in forms:
            try:
                check_form(labels, objectives, student, self.study.splits.train)
                return time_form(self.teacher, self.study.splits.train, self.answers, labels, self.folder), None
            except TutelageError as error:
                why = str(error)
        return None, why


def _dense_forms(study: Study, asks: Asks) -> list[Labels]:
    if study.labels is not None and study.labels.form == "dense":
        return [study.labels]
    plain = Labels(form="dense", features=asks.layers)
    # logits beyond float16's range
    return [plain, replace(plain, dtype="float32")]


def _sparse_forms(study: Study, asks: Asks, objectives: Mapping[str, Objective], classes: int) -> list[Labels]:
    if study.labels is not None and study.labels.form != "dense":
        return [study.labels]
    asked = [temperature_of(each) for each in objectives.values()]
    temperature = next((T for T in asked if T is not None), 1.0)
    features = asks.layers
    return [
        Labels(form="sampled", draws=DRAWS, temperature=temperature, features=features),
        Labels(form="top_k", k=min(KEPT, classes), temperature=temperature, features=features),
    ]


def temperature_of(objective: Objective) -> float | None:
    """The temperature of the first term that hears the teacher's logits and has one, at the start of training."""
    for component in objective.components:
        asked: float | Schedule | None = getattr(component.term, "temperature", None)
        if "teacher.logits" in component.term.needs and asked is not None:
            return value_at(asked, 0.0)
    return None


def _measured(found: Measured) -> Json:
    costs = found.costs
    forms = {"dense": costs.dense, "sparse": costs.sparse}
    return {
        "answers": found.answers,
        "rows": found.rows,
        "steps": found.steps.student.count,
        "seconds_an_example": {
            "ask": costs.ask.to_json(),
            "label": costs.label.to_json(),
            "recall": costs.recall.to_json(),
        },
        "seconds_a_step": {
            "teacher": found.steps.teacher.to_json(),
            "student": found.steps.student.to_json(),
        },
        "forms": {name: form.to_json() if form is not None else None for name, form in forms.items()},
        "answer_bytes": costs.answer_bytes,
        "free": {"memory": costs.free_memory, "disk": costs.free_disk},
    }


def _notes(asks: Asks, found: Measured, study: Study, source: str, *, sweep: bool) -> list[str]:
    """What the numbers rest on, and what they leave out."""
    notes = [
        f"estimates: medians of {found.steps.student.count} training steps and of {found.answers:,} answers ({found.rows:,} rows), with "
        "the quartiles of these; another load on this machine changes them"
    ]
    if source == "fresh":
        notes.append(
            "the teacher has fresh weights: it takes as long as trained ones, but its answers are flatter, so that a trained one's "
            "sampled rows take no more than is said"
        )
    if sweep:
        notes.append(
            "counted as trained one by one, by one worker: trials that are trained at once share answers; in memory, each worker asks "
            "anew"
        )
    elif asks.stacked:
        notes.append(
            f"{asks.stacked:,} students are trained at once, and take less than is said, which is their time one by one"
            + (
                f"; {asks.shared:,} of the {asks.trainings:,} trainings hear what another one asked"
                if asks.shared
                else ""
            )
        )
    if _elsewhere(study):
        notes.append(
            "the store is to be at a URL: writing and reading were timed on the run's own disk, and its room is not known"
        )
    if study.chain is not None or study.recipes:
        notes.append("assistants and students that teach are teachers too, whose answers are not counted here")
    return notes
