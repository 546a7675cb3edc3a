"""``DistillationTrainer``: a ``transformers.Trainer`` whose loss is an objective over a teacher's and a student's signals."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedType
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer
from transformers.trainer_utils import rotate_checkpoints

from tutelage.data import Batch, TransferSet
from tutelage.errors import ConfigError, ObjectiveError
from tutelage.models import class_logits
from tutelage.models.saving import save_student
from tutelage.objectives import Objective, Term, as_objective
from tutelage.signals import Logits, Rows, Signals
from tutelage.teachers import ModuleTeacher, Teacher
from tutelage.training.arguments import DistillationArguments
from tutelage.training.checkpoints import (
    STAGING,
    Fingerprint,
    clear_staging,
    commit_checkpoint,
    compare_fingerprints,
    latest_checkpoint,
    verify_checkpoint,
)
from tutelage.training.feeding import EpochBatches, EpochLoader, already_batched
from tutelage.training.guard import non_finite_error

logger = logging.getLogger(__name__)

#: Arguments that decide the weights; the others (logging, saving, hub) may change between a run and its resumption.
_DECISIVE_ARGUMENTS = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "max_steps",
    "learning_rate",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "optim",
    "lr_scheduler_type",
    "warmup_steps",
    "seed",
    "data_seed",
    "bf16",
    "fp16",
    "dataloader_drop_last",
)


class DistillationTrainer(Trainer):
    """Trains a student on an objective: Hugging Face's trainer, its arguments, callbacks and loggers, with a teacher.

    - The loss is ``Σ_k weight_k · sum_k / count_k`` with counts over the whole accumulated batch and all processes:
      one batch of 64, 4 of 16 and uneven masks give the same gradient.
    - Each component's value is logged as ``loss/<name>``.
    - A checkpoint is complete or not there; ``train(resume_from_checkpoint=True)`` goes on from the newest good one, or
      starts anew where there is none, and ends with the same weights bit for bit (CPU, float32, same threads).
    - A loss or gradient that is not finite stops the run before the step (:class:`tutelage.errors.NonFiniteError`).

    Args:
        model: the student.
        args: the arguments.
        objective: what to minimise; a bare term counts as an objective.
        train_dataset: the transfer set.
        teacher: a teacher, or a module to be one; None where no term listens to one.
        eval_dataset: a set to evaluate on, without augmentation; give ``compute_metrics`` as for ``Trainer``.
        fingerprint: more facts that must not change between a run and its resumption.
        options: other arguments of ``transformers.Trainer`` (``callbacks``, ``optimizers``, ``compute_metrics`` …).
    """

    loss_is_scaled_for_ga = True  # ``compute_loss`` has divided by the whole accumulated batch's counts already
    objective: Objective
    args: DistillationArguments

    def __init__(
        self,
        model: nn.Module,
        args: DistillationArguments,
        objective: Objective | Term,
        train_dataset: TransferSet,
        teacher: Teacher | nn.Module | None = None,
        eval_dataset: TransferSet | None = None,
        fingerprint: Fingerprint | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(train_dataset, TransferSet):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(
                f"train_dataset is a {type(train_dataset).__name__}, expected a tutelage.TransferSet: without content ids a stored label "
                "could meet the wrong row; TransferSet.from_dataset reads a datasets.Dataset"
            )
        _refuse_idle_arguments(args)
        self.objective = as_objective(objective)
        self.objective.validate()
        self.teacher = ModuleTeacher(teacher) if isinstance(teacher, nn.Module) else teacher
        self._extra_fingerprint = dict(fingerprint or {})
        self._window: list[Batch] = []
        self._window_counts = torch.zeros(0)
        self._window_losses: list[Tensor] = []
        self._component_sums: dict[str, Tensor] = {}
        self._staging: str | None = None
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset.for_evaluation() if eval_dataset is not None else None,
            data_collator=already_batched,  # pyright: ignore[reportArgumentType]
            **options,
        )
        self.label_names = ["labels"]
        if self.teacher is not None and isinstance(self.teacher, ModuleTeacher) and self.place_model_on_device:
            self.teacher.model.to(self.args.device)  # pyright: ignore[reportArgumentType, reportCallIssue]

    # Feeding

    def get_train_dataloader(self) -> EpochLoader:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Batches whose order and augmentation are functions of (seed, epoch); each process gets its share."""
        args = self.args
        batches = EpochBatches(
            self._transfer_set,
            self._train_batch_size,
            args.data_seed if args.data_seed is not None else args.seed,
            drop_last=args.dataloader_drop_last,
            shuffle=args.train_sampling_strategy == "random",
            rank=args.process_index,
            world_size=args.world_size,
        )
        return EpochLoader(
            batches,
            workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent=args.dataloader_persistent_workers,
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Collect the micro-batches of one step, and what each component must be divided by, over all processes."""
        self._window = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        counts = sum(
            (self.objective.counts(_rows(batch)) for batch in self._window), torch.zeros((), dtype=torch.int64)
        )
        if self.args.world_size > 1:
            counts = self._over_processes(counts.to(device))
        self._window_counts = counts
        return self._window, None

    @property
    def _transfer_set(self) -> TransferSet:
        assert isinstance(self.train_dataset, TransferSet)
        return self.train_dataset

    @property
    def _student(self) -> nn.Module:
        assert isinstance(self.model, nn.Module)
        return self.model

    # Learning

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **options: Any) -> Any:
        """Train, after checking that objective, teacher, student and data fit together.

        Args:
            resume_from_checkpoint: True for the newest checkpoint of ``output_dir`` that verifies, starting anew where
                there is none; or the folder of one.
            args, options: as for ``Trainer.train``.

        Raises:
            ObjectiveError, TeacherError: something that a term needs is missing, or classes differ.
            CheckpointError: the named checkpoint is damaged, or a run with other settings wrote it.
            NonFiniteError: a loss or gradient became NaN or infinite.
        """
        self._check_before_first_step()
        if self.args.should_save:
            clear_staging(Path(str(self.args.output_dir)))
        checkpoint = self._resolve_checkpoint(resume_from_checkpoint)
        return super().train(str(checkpoint) if checkpoint is not None else None, *args, **options)

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Forward and backward of a micro-batch; `Trainer`'s own where something other than autograd has a say in it."""
        if not self._autograd_alone:
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        optimizer: Any = self.optimizer
        if hasattr(optimizer, "train"):
            optimizer.train()  # schedule-free optimisers have a training mode of their own
        with self.compute_loss_context_manager():
            loss: Tensor = self.compute_loss(model, self._prepare_inputs(inputs))
        loss.backward()
        return loss.detach()

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """As ``Trainer.create_scheduler``, over the bare optimiser where ``accelerate``'s wrapper has nothing to add.

        The wrapper looks for an installed package twice at each step, which takes as long as a small student's forward.
        """
        if self._autograd_alone and isinstance(self.optimizer, AcceleratedOptimizer):
            self.optimizer = self.optimizer.optimizer
        return super().create_scheduler(num_training_steps, optimizer)

    @cached_property
    def _autograd_alone(self) -> bool:
        """Whether a step is plain autograd and a plain optimiser: no loss scaler, no sharding, no DeepSpeed."""
        args, accelerator = self.args, self.accelerator
        plain = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
        special = getattr(accelerator, "scaler", None) is not None or args.parallelism_config is not None
        special = special or args.torch_empty_cache_steps is not None or str(args.optim).lower().endswith("lomo")
        return accelerator.distributed_type in plain and args.n_gpu <= 1 and not special

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,  # noqa: ARG002 - the counts of each component serve instead
    ) -> Any:
        """This micro-batch's share of the step's loss."""
        values = class_logits(model, inputs["student"])
        said = self.teacher.signals(inputs) if self.teacher is not None else None
        outcome = self.objective(
            Signals(Logits(values)),
            said,
            _rows(inputs),
            progress=self._progress,
            counts=self._window_counts.to(values.device),
        )
        for name, value in outcome.components.items():
            before = self._component_sums.get(name)
            self._component_sums[name] = value if before is None else before + value
        self._window_losses.append(outcome.total.detach())
        # Data-parallel wrappers average gradients over processes; the counts are already those of all of them.
        total = outcome.total * self.args.world_size if self.args.world_size > 1 else outcome.total
        return (total, {"logits": values}) if return_outputs else total

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The gradient's norm; the last look at a step before it is taken."""
        norm = super()._get_grad_norm(model, grad_norm)
        losses, self._window_losses = self._window_losses, []
        finite = all(bool(torch.isfinite(loss)) for loss in losses)
        if norm is not None and getattr(self.accelerator, "scaler", None) is None:
            # Under fp16 an overflowing gradient is the loss scaler's business: it skips the step and lowers the scale.
            finite = finite and bool(torch.isfinite(torch.as_tensor(norm)))
        if not finite:
            raise non_finite_error(
                self._student,
                self.objective,
                self.teacher,
                [self._prepare_inputs(batch) for batch in self._window],  # pyright: ignore[reportArgumentType]
                self.state.global_step + 1,
                self._progress,
            )
        return norm

    @property
    def _progress(self) -> float:
        return self.state.global_step / max(self.state.max_steps, 1)

    def _check_before_first_step(self) -> None:
        data = self._transfer_set
        lacking = [c.name for c in self.objective.components if "labels" in c.term.needs]
        if lacking and data.labelled == 0:
            raise ObjectiveError(
                f"{', '.join(lacking)} needs labels, and none of the {len(data)} examples of the transfer set has one: it would be 0 "
                "throughout; leave the term out or give labels"
            )
        batch: Any = self._prepare_inputs(data.batch(torch.arange(min(4, len(data)))))  # pyright: ignore[reportArgumentType]
        said = self.teacher.signals(batch) if self.teacher is not None else None
        as_student: Any = {"ids": batch["ids"], "labels": batch["labels"], "student": batch["student"]}
        with torch.random.fork_rng(devices=[]):
            student = ModuleTeacher(self.model, allow_masked_classes=True).signals(as_student)  # pyright: ignore[reportArgumentType]
        self.objective.check(student, said, {"labels": data.known_labels, "ids": data.ids})

    # Logging and evaluation

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with each component's mean per step since the last line."""
        if "loss" in logs and self._component_sums:
            steps = max(self.state.global_step - self._component_steps, 1)
            for name, value in self._component_sums.items():
                logs[f"loss/{name}"] = float(self._over_processes(value)) / steps
            self._component_sums = {}
        self._component_steps = self.state.global_step
        super().log(logs, start_time)

    _component_steps = 0

    def _over_processes(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        total: Any = self.accelerator.reduce(value, "sum") if self.args.world_size > 1 else value
        return total

    def evaluate(self, *args: Any, **options: Any) -> dict[str, float]:
        """As ``Trainer.evaluate``; it leaves the generator as it was, or a resumed run would draw other numbers."""
        with torch.random.fork_rng(devices=[]):
            return super().evaluate(*args, **options)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: Any,
        prediction_loss_only: bool,  # noqa: ARG002 - no loss is reported on held-out data: it would need the teacher
        ignore_keys: list[str] | None = None,  # noqa: ARG002
    ) -> tuple[None, Tensor, Tensor]:
        """Logits ``[B, C]`` and labels ``[B]`` of a batch."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            values = class_logits(model, inputs["student"])
        return None, values.detach().float(), inputs["labels"]

    def floating_point_ops(self, inputs: Any) -> int:
        """Training FLOPs of a batch where the student can tell (Hugging Face models), else 0."""
        student = inputs["student"]
        return super().floating_point_ops(dict(student)) if isinstance(student, Mapping) else 0

    # Checkpoints

    @property
    def fingerprint(self) -> Fingerprint:
        """What decides this run's weights, as it is written into each checkpoint."""
        data = self._transfer_set
        digest = sha256(data.ids.numpy().tobytes() + data.known_labels.numpy().tobytes())
        parameters = [
            (name, tuple(values.shape), str(values.dtype)) for name, values in self._student.state_dict().items()
        ]
        return {
            **{name: _plain(getattr(self.args, name, None)) for name in _DECISIVE_ARGUMENTS},
            "world_size": self.args.world_size,
            "objective": self.objective.describe(),
            "student": f"{type(self.model).__name__} {sha256(repr(parameters).encode()).hexdigest()[:16]}",
            "transfer_set": f"{len(data)} examples, {data.labelled} labelled, {digest.hexdigest()[:16]}",
            "augmentation": f"{data.augment!r}, seed {data.seed}" if data.augment is not None else "none",
            **self._extra_fingerprint,
        }

    def _resolve_checkpoint(self, wish: str | bool | None) -> Path | None:
        if not wish:
            return None
        if isinstance(wish, str):
            found, fingerprint = Path(wish), verify_checkpoint(Path(wish))
        else:
            found, damaged = latest_checkpoint(Path(str(self.args.output_dir)))
            for path, error in damaged.items():
                logger.warning("%s is left out: %s", path, error)
            if found is None:
                return None
            fingerprint = verify_checkpoint(found)
        compare_fingerprints(fingerprint, self.fingerprint, found)
        return found

    def _get_output_dir(self, trial: Any) -> str:
        return self._staging if self._staging is not None else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Let ``Trainer`` write into a folder of its own, and commit it."""
        output_dir = Path(super()._get_output_dir(trial))
        name = f"checkpoint-{self.state.global_step}"
        best = self.state.best_global_step
        self._staging = str(output_dir / STAGING)
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._staging = None
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            staged = output_dir / STAGING / name
            if best:
                self.state.best_model_checkpoint = str(output_dir / f"checkpoint-{best}")
                self.state.save_to_json(os.path.join(staged, "trainer_state.json"))
            commit_checkpoint(staged, output_dir / name, self.fingerprint)
            clear_staging(output_dir)
            rotate_checkpoints(
                output_dir=str(output_dir),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
            )
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """As ``Trainer._save``, for plain modules without a pickle and with shared weights stored once."""
        if state_dict is None and not isinstance(self.model, PreTrainedModel):
            if self.args.should_save:
                save_student(self._student, Path(output_dir or str(self.args.output_dir)))
            return
        super()._save(output_dir, state_dict)


def _refuse_idle_arguments(args: DistillationArguments) -> None:
    """Arguments of ``TrainingArguments`` that would do nothing, or harm, here."""
    if args.remove_unused_columns:
        raise ConfigError("remove_unused_columns=True would drop the teacher's inputs; leave it False")
    if args.label_smoothing_factor:
        raise ConfigError(
            f"label_smoothing_factor={args.label_smoothing_factor} would be ignored: the objective is the loss; use "
            "CrossEntropy(label_smoothing=…) in it"
        )
    if args.train_sampling_strategy not in ("random", "sequential"):
        raise ConfigError(
            f"train_sampling_strategy={args.train_sampling_strategy!r} is not offered: the order of the examples is a function of "
            "(seed, epoch), 'random' or 'sequential'"
        )


def _rows(batch: Any) -> Rows:
    return {"labels": batch["labels"], "ids": batch["ids"]}


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float | str | bool | None) else str(getattr(value, "value", value))
