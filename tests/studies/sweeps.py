"""A sweep small enough to run in seconds, and what its trials found without what a clock decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tiny import TRAINING, study

from tutelage import KL, CrossEntropy, Study
from tutelage.studies.sweeping.search import Search
from tutelage.studies.sweeping.space import Choices, Params, Range
from tutelage.studies.sweeping.trials import Candidate

QUICK = {**TRAINING, "num_train_epochs": 1, "eval_strategy": "no", "save_strategy": "no"}


def base(**changes: Any) -> Study:
    return study(**{"seeds": 1, "arms": ("kd",), "training": QUICK, **changes})


@dataclass
class Make:
    """The candidates of a temperature, a weight and a learning rate."""

    study: Study = field(default_factory=base)

    def __call__(self, params: Params) -> Candidate:
        values = {"temperature": 1.0, "weight": 0.9, "learning_rate": 0.05, **params}
        objective = values["weight"] * KL(temperature=values["temperature"]) + (1 - values["weight"]) * CrossEntropy()
        training = {**self.study.training, "learning_rate": values["learning_rate"]}
        made = replace(self.study, objective=objective, training=training)
        return Candidate(made, values)


GRID = {"temperature": Choices((1.0, 4.0)), "weight": Choices((0.5, 0.9))}
RANGES = {"temperature": Range(1.0, 8.0, log=True), "weight": Choices((0.5, 0.9))}


def search(space: Mapping[str, Choices | Range] = GRID, **changes: Any) -> Search:
    return Search(**{"space": space, "make": Make(), "seeds": (0, 1), **changes})


def found(result: Mapping[str, Any]) -> list[Any]:
    """The trials without their seconds."""
    return [
        {**trial, "seeds": [{k: v for k, v in row.items() if k != "seconds"} for row in trial["seeds"]]}
        for trial in result["trials"]
    ]


class Listening:
    """Notes what is finished, and can stop the sweep there."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.lines: list[tuple[str, str]] = []
        self._stop_after = stop_after

    @property
    def trained(self) -> list[str]:
        return [what for what, outcome in self.lines if outcome != "done in an earlier run"]

    def started(self, what: str, total_steps: int, steps_done: int) -> None:
        pass

    def advanced(self, steps_done: int) -> None:
        pass

    def finished(self, what: str, outcome: str) -> None:
        self.lines.append((what, outcome))
        if self._stop_after is not None and len(self.lines) >= self._stop_after:
            raise KeyboardInterrupt
