"""``tutelage plan``: what the teacher's answers would cost in each way, before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tutelage.cli.naming import command_line, run_folder
from tutelage.cli.release import quieten_libraries

_INTERRUPTED = 130

_LANGUAGE_MODELS = (
    "run it with  --set training.max_steps=20 --out trial  and read the tokens a second; with a section labels: the teacher is asked once, "
    "by `tutelage label`, which tells what its answers take"
)

_WAYS = {"live": "live", "memory": "in memory", "dense": "dense store", "sparse": "sparse store"}


def plan(
    config: Annotated[Path, typer.Argument(help="The config to plan for.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="The folder of its run, there or to be; runs/NAME if not given.", show_default=False
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the config, e.g. study.seeds=10."),
    ] = None,
) -> None:
    """Measure teacher and student for a few steps: what asking, remembering and storing the teacher's answers would cost here."""
    from tutelage.config.reading import load_classifier_config

    checked = load_classifier_config(config, overrides or [], instead=_LANGUAGE_MODELS)
    folder = run_folder(config, out)
    from tutelage.config.building import build_study
    from tutelage.config.models import naming
    from tutelage.studies.planning import PLAN, plan_study

    quieten_libraries()
    command = command_line("plan", config, out, overrides or [])
    search = None
    if checked.search is not None:
        from tutelage.config.searching import build_search

        search = build_search(checked, config.parent, command)
    with naming(str(config)):
        study = build_study(checked, config.parent, command)
    typer.echo(f"{study.title}: timing a few steps of teacher and student")
    try:
        planned = plan_study(study, folder, search=search, command=command)
    except KeyboardInterrupt:
        typer.echo("stopped; nothing was trained", err=True)
        raise typer.Exit(_INTERRUPTED) from None
    summarise_plan(planned)
    typer.echo(f"\nrecord: {folder / PLAN}")


def summarise_plan(planned: Mapping[str, Any]) -> None:
    """The four ways side by side, which one to take and why, and what the numbers rest on."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from tutelage.studies.planning.ways import lasting, size

    console = Console(highlight=False)
    asks, students = planned["asks"], planned["students"]
    trainings = f"{asks['trainings']:,} training{'s' * (asks['trainings'] != 1)}"
    console.print(
        Text(
            f"\n{'The sweep' if planned['sweep'] else 'The run'} asks its teacher about {asks['live']:,} examples in {trainings}; "
            f"{asks['examples']:,} of them are different. The students' own share: about {lasting(students['median'])}."
        ),
        soft_wrap=True,
    )
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("answers", no_wrap=True)
    for heading in ("teaching +\nlabelling", "quartiles", "of it\nlabelling", "run\nagain", "disk", "memory"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, way in planned["ways"].items():
        chosen = name == planned["pick"]["way"]
        label = Text(f"{_WAYS[name]} *" if chosen else _WAYS[name], style="bold" if chosen else "")
        seconds = way["seconds"]
        if way["cannot"] and not seconds["median"]:
            table.add_row(label, "–", "–", "–", "–", "–", "–")
            continue
        span = f"{lasting(seconds['low'])} to {lasting(seconds['high'])}"
        if span.split()[1] == span.split()[-1]:
            span = span.replace(f" {span.split()[-1]} to", " to")
        labelling = lasting(way["labelling"]["median"]) if way["labelling"]["median"] else "–"
        kept = (size(way["disk"]) if way["disk"] else "–", size(way["memory"]))
        table.add_row(label, lasting(seconds["median"]), span, labelling, lasting(way["again"]["median"]), *kept)
    console.print(table)
    for name, way in planned["ways"].items():
        for reason in way["cannot"]:
            console.print(Text.assemble((f"{_WAYS[name]}: ", "yellow"), f"cannot be: {reason}"), soft_wrap=True)
        for limit in way["limits"]:
            console.print(Text(f"{_WAYS[name]}: {limit}"), soft_wrap=True)
    picked = planned["pick"]
    console.print(Text.assemble(("take: ", "bold"), f"{_WAYS[picked['way']]}: {picked['why']}"), soft_wrap=True)
    console.print(Text(_section(picked["labels"])), soft_wrap=True)
    for note in planned["notes"]:
        console.print(Text(f"  {note}"), soft_wrap=True)


def _section(labels: Mapping[str, Any] | None) -> str:
    """What to write into the config."""
    if labels is None:
        return "  in the config: no labels section; a run does this by itself"
    from tutelage.studies.yaml_text import to_yaml

    lines = to_yaml({"labels": dict(labels)}).rstrip().splitlines()
    return "\n".join(f"  {line}" for line in ("in the config:", *(f"  {line}" for line in lines)))
