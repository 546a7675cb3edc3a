"""Export the student of a finished run: build the artefact aside, prove that it answers as the student does, give it its name."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tutelage import __version__
from tutelage.data import Chain, Tokenise, TransferSet
from tutelage.errors import ConfigError, ExportError
from tutelage.evaluation import classification_metrics, fit_temperature
from tutelage.export import (
    Artefact,
    Format,
    ModuleRunner,
    Runner,
    check_destination,
    check_parity,
    commit,
    open_runner,
    parity_cases,
    readme_text,
    set_aside,
    staging,
    to_executorch,
    to_onnx,
    to_safetensors,
)
from tutelage.export.artefacts import README
from tutelage.export.onnx_format import OnnxRunner
from tutelage.export.parity import FP32_TOLERANCE, Parity
from tutelage.export.quantising import quantise_onnx
from tutelage.export.specs import TensorSpec, input_specs, taken_inputs
from tutelage.files import sha256_of, write_atomically
from tutelage.models.calling import Inputs
from tutelage.models.saving import WEIGHTS_FILE, load_student
from tutelage.studies.arm import build_seeded
from tutelage.studies.finished import FinishedRun
from tutelage.studies.gates import JUDGED

SHIPPED = "shipped.json"
EXPORTS = "export"

Json = dict[str, Any]
Say = Callable[[str], None]

#: Training examples that int8 is calibrated with, in batches of so many.
CALIBRATION_EXAMPLES = 512
CALIBRATION_BATCH = 64

#: Validation examples that the search for int8 measures on, and batch size of predictions.
SEARCH_EXAMPLES = 4096
BATCH = 256

#: How much accuracy an int8 artefact may lose to the student on the validation split before it counts as broken.
INT8_BROKEN = 0.02


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


def export_student(
    run: FinishedRun,
    to: Format = "onnx",
    *,
    int8: bool = False,
    out: str | Path | None = None,
    seed: int | None = None,
    say: Say = lambda _: None,
) -> Artefact:
    """Export one student of a run, and prove before it gets its name that it answers as the trained one.

    Args:
        run: the finished run.
        to: the format.
        int8: quantise; calibrated on the training split, measured on the validation split.
        out: the artefact's folder; ``export/FORMAT`` (``-int8``) in the run's folder if not given.
        seed: whose student; the one that does best on the validation split if not given.
        say: hears in a line what is being done.

    Raises:
        ConfigError: no such seed, or int8 for a format that has none.
        ExportError: it could not be exported, or does not answer as the student does; then it is kept beside ``out``, under
            its name with ``.failed``.
    """
    if int8 and to == "safetensors":
        raise ConfigError(
            "--int8 with --to safetensors: that folder holds the trained weights as they are, for libraries that quantise themselves; "
            "export int8 to onnx or executorch"
        )
    name = artefact_name(to, int8)
    destination = Path(out) if out is not None else run.folder / EXPORTS / name
    check_destination(destination)
    chosen = _chosen_seed(run, seed)
    student = run.student(chosen)
    validation = run.study.splits.validation
    say(f"exporting the student of seed {chosen} to {name}")
    with staging(destination) as staged:
        built = _build(run, student, staged, to, int8)
        facts = _facts(run, chosen, built, to, int8)
        runner = _runner(run, staged, built, to)
        say("asking it what the trained student was asked")
        parity = _parity(student, runner, run, built, int8)
        facts["parity"] = {key: value for key, value in parity.to_json().items() if key != "cases"}
        if not parity.passed:
            aside = set_aside(staged, destination, {**facts, "temperature": 1.0})
            raise ExportError(
                f"the {name} artefact does not answer as the trained student: {parity.why}. It would be another model than the one "
                f"that was judged; it is kept in {aside} to be looked at, and nothing was put at {destination}"
            )
        logits, trained = answers(runner, validation), answers(ModuleRunner(student), validation)
        labels = validation.known_labels.numpy()
        measured = {
            "trained": classification_metrics(trained, labels),
            "artefact": classification_metrics(logits, labels),
        }
        lost = measured["trained"]["accuracy"] - measured["artefact"]["accuracy"]
        far = float(np.abs(logits - trained).max())
        if (int8 and lost > INT8_BROKEN) or (not int8 and far > FP32_TOLERANCE):
            why = (
                f"{100 * lost:.1f} points of validation accuracy are lost, at most {100 * INT8_BROKEN:g} may be"
                if int8
                else f"on the validation split a logit is {far:.2g} from the student's, beyond {FP32_TOLERANCE:g}"
            )
            facts["parity"] |= {"passed": False, "why": why}
            aside = set_aside(staged, destination, {**facts, "temperature": 1.0})
            raise ExportError(
                f"the {name} artefact is not the student that was judged: {why}; it is kept in {aside}, and nothing "
                f"was put at {destination}"
            )
        fit = fit_temperature(logits, labels)
        facts["temperature"] = fit.temperature
        (staged / README).write_text(readme_text(facts), encoding="utf-8")
        artefact = commit(staged, destination, facts)
    entry = _entry(run, artefact, parity, measured, fit.to_json())
    update_shipped(run.folder, lambda shipped: shipped.setdefault("artefacts", {}).__setitem__(name, entry))
    return artefact


def artefact_name(to: str, int8: bool) -> str:
    """What an artefact is called in ``shipped.json`` and, by default, in the run's folder."""
    return f"{to}-int8" if int8 else to


