"""Made-up records of sentence encoders' studies, for the page: three layers of a teacher and a static table, and poorer ones."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

Json = dict[str, Any]

TEST = 2000
CROSSED = "crossed random effects (seeds × examples), Satterthwaite t"
BOOTSTRAPPED = "texts bootstrapped (pairs share them), crossed with seeds, Satterthwaite t"
HOSTILE = '<script>alert("x")</script><img src=http://example.com/x.png onerror=alert(1)>&amp;'
FOUND = ("recall@10", "recall@1", "ndcg@10", "mrr")


def arm(rng: random.Random, description: str, means: Json, seeds: int | None, steps: int | None = None) -> Json:
    """An arm whose seeds lie around its means; ``seeds`` of None is the teacher, of which there is one without a number."""
    kept = ("spearman", "cosine", "cka", "procrustes")
    rows: list[Json] = []
    for seed in range(seeds or 1):
        near = {key: value + (rng.uniform(-1, 1) * 0.002 if (seeds or 1) > 1 else 0.0) for key, value in means.items()}
        rows.append(
            {
                "seed": None if seeds is None else seed,
                "seconds": 62.0 + rng.uniform(-3, 3) if steps else None,
                "steps": steps,
                "metrics": {key: near[key] for key in near if key not in kept},
                "fidelity": {key: near[key] for key in near if key in kept},
            }
        )
    with_interval = [key for key in means if key not in ("cka", "procrustes", "uniformity")]
    method = "examples only; one seed" if (seeds or 1) == 1 else CROSSED
    return {
        "description": description,
        "width": 384,
        "seeds": rows,
        "mean": means,
        "ci95": {key: [means[key] - 0.008, means[key] + 0.008] for key in with_interval},
        "ci_method": {key: BOOTSTRAPPED if key == "spearman" else method for key in with_interval},
    }


def numbers(recall: float, spearman: float | None = None, cosine: float | None = None) -> Json:
    """An arm's means."""
    found: Json = {"recall@10": recall, "recall@1": recall - 0.3, "ndcg@10": recall - 0.2, "mrr": recall - 0.25}
    if spearman is not None:
        found = {"spearman": spearman, **found, "cka": spearman - 0.02, "procrustes": 1.02 - spearman}
    if cosine is not None:
        found["cosine"] = cosine
    return {**found, "uniformity": -2.71}


def comparisons(arms: Json, seeds: int) -> list[Json]:
    """The distilled student against every other arm in what both have."""
    rows: list[Json] = []
    for other, record in arms.items():
        for metric in ("spearman", *FOUND):
            a, b = arms["kd"]["mean"].get(metric), record["mean"].get(metric)
            if other == "kd" or a is None or b is None:
                continue
            gap = a - b
            rows.append(
                {
                    "a": "kd",
                    "b": other,
                    "metric": metric,
                    "higher_is_better": True,
                    "difference": gap,
                    "ci95": [gap - 0.006, gap + 0.006],
                    "p_value": 0.0004 if abs(gap) > 0.006 else 0.31,
                    "method": f"paired: {BOOTSTRAPPED if metric == 'spearman' else CROSSED}",
                    "seeds": seeds,
                    "examples": TEST,
                }
            )
    return rows


def curve(rng: random.Random, seed: int, end: float) -> Json:
    """A training whose rank correlation rises to an end."""
    train = [
        {"step": step, "epoch": step / 100, "loss": 0.4 * 0.9 ** (step / 10), "components": {}}
        for step in range(20, 401, 20)
    ]
    validation = [
        {"step": step, "epoch": step / 100, "spearman": end - 0.3 * 0.97**step + rng.uniform(-0.003, 0.003)}
        for step in range(20, 401, 20)
    ]
    return {"seed": seed, "train": train, "validation": validation}


def cost(parameters: int, speed: float) -> Json:
    """What an encoder costs."""
    return {
        "parameters": parameters,
        "bytes": 4 * parameters,
        "flops_per_text": 40 * parameters,
        "texts_per_second": speed,
        "forward_texts_per_second": 1.1 * speed,
        "batch": 32,
        "tokens": {"mean": 14.2, "longest": 31},
        "threads": 2,
    }


def task(name: str, drop: float, count: int = 120) -> Json:
    """A task's row."""
    return {
        "task": name,
        "texts": count,
        "queries": count,
        "few": count < 20,
        "arms": {
            "teacher": {"spearman": None, "recall@10": 0.8},
            "kd": {"spearman": 0.95 - drop, "recall@10": 0.8 - drop},
        },
        "drop": drop,
        "ci": [drop - 0.03, drop + 0.03] if count >= 20 else [None, None],
    }


def gate(name: str, value: float | None, limit: float, passed: bool | None, why: str) -> Json:
    """A gate of a verdict."""
    return {"name": name, "value": value, "limit": limit, "passed": passed, "why": why}


