"""``tutelage sweep``: many configurations, one winner."""

from __future__ import annotations

import signal
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from tutelage.cli.naming import command_line, run_folder
from tutelage.cli.release import quieten_libraries
from tutelage.cli.summaries import seeds_said
from tutelage.cli.watching import Watcher

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_INTERRUPTED = 130

_LANGUAGE_MODELS = (
    "name what you want to compare as arms of your own (study.arms), which share data, budget and page, or give `tutelage run` each value "
    "with --set and an --out of its own"
)

#: Trials that the terminal shows; the page has them all.
_SHOWN = 10


def sweep(
    config: Annotated[Path, typer.Argument(help="The config, with a search section.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option("--out", help="Where to leave the sweep; runs/NAME-sweep if not given.")
    ] = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes that share the trials.")] = 1,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the config, e.g. search.seeds=5."),
    ] = None,
) -> None:
    """Try many configurations, choose on the validation split, and run the winner whole. The same command goes on."""
    from tutelage.config.reading import load_classifier_config
    from tutelage.config.searching import build_search

    checked = load_classifier_config(config, overrides or [], instead=_LANGUAGE_MODELS)
    folder = out if out is not None else run_folder(config, None).with_name(f"{run_folder(config, None).name}-sweep")
    search = build_search(checked, config.parent, command_line("sweep", config, out, _recordable(overrides or [])))
    from tutelage.report import write_report
    from tutelage.report.sweep import write_sweep_page
    from tutelage.studies.sweeping import WINNER, run_sweep, trainings_of

    quieten_libraries()
    try:
        with _ended_by_signal(), Watcher(trainings_of(search)) as watcher:
            watcher.say(
                f"{search.make({}).study.title}: {search.total:,} trials over {', '.join(search.space)}, "
                f"{seeds_said(len(search.seeds))} each, into {folder}"
            )
            if workers > search.batch and search.sampler == "tpe":
                watcher.say(
                    f"{search.batch} trials are suggested at a time: not all of {workers} workers will have work; raise search.batch"
                )
            result = run_sweep(search, folder, watcher, workers=workers)
    except KeyboardInterrupt:
        typer.echo("stopped; the same command goes on where the sweep is", err=True)
        raise typer.Exit(_INTERRUPTED) from None
    report = write_report(folder / WINNER)
    summarise_sweep(result)
    typer.echo(f"\npage:   {write_sweep_page(folder)}\nwinner: {report}\nrecord: {folder / 'sweep.json'}")


@contextmanager
def _ended_by_signal() -> Generator[None]:
    """A request to end is an interrupt: the workers are ended, and what was done is kept."""

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _recordable(overrides: list[str]) -> list[str]:
    """The overrides as they may be recorded: a database's URL may hold its password, and the record goes where the page goes."""
    return [text if "://" not in text else f"{text.partition('=')[0]}=…" for text in overrides]


def summarise_sweep(result: Mapping[str, Any]) -> None:
    """The best trials, the line they are held against, and the winner's verdict."""
    from rich.console import Console
    from rich.text import Text

    from tutelage.report.words import duration

    console = Console(highlight=False)
    search = result["search"]
    trials = [trial for trial in result["trials"] if trial["state"] == "complete"]
    failed = sum(trial["state"] == "failed" for trial in result["trials"])
    told = f", {failed:,} failed" if failed else ""
    console.print(
        Text(
            f"\n{result['title']}: {len(trials):,} trials{told}, {seeds_said(search['seeds'])} each, {duration(result['seconds'])}"
        )
    )
    sign = -1.0 if search["direction"] == "maximize" else 1.0
    trials.sort(key=lambda trial: (sign * trial["mean"][search["metric"]], trial["mean"]["nll"], trial["number"]))
    console.print(_trials_table(trials[:_SHOWN], list(search["space"]), result["scratch"]))
    if len(trials) > _SHOWN:
        console.print(Text(f"  the best {_SHOWN} of {len(trials):,}; the page has them all"))
    _say_winner(console, result["best"], result["winner"])


def _trials_table(trials: Sequence[Mapping[str, Any]], keys: Sequence[str], scratch: Mapping[str, Any] | None) -> Table:
    """One line a trial, and that of the student without a teacher."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("trial", justify="right", no_wrap=True)
    for key in keys:
        table.add_column(Text(key), overflow="fold", min_width=4)
    for heading in ("validation\naccuracy", "95% interval", "NLL"):
        table.add_column(heading, justify="right", no_wrap=True)
    for trial in trials:
        table.add_row(str(trial["number"]), *[Text(_value(trial["params"][key])) for key in keys], *_metrics(trial))
    if scratch is not None:
        table.add_row("", *[Text("scratch") if not index else "" for index in range(len(keys))], *_metrics(scratch))
    return table


def _say_winner(console: Console, number: int, winner: Mapping[str, Any]) -> None:
    from rich.text import Text

    lines = (
        f"winner: trial {number}, on the test split {winner['accuracy']:.1%} ({_span(winner['ci95'])}): {winner['decision']}",
        "  its validation accuracy is the best of many draws and flatters it; the test split was met by the winner alone",
    )
    for line in lines:
        console.print(Text(line), soft_wrap=True)


def _metrics(entry: Mapping[str, Any]) -> tuple[str, str, str]:
    return f"{entry['mean']['accuracy']:.1%}", _span(entry["ci95"]["accuracy"]), f"{entry['mean']['nll']:.3f}"


def _span(interval: list[float | None]) -> str:
    low, high = interval
    return f"{low:.1%} to {high:.1%}" if low is not None and high is not None else "–"


def _value(value: Any) -> str:
    from tutelage.studies.sweeping.space import canonical

    text = value if isinstance(value, str) else canonical(value)
    return text if len(text) <= 40 else f"{text[:39]}…"
