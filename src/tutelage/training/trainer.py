"""``DistillationTrainer``: a ``transformers.Trainer`` whose loss is an objective over a teacher's and a student's signals."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedType, send_to_device
from torch import Tensor, nn

from tutelage.data import Batch, TransferSet
from tutelage.errors import ConfigError, ModelError, NonFiniteError, ObjectiveError
from tutelage.models import class_logits
from tutelage.models.calling import unwrapped
from tutelage.objectives import Objective, Term, as_objective
from tutelage.signals import Logits, Rows, Signals
from tutelage.teachers import ModuleTeacher, Teacher, as_teacher
from tutelage.training.arguments import DistillationArguments, refuse_idle_arguments
from tutelage.training.checkpoints import Fingerprint
from tutelage.training.committing import AbstractCommittingTrainer
from tutelage.training.feeding import EpochBatches, EpochLoader, already_batched
from tutelage.training.guard import bad_logits, name_examples, non_finite_error, non_finite_weights
from tutelage.training.identity import describe_optimizer, describe_run, probe, with_probe

_PROBED = 4


class DistillationTrainer(AbstractCommittingTrainer):
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
        eval_dataset: a set to evaluate on, without augmentation, or several by name; needs ``compute_metrics``.
        fingerprint: more facts that must not change between a run and its resumption.
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
        fingerprint: Fingerprint | None = None,
        **options: Any,
    ) -> None:
        refuse_idle_arguments(args, options)
        _expect_transfer_set(train_dataset, "train_dataset")
        self.objective = as_objective(objective)
        self.objective.validate()
        self.teacher = as_teacher(teacher) if teacher is not None else None
        if isinstance(self.teacher, ModuleTeacher) and self.teacher.model is model:
            raise ConfigError(
                "teacher and student are one and the same module: it would always agree with itself and learn nothing; give a copy "
                "(copy.deepcopy) of it as the teacher"
            )
        self._extra_fingerprint = dict(fingerprint or {})
        optimizer, _ = options.get("optimizers", (None, None))
        kind = options.get("optimizer_cls_and_kwargs")
        self._own_optimizer = describe_optimizer(optimizer, kind)
        self._probe: dict[str, list[float]] = {}
        self._begin_window_log()
        if isinstance(eval_dataset, Mapping):
            held_out: Any = {name: _held_out(subset) for name, subset in eval_dataset.items()}
        else:
            held_out = _held_out(eval_dataset)
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=held_out,
            data_collator=already_batched,  # pyright: ignore[reportArgumentType]
            **options,
        )
        self.label_names = ["labels"]
        if isinstance(self.teacher, ModuleTeacher) and self.place_model_on_device:
            self.teacher.model.to(self.args.device)  # pyright: ignore[reportArgumentType, reportCallIssue]

    def _begin_window_log(self) -> None:
        """Forget an earlier training's unfinished window and unlogged components."""
        self._window: list[Batch] = []
        self._window_counts: Tensor | None = None
        self._window_losses: list[Tensor] = []
        self._component_sums: dict[str, Tensor] = {}
        self._component_steps = 0

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
            shuffle=args.train_sampling_strategy == "random",
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

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """As ``Trainer.get_eval_dataloader``, without augmentation."""
        named = eval_dataset is None or isinstance(eval_dataset, str)
        return super().get_eval_dataloader(eval_dataset if named else _held_out(eval_dataset))

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        """As ``Trainer.get_test_dataloader``, without augmentation."""
        return super().get_test_dataloader(_held_out(test_dataset))  # pyright: ignore[reportArgumentType]

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Collect the micro-batches of one step, and what each component must be divided by, over all processes."""
        self._window = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        counts = functools.reduce(torch.add, (self.objective.counts(_rows(batch)) for batch in self._window))
        self._window_counts = self._over_processes(counts.to(device))
        self._component_steps += 1
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
        """This micro-batch's share of the step's loss."""
        values = class_logits(model, inputs["student"])
        said = self.teacher.signals(inputs) if self.teacher is not None else None
        outcome = self.objective(
            Signals(Logits(values)),
            said,
            _rows(inputs),
            progress=self._progress,
            counts=self._window_counts,
        )
        for name, value in outcome.components.items():
            before = self._component_sums.get(name)
            self._component_sums[name] = value if before is None else before + value
        self._window_losses.append(outcome.total.detach())
        # Data-parallel wrappers average gradients over processes; the counts are already those of all of them.
        total = outcome.total * self._processes if self._processes > 1 else outcome.total
        return (total, {"logits": values}) if return_outputs else total

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """As ``Trainer``'s, past ``accelerate``'s questions about loss scalers and shards where there are none."""
        if not self._autograd_alone:
            return super()._clip_grad_norm(model)
        return nn.utils.clip_grad_norm_(model.parameters(), self.args.max_grad_norm)

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
        norm = super()._get_grad_norm(model, grad_norm)
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
        with torch.random.fork_rng(devices=[]):
            batch: Any = self._prepare_inputs(data.batch(torch.arange(min(_PROBED, len(data)))))  # pyright: ignore[reportArgumentType]
            said = self.teacher.signals(batch) if self.teacher is not None else None
            values = _answer_once(self._student, batch)
        student = Signals(Logits(values))
        self.objective.check(student, said, {"labels": data.known_labels, "ids": data.ids})
        self._probe = probe(batch, said)

    # Logging and evaluation

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with each component's mean per step since the last training line."""
        if "loss" in logs and self._component_sums:
            for name, value in self._component_sums.items():
                logs[f"loss/{name}"] = float(self._over_processes(value)) / max(self._component_steps, 1)
            self._component_sums = {}
            self._component_steps = 0
        super().log(logs, start_time)

    def _over_processes(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        total: Any = self.accelerator.reduce(value, "sum") if self._processes > 1 else value
        return total

    def evaluate(self, *args: Any, **options: Any) -> dict[str, float]:
        """As ``Trainer.evaluate``; ``compute_metrics`` says what is measured."""
        if self.compute_metrics is None:
            raise ConfigError(
                "evaluate without compute_metrics would measure nothing: there is no loss on held-out data, for which a teacher may "
                "have no answer; give compute_metrics, or call predict for the logits"
            )
        return super().evaluate(*args, **options)

    def evaluation_loop(self, *args: Any, **options: Any) -> Any:
        """As ``Trainer``'s; it leaves the generator as it was, or a look at held-out data would change the training."""
        with torch.random.fork_rng(devices=[]):
            return super().evaluation_loop(*args, **options)

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

    # What this run is

    @property
    def fingerprint(self) -> Fingerprint:
        """What decides this run's weights, as it is written into each checkpoint."""
        run = describe_run(self.args, self.objective, unwrapped(self._student), self._transfer_set, self._own_optimizer)
        return {**run, **self._extra_fingerprint}

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


def _expect_transfer_set(dataset: Any, argument: str) -> None:
    if not isinstance(dataset, TransferSet):
        raise ConfigError(
            f"{argument} is a {type(dataset).__name__}, expected a tutelage.TransferSet: without content ids a stored label "
            "could meet the wrong row; TransferSet.from_dataset reads a datasets.Dataset"
        )


def _held_out(dataset: Any) -> TransferSet | None:
    if dataset is None:
        return None
    _expect_transfer_set(dataset, "eval_dataset")
    return dataset.for_evaluation()


def _answer_once(student: nn.Module, batch: Any) -> Tensor:
    """The student's logits ``[B, C]`` for a first look, in eval mode; the model is as before afterwards."""
    training = student.training
    device = next((parameter.device for parameter in student.parameters()), batch["ids"].device)
    student.eval()
    with torch.no_grad():
        values = class_logits(student, send_to_device(batch["student"], device)).to(batch["ids"].device)
    student.train(training)
    bad_rows = bad_logits(values)
    if len(values) != len(batch["ids"]):
        raise ModelError(
            f"the student {type(student).__name__} gave {len(values)} rows for {len(batch['ids'])} examples: rows would meet other "
            "examples' labels; return one row an example"
        )
    if bool(bad_rows.any()):
        cause = non_finite_weights(student) or "its weights are finite, so look at the model and its inputs"
        raise NonFiniteError(
            f"the student's logits are not finite before the first step, for {name_examples(batch['ids'][bad_rows])}: {cause}. "
            "Nothing can be learnt from there; initialise or load it anew"
        )
    return values


def _rows(batch: Any) -> Rows:
    return {"labels": batch["labels"], "ids": batch["ids"]}
