"""The section on what was cut: each kind of student beside the model that it was made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tutelage.report.charts import share_bar
from tutelage.report.record import Record, number, records, sequence, text
from tutelage.report.words import MISSING, arm_named, bytes_text, decimal, flops_text

View = dict[str, Any]


def _count(value: float) -> str:
    return f"{value:,.0f}"


#: What a row is called, and how its numbers are written.
_ROWS: dict[str, tuple[str, Callable[[float], str]]] = {
    "layers": ("Layers", _count),
    "hidden": ("Hidden width", _count),
    "heads": ("Heads a layer", _count),
    "feed_forward": ("Feed-forward width", _count),
    "vocabulary": ("Tokens in the vocabulary", _count),
    "parameters": ("Parameters", _count),
    "embeddings": ("Parameters in embeddings", _count),
    "layer_weights": ("Parameters in layers", _count),
    "others": ("Parameters elsewhere", _count),
    "bytes": ("Size of the weights", bytes_text),
    "flops_per_example": ("Arithmetic an example", flops_text),
}


def surgery_section(result: Record) -> list[View]:
    """One view for each way of cutting; none where nothing was cut."""
    return [_cut(place, entry) for place, entry in enumerate(records(result.get("surgery")))]


def cut_line(entry: Record) -> str:
    """A cut in a line: ``layers 6 → 3, parameters 22,713,216 → 17,389,824 (77%)``; or that nothing was cut."""
    said: list[str] = []
    if _whole(entry):
        return "nothing is cut, every size is as before"
    for row in records(entry.get("rows")):
        name, before, after = text(row.get("what")), number(row.get("before")), number(row.get("after"))
        wanted = name in ("layers", "hidden", "heads", "feed_forward", "vocabulary", "parameters")
        if not wanted or before is None or after is None or (before == after and name != "parameters"):
            continue
        share = f" ({decimal(100 * after / before, 0)}%)" if name == "parameters" and before else ""
        said.append(f"{name.replace('_', ' ')} {before:,.0f} → {after:,.0f}{share}")
    return ", ".join(said)


def _cut(place: int, entry: Record) -> View:
    arms = [arm_named(text(arm)).name for arm in sequence(entry.get("arms"))]
    arms += [f"assistant {text(name)}" for name in sequence(entry.get("assistants"))]
    kept = [text(layer) for layer in sequence(entry.get("kept_layers"))]
    start, whole = text(entry.get("start"), "how it begins is not recorded"), _whole(entry)
    rows = records(entry.get("rows"))
    alike = [] if whole else [_row(row) for row in rows if _same(row)]
    return {
        "id": f"surgery-{place}",
        "start": start[:1].upper() + start[1:],
        "arms": "; ".join(arms),
        "kept": "" if whole else ", ".join(kept),
        "whole": whole,
        "rows": [_row(row) for row in rows if whole or not _same(row)],
        "alike": "; ".join(f"{row['name'][:1].lower()}{row['name'][1:]}: {row['after']}" for row in alike),
    }


def _same(row: Record) -> bool:
    before, after = number(row.get("before")), number(row.get("after"))
    return before is not None and before == after


def _whole(entry: Record) -> bool:
    """Whether the sizes that were asked for are those that the model has."""
    rows = records(entry.get("rows"))
    counted = [row for row in rows if number(row.get("before")) is not None and number(row.get("after")) is not None]
    return bool(counted) and all(_same(row) for row in counted)


def _row(row: Record) -> View:
    what = text(row.get("what"), "unnamed")
    name, write = _ROWS.get(what, (what.replace("_", " "), _count))
    before, after, ratio = (number(row.get(key)) for key in ("before", "after", "ratio"))
    return {
        "name": name,
        "before": "not counted" if before is None else write(before),
        "after": "not counted" if after is None else write(after),
        "share": MISSING if ratio is None else f"{decimal(100 * ratio, 1)}%",
        "bar": None if ratio is None else share_bar(ratio),
    }
