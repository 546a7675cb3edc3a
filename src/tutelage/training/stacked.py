"""``StackedTrainer``: many small students in one loop, with the numbers that each would have alone."""

from __future__ import annotations

import itertools
import json
import logging
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import DefaultFlowCallback, EvalPrediction, TrainerControl, TrainerState, get_scheduler

from tutelage.data import Batch, TransferSet
from tutelage.errors import CheckpointError, NonFiniteError
from tutelage.signals import Rows, Signals
from tutelage.training.checkpoints import (
    PREFIX,
    STAGING,
    Fingerprint,
    clear_staging,
    commit_checkpoint,
    set_aside_later,
    verify_checkpoint,
)
from tutelage.training.feeding import EpochBatches
from tutelage.training.guard import non_finite_error
from tutelage.training.identity import compare_runs
from tutelage.training.stack import AdamW, Stack
from tutelage.training.stack_loss import Heard, StackedLoss
from tutelage.training.stack_trial import why_not
from tutelage.training.trainer import DistillationTrainer

logger = logging.getLogger(__name__)

_TENSORS = "stack.safetensors"
_STATE = "stack.json"
_KEPT = 2
#: However often a single training would be saved, a stack, which is as large as all of them, is saved this often at most.
_SAVES = 10

Json = dict[str, Any]


