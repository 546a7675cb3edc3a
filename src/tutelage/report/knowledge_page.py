"""The page of an inspected teacher: a section of the run's report where there is a run, else a page of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tutelage.errors import ConfigError
from tutelage.report.knowledge import INSPECTION, check_inspection, knowledge_section, read_inspection
from tutelage.report.page import RECORD, write_report
from tutelage.report.pages import day, render, write_page
from tutelage.report.record import Record, mapping, number, text
from tutelage.report.words import plural

PAGE = "inspect.html"


def render_inspection(inspected: Mapping[str, Any]) -> str:
    """One self-contained HTML page that says what a teacher knows.

    Args:
        inspected: the content of ``inspect.json``.

    Raises:
        DataError: it is no record of an inspection.
    """
    record = check_inspection(inspected, "this record")
    view = {
        "title": text(record.get("title"), "Distillation"),
        "version": text(record.get("tutelage"), "unknown version"),
        "facts": _facts(record),
        "knowledge": knowledge_section(record),
        "command": text(record.get("command")),
    }
    return render("knowledge_page.html.j2", view)


def write_inspection(folder: Path) -> Path:
    """Writes what ``inspect.json`` holds into ``report.html`` where the folder has a finished run, else into ``inspect.html``.

    Returns:
        The page's path.

    Raises:
        ConfigError: the folder holds no ``inspect.json``.
        DataError: a record there is damaged.
    """
    record = read_inspection(folder)
    if record is None:
        raise ConfigError(
            f"no {INSPECTION} in {folder}: there is nothing to make a page from; run `tutelage inspect` first"
        )
    if (Path(folder) / RECORD).is_file():
        return write_report(Path(folder))
    return write_page(Path(folder) / PAGE, render_inspection(record))


def _facts(record: Record) -> list[str]:
    """The line under the title."""
    asked = mapping(record.get("asked"))
    train, validation = number(asked.get("train")), number(asked.get("validation"))
    facts = [
        day(record.get("started")),
        plural(len(record["classes"]), "class").replace("classs", "classes"),
        plural(int(train), "training example") if train is not None else "",
        plural(int(validation), "validation example") if validation is not None else "",
    ]
    return [fact for fact in facts if fact]
