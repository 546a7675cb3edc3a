"""Export the student of a finished run: build the artefact aside, prove that it answers as the student does, give it its name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from tutelage.errors import ConfigError, ExportError
from tutelage.evaluation import fit_temperature
from tutelage.export import (
    Artefact,
    Format,
    Parity,
    Runner,
    check_destination,
    check_parity,
    commit,
    open_runner,
    parity_cases,
    readme_text,
    require_packages,
    set_aside,
    staging,
)
from tutelage.export.artefacts import README
from tutelage.models.saving import load_student
from tutelage.studies.answering import Said, limits
from tutelage.studies.building import Built, build, manifest_facts, pool
from tutelage.studies.finished import FinishedRun
from tutelage.studies.ledger import EXPORTS, artefact_name, listed

Json = dict[str, Any]
Say = Callable[[str], None]


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
        MissingExtraError: the format's packages are not installed.
        ExportError: it could not be exported, or does not answer as the student does; then it is kept beside ``out``, under
            its name with ``.failed``.
    """
    if int8 and to == "safetensors":
        raise ConfigError(
            "--int8 with --to safetensors: that folder holds the trained weights as they are, for libraries that quantise themselves; "
            "export int8 to onnx or executorch"
        )
    require_packages(to)
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
        said = Said.of(student, runner, run.study.splits.validation)
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
    found = {"parity": parity.to_json(), "validation": said.metrics(), "calibration": fit.to_json()}
    listed(run.folder, artefact, found)
    return artefact


def _chosen_seed(run: FinishedRun, seed: int | None) -> int:
    if seed is None:
        return run.seed
    if seed not in run.seeds:
        raise ConfigError(f"--seed {seed}: the run has the seeds {', '.join(map(str, run.seeds))}")
    return seed


def _runner(run: FinishedRun, staged: Path, built: Built, to: Format) -> Runner:
    facts: Json = {"format": to, "model": built.model, **built.facts}
    module = load_student(run.fresh(run.seeds[0]), staged) if to == "safetensors" else None
    return open_runner(Artefact(staged, facts), None, module)


def _parity(student: nn.Module, runner: Runner, run: FinishedRun, built: Built, int8: bool) -> Parity:
    asked = pool(run.study.splits.validation.for_evaluation())
    return check_parity(student, runner, parity_cases(asked, built.inputs, student, *limits(runner)), int8=int8)
