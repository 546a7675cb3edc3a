"""What an arm may spend: steps, or seconds of training in their place."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from typing import Any

from tutelage.studies.arm import TRAINING_DEFAULTS
from tutelage.training import DistillationArguments

#: What a study uses where the user's ``training`` says nothing; a model of hundreds of megabytes is saved less often than a small one.
LANGUAGE_DEFAULTS: dict[str, Any] = {
    **TRAINING_DEFAULTS,
    "eval_steps": 0.1,
    "save_steps": 0.25,
    "save_total_limit": 1,
    "per_device_eval_batch_size": 8,
}
#: The same where the time ends a training, and nobody knows how many steps there will be: none of them is the last, and the learning
#: rate does not fall towards it.
TIMED_DEFAULTS: dict[str, Any] = {
    **LANGUAGE_DEFAULTS,
    "max_steps": 1_000_000_000,
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": 20,
    "logging_steps": 10,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
}
#: Schedules of the learning rate that need not know which step is the last.
_ENDLESS = ("constant", "constant_with_warmup", "inverse_sqrt", "reduce_lr_on_plateau")
#: Arguments that may be a share of all steps.
_SHARES = ("warmup_steps", "logging_steps", "eval_steps", "save_steps")


def against_the_time(training: Mapping[str, Any]) -> list[str]:
    """What in ``training`` contradicts a budget of seconds, a sentence each."""
    problems: list[str] = []
    if "num_train_epochs" in training:
        problems.append(
            f"num_train_epochs is {training['num_train_epochs']} beside a budget of seconds: an arm whose epochs are over would have less "
            "time than the others, and still be compared as if it had as much; leave it out (max_steps may stay, as the most steps)"
        )
    steps = training.get("max_steps")
    if isinstance(steps, int) and steps < 1:
        problems.append(f"max_steps is {steps} beside a budget of seconds, expected at least 1: leave it out")
    schedule = str(getattr(kind := training.get("lr_scheduler_type"), "value", kind))
    if kind is not None and schedule not in _ENDLESS:
        problems.append(
            f"lr_scheduler_type is {schedule!r} beside a budget of seconds: it falls towards a last step, and nobody knows which that will "
            f"be, so that each arm would be cut off elsewhere on it; take one of {', '.join(_ENDLESS)}, or leave it out"
        )
    for name in _SHARES:
        value = training.get(name)
        if isinstance(value, float) and 0 < value < 1:
            problems.append(
                f"{name} is {value}, a share of all steps, beside a budget of seconds: nobody knows how many there will be; give "
                "a number of steps"
            )
    return problems


def time_left(spent: float | None, seconds: float | None) -> str | None:
    """In words, that an arm ended before its time was used up; None where it did not."""
    if seconds is None or spent is None or spent >= seconds:
        return None
    return f"ended by max_steps after {spent:,.3g} of {seconds:,.3g} s"


def as_many_steps(training: Mapping[str, Any], examples: int, judged: int) -> Mapping[str, Any]:
    """``training`` under which an arm makes as many steps as the judged one, where that is not so by itself.

    Epochs of a set that is four times as large are four times as many steps: the arm would be trained, not taught, better.

    Args:
        training: arguments of :class:`DistillationArguments`, by name.
        examples: that the arm learns from.
        judged: that the judged arm learns from.
    """
    if examples == judged or training.get("max_steps", -1) > 0:
        return training
    with tempfile.TemporaryDirectory() as aside:
        arguments = DistillationArguments(output_dir=aside, **{**LANGUAGE_DEFAULTS, **training})
    batches = judged / (arguments.train_batch_size * arguments.world_size)
    whole = math.floor(batches) if arguments.dataloader_drop_last else math.ceil(batches)
    an_epoch = max(math.ceil(whole / arguments.gradient_accumulation_steps), 1)
    return {**training, "max_steps": math.ceil(arguments.num_train_epochs * an_epoch)}
