"""One arm of a language study with one seed: trained, measured and committed; cut off anywhere, it goes on."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel, PrinterCallback

from tutelage.data import TransferSet
from tutelage.errors import CheckpointError
from tutelage.files import sha256_of, write_atomically
from tutelage.models.saving import load_student, save_student
from tutelage.objectives import Objective
from tutelage.signals import NO_LABEL, ClassMap
from tutelage.studies.arm import (
    CHECKPOINTS,
    RECORD,
    Progress,
    Reporter,
    build_seeded,
    clear_workings,
    weights_digest,
)
from tutelage.studies.language.budgets import LANGUAGE_DEFAULTS, TIMED_DEFAULTS, time_left
from tutelage.studies.language.measuring import MEASURED, Exam, Measured
from tutelage.studies.language.speaking import ModuleSpeaker
from tutelage.studies.teaching import listens
from tutelage.teachers import Teacher
from tutelage.training import DistillationArguments, DistillationTrainer
from tutelage.training.identity import compare_runs
from tutelage.training.on_policy import OnPolicy
from tutelage.training.time_budget import TimeBudget, time_budget

#: Where an adapter lies in a student's folder, whose own weights have it merged in.
ADAPTER = "adapter"

Json = dict[str, Any]


@dataclass(frozen=True)
class LanguageRun:
    """What one arm with one seed left behind.

    Args:
        arm: its name.
        seed: its seed; None for the teacher.
        seconds: of training, in the session that finished it; with a time budget, those that count.
        steps: optimiser steps.
        tokens: supervised tokens learnt from, repetitions included.
        generation_share: of the training's time; None where the student wrote nothing.
        log: the trainer's log lines.
        measured: on the test split.
        folder: where the student lies.
    """

    arm: str
    seed: int | None
    seconds: float | None
    steps: int | None
    tokens: int | None
    generation_share: float | None
    log: list[Json]
    measured: Measured
    folder: Path


@dataclass(frozen=True)
class Done:
    """What an arm left that is done.

    Args:
        run: it; of another exam, with what that one found.
        fingerprint: what decided its weights.
        asked: whether this very exam was what it was asked.
    """

    run: LanguageRun
    fingerprint: Mapping[str, Any]
    asked: bool


@dataclass(frozen=True)
class LanguagePlan:
    """Everything that decides one arm with one seed.

    Args:
        arm: its name.
        seed: of initialisation, data order and dropout.
        folder: where it is left.
        build: makes the fresh student.
        objective: what it minimises.
        training: arguments of :class:`DistillationArguments`, by name.
        train, validation: as this student sees them.
        teacher: whom it hears; None for nobody.
        speaker: the student as one that can be asked.
        tokenizer: saved beside it.
        on_policy: where it writes completions itself.
        seconds: of training; None where ``training`` alone sets the budget.
        class_map: which classes student and teacher share; None for all.
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
    teacher: Teacher | None
    speaker: Callable[[nn.Module], ModuleSpeaker]
    tokenizer: Any
    on_policy: OnPolicy | None = None
    seconds: float | None = None
    class_map: ClassMap | None = None
    fingerprint: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def name(self) -> str:
        """What it is called to whoever watches."""
        return f"{self.arm}, seed {self.seed}"


def run_language_arm(plan: LanguagePlan, exam: Exam, progress: Progress) -> LanguageRun:
    """Train one arm with one seed, or continue it, or read what it left if it is done; its student is asked again where the exam is
    another one.

    Raises:
        CheckpointError: it was begun or done with other settings; the message shows the difference.
    """
    # the students before it are gone: two of them beside a teacher may be more than memory holds
    gc.collect()
    done = read_language_arm(plan.folder, exam)
    student = build_seeded(plan.build, plan.seed)
    trainer = language_trainer(plan, student)
    identity = trainer.identify()
    if done is not None:
        clear_workings(plan.folder)  # the trainer made its folder anew
        compare_runs(done.fingerprint, identity, plan.folder)
        if not done.asked:
            return _asked_anew(plan, done, student, exam, progress)
        progress.finished(plan.name, "done in an earlier run")
        return done.run
    trainer.add_callback(Reporter(plan.name, progress, counted=plan.seconds is None))
    started = time.perf_counter()
    trainer.train(resume_from_checkpoint=True)
    took = time.perf_counter() - started
    steps, log = trainer.state.global_step, trainer.state.log_history
    epochs = float(trainer.state.epoch or 0.0)
    budget = time_budget(trainer.callback_handler.callbacks)
    del trainer
    run = LanguageRun(
        arm=plan.arm,
        seed=plan.seed,
        seconds=took if budget is None else budget.spent,
        steps=steps,
        tokens=_tokens(plan, epochs, log),
        generation_share=_share_written(log),
        log=log,
        measured=exam.of_student(student, plan.speaker(student)),
        folder=plan.folder,
    )
    save_language_student(student, plan.folder, plan.tokenizer)
    commit_language_run(run, identity, exam)
    early = time_left(run.seconds, plan.seconds)
    took_words = f"{run.seconds:.0f} s" if early is None else early
    progress.finished(plan.name, f"{in_words(run.measured)} after {steps} steps, {took_words}")
    return run


def _asked_anew(plan: LanguagePlan, done: Done, fresh: nn.Module, exam: Exam, progress: Progress) -> LanguageRun:
    """The run of a student that is done, with what another exam finds of it."""
    progress.started(plan.name, 1, 0)
    student = load_language_student(fresh, plan.folder)
    run = replace(done.run, measured=exam.of_student(student, plan.speaker(student)))
    commit_language_run(run, done.fingerprint, exam)
    progress.finished(plan.name, f"{in_words(run.measured)}, trained in an earlier run")
    return run


