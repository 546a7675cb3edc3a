"""Made-up records of sweeps: a grid over temperature and weight, a search over many keys, one that has just begun."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

Json = dict[str, Any]


def trial(number: int, params: Json, accuracy: float, rng: random.Random, seeds: int = 3) -> Json:
    """A complete trial."""
    runs = []
    for seed in range(seeds):
        value = round(270 * min(1.0, rng.gauss(accuracy, 0.004))) / 270
        runs.append(
            {
                "seed": seed,
                "metrics": {"accuracy": value, "nll": 3 * (1 - value) + 0.01, "brier": 1 - value, "ece": 0.02},
                "seconds": rng.uniform(4, 6),
                "steps": 1140,
            }
        )
    mean = {key: sum(run["metrics"][key] for run in runs) / seeds for key in runs[0]["metrics"]}
    return {
        "number": number,
        "params": params,
        "state": "complete",
        "error": None,
        "seeds": runs,
        "mean": mean,
        "ci95": {key: [mean[key] - 0.009, mean[key] + 0.008] for key in ("accuracy", "nll", "brier")},
    }


def record(space: Json, trials: list[Json], **others: Any) -> Json:
    """A finished sweep."""
    rng = random.Random(3)
    line = trial(0, {}, 0.923, rng)
    complete = [found for found in trials if found["state"] == "complete"]
    best = max(complete, key=lambda found: found["mean"]["accuracy"]) if complete else None
    return {
        "tutelage": "0.1.0",
        "config_sha256": "9f2c" * 16,
        "title": "digits, 128 labels",
        "started": "2026-11-21T08:00:00+00:00",
        "seconds": 412.0,
        "classes": 10,
        "search": {
            "name": "tutelage-0a1b",
            "space": space,
            "sampler": "grid",
            "trials": len(trials),
            "seeds": 3,
            "metric": "accuracy",
            "direction": "maximize",
        },
        "trials": trials,
        "scratch": {key: line[key] for key in ("seeds", "mean", "ci95")},
        "importance": None,
        "best": best and best["number"],
        "winner": best
        and {
            "folder": "winner",
            "params": best["params"],
            "decision": "ship",
            "accuracy": 0.958,
            "ci95": [0.941, 0.972],
        },
        "workers": [{"host": "a-machine", "pid": 4117, "trials": len(trials)}],
    } | others


def temperatures() -> Json:
    """Temperature alone."""
    rng = random.Random(1)
    values = [1, 2, 4, 16, 32, 64]
    trials = [
        trial(n, {"objective.0.temperature": t}, 0.962 - 0.006 * math.log2(t) + 0.001 * n, rng)
        for n, t in enumerate(values)
    ]
    return record({"objective.0.temperature": values}, trials)


def grid() -> Json:
    """Temperature by weight, with one that failed."""
    rng = random.Random(5)
    space = {"objective.0.temperature": [1, 2, 4, 16, 32, 64], "objective.0.weight": [0.3, 0.5, 0.9]}
    points = [dict(zip(space, point, strict=True)) for point in itertools.product(*space.values())]
    trials = [
        trial(
            n,
            p,
            0.93
            + 0.03 * p["objective.0.weight"]
            - 0.008 * p["objective.0.weight"] * math.log2(p["objective.0.temperature"]),
            rng,
        )
        for n, p in enumerate(points)
    ]
    trials[7] |= {
        "state": "failed",
        "error": "TrainingError: the loss is not finite at step 12: lower the learning rate",
        "seeds": [],
        "mean": {},
        "ci95": {},
    }
    return record(
        space, trials, importance={"objective.0.temperature": 0.61, "objective.0.weight": 0.39}, winner=grid_winner()
    )


def grid_winner() -> Json:
    """A winner that the test split did not confirm."""
    return {
        "folder": "winner",
        "params": {"objective.0.temperature": 1, "objective.0.weight": 0.9},
        "decision": "hold",
        "accuracy": 0.941,
        "ci95": [0.921, 0.957],
    }


def search() -> Json:
    """Forty trials over ranges and choices, chosen by NLL, of which two run and one failed."""
    rng = random.Random(11)
    trials = []
    for n in range(40):
        params: Json = {
            "objective.0.temperature": rng.choice([1, 2, 4, 8]),
            "training.learning_rate": float(f"{10 ** rng.uniform(-4, -2):.5g}"),
            "objective.0.term": rng.choice(["kl", "reverse_kl", "jensen_shannon"]),
            "training.num_train_epochs": rng.randint(10, 60),
            "student.model.options.bias": rng.choice([True, False]),
        }
        off = abs(math.log10(params["training.learning_rate"]) + 2.9)
        trials.append(trial(n, params, 0.955 - 0.02 * off - 0.002 * params["objective.0.temperature"], rng))
    for n in (38, 39):
        trials[n] |= {"state": "running", "seeds": trials[n]["seeds"][:1], "mean": {}, "ci95": {}}
    trials[20] |= {"state": "failed", "error": "x" * 5000, "seeds": [], "mean": {}, "ci95": {}}
    space = {
        "objective.0.temperature": [1, 2, 4, 8],
        "training.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
        "objective.0.term": ["kl", "reverse_kl", "jensen_shannon"],
        "training.num_train_epochs": {"low": 10, "high": 60, "integer": True},
        "student.model.options.bias": [True, False],
    }
    found = record(space, trials, importance=dict(zip(space, (0.2, 0.55, 0.1, 0.1, 0.05), strict=True)))
    best = min((t for t in trials if t["state"] == "complete"), key=lambda t: t["mean"]["nll"])
    found["search"] |= {"sampler": "tpe", "metric": "nll", "direction": "minimize"}
    found |= {"best": best["number"], "winner": None}
    found["workers"].append({"host": "another", "pid": 12, "trials": 19})
    return found


def factorial() -> Json:
    """A grid of three keys, one of them a list of terms: every cell of a chart holds several trials."""
    rng = random.Random(9)
    space: Json = {
        "objective.0.temperature": [1, 4, 16],
        "objective.0.weight": [0.1, 0.5, 0.9],
        "objective.1": [
            {"term": "hint", "layers": "uniform", "weight": 0.5},
            {"term": "similarity_preserving", "layers": [["blocks.0", "layers.1"], ["blocks.1", "layers.3"]]},
        ],
    }
    points = [dict(zip(space, point, strict=True)) for point in itertools.product(*space.values())]
    trials = [
        trial(n, p, 0.94 + 0.01 * p["objective.0.weight"] - 0.002 * math.log2(p["objective.0.temperature"]), rng)
        for n, p in enumerate(points)
    ]
    return record(space, trials)


def begun() -> Json:
    """Nothing is finished."""
    found = record({"objective.0.temperature": [1, 2]}, [], scratch=None, best=None, winner=None, workers=[])
    found["trials"] = [
        {
            "number": 0,
            "params": {"objective.0.temperature": 1},
            "state": "running",
            "error": None,
            "seeds": [],
            "mean": {},
            "ci95": {},
        }
    ]
    return found


def torn() -> Json:
    """Something missing everywhere."""
    found = grid()
    found["trials"][0] |= {"ci95": {}, "seeds": None}
    found["trials"][1]["mean"]["accuracy"] = float("nan")
    found["trials"][2]["params"] = {"objective.0.temperature": None}
    found["trials"][3] |= {"number": None, "error": 3}
    found["scratch"]["ci95"] = None
    found["winner"] = {"folder": "../elsewhere", "decision": "maybe"}
    found["best"], found["importance"], found["workers"] = 999, {"objective.0.weight": None}, None
    del found["search"]["sampler"], found["started"]
    return found


def least() -> Json:
    """The least that is the record of a sweep."""
    return {"search": {}, "trials": []}


SWEEPS = {
    "temperatures": temperatures,
    "grid": grid,
    "search": search,
    "factorial": factorial,
    "begun": begun,
    "torn": torn,
    "least": least,
}
