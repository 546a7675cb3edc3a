"""What finished runs say: each arm's scores, differences between arms, and the share of a gap that was closed."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from scipy.optimize import brentq
from scipy.special import softmax

from tutelage.evaluation import Comparison, crossed_interval, paired_comparison

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Finished:
    """The folder of a run: ``result.json``, and the predictions of each arm and seed beside it."""

    folder: Path

    @cached_property
    def result(self) -> Mapping[str, Any]:
        """What ``result.json`` holds."""
        return json.loads((self.folder / "result.json").read_text())

    def arm(self, name: str) -> Mapping[str, Any]:
        """An arm of ``result.json``."""
        return self.result["arms"][name]

    def correct(self, name: str) -> Scores:
        """Which test examples an arm has right, 0 or 1 ``[S, N]``; of an ensemble, by the mean of its members' probabilities."""
        if name == "teacher":
            return right_answers(*sorted(self.folder.glob("teacher/member-*")))[None]
        folders = [self.folder / name / f"seed-{row['seed']}" for row in self.arm(name)["seeds"]]
        return np.stack([right_answers(folder) for folder in folders])

    def difference(self, name: str, other: str) -> Comparison:
        """Accuracy of one arm minus that of another, paired by seed and test example."""
        return paired_comparison(self.correct(name), self.correct(other), "accuracy", higher_is_better=True)


def right_answers(*folders: Path) -> Scores:
    """Which test examples the model in a folder has right, or those of several together, 0 or 1 ``[N]``."""
    said = [load_file(folder / "predictions.safetensors") for folder in folders]
    together = np.mean([softmax(answers["logits"], axis=1) for answers in said], axis=0)
    return (together.argmax(axis=1) == said[0]["labels"]).astype(np.float64)


@dataclass(frozen=True)
class Share:
    """A share of a gap with its 95% interval; an end that the data cannot bound is infinite."""

    mean: float
    low: float
    high: float


def gap_share(student: Scores, scratch: Scores, teacher: Scores) -> Share:
    """How much of the gap between the student alone and its teacher was closed: (student − scratch) / (teacher − scratch).

    The interval holds every ρ for which "student − scratch − ρ · (teacher − scratch) is 0" is not refused over other seeds and
    other examples (Fieller's, on the two-way layout of :func:`tutelage.evaluation.crossed_interval`), so that the denominator
    is not taken for certain.

    Args:
        student, scratch: 0 or 1 ``[S, N]``, of the same seeds and examples.
        teacher: ``[1, N]``.
    """

    def end(side: str) -> Callable[[float], float]:
        return lambda share: getattr(crossed_interval(student - scratch - share * (teacher - scratch)), side)

    def root(side: str, missing: float) -> float:
        least, most = -20.0, 20.0
        ends = end(side)(least), end(side)(most)
        found: Any = brentq(end(side), least, most, xtol=1e-4) if ends[0] > 0 > ends[1] else missing
        return float(found)

    mean = float((student - scratch).mean() / (teacher - scratch).mean())
    return Share(mean, root("low", -math.inf), root("high", math.inf))
