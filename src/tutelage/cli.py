"""The command line: a config in, a study out. Heavy imports wait until a command runs."""

from __future__ import annotations

import shlex
import shutil
import sys
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tutelage import __version__
from tutelage.errors import ConfigError, TutelageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.progress import Progress as Bar
    from rich.progress import TaskID

app = typer.Typer(
    name="tutelage",
    help="Distil any PyTorch or Hugging Face model into a smaller one, and prove that the small one is worth shipping.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_MISTAKE = 2


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tutelage {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Distil a model, and prove that the small one is worth shipping."""


@app.command()
def init(
    template: Annotated[str, typer.Argument(help="Which starter to write.")] = "digits",
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that are there already.")] = False,
) -> None:
    """Write a starter config, and its models.py, into the current folder."""
    templates = _templates()
    if template not in templates:
        raise ConfigError(f"there is no template {template!r}; there are {', '.join(sorted(templates))}")
    files = sorted(path for path in templates[template].iterdir() if path.suffix in (".yaml", ".py"))
    present = [path.name for path in files if Path(path.name).exists()]
    if present and not force:
        raise ConfigError(
            f"{', '.join(present)} would be overwritten in {Path.cwd()}; go to an empty folder, or say --force"
        )
    for path in files:
        shutil.copyfile(path, path.name)
        typer.echo(f"wrote {path.name}")
    typer.echo("now: tutelage run config.yaml")


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="The config to run.", show_default=False)],
    out: Annotated[Path | None, typer.Option("--out", help="Where to leave the run.  [default: runs/NAME]")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the config, e.g. study.seeds=3."),
    ] = None,
) -> None:
    """Run a study, or continue one that was cut off: the same command goes on where it stopped."""
    from tutelage.config.reading import load_config

    checked = load_config(config, overrides or [])
    folder = out if out is not None else Path("runs") / _run_name(config)
    from tutelage.config import build_study
    from tutelage.report import write_report

    study = build_study(checked, config.parent, _command(config, out, overrides or []))
    with _Watcher() as watcher:
        result = study.run(folder, watcher)
    page = write_report(folder)
    _summarise(result)
    typer.echo(f"\npage:   {page}\nrecord: {folder / 'result.json'}")


@app.command()
def report(run: Annotated[Path, typer.Argument(help="The folder of a run.", show_default=False)]) -> None:
    """Write the page of a run again, from its result.json."""
    from tutelage.report import write_report

    typer.echo(f"page: {write_report(run)}")


def main() -> None:
    """The console script: a user's mistake ends in one message and exit code 2."""
    try:
        app(standalone_mode=True)
    except TutelageError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(_MISTAKE)
    except KeyboardInterrupt:
        typer.echo("\nstopped; the same command goes on from the last checkpoint", err=True)
        sys.exit(130)
    except OSError as error:
        typer.echo(
            f"error: {error.strerror or error}: {error.filename}" if error.filename else f"error: {error}", err=True
        )
        sys.exit(_MISTAKE)


def _run_name(config: Path) -> str:
    folder = config.resolve().parent.name
    return folder if config.stem == "config" else f"{folder}-{config.stem}"


def _command(config: Path, out: Path | None, overrides: list[str]) -> str:
    words = ["tutelage", "run", str(config)]
    words += ["--out", str(out)] if out is not None else []
    for override in overrides:
        words += ["--set", override]
    return shlex.join(words)


def _templates() -> dict[str, Path]:
    installed = Path(str(resources.files("tutelage"))) / "templates"
    # In a checkout the templates are the examples themselves; the wheel carries them inside the package.
    folder = installed if installed.is_dir() else Path(__file__).parents[2] / "examples"
    return {path.name: path for path in folder.iterdir() if (path / "config.yaml").is_file()} if folder.is_dir() else {}


class _Watcher:
    """Shows how far a study is: a bar on a terminal, plain lines in a log."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True)
        self._bar: Bar | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> _Watcher:
        if self._console.is_terminal:
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Bar(*columns, console=self._console, transient=True)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def started(self, what: str, total_steps: int, steps_done: int) -> None:
        """A training begins, or goes on."""
        if self._bar is not None:
            self._task = self._bar.add_task(what, total=total_steps, completed=steps_done)
        elif steps_done:
            self._console.print(f"{what}: goes on at step {steps_done} of {total_steps}", highlight=False)

    def advanced(self, steps_done: int) -> None:
        """It has made so many steps."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=steps_done)

    def finished(self, what: str, outcome: str) -> None:
        """It is done."""
        if self._bar is not None and self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None
        self._console.print(f"{what}: {outcome}", highlight=False)


def _summarise(result: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    arms = result["arms"]
    seeds = len(arms["kd"]["seeds"])
    table = Table(title=f"{result['title']}: {result['splits']['test']} test examples, {seeds} seed{'s' * (seeds > 1)}")
    for name in ("arm", "accuracy", "95% interval", "NLL", "ECE", "agreement with teacher"):
        table.add_column(name, justify="left" if name == "arm" else "right")
    for name, arm in arms.items():
        mean, interval = arm["mean"], arm["ci95"]["accuracy"]
        span = f"{interval[0]:.1%} to {interval[1]:.1%}" if interval and None not in interval else "–"
        agreement = f"{mean['agreement']:.1%}" if "agreement" in mean else ""
        table.add_row(name, f"{mean['accuracy']:.1%}", span, f"{mean['nll']:.3f}", f"{mean['ece']:.3f}", agreement)
    console.print(table)
    for gate in result["verdict"]["gates"]:
        outcome = {True: "passed", False: "failed", None: "undecided"}[gate["passed"]]
        console.print(f"  {gate['name']}: {outcome}: {gate['why']}", highlight=False, soft_wrap=True)
    console.print(f"verdict: [bold]{result['verdict']['decision']}[/bold]")
