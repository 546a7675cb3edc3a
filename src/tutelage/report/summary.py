"""What ``tutelage check`` says of an artefact, in Markdown for a pull request: under 60 lines, whatever the record holds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tutelage.report.artefacts import artefact_named, described, single, standings
from tutelage.report.details import flips, hurts, ranked_slices, slice_cells
from tutelage.report.gate_words import because
from tutelage.report.markdown import plain, table
from tutelage.report.record import Record, check_layout, check_shipped, mapping, number, text
from tutelage.report.sections import gates
from tutelage.report.shipped import answer_row, cost_row, currency_of
from tutelage.report.words import plural

#: Of each, the most that are written; what is left out is counted.
MOST_GATES = 11
MOST_SLICES = 4
MOST_NEEDS = 3

_GLYPHS = {"ship": "✓", "hold": "–", "reject": "✕"}
_ORDER = ("failed", "undecided", "passed")


def markdown_summary(result: Mapping[str, Any], shipped: Mapping[str, Any], name: str) -> str:
    """The decision on an artefact and what it rests on: gates, trained beside exported, slices, flips, what would decide.

    Args:
        result: the content of ``result.json``.
        shipped: the content of ``shipped.json``.
        name: of the artefact.

    Returns:
        GitHub-flavoured Markdown, fewer than 60 lines. Names from the data are text in it and nothing else.

    Raises:
        ConfigError: there is no artefact of that name.
        DataError: a record is not that of a finished run or of an export.
    """
    run, exported = check_layout(result, "this record"), check_shipped(shipped, "the record of what was exported")
    artefact = artefact_named(exported, name)
    check = mapping(artefact.get("check"))
    decision = text(check.get("decision"))
    head = f"{_GLYPHS[decision]} {decision.capitalize()}" if decision else "Not checked"
    reason = (
        because({"verdict": check}) if check else "It was not judged on the test split; `tutelage check` does that."
    )
    where = f"{described(artefact)}, from “{text(run.get('title'), 'a distillation run')}”"
    parts = [
        [f"## {head}: {plain(name, 80)}", "", f"{plain(where)}. {_reason(reason, bool(check))}"],
        gate_lines(check),
        side_by_side_lines(run, exported, name),
        slice_lines(check),
        flip_lines(check),
        need_lines(check),
    ]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def _reason(reason: str, from_gates: bool) -> str:
    return plain(reason, 400) if from_gates else reason


def gate_lines(check: Record) -> list[str]:
    """The gates, those that failed first."""
    found = sorted(gates(check), key=lambda gate: _ORDER.index(gate["state"]))
    if not found:
        return []
    rows = [(gate["state"], gate["name"], gate["value"], gate["limit"], gate["why"]) for gate in found[:MOST_GATES]]
    lines = table(("", "Gate", "Value", "Limit", "Why"), rows, right=(2, 3), reasons=(4,))
    return ["### Gates", "", *lines, *_left_out(len(found) - MOST_GATES, "gate")]


def _left_out(count: int, noun: str) -> list[str]:
    return ["", f"… and {plural(count, noun)} more on the page."] if count > 0 else []


def side_by_side_lines(result: Record, shipped: Record, name: str) -> list[str]:
    """Teacher, trained student and the artefact, one column each."""
    rows = standings(result, shipped, only=name)
    teacher = next((row for row in rows if row.key == "teacher"), None)
    answers = [answer_row(row) for row in rows]
    costs = [cost_row(row, teacher, currency_of(shipped)) for row in rows]
    one = single(shipped)
    lines: list[tuple[str, list[str]]] = [
        ("Accuracy", [_with(row["accuracy"], row["under"]) for row in answers]),
        ("NLL, nats", [row["nll"] for row in answers]),
        ("ECE", [row["ece"] for row in answers]),
        ("Largest error against the trained", [row["max_abs"] for row in answers]),
        ("Same answer as the trained", [row["agreement"] for row in answers]),
        ("On disk", [_with(row["size"], row["smaller"]) for row in costs]),
        (f"Median latency, {one}", [_with(row["latency"], row["spread"]) for row in costs]),
        ("Speed against the teacher", [row["faster"] for row in costs]),
        ("Peak memory", [row["memory"] for row in costs]),
        ("Cost of a million", [row["price"] for row in costs]),
    ]
    # a line that nobody has a number for says nothing
    known = [[what, *cells] for what, cells in lines if any(re.search(r"\d", cell) for cell in cells)]
    head = ["", *(row.name for row in rows)]
    return ["### Trained and exported", "", *table(head, known, right=range(1, len(head)))]


def _with(value: str, aside: str) -> str:
    return f"{value} ({aside})" if aside else value


def slice_lines(check: Record) -> list[str]:
    """The slices that lose accuracy to the teacher, those whose whole interval is a loss first."""
    found = [
        (row, column)
        for column, rows in mapping(check.get("slices")).items()
        for row in ranked_slices(rows)
        if (number(row.get("drop")) or 0.0) > 0
    ]
    if not found:
        return []
    found.sort(key=lambda pair: (not hurts(pair[0]), -(number(pair[0].get("drop")) or 0.0)))
    rows: list[tuple[str, ...]] = []
    for row, column in found[:MOST_SLICES]:
        cells = slice_cells(row)
        sure = "a loss" if cells["hurts"] else "may be chance"
        rows.append((f"{column}: {cells['name']}", cells["examples"], f"{cells['drop']} ({cells['ci']})", sure))
    lines = table(("Slice", "Test examples", "Points lost to the teacher", "Reading"), rows, right=(1, 2))
    return ["### Slices that hurt", "", *lines, *_left_out(len(found) - MOST_SLICES, "slice")]


def flip_lines(check: Record) -> list[str]:
    """Negative flips against the teacher and against what was shipped before."""
    said = flips(check)
    return ["### Negative flips", "", *(f"- {plain(sentence)}" for sentence in said)] if said else []


def need_lines(check: Record) -> list[str]:
    """How many more seeds or examples would decide the undecided gates."""
    found = [gate for gate in gates(check) if gate["state"] == "undecided" and gate["needs"]]
    if not found:
        return []
    lines = [
        f"- {plain(gate['name'])}: {plain(gate['needs'].removeprefix('To decide: '), 300)}"
        for gate in found[:MOST_NEEDS]
    ]
    more = len(found) - MOST_NEEDS
    return ["### What would decide", "", *lines, *([f"- … and {plural(more, 'gate')} more"] if more > 0 else [])]
