"""Made-up records of language studies, for the page: an instruction folded into weights, a smaller student, and poorer ones."""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Callable
from typing import Any

Json = dict[str, Any]

TEST = 1200
CROSSED = "crossed random effects (seeds × examples), Satterthwaite t"
INSTRUCTION = (
    "Sort the thing that the user describes into one of these categories: animal, food, person, object, place, time. "
    "Answer with the category alone, in lower case.\n"
)
HOSTILE = '<script>alert("x")</script><img src=http://example.com/x.png onerror=alert(1)>&amp;'


def arm(
    rng: random.Random,
    description: str,
    means: Json,
    seeds: int | None,
    budget: tuple[float, int, int] | None = None,
    writing: float | None = None,
) -> Json:
    """An arm whose seeds lie around its means; ``seeds`` of None is the teacher, of which there is one without a number."""
    spread = {"score": 0.006, "kl": 0.004, "nll": 0.006, "agreement": 0.005}
    width = {"score": 0.022, "kl": 0.011, "nll": 0.02, "agreement": 0.012}
    rows: list[Json] = []
    for seed in range(seeds or 1):
        near = {
            key: value + (rng.uniform(-1, 1) * spread[key] if (seeds or 1) > 1 else 0.0) for key, value in means.items()
        }
        if "nll" in near:
            near["perplexity"] = math.exp(near["nll"])
        rows.append(
            {
                "seed": None if seeds is None else seed,
                "seconds": budget[0] + rng.uniform(-3, 3) if budget else None,
                "steps": budget[1] if budget else None,
                "tokens": budget[2] if budget else None,
                "generation_share": writing,
                "metrics": {key: near[key] for key in ("nll", "perplexity", "score") if key in near},
                "fidelity": {key: near[key] for key in ("kl", "agreement") if key in near},
            }
        )
    ends = {key: [max(0.0, value - width[key]), value + width[key]] for key, value in means.items()}
    mean = dict(means)
    if "nll" in means:
        mean["perplexity"] = math.exp(means["nll"])
        ends["perplexity"] = [math.exp(end) for end in ends["nll"]]
    method = CROSSED if (seeds or 1) > 1 else "examples only; one seed"
    return {
        "description": description,
        "seeds": rows,
        "mean": mean,
        "ci95": ends,
        "ci_method": dict.fromkeys(means, method),
    }


def comparisons(arms: Json, seeds: int) -> list[Json]:
    """The distilled student against every other arm in what both have."""
    half = {"score": 0.014, "kl": 0.009, "nll": 0.012}
    rows: list[Json] = []
    for other, record in arms.items():
        for metric in half:
            a, b = arms["kd"]["mean"].get(metric), record["mean"].get(metric)
            if other == "kd" or a is None or b is None:
                continue
            gap = a - b
            rows.append(
                {
                    "a": "kd",
                    "b": other,
                    "metric": metric,
                    "higher_is_better": metric == "score",
                    "difference": gap,
                    "ci95": [gap - half[metric], gap + half[metric]],
                    "p_value": 0.0004 if abs(gap) > half[metric] else 0.31,
                    "method": f"paired: {CROSSED}",
                    "seeds": seeds,
                    "examples": TEST,
                }
            )
    return rows


def gap(arms: Json, metric: str) -> Json:
    """How far each arm has come."""
    start = arms["untouched"]["mean"][metric]
    goal = 0.0 if metric == "kl" else arms["teacher"]["mean"][metric]
    told: Json = {}
    for key, record in arms.items():
        if key not in ("teacher", "untouched"):
            share = (record["mean"][metric] - start) / (goal - start)
            told[key] = {"closed": share, "ci95": [share - 0.09, share + 0.08]}
    return {"untouched": start, "teacher": goal, "kd": arms["kd"]["mean"][metric], **told["kd"], "arms": told}


def curve(rng: random.Random, seed: int, start: float, end: float, term: str) -> Json:
    """A training that falls from one value to another."""
    train: list[Json] = []
    validation: list[Json] = []
    for step in range(20, 401, 20):
        value = end + (start - end) * math.exp(-step / 60) + rng.uniform(-0.02, 0.02)
        train.append({"step": step, "epoch": step / 200, "loss": max(value, 0.001), "components": {term: value}})
        if step % 100 == 0 or step == 20:
            validation.append({"step": step, "epoch": step / 200, "accuracy": 0.5, "nll": max(value, 0.001)})
    return {"seed": seed, "train": train, "validation": validation}


