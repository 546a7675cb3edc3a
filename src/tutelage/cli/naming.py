"""What a command's output folder is called, and the command itself, for the record."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path


def run_folder(config: Path, out: Path | None) -> Path:
    """``--out``, or ``runs/NAME`` after the config and the folder it lies in."""
    if out is not None:
        return out
    folder = config.resolve().parent.name
    return Path("runs") / (folder if config.stem == "config" else f"{folder}-{config.stem}")


def command_line(verb: str, config: Path, out: Path | None, overrides: Sequence[str]) -> str:
    """The command as it could be given again."""
    words = ["tutelage", verb, str(config)]
    words += ["--out", str(out)] if out is not None else []
    for override in overrides:
        words += ["--set", override]
    return shlex.join(words)
