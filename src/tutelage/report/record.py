"""Reading ``result.json``: a value that is absent, null, NaN or of another type is None, and the page says that it is missing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

from tutelage.errors import DataError

Record = Mapping[str, Any]

#: What a verdict may say.
DECISIONS = ("ship", "hold", "reject")


def mapping(value: object) -> Record:
    """The value if it is a mapping, else an empty one."""
    return cast("Record", value) if isinstance(value, Mapping) else {}


def records(value: object) -> list[Record]:
    """The mappings in a list; anything else in it is left out."""
    return [mapping(item) for item in sequence(value) if isinstance(item, Mapping)]


def sequence(value: object) -> Sequence[object]:
    """The value if it is a list, else an empty one."""
    return cast("Sequence[object]", value) if isinstance(value, Sequence) and not isinstance(value, str | bytes) else ()


def number(value: object) -> float | None:
    """A finite number, or None: JSON written by Python may hold NaN, which no chart and no sentence can use."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def interval(value: object) -> tuple[float, float] | None:
    """A ``[low, high]`` pair of finite numbers, or None."""
    pair = sequence(value)
    if len(pair) != 2:
        return None
    low, high = number(pair[0]), number(pair[1])
    return None if low is None or high is None else (min(low, high), max(low, high))


def text(value: object, default: str = "") -> str:
    """A string as it is, a number as Python writes it, and the default for what is absent."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        return default
    return str(value)


def check_layout(result: object, where: str) -> Record:
    """The result itself, if a page can be made of it.

    Args:
        result: what was read.
        where: names the record in the message, e.g. its path.

    Raises:
        DataError: it is no record of a run: the arms or the verdict are absent or of another shape.
    """
    record = mapping(result)
    arms, decision = mapping(record.get("arms")), mapping(record.get("verdict")).get("decision")
    problems: list[str] = []
    if not isinstance(result, Mapping):
        problems.append(f"the top level is {type(result).__name__}, expected an object")
    if not arms or not all(isinstance(arm, Mapping) for arm in arms.values()):
        problems.append("'arms' must be an object with one object for each arm")
    if decision not in DECISIONS:
        problems.append(f"'verdict.decision' is {decision!r}, expected one of {', '.join(DECISIONS)}")
    if problems:
        version = text(record.get("tutelage"), "an unknown version")
        raise DataError(
            f"{where} is not the record of a finished run (written by tutelage {version}): {'; '.join(problems)}. "
            "A page made from it would show a verdict that nobody reached; run `tutelage run` again with the same "
            "config, which finishes the run and writes the record"
        )
    return record


def check_shipped(shipped: object, where: str) -> Record:
    """The record of what was exported, if a section can be made of it.

    Args:
        shipped: what was read.
        where: names the record in the message, e.g. its path.

    Raises:
        DataError: the artefacts are absent or of another shape, or one holds a decision that there is not.
    """
    record = mapping(shipped)
    artefacts, measured = mapping(record.get("artefacts")), record.get("measured")
    problems: list[str] = []
    if not isinstance(shipped, Mapping):
        problems.append(f"the top level is {type(shipped).__name__}, expected an object")
    elif not isinstance(record.get("artefacts"), Mapping) or not all(
        isinstance(a, Mapping) for a in artefacts.values()
    ):
        problems.append("'artefacts' must be an object with one object for each artefact")
    for name, artefact in artefacts.items():
        check = mapping(artefact).get("check")
        decision = mapping(check).get("decision")
        if check is not None and decision not in DECISIONS:
            said = f"'artefacts.{name}.check.decision' is {decision!r}"
            problems.append(f"{said}, expected one of {', '.join(DECISIONS)}")
    if measured is not None and not isinstance(measured, Mapping):
        problems.append(f"'measured' is {type(measured).__name__}, expected an object")
    if problems:
        raise DataError(
            f"{where} is not the record of what was exported: {'; '.join(problems)}. A page made from it would show an artefact "
            "that nobody checked; run `tutelage export` and `tutelage check` again, which write the record anew"
        )
    return record