def labels() -> Json:
    """A store of labels as a record has it."""
    return {
        "store": "stored/labels",
        "form": {"kind": "top_k", "classes": 49152, "dtype": "float16", "temperature": 1.0, "k": 20, "features": []},
        "views": 1,
        "examples": 6000,
        "distinct": 6000,
        "rows": 84211,
        "bytes": 6_912_844,
        "digest": "ee4d16d498aa97da",
        "made": {"rows": 84211, "seconds": 312.4, "teacher_seconds": 301.9},
        "certificate": {
            "form": "top_k",
            "rows": 512,
            "relative_bias": 0.0121,
            "relative_error": 0.0121,
            "relative_bias_noise": 0.0,
            "divergence": "forward_kl",
            "temperature": 1.0,
        },
        "spot_check": {"examples": 8, "rows": 96, "worst": 2.07e-07, "tolerance": 0.00295},
        "written": "by this run",
    }


def generated() -> Json:
    """What is known of completions that the teacher wrote."""
    return {
        "facts": {
            "teacher": "LlamaForCausalLM, 134,515,008 parameters, weights 72490fd7dfc7ccf1",
            "eos": [2],
            "sampling": {
                "max_new_tokens": 48,
                "temperature": 0.7,
                "top_p": 0.95,
                "top_k": 0,
                "greedy": False,
                "seed": 3,
            },
            "n": 2,
            "filters": {"finished": True, "min_tokens": 2, "python": "filters.py:clean"},
            "deduplicate": True,
            "prompts": "6000, 3072c0c9ad94fbf0",
        },
        "counts": {
            "prompts": 6000,
            "written": 12000,
            "kept": 9871,
            "dropped": {"unfinished": 1204, "there already": 913, "refused": 12},
        },
        "made": {
            "tutelage": "0.1.0",
            "started": "2026-11-21T20:43:45+00:00",
            "seconds": 1214.6,
            "tokens": 261_412,
        },
    }


def frame(rng: random.Random, arms: Json, metric: str, seeds: int) -> Json:
    """A record around arms."""
    starts = {"sft": 2.1, "kd": 1.9}
    trained = [key for key in arms if key not in ("teacher", "untouched")]
    return {
        "tutelage": "0.1.0",
        "config_sha256": "cb041a1069e39952f8051ef0ef25b7f4",
        "started": "2026-11-21T20:43:44+00:00",
        "seconds": 2912.0,
        "title": "Fold an instruction into weights",
        "task": "language_model",
        "provenance": {
            "python": "3.11.7",
            "torch": "2.13.0+cpu",
            "cpu": "AMD EPYC",
            "threads": 2,
            "command": "tutelage run config.yaml",
            "config": "task: language_model\nteacher: {self: true}\n",
        },
        "objective": [{"term": "kl", "temperature": 1.0, "direction": "forward", "weight": 1.0}],
        "splits": {"train": 6000, "validation": 400, "test": TEST},
        "transfer": {
            "examples": 6000,
            "tokens": 84211,
            "cut": 31,
            "dropped": 4,
            "completions": "data",
            "layout": "packed",
            "prompt_tokens": {"student": 29.4, "teacher": 71.4},
        },
        "arms": arms,
        "comparisons": comparisons(arms, seeds),
        "metric": metric,
        "score_name": "accuracy over 6 choices" if metric == "score" else None,
        "score_is_share": metric == "score",
        "gap": gap(arms, metric),
        "context": None,
        "cost": {
            who: {
                "parameters": parameters,
                "bytes": 4 * parameters,
                "prompt_tokens": tokens,
                "prefill_ms": {"p50": reading, "p95": 1.3 * reading},
                "decode_tokens_per_second": speed,
                "request_ms": reading + 3 * 1e3 / speed,
                "peak_bytes": int(4.3 * parameters),
            }
            for who, parameters, tokens, reading, speed in (
                ("teacher", 134_515_008, 71.4, 93.2, 21.4),
                ("student", 134_515_008, 29.4, 46.7, 21.6),
            )
        },
        "samples": [],
        "evidence": {
            "curves": {
                key: [
                    curve(
                        rng,
                        seed,
                        arms[key]["mean"]["nll"] + starts.get(key, 2.4),
                        arms[key]["mean"]["nll"],
                        "cross_entropy" if key == "sft" else "kl",
                    )
                    for seed in range(seeds)
                ]
                for key in trained
            }
        },
        "verdict": {"decision": "ship", "gates": []},
    }


def gate(name: str, value: float | None, limit: float, passed: bool | None, why: str) -> Json:
    """A gate of a verdict."""
    return {"name": name, "value": value, "limit": limit, "passed": passed, "why": why}


