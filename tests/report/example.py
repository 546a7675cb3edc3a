"""Made-up records of runs, for the page: a run that ships, and variants of it."""

from __future__ import annotations

import base64
import copy
import math
import random
import struct
import zlib
from typing import Any

CLASSES = [str(digit) for digit in range(10)]
TEST = 359
ARMS = {"teacher": 0.986, "kd": 0.972, "scratch": 0.923, "label_smoothing": 0.931}
DESCRIPTIONS = {
    "teacher": "a CNN trained on the labels of the whole training split",
    "kd": "the student, trained with the objective of the config",
    "scratch": "the student, trained with cross-entropy on the labels alone",
    "label_smoothing": "the student, trained with cross-entropy on labels smoothed by 0.1",
    "direct": "the student, taught by the teacher without a detour",
    "born_again": "the student, taught by its own last generation",
    "mutual": "the student, taught by a peer that it teaches",
}
CONFIG = """task: classification
data:
  source: digits
  labelled: 128
  splits: {validation: 0.15, test: 0.2}
teacher:
  model: {python: "models.py:teacher"}
objective:
- {term: kl, temperature: 1, weight: 0.9}
- {term: cross_entropy, weight: 0.1}
study: {seeds: 5, arms: [kd, scratch, label_smoothing]}
"""
TEXTS = [
    "a small hard-shelled fruit with a single edible kernel",
    "the highest point of a hill or of a career",
    "someone who keeps watch over a place or a person\nand is paid for it",
]


