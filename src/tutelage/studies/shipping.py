"""Export the student of a finished run: build the artefact aside, prove that it answers as the student does, give it its name."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from tutelage.data import TransferSet
from tutelage.errors import ConfigError, ExportError
from tutelage.evaluation import classification_metrics, fit_temperature
from tutelage.export import (
    Artefact,
    Format,
    ModuleRunner,
    Parity,
    Runner,
    check_destination,
    check_parity,
    commit,
    open_runner,
    parity_cases,
    readme_text,
    set_aside,
    staging,
)
from tutelage.export.artefacts import README
from tutelage.export.parity import FP32_TOLERANCE
from tutelage.files import write_atomically
from tutelage.models.saving import load_student
from tutelage.studies.answering import answers, limits
from tutelage.studies.arm import build_seeded
from tutelage.studies.building import Built, build, manifest_facts, pool
from tutelage.studies.finished import FinishedRun

SHIPPED = "shipped.json"
EXPORTS = "export"

Json = dict[str, Any]
Say = Callable[[str], None]

#: How much accuracy an int8 artefact may lose to the student on the validation split before it counts as broken.
INT8_BROKEN = 0.02


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
    say(f"exporting the student of seed {chosen} to {name}")
    with staging(destination) as staged:
        built = build(run, student, staged, to, int8)
        facts = manifest_facts(run, chosen, built, to, int8)
        runner = _runner(run, staged, built, to)
        say("asking it what the trained student was asked")
        parity = _parity(student, runner, run, built, int8)
        facts["parity"] = {key: value for key, value in parity.to_json().items() if key != "cases"}
        said = _Said.of(student, runner, run.study.splits.validation)
        why = parity.why if not parity.passed else said.broken(int8)
        if why is not None:
            facts["parity"] |= {"passed": False, "why": why}
            aside = set_aside(staged, destination, {**facts, "temperature": 1.0})
            raise ExportError(
                f"the {name} artefact does not answer as the trained student: {why}. It would be another model than the one that was "
                f"judged; it is kept in {aside} to be looked at, and nothing was put at {destination}"
            )
        fit = fit_temperature(said.artefact, said.labels)
        facts["temperature"] = fit.temperature
        (staged / README).write_text(readme_text(facts), encoding="utf-8")
        artefact = commit(staged, destination, facts)
    entry = _entry(run, artefact, parity, said.metrics(), fit.to_json())
    update_shipped(run.folder, lambda shipped: shipped.setdefault("artefacts", {}).__setitem__(name, entry))
    return artefact


@dataclass(frozen=True)
class _Said:
    """What the artefact and the trained student said of the validation split, ``[N, C]`` each, and its labels ``[N]``."""

    artefact: NDArray[np.float32]
    trained: NDArray[np.float32]
    labels: NDArray[np.int64]

    @staticmethod
    def of(student: nn.Module, runner: Runner, validation: TransferSet) -> _Said:
        trained = answers(ModuleRunner(student), validation)
        return _Said(answers(runner, validation), trained, validation.known_labels.numpy())

    def broken(self, int8: bool) -> str | None:
        """Why an artefact that passed its parity is not the student all the same, or None."""
        if int8:
            lost = float(
                (self.trained.argmax(1) == self.labels).mean() - (self.artefact.argmax(1) == self.labels).mean()
            )
            allowed = f"at most {100 * INT8_BROKEN:g} may be"
            return f"{100 * lost:.1f} points of validation accuracy are lost, {allowed}" if lost > INT8_BROKEN else None
        apart = np.abs(np.where(self.artefact == self.trained, 0.0, self.artefact - self.trained)).max()
        # a NaN is below no tolerance
        if apart <= FP32_TOLERANCE:
            return None
        return f"on the validation split a logit is {apart:.2g} from the student's, beyond {FP32_TOLERANCE:g}"

    def metrics(self) -> Json:
        """Of both."""
        return {
            "trained": classification_metrics(self.trained, self.labels),
            "artefact": classification_metrics(self.artefact, self.labels),
        }


def artefact_name(to: str, int8: bool) -> str:
    """What an artefact is called in ``shipped.json`` and, by default, in the run's folder."""
    return f"{to}-int8" if int8 else to


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


def _runner(run: FinishedRun, staged: Path, built: Built, to: Format) -> Runner:
    facts: Json = {"format": to, "model": built.model, **built.facts}
    module = load_student(build_seeded(run.study.student, run.seeds[0]), staged) if to == "safetensors" else None
    return open_runner(Artefact(staged, facts), None, module)


def _parity(student: nn.Module, runner: Runner, run: FinishedRun, built: Built, int8: bool) -> Parity:
    asked = pool(run.study.splits.validation.for_evaluation())
    return check_parity(student, runner, parity_cases(asked, built.inputs, student, *limits(runner)), int8=int8)


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
