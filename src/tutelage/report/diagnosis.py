"""Where the student is weak and how it got there: classes, calibration and training curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tutelage.report.charts import Bin, dot_strip, key_mark, reliability_diagram, ticks, up_to_a_tick
from tutelage.report.curves import Line, Series, line_chart
from tutelage.report.record import Record, interval, mapping, number, records, text
from tutelage.report.sections import arms_in
from tutelage.report.words import METRICS, MISSING, amount, decimal, plural

View = dict[str, Any]

#: Classes beyond these are folded away.
MOST_CLASSES = 20
WEAKEST = 3


def classes(result: Record) -> View:
    """The per-class table, weakest class of the distilled student first."""
    found = mapping(mapping(result.get("evidence")).get("per_class"))
    arms = [arm for arm in arms_in(result, found) if arm.key in ("teacher", "kd", "scratch")]
    scores = {arm.key: {text(row.get("class")): row for row in records(found.get(arm.key))} for arm in arms}
    first = next((arm for arm in arms if arm.key == "kd"), arms[0] if arms else None)
    if first is None or not scores[first.key]:
        return {"rows": [], "folded": [], "arms": []}
    names = sorted(scores[first.key], key=lambda name: _or(number(scores[first.key][name].get("f1")), 2.0))
    f1s = [value for rows in scores.values() for row in rows.values() if (value := number(row.get("f1"))) is not None]
    low = max(0.0, int(10 * min(f1s, default=0.0) - 0.2) / 10)
    table: list[View] = []
    for rank, name in enumerate(names):
        dots: list[tuple[str, str, float]] = []
        cells: list[str] = []
        for arm in arms:
            row = scores[arm.key].get(name, {})
            f1 = number(row.get("f1"))
            cells += [amount(METRICS["macro_f1"], number(row.get("recall"))), amount(METRICS["macro_f1"], f1)]
            if f1 is not None:
                dots.append((arm.slot, arm.shape, f1))
        support = number(scores[first.key][name].get("support"))
        table.append(
            {
                "name": name,
                "weakest": rank < WEAKEST and len(names) > WEAKEST,
                "support": f"{support:,.0f}" if support is not None else MISSING,
                "cells": cells,
                "strip": dot_strip(dots[::-1], low),
            }
        )
    return {
        "arms": [{"name": arm.short, "key": key_mark(arm.slot, arm.shape)} for arm in arms],
        "rows": table[:MOST_CLASSES],
        "folded": table[MOST_CLASSES:],
        "ranked_by": first.phrase,
        "low": f"{100 * low:.0f}%",
    }


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def calibration(result: Record) -> View:
    """A reliability diagram for the teacher, the distilled student and its control, with their ECE."""
    evidence = mapping(result.get("evidence"))
    found, arms = mapping(evidence.get("reliability")), mapping(result.get("arms"))
    diagrams: list[View] = []
    for arm in arms_in(result, found):
        bins = [made for row in records(found.get(arm.key)) if (made := _bin(row)) is not None]
        if not bins or arm.key not in ("teacher", "kd", "scratch"):
            continue
        mean, ci = (mapping(mapping(arms.get(arm.key)).get(part)).get("ece") for part in ("mean", "ci95"))
        ece, between = number(mean), interval(ci)
        total = sum(b.count for b in bins)
        gap = sum(b.count * (b.confidence - b.accuracy) for b in bins) / total
        lean = (
            "too sure of itself"
            if gap > 0.005
            else "not sure enough"
            if gap < -0.005
            else "neither too sure nor unsure"
        )
        diagrams.append(
            {
                "arm": arm,
                "key": key_mark(arm.slot, arm.shape),
                "ece": "not measured" if ece is None else decimal(ece, 3),
                "ci": f"{decimal(between[0], 3)} to {decimal(between[1], 3)}" if between else "",
                "lean": lean,
                "bins": bins,
                "chart": reliability_diagram(
                    f"chart-calibration-{arm.slot}",
                    f"Reliability of {arm.phrase}",
                    f"Accuracy against confidence over {plural(total, 'prediction')} in {len(bins)} bins: on the whole {lean}, "
                    f"mean confidence {decimal(100 * abs(gap), 1)} points {'above' if gap >= 0 else 'below'} accuracy.",
                    bins,
                    arm.slot,
                ),
            }
        )
    drawn = {diagram["arm"].key for diagram in diagrams}
    return {
        "diagrams": diagrams,
        "method": text(evidence.get("ece_method")),
        "missing": [
            arm.phrase
            for arm in arms_in(result, arms)
            if arm.key in ("teacher", "kd", "scratch") and arm.key not in drawn
        ],
    }


def _bin(row: Record) -> Bin | None:
    """A bin that can be drawn; an empty one cannot."""
    low, high, confidence, accuracy, count = (
        number(row.get(key)) for key in ("low", "high", "confidence", "accuracy", "count")
    )
    if low is None or high is None or confidence is None or accuracy is None or not count:
        return None
    return Bin(low, high, confidence, accuracy, int(count))


def curves(result: Record) -> View:
    """Validation accuracy of all arms in one chart; the training loss of each in its own, for their losses differ."""
    found = mapping(mapping(result.get("evidence")).get("curves"))
    accuracy, losses = list[Series](), list[Series]()
    for arm in arms_in(result, found):
        runs = records(found.get(arm.key))
        for kept, part, key in ((accuracy, "validation", "accuracy"), (losses, "train", "loss")):
            lines = [line for run in runs if (line := points(run.get(part), key))]
            if lines:
                kept.append(Series(arm, lines))
    drawn = {item.arm.key for item in accuracy}
    missing = [arm.phrase for arm in arms_in(result, mapping(result.get("arms"))) if arm.key not in drawn]
    return {**accuracy_curves(accuracy), "losses": loss_curves(losses), "missing": missing}


def accuracy_curves(accuracy: Sequence[Series]) -> View:
    """The chart of validation accuracy, where each arm ends, and where the axis is cut."""
    if not accuracy:
        return {"accuracy": None, "ends": [], "cut": ""}
    window = accuracy_window(accuracy)
    ends: list[View] = []
    for item in accuracy:
        values = [line[-1][1] for line in item.lines]
        ends.append(
            {
                "arm": item.arm,
                "key": key_mark(item.arm.slot, item.arm.shape),
                "seeds": len(values),
                "range": amount(METRICS["accuracy"], min(values))
                + ("" if len(values) == 1 else f" to {amount(METRICS['accuracy'], max(values))}"),
                "steps": f"{item.end[0]:,.0f}",
            }
        )
    whole = all(math.isclose(100 * tick, round(100 * tick), abs_tol=1e-6) for tick in ticks(*window))
    places = 0 if whole else 1
    chart = line_chart(
        "chart-accuracy",
        "Validation accuracy during training",
        "; ".join(f"{end['arm'].name} ends at {end['range']} after {end['steps']} steps" for end in ends) + ".",
        accuracy,
        window,
        lambda tick: f"{decimal(100 * tick, places)}%",
        height=320,
    )
    return {"accuracy": chart, "ends": ends, "cut": f"{100 * window[0]:.0f}%" if window[0] > 0 else ""}


def loss_curves(losses: Sequence[Series]) -> list[View]:
    """The training loss of each arm, in a chart of its own."""
    views: list[View] = []
    for item in losses:
        values = [value for line in item.lines for _, value in line]
        low, high = min(0.0, *values), max(values)
        first = sum(line[0][1] for line in item.lines) / len(item.lines)
        chart = line_chart(
            f"chart-loss-{item.arm.slot}-{len(views)}",
            f"Training loss of {item.arm.phrase}",
            f"From {decimal(first, 2)} to {decimal(item.end[1], 3)} in {item.end[0]:,.0f} steps, mean of "
            f"{plural(len(item.lines), 'seed')}.",
            [item],
            (low, up_to_a_tick(low, high or 1.0)),
            lambda tick: f"{tick:g}",
            height=190,
            named=False,
        )
        views.append({"arm": item.arm, "key": key_mark(item.arm.slot, item.arm.shape), "chart": chart})
    return views


def points(rows: object, key: str) -> Line:
    """The points ``(step, value)`` of a log, those that hold a number."""
    pairs = ((number(row.get("step")), number(row.get(key))) for row in records(rows))
    return sorted((step, value) for step, value in pairs if step is not None and value is not None)


def accuracy_window(series: Sequence[Series]) -> tuple[float, float]:
    """The range of accuracies worth seeing: the first steps, far below the rest, would flatten all that matters."""
    values = sorted(value for item in series for line in item.lines for _, value in line)
    low, high = values[len(values) // 12], values[-1]
    air = max(high - low, 0.02)
    bottom = max(0.0, int(20 * (low - 0.1 * air)) / 20)
    return bottom, min(1.0, up_to_a_tick(bottom, high))
