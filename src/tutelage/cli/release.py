"""``tutelage export`` and ``tutelage check``: the end of a release pipeline."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tutelage.cli.summaries import summarise_artefact, summarise_check
from tutelage.errors import ConfigError

if TYPE_CHECKING:
    from tutelage.studies.checking import Price
    from tutelage.studies.finished import FinishedRun

#: What `tutelage check` leaves with, for a pipeline to read; 2 is an error, as everywhere.
EXIT_CODES = {"ship": 0, "hold": 3, "reject": 4}


class Format(StrEnum):
    """What a student can be exported to."""

    ONNX = "onnx"
    EXECUTORCH = "executorch"
    SAFETENSORS = "safetensors"


_Run = Annotated[Path, typer.Argument(help="The folder of a finished run.", show_default=False)]
_Config = Annotated[
    Path | None,
    typer.Option(
        "--config", help="The config that was run, or its folder, where it has moved since.", show_default=False
    ),
]
_Seconds = Annotated[float, typer.Option("--seconds", min=1.0, help="Seconds of timing in all.")]
_PricePerHour = Annotated[
    float | None,
    typer.Option(
        "--price", help="What the machine costs an hour: the cost of a million inferences is told.", show_default=False
    ),
]
_Currency = Annotated[str, typer.Option("--currency", help="What that price is in.")]


def export(
    run: _Run,
    to: Annotated[Format, typer.Option("--to", help="The format.")] = Format.ONNX,
    int8: Annotated[
        bool, typer.Option("--int8", help="Quantise to 8-bit integers, measured on the validation split.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The artefact's folder; export/FORMAT in the run if not given.", show_default=False),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed", help="Whose student; the best on the validation split if not given.", show_default=False
        ),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Time it beside teacher and student, in fresh processes.")
    ] = True,
    seconds: _Seconds = 20.0,
    price: _PricePerHour = None,
    currency: _Currency = "$",
    config: _Config = None,
) -> None:
    """Export a run's student, and prove that the artefact answers as the student does."""
    from tutelage.config.reopening import ran_config
    from tutelage.export import require_packages

    # nobody shall install a package for a run that cannot be exported
    ran_config(run)
    require_packages(to.value)
    found = _open(run, config)
    from tutelage.report import write_report
    from tutelage.studies.checking import measure_shipped
    from tutelage.studies.ledger import listed, read_shipped, update_shipped
    from tutelage.studies.shipping import export_student

    asked = _price(price, currency)
    artefact = export_student(found, to.value, int8=int8, out=out, seed=seed, say=_say)
    name = listed(run, artefact)
    if measure:
        _say("measuring it as it runs, beside teacher and student")
        measured = measure_shipped(found, _present(found, name, artefact), price=asked, seconds=seconds)
        update_shipped(run, lambda shipped: shipped.update(measured=measured))
    shipped = read_shipped(run)
    page = write_report(run)
    summarise_artefact(name, shipped, timed=measure)
    typer.echo(f"\nartefact: {artefact.folder}\npage:     {page}")


def check(
    run: _Run,
    artefact: Annotated[
        Path | None,
        typer.Option(
            "--artifact", "--artefact", help="Which artefact; the one exported last if not given.", show_default=False
        ),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(
            "--baseline", help="An artefact that was shipped before: its flips are counted.", show_default=False
        ),
    ] = None,
    summary: Annotated[
        Path | None,
        typer.Option("--summary", help="Write the verdict as Markdown, for a pull request.", show_default=False),
    ] = None,
    card: Annotated[
        Path | None, typer.Option("--card", help="Write a model card for a model hub.", show_default=False)
    ] = None,
    license: Annotated[
        str | None,
        typer.Option("--license", help="The licence that the card names, e.g. apache-2.0.", show_default=False),
    ] = None,
    mlflow: Annotated[bool, typer.Option("--mlflow", help="Log verdict, metrics and artefact to MLflow.")] = False,
    seconds: _Seconds = 20.0,
    price: _PricePerHour = None,
    currency: _Currency = "$",
    config: _Config = None,
) -> None:
    """Judge an artefact on the test split by the run's gates. Exit code 0 ship, 3 hold, 4 reject, 2 error."""
    found = _open(run, config)
    from tutelage.export import read_artefact
    from tutelage.report import markdown_summary, model_card, write_report
    from tutelage.report.tracking import log_to_mlflow, require_mlflow
    from tutelage.studies.checking import check_artefact, measure_shipped, verify_artefact
    from tutelage.studies.ledger import listed, read_shipped

    asked = _price(price, currency)
    for path in (summary, card):
        if path is not None and not path.resolve().parent.is_dir():
            raise ConfigError(
                f"{path} cannot be written, there is no folder {path.parent}: make it, or name another file"
            )
    if mlflow:
        require_mlflow()
    judged = read_artefact(artefact if artefact is not None else _newest(run))
    before = read_artefact(baseline) if baseline is not None else None
    verify_artefact(found, judged, before)
    name = listed(run, judged)
    _say("measuring it as it runs, beside teacher and student")
    measured = measure_shipped(found, _present(found, name, judged), price=asked, seconds=seconds)
    verdict = check_artefact(found, name, judged, measured, baseline=before, say=_say)
    shipped = read_shipped(run)
    page = write_report(run)
    summarise_check(name, found.result, shipped)
    typer.echo(f"\nartefact: {judged.folder}\npage:     {page}")
    if summary is not None:
        summary.write_text(markdown_summary(found.result, shipped, name), encoding="utf-8")
        typer.echo(f"summary:  {summary}")
    if card is not None:
        card.write_text(model_card(found.result, shipped, name, license=license), encoding="utf-8")
        typer.echo(f"card:     {card}")
    if mlflow:
        typer.echo(f"mlflow:   {log_to_mlflow(found.result, shipped, name, judged.folder)}")
    raise typer.Exit(EXIT_CODES[verdict["decision"]])


def _open(run: Path, config: Path | None) -> FinishedRun:
    from tutelage.config.reopening import reopen

    quieten_libraries()
    return reopen(run, config)


def _newest(run: Path) -> Path:
    """The folder of the artefact that was exported last."""
    from tutelage.studies.ledger import folder_of, read_shipped

    known = read_shipped(run).get("artefacts", {})
    if not known:
        raise ConfigError(
            f"nothing of {run} was exported yet, so there is nothing to check as it will run: `tutelage export {run} --to onnx` first, or "
            "name an artefact with --artifact"
        )
    return folder_of(run, max(known.values(), key=lambda entry: entry.get("created") or ""))


def _present(found: FinishedRun, name: str, artefact: Any) -> dict[str, Any]:
    """The run's artefacts that are there and whole: they are timed together, so that they can be compared."""
    from tutelage.errors import ExportError
    from tutelage.export import read_artefact
    from tutelage.studies.ledger import folder_of, read_shipped

    present: dict[str, Any] = {}
    for other, entry in read_shipped(found.folder).get("artefacts", {}).items():
        try:
            present[other] = read_artefact(folder_of(found.folder, entry))
        except ExportError:
            continue
    return present | {name: artefact}


def _price(per_hour: float | None, currency: str) -> Price | None:
    from tutelage.studies.checking import Price

    return Price(per_hour, currency) if per_hour is not None else None


def _say(line: str) -> None:
    typer.echo(line, err=True)


def quieten_libraries() -> None:
    """Keep the terminal for what tutelage says: libraries' progress bars and notices about fresh weights are not news."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