def answers(runner: Runner, transfer_set: TransferSet) -> NDArray[np.float32]:
    """Logits ``[N, C]`` of a runner for a whole split, without augmentation."""
    plain = transfer_set.for_evaluation()
    step = min(BATCH, limits(runner)[0] or BATCH)
    parts = [runner(student_view(plain, start, start + step)) for start in range(0, len(plain), step)]
    return np.concatenate(parts)


def limits(runner: Runner) -> tuple[int | None, int | None]:
    """The most examples, and the most tokens of an example, that a runner takes at once; None where it takes any number."""
    return getattr(runner, "max_batch", None), getattr(runner, "max_length", None)


def student_view(transfer_set: TransferSet, start: int, stop: int) -> Inputs:
    """What the student is given of these rows."""
    return transfer_set.batch(torch.arange(start, min(stop, len(transfer_set))))["student"]


def runner_of(run: FinishedRun, artefact: Artefact, threads: int | None = None) -> Runner:
    """An artefact, ready to answer."""
    module = None
    if artefact.format == "safetensors":
        module = load_student(build_seeded(run.study.student, run.seeds[0]), artefact.folder)
    return open_runner(artefact, threads, module)


def read_shipped(folder: Path) -> Json:
    """``shipped.json`` of a run's folder; empty where nothing was exported yet.

    Raises:
        ExportError: it is damaged.
    """
    path = folder / SHIPPED
    if not path.is_file():
        return {}
    try:
        shipped = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(shipped, dict):
            raise ValueError(f"it holds a {type(shipped).__name__}")
        return shipped
    except (OSError, ValueError) as error:
        raise ExportError(
            f"{path} cannot be read ({error}): what was exported is not known; remove it, and export again"
        ) from error


def update_shipped(folder: Path, change: Callable[[Json], None]) -> Json:
    """Change ``shipped.json`` in one step; returns what it holds now."""
    shipped = read_shipped(folder)
    change(shipped)
    write_atomically(folder / SHIPPED, json.dumps(shipped, indent=1, allow_nan=False))
    return shipped


def _chosen_seed(run: FinishedRun, seed: int | None) -> int:
    if seed is None:
        return run.seed
    if seed not in run.seeds:
        raise ConfigError(f"--seed {seed}: the run has the seeds {', '.join(map(str, run.seeds))}")
    return seed


def _build(run: FinishedRun, student: nn.Module, staged: Path, to: Format, int8: bool) -> Built:
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
        most = preprocessing(validation)["max_length"]
        made = to_executorch(student, sample, staged / "model.pte", int8=int8, calibration=calibration, max_length=most)
        return Built("model.pte", made.files, made.inputs, made.outputs, made.to_json())
    if not int8:
        exported = to_onnx(student, sample, staged / "model.onnx")
        return Built("model.onnx", exported.files, exported.inputs, exported.outputs, {"opset": exported.opset})
    with staging(staged / "fp32") as aside:
        exported = to_onnx(student, sample, aside / "model.onnx")
        parity = check_parity(
            student, OnnxRunner(aside / "model.onnx"), parity_cases(_pool(validation), exported.inputs, student)
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


def _pool(validation: TransferSet) -> Inputs:
    return student_view(validation, 0, 64)


def _runner(run: FinishedRun, staged: Path, built: Built, to: Format) -> Runner:
    facts: Json = {"format": to, "model": built.model, **built.facts}
    module = load_student(build_seeded(run.study.student, run.seeds[0]), staged) if to == "safetensors" else None
    return open_runner(Artefact(staged, facts), None, module)


def _parity(student: nn.Module, runner: Runner, run: FinishedRun, built: Built, int8: bool) -> Parity:
    pool = _pool(run.study.splits.validation.for_evaluation())
    return check_parity(student, runner, parity_cases(pool, built.inputs, student, *limits(runner)), int8=int8)


def _facts(run: FinishedRun, seed: int, built: Built, to: Format, int8: bool) -> Json:
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


def _entry(
    run: FinishedRun, artefact: Artefact, parity: Parity, measured: Mapping[str, Any], calibration: Mapping[str, Any]
) -> Json:
    """An artefact as ``shipped.json`` has it."""
    manifest = artefact.manifest
    inside = artefact.folder.resolve().is_relative_to(run.folder.resolve())
    folder = artefact.folder.resolve().relative_to(run.folder.resolve()) if inside else artefact.folder
    return {
        "format": artefact.format,
        "precision": artefact.precision,
        "seed": manifest["run"]["seed"],
        "folder": folder.as_posix(),
        "bytes": artefact.bytes,
        "digest": artefact.digest,
        "created": manifest["created"],
        "parity": parity.to_json(),
        "quantisation": manifest["quantisation"],
        "validation": dict(measured),
        "calibration": dict(calibration),
    }