class StackedTrainer:
    """Trains the students of several :class:`DistillationTrainer` at once, as each would be alone within float tolerance.

    The weights are stacked ``[S, …]`` and step under one fused AdamW; a batch that several students meet is made, and its
    teacher asked, once. Each student has its own objective, seed, learning rate, weight decay, clipping and log. Losses in
    the log are those of the step they are logged at, not means since the line before, as a trainer alone logs them.

    The stack is saved as a whole, at most ten times a run, and goes on from the newest checkpoint of ``folder`` that
    verifies, bit for bit.

    Args:
        trainers: the trainings, of one :func:`tutelage.training.stackable.kind`, of which none has a reason to be alone.
        names: of each, for messages.
        keys: of each, by which a checkpoint knows it.
        folder: for checkpoints.

    Raises:
        ObjectiveError, TeacherError, ModelError: as :meth:`DistillationTrainer.train`.
    """

    def __init__(
        self, trainers: Sequence[DistillationTrainer], names: Sequence[str], keys: Sequence[str], folder: Path
    ) -> None:
        seeds = [_data_seed(trainer) for trainer in trainers]
        order = sorted(range(len(trainers)), key=lambda index: seeds[index])
        self.place = {index: student for student, index in enumerate(order)}
        self.trainers = [trainers[index] for index in order]
        self._names = [names[index] for index in order]
        self._keys = [keys[index] for index in order]
        self._folder = folder
        self.identities = [trainer.identify() for trainer in self.trainers]
        self._feed_seeds = sorted(set(seeds))
        ordered = sorted(seeds)
        starts = [ordered.index(seed) for seed in self._feed_seeds]
        feeds = [slice(a, b) for a, b in itertools.pairwise([*starts, len(ordered)])]
        self._feed_of = [self._feed_seeds.index(seed) for seed in ordered]
        first = self.trainers[0]
        self._args = first.args
        self._samplers = [_sampler(first, seed) for seed in self._feed_seeds]
        self._per_epoch = len(self._samplers[0])
        steps = self._args.max_steps
        self._max_steps = steps if steps > 0 else math.ceil(self._args.num_train_epochs * self._per_epoch)
        self.stack = Stack([_student(trainer) for trainer in self.trainers], feeds, self._optimiser())
        self._loss = StackedLoss([trainer.objective for trainer in self.trainers])
        self.logs: list[list[Json]] = [[] for _ in self.trainers]
        self.steps = 0

    def _optimiser(self) -> AdamW:
        args, first = self._args, self.trainers[0]
        bases = [float(trainer.args.learning_rate) for trainer in self.trainers]
        return AdamW(
            beta1=args.adam_beta1,
            beta2=args.adam_beta2,
            epsilon=args.adam_epsilon,
            bases=bases,
            rates={base: _rates(first, base, self._max_steps) for base in dict.fromkeys(bases)},
            weight_decays=[float(trainer.args.weight_decay) for trainer in self.trainers],
            decayed=frozenset(first.get_decay_parameter_names(_student(first))),  # pyright: ignore[reportArgumentType]
        )

    def why_not(self) -> str | None:
        """Why these students cannot be stacked, found by trying on a few examples; None where they can. Nothing is changed."""
        return why_not(self.stack, self._data)

    # Learning

    def train(self, started: Callable[[int, int], None], advanced: Callable[[int], None]) -> None:
        """Train to the end, from the newest checkpoint where there is one; the students then hold their weights.

        Args:
            started: called once with the number of steps and those done already.
            advanced: called after each step with the number done.

        Raises:
            CheckpointError: a checkpoint was written by trainings with other settings.
            NonFiniteError: a loss or gradient became NaN or infinite; the message names the training.
        """
        state = TrainerState(max_steps=self._max_steps)
        state.compute_steps(self._args, self._max_steps)
        self._resume()
        clear_staging(self._folder)
        set_aside_later(self._folder, self.steps)
        started(self._max_steps, self.steps)
        flow, saved = DefaultFlowCallback(), self.steps
        while self.steps < self._max_steps:
            for epoch, batches in self._epoch():
                norms = self._step(batches)
                within = self.steps - epoch * self._per_epoch
                state.global_step, state.epoch = self.steps, epoch + within / self._per_epoch
                control = flow.on_step_end(self._args, state, TrainerControl())
                if within == self._per_epoch or self.steps == self._max_steps:
                    control = flow.on_epoch_end(self._args, state, control)
                self._report(control, state, norms)
                finished = self.steps == self._max_steps
                if control.should_save and (finished or self.steps - saved >= math.ceil(self._max_steps / _SAVES)):
                    self._save()
                    saved = self.steps
                advanced(self.steps)
                if finished:
                    break
        for student in range(len(self.trainers)):
            self.stack.hand_over(student)

    def _epoch(self) -> Iterator[tuple[int, list[Batch]]]:
        """What is left of the current epoch: its number, with each step's batches by feed."""
        epoch, done = divmod(self.steps, self._per_epoch)
        for sampler in self._samplers:
            sampler.set_epoch(epoch)
        for keys in itertools.islice(zip(*self._samplers, strict=True), done, None):
            yield epoch, [self._data.__getitems__(own) for own in keys]

    def _step(self, batches: Sequence[Batch]) -> list[float]:
        """One step for all; each student's gradient norm."""
        progress = self.steps / self._max_steps
        heard = self._heard(batches)
        outputs = [self.stack.logits(feed, batch["student"]) for feed, batch in enumerate(batches)]
        logits = torch.cat([values.detach() for values in outputs])
        at_logits, fine = self._loss.gradients(logits, heard, progress)
        gradients = [
            self.stack.gradients(feed, values, at_logits[self.stack.feeds[feed]]) for feed, values in enumerate(outputs)
        ]
        norms = torch.cat([self.stack.norms(own) for own in gradients])
        found: list[float] = norms.tolist()
        if not fine or not all(map(math.isfinite, found)):
            self._refuse_non_finite(logits, heard, found, batches, progress)
        self._clip(gradients, norms)
        self.stack.step(gradients, self.steps)
        self.steps += 1
        self._logits, self._met = logits, heard
        return found

    def _heard(self, batches: Sequence[Batch]) -> list[Heard]:
        """What each student meets; each teacher is asked once about each batch."""
        rows: list[Rows] = [{"labels": batch["labels"], "ids": batch["ids"]} for batch in batches]
        said: dict[tuple[int, int], Signals] = {}
        heard: list[Heard] = []
        for trainer, feed in zip(self.trainers, self._feed_of, strict=True):
            teacher = trainer.teacher
            if teacher is None:
                heard.append(Heard(None, rows[feed]))
                continue
            key = (id(teacher), feed)
            if key not in said:
                said[key] = teacher.signals(batches[feed])
            heard.append(Heard(said[key], rows[feed]))
        return heard

    def _clip(self, gradients: Sequence[Sequence[Tensor]], norms: Tensor) -> None:
        most = self._args.max_grad_norm
        if not most:
            return
        shares = (most / (norms + 1e-6)).clamp(max=1.0)
        for own, feed in zip(gradients, self.stack.feeds, strict=True):
            if bool((shares[feed] < 1.0).any()):
                for values in own:
                    values.mul_(shares[feed].view(-1, *(1,) * (values.ndim - 1)))

    def _refuse_non_finite(
        self, logits: Tensor, heard: Sequence[Heard], norms: Sequence[float], batches: Sequence[Batch], progress: float
    ) -> None:
        """Stop before the step, in the name of the first student whose loss or gradient is not finite."""
        for student, trainer in enumerate(self.trainers):
            loss, _ = self._loss.values(student, logits[student], heard[student], progress)
            if math.isfinite(loss) and math.isfinite(norms[student]):
                continue  # the joined sum of many may overflow where no one's does
            module, batch = self.stack.hand_over(student), batches[self._feed_of[student]]
            error = non_finite_error(module, trainer.objective, trainer.teacher, [batch], self.steps + 1, progress)
            named = NonFiniteError(f"{self._names[student]}: {error}")
            named.training = self._names[student]
            raise named

    # Logging and evaluation

    def _report(self, control: TrainerControl, state: TrainerState, norms: list[float]) -> None:
        place = {"epoch": state.epoch, "step": self.steps}
        if control.should_log:
            progress = (self.steps - 1) / self._max_steps
            for student, log in enumerate(self.logs):
                loss, components = self._loss.values(student, self._logits[student], self._met[student], progress)
                rate = self.stack.optimiser.rates[self.stack.optimiser.bases[student]][self.steps - 1]
                named = {f"loss/{name}": value for name, value in components.items()}
                log.append({"loss": loss, "grad_norm": norms[student], "learning_rate": rate, **named, **place})
        if control.should_evaluate:
            for log, metrics in zip(self.logs, self._evaluate(), strict=True):
                log.append({**metrics, **place})

    def _evaluate(self) -> list[Json]:
        """Each student's validation metrics, as ``Trainer`` names them."""
        held_out, measure = self.trainers[0].eval_dataset, self.trainers[0].compute_metrics
        assert isinstance(held_out, TransferSet)
        assert measure is not None
        size = self._args.per_device_eval_batch_size
        parts: list[Tensor] = []
        for start in range(0, len(held_out), size):
            batch = held_out.batch(torch.arange(start, min(start + size, len(held_out))))
            answers = [self.stack.evaluate(feed, batch["student"]) for feed in range(len(self.stack.feeds))]
            parts.append(torch.cat(answers).float())
        logits, labels = torch.cat(parts, dim=1).numpy(), held_out.known_labels.numpy()
        measured = [measure(EvalPrediction(predictions=values, label_ids=labels)) for values in logits]
        return [{f"eval_{name}": value for name, value in metrics.items()} for metrics in measured]

    # Surviving

    def _save(self) -> None:
        staged, final = self._folder / STAGING / f"{PREFIX}{self.steps}", self._folder / f"{PREFIX}{self.steps}"
        clear_staging(self._folder)
        staged.mkdir(parents=True)
        save_file({name: values.detach() for name, values in self.stack.state().items()}, str(staged / _TENSORS))
        state = {"step": self.steps, "keys": self._keys, "logs": self.logs}
        (staged / _STATE).write_text(json.dumps(state))
        commit_checkpoint(staged, final, {"members": self.identities})
        clear_staging(self._folder)
        for old in _numbered(self._folder)[:-_KEPT]:
            shutil.rmtree(old)

    def _resume(self) -> None:
        found = _newest(self._folder)
        if found is None:
            return
        folder, identities, state = found
        if not set(self._keys) <= set(state["keys"]):
            return
        rows = [state["keys"].index(key) for key in self._keys]
        for row, identity in zip(rows, self.identities, strict=True):
            compare_runs(identities[row], identity, folder)
        self.stack.load(load_file(folder / _TENSORS), rows)
        self.steps = int(state["step"])
        self.logs = [list(state["logs"][row]) for row in rows]

    @property
    def _data(self) -> TransferSet:
        data = self.trainers[0].train_dataset
        assert isinstance(data, TransferSet)
        return data