def cut(seeds: int = 3) -> Json:
    """Three layers of six, and a static table beside them; 26 tasks."""
    rng = random.Random(4)
    arms = {
        "teacher": arm(rng, "the teacher", numbers(0.791), None),
        "untouched": arm(rng, "the student before any training", numbers(0.612, 0.701, 0.66), 1),
        "untouched_static": arm(rng, "the student before any training: a static one", numbers(0.52, 0.63), 1),
        "kd": arm(rng, "the student, cut from the teacher (layers 3)", numbers(0.768, 0.957, 0.94), seeds, 400),
        "mse": arm(rng, "the same student, trained on embedding_mse", numbers(0.767, 0.951, 0.94), seeds, 400),
        "static": arm(
            rng, "another student, a static one, trained on similarity_matrix", numbers(0.64, 0.81), seeds, 400
        ),
    }
    surgery = [
        {"what": "layers", "before": 6, "after": 3, "ratio": 0.5},
        {"what": "parameters", "before": 22_713_216, "after": 17_389_824, "ratio": 0.7656},
        {"what": "bytes", "before": 90_852_864, "after": 69_559_296, "ratio": 0.7656},
        {"what": "flops_per_example", "before": None, "after": 8.1e8, "ratio": None},
    ]
    return {
        "tutelage": "0.1.0",
        "config_sha256": "cb041a1069e39952f8051ef0ef25b7f4",
        "started": "2026-11-21T20:43:44+00:00",
        "seconds": 1512.0,
        "title": "Half a sentence encoder",
        "task": "embedding",
        "provenance": {
            "python": "3.11.7",
            "torch": "2.13.0+cpu",
            "cpu": "AMD EPYC",
            "threads": 2,
            "command": "tutelage run config.yaml",
            "config": "task: embedding\ntitle: x\n",
        },
        "objective": [{"term": "embedding_cosine", "weight": 1.0}],
        "taught": {"width": 384, "max_length": 64, "seconds": 91.4},
        "splits": {"train": 20000, "validation": 1000, "test": TEST},
        "transfer": {"texts": 20000, "tokens": 284_211, "cut": 3, "repeated": 41},
        "similarity": {
            "pairs": 5000,
            "method": "5,000 pairs of 2,000 texts, evenly over 10 strata of the teacher's cosine",
        },
        "retrieval": {"queries": TEST, "texts": TEST, "k": [1, 10], "metrics": list(FOUND), "judged": "recall@10"},
        "arms": arms,
        "comparisons": comparisons(arms, seeds),
        "tasks": [
            *(task(f"noun.{index}", 0.11 - 0.005 * index) for index in range(26)),
            *(task(f"rare.{count}", 0.5, count) for count in (2, 7)),
        ],
        "least_a_task": 20,
        "cost": {
            "teacher": cost(22_713_216, 210.0),
            "student": cost(17_389_824, 390.0),
            "static": cost(7_813_632, 9100.0),
        },
        "surgery": {"kd": {"rows": surgery, "kept_layers": [0, 2, 5]}},
        "evidence": {
            "curves": {
                key: [curve(rng, seed, arms[key]["mean"]["spearman"]) for seed in range(seeds)]
                for key in ("kd", "mse", "static")
            }
        },
        "verdict": {
            "decision": "reject",
            "gates": [
                gate("spearman", 0.957, 0.95, True, "All of the interval is at least the 0.95 asked for."),
                gate("gain_over_untouched", 0.256, 0.0, True, "All of the interval is a gain."),
                gate("recall_drop", 0.023, 0.02, None, "It lies inside the interval."),
                gate("worst_task_drop", 0.11, 0.05, False, "The task 'noun.0' loses most."),
                gate("size_ratio", 0.7656, 0.8, True, "The student's weights take 76.6% of the teacher's."),
                gate("throughput_ratio", 1.857, 1.8, True, "It encodes 1.86 times as many."),
            ],
        },
    }


def plain() -> Json:
    """Without answers, tasks, controls or a cut; one seed."""
    record = cut(1)
    for name in ("untouched", "untouched_static", "mse", "static", "teacher"):
        del record["arms"][name]
    for name in FOUND:
        for part in ("mean", "ci95", "ci_method"):
            record["arms"]["kd"][part].pop(name)
        record["arms"]["kd"]["seeds"][0]["metrics"].pop(name)
    record |= {"retrieval": None, "tasks": [], "comparisons": [], "surgery": {}}
    record["cost"].pop("static")
    record["verdict"] = {"decision": "hold", "gates": []}
    return record


def holed() -> Json:
    """What an older or damaged record may lack."""
    record = cut()
    for key in ("retrieval", "similarity", "cost", "surgery", "evidence", "taught", "transfer", "comparisons", "tasks"):
        del record[key]
    record["arms"]["kd"]["ci95"]["spearman"] = [None, float("nan")]
    record["arms"]["mse"] = {"mean": None, "seeds": [None, 3]}
    return record


def hostile() -> Json:
    """Texts that would run, were they not escaped."""
    record = copy.deepcopy(cut())
    record["title"] = HOSTILE
    record["arms"]["kd"]["description"] = HOSTILE
    record["tasks"][0]["task"] = HOSTILE
    record["arms"][HOSTILE] = record["arms"].pop("mse")
    record["similarity"]["method"] = HOSTILE
    record["verdict"]["gates"][0]["why"] = HOSTILE
    return record


EMBEDDING_RECORDS: dict[str, Callable[[], Json]] = {"cut": cut, "plain": plain, "holed": holed, "hostile": hostile}
