"""What every page shares: the frame it is drawn in, and a file that is written whole or not at all."""

from __future__ import annotations

import json
import os
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tutelage.errors import DataError
from tutelage.report.record import text


def render(template: str, view: dict[str, Any]) -> str:
    """A page from one of the templates of this room, which extend ``base.html.j2``.

    Args:
        template: the template's file name.
        view: what it shows; ``title``, ``version`` and ``facts`` are the frame's.
    """
    # the page is HTML whatever its template is called: everything that is not Markup is escaped
    environment = Environment(
        loader=PackageLoader("tutelage.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = (files("tutelage.report") / "style.css").read_text(encoding="utf-8")
    return environment.get_template(template).render(style=Markup(style), **view).lstrip()


def write_page(target: Path, page: str) -> Path:
    """Writes a page; an older one is replaced whole or not at all. Returns its path."""
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        # a lone surrogate is valid in JSON and has no UTF-8
        draft.write_bytes(page.encode("utf-8", errors="replace"))
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
    return target


def read_json(source: Path, remedy: str) -> object:
    """What a record's file holds.

    Args:
        source: the file.
        remedy: how it is made anew, for the message.

    Raises:
        OSError: it cannot be read.
        DataError: it is not valid JSON.
    """
    try:
        return json.loads(source.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(
            f"{source} is not valid JSON ({error}): it was cut off or edited, and a page made from part of it would "
            f"leave evidence out unnoticed; {remedy}"
        ) from error


def day(value: object) -> str:
    """A timestamp as a day, or as it was written."""
    written = text(value)
    try:
        moment = datetime.fromisoformat(written)
    except ValueError:
        return written
    return f"{moment.day} {moment:%B %Y}"
