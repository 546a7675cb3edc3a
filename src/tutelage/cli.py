"""The command line: a config in, a study out. Heavy imports wait until a command runs."""

from __future__ import annotations

import shlex
import shutil
import sys
import time
import traceback
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

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
_INTERRUPTED = 130
#: Seconds between two lines about the same training in a log.
_LOG_EVERY = 30.0


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
    out: Annotated[Path | None, typer.Option("--out", help="Where to leave the run; runs/NAME if not given.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the config, e.g. study.seeds=3."),
    ] = None,
) -> None:
    """Run a study, or continue one that was cut off: the same command goes on where it stopped."""
    from tutelage.config import load_config

    checked = load_config(config, overrides or [])
    folder = out if out is not None else Path("runs") / _run_name(config)
    if (folder / "config.yaml").resolve() == config.resolve():
        raise ConfigError(
            f"--out {folder} is the config's own folder: the run would overwrite {config} with its resolved copy; name another folder"
        )
    from tutelage.config.building import build_study
    from tutelage.report import write_report

    _quieten_libraries()
    study = build_study(checked, config.parent, _command(config, out, overrides or []))
    trainings = len(study.objectives) * len(study.seed_list) + (study.teacher_training is not None)
    try:
        with _Watcher(trainings) as watcher:
            watcher.say(
                f"{study.title}: {', '.join(study.objectives)} with {_seeds(len(study.seed_list))}, into {folder}"
            )
            result = study.run(folder, watcher)
    except KeyboardInterrupt:
        typer.echo("stopped; the same command goes on from the last checkpoint", err=True)
        raise typer.Exit(_INTERRUPTED) from None
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
        _leave(str(error))
    except OSError as error:
        _leave(f"{error.strerror or error}: {error.filename}" if error.filename else str(error))
    except Exception as error:
        place = _place_in_users_file(error)
        if place is None:
            raise
        _leave(f"{place}: {type(error).__name__}: {error}; mend it there, and run the same command again")


def _leave(message: str) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    sys.exit(_MISTAKE)


def _place_in_users_file(error: Exception) -> str | None:
    """Where in a file that the config names an error was raised, or None where no such file was at work."""
    frames = [
        frame
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if "tutelage_user_" in frame.f_globals.get("__name__", "")
    ]
    if not frames:
        return None
    lines = [line for frame, line in traceback.walk_tb(error.__traceback__) if frame is frames[-1]]
    code = frames[-1].f_code
    return f"{code.co_filename}, line {lines[-1]}, in {code.co_name}"


def _quieten_libraries() -> None:
    """Keep the terminal for what the study says: libraries' progress bars and notices about fresh weights are not news."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _seeds(count: int) -> str:
    return f"{count} seed{'s' * (count != 1)}"


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

    def __init__(self, trainings: int) -> None:
        from rich.console import Console

        self._console = Console(stderr=True)
        self._trainings = trainings
        self._done = 0
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._what = ""
        self._total = 0
        self._said_at = 0.0

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

    def say(self, line: str) -> None:
        """One line, as it is."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def started(self, what: str, total_steps: int, steps_done: int) -> None:
        """A training begins, or goes on."""
        self._what, self._total, self._said_at = what, total_steps, time.monotonic()
        if steps_done:
            self.say(f"{self._counted(what)}: goes on at step {steps_done:,} of {total_steps:,}")
        if self._bar is not None:
            from rich.markup import escape

            self._task = self._bar.add_task(escape(self._counted(what)), total=total_steps, completed=steps_done)

    def advanced(self, steps_done: int) -> None:
        """It has made so many steps."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=steps_done)
        elif time.monotonic() - self._said_at >= _LOG_EVERY:
            self._said_at = time.monotonic()
            self.say(f"{self._counted(self._what)}: step {steps_done:,} of {self._total:,}")

    def finished(self, what: str, outcome: str) -> None:
        """It is done."""
        if self._bar is not None and self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None
        self.say(f"{self._counted(what)}: {outcome}")
        self._done += 1

    def _counted(self, what: str) -> str:
        return f"[{self._done + 1}/{self._trainings}] {what}"


def _summarise(result: Mapping[str, Any]) -> None:
    """The arms side by side, then the verdict and why, in 80 columns or fewer."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    arms = result["arms"]
    examples, seeds = result["splits"]["test"], len(arms["kd"]["seeds"])
    console.print(
        Text(f"\n{result['title']}: {examples:,} test examples, {_seeds(seeds)}, {_duration(result['seconds'])}")
    )
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("arm", overflow="fold", min_width=6)
    for heading in ("accuracy", "95% interval", "NLL", "ECE", "same as\nteacher"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, arm in arms.items():
        mean, interval = arm["mean"], arm["ci95"]["accuracy"]
        span = f"{interval[0]:.1%} to {interval[1]:.1%}" if None not in interval else "–"
        agreement = f"{mean['agreement']:.1%}" if "agreement" in mean else ""
        cells = (f"{mean['accuracy']:.1%}", span, f"{mean['nll']:.3f}", f"{mean['ece']:.3f}", agreement)
        table.add_row(Text(name), *cells)
    console.print(table)
    decision = result["verdict"]["decision"]
    colour, meaning = _DECISIONS[decision]
    console.print(Text.assemble("verdict: ", (decision, f"bold {colour}"), f" ({meaning})"))
    for gate in result["verdict"]["gates"]:
        colour, outcome = {True: ("green", "passed"), False: ("red", "failed"), None: ("yellow", "undecided")}[
            gate["passed"]
        ]
        console.print(Text.assemble("  ", (f"{outcome:<10}", colour), f"{gate['name']}: {gate['why']}"), soft_wrap=True)


_DECISIONS = {
    "ship": ("green", "every gate passed"),
    "hold": ("yellow", "not enough evidence"),
    "reject": ("red", "a gate failed"),
}


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
