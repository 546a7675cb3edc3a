"""Export every example's student to every format, check each artefact, and write the tables of ``docs/deployment.md``.

    python -m benchmarks.deployment [NAME ...]

Runs that are finished under ``runs/`` are used as they are, and so are artefacts that were checked; the others are run, exported and
checked first (remove ``runs/NAME/shipped.json`` to measure anew). Fashion-MNIST is left out where its files
are not there.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.encoder.models import write_tokenizer
from tutelage.config.reopening import reopen
from tutelage.errors import ExportError
from tutelage.export import Artefact, read_artefact
from tutelage.studies import check_artefact, export_student, measure_shipped
from tutelage.studies.finished import FinishedRun
from tutelage.studies.ledger import artefact_name, read_shipped

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "deployment.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
SECONDS = 20.0
FASHION = Path("/usr/share/datasets/fashion-mnist")
FORMATS = [("onnx", False), ("onnx", True), ("executorch", False), ("executorch", True), ("safetensors", False)]


@dataclass(frozen=True)
class Case:
    """A run whose student is exported."""

    title: str
    config: str
    folder: str
    overrides: tuple[str, ...] = ()


CASES = {
    "digits-mlp": Case("digits, MLP 64-64-10", "examples/digits/config.yaml", "runs/digits"),
    "digits-cnn": Case(
        "digits, small CNN",
        "examples/digits/config.yaml",
        "runs/digits-cnn",
        ("student.model.python=models.py:small_cnn", "study.seeds=2", "title=handwritten digits, small CNN"),
    ),
    "fashion-cnn": Case("Fashion-MNIST, small CNN", "examples/fashion_mnist/config.yaml", "runs/fashion_mnist"),
    "fashion-mlp": Case("Fashion-MNIST, MLP", "examples/fashion_mnist/mlp.yaml", "runs/fashion_mnist-mlp"),
    "encoder": Case("BERT 2×128, random weights", "benchmarks/encoder/config.yaml", "runs/encoder"),
}


def finished(case: Case) -> FinishedRun:
    folder = ROOT / case.folder
    if not (folder / "result.json").is_file():
        overrides = [word for override in case.overrides for word in ("--set", override)]
        command = [
            str(Path(sys.executable).with_name("tutelage")),
            "run",
            case.config,
            "--out",
            case.folder,
            *overrides,
        ]
        subprocess.run(command, cwd=ROOT, check=True)
    return reopen(folder)


def artefacts_of(run: FinishedRun) -> tuple[dict[str, Artefact], dict[str, str]]:
    """Each format's artefact, exported where it is not there yet; and why some could not be."""
    made: dict[str, Artefact] = {}
    refused: dict[str, str] = {}
    for to, int8 in FORMATS:
        name = artefact_name(to, int8)
        folder = run.folder / "export" / name
        try:
            made[name] = read_artefact(folder) if folder.is_dir() else export_student(run, to, int8=int8, say=print)
        except ExportError as error:
            refused[name] = str(error).splitlines()[0]
    return made, refused


def _checked(run: FinishedRun, artefact: Artefact) -> bool:
    """Whether this artefact was checked before: measuring five runs takes a quarter of an hour, and may be cut off."""
    known = read_shipped(run.folder).get("artefacts", {}).values()
    return any("check" in entry and entry["digest"] == artefact.digest for entry in known)


def measured(case: Case) -> dict[str, Any]:
    run = finished(case)
    made, refused = artefacts_of(run)
    if not all(_checked(run, artefact) for artefact in made.values()):
        print(f"{case.title}: measuring")
        timed = measure_shipped(run, made, seconds=SECONDS)
        for name, artefact in made.items():
            check_artefact(run, name, artefact, timed, say=print)
    return {"shipped": read_shipped(run.folder), "refused": refused, "result": run.result}


def points(value: float) -> str:
    return f"{100 * value:+.2f}"