def language_trainer(plan: LanguagePlan, student: nn.Module) -> DistillationTrainer:
    """The trainer of a plan's student, which nobody has trained yet."""
    defaults = LANGUAGE_DEFAULTS if plan.seconds is None else TIMED_DEFAULTS
    arguments: Json = {**defaults, **plan.training, "seed": plan.seed, "data_seed": plan.seed}
    budget = {"seconds": plan.seconds} if plan.seconds is not None else {}
    trainer = DistillationTrainer(
        model=student,
        args=DistillationArguments(output_dir=str(plan.folder / CHECKPOINTS), **arguments),
        objective=plan.objective,
        train_dataset=plan.train,
        eval_dataset=plan.validation,
        teacher=plan.teacher if listens(plan.objective) else None,
        class_map=plan.class_map,
        on_policy=plan.on_policy,
        fingerprint={"initial_weights": weights_digest(student), **budget, **plan.fingerprint},
        callbacks=[TimeBudget(plan.seconds)] if plan.seconds is not None else [],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def save_language_student(student: nn.Module, folder: Path, tokenizer: Any) -> None:
    """Save a student so that ``AutoModelForCausalLM.from_pretrained(folder)`` loads it; an adapter besides, in a folder of its own."""
    if hasattr(student, "peft_config"):
        from tutelage.models.adapters import merged

        save_student(student, folder / ADAPTER)
        student = merged(student)
    save_student(student, folder, tokenizer)


def load_language_student(fresh: nn.Module, folder: Path) -> nn.Module:
    """What :func:`save_language_student` left, in eval mode; adapters merged in.

    Args:
        fresh: an untrained student of the same making, whose weights may be replaced.
        folder: where it lies.
    """
    if hasattr(fresh, "peft_config"):
        from tutelage.models.adapters import merged

        fresh = merged(fresh)
    if isinstance(fresh, PreTrainedModel):
        return type(fresh).from_pretrained(folder, dtype=fresh.dtype).eval()
    return load_student(fresh, folder).eval()


def read_language_arm(folder: Path, exam: Exam) -> Done | None:
    """What an arm left; None where it is not done.

    Raises:
        CheckpointError: its files are not what was written, or it was tested on other examples.
    """
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        for name, digest in record["files"].items():
            if sha256_of(folder / name) != digest:
                raise ValueError(f"{name} is not what was written, its hash differs")
        numbers = next(name for name in record["files"] if _holds_numbers(name))
        measured = Measured.load(folder / numbers, record["answers"], exam.ids)
        known = {
            name: record[name] for name in ("arm", "seed", "seconds", "steps", "tokens", "generation_share", "log")
        }
        run = LanguageRun(**known, measured=measured, folder=folder)
        # once a fact among them: what is asked of a student that is done decides none of its weights
        decisive = {name: fact for name, fact in record["fingerprint"].items() if name != "measured"}
        return Done(run, decisive, asked=numbers == exam.file)
    except (OSError, ValueError, KeyError, StopIteration, SafetensorError) as error:
        raise CheckpointError(
            f"{folder} is damaged ({error}): what it says could not be trusted; remove {folder} to have it made anew"
        ) from error


def commit_language_run(run: LanguageRun, fingerprint: Mapping[str, Any], exam: Exam) -> None:
    """Write what an arm left; from then on it is done. What another exam found before stays until the record names the new file."""
    run.folder.mkdir(parents=True, exist_ok=True)
    run.measured.save(run.folder / exam.file, exam.ids)
    known = {name: value for name, value in vars(run).items() if name not in ("measured", "folder")}
    record = {
        **known,
        "answers": list(run.measured.answers),
        "fingerprint": dict(fingerprint),
        "files": {name: sha256_of(run.folder / name) for name in _files(run.folder, exam)},
    }
    write_atomically(run.folder / RECORD, json.dumps(record, indent=1, sort_keys=True))
    for path in run.folder.iterdir():
        if _holds_numbers(path.name) and path.name != exam.file:
            path.unlink()
    clear_workings(run.folder)


def in_words(measured: Measured) -> str:
    """The numbers that a watcher wants to see first."""
    metrics = measured.metrics
    said = [f"test score {metrics['score']:.3g}"] if "score" in metrics else []
    said += [f"KL {metrics['kl']:.3g}"] if "kl" in metrics else []
    said += [f"perplexity {metrics['perplexity']:.4g}"] if "perplexity" in metrics else []
    return ", ".join(said) or "measured"


def _files(folder: Path, exam: Exam) -> Sequence[str]:
    """Everything that is left for good, by its path in the folder."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != RECORD)
    names = (path.relative_to(folder) for path in paths)
    kept = (name for name in names if name.parts[0] != CHECKPOINTS)
    return [name.as_posix() for name in kept if not _holds_numbers(str(name)) or str(name) == exam.file]


def _holds_numbers(name: str) -> bool:
    return name.startswith(MEASURED) and name.endswith(".safetensors")


def _tokens(plan: LanguagePlan, epochs: float, log: Sequence[Mapping[str, Any]]) -> int:
    """Supervised tokens learnt from: of what was given, as far as it was not replaced, and of what the student wrote."""
    given = epochs * int((plan.train.known_labels != NO_LABEL).sum())
    share = plan.on_policy.share if plan.on_policy is not None else 0.0
    return round(given * (1.0 - share) + sum(line.get("on_policy_tokens", 0.0) for line in log))


def _share_written(log: Sequence[Mapping[str, Any]]) -> float | None:
    shares = [line["generation_share"] for line in log if "generation_share" in line]
    return sum(shares) / len(shares) if shares else None
