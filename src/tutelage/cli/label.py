"""``tutelage label``: a teacher's answers to a whole transfer set, asked for once and kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tutelage.cli.naming import command_line, run_folder
from tutelage.cli.release import quieten_libraries
from tutelage.cli.watching import Watcher
from tutelage.errors import ConfigError, TeacherError

if TYPE_CHECKING:
    from tutelage.config import LanguageConfig, StudyConfig
    from tutelage.studies import LanguageStudy, Study

_INTERRUPTED = 130


def label(
    config: Annotated[Path, typer.Argument(help="The config whose teacher to ask.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="The folder of its run, there or to be; runs/NAME if not given.", show_default=False
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the config, e.g. labels.draws=64."),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Only read every byte of the labels, and name the shards that are damaged.")
    ] = False,
) -> None:
    """Keep the teacher's answers to the transfer set in a store, or go on with one: damaged shards are labelled again, and no others."""
    from tutelage.config import EmbeddingConfig, load_config

    checked = load_config(config, overrides or [])
    folder = run_folder(config, out)
    if isinstance(checked, EmbeddingConfig):
        raise ConfigError(
            f"{config} is about a sentence encoder (task: embedding), whose run keeps the teacher's embeddings by itself: there is nothing "
            "else to label; use `tutelage run`"
        )
    if checked.labels is None:
        raise ConfigError(
            f"{config} has no section 'labels', so it is not said in what form the answers are to be kept; write for example  "
            "labels: {form: dense}  or  labels: {form: sampled, draws: 64, temperature: 1}"
        )
    from tutelage.config.building import labels_of

    quieten_libraries()
    labels = labels_of(checked.labels, config.parent)
    assert labels is not None
    place = labels.place(folder)
    if verify:
        _verify(place)
        return
    study, trainings, examples = _study_of(checked, config, command_line("label", config, out, overrides or []))
    try:
        with Watcher(trainings + 1) as watcher:
            watcher.say(f"{study.title}: labelling {examples:,} examples, into {place}")
            record = study.label(folder, watcher)
    except KeyboardInterrupt:
        typer.echo("stopped; the same command goes on after the last finished shard", err=True)
        raise typer.Exit(_INTERRUPTED) from None
    summarise_labels(record)


def _study_of(
    checked: StudyConfig | LanguageConfig, config: Path, command: str
) -> tuple[Study | LanguageStudy, int, int]:
    """The study of a config, how many trainings come before the labelling, and how many examples there are."""
    from tutelage.config import LanguageConfig
    from tutelage.config.models import naming

    with naming(str(config)):
        if isinstance(checked, LanguageConfig):
            from tutelage.config.language.building import build_language_study

            written = build_language_study(checked, config.parent, command)
            return written, 0, len(written.data.train)
        from tutelage.config.building import build_study

        study = build_study(checked, config.parent, command)
        return study, study.teacher_trainings, len(study.splits.train)


def summarise_labels(record: Mapping[str, Any]) -> None:
    """What is kept, what it takes, what it took, and what a student's gradient loses to it."""
    from rich.console import Console
    from rich.text import Text

    from tutelage.report.labels import certificate_words, kept_words, size_words, spot_words, time_words

    console = Console(highlight=False)
    console.print(Text(f"\nlabels: {kept_words(record)}"), soft_wrap=True)
    lines = {
        "size": size_words(record),
        "time": time_words(record),
        "certificate": certificate_words(record),
        "spot check": spot_words(record),
    }
    for name, words in lines.items():
        console.print(Text(f"  {name + ':':<13}{words}"), soft_wrap=True)


def _verify(path: str | Path) -> None:
    from tutelage.labels import LabelStore

    store = LabelStore.open(path)
    damaged = store.verify()
    count = len(store.manifest.shards)
    shards = f"{count:,} shard{'s' * (count != 1)}"
    for damage in damaged:
        typer.echo(str(damage))
    if damaged:
        raise TeacherError(
            f"{len(damaged):,} of {shards} in {path} {'is' if len(damaged) == 1 else 'are'} damaged: a student would miss their examples; "
            "run the same command without --verify, which labels what they held again and no more"
        )
    if not store.manifest.complete:
        raise TeacherError(
            f"the labels in {path} are not finished: {shards} whole, the others not written yet; run the same command without "
            "--verify, which goes on"
        )
    typer.echo(f"{shards} in {path}, {store.bytes:,} bytes: each is what was written")
