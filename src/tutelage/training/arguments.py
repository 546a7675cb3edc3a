"""The trainer's arguments: Hugging Face's own, with the defaults that distillation needs, and those that mean nothing here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainingArguments

from tutelage.errors import ConfigError
from tutelage.training.feeding import STRATEGIES


@dataclass
class DistillationArguments(TrainingArguments):
    """``transformers.TrainingArguments`` with four other defaults.

    - ``remove_unused_columns=False``: Hugging Face would drop what the *student's* forward does not name, and with it
      the teacher's inputs.
    - ``logging_nan_inf_filter=False``: it hides a NaN loss from the log; here such a loss stops the run.
    - ``restore_callback_states_from_checkpoint=True``: a resumed run would count early stopping's patience from 0 again
      and end elsewhere than an undisturbed one.
    - ``dataloader_pin_memory`` only where there is an accelerator to copy to.
    """

    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Keep False: the teacher's inputs would be dropped."}
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Keep False: True hides a NaN loss from the log."}
    )
    restore_callback_states_from_checkpoint: bool = field(
        default=True, metadata={"help": "Keep True: a resumed run would stop early at another step."}
    )
    dataloader_pin_memory: bool = field(
        default_factory=torch.cuda.is_available, metadata={"help": "Pin batches in memory for faster copies to a GPU."}
    )

    def __post_init__(self) -> None:
        _refuse_impossible(self)
        super().__post_init__()


def _refuse_impossible(args: TrainingArguments) -> None:
    """Numbers under which nothing would be learnt, or the failure would come hours later from somewhere else."""
    limits: dict[str, tuple[float, bool]] = {
        "per_device_train_batch_size": (1, True),
        "per_device_eval_batch_size": (1, True),
        "gradient_accumulation_steps": (1, True),
        "num_train_epochs": (0, False),
        "learning_rate": (0, False),
        "logging_steps": (0, False),
        "eval_steps": (0, False),
        "save_steps": (0, False),
    }
    for name, (least, included) in limits.items():
        value = getattr(args, name)
        if value is None:
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or value < least or (value == least and not included):
            raise ConfigError(
                f"{name} is {value!r}, expected a number {'of at least' if included else 'above'} {least}"
            )


def refuse_idle_arguments(args: TrainingArguments, options: Mapping[str, Any]) -> None:
    """Refuse arguments of ``TrainingArguments`` and options of ``Trainer`` that would do nothing, or harm, here.

    Raises:
        ConfigError: names the first of them, and what to use instead.
    """
    if not isinstance(args, DistillationArguments):
        raise ConfigError(
            f"args is a {type(args).__name__}, expected tutelage.DistillationArguments, which has the same arguments with the defaults "
            "that distillation needs"
        )
    accelerator_config: Any = args.accelerator_config
    sharding = [name for name in ("split_batches", "dispatch_batches") if getattr(accelerator_config, name, None)]
    wanted = {"inputs", "loss"} & set(args.include_for_metrics or ())
    refusals = {
        "remove_unused_columns=True would drop the teacher's inputs; leave it False": args.remove_unused_columns,
        f"label_smoothing_factor={args.label_smoothing_factor} would be ignored: the objective is the loss; use "
        "CrossEntropy(label_smoothing=…) in it": args.label_smoothing_factor,
        "compute_loss_func would never be called: the objective is the loss; write a Term": options.get(
            "compute_loss_func"
        ),
        "data_collator would never be called: a TransferSet is fetched a batch at a time; use its views": options.get(
            "data_collator"
        ),
        f"train_sampling_strategy={args.train_sampling_strategy!r} is not offered: the order of the examples is a function of "
        f"(seed, epoch), one of {', '.join(STRATEGIES)}": args.train_sampling_strategy not in STRATEGIES,
        f"accelerator_config: {' and '.join(sharding)} would be ignored: each process draws its own share of every batch; "
        "leave it out": sharding,
        "ignore_data_skip=True would show a resumed run examples that it has seen in this epoch already, and leave others "
        "out; leave it False": args.ignore_data_skip,
        f"label_names={args.label_names} would be ignored: labels are the transfer set's; leave it out": args.label_names,
        f"include_num_input_tokens_seen={args.include_num_input_tokens_seen!r} would count nothing: a batch is no bare mapping of "
        "model inputs; leave it out": str(args.include_num_input_tokens_seen).lower() not in ("no", "false"),
        f"include_for_metrics={args.include_for_metrics}: compute_metrics gets predictions and labels only; leave it "
        "out": wanted,
        "prediction_loss_only=True would be ignored: evaluation gives logits and labels to compute_metrics; leave it "
        "False": args.prediction_loss_only,
    }
    for message, refused in refusals.items():
        if refused:
            raise ConfigError(message)
    _refuse_idle_evaluation(args, options)


def _refuse_idle_evaluation(args: TrainingArguments, options: Mapping[str, Any]) -> None:
    """Held-out data has no loss here: a teacher of stored labels does not know it. Only ``compute_metrics`` measures."""
    if options.get("compute_metrics") is None and (str(args.eval_strategy.value) != "no" or args.eval_on_start):  # pyright: ignore[reportAttributeAccessIssue]
        raise ConfigError(
            f"eval_strategy={args.eval_strategy.value!r} without compute_metrics would measure nothing: there is no loss on held-out "  # pyright: ignore[reportAttributeAccessIssue]
            "data, for which a teacher may have no answer; give compute_metrics, or eval_strategy='no'"
        )
    selects = args.load_best_model_at_end or args.save_strategy == "best"
    if selects and (args.metric_for_best_model or "").removeprefix("eval_") == "loss":
        raise ConfigError(
            "metric_for_best_model='loss': there is no loss on held-out data, for which a teacher may have no answer, so no model "
            "would ever be the best; name one of compute_metrics' values"
        )
