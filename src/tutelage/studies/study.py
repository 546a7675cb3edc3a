"""``Study``: arms × seeds on equal budgets, from a transfer set to ``result.json`` and a verdict."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import nn

from tutelage import __version__
from tutelage.data import Splits
from tutelage.errors import ConfigError
from tutelage.files import write_atomically
from tutelage.models import ModelSource
from tutelage.objectives import CrossEntropy, Objective, Term, as_objective
from tutelage.studies.arm import Progress, Silent
from tutelage.studies.arm_words import arm_words
from tutelage.studies.beforehand import check_study
from tutelage.studies.chain import ASSISTANTS, CANDIDATES, DIRECT, Chain, Walked, walk
from tutelage.studies.clock import Clock
from tutelage.studies.config_text import config_text_of
from tutelage.studies.faculty import (
    Faculty,
    GivenTeacher,
    TeacherTraining,
    load_faculty,
    ready_faculty,
    seen_beforehand,
)
from tutelage.studies.gates import CONTROL_OF, JUDGED, Gates, decidable
from tutelage.studies.ledger import EXPORTS
from tutelage.studies.passing import settings_of, stage_said, stage_trainings
from tutelage.studies.recipes import ExtraArm, Outcome, Recipe, objective_of
from tutelage.studies.recording import Findings, assemble
from tutelage.studies.records import provenance
from tutelage.studies.remembering import ANSWERS, Disk, passes
from tutelage.studies.setting import Setting, alone_in, data_digest
from tutelage.studies.stage import STAGE, StagePlan
from tutelage.studies.starting import Arm, Maker, Start, Uncut, bound
from tutelage.studies.stored_labels import LABELS, Kept, Labels, keep
from tutelage.studies.teaching import Heard, listens
from tutelage.teachers import Teacher

RESULT = "result.json"
CONFIG = "config.yaml"
CONTROLS = ("scratch", "label_smoothing")

#: Folders of a run, or arms of a chain: no names for another arm.
_TAKEN = ("teacher", DIRECT, ASSISTANTS, CANDIDATES, EXPORTS, LABELS, ANSWERS, STAGE)

Json = dict[str, Any]


@dataclass(frozen=True)
class Study:
    """The distilled student beside its controls, over several seeds, and what that proves.

    The arms ``kd``, ``scratch`` and ``label_smoothing`` share the student's initialisation, data order, number of steps and
    optimiser in each seed; they differ in the objective alone. The last checkpoint is taken (no selection), validation
    is watched, and the test split is opened once for each finished arm.

    Args:
        splits: the data.
        student: makes a fresh student; called once a seed, seeded; or :class:`FromTeacher`, how it is made of the teacher's module.
        teacher: a module, or a :class:`Teacher`; with ``teacher_training``, a function that makes the fresh module; or a list of
            :class:`Member`, an ensemble.
        objective: what the ``kd`` arm minimises.
        training: arguments of :class:`DistillationArguments`, by name, for every arm.
        seeds: how many seeds, or which.
        arms: which of ``kd``, ``scratch``, ``label_smoothing``.
        extra_arms: more arms by name, each with its objective, an :class:`Arm` (a student or a start of its own), or a recipe
            (:class:`BornAgain`, :class:`Mutual`): other methods to compare.
        start: how the student begins, for the record; None for a fresh one of a model of its own.
        stage: what every arm's students pass before the task, unless an :class:`Arm` says otherwise.
        uncut: the student as it passes the stage, where its vocabulary is cut after that.
        label_smoothing: ε of that control.
        gates: what the student must meet to be shipped, as far as arms and data can show it.
        teacher_training: given where this run trains the teacher.
        chain: assistants between teacher and student; the student that the teacher teaches itself is then the arm ``direct``.
        labels: how the teacher's answers are kept in a store, from which the students are then taught; None where they are kept in
            memory as far as that goes.
        together: whether small students that are alike are trained at once, with the same numbers within float tolerance: True
            and False demand it, None chooses.
        title: of the page.
        processing: saved beside the student (a tokenizer), or None.
        config: the resolved config to write beside the results; by default what can be said of these arguments.
        fingerprint: more facts that must not change between a run and its resumption.
        command: how the run was started, for the record.
        config_folder: where the config lies, recorded so that the run can be exported from its own folder later; None without one.
        student_source: where the student's code is, to go with an exported folder of weights; None where it is not known.

    Raises:
        ConfigError: unknown or no arms, no seeds, a student that is no function, a gate that could never be decided.
    """

    splits: Splits
    student: Maker
    teacher: GivenTeacher
    objective: Objective | Term
    training: Mapping[str, Any]
    seeds: int | Sequence[int] = 5
    arms: Sequence[str] = (JUDGED, *CONTROLS)
    extra_arms: Mapping[str, ExtraArm] = field(default_factory=dict[str, ExtraArm])
    start: Start | None = None
    stage: StagePlan | None = None
    uncut: Uncut | None = None
    label_smoothing: float = 0.1
    gates: Gates = field(default_factory=Gates)
    teacher_training: TeacherTraining | None = None
    chain: Chain | None = None
    labels: Labels | None = None
    together: bool | None = None
    title: str = "distillation"
    processing: Any = None
    config: Mapping[str, Any] | None = None
    fingerprint: Mapping[str, Any] = field(default_factory=dict[str, Any])
    command: str = "tutelage.Study(...).run(...)"
    config_folder: Path | None = None
    student_source: ModelSource | None = None

    def __post_init__(self) -> None:
        if self.labels is not None:
            seen = replace(self.splits, train=self.labels.seen(self.splits.train))
            object.__setattr__(self, "splits", seen)
        unknown = [arm for arm in self.arms if arm not in (JUDGED, *CONTROLS)]
        if unknown or JUDGED not in self.arms or len(set(self.arms)) < len(self.arms):
            raise ConfigError(
                f"arms are {list(self.arms)}, expected 'kd' with any of {', '.join(CONTROLS)}, each once; other methods are extra arms, "
                "each with its objective"
            )
        for name in self.extra_arms:
            if name in (JUDGED, *CONTROLS, *_TAKEN):
                raise ConfigError(f"an extra arm cannot be called {name!r}: that name is taken")
            if re.fullmatch(r"[\w-]+", name) is None:
                raise ConfigError(
                    f"an extra arm is called {name!r}: it names a folder too, so use letters, digits, '_' and '-' alone"
                )
        if self.chain is not None and self.together is True:
            raise ConfigError(
                "together is True with a chain: what each link costs is compared, and a student's share of a stack is not what it takes "
                "alone; leave it to None (in a config: auto), which trains a chain's students one by one"
            )
        if not self.seed_list or len(set(self.seed_list)) < len(self.seed_list):
            raise ConfigError(f"seeds are {self.seeds}: expected a number of at least 1, or different seeds")
        if not all(0 <= seed < 2**32 for seed in self.seed_list):
            raise ConfigError(f"seeds are {self.seeds}: expected whole numbers from 0 to 2³² − 1")
        if isinstance(self.student, nn.Module):
            raise ConfigError(
                f"student is a {type(self.student).__name__}, expected a function that makes a fresh one: every arm and seed starts anew"
            )
        lacking = {gate: f"the arm {arm!r}" for gate, arm in CONTROL_OF.items() if arm not in self.arms}
        if not self.splits.test.metadata:
            lacking["worst_slice_drop"] = "metadata of the test examples to cut slices by (data.metadata)"
        object.__setattr__(self, "gates", decidable(self.gates, lacking))

    @property
    def seed_list(self) -> list[int]:
        """The seeds."""
        return list(range(self.seeds)) if isinstance(self.seeds, int) else list(self.seeds)

    @property
    def objectives(self) -> dict[str, Objective]:
        """Each arm's objective, in the order they run."""
        own = as_objective(self.objective)
        standard = {
            JUDGED: own,
            **({DIRECT: own} if self.chain is not None else {}),
            "scratch": as_objective(CrossEntropy()),
            "label_smoothing": as_objective(CrossEntropy(label_smoothing=self.label_smoothing)),
        }
        asked = {*self.arms, *([DIRECT] if self.chain is not None else [])}
        chosen = {name: objective for name, objective in standard.items() if name in asked}
        return chosen | {name: objective_of(extra, own) for name, extra in self.extra_arms.items()}

    @property
    def recipes(self) -> dict[str, Recipe]:
        """The arms that are more than an objective."""
        return {name: extra for name, extra in self.extra_arms.items() if isinstance(extra, Recipe)}

    @property
    def own_starts(self) -> dict[str, Arm]:
        """The arms that have a student of their own."""
        return {
            name: extra
            for name, extra in self.extra_arms.items()
            if isinstance(extra, Arm) and extra.student is not None
        }

    @property
    def starts(self) -> dict[str, Start]:
        """How students begin, of the arms that it is told of."""
        said = {JUDGED: self.start} | {arm: own.start for arm, own in self.own_starts.items()}
        return {arm: start for arm, start in said.items() if start is not None}

    @property
    def trainings(self) -> int:
        """How many trainings a whole run reports; labelling counts as one."""
        recipes = self.recipes
        students = len(self.objectives) - len(recipes) + sum(recipe.trainings for recipe in recipes.values())
        before = self.chain.trainings if self.chain is not None else 0
        labelling = int(self.labels is not None)
        before += stage_trainings(self)
        return self.teacher_trainings + labelling + before + students * len(self.seed_list)

    @property
    def teacher_trainings(self) -> int:
        """How many of them are the teacher's, or its members'."""
        members = self.teacher if isinstance(self.teacher, Sequence) else []
        return (self.teacher_training is not None) + sum(member.training is not None for member in members)

    def run(self, out: str | Path, progress: Progress | None = None) -> Json:
        """Run what is not done yet, and write ``config.yaml`` and ``result.json`` into ``out``.

        The same call goes on with a study that was cut off; finished arms are not run again, and more seeds or arms may
        be asked for later.

        Returns:
            What ``result.json`` holds.

        Raises:
            ConfigError: something does not fit together; nothing has been trained yet.
            CheckpointError: ``out`` holds a study with other settings; the message shows the difference.
        """
        folder = Path(out)
        self._check(folder)
        with alone_in(folder):
            return self._run(folder, progress)

    def prepare_teacher(self, out: str | Path, progress: Progress | None = None) -> Teacher:
        """The teacher alone, trained in ``out`` first where this run is to train it: a later :meth:`run` finds it done.

        Raises:
            ConfigError: something does not fit together; nothing has been trained yet.
            CheckpointError: ``out`` holds a teacher with other settings; the message shows the difference.
        """
        folder = Path(out)
        self._check(folder)
        with alone_in(folder):
            return self._ready_faculty(self._setting(folder, progress)).teacher

    def hear_teacher(self, out: str | Path, progress: Progress | None = None) -> Heard:
        """The teacher of :meth:`prepare_teacher` as the students hear it: by its stored labels, where there are to be some."""
        folder = Path(out)
        self._check(folder)
        with alone_in(folder):
            setting = self._setting(folder, progress)
            return self._heard(self._ready_faculty(setting).teacher, setting)[0]

    def label(self, out: str | Path, progress: Progress | None = None) -> Json:
        """The teacher's labels alone, kept where a later :meth:`run` finds them; the teacher is trained in ``out`` first where that is to
        be done. The same call goes on with labelling that was cut off, and makes damaged shards again.

        Returns:
            What a run's record would say of them.

        Raises:
            ConfigError: something does not fit together, or no labels are asked for.
            TeacherError: the store holds other labels; the message shows the difference.
        """
        folder = Path(out)
        self._check(folder)
        if self.labels is None:
            raise ConfigError("this study keeps no labels: give labels=Labels(...) (in a config: a section 'labels')")
        with alone_in(folder):
            setting = self._setting(folder, progress)
            teacher = self._ready_faculty(setting).teacher
            return keep(self.labels, teacher, self.splits.train, folder, setting.progress, verify=True).to_json(folder)

    def trained_teacher(self, folder: Path) -> Teacher:
        """The teacher of a run in ``folder``: the given one, or the one that the run trained there."""
        return load_faculty(self.teacher, self.teacher_training, folder)

    def _run(self, folder: Path, progress: Progress | None) -> Json:
        clock = Clock(folder, RESULT)
        config_text = config_text_of(self)
        setting = self._setting(folder, progress)
        faculty = self._ready_faculty(setting)
        setting = self._setting(folder, progress, lambda: faculty.teacher)
        heard, kept = self._heard(faculty.teacher, setting)
        own = as_objective(self.objective)
        settings = settings_of(self, setting)
        walked = walk(self.chain, settings[JUDGED], heard, own) if self.chain is not None else None
        outcomes = self._run_arms(settings, heard, walked)
        descriptions = {arm: arm_words(self, arm, walked) for arm in outcomes}
        found = assemble(
            Findings(setting, faculty, outcomes, descriptions, self.gates, walked, kept, settings, self.starts)
        )
        result: Json = {
            "tutelage": __version__,
            "config_sha256": sha256(config_text.encode()).hexdigest(),
            **clock.to_json(),
            "title": self.title,
            "task": "classification",
            "provenance": {
                **provenance(self.command, config_text, data_digest(self.splits)),
                **(
                    {"config_folder": os.path.relpath(self.config_folder, folder)}
                    if self.config_folder is not None
                    else {}
                ),
            },
            "objective": as_objective(self.objective).describe(),
            **found,
            **stage_said(self, folder),
        }
        write_atomically(folder / CONFIG, config_text)
        write_atomically(folder / RESULT, json.dumps(result, indent=1, allow_nan=False))
        return result

    def _setting(
        self, folder: Path, progress: Progress | None, teacher: Callable[[], nn.Module | Teacher] | None = None
    ) -> Setting:
        """What all trainings share.

        Args:
            folder: of the run.
            progress: who watches.
            teacher: gives the teacher that students may be made of; what can be seen of it before it is trained where None.
        """
        origin = cache(teacher if teacher is not None else self._seen_beforehand)
        return Setting(
            folder=folder,
            splits=self.splits,
            student=bound(self.student, origin),
            training=self.training,
            seeds=self.seed_list,
            progress=progress if progress is not None else Silent(),
            origin=origin,
            fingerprint=self.fingerprint,
            processing=self.processing,
            # what a chain's links cost is compared, and a share of a stack is not what a student alone would take
            together=False if self.chain is not None else self.together,
        )

    def setting_of(self, arm: str, setting: Setting) -> Setting:
        """The setting of an arm: that of a student of its own, where it has one.

        Args:
            arm: its name.
            setting: what all trainings share.
        """
        own = self.own_starts.get(arm)
        if own is None or own.student is None:
            return setting
        return replace(
            setting.seeing(own.view),
            student=setting.made(own.student),
            processing=own.processing if own.processing is not None else setting.processing,
            fingerprint=own.fingerprint if own.fingerprint is not None else setting.fingerprint,
        )

    def _seen_beforehand(self) -> nn.Module | Teacher:
        return seen_beforehand(self.teacher, self.teacher_training)

    def _ready_faculty(self, setting: Setting) -> Faculty:
        return ready_faculty(self.teacher, self.teacher_training, setting)

    def _heard(self, teacher: Teacher, setting: Setting) -> tuple[Heard, Kept | None]:
        """The teacher as the students hear it, and the labels by which they do."""
        train = self.splits.train
        if self.labels is not None:
            kept = keep(self.labels, teacher, train, setting.folder, setting.progress)
            return kept.heard, kept
        recipes = self.recipes
        students = sum(listens(objective) for arm, objective in self.objectives.items() if arm not in recipes)
        uses = passes(self.training, len(train)) * students * len(self.seed_list)
        return Heard(teacher, train, Disk(setting.folder / ANSWERS, uses, setting.progress)), None

    def _check(self, folder: Path) -> None:
        check_study(self, folder)

    def _run_arms(self, settings: Mapping[str, Setting], heard: Heard, walked: Walked | None) -> dict[str, Outcome]:
        recipes, objectives, setting = self.recipes, self.objectives, settings[JUDGED]
        teachers = {JUDGED: walked.heard} if walked is not None else {}
        plans = [
            settings[arm].plan(arm, seed, setting.folder / arm / f"seed-{seed}", objective, teachers.get(arm, heard))
            for arm, objective in objectives.items()
            if arm not in recipes
            for seed in self.seed_list
        ]
        runs = list(zip(plans, setting.run(plans, arms=True), strict=True))
        return {
            arm: recipes[arm].run(arm, setting, objective)
            if arm in recipes
            else Outcome([run for plan, run in runs if plan.arm == arm])
            for arm, objective in objectives.items()
        }
