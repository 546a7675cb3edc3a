"""``Study``: arms × seeds on equal budgets, from a transfer set to ``result.json`` and a verdict."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import nn

from tutelage import __version__
from tutelage.data import Splits, TransferSet
from tutelage.errors import ConfigError
from tutelage.evaluation import measure_cost
from tutelage.files import write_atomically
from tutelage.models import ModelSource
from tutelage.models.saving import load_student
from tutelage.objectives import CrossEntropy, Objective, Term, as_objective
from tutelage.studies.arm import ArmPlan, ArmRun, Progress, Silent, build_seeded, run_arm
from tutelage.studies.evidence import collect_evidence, correctness, slice_tables
from tutelage.studies.gates import JUDGED, Gates
from tutelage.studies.judging import Beside, judge
from tutelage.studies.preflight import check_classes, check_folder, check_labels, check_student, check_training
from tutelage.studies.priors import prior_correction
from tutelage.studies.records import arm_record, comparisons, provenance
from tutelage.studies.teaching import deployed_module, on_cpu, teacher_identity, teacher_predictions
from tutelage.studies.together import run_all
from tutelage.studies.yaml_text import to_yaml
from tutelage.teachers import MemoryTeacher, ModuleTeacher, Teacher

RESULT = "result.json"
CONFIG = "config.yaml"
CONTROLS = ("scratch", "label_smoothing")

Json = dict[str, Any]


@dataclass(frozen=True)
class TeacherTraining:
    """How a run trains its own teacher, on labels alone.

    Args:
        data: the labelled set; it may hold labels that the student's transfer set has forgotten.
        training: arguments of :class:`DistillationArguments`, by name.
        seed: of initialisation and data order.
    """

    data: TransferSet
    training: Mapping[str, Any]
    seed: int = 0


@dataclass(frozen=True)
class Study:
    """The distilled student beside its controls, over several seeds, and what that proves.

    The arms ``kd``, ``scratch`` and ``label_smoothing`` share the student's initialisation, data order, number of steps and
    optimiser in each seed; they differ in the objective alone. The last checkpoint is taken (no selection), validation
    is watched, and the test split is opened once for each finished arm.

    Args:
        splits: the data.
        student: makes a fresh student; called once a seed, seeded.
        teacher: a module, or a :class:`Teacher`; with ``teacher_training``, a function that makes the fresh module.
        objective: what the ``kd`` arm minimises.
        training: arguments of :class:`DistillationArguments`, by name, for every arm.
        seeds: how many seeds, or which.
        arms: which of ``kd``, ``scratch``, ``label_smoothing``.
        extra_arms: more arms by name, each with its objective: other methods to compare.
        label_smoothing: ε of that control.
        gates: what the student must meet to be shipped.
        teacher_training: given where this run trains the teacher.
        title: of the page.
        processing: saved beside the student (a tokenizer), or None.
        config: the resolved config to write beside the results; by default what can be said of these arguments.
        fingerprint: more facts that must not change between a run and its resumption.
        command: how the run was started, for the record.
        config_folder: where the config lies, recorded so that the run can be exported from its own folder later; None without one.
        student_source: where the student's code is, to go with an exported folder of weights; None where it is not known.

    Raises:
        ConfigError: unknown or no arms, no seeds, a student that is no function.
    """

    splits: Splits
    student: Callable[[], nn.Module]
    teacher: nn.Module | Teacher | Callable[[], nn.Module]
    objective: Objective | Term
    training: Mapping[str, Any]
    seeds: int | Sequence[int] = 5
    arms: Sequence[str] = (JUDGED, *CONTROLS)
    extra_arms: Mapping[str, Objective | Term] = field(default_factory=dict[str, Objective | Term])
    label_smoothing: float = 0.1
    gates: Gates = field(default_factory=Gates)
    teacher_training: TeacherTraining | None = None
    title: str = "distillation"
    processing: Any = None
    config: Mapping[str, Any] | None = None
    fingerprint: Mapping[str, Any] = field(default_factory=dict[str, Any])
    command: str = "tutelage.Study(...).run(...)"
    config_folder: Path | None = None
    student_source: ModelSource | None = None

    def __post_init__(self) -> None:
        unknown = [arm for arm in self.arms if arm not in (JUDGED, *CONTROLS)]
        if unknown or JUDGED not in self.arms or len(set(self.arms)) < len(self.arms):
            raise ConfigError(
                f"arms are {list(self.arms)}, expected 'kd' with any of {', '.join(CONTROLS)}, each once; other methods are extra arms, "
                "each with its objective"
            )
        for name in self.extra_arms:
            if name in (JUDGED, "teacher", *CONTROLS):
                raise ConfigError(f"an extra arm cannot be called {name!r}: that name is taken")
            if re.fullmatch(r"[\w-]+", name) is None:
                raise ConfigError(
                    f"an extra arm is called {name!r}: it names a folder too, so use letters, digits, '_' and '-' alone"
                )
        if not self.seed_list or len(set(self.seed_list)) < len(self.seed_list):
            raise ConfigError(f"seeds are {self.seeds}: expected a number of at least 1, or different seeds")
        if not all(0 <= seed < 2**32 for seed in self.seed_list):
            raise ConfigError(f"seeds are {self.seeds}: expected whole numbers from 0 to 2³² − 1")
        if isinstance(self.student, nn.Module):
            raise ConfigError(
                f"student is a {type(self.student).__name__}, expected a function that makes a fresh one: every arm and seed starts anew"
            )

    @property
    def seed_list(self) -> list[int]:
        """The seeds."""
        return list(range(self.seeds)) if isinstance(self.seeds, int) else list(self.seeds)

    @property
    def objectives(self) -> dict[str, Objective]:
        """Each arm's objective, in the order they run."""
        standard = {
            JUDGED: as_objective(self.objective),
            "scratch": as_objective(CrossEntropy()),
            "label_smoothing": as_objective(CrossEntropy(label_smoothing=self.label_smoothing)),
        }
        chosen = {name: objective for name, objective in standard.items() if name in self.arms}
        return chosen | {name: as_objective(objective) for name, objective in self.extra_arms.items()}

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
        with _alone_in(folder):
            return self._run(folder, progress if progress is not None else Silent())

    def prepare_teacher(self, out: str | Path, progress: Progress | None = None) -> Teacher:
        """The teacher alone, trained in ``out`` first where this run is to train it: a later :meth:`run` finds it done.

        Raises:
            ConfigError: something does not fit together; nothing has been trained yet.
            CheckpointError: ``out`` holds a teacher with other settings; the message shows the difference.
        """
        folder = Path(out)
        self._check(folder)
        with _alone_in(folder):
            return self._ready_teacher(folder, progress if progress is not None else Silent())[0]

    def _run(self, folder: Path, progress: Progress) -> Json:
        started, clock = datetime.now(UTC), time.perf_counter()
        config_text = self._config_text()
        teacher, teacher_run = self._ready_teacher(folder, progress)
        runs = self._run_arms(folder, teacher, progress)
        teacher_logits = teacher_run[0].test_logits if teacher_run else teacher_predictions(teacher, self.splits.test)
        logits = {"teacher": teacher_logits[None]}
        logits |= {arm: np.stack([run.test_logits for run in arm_runs]) for arm, arm_runs in runs.items()}
        labels = self.splits.test.known_labels.numpy()
        arms = {"teacher": arm_record(self._describe("teacher"), teacher_run, logits["teacher"], None, labels)}
        for arm, arm_runs in runs.items():
            arms[arm] = arm_record(self._describe(arm), arm_runs, logits[arm], teacher_logits, labels)
        compared = comparisons(JUDGED, logits, labels)
        names = self._class_names(teacher_logits.shape[1])
        correct = {arm: correctness(values, labels) for arm, values in logits.items()}
        slices = slice_tables(correct[JUDGED], correct["teacher"], self.splits.test, names)
        cost = self._measure_cost(teacher)
        curves = {**({"teacher": teacher_run} if teacher_run else {}), **runs}
        result: Json = {
            "tutelage": __version__,
            "config_sha256": sha256(config_text.encode()).hexdigest(),
            "started": started.isoformat(timespec="seconds"),
            "seconds": time.perf_counter() - clock,
            "title": self.title,
            "task": "classification",
            "provenance": {
                **provenance(self.command, config_text, _data_digest(self.splits)),
                **(
                    {"config_folder": os.path.relpath(self.config_folder, folder)}
                    if self.config_folder is not None
                    else {}
                ),
            },
            "splits": {name: len(getattr(self.splits, name)) for name in ("train", "validation", "test")},
            "transfer": _transfer_counts(self.splits.train),
            "classes": names,
            "objective": as_objective(self.objective).describe(),
            "arms": arms,
            "comparisons": compared,
            "cost": cost,
            "verdict": judge(self.gates, arms, compared, cost, Beside(correct=correct, slices=slices)),
            "slices": slices,
            "evidence": collect_evidence(curves, logits, self.splits.test, names, JUDGED),
        }
        corrected = prior_correction(self.splits, runs, logits, self.student, names)
        if corrected is not None:
            result["prior_correction"] = corrected
        write_atomically(folder / CONFIG, config_text)
        write_atomically(folder / RESULT, json.dumps(result, indent=1, allow_nan=False))
        return result

    def _check(self, folder: Path) -> None:
        """Find out before anything is trained what could only fail later."""
        objectives = self.objectives
        for objective in objectives.values():
            objective.validate()
        check_labels(objectives, self.splits.train)
        student = check_student(self.student, self.seed_list[0])
        recipe = self.teacher_training
        teacher = self._fresh_teacher(recipe) if recipe is not None else self._given_teacher()
        check_classes(student, teacher, self.splits, self.splits.train.class_names)
        train, validation = self.splits.train, self.splits.validation
        check_training(self.training, "training", student, objectives[JUDGED], train, validation)
        if recipe is not None and isinstance(teacher, nn.Module):
            train, validation = recipe.data.for_teacher_training(), validation.for_teacher_training()
            check_training(
                recipe.training, "teacher.training", teacher, as_objective(CrossEntropy()), train, validation
            )
        check_folder(folder)

    def _fresh_teacher(self, recipe: TeacherTraining) -> nn.Module:
        if isinstance(self.teacher, nn.Module) or not callable(self.teacher):
            raise ConfigError("with teacher_training, teacher must be a function that makes the fresh module")
        made: Any = build_seeded(self.teacher, recipe.seed)
        if not isinstance(made, nn.Module):
            raise ConfigError(f"teacher() returned a {type(made).__name__}, expected a fresh nn.Module")
        return made

    def _ready_teacher(self, folder: Path, progress: Progress) -> tuple[Teacher, list[ArmRun]]:
        """The teacher, trained first where this run is to train it."""
        recipe = self.teacher_training
        if recipe is None:
            return self._given_teacher(), []
        plan = ArmPlan(
            arm="teacher",
            seed=recipe.seed,
            folder=folder / "teacher",
            build=lambda: self._fresh_teacher(recipe),
            objective=as_objective(CrossEntropy()),
            training=recipe.training,
            train=recipe.data.for_teacher_training(),
            validation=self.splits.validation.for_teacher_training(),
            test=self.splits.test.for_teacher_training(),
            fingerprint={**self.fingerprint, **_held_out_identity(self.splits)},
        )
        run = run_arm(plan, progress)
        return self.trained_teacher(folder), [run]

    def trained_teacher(self, folder: Path) -> Teacher:
        """The teacher of a run in ``folder``: the given one, or the one that the run trained there."""
        recipe = self.teacher_training
        if recipe is None:
            return self._given_teacher()
        return ModuleTeacher(load_student(self._fresh_teacher(recipe), folder / "teacher"))

    def _given_teacher(self) -> Teacher:
        if isinstance(self.teacher, nn.Module):
            return ModuleTeacher(self.teacher)
        if not hasattr(self.teacher, "signals"):
            raise ConfigError(
                f"teacher is a {type(self.teacher).__name__}, expected an nn.Module or a teacher; a function that makes a module needs "
                "teacher_training, or it would teach with random weights"
            )
        return self.teacher  # pyright: ignore[reportReturnType]

    def _run_arms(self, folder: Path, teacher: Teacher, progress: Progress) -> dict[str, list[ArmRun]]:
        kept: list[Teacher] = []

        def answering() -> Teacher:
            # Where the teacher sees the same thing in every epoch it is asked once, for all arms and seeds.
            if not kept:
                kept.append(
                    teacher if self.splits.train.teacher_varies else MemoryTeacher.of(teacher, self.splits.train)
                )
            return kept[0]

        identity = {
            **self.fingerprint,
            **_held_out_identity(self.splits),
            "teacher": teacher_identity(teacher),
        }
        plans = [
            ArmPlan(
                arm=arm,
                seed=seed,
                folder=folder / arm / f"seed-{seed}",
                build=self.student,
                objective=objective,
                training=self.training,
                train=self.splits.train,
                validation=self.splits.validation,
                test=self.splits.test,
                teacher=answering,
                given_teacher=teacher,
                processing=self.processing,
                fingerprint=identity,
            )
            for arm, objective in self.objectives.items()
            for seed in self.seed_list
        ]
        runs = run_all(plans, progress)
        return {arm: [run for run in runs if run.arm == arm] for arm in self.objectives}

    def _class_names(self, count: int) -> list[str]:
        """A name for each of the models' classes, of which the data may not show the last."""
        named = self.splits.class_labels()
        return named + [str(index) for index in range(len(named), count)]

    def _measure_cost(self, teacher: Teacher) -> Json:
        test = self.splits.test.for_evaluation()
        batch = test.batch(torch.arange(min(32, len(test))))
        student = build_seeded(self.student, self.seed_list[0])
        module = deployed_module(teacher)
        if module is None:
            costs = measure_cost({"student": student}, {"student": batch["student"]})
        else:
            inputs = {"teacher": batch.get("teacher", batch["student"]), "student": batch["student"]}
            with on_cpu(module):
                costs = measure_cost({"teacher": module, "student": student}, inputs)
        return {name: cost.to_json() for name, cost in costs.items()}

    def _describe(self, arm: str) -> str:
        if arm == "teacher":
            return "the teacher"
        return {
            JUDGED: "the student, taught by the teacher",
            "scratch": "the same student, trained on the labels alone",
            "label_smoothing": f"the same student, trained on the labels smoothed by {self.label_smoothing:g}",
        }.get(arm, "the same student, trained with another objective")

    def _config_text(self) -> str:
        if self.config is not None:
            return to_yaml(self.config)
        recipe = self.teacher_training
        extra = [{name: as_objective(objective).describe()} for name, objective in self.extra_arms.items()]
        config: Json = {
            "title": self.title,
            **({"teacher": {"training": recipe.training, "seed": recipe.seed}} if recipe is not None else {}),
            "objective": as_objective(self.objective).describe(),
            "training": self.training,
            "study": {"seeds": self.seed_list, "arms": [*self.arms, *extra], "label_smoothing": self.label_smoothing},
            "gates": vars(self.gates),
        }
        return to_yaml(config)


@contextmanager
def _alone_in(folder: Path) -> Generator[None]:
    """Hold the output folder against a second run, which would delete this one's checkpoints."""
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


def _transfer_counts(train: TransferSet) -> Json:
    return {"examples": len(train), "labelled": train.labelled, "unlabelled": len(train) - train.labelled}


def _data_digest(splits: Splits) -> str:
    return sha256(b"".join(_bytes_of(part) for part in (splits.train, splits.validation, splits.test))).hexdigest()


def _bytes_of(part: TransferSet) -> bytes:
    return part.ids.numpy().tobytes() + part.known_labels.numpy().tobytes()


def _held_out_identity(splits: Splits) -> Json:
    """What must not change under finished arms besides what they learnt from: what they were measured on."""
    return {
        name: f"{len(part)} examples, {sha256(_bytes_of(part)).hexdigest()[:16]}"
        for name, part in (("validation_set", splits.validation), ("test_set", splits.test))
    }
