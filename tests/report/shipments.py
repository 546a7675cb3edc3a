"""Made-up ``shipped.json`` records, written by hand after the contract: what was exported from the runs of ``example``."""

from __future__ import annotations

import copy
from typing import Any

from example import CLASSES

Json = dict[str, Any]

CPU = {"name": "a processor with 2 cores", "cores": 2, "flags": ["avx2", "fma", "avx512f"]}
NO_INT8 = "This processor has no instructions for int8 products, so that int8 saves bytes here but may save no time."


def timed(model: str, p50: float, threads: int = 1, batch: int = 1, length: int | None = None) -> Json:
    """One row of ``measured``."""
    return {
        "model": model,
        "threads": threads,
        "batch": batch,
        "length": length,
        "p50": p50,
        "p95": 1.2 * p50,
        "p99": 1.6 * p50,
        "spread": [0.97 * p50, 1.04 * p50],
        "throughput": 1000 * batch / p50,
        "calls": 4000,
    }


def parity(largest: float, agreement: float = 1.0, tolerance: float | None = 1e-4, lengths: bool = False) -> Json:
    """Six cases that all passed."""
    cases = [
        {
            "batch": batch,
            "length": 8 + 3 * batch if lengths else None,
            "padded": lengths and batch == 3,
            "max_abs": largest / (1 + batch % 3),
            "mean_abs": largest / 10,
            "agreement": agreement,
        }
        for batch in (1, 2, 3, 7, 16, 33)
    ]
    return {
        "cases": cases,
        "max_abs": largest,
        "mean_abs": largest / 10,
        "agreement": agreement,
        "tolerance": tolerance,
        "passed": True,
        "why": "Every logit is as near as it must be.",
    }


def artefact(kind: str = "onnx", precision: str = "fp32", size: int = 22_480, **others: Any) -> Json:
    """An artefact that was exported and not yet checked."""
    return {
        "format": kind,
        "precision": precision,
        "seed": 0,
        "folder": f"artefacts/{kind}-{precision}",
        "bytes": size,
        "created": "2026-11-21T09:00:00+00:00",
        "parity": parity(3.6e-7) if precision == "fp32" else parity(0.31, 0.9971, None),
        "quantisation": None,
        "validation": {
            "trained": {"accuracy": 0.974, "nll": 0.101, "ece": 0.024, "brier": 0.041},
            "artefact": {"accuracy": 0.974 if precision == "fp32" else 0.9703, "nll": 0.103, "ece": 0.025},
        },
        "calibration": {
            "temperature": 1.31,
            "helps": True,
            "nll": [0.1034, 0.0962],
            "ece": [0.0251, 0.0129],
            "why": "Dividing the logits by 1.31 takes the NLL of validation examples that the fit did not see from 0.1034 to 0.0962 nats.",
        },
    } | others


QUANTISATION = {
    "method": "dynamic",
    "per_channel": True,
    "float_nodes": ["/head/MatMul"],
    "tried": [
        {"what": "every layer", "kl": 0.0213, "agreement": 0.981, "accuracy": 0.9666, "bytes": 7_910},
        {"what": "every layer, per channel", "kl": 0.0084, "agreement": 0.989, "accuracy": 0.9703, "bytes": 8_020},
        {
            "what": "all but /head/MatMul, per channel",
            "kl": 0.0004,
            "agreement": 0.9971,
            "accuracy": 0.974,
            "bytes": 9_140,
        },
    ],
    "why": "In int8, /head/MatMul alone made up most of the divergence; in float it costs 1.1 kB.",
}


def gate(
    name: str, value: float | None, limit: float | None, passed: bool | None, why: str, needs: Json | None = None
) -> Json:
    found = {"name": name, "value": value, "limit": limit, "passed": passed, "why": why}
    return found | ({"needs": needs} if needs else {})


def slices() -> Json:
    """Ten classes, of which 8 loses for certain, and three slices by a column of metadata."""
    drops = {"8": 0.086, "1": 0.03, "3": 0.027, "9": 0.0, "4": -0.01}
    return {
        "class": [
            {
                "slice": label,
                "examples": 36,
                "accuracy": 0.97 - drops.get(label, 0.001),
                "teacher_accuracy": 0.97,
                "drop": drops.get(label, 0.001),
                "ci": [0.012, 0.16]
                if label == "8"
                else [drops.get(label, 0.001) - 0.06, drops.get(label, 0.001) + 0.06],
            }
            for label in CLASSES
        ],
        "writer": [
            {
                "slice": "left-handed",
                "examples": 41,
                "accuracy": 0.93,
                "teacher_accuracy": 0.97,
                "drop": 0.04,
                "ci": [-0.03, 0.11],
            },
            {
                "slice": "right-handed",
                "examples": 318,
                "accuracy": 0.972,
                "teacher_accuracy": 0.987,
                "drop": 0.015,
                "ci": [-0.01, 0.04],
            },
            {
                "slice": "unknown",
                "examples": 0,
                "accuracy": None,
                "teacher_accuracy": None,
                "drop": None,
                "ci": [None, None],
            },
        ],
    }


