"""One training of a stage: trained, measured and committed; cut off anywhere, it goes on."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PrinterCallback

from tutelage.data import TransferSet
from tutelage.errors import CheckpointError
from tutelage.evaluation.language import token_fidelity
from tutelage.files import sha256_of, write_atomically
from tutelage.models import on_device, scores_and_features
from tutelage.models.masked_language import begins_with_head
from tutelage.models.saving import save_student
from tutelage.objectives import Objective
from tutelage.signals import NO_LABEL
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
from tutelage.studies.stage.texts import StageTexts
from tutelage.studies.teaching import listens, teacher_identity
from tutelage.teachers import ModuleTeacher, Teacher
from tutelage.training import DistillationArguments, DistillationTrainer
from tutelage.training.evaluating import token_answers
from tutelage.training.identity import compare_runs

#: What a stage uses where the user's ``training`` says nothing.
STAGE_DEFAULTS: dict[str, Any] = {
    **TRAINING_DEFAULTS,
    "eval_steps": 0.1,
    "save_steps": 0.25,
    "save_total_limit": 1,
    "per_device_eval_batch_size": 32,
}

_BATCH = 32
#: What a record holds that others read.
_KEPT = {"seed", "seconds", "steps", "before", "metrics", "fingerprint"}

Json = dict[str, Any]


@dataclass(frozen=True)
class StageJob:
    """Everything that decides one training of a masked language model.

    Args:
        name: what it is called to whoever watches.
        seed: of initialisation, data order and dropout.
        folder: where it is left.
        build: makes the fresh model.
        objective: what it minimises.
        training: arguments of :class:`DistillationArguments`, by name.
        texts: what it learns from, and what it is measured on.
        tokenizer: saved beside it.
        teacher: whom it hears and is compared with; None for nobody.
    """

    name: str
    seed: int
    folder: Path
    build: Callable[[], nn.Module]
    objective: Objective
    training: Mapping[str, Any]
    texts: StageTexts
    tokenizer: Any
    teacher: ModuleTeacher | None = None

    @property
    def called(self) -> str:
        """The name with the seed, where there are several."""
        return f"{self.name}, seed {self.seed}" if self.teacher is not None else self.name


def run_job(job: StageJob, progress: Progress) -> Json:
    """Train a model, or continue it, or read what it left if it is done; returns its record.

    Raises:
        CheckpointError: it was begun or done with other settings; the message shows the difference.
    """
    done = read_record(job.folder)
    model = build_seeded(job.build, job.seed)
    trainer = stage_trainer(job, model)
    identity = trainer.identify()
    if done is not None:
        clear_workings(job.folder)  # the trainer made its folder anew
        compare_runs(done["fingerprint"], identity, job.folder)
        progress.finished(job.called, "done in an earlier run")
        return done
    # the models before it are gone: two of them beside a teacher may be more than memory holds
    gc.collect()
    before = masked_metrics(model, job.texts.validation, job.teacher)
    trainer.add_callback(Reporter(job.called, progress))
    started = time.perf_counter()
    trainer.train(resume_from_checkpoint=True)
    record: Json = {
        "seed": job.seed,
        "seconds": time.perf_counter() - started,
        "steps": trainer.state.global_step,
        "before": before,
        "metrics": masked_metrics(model, job.texts.validation, job.teacher),
        "fingerprint": dict(identity),
        "log": trainer.state.log_history,
    }
    if job.teacher is not None:
        record["head_copied"] = begins_with_head(model, job.teacher.model)
    save_student(model, job.folder, job.tokenizer)
    names = sorted(path.name for path in job.folder.iterdir() if path.is_file() and path.name != RECORD)
    record["files"] = {name: sha256_of(job.folder / name) for name in names}
    write_atomically(job.folder / RECORD, json.dumps(record, indent=1, sort_keys=True))
    clear_workings(job.folder)
    found = record["metrics"]
    progress.finished(
        job.called,
        f"{found['accuracy']:.1%} of the hidden words told ({before['accuracy']:.1%} before), perplexity {found['perplexity']:.4g}, after "
        f"{record['steps']} steps, {record['seconds']:.0f} s",
    )
    return record


def stage_trainer(job: StageJob, model: nn.Module) -> DistillationTrainer:
    """The trainer of a job's model, which nobody has trained yet."""
    arguments: Json = {**STAGE_DEFAULTS, **job.training, "seed": job.seed, "data_seed": job.seed}
    heard = job.teacher if listens(job.objective) else None
    facts: Json = {"initial_weights": weights_digest(model), **job.texts.identity}
    if job.teacher is not None:
        facts["teacher"] = teacher_identity(job.teacher)
    trainer = DistillationTrainer(
        model=model,
        args=DistillationArguments(output_dir=str(job.folder / CHECKPOINTS), **arguments),
        objective=job.objective,
        train_dataset=job.texts.train,
        eval_dataset=job.texts.validation,
        teacher=heard,
        fingerprint=facts,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def masked_metrics(model: nn.Module, held_out: TransferSet, teacher: Teacher | None = None) -> dict[str, float]:
    """How well a model tells the hidden tokens of texts, in eval mode and with its flags as before afterwards.

    Args:
        model: a masked language model.
        held_out: texts of a fixed view.
        teacher: whom it is compared with; None for nobody.

    Returns:
        ``accuracy``, ``nll`` (nats a hidden token), ``perplexity`` (its exp), ``tokens`` (how many), and with a teacher ``kl`` (of the
        teacher's distributions from the model's, nats a token) and ``agreement`` (share of tokens with the same likeliest one).
    """
    sums = token_fidelity(model, teacher, held_out, _BATCH)
    return {"accuracy": _accuracy(model, held_out), "tokens": float(sums.tokens.sum()), **sums.means}


def read_record(folder: Path) -> Json | None:
    """What a finished training left, its files looked at; None where it is not done.

    Raises:
        CheckpointError: its files are not what was written.
    """
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        record: Json = json.loads(path.read_text())
        for name, digest in record["files"].items():
            if sha256_of(folder / name) != digest:
                raise ValueError(f"{name} is not what was written, its hash differs")
        lacking = _KEPT - record.keys()
        if lacking:
            raise ValueError(f"its record lacks {', '.join(sorted(lacking))}")
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{folder} is damaged ({error}): what it says could not be trusted; remove {folder} to train it anew"
        ) from error
    return record


def _accuracy(model: nn.Module, held_out: TransferSet) -> float:
    """The share of hidden tokens that are the likeliest one to the model."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    training = [module for module in model.modules() if module.training]
    model.eval()
    right, count = 0, 0
    try:
        with torch.no_grad():
            for rows in torch.arange(len(held_out)).split(_BATCH):
                batch = held_out.batch(rows)
                labels = batch["labels"].to(device)
                scores, _ = scores_and_features(model, on_device(batch["student"], device), labels)
                known = labels[labels != NO_LABEL]
                right += int((token_answers(scores, known)[1] == known).sum())
                count += len(known)
    finally:
        for module in training:
            module.training = True
    return right / count
