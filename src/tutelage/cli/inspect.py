"""``tutelage inspect``: what a teacher knows, before a student is taught."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tutelage.cli.naming import command_line, run_folder
from tutelage.cli.release import quieten_libraries
from tutelage.cli.watching import Watcher

_INTERRUPTED = 130

_LANGUAGE_MODELS = (
    "`tutelage run` tells how a language model's teacher does with each view, and how far every student is from it; `tutelage label` keeps "
    "its answers"
)


def inspect(
    config: Annotated[Path, typer.Argument(help="The config whose teacher to look at.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="The folder of its run, there or to be; runs/NAME if not given.", show_default=False
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the config, e.g. data.labelled=64."),
    ] = None,
) -> None:
    """Show what the teacher's soft targets contain, and which temperature and weight to begin with. Asks nothing of the test split."""
    from tutelage.config.reading import load_classifier_config

    checked = load_classifier_config(config, overrides or [], instead=_LANGUAGE_MODELS)
    folder = run_folder(config, out)
    from tutelage.config.building import build_study
    from tutelage.config.models import naming
    from tutelage.report.knowledge_page import write_inspection
    from tutelage.studies.inspecting import INSPECTION, inspect_teacher

    quieten_libraries()
    command = command_line("inspect", config, out, overrides or [])
    with naming(str(config)):
        study = build_study(checked, config.parent, command)
    try:
        with Watcher(study.teacher_trainings) as watcher:
            watcher.say(f"{study.title}: looking at what the teacher knows, into {folder}")
            inspected = inspect_teacher(study, folder, watcher, command)
    except KeyboardInterrupt:
        typer.echo("stopped; the same command goes on from the last checkpoint", err=True)
        raise typer.Exit(_INTERRUPTED) from None
    page = write_inspection(folder)
    summarise_inspection(inspected)
    typer.echo(f"\npage:   {page}\nrecord: {folder / INSPECTION}")


def summarise_inspection(inspected: Mapping[str, Any]) -> None:
    """How good the teacher is, what to look out for, and where to begin."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    found, advised = inspected["quality"]["validation"], inspected["advice"]
    asked = inspected["asked"]
    console.print(
        Text(
            f"\n{inspected['title']}: the teacher, on {asked['train']:,} training and {asked['validation']:,} validation examples"
        )
    )
    console.print(
        Text(
            f"  validation: accuracy {found['accuracy']:.1%}, confidence {found['confidence']:.1%}, ECE {found['ece']:.3f}, "
            f"NLL {found['nll']:.3f} nats"
        ),
        soft_wrap=True,
    )
    for row in inspected["temperatures"]:
        if row["temperature"] in advised["temperature"]["try"]:
            classes = row["effective_classes"]["mean"]
            console.print(
                Text(f"  T = {row['temperature']:<3g} {classes:.2f} effective classes of {len(inspected['classes'])}")
            )
    for warning in inspected["warnings"]:
        console.print(Text.assemble(("warning: ", "bold yellow"), warning["text"]), soft_wrap=True)
    tried = ", ".join(f"{heat:g}" for heat in advised["temperature"]["try"])
    low, high = advised["weight"]["low"], advised["weight"]["high"]
    console.print(
        Text.assemble(
            ("begin with: ", "bold"), f"temperature {tried}; {low:g} to {high:g} of the weight on the teacher"
        ),
        soft_wrap=True,
    )
    console.print(Text(f"  {advised['hedge']}"), soft_wrap=True)
