"""From predictions to the numbers of ``result.json``: each arm's metrics with intervals, and the paired comparisons."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tutelage.evaluation import (
    Estimate,
    bootstrap_interval,
    classification_metrics,
    crossed_interval,
    expected_calibration_error,
    fidelity,
    log_probabilities,
    macro_f1,
    paired_comparison,
    per_example,
    per_example_fidelity,
)
from tutelage.export.machine import cpu_name
from tutelage.studies.arm import ArmRun

Json = dict[str, Any]
Logits = NDArray[np.float32]

#: The metrics that arms are compared on, and whether more is better. Accuracy decides; the others inform.
COMPARED = {"accuracy": True, "nll": False, "brier": False}


def arm_record(
    description: str, runs: Sequence[ArmRun], logits: Logits, teacher: Logits | None, labels: NDArray[np.int64]
) -> Json:
    """One arm of ``result.json``.

    Args:
        description: in words.
        runs: one a seed; empty for a teacher that this run did not train.
        logits: ``[S, N, C]`` on the test split.
        teacher: the teacher's ``[N, C]``, or None for the teacher itself.
        labels: ``[N]``.
    """
    seeds: list[Json] = []
    for index, values in enumerate(logits):
        run = runs[index] if runs else None
        row: Json = {"seed": run.seed if run else None, "metrics": classification_metrics(values, labels)}
        row |= {"seconds": run.seconds if run else None, "steps": run.steps if run else None}
        if teacher is not None:
            row["fidelity"] = fidelity(values, teacher, labels)
        seeds.append(row)
    estimates = _estimates(logits, teacher, labels)
    return {
        "description": description,
        "seeds": seeds,
        "mean": {name: estimate.mean for name, estimate in estimates.items()},
        "ci95": {name: estimate.to_json()["ci95"] for name, estimate in estimates.items()},
        "ci_method": {name: estimate.method for name, estimate in estimates.items()},
    }


def comparisons(judged: str, logits: Mapping[str, Logits], labels: NDArray[np.int64]) -> list[Json]:
    """The judged arm against every other, on each compared metric, paired by seed and by test example."""
    scores = {arm: [per_example(values, labels) for values in arm_logits] for arm, arm_logits in logits.items()}
    rows: list[Json] = []
    for other in logits:
        if other == judged or judged not in logits:
            continue
        for metric, higher_is_better in COMPARED.items():
            a, b = (np.stack([seed[metric] for seed in scores[arm]]) for arm in (judged, other))
            comparison = paired_comparison(a, b, metric, higher_is_better=higher_is_better)
            rows.append({"a": judged, "b": other, **comparison.to_json()})
    return rows


def provenance(command: str, config_text: str, data_digest: str) -> Json:
    """What one needs to make the numbers again."""
    packages = ("torch", "transformers", "accelerate", "numpy", "scipy", "scikit-learn")
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "command": command,
        "config": config_text,
        "data_sha256": data_digest,
    }


def _estimates(logits: Logits, teacher: Logits | None, labels: NDArray[np.int64]) -> dict[str, Estimate]:
    scores = [per_example(values, labels) for values in logits]
    if teacher is not None:
        scores = [
            row | per_example_fidelity(values, teacher, labels) for row, values in zip(scores, logits, strict=True)
        ]
    estimates = {name: crossed_interval(np.stack([row[name] for row in scores])) for name in scores[0]}
    predictions = logits.argmax(axis=2)
    confidence = np.exp(np.stack([log_probabilities(values).max(axis=1) for values in logits]))
    correct = (predictions == labels[None]).astype(np.float64)
    estimates["macro_f1"] = bootstrap_interval(macro_f1, predictions, labels[None], bounds=(0.0, 1.0))
    estimates["ece"] = bootstrap_interval(expected_calibration_error, confidence, correct, bounds=(0.0, 1.0))
    return estimates
