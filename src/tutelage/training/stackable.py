"""What may be trained in a stack: only what comes out as it would alone."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd  # pyright: ignore[reportPrivateUsage]
from transformers import EarlyStoppingCallback

from tutelage.data import TransferSet
from tutelage.models import count_parameters
from tutelage.objectives import Objective
from tutelage.training.arguments import DistillationArguments
from tutelage.training.trainer import DistillationTrainer

#: Students of more parameters train alone. A stack saves what a step costs beside its arithmetic (one to two milliseconds of
#: processor time), and loses the processor's caches. Processor time a student and step, alone against one of 30 (one core,
#: batch 128, MLPs on 28×28 images): 24 thousand parameters 4 times less, 100 thousand 3, 330 thousand 1.9, 640 thousand 1.1,
#: 1.3 million 1.3.
LARGEST = 750_000

#: Arguments that a stack does as the trainer does; any other must have its default.
_DONE_ALIKE = frozenset(
    {
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
        "data_seed",
        "dataloader_drop_last",
        "eval_delay",
        "eval_steps",
        "eval_strategy",
        "learning_rate",
        "logging_first_step",
        "logging_steps",
        "logging_strategy",
        "lr_scheduler_kwargs",
        "lr_scheduler_type",
        "max_grad_norm",
        "max_steps",
        "num_train_epochs",
        "per_device_eval_batch_size",
        "per_device_train_batch_size",
        "save_steps",
        "save_strategy",
        "save_total_limit",
        "seed",
        "train_sampling_strategy",
        "warmup_ratio",
        "warmup_steps",
        "weight_decay",
    }
)
#: Arguments that say where things go and how they are fetched, and decide no number.
_NO_NUMBERS = frozenset(
    {
        "dataloader_num_workers",
        "dataloader_persistent_workers",
        "dataloader_pin_memory",
        "dataloader_prefetch_factor",
        "disable_tqdm",
        "do_eval",
        "log_level",
        "logging_dir",
        "output_dir",
        "run_name",
        "use_cpu",
    }
)
#: Arguments that may differ within a stack.
_OWN = frozenset({"seed", "data_seed", "learning_rate", "weight_decay"})
_OPTIMISERS = ("adamw_torch", "adamw_torch_fused")
_SCHEDULERS_THAT_LOOK = ("reduce_lr_on_plateau", "greedy")


def why_alone(trainer: DistillationTrainer) -> str | None:
    """Why this training cannot be one of a stack, in words; None where it can."""
    args, student = trainer.args, _student(trainer)
    data = trainer.train_dataset
    reasons = (
        "its rows are tokens" if isinstance(data, TransferSet) and data.token_level else None,
        "a class map is declared" if trainer.class_map is not None else None,
        _of_arguments(args),
        why_student_alone(student),
        _of_objective(trainer.objective),
        "it is validated on several sets, or none that could be shared"
        if trainer.eval_dataset is not None and not isinstance(trainer.eval_dataset, TransferSet)
        else None,
        "a callback may stop it early"
        if any(isinstance(one, EarlyStoppingCallback) for one in trainer.callback_handler.callbacks)
        else None,
    )
    return next((reason for reason in reasons if reason is not None), None)


def why_plan_alone(training: Mapping[str, Any], objective: Objective) -> str | None:
    """As :func:`why_alone`, as far as it can be told before the student is built."""
    unknown = sorted(set(training) - _DONE_ALIKE - _NO_NUMBERS - {field.name for field in _plain_arguments()[0]})
    return f"training.{unknown[0]} is no argument that a stack knows" if unknown else _of_objective(objective)


def kind(trainer: DistillationTrainer) -> tuple[Any, ...]:
    """What must be equal of two trainings for one stack to hold both, beside their data."""
    arguments = tuple(repr(getattr(trainer.args, name, None)) for name in sorted(_DONE_ALIKE - _OWN))
    return trainer.fingerprint["student"], trainer.compute_metrics, arguments


def same_set(a: TransferSet | None, b: TransferSet | None) -> bool:
    """Whether two transfer sets show the same examples with the same labels through the same views."""
    if a is b or a is None or b is None:
        return a is b
    views = all(getattr(a, name) == getattr(b, name) for name in ("student_view", "teacher_view", "augment", "seed"))
    return views and torch.equal(a.ids, b.ids) and torch.equal(a.known_labels, b.known_labels)


def _of_arguments(args: DistillationArguments) -> str | None:
    fields, plain = _plain_arguments()
    unknown = [
        field.name
        for field in fields
        if field.name not in _DONE_ALIKE | _NO_NUMBERS | {"optim"}
        and getattr(args, field.name) != getattr(plain, field.name)
    ]
    if unknown:
        return f"training.{unknown[0]} is {getattr(args, unknown[0])!r}, which a stack does not do"
    if str(getattr(args.optim, "value", args.optim)) not in _OPTIMISERS:
        return f"the optimiser is {getattr(args.optim, 'value', args.optim)}: a stack has AdamW alone"
    scheduler = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
    if scheduler in _SCHEDULERS_THAT_LOOK:
        return f"the learning rate follows what is measured ({scheduler})"
    if args.device.type != "cpu" or args.world_size > 1:
        return "it runs on an accelerator or in several processes"
    return None


@functools.cache
def _plain_arguments() -> tuple[tuple[dataclasses.Field[Any], ...], DistillationArguments]:
    with tempfile.TemporaryDirectory() as aside:
        plain = DistillationArguments(output_dir=aside, report_to="none")
    return dataclasses.fields(plain), plain


def why_student_alone(student: nn.Module) -> str | None:
    """As :func:`why_alone`, as far as the student tells."""
    size = count_parameters(student)
    if size > LARGEST:
        return f"the student has {size:,} parameters, above {LARGEST:,}: its own arithmetic fills the processor"
    if not any(values.requires_grad for values in student.parameters()):
        return "the student has nothing to train"
    if any(isinstance(module, _ConvNd) for module in student.modules()):
        return "the student has convolutions, which are no faster in a stack"
    tensors = [*student.parameters(), *student.buffers()]
    if any(values.is_floating_point() and values.dtype != torch.float32 for values in tensors):
        return "the student is not in float32"
    return None


def _of_objective(objective: Objective) -> str | None:
    features = sorted(need for need in objective.needs if need not in ("student.logits", "teacher.logits", "labels"))
    if features:
        return f"the objective reads {features[0]}: a stack gives logits alone"
    if len(objective.weights):
        return "the objective has weights of its own"
    if not any(component.weight.extremes()[0] > 0.0 for component in objective.components):
        return "the objective may weigh nothing for a while, when the optimiser of a training alone rests"
    return None


def _student(trainer: DistillationTrainer) -> nn.Module:
    assert isinstance(trainer.model, nn.Module)
    return trainer.model