def kept_members(folder: Path) -> list[str]:
    """The keys of the trainings in the newest checkpoint of a stack's folder; none where there is no checkpoint."""
    found = _newest(folder)
    return [] if found is None else list(found[2]["keys"])


def _newest(folder: Path) -> tuple[Path, Sequence[Fingerprint], Mapping[str, Any]] | None:
    """The newest checkpoint that verifies: its folder, its members' fingerprints, its state."""
    for path in reversed(_numbered(folder)):
        try:
            written = verify_checkpoint(path)
        except CheckpointError as error:
            logger.warning("%s is left out: %s", path, error)
            continue
        return path, written["members"], json.loads((path / _STATE).read_text())
    return None


def _numbered(folder: Path) -> list[Path]:
    found = [path for path in folder.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix(PREFIX)))


def _sampler(trainer: DistillationTrainer, seed: int) -> EpochBatches:
    args = trainer.args
    data = trainer.train_dataset
    assert isinstance(data, TransferSet)
    return EpochBatches(
        data,
        args.per_device_train_batch_size,
        seed,
        drop_last=args.dataloader_drop_last,
        strategy=str(args.train_sampling_strategy),
    )


def _rates(trainer: DistillationTrainer, base: float, steps: int) -> list[float]:
    """The learning rate of each step, as ``Trainer``'s scheduler makes it."""
    args = trainer.args
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=base)
    schedule = get_scheduler(
        args.lr_scheduler_type,
        optimizer=optimiser,
        num_warmup_steps=args.get_warmup_steps(steps),
        num_training_steps=steps,
        scheduler_specific_kwargs=args.lr_scheduler_kwargs,  # pyright: ignore[reportArgumentType]
    )
    rates: list[float] = []
    for _ in range(steps):
        rates.append(float(optimiser.param_groups[0]["lr"]))
        optimiser.step()
        schedule.step()  # pyright: ignore[reportCallIssue]
    return rates


def _data_seed(trainer: DistillationTrainer) -> int:
    args = trainer.args
    return int(args.data_seed if args.data_seed is not None else args.seed)


def _student(trainer: DistillationTrainer) -> nn.Module:
    assert isinstance(trainer.model, nn.Module)
    return trainer.model
