"""One arm with one seed: train, predict, commit. Cut off anywhere, it continues; once committed, it is never run again."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import EvalPrediction, PrinterCallback, TrainerCallback

from tutelage.data import TransferSet, shortest_first
from tutelage.errors import CheckpointError
from tutelage.evaluation import classification_metrics
from tutelage.files import sha256_of, write_atomically
from tutelage.models import class_logits, on_device
from tutelage.models.saving import name_classes, save_student
from tutelage.objectives import Objective
from tutelage.teachers import Teacher
from tutelage.training import DistillationArguments, DistillationTrainer
from tutelage.training.identity import compare_runs

RECORD = "record.json"
PREDICTIONS = "predictions.safetensors"
CHECKPOINTS = "checkpoints"
#: The checkpoints of a stack of students, in the folder of one of them.
TOGETHER = "together"

#: What a study uses where the user's ``training`` says nothing: regular looks and checkpoints, nothing printed.
TRAINING_DEFAULTS: dict[str, Any] = {
    "logging_strategy": "steps",
    "logging_steps": 0.02,
    "eval_strategy": "steps",
    "eval_steps": 0.05,
    "save_strategy": "steps",
    "save_steps": 0.1,
    "save_total_limit": 2,
    "per_device_eval_batch_size": 512,
    "report_to": "none",
    "disable_tqdm": True,
}


class Progress(Protocol):
    """Who wants to know how far a study is."""

    def started(self, what: str, total_steps: int, steps_done: int) -> None:
        """A training begins, or goes on at ``steps_done``; ``total_steps`` is 0 where nobody knows how many there will be."""
        ...

    def advanced(self, steps_done: int) -> None:
        """It has made so many steps."""
        ...

    def finished(self, what: str, outcome: str) -> None:
        """It is done, now or in an earlier run."""
        ...


class Silent:
    """Nobody does."""

    def started(self, what: str, total_steps: int, steps_done: int) -> None:
        """Say nothing."""

    def advanced(self, steps_done: int) -> None:
        """Say nothing."""

    def finished(self, what: str, outcome: str) -> None:
        """Say nothing."""


@dataclass(frozen=True)
class ArmRun:
    """What one arm with one seed left behind.

    Args:
        arm: its name.
        seed: its seed.
        seconds: wall-clock seconds of training, in the session that finished it; of a student that was trained together
            with others, its equal share of theirs.
        steps: optimiser steps.
        log: the trainer's log lines.
        test_logits: ``[N, C]`` float32 on the test split.
        folder: where the student lies.
    """

    arm: str
    seed: int
    seconds: float
    steps: int
    log: list[dict[str, Any]]
    test_logits: NDArray[np.float32]
    folder: Path


@dataclass(frozen=True)
class ArmPlan:
    """Everything that decides one arm with one seed.

    Args:
        arm: its name.
        seed: of initialisation, data order and dropout.
        folder: where it is left.
        build: makes the fresh student.
        objective: what it minimises.
        training: arguments of :class:`DistillationArguments`, by name.
        train, validation, test: the splits, as this model sees them.
        teacher: gives the teacher when it is first needed; None for an arm without one.
        given_teacher: the teacher itself, of whom ``teacher`` may give the kept answers.
        processing: saved beside the student (a tokenizer), or None.
        fingerprint: more facts that must not change between a run and its resumption.
    """

    arm: str
    seed: int
    folder: Path
    build: Callable[[], nn.Module]
    objective: Objective
    training: Mapping[str, Any]
    train: TransferSet
    validation: TransferSet
    test: TransferSet
    teacher: Callable[[], Teacher] | None = None
    given_teacher: Teacher | None = None
    processing: Any = None
    fingerprint: Mapping[str, Any] = field(default_factory=dict[str, Any])


def run_arm(plan: ArmPlan, progress: Progress) -> ArmRun:
    """Train one arm with one seed, or continue it, or read what it left if it is done.

    Raises:
        CheckpointError: it was begun or done with other settings; the message shows the difference.
    """
    name = plan_name(plan)
    student = build_seeded(plan.build, plan.seed)
    done = read_arm(plan.folder)
    trainer = trainer_for(plan, student, done=done is not None)
    identity = trainer.identify()
    if done is not None:
        run, before = done
        clear_workings(plan.folder)  # the trainer made its folder anew
        compare_runs(before, identity, plan.folder)
        progress.finished(name, "done in an earlier run")
        return run
    trainer.add_callback(Reporter(name, progress))
    started = time.perf_counter()
    trainer.train(resume_from_checkpoint=True)
    seconds = time.perf_counter() - started
    return finish(plan, student, identity, seconds, trainer.state.global_step, trainer.state.log_history, progress)


def trainer_for(plan: ArmPlan, student: nn.Module, *, done: bool = False) -> DistillationTrainer:
    """The trainer of a plan's student, which nobody has trained yet.

    Args:
        plan: the plan.
        student: fresh, of :func:`build_seeded`.
        done: the arm is finished, and only to be known again.
    """
    arguments: dict[str, Any] = {**TRAINING_DEFAULTS, **plan.training, "seed": plan.seed, "data_seed": plan.seed}
    trainer = DistillationTrainer(
        model=student,
        args=DistillationArguments(output_dir=str(plan.folder / CHECKPOINTS), **arguments),
        objective=plan.objective,
        train_dataset=plan.train,
        eval_dataset=_shortest_first(plan.validation),
        teacher=_teacher_for(plan, done),
        fingerprint={"initial_weights": weights_digest(student), **plan.fingerprint},
        compute_metrics=validation_metrics,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _shortest_first(held_out: TransferSet) -> TransferSet:
    """The set in an order in which texts are hardly padded; itself, and no copy of it, where its examples are all of one shape."""
    order = shortest_first(held_out.inputs)
    return held_out if torch.equal(order, torch.arange(len(order))) else held_out.select(order)


def finish(
    plan: ArmPlan,
    student: nn.Module,
    identity: Mapping[str, Any],
    seconds: float,
    steps: int,
    log: list[dict[str, Any]],
    progress: Progress,
    together: int = 1,
) -> ArmRun:
    """Open the test split for a trained student, and commit the arm.

    Args:
        plan: what was asked for.
        student: trained.
        identity: of its trainer, before it was trained.
        seconds: the training's wall-clock seconds; a stack's, divided by its students.
        steps: optimiser steps.
        log: the log's lines.
        progress: who watches.
        together: how many students were trained in one stack.
    """
    logits = predict(student, plan.test)
    run = ArmRun(plan.arm, plan.seed, seconds, steps, log, logits.numpy(), plan.folder)
    _commit(run, student, plan, identity, together)
    accuracy = float((logits.argmax(1) == plan.test.known_labels).float().mean())
    took = f"{seconds:.0f} s" if together == 1 else f"{seconds:.1f} s as one of {together} at once"
    # a trial that is to be chosen from is measured on the validation split in place of the test split
    split = "validation" if plan.test is plan.validation else "test"
    progress.finished(plan_name(plan), f"{split} accuracy {accuracy:.1%} after {steps} steps, {took}")
    return run


def plan_name(plan: ArmPlan) -> str:
    """What a plan is called to whoever watches."""
    return plan.arm if plan.folder.name == plan.arm else f"{plan.arm}, seed {plan.seed}"


def clear_workings(folder: Path) -> None:
    """Remove the checkpoints of a finished arm, its own and those of a stack that it hosted."""
    for name in (CHECKPOINTS, TOGETHER):
        shutil.rmtree(folder / name, ignore_errors=True)


def _teacher_for(plan: ArmPlan, done: bool) -> Teacher | None:
    if not any(need.startswith("teacher.") for need in plan.objective.needs):
        return None
    # A finished arm only needs to know that the teacher is still the same one: a few examples tell.
    return plan.given_teacher if done or plan.teacher is None else plan.teacher()


def read_arm(folder: Path) -> tuple[ArmRun, Mapping[str, Any]] | None:
    """What an arm left, with its fingerprint; None where it is not done."""
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text())
        for name, digest in record["files"].items():
            if sha256_of(folder / name) != digest:
                raise ValueError(f"{name} is not what was written, its hash differs")
        logits = load_file(folder / PREDICTIONS)["logits"]
        run = ArmRun(
            record["arm"], record["seed"], record["seconds"], record["steps"], record["log"], logits.numpy(), folder
        )
        return run, record["fingerprint"]
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder} is damaged ({error}): what it says could not be trusted; remove {folder} to train it anew"
        ) from error


def build_seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A fresh model whose initialisation depends on ``seed`` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def predict(model: nn.Module, transfer_set: TransferSet, batch_size: int = 512) -> Tensor:
    """Logits ``[N, C]``, float32 on the CPU, in eval mode and without augmentation."""
    plain = transfer_set.for_evaluation()
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    was_training = model.training
    model.eval()
    order = shortest_first(plain.inputs)
    parts: list[Tensor] = []
    with torch.no_grad():
        for rows in order.split(batch_size):
            parts.append(class_logits(model, on_device(plain.batch(rows)["student"], device)).float().cpu())
    model.train(was_training)
    return torch.cat(parts)[order.argsort()]


def weights_digest(model: nn.Module) -> str:
    """A short hash of a model's parameters and buffers."""
    digest = sha256()
    for name, values in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _commit(run: ArmRun, student: nn.Module, plan: ArmPlan, fingerprint: Mapping[str, Any], together: int) -> None:
    name_classes(student, plan.train.class_names)
    save_student(student, run.folder, plan.processing)
    save_file(
        {"ids": plan.test.ids, "labels": plan.test.known_labels, "logits": torch.from_numpy(run.test_logits)},
        str(run.folder / PREDICTIONS),
    )
    record = {
        "arm": run.arm,
        "seed": run.seed,
        "seconds": run.seconds,
        "steps": run.steps,
        "fingerprint": dict(fingerprint),
        "files": {
            path.name: sha256_of(path)
            for path in sorted(run.folder.iterdir())
            if path.is_file() and path.name != RECORD
        },
        "log": run.log,
        # seconds are then a share of all students' seconds, and no measurement of this one
        **({"together": together} if together > 1 else {}),
    }
    write_atomically(run.folder / RECORD, json.dumps(record, indent=1, sort_keys=True))
    clear_workings(run.folder)


def validation_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """What is watched while an arm trains."""
    return classification_metrics(np.asarray(prediction.predictions), np.asarray(prediction.label_ids))


class Reporter(TrainerCallback):
    """Passes the trainer's steps on to whoever watches the study; where the time ends a training, not how many there will be."""

    def __init__(self, name: str, progress: Progress, *, counted: bool = True) -> None:
        self._name = name
        self._progress = progress
        self._counted = counted

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        self._progress.started(self._name, state.max_steps if self._counted else 0, state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        self._progress.advanced(state.global_step)
