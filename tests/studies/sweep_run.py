"""A sweep as a user's script would start it: ``sweep_run.py FOLDER WORKERS``; every training step of it takes a while."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from sweeps import Listening, Make, base, search
from tiny import CLASSES, TRAINING, WIDTH
from torch import Tensor, nn
from transformers.utils import logging

from tutelage.studies.sweeping import run_sweep
from tutelage.studies.sweeping.search import Search
from tutelage.studies.sweeping.space import Choices

STEP_SECONDS = 0.02
TEMPERATURES = (1.0, 2.0, 4.0)


class Slow(nn.Module):
    """A linear model that takes its time."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            time.sleep(STEP_SECONDS)
        return self.layer(inputs)


def slow_search() -> Search:
    training = {**TRAINING, "num_train_epochs": 6, "eval_strategy": "no"}
    # one by one: what is left half done is then a student of its own, with the numbers it always has
    study = base(student=Slow, training=training, together=False)
    return search({"temperature": Choices(TEMPERATURES)}, make=Make(study), seeds=(0, 1))


class Printing(Listening):
    """Prints what is finished, for whoever waits for it."""

    def finished(self, what: str, outcome: str) -> None:
        sys.stdout.write(f"{what}: {outcome}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    logging.set_verbosity_error()
    run_sweep(slow_search(), Path(sys.argv[1]), Printing(), workers=int(sys.argv[2]))
