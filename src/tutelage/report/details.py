"""What the page says of one artefact: its gates, where it loses, how it was quantised and how near it is to the trained student."""

from __future__ import annotations

from typing import Any

from tutelage.report.artefacts import Standing, described
from tutelage.report.charts import key_mark
from tutelage.report.record import Record, interval, mapping, number, records, sequence, text
from tutelage.report.sections import comparison_cells, gates
from tutelage.report.words import (
    METRICS,
    MISSING,
    agreement_text,
    amount,
    bytes_text,
    decimal,
    difference,
    scientific,
    sentence,
)

View = dict[str, Any]

#: Slices beyond these are folded away.
MOST_SLICES = 8

_OTHERS = {
    "teacher": "the teacher",
    "student": "the trained student",
    "scratch": "labels alone",
    "label_smoothing": "label smoothing",
    "baseline": "the artefact shipped before",
}

_SINGLE = ("teacher", "student", "baseline")


def details(place: int, name: str, artefact: Record, row: Standing) -> View:
    """One artefact.

    Args:
        place: its number on the page, for ids: a name may hold anything.
        name: its name.
        artefact: its record.
        row: its line in the comparison.
    """
    check, parity = mapping(artefact.get("check")), mapping(artefact.get("parity"))
    return {
        "id": f"artefact-{place}",
        "name": name,
        "about": described(artefact),
        "key": key_mark(row.slot, row.shape),
        "decision": text(check.get("decision")),
        "checked": text(check.get("checked")),
        "gates": gates(check),
        "flips": flips(check),
        "comparisons": [against(found) for found in records(check.get("comparisons"))],
        "slices": [
            slice_table(f"artefact-{place}-slices-{index}", column, rows)
            for index, (column, rows) in enumerate(mapping(check.get("slices")).items())
            if records(rows)
        ],
        "parity": parity_table(parity),
        "parity_why": sentence(text(parity.get("why"), "the record gives no reason")),
        "quantisation": quantisation(mapping(artefact.get("quantisation"))),
    }


def against(found: Record) -> View:
    """A comparison of the artefact with another model.

    The artefact is one model, judged as it is: against another single model one seed is all there is. Only a control arm is
    a recipe, of which one seed proves nothing.
    """
    other = text(found.get("b"), "?")
    read = {key: value for key, value in found.items() if key != "seeds"} if other in _SINGLE else found
    return {"against": _OTHERS.get(other, other.replace("_", " ")), **comparison_cells(read)}


def flips(check: Record) -> list[str]:
    """On how many examples it is wrong where the teacher, or what was shipped before, is right."""
    said: list[str] = []
    for key, other in (("teacher", "the teacher"), ("baseline", "the artefact shipped before")):
        found = mapping(mapping(check.get("flips")).get(key))
        rate, ci = number(found.get("rate")), interval(found.get("ci95"))
        if rate is not None:
            metric = METRICS["negative_flips"]
            between = f" (95% interval {amount(metric, ci[0])} to {amount(metric, ci[1])})" if ci else ""
            said.append(f"Wrong where {other} is right on {amount(metric, rate)} of the test examples{between}.")
    return said


def ranked_slices(rows: object) -> list[Record]:
    """The slices, those that lose most first and those without a drop last."""

    def lost(row: Record) -> float:
        drop = number(row.get("drop"))
        return float("inf") if drop is None else -drop

    return sorted(records(rows), key=lost)


def hurts(row: Record) -> bool:
    """Whether all of the interval of a slice's drop is a loss."""
    ci = interval(row.get("ci"))
    return ci is not None and ci[0] > 0


def slice_cells(row: Record) -> View:
    """A slice's examples, accuracy, the teacher's, and what it loses with the interval."""
    examples, drop, ci = number(row.get("examples")), number(row.get("drop")), interval(row.get("ci"))
    metric = METRICS["accuracy"]
    return {
        "name": text(row.get("slice"), "unnamed"),
        "hurts": hurts(row),
        "examples": MISSING if examples is None else f"{examples:,.0f}",
        "accuracy": amount(metric, number(row.get("accuracy"))),
        "teacher": amount(metric, number(row.get("teacher_accuracy"))),
        "drop": MISSING if drop is None else difference(metric, drop, signed=False, unit=False),
        "ci": "no interval"
        if ci is None
        else " to ".join(difference(metric, end, signed=False, unit=False) for end in ci),
    }


def slice_table(table_id: str, column: str, rows: object) -> View:
    """The slices by one column, worst first."""
    cells = [slice_cells(row) for row in ranked_slices(rows)]
    return {
        "id": table_id,
        "column": column,
        "rows": cells[:MOST_SLICES],
        "folded": cells[MOST_SLICES:],
    }


def parity_table(parity: Record) -> View:
    """Each combination of batch and length that was asked of both."""
    cases: list[View] = []
    for case in records(parity.get("cases")):
        batch, length = number(case.get("batch")), number(case.get("length"))
        largest, mean = number(case.get("max_abs")), number(case.get("mean_abs"))
        cases.append(
            {
                "batch": MISSING if batch is None else f"{batch:,.0f}",
                "length": MISSING if length is None else f"{length:,.0f}",
                "padded": "yes" if case.get("padded") is True else "no",
                "max_abs": MISSING if largest is None else scientific(largest),
                "mean_abs": MISSING if mean is None else scientific(mean),
                "agreement": agreement_text(number(case.get("agreement"))),
            }
        )
    tolerance = number(parity.get("tolerance"))
    return {
        "cases": cases,
        "tolerance": "" if tolerance is None else scientific(tolerance),
        "passed": parity.get("passed"),
    }


def quantisation(found: Record) -> View | None:
    """What the search for int8 tried, and what it left in float; None where nothing was quantised."""
    if not found:
        return None
    tried: list[View] = []
    for row in records(found.get("tried")):
        kl, size = number(row.get("kl")), number(row.get("bytes"))
        tried.append(
            {
                "what": text(row.get("what"), "unnamed"),
                "kl": MISSING if kl is None else (scientific(kl) if 0 < kl < 0.001 else decimal(kl, 3)),
                "agreement": agreement_text(number(row.get("agreement"))),
                "accuracy": amount(METRICS["accuracy"], number(row.get("accuracy"))),
                "bytes": MISSING if size is None else bytes_text(size),
            }
        )
    per_channel = found.get("per_channel")
    scales = {True: "a scale for each channel", False: "one scale for each tensor"}
    parts = [text(found.get("method")), scales[per_channel] if isinstance(per_channel, bool) else ""]
    return {
        "method": sentence(", ".join(part for part in parts if part) or "method not recorded"),
        "floats": [text(node) for node in sequence(found.get("float_nodes")) if text(node)],
        "why": sentence(text(found.get("why"))),
        "tried": tried,
    }
