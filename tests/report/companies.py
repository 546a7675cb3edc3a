"""Made-up records of runs with teachers in company: an ensemble, a chain of assistants, generations and a peer."""

from __future__ import annotations

import copy
import random
from typing import Any

import example
from example import shipped

Json = dict[str, Any]


def arm(name: str, accuracy: float, seeds: int = 5, seconds: float | None = None) -> Json:
    """An arm's record."""
    record = example.arm_record(random.Random(name), name, accuracy, seeds)
    for run in record["seeds"] if seconds is not None else []:
        run["seconds"] = seconds
    return record


def ensemble() -> Json:
    """Five members into one student."""
    result = shipped(teacher=0.989)
    result["title"] = "five into one"
    result["members"] = [
        {
            "name": f"member-{index}",
            "weight": 0.2,
            "description": f"trained by this run with seed {index}",
            "parameters": 1_012_394,
            "seconds": 61.2 + index,
            **{key: value for key, value in arm("teacher", accuracy).items() if key != "description"},
        }
        for index, accuracy in enumerate((0.975, 0.979, 0.974, 0.981, 0.978))
    ]
    members: list[Json] = result["members"]
    for member, accuracy in zip(members, (0.975, 0.979, 0.974, 0.981, 0.978), strict=True):
        member["mean"]["accuracy"], member["ci95"]["accuracy"] = accuracy, [accuracy - 0.013, accuracy + 0.011]
    result["arms"]["teacher"]["mean"]["accuracy"] = 0.989
    result["arms"]["teacher"]["ci95"]["accuracy"] = [0.972, 0.996]
    result["cost"]["teacher"] |= {"parameters": 5_061_970, "flops_per_example": 71_000_000}
    return result


def _link(name: str, taught_by: str | None, parameters: int, seconds: float, validation: float, test: float) -> Json:
    return {
        "name": name,
        "taught_by": taught_by,
        "parameters": parameters,
        "flops_per_example": 14 * parameters,
        "seconds": seconds,
        "steps": 1140,
        "validation": {"accuracy": validation, "nll": 0.3},
        "test": {"accuracy": test, "nll": 0.31},
    }


def chain() -> Json:
    """Two assistants on the way, chosen among three paths, and a detour that paid."""
    result = shipped(kd=0.956, scratch=0.923)
    result["title"] = "a gap too wide for one step"
    result["arms"]["direct"] = arm("direct", 0.941, seconds=62.0)
    for seed in result["arms"]["kd"]["seeds"]:
        seed["seconds"] = 64.0
    result["comparisons"].append(result["comparisons"][0] | {"b": "direct", "difference": 0.015})
    result["chain"] = {
        "path": ["teacher", "middle", "small", "student"],
        "how": "best",
        "links": [
            _link("teacher", None, 1_012_394, 410.0, 0.985, 0.986),
            _link("middle", "teacher", 240_112, 190.0, 0.978, 0.975),
            _link("small", "middle", 48_010, 122.0, 0.969, 0.966),
            _link("student", "small", 9_034, 64.0, 0.957, result["arms"]["kd"]["mean"]["accuracy"]),
        ],
        "candidates": [
            {"path": ["teacher", "student"], "validation_accuracy": 0.941, "seconds": 62.0, "chosen": False},
            {"path": ["teacher", "middle", "student"], "validation_accuracy": 0.951, "seconds": 254.0, "chosen": False},
            {
                "path": ["teacher", "middle", "small", "student"],
                "validation_accuracy": 0.957,
                "seconds": 376.0,
                "chosen": True,
            },
        ],
        "detour": {
            "difference": 0.015,
            "ci95": [0.004, 0.026],
            "p_value": 0.011,
            "extra_seconds": 502.0,
            "search_seconds": 190.0,
            "points_per_minute": 0.179,
            "paid": True,
            "why": "By way of the assistants the student is 1.5 points of accuracy above the direct road: the detour paid.",
        },
        "note": "Each assistant was trained once, with a seed of its own.",
    }
    return result


def no_detour() -> Json:
    """A chain that did not pay, straight from the config."""
    result = chain()
    result["chain"] |= {"path": ["teacher", "middle", "student"], "how": "all", "candidates": None}
    result["chain"]["links"].pop(2)
    result["chain"]["links"][-1]["taught_by"] = "middle"
    result["chain"]["detour"] |= {
        "difference": -0.002,
        "ci95": [-0.011, 0.007],
        "p_value": 0.62,
        "paid": None,
        "points_per_minute": -0.05,
        "why": "the interval holds 0, so whether the detour paid cannot be told",
    }
    return result


def generations() -> Json:
    """Four generations of one student, and two students that teach each other."""
    result = shipped()
    result["title"] = "no teacher at hand"
    born = result["arms"]["born_again"] = arm("born_again", 0.946)
    born["generations"] = [
        {"generation": index, "accuracy": value, "ci95": [value - 0.012, value + 0.01], "seconds": 61.0 + index}
        for index, value in enumerate((0.924, 0.938, 0.945, 0.946))
    ]
    result["arms"]["mutual"] = arm("mutual", 0.939) | {"peer": {"accuracy": 0.937, "ci95": [0.925, 0.947]}}
    return result


def holes() -> Json:
    """All of it at once, with something missing everywhere."""
    result = ensemble()
    result["chain"] = chain()["chain"]
    result["arms"] |= generations()["arms"]
    del result["arms"]["scratch"]
    members, links = result["members"], result["chain"]["links"]
    members[0] |= {"weight": None, "parameters": None, "seconds": None, "mean": {}, "ci95": {}}
    members[1] = {"name": "member-1"}
    result["cost"] = {}
    links[1] |= {"parameters": None, "flops_per_example": None, "seconds": None, "steps": None, "test": {}}
    links[2] = {"name": "small"}
    result["chain"]["detour"] = {}
    result["chain"]["candidates"][0] = {"path": None, "validation_accuracy": float("nan")}
    born = result["arms"]["born_again"]["generations"]
    born[0] |= {"accuracy": None, "ci95": [None, None], "seconds": None}
    born[1] |= {"ci95": None}
    result["arms"]["mutual"]["peer"] = {"accuracy": float("nan")}
    return result


def crowd() -> Json:
    """Ten members with long names, and an assistant named by a sentence."""
    result = ensemble()
    result["members"] = [
        copy.deepcopy(result["members"][index % 5]) | {"name": f"the member that was trained on view number {index}"}
        for index in range(10)
    ]
    result["chain"] = chain()["chain"]
    long = "an assistant of middling size whose name is a sentence"
    result["chain"]["path"][1] = result["chain"]["links"][1]["name"] = result["chain"]["links"][2]["taught_by"] = long
    result["chain"]["candidates"][2]["path"][1] = long
    return result


COMPANIES = {
    "ensemble": ensemble,
    "chain": chain,
    "no_detour": no_detour,
    "generations": generations,
    "holes": holes,
    "crowd": crowd,
}