def folded(seeds: int = 3) -> Json:
    """An instruction folded into weights: six students, a score, two views, samples."""
    rng = random.Random(6)
    budget = (212.0, 400, 84211)
    told = "the same student, trained on the given completions"
    arms = {
        "teacher": arm(rng, "the teacher, with its own prompt", {"score": 0.788, "nll": 0.601}, None),
        "untouched": arm(
            rng, "the student before any training", {"score": 0.671, "kl": 0.842, "nll": 1.44, "agreement": 0.702}, 1
        ),
        "sft": arm(
            rng,
            f"{told} without a teacher",
            {"score": 0.764, "kl": 0.121, "nll": 0.688, "agreement": 0.894},
            seeds,
            budget,
        ),
        "kd": arm(
            rng,
            "the student, trained on the given completions",
            {"score": 0.785, "kl": 0.0312, "nll": 0.624, "agreement": 0.951},
            seeds,
            budget,
        ),
        "lora": arm(
            rng,
            f"{told}, through adapters of rank 16",
            {"score": 0.781, "kl": 0.0441, "nll": 0.633, "agreement": 0.944},
            seeds,
            budget,
        ),
        "on_policy": arm(
            rng,
            f"{told}, 50% of the batches with what it wrote itself",
            {"score": 0.783, "kl": 0.0388, "nll": 0.64, "agreement": 0.947},
            seeds,
            (391.0, 400, 79103),
            0.412,
        ),
        "full_prompt": arm(
            rng,
            f"{told}, shown the teacher's full prompt in training, and asked with its own",
            {"score": 0.689, "kl": 0.71, "nll": 1.31, "agreement": 0.731},
            seeds,
            budget,
        ),
    }
    record = frame(rng, arms, "score", seeds)
    record["context"] = {
        "student_prompt_tokens": 29.4,
        "teacher_prompt_tokens": 71.4,
        "saved": 42.0,
        "milliseconds": {"full": 93.4, "bare": 46.9},
    }
    glosses = [
        ("a large African animal with a very long neck and legs", "animal"),
        ("the time of day immediately following sunset", "time"),
        ("a person who keeps watch over something or someone", "person"),
    ]
    for gloss, reference in glosses:
        prompt = f"<|im_start|>user\n{gloss}<|im_end|>\n<|im_start|>assistant\n"
        record["samples"].append(
            {
                "prompt": prompt,
                "teacher_prompt": f"<|im_start|>system\n{INSTRUCTION}<|im_end|>\n{prompt}",
                "reference": reference,
                "answers": {
                    **dict.fromkeys(arms, reference),
                    "untouched": f"That sounds like {gloss}! It is also known by several other names.",
                    "full_prompt": f"{reference} {reference}",
                },
            }
        )
    record["verdict"] = {
        "decision": "ship",
        "gates": [
            gate("score_drop_vs_teacher", 0.003, 0.03, True, "All of the interval is within the 3 points allowed."),
            gate("gain_over_sft", 0.021, 0.0, True, "All of the interval is a gain."),
            gate("gain_over_untouched", 0.114, 0.0, True, "All of the interval is a gain."),
            gate("gap_closed", 0.974, 0.8, True, "All of the interval is at least the 80% asked for."),
            gate("kl", 0.0312, 0.5, True, "All of the interval is within the 0.5 allowed."),
        ],
    }
    return record


def single() -> Json:
    """The same with one seed, which proves nothing."""
    record = folded(1)
    for row in record["comparisons"]:
        row["method"] = "paired: examples only; one seed"
    why = "One seed cannot tell luck in training from merit: run at least 2 seeds, better 5."
    record["verdict"] = {"decision": "hold", "gates": [gate("gain_over_sft", 0.021, 0.0, None, why)]}
    return record


