"""The section on the stage that students passed before the task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tutelage.report.record import Record, mapping, number, records, sequence, text
from tutelage.report.words import METRICS, MISSING, amount, arm_named, decimal, duration

View = dict[str, Any]


def stage_section(result: Record) -> View | None:
    """What the section shows, or None where there was no stage."""
    stage = mapping(result.get("stage"))
    if not stage:
        return None
    who = [text(arm) for arm in sequence(stage.get("arms"))]
    passed = f"Passed by: {_listed(who)}." if who else "Which arms passed it is not recorded."
    skipped = [arm for arm in mapping(result.get("arms")) if arm not in ("teacher", *who)] if who else []
    passed += f" Without it: {_listed(skipped)}." if skipped else ""
    teacher = mapping(stage.get("teacher"))
    rows = [_row("The stage’s teacher", [teacher])] if teacher else []
    rows += [
        _row(_named(name), records(mapping(found).get("seeds")))
        for name, found in mapping(stage.get("students")).items()
    ]
    return {
        "lead": "Before the task the students learned to tell hidden words as the stage’s teacher does; the head they did it with"
        f"{_head(mapping(stage.get('students')))} is gone. {passed}",
        "rows": rows,
    }


def _listed(arms: Sequence[str]) -> str:
    return "; ".join(arm_named(arm).name for arm in arms)


def _head(students: Record) -> str:
    """How the head began, as far as all students say the same of it."""
    said = {mapping(found).get("head_copied") for found in students.values()}
    if said == {True}:
        return ", its layers copied from that teacher,"
    if said == {False}:
        return ", drawn at random since that teacher’s has other layers,"
    return (
        ", copied from that teacher where it has the same layers, else drawn at random,"
        if said >= {True, False}
        else ""
    )


def _named(student: str) -> str:
    return "The student" if student == "student" else f"The student of {arm_named(student).name}"


def _row(name: str, seeds: Sequence[Record]) -> View:
    before, after = (_mean(seeds, part, "accuracy") for part in ("before", "metrics"))
    perplexity, kl = (_mean(seeds, "metrics", key) for key in ("perplexity", "kl"))
    seconds = [value for seed in seeds if (value := number(seed.get("seconds"))) is not None]
    return {
        "name": name,
        "before": MISSING if before is None else amount(METRICS["accuracy"], before),
        "after": MISSING if after is None else amount(METRICS["accuracy"], after),
        "perplexity": MISSING if perplexity is None else decimal(perplexity, 1),
        "kl": MISSING if kl is None else amount(METRICS["kl"], kl),
        "seconds": duration(sum(seconds) / len(seconds)) if seconds else MISSING,
    }


def _mean(seeds: Sequence[Record], part: str, key: str) -> float | None:
    values = [value for seed in seeds if (value := number(mapping(seed.get(part)).get(key))) is not None]
    return sum(values) / len(values) if values else None
