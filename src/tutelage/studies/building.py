"""A format's exporter, given what it needs of a run: the student, a sample, calibration data, the facts of the manifest."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tutelage import __version__
from tutelage.data import Chain, Splits, Tokenise, TransferSet
from tutelage.errors import ExportError
from tutelage.export import (
    Format,
    OnnxRunner,
    TensorSpec,
    check_parity,
    input_specs,
    named,
    parity_cases,
    quantise_onnx,
    staging,
    to_executorch,
    to_onnx,
    to_safetensors,
)
from tutelage.export.specs import LENGTH, taken_inputs
from tutelage.files import sha256_of
from tutelage.models.calling import Inputs
from tutelage.models.saving import WEIGHTS_FILE
from tutelage.studies.answering import BATCH, student_view
from tutelage.studies.finished import FinishedRun
from tutelage.studies.gates import JUDGED

Json = dict[str, Any]

#: Training examples that int8 is calibrated with, in batches of so many.
CALIBRATION_EXAMPLES = 512
CALIBRATION_BATCH = 64

#: Validation examples that the search for int8 measures on, and examples that parity is asked with.
SEARCH_EXAMPLES = 4096
POOL = 64


@dataclass(frozen=True)
class Built:
    """What a format's exporter has put into the folder.

    Args:
        model: the file to load, by its name.
        model_files: it with all else that is loaded with it.
        inputs, outputs: what it takes and gives.
        facts: more for the manifest.
    """

    model: str
    model_files: list[str]
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    facts: Json


def build(run: FinishedRun, student: nn.Module, staged: Path, to: Format, int8: bool) -> Built:
    train, validation = run.study.splits.train.for_evaluation(), run.study.splits.validation.for_evaluation()
    sample = student_view(validation, 0, 4)
    processing = run.study.processing
    if processing is not None and to != "safetensors":
        processing.save_pretrained(staged)
    if to == "safetensors":
        found = to_safetensors(student, staged, processing, **_code(run))
        weights = [name for name in found.files if name.endswith((".safetensors", ".safetensors.index.json"))]
        facts = {"code": found.code, "kind": found.kind, "dropped": found.dropped}
        logits = TensorSpec("logits", "float32", ("batch", len(run.result["classes"])))
        # an index, where the weights are in several files, is what a reader loads
        given = sample if isinstance(sample, Tensor) else taken_inputs(student, sample)
        return Built(max(weights, key=len), weights, input_specs(given), [logits], facts)
    calibration = _calibration(train) if int8 else []
    if to == "executorch":
        most = preprocessing(validation)["max_length"] or _longest(run.study.splits)
        made = to_executorch(student, sample, staged / "model.pte", int8=int8, calibration=calibration, max_length=most)
        return Built("model.pte", made.files, made.inputs, made.outputs, made.to_json())
    if not int8:
        exported = to_onnx(student, sample, staged / "model.onnx")
        return Built("model.onnx", exported.files, exported.inputs, exported.outputs, {"opset": exported.opset})
    with staging(staged / "fp32") as aside:
        exported = to_onnx(student, sample, aside / "model.onnx")
        parity = check_parity(
            student, OnnxRunner(aside / "model.onnx"), parity_cases(pool(validation), exported.inputs, student)
        )
        if not parity.passed:
            raise ExportError(
                f"the fp32 model that int8 begins with does not answer as the trained student: {parity.why}"
            )
        record = quantise_onnx(
            aside / "model.onnx",
            staged / "model.onnx",
            calibration,
            student_view(validation, 0, SEARCH_EXAMPLES),
            validation.known_labels[:SEARCH_EXAMPLES].numpy(),
        )
    files = sorted(path.name for path in staged.iterdir() if path.name.startswith("model.onnx"))
    return Built(
        "model.onnx",
        files,
        exported.inputs,
        exported.outputs,
        {"opset": exported.opset, "quantisation": record.to_json()},
    )


def _code(run: FinishedRun) -> Json:
    """The user's file that builds the student, for an artefact that is weights alone."""
    source = run.study.student_source
    if source is None or source.python is None:
        return {}
    file, _, _ = source.python.rpartition(":")
    return {"code": source.folder / file, "reference": source.python, "arguments": dict(source.arguments)}


def _calibration(train: TransferSet) -> list[Inputs]:
    """Training examples, evenly spread over the split, in batches."""
    count = min(CALIBRATION_EXAMPLES, len(train))
    rows = torch.linspace(0, len(train) - 1, count).round().long()
    return [train.batch(chunk)["student"] for chunk in rows.split(CALIBRATION_BATCH)]


def _longest(splits: Splits) -> int | None:
    """The most tokens that a batch of any split has, for a program that must be told; None where there are no tokens."""
    tokens = [
        named(view)[spec.name].shape[1]
        for part in (splits.train.for_evaluation(), splits.validation, splits.test)
        for view in (student_view(part, start, start + BATCH) for start in range(0, len(part), BATCH))
        for spec in input_specs(view)
        if LENGTH in spec.shape
    ]
    return max(tokens, default=None)


def pool(validation: TransferSet) -> Inputs:
    return student_view(validation, 0, POOL)


def preprocessing(validation: TransferSet) -> Json:
    """What an example goes through before the model is given it, in words that can be read again."""
    view = validation.student_view
    views = list(view.views) if isinstance(view, Chain) else [view] if view is not None else []
    tokenise = next((step for step in views if isinstance(step, Tokenise)), None)
    return {
        "steps": [
            f"Tokenise(max_length={step.max_length})" if isinstance(step, Tokenise) else repr(step) for step in views
        ],
        "tokenizer": tokenise is not None,
        "max_length": tokenise.max_length if tokenise is not None else None,
    }


def _versions(to: Format) -> Json:
    packages = {
        "onnx": ("onnx", "onnxscript", "onnxruntime"),
        "executorch": ("executorch",),
        "safetensors": ("safetensors",),
    }
    found: Json = {}
    for package in ("torch", "transformers", *packages[to]):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def manifest_facts(run: FinishedRun, seed: int, built: Built, to: Format, int8: bool) -> Json:
    weights = run.folder / JUDGED / f"seed-{seed}" / WEIGHTS_FILE
    return {
        "tutelage": __version__,
        "format": to,
        "precision": "int8" if int8 else "fp32",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": built.model,
        "model_files": built.model_files,
        "inputs": [spec.to_json() for spec in built.inputs],
        "outputs": [spec.to_json() for spec in built.outputs],
        "classes": run.result["classes"],
        "preprocessing": preprocessing(run.study.splits.validation),
        "versions": _versions(to),
        "run": {
            "title": run.result["title"],
            "arm": JUDGED,
            "seed": seed,
            "config_sha256": run.result["config_sha256"],
            "result_sha256": sha256_of(run.folder / "result.json"),
            "weights_sha256": sha256_of(weights) if weights.is_file() else None,
        },
        "opset": None,
        "quantisation": None,
        "code": None,
        **built.facts,
    }
