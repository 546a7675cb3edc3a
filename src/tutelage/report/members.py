"""The section on an ensemble: its members, their mixture and the one student beside each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tutelage.report.charts import Row, interval_chart, key_mark
from tutelage.report.record import Record, interval, mapping, number, records, text
from tutelage.report.sections import metric_cells, percent_tick, seed_values
from tutelage.report.words import (
    ARMS,
    METRICS,
    MISSING,
    Arm,
    amount,
    decimal,
    difference,
    duration,
    find_comparison,
    flops_text,
    plural,
    reading,
)

View = dict[str, Any]

#: An accuracy and its 95% interval.
_Estimate = tuple[float, tuple[float, float] | None]

SHOWN = ("accuracy", "nll", "ece")


def members_section(result: Record) -> View | None:
    """What the section shows, or None where the teacher is one model."""
    members = records(result.get("members"))
    if not members:
        return None
    arms, cost = mapping(result.get("arms")), mapping(result.get("cost"))
    total = sum(number(member.get("weight")) or 0.0 for member in members)
    rows, table, said = list[Row](), list[View](), list[str]()
    lines = [(_looks(member), member) for member in members]
    lines += [(arm, mapping(arms[arm.key])) for arm in (_mixture(), ARMS["kd"], ARMS["scratch"]) if arm.key in arms]
    for arm, record in lines:
        mean, ci = number(mapping(record.get("mean")).get("accuracy")), _ci(record)
        reads = "not measured" if mean is None else amount(METRICS["accuracy"], mean)
        rows.append(
            Row(arm.name, reads, mean, ci if mean is not None else None, _ticks(arm, record), arm.slot, arm.shape)
        )
        said.append(f"{arm.name} {reads}")
        table.append(_line(arm, record, cost, total, members))
    chart = interval_chart(
        "chart-members",
        "Test accuracy of the members, of their mixture and of the one student",
        "; ".join(said) + ". Whiskers are 95% intervals.",
        rows,
        percent_tick(rows),
    )
    return {"lead": mixing(result), "chart": chart, "table": table, "cost": _arithmetic(cost, len(members))}


def _looks(member: Record) -> Arm:
    name = text(member.get("name"), "a member")
    return Arm("member", name, name, name, name, "member", "cross", "")


def _mixture() -> Arm:
    arm = ARMS["teacher"]
    return Arm("teacher", "The ensemble", "the ensemble", "the ensemble", "ensemble", arm.slot, arm.shape, arm.dash)


def _ci(record: Record) -> tuple[float, float] | None:
    return interval(mapping(record.get("ci95")).get("accuracy"))


def _ticks(arm: Arm, record: Record) -> list[float]:
    """One tick a seed for a student; a member is one model, whose only tick would lie under its marker."""
    return seed_values(record, "accuracy") if arm.key in ("kd", "scratch") else []


def _line(arm: Arm, record: Record, cost: Record, total: float, members: list[Record]) -> View:
    """A model's row of the table."""
    spent = [value for seed in records(record.get("seeds")) if (value := number(seed.get("seconds"))) is not None]
    seconds, parameters = number(record.get("seconds")), number(record.get("parameters"))
    share, weight = "", number(record.get("weight"))
    if arm.key == "member":
        share = f"{decimal(100 * weight / total, 0)}%" if weight is not None and total else MISSING
    elif arm.key == "teacher":
        parts = [number(member.get("seconds")) for member in members]
        seconds = sum(part for part in parts if part is not None) if None not in parts else None
        parameters = number(mapping(cost.get("teacher")).get("parameters"))
    else:
        parameters = number(mapping(cost.get("student")).get("parameters"))
    if seconds is None and spent:
        seconds = sum(spent) / len(spent)
    return {
        "arm": arm,
        "key": key_mark(arm.slot, arm.shape),
        "about": text(record.get("description")) if arm.key == "member" else "",
        "share": share,
        "cells": metric_cells(record, SHOWN),
        "parameters": MISSING if parameters is None else f"{parameters:,.0f}",
        "seconds": duration(seconds),
    }