def compared(b: str, value: float, half: float, metric: str = "accuracy") -> Json:
    return {
        "a": "artefact",
        "b": b,
        "metric": metric,
        "difference": value,
        "ci95": [value - half, value + half],
        "p_value": 0.018,
        "seeds": 5 if b in ("scratch", "label_smoothing") else 1,
        "method": "paired by example, 0/1 scores adjusted (Bonett–Price)",
    }


def check(decision: str = "ship", **others: Any) -> Json:
    """What the test split said of an artefact."""
    return {
        "decision": decision,
        "gates": [
            gate("parity", 3.6e-7, 1e-4, True, "On 6 combinations of batch and length: every logit is near enough."),
            gate(
                "accuracy_drop_vs_teacher",
                0.017,
                0.05,
                True,
                "The artefact is 1.7 points below the teacher; all of the interval is within the 5 points allowed.",
            ),
            gate("negative_flips", 0.0195, 0.05, True, "All of the interval is within the 5% allowed."),
            gate(
                "size_ratio",
                0.0151,
                0.25,
                True,
                "The artefact takes 1.51% of the teacher's bytes; at most 25% is allowed.",
            ),
            gate(
                "latency_ratio",
                0.104,
                0.5,
                True,
                "The artefact takes 10.4% of the teacher's time; at most 50% is allowed.",
            ),
        ],
        "test": {
            "metrics": {"accuracy": 0.9694, "macro_f1": 0.969, "nll": 0.1187, "ece": 0.0164, "brier": 0.05},
            "ci95": {"accuracy": [0.9461, 0.9829], "nll": [0.07, 0.17], "ece": [0.011, 0.033]},
            "agreement_with_teacher": 0.9777,
        },
        "comparisons": [
            compared("teacher", -0.017, 0.014),
            compared("student", -0.003, 0.005),
            compared("scratch", 0.032, 0.02),
            compared("teacher", 0.06, 0.03, "nll"),
        ],
        "slices": slices(),
        "flips": {"teacher": {"rate": 0.0195, "ci95": [0.0089, 0.0401]}, "baseline": None},
        "checked": "2026-11-21T09:30:00+00:00",
    } | others


def measured(*artefacts: str, price: bool = True) -> Json:
    """Teacher, student and artefacts at four settings."""
    speeds = {"teacher": 0.205, "student": 0.0284, "onnx": 0.0091, "onnx-int8": 0.0213}
    models = ["teacher", "student", *artefacts]
    rows = [
        timed(model, speeds.get(model, 0.015) * (1 + batch / 8) / (1 + 0.4 * (threads - 1)), threads, batch)
        for threads in (1, 2)
        for batch in (1, 32)
        for model in models
    ]
    cost = {model: 1e6 * speeds.get(model, 0.015) / 3.6e6 * 0.09 for model in models}
    return {
        "cpu": {**CPU, "int8_note": NO_INT8},
        "measured": "2026-11-21T09:10:00+00:00",
        "rows": rows,
        "memory": {
            model: {"peak_bytes": 188_000_000 + 1_000_000 * len(model), "runtime_bytes": 171_000_000}
            for model in models
        },
        "bytes": {"teacher": 605_224, "student": 19_240},
        "flops": {"teacher": 2_660_864, "student": 9_472}
        | {name: None if "int8" in name else 9_472 for name in artefacts},
        "price": {"per_hour": 0.09, "currency": "USD", "per_million": cost} if price else None,
    }


def one() -> Json:
    """An fp32 artefact, exported and measured, not yet checked."""
    return {"artefacts": {"onnx": artefact()}, "measured": measured("onnx", price=False)}


def several() -> Json:
    """fp32 and int8 of ONNX, both checked."""
    int8 = artefact(precision="int8", size=9_140, quantisation=QUANTISATION, check=check())
    fp32 = artefact(check=check(slices={"class": slices()["class"][:4]}))
    return {"artefacts": {"onnx": fp32, "onnx-int8": int8}, "measured": measured("onnx", "onnx-int8")}


