"""The command line: a config in, a study out. Heavy imports wait until a command runs."""

from __future__ import annotations

import logging
import shutil
import sys
import traceback
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from tutelage import __version__
from tutelage.cli.generate import generate
from tutelage.cli.inspect import inspect
from tutelage.cli.label import label
from tutelage.cli.naming import command_line, run_folder
from tutelage.cli.plan import plan
from tutelage.cli.release import check, export, quieten_libraries
from tutelage.cli.summaries import seeds_said, summarise
from tutelage.cli.sweep import sweep
from tutelage.cli.watching import Watcher
from tutelage.errors import ConfigError, TutelageError

if TYPE_CHECKING:
    from tutelage.config import EmbeddingConfig, LanguageConfig, StudyConfig
    from tutelage.studies import LanguageStudy, Study
    from tutelage.studies.embedding import EmbeddingStudy

app = typer.Typer(
    name="tutelage",
    help="Distil any PyTorch or Hugging Face model into a smaller one, and prove that the small one is worth shipping.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_MISTAKE = 2
#: The examples that `init` writes, the same as are put into the wheel.
_TEMPLATES = ("digits", "fashion_mnist", "language_model")
_INTERRUPTED = 130


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
    template: Annotated[str, typer.Argument(help=f"Which starter to write: {', '.join(_TEMPLATES)}.")] = "digits",
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
    folder = run_folder(config, out)
    if (folder / "config.yaml").resolve() == config.resolve():
        raise ConfigError(
            f"--out {folder} is the config's own folder: the run would overwrite {config} with its resolved copy; name another folder"
        )
    from tutelage.report import write_report
    from tutelage.report.gate_words import not_asked

    quieten_libraries()
    study, arms, show = _study_of(checked, config, command_line("run", config, out, overrides or []))
    try:
        with Watcher(study.trainings) as watcher:
            watcher.say(f"{study.title}: {', '.join(arms)} with {seeds_said(len(study.seed_list))}, into {folder}")
            asked = [gate for gate, limit in vars(study.gates).items() if limit is not None]
            if idle := not_asked(checked.task, arms, asked):
                watcher.say(idle)
            result = study.run(folder, watcher)
    except KeyboardInterrupt:
        typer.echo("stopped; the same command goes on from the last checkpoint", err=True)
        raise typer.Exit(_INTERRUPTED) from None
    page = write_report(folder)
    show(result)
    typer.echo(f"\npage:   {page}\nrecord: {folder / 'result.json'}")


@app.command()
def report(run: Annotated[Path, typer.Argument(help="The folder of a run.", show_default=False)]) -> None:
    """Write the page of a run again, from its result.json."""
    from tutelage.report import write_report

    typer.echo(f"page: {write_report(run)}")


app.command()(generate)
app.command()(inspect)
app.command()(label)
app.command()(plan)
app.command()(sweep)
app.command()(export)
app.command()(check)


def main() -> None:
    """The console script: a user's mistake ends in one message and exit code 2."""
    # transformers loads torchao wherever it is installed, which tells the terminal about GPU kernels that it does without
    for chatty in ("torchao", "torch.utils._pytree"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
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


def _study_of(
    checked: StudyConfig | LanguageConfig | EmbeddingConfig, config: Path, command: str
) -> tuple[Study | LanguageStudy | EmbeddingStudy, list[str], Callable[[Mapping[str, Any]], None]]:
    """The study of a config, its arms, and what shows its outcome."""
    from tutelage.config import EmbeddingConfig, LanguageConfig
    from tutelage.config.models import naming

    with naming(str(config)):
        if isinstance(checked, LanguageConfig):
            from tutelage.cli.language import summarise_language
            from tutelage.config.language.building import build_language_study

            study, show = build_language_study(checked, config.parent, command), summarise_language
        elif isinstance(checked, EmbeddingConfig):
            from tutelage.cli.embedding import summarise_embedding
            from tutelage.config.embedding.building import build_embedding_study

            study, show = build_embedding_study(checked, config.parent, command), summarise_embedding
        else:
            from tutelage.config.building import build_study

            study = build_study(checked, config.parent, command)
            return study, list(study.objectives), summarise
    return study, [*study.arms, *study.extra_arms], show


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


def _templates() -> dict[str, Path]:
    installed = Path(str(resources.files("tutelage"))) / "templates"
    # In a checkout the templates are the examples themselves; the wheel carries those that need nothing beside them.
    folder = installed if installed.is_dir() else Path(__file__).parents[3] / "examples"
    return {name: folder / name for name in _TEMPLATES if (folder / name / "config.yaml").is_file()}
