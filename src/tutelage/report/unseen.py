"""The section on classes that the transfer set did not show."""

from __future__ import annotations

from typing import Any

from tutelage.report.charts import key_mark
from tutelage.report.record import Record, interval, mapping, number, sequence, text
from tutelage.report.words import METRICS, MISSING, amount, arms_named, difference, plural


def unseen(result: Record) -> dict[str, Any] | None:
    """Each arm's accuracy, and its recall of the unseen classes, before and after the correction; None where none was omitted."""
    found = mapping(result.get("prior_correction"))
    arms = mapping(found.get("arms"))
    if not arms:
        return None
    classes = [text(name) for name in sequence(found.get("classes"))]
    rows: list[dict[str, Any]] = []
    named = arms_named(result)
    for key, record in arms.items():
        arm, one = named(key), mapping(record)
        cells = [_cell(one, what, when) for what in ("recall", "accuracy") for when in ("before", "after")]
        rows.append({"key": key_mark(arm.slot, arm.shape), "name": arm.name, "cells": cells, "gain": _gain(one)})
    count = number(found.get("test_examples"))
    return {
        "classes": ", ".join(classes),
        "many": len(classes) > 1,
        "examples": plural(int(count), "test example") if count is not None else "an unknown number of test examples",
        "method": text(found.get("method"), "not recorded"),
        "rows": rows,
    }


def _cell(arm: Record, what: str, when: str) -> dict[str, str]:
    estimate, metric = mapping(mapping(arm.get(what)).get(when)), METRICS["accuracy"]
    ci = interval(estimate.get("ci95"))
    between = f"{amount(metric, ci[0])} to {amount(metric, ci[1])}" if ci else "no interval"
    return {"mean": amount(metric, number(estimate.get("mean"))), "ci": between}


def _gain(arm: Record) -> dict[str, str]:
    gain, metric = mapping(arm.get("gain")), METRICS["accuracy"]
    value, ci = number(gain.get("difference")), interval(gain.get("ci95"))
    return {
        "mean": MISSING if value is None else difference(metric, value),
        "ci": f"{difference(metric, ci[0], unit=False)} to {difference(metric, ci[1], unit=False)}"
        if ci
        else "no interval",
    }