def hold() -> Json:
    """An undecided gate that says what would decide it."""
    gates = check()["gates"]
    gates[1] |= {
        "passed": None,
        "limit": 0.02,
        "why": "The artefact is 1.7 points below the teacher (95% interval: 0.3 to 3.1); the limit of 2 points lies inside the interval.",
        "needs": {"seeds": None, "examples": 2140, "why": "The interval must shrink to a third at this difference."},
    }
    found = several()
    found["artefacts"]["onnx-int8"]["check"] = check("hold", gates=gates)
    return found


def reject() -> Json:
    """A failed gate, one against a baseline, and a temperature that does not help."""
    needs = {"seeds": 3, "examples": 900, "why": "Either alone would do."}
    lost = "The class '8' loses most to the teacher; all of its interval is beyond the 2 points allowed."
    gates = [
        gate("worst_class_drop", 0.086, 0.02, False, lost),
        gate("negative_flips_vs_baseline", 0.011, 0.01, None, "The 1% allowed lie inside the interval.", needs),
        gate("parity", 0.9971, None, True, "It gives the trained student's answer."),
        *check()["gates"][1:],
    ]
    flips = check()["flips"] | {"baseline": {"rate": 0.011, "ci95": [0.004, 0.028]}}
    found = several()
    its = found["artefacts"]["onnx-int8"]
    its["check"] = check("reject", gates=gates, flips=flips)
    its["calibration"] |= {
        "helps": False,
        "temperature": 1.0,
        "fitted": 0.768,
        "why": "The temperature stays 1: 270 examples show no gain.",
    }
    return found


def unmeasured() -> Json:
    """Exported, and neither measured nor checked."""
    return {"artefacts": {"onnx": artefact()}}


def mobile() -> Json:
    """ExecuTorch in fp32 and int8 and a folder of safetensors, one of them of another seed; only one is checked."""
    artefacts = {
        "executorch": artefact("executorch", size=24_100, check=check()),
        "executorch-int8": artefact(
            "executorch", "int8", 11_800, quantisation={"method": "static", "why": "XNNPACK takes all of it."}
        ),
        "safetensors": artefact("safetensors", size=19_900, seed=2, calibration=None),
    }
    return {"artefacts": artefacts, "measured": measured(*artefacts)}


def lengths() -> Json:
    """An encoder: cases and latencies by length, padded ones among them; a column with many slices."""
    rows = [
        timed(model, p50 * length / 16, 1, batch, length)
        for model, p50 in (("teacher", 9.6), ("student", 2.1), ("onnx", 1.7))
        for batch in (1, 8)
        for length in (16, 128)
    ]
    topics = [
        {
            "slice": f"topic {index}",
            "examples": 20 + index,
            "accuracy": 0.9 - index / 100,
            "teacher_accuracy": 0.92,
            "drop": 0.02 + index / 100,
            "ci": [-0.05, 0.2],
        }
        for index in range(12)
    ]
    found = artefact(parity=parity(2.1e-6, lengths=True), check=check(slices={"topic": topics}), size=91_000_000)
    return {"artefacts": {"onnx": found}, "measured": {"cpu": CPU, "rows": rows, "bytes": {"teacher": 438_000_000}}}


def failed() -> Json:
    """No parity: the artefact was set aside."""
    broken = parity(0.2) | {
        "passed": False,
        "why": "At batch 7 a logit is 0.2 from the trained student's, and 0.0001 is allowed.",
    }
    return {"artefacts": {"onnx": artefact(parity=broken)}, "measured": measured("onnx")}


def holed() -> Json:
    """Something missing, null or NaN everywhere, and a name no file system would take."""
    nan = float("nan")
    name = "an artefact whose name is far too long | for any <b>table</b>"
    empty = {
        "format": None,
        "parity": {"cases": [{"batch": 1}], "max_abs": nan},
        "calibration": {"nll": [None]},
        "validation": 3,
    }
    odd = artefact(
        check={"decision": "hold", "gates": [{"name": "ece", "value": nan}], "test": {"metrics": {"accuracy": nan}}}
    )
    rows = [timed("teacher", nan), timed("onnx", 0.3), {"model": "student"}, 3]
    return {
        "artefacts": {name: empty, "onnx": odd},
        "measured": {
            "rows": rows,
            "bytes": {"teacher": None},
            "memory": {"onnx": None},
            "price": {"per_hour": nan},
            "cpu": 3,
        },
    }


SHIPMENTS = {
    "one": one,
    "several": several,
    "hold": hold,
    "reject": reject,
    "unmeasured": unmeasured,
    "mobile": mobile,
    "lengths": lengths,
    "failed": failed,
    "holed": holed,
}


def without(record: Json, *path: str) -> Json:
    """The record without one of its keys."""
    found = copy.deepcopy(record)
    inner = found
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return found
