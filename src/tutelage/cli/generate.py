"""``tutelage generate``: a teacher's completions, written once and kept with where they came from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tutelage.cli.naming import command_line, run_folder
from tutelage.cli.release import quieten_libraries
from tutelage.cli.watching import Watcher
from tutelage.errors import ConfigError

_INTERRUPTED = 130


def generate(
    config: Annotated[Path, typer.Argument(help="The config whose teacher is to write.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="The folder of its run, there or to be; runs/NAME if not given.", show_default=False
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the config, e.g. generate.n=4."),
    ] = None,
) -> None:
    """Let a language model's teacher write the completions that students learn from; the same command goes on where it stopped."""
    from tutelage.config import EmbeddingConfig, LanguageConfig, load_config

    checked = load_config(config, overrides or [])
    if isinstance(checked, EmbeddingConfig):
        raise ConfigError(
            f"{config} is about a sentence encoder (task: embedding), whose teacher writes nothing: `tutelage run` keeps its embeddings"
        )
    if not isinstance(checked, LanguageConfig):
        raise ConfigError(
            f"{config} is about a classifier, and a classifier's teacher writes nothing: `tutelage label` keeps its answers; a language "
            "model's config says task: language_model"
        )
    if checked.generate is None:
        raise ConfigError(
            f"{config} has no section 'generate', so it is not said how the teacher shall write; write for example  "
            "generate: {max_new_tokens: 128, greedy: true}"
        )
    folder = run_folder(config, out)
    from tutelage.cli.language import summarise_generated
    from tutelage.config.language.building import build_language_study
    from tutelage.config.models import naming
    from tutelage.studies.language.generating import GENERATED

    quieten_libraries()
    with naming(str(config)):
        study = build_language_study(checked, config.parent, command_line("generate", config, out, overrides or []))
    try:
        with Watcher(1) as watcher:
            watcher.say(f"{study.title}: completing {len(study.data.train):,} prompts, into {folder / GENERATED}")
            manifest = study.generate(folder, watcher)
    except KeyboardInterrupt:
        typer.echo("stopped; the same command goes on after the last finished shard", err=True)
        raise typer.Exit(_INTERRUPTED) from None
    summarise_generated(manifest, str(folder / GENERATED))
