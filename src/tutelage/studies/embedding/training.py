"""One arm of an embedding study with one seed: trained, asked for the test texts and committed; cut off anywhere, it goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import EvalPrediction, PrinterCallback

from tutelage.data import Tokenise, shortest_first
from tutelage.errors import CheckpointError
from tutelage.evaluation.embeddings import correlation, pair_similarities
from tutelage.files import sha256_of, write_atomically
from tutelage.objectives import Objective
from tutelage.studies.arm import (
    CHECKPOINTS,
    RECORD,
    TRAINING_DEFAULTS,
    Progress,
    Reporter,
    build_seeded,
    clear_workings,
    weights_digest,
)
from tutelage.studies.embedding.data import TextSplit
from tutelage.studies.embedding.encoding import EMBEDDING, EmbeddingModel, encode
from tutelage.studies.embedding.measuring import some_pairs
from tutelage.studies.embedding.taught import KeptEmbeddings
from tutelage.training import DistillationArguments, DistillationTrainer
from tutelage.training.checkpoints import compare_fingerprints
from tutelage.training.identity import compare_runs

#: The test texts' embeddings, beside what they were measured of.
MEASURED = "test-embeddings.safetensors"

#: What a study uses where the user's ``training`` says nothing.
EMBEDDING_DEFAULTS: dict[str, Any] = {**TRAINING_DEFAULTS, "per_device_eval_batch_size": 64}

#: Pairs of texts on which a training is watched.
_WATCHED_PAIRS = 2000

Json = dict[str, Any]
Values = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class EmbeddingRun:
    """What one arm with one seed left behind.

    Args:
        arm: its name.
        seed: its seed; None for the teacher.
        seconds: of training, in the session that finished it.
        steps: optimiser steps.
        log: the trainer's log lines.
        test: its embeddings ``[N, D]`` of the test texts.
        folder: where it lies.
    """

    arm: str
    seed: int | None
    seconds: float | None
    steps: int | None
    log: list[Json]
    test: Values
    folder: Path


@dataclass(frozen=True, eq=False)
class EmbeddingPlan:
    """Everything that decides one arm with one seed.

    Args:
        arm: its name.
        seed: of initialisation, data order and dropout.
        folder: where it is left.
        build: makes the fresh student.
        view: makes its inputs of texts.
        train, validation, test: the texts.
        teacher: its embeddings.
        objective: what is minimised; None for a student that is measured as it is.
        training: arguments of :class:`DistillationArguments`, by name.
        save: writes a trained student into a folder.
        fingerprint: more facts that must not change between a run and its resumption.
    """

    arm: str
    seed: int
    folder: Path
    build: Callable[[], EmbeddingModel]
    view: Tokenise
    train: TextSplit
    validation: TextSplit
    test: TextSplit
    teacher: KeptEmbeddings
    objective: Objective | None
    training: Mapping[str, Any]
    save: Callable[[EmbeddingModel, Path], None]
    fingerprint: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def name(self) -> str:
        """What it is called to whoever watches."""
        return f"{self.arm}, seed {self.seed}"


def run_embedding_arm(plan: EmbeddingPlan, progress: Progress) -> EmbeddingRun:
    """Train one arm with one seed, or continue it, or read what it left if it is done; without an objective, measure it as it is.

    Raises:
        CheckpointError: it was begun or done with other settings; the message shows the difference.
    """
    student: Any = build_seeded(plan.build, plan.seed)
    done = read_embedding_arm(plan.folder, plan.test)
    if plan.objective is None:
        return _measured(plan, student, done, progress)
    trainer = embedding_trainer(plan, student)
    identity = trainer.identify()
    if done is not None:
        clear_workings(plan.folder)  # the trainer made its folder anew
        compare_runs(done[1], identity, plan.folder)
        progress.finished(plan.name, "done in an earlier run")
        return done[0]
    trainer.add_callback(Reporter(plan.name, progress))
    started = time.perf_counter()
    trainer.train(resume_from_checkpoint=True)
    seconds = time.perf_counter() - started
    steps, log = trainer.state.global_step, trainer.state.log_history
    del trainer
    student = student.cpu()
    test = encode(student, plan.view, plan.test.texts).numpy()
    run = EmbeddingRun(plan.arm, plan.seed, seconds, steps, log, test, plan.folder)
    plan.folder.mkdir(parents=True, exist_ok=True)
    plan.save(student, plan.folder)
    commit_embedding_run(run, plan.test, identity)
    progress.finished(plan.name, f"{_in_words(plan, test)} after {steps:,} steps, {seconds:.0f} s")
    return run


def _measured(
    plan: EmbeddingPlan, student: EmbeddingModel, done: tuple[EmbeddingRun, Json] | None, progress: Progress
) -> EmbeddingRun:
    """A student that is not trained."""
    facts = {
        **plan.fingerprint,
        "initial_weights": weights_digest(student),
        "test_set": plan.test.digest,
        "teacher": plan.teacher.digest,
    }
    if done is not None:
        compare_fingerprints(done[1], facts, plan.folder)
        progress.finished(plan.name, "done in an earlier run")
        return done[0]
    progress.started(plan.name, 1, 0)
    test = encode(student, plan.view, plan.test.texts).numpy()
    run = EmbeddingRun(plan.arm, plan.seed, None, None, [], test, plan.folder)
    plan.folder.mkdir(parents=True, exist_ok=True)
    commit_embedding_run(run, plan.test, facts)
    progress.finished(plan.name, _in_words(plan, test))
    return run


def embedding_trainer(plan: EmbeddingPlan, student: EmbeddingModel) -> DistillationTrainer:
    """The trainer of a plan's student, which nobody has trained yet."""
    assert plan.objective is not None
    arguments: Json = {**EMBEDDING_DEFAULTS, **plan.training, "seed": plan.seed, "data_seed": plan.seed}
    order = shortest_first(plan.validation.texts)
    trainer = DistillationTrainer(
        model=student,
        args=DistillationArguments(output_dir=str(plan.folder / CHECKPOINTS), **arguments),
        objective=plan.objective,
        train_dataset=plan.train.seen(plan.view),
        eval_dataset=plan.validation.seen(plan.view).select(order),
        teacher=plan.teacher,
        fingerprint={
            "initial_weights": weights_digest(student),
            "validation_set": plan.validation.digest,
            "test_set": plan.test.digest,
            "teacher": plan.teacher.digest,
            **plan.fingerprint,
        },
        compute_metrics=_watching(plan.validation, plan.teacher, order),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _watching(
    validation: TextSplit, teacher: KeptEmbeddings, order: Tensor
) -> Callable[[EvalPrediction], dict[str, float]]:
    """What is watched while an arm trains: the rank correlation of similarities on the same pairs throughout.

    Args:
        validation: N texts.
        teacher: its embeddings.
        order: int64 ``[N]``, in which the texts are read.
    """
    spearman = agreement_with(teacher.of(validation.ids).numpy())
    places = order.argsort().numpy()

    def metrics(prediction: EvalPrediction) -> dict[str, float]:
        return {"spearman": spearman(np.asarray(prediction.predictions)[places])}

    return metrics


def agreement_with(teacher: Values) -> Callable[[Values], float]:
    """A function of a student's embeddings: the rank correlation of their similarities with the teacher's, on the same pairs throughout.

    Args:
        teacher: its embeddings ``[N, D]``.
    """
    pairs = some_pairs(teacher, _WATCHED_PAIRS)
    theirs = pair_similarities(teacher, pairs)
    return lambda student: float(correlation(theirs, pair_similarities(student, pairs)[None])[0])


def read_embedding_arm(folder: Path, test: TextSplit) -> tuple[EmbeddingRun, Json] | None:
    """What an arm left, with its fingerprint; None where it is not done.

    Raises:
        CheckpointError: its files are not what was written, or it was tested on other texts.
    """
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        for name, digest in record["files"].items():
            if sha256_of(folder / name) != digest:
                raise ValueError(f"{name} is not what was written, its hash differs")
        found = load_file(str(folder / MEASURED))
        known = {name: record[name] for name in ("arm", "seed", "seconds", "steps", "log")}
        run = EmbeddingRun(**known, test=found[EMBEDDING].numpy(), folder=folder)
        fingerprint = dict(record["fingerprint"])
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder} is damaged ({error}): what it says could not be trusted; remove {folder} to have it made anew"
        ) from error
    if not torch.equal(found["ids"], test.ids):
        raise CheckpointError(
            f"{folder} was tested on other texts than the test split holds now: its numbers would be paired with other texts'; bring back "
            "the data of the run, or name another folder (--out)"
        )
    return run, fingerprint


def commit_embedding_run(run: EmbeddingRun, test: TextSplit, fingerprint: Mapping[str, Any]) -> None:
    """Write what an arm left; from then on it is done."""
    save_file({"ids": test.ids, EMBEDDING: torch.from_numpy(run.test)}, str(run.folder / MEASURED))
    files = sorted(path for path in run.folder.rglob("*") if path.is_file() and path.name != RECORD)
    names = [path.relative_to(run.folder) for path in files]
    record = {
        **{name: getattr(run, name) for name in ("arm", "seed", "seconds", "steps", "log")},
        "fingerprint": dict(fingerprint),
        "files": {name.as_posix(): sha256_of(run.folder / name) for name in names if name.parts[0] != CHECKPOINTS},
    }
    write_atomically(run.folder / RECORD, json.dumps(record, indent=1, sort_keys=True))
    clear_workings(run.folder)


def _in_words(plan: EmbeddingPlan, test: Values) -> str:
    """The number that a watcher wants to see first."""
    return f"test Spearman {agreement_with(plan.teacher.of(plan.test.ids).numpy())(test):.3f}"