def shortened() -> Json:
    """A student of fewer layers: no score, an untouched student that is lost, long texts, completions by the teacher, labels."""
    rng = random.Random(7)
    budget = (600.0, 812, 171_003)
    arms = {
        "teacher": arm(rng, "the teacher", {"nll": 2.914}, None),
        "untouched": arm(rng, "the student before any training", {"kl": 9.412, "nll": 11.931, "agreement": 0.0031}, 1),
        "sft": arm(
            rng,
            "the same student, trained on the given completions without a teacher",
            {"kl": 1.302, "nll": 3.981, "agreement": 0.512},
            3,
            budget,
        ),
        "kd": arm(
            rng,
            "the student, trained on the given completions",
            {"kl": 1.104, "nll": 3.942, "agreement": 0.541},
            3,
            budget,
        ),
        "stored": arm(
            rng,
            "the same student, the teacher's answers read from a store",
            {"kl": 1.061, "nll": 3.917, "agreement": 0.549},
            3,
            budget,
        ),
        "sequence_level": arm(
            rng,
            "the same student, trained on completions that the teacher wrote",
            {"kl": 1.377, "nll": 4.204, "agreement": 0.498},
            3,
            budget,
        ),
        "a_name_that_is_far_too_long_for_a_phone": arm(
            rng,
            "the same student, on-policy",
            {"kl": 1.203, "nll": 4.1, "agreement": 0.522},
            3,
            budget,
            0.734,
        ),
    }
    record = frame(rng, arms, "kl", 3)
    record["title"] = "A student of 6 layers"
    record["cost"]["student"] |= {"parameters": 49_578_048, "bytes": 198_312_192, "peak_bytes": 214_000_000}
    record["generated"] = generated()
    record["arms"]["stored"]["labels"] = labels()
    record["labels"] = labels()
    words = "the tree stands on the hill where the wind comes from the sea and takes its leaves in autumn"
    vocabulary = words.split()
    for index in range(2):
        written = " ".join(rng.choices(vocabulary, k=70))
        others = {
            key: " ".join([*written.split()[: 8 * n], *rng.choices(vocabulary, k=40)]) for n, key in enumerate(arms)
        }
        record["samples"].append(
            {
                "prompt": " ".join(rng.choices(vocabulary, k=20)),
                "teacher_prompt": " ".join(rng.choices(vocabulary, k=300)),
                "reference": written + " " + "x" * 200,
                "answers": {**others, "teacher": written, "untouched": "" if index else "…" * 300},
            }
        )
    record["verdict"] = {
        "decision": "reject",
        "gates": [
            gate("gain_over_sft", 0.198, 0.0, True, "All of the interval is a gain."),
            gate("gap_closed", 0.883, 0.95, False, "All of the interval is below the 95% asked for."),
            gate("size_ratio", 0.368, 0.5, True, "The student's weights take 36.8% of the teacher's."),
            gate("latency_ratio", None, 0.5, None, "The teacher's cost could not be measured here."),
        ],
    }
    return record


def bare() -> Json:
    """As little as a record of a finished run can hold."""
    return {"task": "language_model", "arms": {"kd": {}}, "verdict": {"decision": "hold"}}


def holed() -> Json:
    """The first record with holes: null, NaN, of another type, or absent."""
    record = folded()
    record["arms"]["kd"]["mean"]["kl"] = math.nan
    record["arms"]["kd"]["ci95"]["score"] = [None, None]
    record["arms"]["sft"]["seeds"] = []
    record["arms"]["lora"] = {"mean": None}
    record["gap"] |= {"closed": None, "ci95": None}
    record["gap"]["arms"]["kd"] = {"closed": None, "ci95": None}
    record["comparisons"] = [
        row for row in record["comparisons"] if row["b"] != "sft" and (row["b"], row["metric"]) != ("lora", "score")
    ]
    record["context"]["milliseconds"] = None
    record["cost"]["teacher"] = {}
    record["samples"][0]["answers"] = {"kd": "animal"}
    record["samples"][1] = {"answers": {"stranger": "time", "kd": 7}}
    record["transfer"] = {"examples": None, "prompt_tokens": []}
    record["generated"] = {"counts": {"written": 10}}
    record["labels"] = {"store": "labels"}
    record["evidence"]["curves"]["kd"] = None
    record["verdict"]["gates"][0]["value"] = None
    del record["provenance"], record["title"], record["objective"]
    return record


def hostile() -> Json:
    """HTML wherever the record holds text, names of arms included."""
    record = shortened()

    def poisoned(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: poisoned(inner, name) for name, inner in value.items()}
        if isinstance(value, list):
            return [poisoned(inner, key) for inner in value]
        keep = ("task", "metric", "decision", "a", "b", "kind", "form", "digest", "started")
        return (
            HOSTILE if isinstance(value, str) and (key not in keep or (key == "metric" and value == "nll")) else value
        )

    found: Json = poisoned(copy.deepcopy(record))
    found["arms"][HOSTILE] = found["arms"].pop("sequence_level")
    found["evidence"]["curves"][HOSTILE] = found["evidence"]["curves"].pop("sequence_level")
    found["generated"]["counts"]["dropped"][HOSTILE] = 3
    found["samples"][0]["answers"] |= {"teacher": f"one two {HOSTILE} three", "sft": f"one two three {HOSTILE} four"}
    for row in found["comparisons"]:
        row["b"] = HOSTILE if row["b"] == "sequence_level" else row["b"]
    return json.loads(json.dumps(found))


LANGUAGE_RECORDS: dict[str, Callable[[], Json]] = {
    "folded": folded,
    "single": single,
    "shortened": shortened,
    "bare": bare,
    "holed": holed,
    "hostile": hostile,
}