def png(rng: random.Random, size: int = 8) -> str:
    """A grey PNG of ``size`` by ``size`` pixels, as a ``data:`` URI."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = []
    for y in range(size):
        near = [math.exp(-((((x - 3.4) ** 2 + (y - 3.5) ** 2) ** 0.5 - 2.2) ** 2)) for x in range(size)]
        rows.append(b"\0" + bytes(min(255, int(255 * value * rng.uniform(0.4, 1))) for value in near))
    head = struct.pack(">IIBBBBB", size, size, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"".join(rows))) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + body).decode()


def arm_record(rng: random.Random, name: str, accuracy: float, seeds: int) -> dict[str, Any]:
    """An arm whose seeds lie around that accuracy."""
    runs = []
    for seed in range(1 if name == "teacher" else seeds):
        right = round(TEST * min(1.0, rng.gauss(accuracy, 0.005))) / TEST
        run: dict[str, Any] = {
            "seed": seed,
            "seconds": rng.uniform(4.5, 6),
            "steps": 720 if name == "teacher" else 1140,
            "metrics": {
                "accuracy": right,
                "macro_f1": right - rng.uniform(0, 0.003),
                "nll": 3.1 * (1 - right) + rng.uniform(0, 0.02),
                "brier": 1.5 * (1 - right),
                "ece": rng.uniform(0.008, 0.03),
            },
        }
        if name != "teacher":
            run["fidelity"] = {
                "agreement": right - rng.uniform(0, 0.01),
                "kl": 2.4 * (1 - right),
                "negative_flips": (1 - right) * 0.8,
                "positive_flips": rng.uniform(0.001, 0.006),
            }
        runs.append(run)
    values: dict[str, list[float]] = {}
    for run in runs:
        for key, value in {**run["metrics"], **run.get("fidelity", {})}.items():
            values.setdefault(key, []).append(value)
    mean = {key: sum(each) / len(each) for key, each in values.items()}
    ci: dict[str, Any] = dict.fromkeys(mean)
    if len(runs) > 1:
        ci = {
            key: [value - 0.1 * abs(value) ** 0.5 * 0.12, value + 0.1 * abs(value) ** 0.5 * 0.1]
            for key, value in mean.items()
        }
    return {
        "description": DESCRIPTIONS[name],
        "seeds": runs,
        "mean": mean,
        "ci95": ci,
        "ci_method": dict.fromkeys(mean, "bootstrap over seeds and test examples, 2,000 draws"),
    }


def comparison(
    b: str, gain: float, half: float | None, p: float | None, seeds: int = 5, metric: str = "accuracy"
) -> dict[str, Any]:
    """The distilled student against ``b``: a difference and half the width of its interval."""
    return {
        "a": "kd",
        "b": b,
        "metric": metric,
        "difference": gain,
        "ci95": None if half is None else [gain - half, gain + half],
        "p_value": p,
        "method": "paired bootstrap over seeds and test examples, 10,000 draws",
        "seeds": seeds,
        "examples": TEST,
        "higher_is_better": metric == "accuracy",
    }


def _gate(name: str, value: float | None, limit: float, passed: bool | None, why: str) -> dict[str, Any]:
    return {"name": name, "value": value, "limit": limit, "passed": passed, "why": why}


def _curves(rng: random.Random, name: str, accuracy: float, seeds: int) -> list[dict[str, Any]]:
    epochs, step = (40, 18) if name == "teacher" else (60, 19)
    runs = []
    for seed in range(1 if name == "teacher" else seeds):
        train = [
            {
                "step": at,
                "epoch": at / step,
                "loss": 0.03 + 2.2 * math.exp(-at / 130) * rng.uniform(0.85, 1.15),
                "components": {"kl": 0.1},
            }
            for at in range(5, epochs * step + 1, 5)
        ]
        validation = [
            {
                "step": step * (epoch + 1),
                "epoch": float(epoch + 1),
                "accuracy": round(270 * min(1.0, accuracy - 0.8 * math.exp(-(epoch + 1) / 3.5) + rng.gauss(0, 0.006)))
                / 270,
                "nll": 0.2,
            }
            for epoch in range(epochs)
        ]
        runs.append({"seed": seed, "train": train, "validation": validation})
    return runs


def _reliability(rng: random.Random) -> list[dict[str, Any]]:
    bins = []
    for index in range(15):
        low, high = index / 15, (index + 1) / 15
        count = 0 if index < 4 else int(3 + 2.2 ** (index - 6))
        sure = (low + high) / 2 if count else None
        right = None if sure is None else min(1.0, max(0.0, sure - 0.05 + rng.gauss(0, 0.05)))
        bins.append({"low": low, "high": high, "confidence": sure, "accuracy": right, "count": count})
    return bins


def shipped(seeds: int = 5, **accuracies: float) -> dict[str, Any]:
    """A run whose student is worth shipping, or one with other accuracies."""
    asked = ARMS | accuracies
    rng = random.Random(7)
    arms = {name: arm_record(rng, name, accuracy, seeds) for name, accuracy in asked.items()}
    slow = {"p50": 0.84, "p95": 1.31, "batch": 1}
    fast = {"p50": 0.06, "p95": 0.09, "batch": 1}
    return {
        "tutelage": "0.1.0",
        "config_sha256": "9f2c" * 16,
        "started": "2026-11-21T08:00:00+00:00",
        "seconds": 93.2,
        "title": "digits, 128 labels",
        "task": "classification",
        "provenance": {
            "python": "3.11.7",
            "torch": "2.10.0",
            "transformers": "5.3.0",
            "platform": "Linux x86_64",
            "cpu": "a processor with 2 cores",
            "threads": 2,
            "command": "tutelage run examples/digits/config.yaml --out runs/digits",
            "config": CONFIG,
            "data_sha256": "41ab" * 16,
        },
        "splits": {"train": 1168, "validation": 270, "test": TEST},
        "transfer": {"examples": 1168, "labelled": 128, "unlabelled": 1040},
        "classes": CLASSES,
        "objective": [
            {"term": "kl", "temperature": 1.0, "direction": "forward", "weight": 0.9},
            {"term": "cross_entropy", "weight": 0.1},
        ],
        "arms": arms,
        "comparisons": [
            comparison("scratch", 0.049, 0.018, 0.002),
            comparison("label_smoothing", 0.041, 0.019, 0.004),
            comparison("teacher", -0.014, 0.011, 0.03),
            comparison("scratch", -0.11, 0.06, 0.01, metric="nll"),
        ],
        "cost": {
            "teacher": {
                "parameters": 1_012_394,
                "bytes": 4_049_576,
                "flops_per_example": 14_200_000,
                "threads": 2,
                "latency_ms": slow,
                "latency_ms_at": {"1": slow, "32": {"p50": 9.6, "p95": 12.2, "batch": 32}},
            },
            "student": {
                "parameters": 9_034,
                "bytes": 36_136,
                "flops_per_example": 17_792,
                "threads": 2,
                "latency_ms": fast,
                "latency_ms_at": {"1": fast, "32": {"p50": 0.08, "p95": 0.14, "batch": 32}},
            },
        },
        "verdict": {
            "decision": "ship",
            "gates": [
                _gate(
                    "accuracy_drop_vs_teacher",
                    0.014,
                    0.03,
                    True,
                    "The student is at most 2.5 points below its teacher (the interval's far end), within the margin of 3.0.",
                ),
                _gate(
                    "gain_over_scratch", 0.049, 0.0, True, "The interval of the gain, 3.1 to 6.7 points, is clear of 0."
                ),
                _gate(
                    "latency_ratio", 0.071, 0.5, True, "The student takes 7% of the teacher's median time at batch 1."
                ),
                _gate("ece", 0.0191, 0.05, True, "The calibration error is within its limit."),
            ],
        },
        "evidence": {
            "curves": {name: _curves(rng, name, accuracy, seeds) for name, accuracy in asked.items()},
            "per_class": {
                name: [
                    {
                        "class": label,
                        "support": 36,
                        "precision": min(1.0, rng.gauss(accuracy, 0.02)),
                        "recall": min(1.0, rng.gauss(accuracy, 0.02)),
                        "f1": min(1.0, rng.gauss(accuracy, 0.02)),
                    }
                    for label in CLASSES
                ]
                for name, accuracy in asked.items()
            },
            "reliability": {name: _reliability(rng) for name in ARMS},
            "ece_method": "15 equal-width bins of top-label confidence",
            "flips": {
                "arm": "kd",
                "seed": 0,
                "total": 9,
                "examples": [
                    {
                        "id": f"0f3a{index:012x}",
                        "label": "3",
                        "teacher": "3",
                        "teacher_confidence": 0.98 - index / 40,
                        "student": "8",
                        "student_confidence": 0.67,
                        "image": png(rng),
                        "text": None,
                    }
                    for index in range(8)
                ],
            },
        },
    }


def rejected() -> dict[str, Any]:
    """A student that distillation made worse, and slower than its teacher."""
    result = shipped(kd=0.892)
    result["comparisons"] = [comparison("scratch", -0.031, 0.012, 0.0004), comparison("teacher", -0.094, 0.02, 0.0001)]
    slow = {"p50": 1.4, "p95": 1.9, "batch": 1}
    result["cost"]["student"] |= {"latency_ms": slow, "latency_ms_at": {"1": slow}}
    result["verdict"] = {
        "decision": "reject",
        "gates": [
            _gate(
                "accuracy_drop_vs_teacher", 0.094, 0.03, False, "The student is more than 3.0 points below its teacher."
            ),
            _gate("gain_over_scratch", -0.031, 0.0, False, "The same student does better without the teacher."),
            _gate("latency_ratio", 1.67, 0.5, False, "The student is slower than its teacher."),
        ],
    }
    return result


def no_gain() -> dict[str, Any]:
    """All labels: the teacher adds nothing that can be told from chance."""
    result = shipped(kd=0.979, scratch=0.977, label_smoothing=0.98)
    result["title"] = "digits, all labels"
    result["comparisons"] = [
        comparison("scratch", 0.002, 0.009, 0.61),
        comparison("label_smoothing", -0.001, 0.008, 0.82),
    ]
    result["verdict"] = {
        "decision": "reject",
        "gates": [_gate("gain_over_scratch", 0.002, 0.0, False, "The interval, −0.7 to 1.1 points, holds 0.")],
    }
    return result


def one_seed() -> dict[str, Any]:
    """One seed, which proves nothing: on hold."""
    result = shipped(seeds=1)
    result["comparisons"] = [
        comparison("scratch", 0.049, None, None, seeds=1),
        comparison("label_smoothing", 0.041, 0.02, 0.001, seeds=1),
    ]
    result["verdict"] = {
        "decision": "hold",
        "gates": [_gate("gain_over_scratch", 0.049, 0.0, None, "One seed cannot prove a gain; run at least three.")],
    }
    return result


def texts() -> dict[str, Any]:
    """Texts in place of images, with class names of every length."""
    result = shipped()
    result["title"] = "WordNet noun glosses, six categories"
    names = ["animal", "food", "person", "object (man-made, of any material whatsoever)", "place", "time"]
    result["classes"] = names
    for rows in result["evidence"]["per_class"].values():
        del rows[len(names) :]
        for row, name in zip(rows, names, strict=True):
            row["class"] = name
    result["evidence"]["flips"]["total"] = len(TEXTS)
    result["evidence"]["flips"]["examples"] = [
        {
            "id": f"77aa{index:012x}",
            "label": "object",
            "teacher": "object",
            "teacher_confidence": 0.81,
            "student": "food",
            "student_confidence": 0.55,
            "image": None,
            "text": words,
        }
        for index, words in enumerate(TEXTS)
    ]
    return result


def bare() -> dict[str, Any]:
    """The least that is the record of a run."""
    return {
        "arms": {"kd": {"seeds": [{"seed": 0, "metrics": {"accuracy": 0.9}}], "mean": {"accuracy": 0.9}}},
        "verdict": {"decision": "hold", "gates": []},
    }


def holed() -> dict[str, Any]:
    """A record with something missing in every section."""
    result = shipped()
    del result["arms"]["label_smoothing"]
    result["arms"]["scratch"]["mean"]["accuracy"] = float("nan")
    result["arms"]["teacher"]["ci95"] = {}
    result["cost"].pop("teacher")
    result["cost"]["student"].pop("latency_ms_at")
    result["cost"]["student"]["flops_per_example"] = None
    result["evidence"]["reliability"] = {}
    result["evidence"]["flips"]["examples"] = []
    result["evidence"]["curves"]["kd"] = [{"seed": 0, "train": [], "validation": []}]
    result["evidence"]["curves"]["scratch"][0]["train"][3]["loss"] = float("nan")
    result["evidence"]["per_class"] = {"kd": [{"class": "3", "support": None, "recall": None, "f1": None}]}
    result["comparisons"][0]["ci95"] = [None, 0.1]
    result["verdict"]["gates"] += [
        {"name": "size_ratio", "value": None, "limit": 0.5, "passed": None, "why": "The teacher has no cost."},
        {"name": "a_gate_of_tomorrow", "value": 0.25, "limit": 1, "passed": True},
    ]
    return result


def many_classes() -> dict[str, Any]:
    """A hundred classes, and an arm that the page does not know."""
    result = shipped()
    result["arms"]["kd_hot"] = copy.deepcopy(result["arms"]["kd"])
    result["evidence"]["curves"]["kd_hot"] = copy.deepcopy(result["evidence"]["curves"]["kd"])
    for rows in result["evidence"]["per_class"].values():
        rows[:] = [{**rows[index % 10], "class": f"class {index}"} for index in range(100)]
    return result


VARIANTS = {
    "shipped": shipped,
    "rejected": rejected,
    "no_gain": no_gain,
    "one_seed": one_seed,
    "texts": texts,
    "bare": bare,
    "holed": holed,
    "many_classes": many_classes,
}
