"""What the page shows beside the numbers: curves, classes, calibration, and the examples that flipped."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage.data import Completions, TransferSet, hex_id
from tutelage.evaluation import ECE_VARIANT, flips, log_probabilities, per_class, reliability
from tutelage.evaluation.slices import MIN_EXAMPLES, slice_table
from tutelage.studies.arm import ArmRun

_FLIPS_SHOWN = 12
_TEXT_SHOWN = 400

Json = dict[str, Any]


def collect_evidence(
    runs: Mapping[str, Sequence[ArmRun]],
    logits: Mapping[str, NDArray[np.float32]],
    test: TransferSet,
    class_names: Sequence[str],
    judged: str,
) -> Json:
    """The ``evidence`` of ``result.json``.

    Args:
        runs: of each trained arm.
        logits: of each arm with the teacher, ``[S, N, C]``.
        test: the test split.
        class_names: C names.
        judged: the arm whose flips are shown.
    """
    labels = test.known_labels.numpy()
    return {
        "curves": {arm: [curves_of(run.seed, run.log) for run in arm_runs] for arm, arm_runs in runs.items()},
        "per_class": {arm: _mean_per_class(values, labels, class_names) for arm, values in logits.items()},
        "reliability": {
            arm: reliability(values.reshape(-1, values.shape[-1]), np.tile(labels, len(values)))
            for arm, values in logits.items()
        },
        "ece_method": ECE_VARIANT,
        "flips": _flips(logits[judged][0], logits["teacher"][0], test, class_names, judged, runs[judged][0].seed)
        if judged in logits
        else None,
    }


def correctness(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """1 where the top class of ``logits[S, N, C]`` is the label ``[N]``, else 0: ``[S, N]``."""
    return (logits.argmax(axis=2) == labels[None]).astype(np.float64)


def slice_tables(
    correct: NDArray[np.float64], teacher_correct: NDArray[np.float64], test: TransferSet, class_names: Sequence[str]
) -> dict[str, list[Json]]:
    """What is lost to the teacher, class by class and for each metadata column slice by slice, most lost first.

    Args:
        correct: ``[S, N]`` of :func:`correctness`.
        teacher_correct: ``[1, N]``.
        test: the test split.
        class_names: C names.
    """
    classes = [class_names[int(label)] for label in test.known_labels.tolist()]
    columns: dict[str, list[str]] = {column: list(values) for column, values in (test.metadata or {}).items()}
    # the worst slice is picked from all columns together, so all of them share the confidence
    family = sum(count >= MIN_EXAMPLES for values in columns.values() for count in Counter(values).values())
    return {
        "class": slice_table(correct, teacher_correct, classes),
        **{column: slice_table(correct, teacher_correct, values, family=family) for column, values in columns.items()},
    }


def curves_of(seed: int | None, log: Sequence[Mapping[str, Any]]) -> Json:
    """A training's loss with its parts, and what was watched on the validation split, step by step.

    Args:
        seed: of the training.
        log: the trainer's lines.
    """
    train: list[Json] = []
    validation: list[Json] = []
    for line in log:
        place = {"step": line["step"], "epoch": line.get("epoch")}
        if "loss" in line:
            components = {key.removeprefix("loss/"): value for key, value in line.items() if key.startswith("loss/")}
            train.append({**place, "loss": line["loss"], "components": components})
        elif "eval_accuracy" in line:
            validation.append({**place, "accuracy": line["eval_accuracy"], "nll": line["eval_nll"]})
    return {"seed": seed, "train": train, "validation": validation}


def _mean_per_class(logits: NDArray[np.float32], labels: NDArray[np.int64], names: Sequence[str]) -> list[Json]:
    tables = [per_class(values, labels, names) for values in logits]
    rows: list[Json] = []
    for index, name in enumerate(names):
        row: Json = {"class": name, "support": tables[0][index]["support"]}
        for measure in ("precision", "recall", "f1"):
            known = [table[index][measure] for table in tables if table[index][measure] is not None]
            row[measure] = float(np.mean(np.array(known, dtype=np.float64))) if known else None
        rows.append(row)
    return rows


def _flips(
    student: NDArray[np.float32],
    teacher: NDArray[np.float32],
    test: TransferSet,
    names: Sequence[str],
    arm: str,
    seed: int,
) -> Json:
    labels = test.known_labels.numpy()
    rows = flips(student, teacher, labels)
    student_p, teacher_p = np.exp(log_probabilities(student)), np.exp(log_probabilities(teacher))
    examples: list[Json] = []
    for row in rows[:_FLIPS_SHOWN].tolist():
        examples.append(
            {
                "id": hex_id(int(test.ids[row])),
                "label": names[int(labels[row])],
                "teacher": names[int(teacher_p[row].argmax())],
                "teacher_confidence": float(teacher_p[row].max()),
                "student": names[int(student_p[row].argmax())],
                "student_confidence": float(student_p[row].max()),
                "image": shown_image(test, row),
                "text": shown_text(test, row),
            }
        )
    return {"arm": arm, "seed": seed, "total": len(rows), "examples": examples}


def shown_text(test: TransferSet, row: int) -> str | None:
    """The raw input where it is a text, cut where it is long."""
    if isinstance(test.inputs, Tensor | Mapping | Completions):
        return None
    text = test.inputs[row]
    return text if len(text) <= _TEXT_SHOWN else f"{text[:_TEXT_SHOWN]}…"


def shown_image(test: TransferSet, row: int) -> str | None:
    """The raw input as a PNG data URI, where it is an image ``[H, W]``, ``[1, H, W]`` or ``[3, H, W]``."""
    if not isinstance(test.inputs, Tensor):
        return None
    values = test.inputs[row].detach().float()
    if values.ndim == 2:
        values = values[None]
    if values.ndim != 3 or values.shape[0] not in (1, 3) or min(values.shape[1:]) < 4:
        return None
    from PIL import Image

    low, high = float(values.min()), float(values.max())
    # Pixels in 0 … 1 or 0 … 255 are shown as they are; anything else (already normalised) is stretched to be seen.
    if low >= 0 and high <= 1:
        values = values * 255
    elif low < 0 or high > 255:
        values = (values - low) / max(high - low, 1e-12) * 255
    pixels = values.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
