"""An equal time for each: training that ends after so many seconds of its own."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from tutelage.errors import ConfigError


class TimeBudget(TrainerCallback, ExportableState):
    """Ends the training with the first step that is over ``seconds`` of training.

    What counts is what steps take, with the fetching of their batches and whatever is generated for them; evaluation, logging and
    checkpoints do not. A resumed run goes on with what is left, so that an interruption costs no training time. Each training line
    of the log says how many seconds there were (``training_seconds``).

    How many steps that are depends on the machine and on who else uses it: two runs end with weights of their own. A learning rate
    that falls with ``max_steps`` does not know of the time: use a constant one, with a warm-up, or as many steps as the time allows.

    Args:
        seconds: wall-clock time; on several processes the first one's.

    Raises:
        ConfigError: no time at all.
    """

    def __init__(self, seconds: float) -> None:
        number = isinstance(seconds, int | float) and not isinstance(seconds, bool)  # pyright: ignore[reportUnnecessaryIsInstance]
        if not number or not math.isfinite(seconds) or seconds <= 0:
            raise ConfigError(f"a time budget of {seconds!r}: expected a number of seconds above 0")
        self.seconds = float(seconds)
        self.spent = 0.0
        self._mark = time.perf_counter()

    @property
    def used_up(self) -> bool:
        """Whether nothing is left."""
        return self.spent >= self.seconds

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {"args": {"seconds": self.seconds}, "attributes": {"spent": self.spent}}

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Count the step, and end the training where nothing is left."""
        self.spent = _the_first_processes(self.spent + time.perf_counter() - self._mark, args.device)
        self._mark = time.perf_counter()
        if self.used_up:
            control.should_training_stop = control.should_log = True

    def on_event(self, args: Any, state: Any, control: Any, *_: Any, **__: Any) -> None:  # noqa: ARG002
        """Leave out what came before."""
        self._mark = time.perf_counter()

    on_train_begin = on_epoch_begin = on_log = on_evaluate = on_save = on_event


def time_budget(callbacks: Iterable[object]) -> TimeBudget | None:
    """The budget among a trainer's callbacks; after a resumption that is another object than was given."""
    return next((callback for callback in callbacks if isinstance(callback, TimeBudget)), None)


def _the_first_processes(seconds: float, device: torch.device) -> float:
    """The first process's clock, so that all stop at the same step."""
    if not torch.distributed.is_initialized():
        return seconds
    told = torch.tensor([seconds], dtype=torch.float64, device=device)
    torch.distributed.broadcast(told, src=0)
    return float(told)
