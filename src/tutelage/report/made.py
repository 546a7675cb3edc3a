"""What every page of a run says of where its numbers come from."""

from __future__ import annotations

import re
from typing import Any

from tutelage.report.pages import day
from tutelage.report.record import Record, mapping, number, records, text
from tutelage.report.words import MISSING, duration, objective_text, plural


def page_title(result: Record, unnamed: str) -> str:
    """The study's title; where nobody chose one, the folder's name and its config's, or all pages of a folder would be called the same."""
    title, provenance = text(result.get("title"), unnamed), mapping(result.get("provenance"))
    chosen = re.search(r"^title:", text(provenance.get("config")), re.MULTILINE)
    config = re.search(r"([^\s/]+)\.ya?ml\b", text(provenance.get("command")))
    return title if chosen or config is None or config[1] in ("config", title) else f"{title}: {config[1]}"


def seeds_said(result: Record) -> str:
    """The seeds of the students, in the record's words."""
    arms = mapping(result.get("arms"))
    student = mapping(arms.get("kd") or next((arm for key, arm in arms.items() if key != "teacher"), {}))
    return ", ".join(text(seed.get("seed"), MISSING) for seed in records(student.get("seeds")))


def run_facts(result: Record) -> list[str]:
    """The line under the title: when, how long, how much was asked."""
    seeds = len([seed for seed in seeds_said(result).split(", ") if seed])
    splits = mapping(result.get("splits"))
    test = number(splits.get("test"))
    facts = [
        day(result.get("started")),
        f"took {took}" if (took := _took(result)) else "",
        plural(seeds, "seed") if seeds else "",
        plural(int(test), "test example") if test is not None else "",
    ]
    return [fact for fact in facts if fact]


def _earlier(result: Record) -> float:
    return number(result.get("earlier_seconds")) or 0.0


def _took(result: Record) -> str:
    """How long all sessions took that worked on the run, as far as they left a record; empty where that is not known."""
    seconds = number(result.get("seconds"))
    if seconds is None:
        return ""
    last = f", {duration(seconds - _earlier(result))} of it in the last session" if _earlier(result) else ""
    return duration(seconds) + last


def made(result: Record) -> dict[str, Any]:
    """Where the numbers come from: the command, the splits, the versions, the config."""
    provenance, splits, transfer = (mapping(result.get(key)) for key in ("provenance", "splits", "transfer"))

    def counts(found: Record) -> str:
        return ", ".join(f"{value:,} {key}" for key, value in found.items() if number(value) is not None)

    facts: list[tuple[str, str]] = [
        ("Objective", " + ".join(objective_text(term) for term in records(result.get("objective")))),
        ("Transfer set", counts(transfer)),
        ("Splits", counts(splits)),
        ("Seeds", seeds_said(result)),
        ("Last session started" if _earlier(result) else "Started", text(result.get("started"))),
        ("Took", _took(result)),
        ("tutelage", text(result.get("tutelage"))),
    ]
    facts += [
        (key.replace("_", " "), text(value))
        for key, value in provenance.items()
        if key not in ("command", "config") and text(value)
    ]
    facts.append(("config sha256", text(result.get("config_sha256"))))
    return {
        "facts": [(name, value or "not recorded") for name, value in facts],
        "command": text(provenance.get("command")),
        "config": text(provenance.get("config")),
    }
