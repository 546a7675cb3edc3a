"""Made-up records of inspected teachers, for the section on what a teacher knows."""

from __future__ import annotations

import copy
import math
import random
from typing import Any

from example import CLASSES, png

TEMPERATURES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)


def _row(temperature: float, classes: int, labelled: bool = True) -> dict[str, Any]:
    most = math.log(classes)
    mean = most * (1 - math.exp(-((temperature / 8) ** 1.5)))
    low, high = 0.8 * mean, min(most, 1.15 * mean)
    return {
        "temperature": temperature,
        "entropy": {"mean": mean, "p10": low, "p50": mean, "p90": high},
        "effective_classes": {
            "mean": math.exp(mean),
            "p10": math.exp(low),
            "p50": math.exp(mean),
            "p90": math.exp(high),
        },
        "top": 1 - 0.8 * mean / most,
        "off_label": 0.9 * mean / most if labelled else None,
        "beyond_label": 0.3 * mean / most if labelled else None,
        "pull": {
            "untrained": {"ratio": 1 + 2 * mean, "cosine": 1 - 0.1 * mean, "even_weight": 1 / (2 + 2 * mean)},
            "trained": {"ratio": 1 + 5 * mean, "cosine": 0.9 - 0.3 * mean, "even_weight": 1 / (2 + 5 * mean)},
        }
        if labelled
        else {"untrained": None, "trained": None},
    }


def _quality(accuracy: float, examples: int) -> dict[str, Any]:
    return {
        "accuracy": accuracy,
        "macro_f1": accuracy,
        "nll": 0.041,
        "brier": 0.026,
        "ece": 0.016,
        "examples": examples,
        "confidence": 0.992,
        "over_confidence": 0.992 - accuracy,
        "over_confidence_se": 0.004,
    }


def _matrix(classes: int, rng: random.Random) -> list[list[float | None]]:
    rows: list[list[float | None]] = []
    for own in range(classes):
        weights = [0.0 if other == own else rng.random() ** 4 for other in range(classes)]
        rows.append([weight / sum(weights) for weight in weights])
    return rows


def digits() -> dict[str, Any]:
    """A good teacher of pictures, beside a run."""
    rng = random.Random(5)
    shown = [
        {
            "id": f"{index:016x}",
            "split": "validation",
            "label": CLASSES[7 - index],
            "second": CLASSES[index + 1],
            "probabilities": [0.8, share],
            "softened": [0.5, 0.2],
            "image": png(rng),
            "text": None,
        }
        for index, share in enumerate((0.12, 0.071, 0.004))
    ]
    return {
        "tutelage": "0.1.0",
        "started": "2026-11-21T09:00:00+00:00",
        "seconds": 1.2,
        "title": "digits, 128 labels",
        "command": "tutelage inspect examples/digits/config.yaml",
        "classes": CLASSES,
        "teacher": {"given": False, "members": None},
        "asked": {"train": 1168, "of": 1168, "labelled": 1168, "validation": 270},
        "quality": {"validation": _quality(0.981, 270), "train": _quality(1.0, 1168)},
        "rivals": [
            {
                "name": "the student without a teacher",
                "kind": "student",
                "about": "5 seeds of this run",
                "accuracy": 0.929,
                "difference": -0.052,
                "ci95": [-0.08, -0.02],
            }
        ],
        "renumbering": {"accuracy": 0.981, "renumbered": 0.981},
        "augmentation": None,
        "temperatures": [_row(temperature, 10) for temperature in TEMPERATURES],
        "student": "kd/seed-0",
        "similarity": {
            "temperature": 4.0,
            "matrix": _matrix(10, rng),
            "order": [5, 9, 1, 8, 3, 2, 7, 4, 6, 0],
            "pairs": [[2, 3, 0.364], [4, 7, 0.292], [1, 8, 0.241]],
        },
        "examples": {"temperature": 4.0, "shown": shown},
        "advice": {
            "temperature": {"low": 1.0, "high": 8.0, "try": [1.0, 2.0, 4.0, 8.0]},
            "weight": {"low": 0.8, "high": 1.0},
            "reasons": ["89.0% of the transfer set has no label: the range begins at T = 1."],
            "hedge": "This is a rule of thumb and no promise.",
        },
        "warnings": [{"kind": "near_one_hot", "text": "The targets are near one-hot at T = 1; that stops at T = 4."}],
    }


def texts() -> dict[str, Any]:
    """An ensemble that reads texts of 26 long-named classes, on which it is warned of twice."""
    record = digits()
    names = [f"noun.{name}" for name in "abcdefghijklmnopqrstuvwxy"] + ["noun.communication-of-thoughts"]
    rng = random.Random(9)
    for example in record["examples"]["shown"]:
        example |= {"image": None, "text": "the highest point of a hill <or> of a career", "label": names[3]}
        example["second"] = names[-1]
    return record | {
        "classes": names,
        "teacher": {"given": True, "members": 5},
        "asked": {"train": 10_000, "of": 72_000, "labelled": 900, "validation": 4_000},
        "temperatures": [_row(temperature, 26) for temperature in TEMPERATURES],
        "similarity": {
            "temperature": 4.0,
            "matrix": _matrix(26, rng),
            "order": list(range(26))[::-1],
            "pairs": [[0, 25, 0.5], [3, 4, 0.2]],
        },
        "warnings": [
            {"kind": "over_confident", "text": "The teacher is over-confident: 99.2% sure and 90.1% right."},
            {"kind": "augmentation", "text": "Training batches are augmented and the teacher was trained elsewhere."},
        ],
    }


def many() -> dict[str, Any]:
    """A thousand classes of numbers, nothing labelled in the transfer set, nothing to warn of."""
    record = digits()
    for example in record["examples"]["shown"]:
        example |= {"image": None, "text": None}
    record["quality"]["train"] = None
    return record | {
        "classes": [f"class {index}" for index in range(1000)],
        "temperatures": [_row(temperature, 1000, labelled=False) for temperature in TEMPERATURES],
        "similarity": {"temperature": 8.0, "matrix": None, "order": None, "pairs": [[3, 999, 0.31]]},
        "student": None,
        "rivals": [],
        "warnings": [],
    }


def bare() -> dict[str, Any]:
    """The least that a section can be made of."""
    return {
        "classes": ["yes", "no"],
        "temperatures": [{"temperature": 1.0}],
        "quality": {"validation": {"accuracy": 0.9}},
    }


def holed() -> dict[str, Any]:
    """What an ill teacher leaves: rows of the matrix that nobody knows, and numbers that are none."""
    record = copy.deepcopy(digits())
    record["similarity"]["matrix"][4] = [None] * 10
    record["temperatures"][2]["entropy"]["mean"] = None
    record["temperatures"][0]["pull"]["trained"]["ratio"] = 0.0
    record["examples"]["shown"] = []
    record["advice"]["weight"] = {"low": 0.0, "high": 0.0}
    return record


INSPECTIONS = {"digits": digits, "texts": texts, "many": many, "bare": bare, "holed": holed}