def mixing(result: Record) -> str:
    """One sentence: what mixing was worth over one member, and how much of the mixture's lead the one student kept."""
    recorded, arms, metric = records(result.get("members")), mapping(result.get("arms")), METRICS["accuracy"]
    members = [number(mapping(member.get("mean")).get("accuracy")) for member in recorded]
    known = [value for value in members if value is not None]
    mixture, student, control = (
        number(mapping(mapping(arms.get(key)).get("mean")).get("accuracy")) for key in ("teacher", "kd", "scratch")
    )
    if mixture is None or len(known) < len(members):
        return "What mixing was worth cannot be told: the accuracy of the ensemble or of a member is not recorded."
    own, each = (mixture, _ci(mapping(arms.get("teacher")))), list(zip(known, map(_ci, recorded), strict=True))
    over_best = _gain(own, [max(each, key=lambda model: model[0])])
    worth = f"Mixing {plural(len(known), 'model')} was worth {_gain(own, each)} over their mean and {over_best} over the best of them"
    if student is None:
        return f"{worth}; the one student’s accuracy is not recorded."
    if control is None:
        side = "below" if student < mixture else "above"
        return f"{worth}; the one student is {difference(metric, abs(student - mixture), signed=False)} {side} the mixture."
    return f"{worth}; {_kept(mixture - control, student - control, find_comparison(result, 'kd', 'scratch'))}"


def _gain(own: _Estimate, others: Sequence[_Estimate]) -> str:
    """The mixture's accuracy over the mean of other models', with an interval that is no narrower than the true one.

    The record has each model's interval, none of a difference. Theirs are combined as those of independent estimates (Zou &
    Donner 2008, eq. 4); but all answer the same examples and tend to be right on the same ones, so that their difference varies
    less. The members' mean is taken to be no surer than each of them.
    """
    metric, count = METRICS["accuracy"], len(others)
    gain = own[0] - sum(mean for mean, _ in others) / count
    spans = [(mean, ci) for mean, ci in (own, *others) if ci is not None]
    said = f"{difference(metric, gain)} of accuracy"
    if len(spans) <= count:
        return f"{said} (no interval is recorded)"
    below, above = zip(*((mean - ci[0], ci[1] - mean) for mean, ci in spans), strict=True)
    low = gain - math.hypot(below[0], sum(above[1:]) / count)
    high = gain + math.hypot(above[0], sum(below[1:]) / count)
    doubt = ", which cannot be told from chance" if low <= 0.0 <= high else ""
    span = f"{difference(metric, low, unit=False)} to {difference(metric, high, unit=False)}"
    return f"{said} (95% interval {span} at the widest{doubt})"


def _kept(lead: float, gain: float, compared: Record | None) -> str:
    """How much of the mixture's lead over the control the one student kept."""
    metric = METRICS["accuracy"]
    if lead <= 0:
        return "the mixture does not lead the same student on labels alone, so there was nothing for the one student to keep."
    ahead = (
        f"of the {difference(metric, lead, signed=False)} by which the mixture leads the same student on labels alone, "
    )
    if gain <= 0:
        return f"{ahead}the one student kept nothing."
    sure = compared is not None and reading(compared) == "better"
    doubt = "" if sure else ", which cannot be told from chance"
    if gain >= lead:
        return f"{ahead}the one student kept all{doubt}."
    return f"{ahead}the one student kept {difference(metric, gain, signed=False)}, {decimal(100 * gain / lead, 0)}% of it{doubt}."


def _arithmetic(cost: Record, count: int) -> str:
    """What an answer takes of the mixture and of the student, in a sentence; empty where that is not known."""
    both = [number(mapping(cost.get(who)).get("flops_per_example")) for who in ("teacher", "student")]
    if both[0] is None or not both[1]:
        return ""
    factor = decimal(both[0] / both[1], 0 if both[0] >= 10 * both[1] else 1)
    return (
        f"An answer of the ensemble runs all {count} of its members, {flops_text(both[0])}; the student’s takes {flops_text(both[1])}, "
        f"{factor} times less."
    )
