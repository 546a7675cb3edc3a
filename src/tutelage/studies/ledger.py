"""``shipped.json``: what of a run was exported, to where, and what was found of it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tutelage.errors import ExportError
from tutelage.export import Artefact
from tutelage.files import write_atomically

SHIPPED = "shipped.json"
EXPORTS = "export"

Json = dict[str, Any]

#: What else is measured beside artefacts, and so is no name for one.
_TAKEN = ("teacher", "student")


def artefact_name(to: str, int8: bool) -> str:
    """What an artefact's folder in the run's own is called."""
    return f"{to}-int8" if int8 else to


def read_shipped(folder: Path) -> Json:
    """``shipped.json`` of a run's folder; empty where nothing was exported yet.

    Raises:
        ExportError: it is damaged.
    """
    path = folder / SHIPPED
    if not path.is_file():
        return {}
    try:
        shipped = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(shipped, dict):
            raise ValueError(f"it holds a {type(shipped).__name__}")
        return shipped
    except (OSError, ValueError) as error:
        raise ExportError(
            f"{path} cannot be read ({error}): what was exported is not known; remove it, and export again"
        ) from error


def update_shipped(folder: Path, change: Callable[[Json], None]) -> Json:
    """Change ``shipped.json`` in one step; returns what it holds now."""
    shipped = read_shipped(folder)
    change(shipped)
    write_atomically(folder / SHIPPED, json.dumps(shipped, indent=1, allow_nan=False))
    return shipped


def listed(run_folder: Path, artefact: Artefact, found: Mapping[str, Any] | None = None) -> str:
    """Write an artefact into the list, and return its name there.

    One that stands in the same folder as before keeps its name; if it is another artefact by its digest, nothing that was found
    of the earlier one is kept.

    Args:
        run_folder: the run's.
        artefact: it.
        found: what was found of it at its export.
    """
    place = os.path.relpath(artefact.folder.resolve(), run_folder.resolve())
    names: list[str] = []

    def write(shipped: Json) -> None:
        artefacts: Json = shipped.setdefault("artefacts", {})
        name = next((name for name, entry in artefacts.items() if _same_place(entry, place)), None)
        name = name if name is not None else _new_name(artefact, place, artefacts)
        before = artefacts.get(name, {})
        if found is not None or before.get("digest") != artefact.digest:
            artefacts[name] = {**_entry(artefact, place), **(found or {})}
        names.append(name)

    update_shipped(run_folder, write)
    return names[0]


def folder_of(run_folder: Path, entry: Mapping[str, Any]) -> Path:
    """Where a listed artefact lies."""
    return Path(os.path.normpath(run_folder / entry["folder"]))


def _same_place(entry: Mapping[str, Any], place: str) -> bool:
    return os.path.normpath(entry.get("folder", "")) == os.path.normpath(place)


def _new_name(artefact: Artefact, place: str, artefacts: Mapping[str, Any]) -> str:
    usual = artefact_name(artefact.format, artefact.precision == "int8")
    name = usual if Path(place) == Path(EXPORTS) / usual else artefact.folder.resolve().name
    names = (name, *(f"{name}-{number}" for number in range(2, len(artefacts) + len(_TAKEN) + 3)))
    return next(name for name in names if name not in artefacts and name not in _TAKEN)


def _entry(artefact: Artefact, place: str) -> Json:
    manifest = artefact.manifest
    return {
        "format": artefact.format,
        "precision": artefact.precision,
        "seed": manifest["run"].get("seed"),
        "folder": Path(place).as_posix(),
        "bytes": artefact.bytes,
        "digest": artefact.digest,
        "created": manifest.get("created"),
        "parity": {"cases": [], **manifest.get("parity", {})},
        "quantisation": manifest.get("quantisation"),
    }