def parity_rows(case: Case, found: dict[str, Any]) -> list[str]:
    rows: list[str] = []
    for name, entry in found["shipped"]["artefacts"].items():
        parity, check = entry["parity"], entry["check"]
        against = next(row for row in check["comparisons"] if (row["b"], row["metric"]) == ("student", "accuracy"))
        low, high = against["ci95"]
        span = f"{points(low)} to {points(high)}" if None not in (low, high) else "the same answers"
        rows.append(
            f"| {case.title} | {name} | {len(parity['cases'])} | {parity['max_abs']:.1e} | {parity['mean_abs']:.1e} | "
            f"{parity['agreement']:.1%} | "
            f"{check['test']['metrics']['accuracy']:.2%} | {points(against['difference'])} ({span}) | {check['decision']} |"
        )
    rows += [f"| {case.title} | {name} | | | | | | refused | |" for name in found["refused"]]
    return rows


def latency_rows(case: Case, found: dict[str, Any]) -> list[str]:
    timed = found["shipped"]["measured"]
    longest = max(row["length"] or 0 for row in timed["rows"])

    def at(model: str, batch: int) -> dict[str, Any]:
        return next(
            row
            for row in timed["rows"]
            if (row["model"], row["threads"], row["batch"], row["length"] or 0) == (model, 1, batch, longest)
        )

    rows: list[str] = []
    for model, size in timed["bytes"].items():
        one, many = at(model, 1), at(model, max(row["batch"] for row in timed["rows"]))
        low, high = one["spread"]
        ratio = at("teacher", 1)["p50"] / one["p50"]
        smaller = timed["bytes"]["teacher"] / size
        rows.append(
            f"| {case.title} | {model} | {size / 1e3:,.1f} | {smaller:.1f}× | {one['p50']:.3f} ({low:.3f} to {high:.3f}) | "
            f"{one['p99']:.3f} | {ratio:.1f}× | {many['p50']:.2f} ({many['batch']}) | {many['throughput']:,.0f} | "
            f"{timed['memory'][model]['peak_bytes'] / 1e6:.0f} |"
        )
    return rows


def text(found: dict[str, dict[str, Any]]) -> str:
    cpu = next(iter(found.values()))["shipped"]["measured"]["cpu"]
    waited = max(row.get("waited") or 0.0 for case in found.values() for row in case["shipped"]["measured"]["rows"])
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "onnxruntime", "executorch"))
    lines = [
        BEGIN,
        f"Made by `python -m benchmarks.deployment` on {datetime.now(UTC):%Y-%m-%d}: {cpu['name']}, {cpu['cores']} cores, "
        f"{', '.join(cpu['flags'])}; {packages}. The greatest share of time that a timed thread waited for a core: {waited:.0%}.",
        "",
        "### Parity, and what the artefacts say of the test split",
        "",
        "| student | artefact | cases | max. error | mean error | same class | test accuracy | less the trained's (95%) | verdict |",
        "|---|---|---:|---:|---:|---:|---:|---:|---|",
        *[row for name, case in found.items() for row in parity_rows(CASES[name], case)],
        "",
        "### Size, latency and memory, one thread",
        "",
        "| student | model | kB | smaller | p50 ms, batch 1 (spread) | p99 | faster | p50 ms, large batch | examples/s | peak MB |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
        *[row for name, case in found.items() for row in latency_rows(CASES[name], case)],
        "",
    ]
    refused = [(CASES[name].title, kind, why) for name, case in found.items() for kind, why in case["refused"].items()]
    if refused:
        lines += ["Refused:", "", *[f"- {title}, {kind}: {why}" for title, kind, why in refused], ""]
    return "\n".join([*lines, END])


def main(names: list[str]) -> None:
    wanted = names or [name for name in CASES if not name.startswith("fashion") or FASHION.is_dir()]
    tokenizer = ROOT / "benchmarks" / "encoder" / "tokenizer"
    if not tokenizer.is_dir():
        write_tokenizer(tokenizer)
    found = {name: measured(CASES[name]) for name in wanted}
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(before + text(found) + after, encoding="utf-8")
    print(json.dumps({name: list(case["refused"]) for name, case in found.items()}))


if __name__ == "__main__":
    main(sys.argv[1:])
