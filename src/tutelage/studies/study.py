"""``Study``: arms × seeds on equal budgets, from a transfer set to ``result.json`` and a verdict."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tutelage import __version__
from tutelage.data import Splits, TransferSet
from tutelage.errors import ConfigError
from tutelage.evaluation import measure_cost
from tutelage.models import class_logits
from tutelage.models.saving import load_student
from tutelage.objectives import CrossEntropy, Objective, Term, as_objective
from tutelage.signals import MixtureLogits
from tutelage.studies.arm import ArmPlan, ArmRun, Progress, Silent, build_seeded, predict, run_arm, weights_digest
from tutelage.studies.evidence import collect_evidence
from tutelage.studies.gates import JUDGED, Gates, judge
from tutelage.studies.records import arm_record, comparisons, provenance
from tutelage.studies.yaml_text import to_yaml
from tutelage.teachers import EnsembleTeacher, MemoryTeacher, ModuleTeacher, Teacher
from tutelage.training.checkpoints import write_atomically

RESULT = "result.json"
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

    Raises:
        ConfigError: unknown or no arms, no seeds, controls without a single label.
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

    def __post_init__(self) -> None:
        unknown = [arm for arm in self.arms if arm not in (JUDGED, *CONTROLS)]
        if unknown or JUDGED not in self.arms:
            raise ConfigError(
                f"arms are {list(self.arms)}, expected 'kd' with any of {', '.join(CONTROLS)}; other methods are extra arms, each with "
                "its objective"
            )
        reserved = sorted({JUDGED, "teacher", *CONTROLS} & set(self.extra_arms))
        if reserved:
            raise ConfigError(f"an extra arm cannot be called {reserved[0]!r}: that name is taken")
        if not self.seed_list or len(set(self.seed_list)) < len(self.seed_list):
            raise ConfigError(f"seeds are {self.seeds}: expected a number of at least 1, or different seeds")
        if self.splits.train.labelled == 0 and any(arm in CONTROLS for arm in self.arms):
            raise ConfigError(
                "the transfer set has no labels, so the controls 'scratch' and 'label_smoothing' have nothing to learn from; give some "
                "labels, or set arms to [kd] (the verdict can then at best be 'hold')"
            )
        for owned in ("output_dir", "seed", "data_seed", "resume_from_checkpoint"):
            if owned in self.training:
                raise ConfigError(
                    f"training.{owned} is the study's to set (seeds and folders of all arms); leave it out"
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
            CheckpointError: ``out`` holds a study with other settings; the message shows the difference.
        """
        folder = Path(out)
        progress = progress if progress is not None else Silent()
        started, clock = datetime.now(UTC), time.perf_counter()
        for objective in self.objectives.values():
            objective.validate()
        self._check_classes()
        config_text = self._config_text()
        teacher, teacher_run = self._ready_teacher(folder, progress)
        teacher_logits = _teacher_predictions(teacher, self.splits.test)
        runs = self._run_arms(folder, teacher, progress)
        logits = {"teacher": teacher_logits[None]}
        logits |= {arm: np.stack([run.test_logits for run in arm_runs]) for arm, arm_runs in runs.items()}
        labels = self.splits.test.known_labels.numpy()
        arms = {"teacher": arm_record(self._describe("teacher"), teacher_run, logits["teacher"], None, labels)}
        for arm, arm_runs in runs.items():
            arms[arm] = arm_record(self._describe(arm), arm_runs, logits[arm], teacher_logits, labels)
        compared = comparisons(JUDGED, logits, labels)
        cost = self._measure_cost(teacher)
        curves = {**({"teacher": teacher_run} if teacher_run else {}), **runs}
        result: Json = {
            "tutelage": __version__,
            "config_sha256": sha256(config_text.encode()).hexdigest(),
            "started": started.isoformat(timespec="seconds"),
            "seconds": time.perf_counter() - clock,
            "title": self.title,
            "task": "classification",
            "provenance": provenance(self.command, config_text, _data_digest(self.splits)),
            "splits": {name: len(getattr(self.splits, name)) for name in ("train", "validation", "test")},
            "transfer": _transfer_counts(self.splits.train),
            "classes": self.splits.class_labels(),
            "objective": as_objective(self.objective).describe(),
            "arms": arms,
            "comparisons": compared,
            "cost": cost,
            "verdict": judge(self.gates, arms, compared, cost),
            "evidence": collect_evidence(curves, logits, self.splits.test, self.splits.class_labels(), JUDGED),
        }
        write_atomically(folder / "config.yaml", config_text)
        write_atomically(folder / RESULT, json.dumps(result, indent=1, allow_nan=False))
        return result

    def _check_classes(self) -> None:
        """Find out before anything is trained that teacher, student and data do not speak of the same classes."""
        batch = self.splits.validation.for_evaluation().batch(torch.arange(2))
        classes = {"student": _class_count(build_seeded(self.student, self.seed_list[0]), batch["student"])}
        if isinstance(self.teacher, nn.Module | ModuleTeacher):
            module = self.teacher.model if isinstance(self.teacher, ModuleTeacher) else self.teacher
            classes["teacher"] = _class_count(module, batch.get("teacher", batch["student"]))
        elif self.teacher_training is not None and not isinstance(self.teacher, Teacher):
            module = build_seeded(self.teacher, self.teacher_training.seed)
            classes["teacher"] = _class_count(module, batch.get("teacher", batch["student"]))
        known = self.splits.classes
        if len(set(classes.values())) > 1 or min(classes.values()) < known:
            said = ", ".join(f"the {who} has {count:,} classes" for who, count in classes.items())
            raise ConfigError(
                f"{said}, and the data {known:,}: rows cannot be compared class by class; give both models one output for each class"
            )

    def _ready_teacher(self, folder: Path, progress: Progress) -> tuple[Teacher, list[ArmRun]]:
        """The teacher, trained first where this run is to train it."""
        recipe = self.teacher_training
        if recipe is None:
            return self._given_teacher(), []
        if isinstance(self.teacher, nn.Module) or not callable(self.teacher):
            raise ConfigError("with teacher_training, teacher must be a function that makes the fresh module")
        plan = ArmPlan(
            arm="teacher",
            seed=recipe.seed,
            folder=folder / "teacher",
            build=self.teacher,
            objective=as_objective(CrossEntropy()),
            training=recipe.training,
            train=recipe.data.for_teacher_training(),
            validation=self.splits.validation.for_teacher_training(),
            test=self.splits.test.for_teacher_training(),
            fingerprint=self.fingerprint,
        )
        run = run_arm(plan, progress)
        return ModuleTeacher(load_student(build_seeded(self.teacher, recipe.seed), plan.folder)), [run]

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

        identity = {**self.fingerprint, "teacher": _teacher_identity(teacher)}
        return {
            arm: [
                run_arm(
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
                        processing=self.processing,
                        fingerprint=identity,
                    ),
                    progress,
                )
                for seed in self.seed_list
            ]
            for arm, objective in self.objectives.items()
        }

    def _measure_cost(self, teacher: Teacher) -> Json:
        test = self.splits.test.for_evaluation()
        batch = test.batch(torch.arange(min(32, len(test))))
        models: dict[str, nn.Module] = {"student": build_seeded(self.student, self.seed_list[0])}
        inputs: Json = {"student": batch["student"]}
        module = _module_of(teacher)
        if module is not None:
            models = {"teacher": module, **models}
            inputs["teacher"] = batch.get("teacher", batch["student"])
        return {name: cost.to_json() for name, cost in measure_cost(models, inputs).items()}

    def _describe(self, arm: str) -> str:
        if arm == "teacher":
            return "the teacher"
        return {
            JUDGED: "the student, taught by the teacher",
            "scratch": "the same student, trained on the labels alone",
            "label_smoothing": f"the same student, trained on the labels smoothed by {self.label_smoothing:g}",
        }.get(arm, "the same student, trained with another objective")

    def _config_text(self) -> str:
        config = (
            self.config
            if self.config is not None
            else {
                "title": self.title,
                "objective": as_objective(self.objective).describe(),
                "training": dict(self.training),
                "study": {"seeds": self.seed_list, "arms": list(self.objectives)},
            }
        )
        return to_yaml(config)


