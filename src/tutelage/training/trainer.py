"""``DistillationTrainer``: a ``transformers.Trainer`` whose loss is an objective over a teacher's and a student's signals."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedType
from torch import Tensor, nn

from tutelage.data import Batch, TransferSet
from tutelage.errors import ConfigError
from tutelage.models import check_layers
from tutelage.models.calling import unwrapped
from tutelage.objectives import Objective, Term, as_objective
from tutelage.signals import ClassMap, Logits, layers_needed
from tutelage.teachers import ModuleTeacher, StoredTeacher, Teacher, as_teacher
from tutelage.training.arguments import DistillationArguments, refuse_idle_arguments
from tutelage.training.checkpoints import Fingerprint
from tutelage.training.evaluating import AbstractEvaluatingTrainer, token_metrics
from tutelage.training.feeding import EpochBatches, EpochLoader, already_batched, expect_transfer_set, held_out
from tutelage.training.guard import non_finite_error
from tutelage.training.identity import describe_optimizer, describe_run, probe, with_probe
from tutelage.training.listening import (
    ALL_CLASSES,
    all_rows,
    check_labels_for,
    first_signals,
    first_with_rows,
    refuse_texts_that_see_one_another,
    refuse_what_taps_do_not_survive,
    rows_of,
    say_adjustments,
    showing,
    student_signals,
    teacher_signals,
)
from tutelage.training.on_policy import OnPolicy, StudentWriter, refuse_on_policy
from tutelage.training.step_log import StepLog
from tutelage.training.term_weights import TermWeights
from tutelage.training.time_budget import time_budget

_PROBED = 4


class DistillationTrainer(AbstractEvaluatingTrainer):
    """Trains a student on an objective: Hugging Face's trainer, its arguments, callbacks and loggers, with a teacher.

    - The loss is ``Σ_k weight_k · sum_k / count_k`` with counts over the whole accumulated batch and all processes:
      one batch of 64, 4 of 16 and uneven masks give the same gradient.
    - Each component's mean a step is logged as ``loss/<name>``.
    - A checkpoint is complete or not there; ``train(resume_from_checkpoint=True)`` goes on from the newest good one, or
      starts anew where there is none, and ends with the same weights bit for bit (CPU, float32, same threads).
    - A loss or gradient that is not finite stops the run before the step (:class:`tutelage.errors.NonFiniteError`).

    Args:
        model: the student.
        args: the arguments.
        objective: what to minimise; a bare term counts as an objective.
        train_dataset: the transfer set.
        teacher: a teacher, or a module to be one; None where no term listens to one.
        eval_dataset: a set to evaluate on, without augmentation, or several by name; needs ``compute_metrics``, but where rows
            are tokens, whose negative log-likelihood and accuracy are measured by themselves.
        class_map: which classes student and teacher share, where they have not the same; labels number these.
        fingerprint: more facts that must not change between a run and its resumption.
        on_policy: how often the student writes the completions itself, and how; None for those given. Logged then:
            ``generation_share`` (of the steps' time), ``on_policy_tokens`` and ``on_policy_finished`` (share of completions).
        options: other arguments of ``transformers.Trainer`` (``callbacks``, ``optimizers``, ``compute_metrics`` …).

    Raises:
        ConfigError: an argument that would do nothing or harm here, a data set or teacher of another kind.
        ObjectiveError: an objective that could never teach.
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
        eval_dataset: TransferSet | Mapping[str, TransferSet] | None = None,
        class_map: ClassMap | None = None,
        fingerprint: Fingerprint | None = None,
        on_policy: OnPolicy | None = None,
        **options: Any,
    ) -> None:
        if isinstance(train_dataset, TransferSet) and train_dataset.token_level:  # pyright: ignore[reportUnnecessaryIsInstance]
            options["compute_metrics"] = options.get("compute_metrics") or token_metrics
        refuse_idle_arguments(args, options)
        expect_transfer_set(train_dataset, "train_dataset", str(args.train_sampling_strategy))
        self.objective = as_objective(objective)
        self.objective.validate()
        self._layers = layers_needed(self.objective.needs, "student")
        self._fitted, self._terms = False, TermWeights()
        self.class_map, self._shared = class_map, class_map or ALL_CLASSES
        self.teacher = showing(
            as_teacher(teacher) if teacher is not None else None, layers_needed(self.objective.needs, "teacher")
        )
        if isinstance(self.teacher, ModuleTeacher) and self.teacher.model is model:
            raise ConfigError(
                "teacher and student are one and the same module: it would always agree with itself and learn nothing; give a copy "
                "(copy.deepcopy) of it as the teacher"
            )
        self._extra_fingerprint = dict(fingerprint or {})
        optimizer, self._own_scheduler = options.get("optimizers", (None, None))
        self._makes_optimizer = optimizer is None
        kind = options.get("optimizer_cls_and_kwargs")
        self._own_optimizer = describe_optimizer(optimizer, kind)
        self._probe: dict[str, list[float]] = {}
        self._on_policy, self._writer = on_policy, None
        self._begin_window_log()
        if isinstance(eval_dataset, Mapping):
            evaluated: Any = {name: held_out(subset) for name, subset in eval_dataset.items()}
        else:
            evaluated = held_out(eval_dataset)
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=evaluated,
            data_collator=already_batched,  # pyright: ignore[reportArgumentType]
            **options,
        )
        refuse_what_taps_do_not_survive(self.objective, args, self.accelerator)
        check_layers(self._student, self._layers)
        if on_policy is not None:
            refuse_on_policy(on_policy, self.objective, self.teacher, train_dataset, class_map, self.accelerator)
            self._writer = StudentWriter(on_policy, train_dataset, class_map, args.seed, args.process_index)
            self.add_callback(self._writer)
        self.label_names = ["labels"]
        if isinstance(self.teacher, ModuleTeacher) and self.place_model_on_device:
            self.teacher.model.to(self.args.device)  # pyright: ignore[reportArgumentType, reportCallIssue]

    def _begin_window_log(self) -> None:
        """Forget an earlier training's unfinished window and unlogged components."""
        self._window: list[Batch] = []
        self._window_counts: Tensor | None = None
        self._window_losses: list[Tensor] = []
        self._step_log = StepLog()
        if self._writer is not None:
            self._writer.forget()

    # Feeding

    def get_train_dataloader(self) -> EpochLoader:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Batches whose order and augmentation are functions of (seed, epoch); each process gets its share."""
        self._begin_window_log()
        args = self.args
        batches = EpochBatches(
            self._transfer_set,
            self._train_batch_size,
            args.data_seed if args.data_seed is not None else args.seed,
            drop_last=args.dataloader_drop_last,
            strategy=str(args.train_sampling_strategy),
            rank=args.process_index,
            world_size=self._processes,
        )
        return EpochLoader(
            batches,
            workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers and args.dataloader_num_workers > 0,
            prefetch_factor=args.dataloader_prefetch_factor,
            multiprocessing_context=args.dataloader_multiprocessing_context,
            in_order=args.dataloader_in_order,
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Collect the micro-batches of one step, and what each component must be divided by, over all processes."""
        self._terms.zero_grad()
        if self._writer is not None:
            self._writer.step_begins()
        self._window = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        if self._writer is not None:
            # one for the whole text: the student's own, which opens anew for each token, would cast all weights for each
            with self.accelerator.autocast():
                self._window = self._writer.rewritten(self._window, self.state.global_step, self._student)
        counts = functools.reduce(torch.add, (self.objective.counts(rows_of(batch)) for batch in self._window))
        self._window_counts = self._over_processes(counts.to(device))
        self._step_log.step_begins()
        return self._window, None

    @property
    def _transfer_set(self) -> TransferSet:
        assert isinstance(self.train_dataset, TransferSet)
        return self.train_dataset

    # Learning

    def train(
        self, resume_from_checkpoint: str | os.PathLike[str] | bool | None = None, *args: Any, **options: Any
    ) -> Any:
        """Train, after checking that objective, teacher, student and data fit together.

        Args:
            resume_from_checkpoint: True for the newest checkpoint of ``output_dir`` that verifies, starting anew where
                there is none; or the folder of one. Checkpoints of later steps are set aside.
            args, options: as for ``Trainer.train``.

        Raises:
            ObjectiveError, TeacherError, ModelError: something that a term needs is missing, or classes differ.
            CheckpointError: the named checkpoint is damaged, or a run with other settings wrote it.
            NonFiniteError: a loss or gradient became NaN or infinite.
        """
        self._check_before_first_step()
        return super().train(resume_from_checkpoint, *args, **options)

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Forward and backward of a micro-batch; `Trainer`'s own where something other than autograd has a say in it."""
        if not self._autograd_alone:
            loss = super().training_step(model, inputs, num_items_in_batch)
        else:
            model.train()
            optimizer: Any = self.optimizer
            if hasattr(optimizer, "train"):
                optimizer.train()  # schedule-free optimisers have a training mode of their own
            with self.compute_loss_context_manager():
                loss: Tensor = self.compute_loss(model, self._prepare_inputs(inputs))
            loss.backward()
        if self._processes > 1 and self.accelerator.sync_gradients:
            self._terms.average_gradients()
        return loss.detach()

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """As ``Trainer``'s, for the terms' own weights too: a group at the same rate, which decays as the student's does."""
        optimizer = super().create_optimizer(model)
        names = self.get_decay_parameter_names(self._terms.module) if self._makes_optimizer else None
        self._terms.join(optimizer, str(self.args.optim), names, self.args.weight_decay)
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """As ``Trainer.create_scheduler``, over the bare optimiser where ``accelerate``'s wrapper has nothing to add.

        The wrapper looks for an installed package twice at each step, which takes as long as a small student's forward.
        """
        if self._autograd_alone and isinstance(self.optimizer, AcceleratedOptimizer):
            self.optimizer = self.optimizer.optimizer
        return super().create_scheduler(num_training_steps, optimizer)

    @functools.cached_property
    def _autograd_alone(self) -> bool:
        """Whether a step is plain autograd and a plain optimiser: no loss scaler, no sharding, no DeepSpeed."""
        args, accelerator = self.args, self.accelerator
        plain = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
        special = getattr(accelerator, "scaler", None) is not None or args.parallelism_config is not None
        special = special or args.torch_empty_cache_steps is not None or str(args.optim).lower().endswith("lomo")
        special = special or getattr(self, "is_distributed_loading_by_transformers", False)
        return accelerator.distributed_type in plain and args.n_gpu <= 1 and not special

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,  # noqa: ARG002 - the counts of each component serve instead
    ) -> Any:
        """This micro-batch's share of the step's loss; with outputs, ``{"logits": [N, C]}`` or ``{"head_logits": HeadLogits}``."""
        student = student_signals(model, inputs, self._layers, self._shared)
        said = teacher_signals(self.teacher, inputs, self._shared)
        outcome = self.objective(student, said, rows_of(inputs), progress=self._progress, counts=self._window_counts)
        self._step_log.add(outcome.components)
        self._window_losses.append(outcome.total.detach())
        # Data-parallel wrappers average gradients over processes; the counts are already those of all of them.
        total = outcome.total * self._processes if self._processes > 1 else outcome.total
        if not return_outputs:
            return total
        scores = student.logits
        return total, {"logits": scores.values} if isinstance(scores, Logits) else {"head_logits": scores}

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """As ``Trainer``'s, past ``accelerate``'s questions about loss scalers and shards where there are none."""
        learning = self._terms.beside(model)
        if not self._autograd_alone:
            return super()._clip_grad_norm(learning)
        return nn.utils.clip_grad_norm_(learning.parameters(), self.args.max_grad_norm)

    def _prepare_inputs(self, inputs: Any) -> Any:
        """As ``Trainer``'s; on the CPU a batch is where it belongs already."""
        return inputs if self._stays_on_cpu else super()._prepare_inputs(inputs)

    @functools.cached_property
    def _stays_on_cpu(self) -> bool:
        return self.args.device.type == "cpu" and not self.is_deepspeed_enabled

    @functools.cached_property
    def _processes(self) -> int:
        return self.args.world_size

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The gradient's norm; the last look at a step before it is taken."""
        norm = super()._get_grad_norm(self._terms.beside(model), grad_norm)
        losses, self._window_losses = self._window_losses, []
        # Under fp16 an overflowing gradient is the loss scaler's business: it skips the step and lowers the scale.
        decisive: list[Any] = losses if getattr(self.accelerator, "scaler", None) is not None else [*losses, norm]
        if not all(math.isfinite(float(value)) for value in decisive):
            raise non_finite_error(
                self._student,
                self.objective,
                self.teacher,
                [self._prepare_inputs(batch) for batch in self._window],  # pyright: ignore[reportArgumentType]
                self.state.global_step + 1,
                self._progress,
                self.class_map,
            )
        return norm

    @property
    def _progress(self) -> float:
        return self.state.global_step / max(self.state.max_steps, 1)

    def _check_before_first_step(self) -> None:
        data = self._transfer_set
        check_labels_for(self.objective, data)
        if isinstance(self.teacher, StoredTeacher):
            self.teacher.check(data)
        first = first_with_rows(data, _PROBED)
        with torch.random.fork_rng(devices=[]):
            batch: Any = self._prepare_inputs(data.batch(first))  # pyright: ignore[reportArgumentType]
            said = teacher_signals(self.teacher, batch, self._shared)
            student = first_signals(self._student, batch, self._layers, self._shared)
            refuse_texts_that_see_one_another(self._student, self.teacher, data, first)
        self.objective.check(student, said, all_rows(data))
        self._probe = probe(batch, said)
        if not self._fitted:
            self.objective, self._fitted = self.objective.fitted(student, said, self.args.seed), True
            self._terms = TermWeights(self.objective.weights.to(self.args.device))
            if self.args.process_index == 0:
                say_adjustments(self.objective)
        self._terms.check(self._own_scheduler, self.accelerator)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            self._terms.save(Path(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self._terms.load(Path(checkpoint))

    # Logging

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with what there is to say of the steps since the last training line."""
        if "loss" in logs:
            logs.update(self._step_log.line(self._over_processes))
            if self._writer is not None:
                logs.update(self._writer.line(self._over_processes, self.args.device))
            if (budget := time_budget(self.callback_handler.callbacks)) is not None:
                logs["training_seconds"] = budget.spent
        super().log(logs, start_time)

    def _over_processes(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        total: Any = self.accelerator.reduce(value, "sum") if self._processes > 1 else value
        return total

    def floating_point_ops(self, inputs: Any) -> int:
        """Training FLOPs of a batch where the student can tell (Hugging Face models), else 0."""
        student = inputs["student"]
        return super().floating_point_ops(dict(student)) if isinstance(student, Mapping) else 0

    # What this run is

    @property
    def fingerprint(self) -> Fingerprint:
        """What decides this run's weights, as it is written into each checkpoint."""
        student, data = unwrapped(self._student), self._transfer_set
        run = describe_run(self.args, self.objective, student, data, self._own_optimizer, self.class_map)
        own: dict[str, Any] = {"on_policy": self._on_policy.describe()} if self._on_policy is not None else {}
        if (budget := time_budget(self.callback_handler.callbacks)) is not None:
            own["time_budget"] = budget.seconds
        return {**run, **own, **self._extra_fingerprint}

    def identify(self) -> Fingerprint:
        """The fingerprint with a probe of the views and the teacher, after checking that everything fits together.

        Raises:
            ObjectiveError, TeacherError, ModelError: as :meth:`train`.
        """
        self._check_before_first_step()
        return self._identity

    @property
    def _identity(self) -> Fingerprint:
        return with_probe(self.fingerprint, self._probe)