def _class_count(model: nn.Module, inputs: Any) -> int:
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        was_training = model.training
        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        moved = inputs.to(device) if isinstance(inputs, torch.Tensor) else {k: v.to(device) for k, v in inputs.items()}
        count = class_logits(model.eval(), moved).shape[1]
        model.train(was_training)
    return count


class _EnsembleModule(nn.Module):
    """An ensemble as it would be deployed: every member runs, and their probabilities are averaged."""

    def __init__(self, members: Sequence[nn.Module], weights: torch.Tensor) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.register_buffer("weights", weights.float(), persistent=False)

    def forward(self, inputs: Any) -> torch.Tensor:
        """Log-probabilities ``[B, C]``."""
        values = torch.stack([class_logits(member, inputs) for member in self.members])
        return MixtureLogits(values, self.get_buffer("weights")).at(1.0)


def _module_of(teacher: Teacher) -> nn.Module | None:
    """The module that would have to be deployed instead of the student, where there is one."""
    if isinstance(teacher, ModuleTeacher):
        return teacher.model
    if isinstance(teacher, EnsembleTeacher):
        modules = [_module_of(member) for member in teacher.members]
        found = [module for module in modules if module is not None]
        return _EnsembleModule(found, teacher.weights) if len(found) == len(modules) else None
    return None


def _teacher_identity(teacher: Teacher) -> str:
    module = _module_of(teacher)
    return f"{type(teacher).__name__} {weights_digest(module) if module is not None else ''}".strip()


def _teacher_predictions(teacher: Teacher, test: TransferSet) -> NDArray[np.float32]:
    """Logits ``[N, C]`` of the teacher on the test split (effective ones at T = 1 for an ensemble)."""
    module = teacher.model if isinstance(teacher, ModuleTeacher) else None
    if module is not None:
        return predict(module, test.for_teacher_training()).numpy()
    plain = test.for_evaluation()
    parts: list[torch.Tensor] = []
    for start in range(0, len(plain), 512):
        scores = teacher.signals(plain.batch(torch.arange(start, min(start + 512, len(plain))))).logits
        if scores is None:
            raise ConfigError("the teacher gives no logits: it cannot be compared with")
        parts.append(scores.at(1.0).float().cpu())
    return torch.cat(parts).numpy()


def _transfer_counts(train: TransferSet) -> Json:
    return {"examples": len(train), "labelled": train.labelled, "unlabelled": len(train) - train.labelled}


def _data_digest(splits: Splits) -> str:
    digest = sha256()
    for part in (splits.train, splits.validation, splits.test):
        digest.update(part.ids.numpy().tobytes() + part.known_labels.numpy().tobytes())
    return digest.hexdigest()
