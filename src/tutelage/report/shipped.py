"""The section "As shipped": trained, exported and int8 side by side, from ``shipped.json``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from markupsafe import Markup

from tutelage.report.artefacts import (
    STUDENT,
    TEACHER,
    Standing,
    artefacts_of,
    before_and_after,
    bulk,
    described,
    single,
    standings,
)
from tutelage.report.bubbles import Bubble, bubble_chart
from tutelage.report.charts import key_mark
from tutelage.report.details import details
from tutelage.report.gate_words import because
from tutelage.report.record import Record, interval, mapping, number, records, sequence, text
from tutelage.report.words import (
    METRICS,
    MISSING,
    agreement_text,
    amount,
    bytes_text,
    decimal,
    figures,
    flops_text,
    money,
    plural,
    scientific,
    sentence,
    times,
)

View = dict[str, Any]

_STATES = {"ship": "passed", "hold": "undecided", "reject": "failed"}


def shipped_section(result: Record, shipped: Record) -> View | None:
    """What the section shows, or None where nothing was exported."""
    artefacts = artefacts_of(shipped)
    if not artefacts:
        return None
    rows = standings(result, shipped)
    teacher = next((row for row in rows if row.key == TEACHER), None)
    one, many = single(shipped), bulk(shipped)
    return {
        "lead": lead(shipped, rows),
        "ledger": [ledger_line(name, artefact) for name, artefact in artefacts],
        **plot(rows, str(one) if one else ""),
        "answers": [answer_row(row) for row in rows],
        "costs": [cost_row(row, teacher, currency_of(shipped)) for row in rows] if one else [],
        "single": str(one) if one else "",
        "bulk": str(many) if many else "",
        "priced": price_words(shipped),
        "calibration": [
            made for name, artefact in artefacts if (made := calibration_row(name, artefact, rows)) is not None
        ],
        "details": [
            details(place, name, artefact, _row(rows, name)) for place, (name, artefact) in enumerate(artefacts)
        ],
        "timings": timings(shipped, rows),
        **machine(shipped),
    }


def _row(rows: Sequence[Standing], name: str) -> Standing:
    return next(row for row in rows if row.key == name)


def lead(shipped: Record, rows: Sequence[Standing]) -> str:
    """One sentence on the artefact that is to be shipped, else on the first that was judged, else on the first."""
    order = {"ship": 0, "hold": 1, "reject": 1}
    ranked = sorted(
        artefacts_of(shipped), key=lambda pair: order.get(text(mapping(pair[1].get("check")).get("decision")), 2)
    )
    its = _row(rows, ranked[0][0])
    teacher = next((row for row in rows if row.key == TEACHER), None)
    said: list[str] = []
    if its.size is not None:
        smaller = compared(its.size, teacher.size if teacher else None, "smaller")
        said.append(f"{bytes_text(its.size)} on disk{_in_brackets(smaller)}")
    if its.latency is not None:
        faster = compared(its.latency, teacher.latency if teacher else None, "faster")
        said.append(f"{figures(its.latency)} ms an answer{_in_brackets(faster)}")
    if its.agreement is not None:
        said.append(
            f"the trained student’s answer on {agreement_text(its.agreement)} of the examples they were compared on"
        )
    return f"{its.name}: {', '.join(said)}." if said else ""


def compared(value: float | None, teacher: float | None, verb: Literal["smaller", "faster"]) -> str:
    """A size or a latency against the teacher's, in words; empty where one of them is not known."""
    return times(value / teacher, verb) if value is not None and teacher else ""


def _in_brackets(words: str) -> str:
    return f" ({words} than the teacher)".replace("same than", "same as") if words else ""


def ledger_line(name: str, artefact: Record) -> View:
    """An artefact, the decision on it and why, in the manner of a gate."""
    check, parity = mapping(artefact.get("check")), mapping(artefact.get("parity"))
    decision, size = text(check.get("decision")), number(artefact.get("bytes"))
    state, word = _STATES.get(decision, "undecided"), decision or "not checked"
    why = because({"verdict": check}) if check else "Not judged on the test split yet; tutelage check does that."
    if parity.get("passed") is False and decision != "reject":
        state, word = "failed", "no parity"
    if parity.get("passed") is False:
        why = f"{sentence(text(parity.get('why'), 'it does not answer as the trained student does'))} {why}"
    elif not check and parity.get("passed") is True:
        why = (
            f"It answers as the trained student does in all {plural(len(records(parity.get('cases'))), 'case')}. {why}"
        )
    return {
        "name": name,
        "state": state,
        "word": word,
        "why": why,
        "size": "not measured" if size is None else bytes_text(size),
        "about": described(artefact),
    }


def plot(rows: Sequence[Standing], conditions: str) -> View:
    """The plot of those whose accuracy on the same split and whose latency are known; the others are named."""
    split = "test" if any(row.split == "test" for row in rows if row.key not in (TEACHER, STUDENT)) else "validation"
    bubbles, absent = list[Bubble](), list[str]()
    for row in rows:
        if row.latency is None or row.latency <= 0 or row.accuracy is None or row.split != split:
            absent.append(f"{row.name} ({row.about})" if row.key == STUDENT else row.name)
            continue
        size = bytes_text(row.size) if row.size is not None else "size not measured"
        tip = f"{row.name}: accuracy {amount(METRICS['accuracy'], row.accuracy)}, {figures(row.latency)} ms, {size}"
        aside = bytes_text(row.size) if row.size is not None else ""
        bubbles.append(Bubble(row.name, aside, tip, row.latency, row.accuracy, row.ci, row.size, row.slot))
    chart: Markup | None = None
    if len(bubbles) > 1:
        shown = [end for bubble in bubbles for end in (bubble.y, *(bubble.ci or ()))]
        places = 0 if max(shown) - min(shown) > 0.05 else 1
        chart = bubble_chart(
            "chart-shipped",
            "Size, latency and accuracy of teacher, student and artefacts",
            "; ".join(bubble.tip for bubble in bubbles) + f". Accuracy on the {split} split; latency at {conditions}.",
            bubbles,
            "median latency in ms, logarithmic",
            (lambda tick: f"{tick:,g}", lambda tick: f"{decimal(100 * tick, places)}%"),
        )
    whiskers = any(bubble.ci is not None for bubble in bubbles)
    return {"chart": chart, "chart_split": split, "chart_without": absent, "whiskers": whiskers}


def answer_row(row: Standing) -> View:
    """How well a model answers, and how near to the trained student."""
    ece = number(row.metrics.get("ece"))
    reference = row.key in (TEACHER, STUDENT)
    between = ""
    if row.ci is not None:
        between = f"{amount(METRICS['accuracy'], row.ci[0])} to {amount(METRICS['accuracy'], row.ci[1])}"
    on = "" if row.split == "test" else "on validation"
    return {
        "name": row.name,
        "about": row.about,
        "key": key_mark(row.slot, row.shape),
        "accuracy": amount(METRICS["accuracy"], row.accuracy),
        "under": ", ".join(part for part in (between, on) if part) or ("one seed" if row.accuracy is not None else ""),
        "nll": amount(METRICS["nll"], number(row.metrics.get("nll"))),
        "ece": MISSING if ece is None else decimal(ece, 3),
        "max_abs": MISSING if reference or row.max_abs is None else scientific(row.max_abs),
        "agreement": MISSING if reference else agreement_text(row.agreement),
    }


def cost_row(row: Standing, teacher: Standing | None, currency: str) -> View:
    """What a model takes: bytes, time, memory, money; the first two against the teacher."""
    other = teacher if row.key != TEACHER else None
    return {
        "name": row.name,
        "about": row.about,
        "key": key_mark(row.slot, row.shape),
        "size": MISSING if row.size is None else bytes_text(row.size),
        "smaller": compared(row.size, other.size if other else None, "smaller"),
        "latency": MISSING if row.latency is None else f"{figures(row.latency)} ms",
        "spread": f"{figures(row.spread[0])} to {figures(row.spread[1])}" if row.spread else "",
        "faster": compared(row.latency, other.latency if other else None, "faster") or MISSING,
        "throughput": MISSING if row.throughput is None else f"{figures(row.throughput)}/s",
        "memory": MISSING if row.memory is None else bytes_text(row.memory),
        "flops": MISSING if row.flops is None else flops_text(row.flops),
        "runtime": "" if row.runtime is None else f"{bytes_text(row.runtime)} without it",
        "price": MISSING if row.price is None else money(figures(row.price), currency),
    }


def currency_of(shipped: Record) -> str:
    """What the price is in; empty where none was given."""
    return text(mapping(mapping(shipped.get("measured")).get("price")).get("currency"))


def price_words(shipped: Record) -> str:
    """At what price the cost of a million inferences was reckoned; empty where none was given."""
    per_hour = number(mapping(mapping(shipped.get("measured")).get("price")).get("per_hour"))
    return "" if per_hour is None else f"{money(f'{per_hour:g}', currency_of(shipped))} an hour"


def calibration_row(name: str, artefact: Record, rows: Sequence[Standing]) -> View | None:
    """The temperature fitted for an artefact, with the NLL and the ECE before and after it."""
    found = mapping(artefact.get("calibration"))
    if not found:
        return None
    pairs = {key: before_and_after(found.get(key)) for key in ("nll", "ece")}
    # what does not help is left at 1, and before and after are those of the temperature that was tried
    tried = number(found.get("fitted"))
    temperature, row = number(found.get("temperature")) if tried is None else tried, _row(rows, name)
    return {
        "name": name,
        "key": key_mark(row.slot, row.shape),
        "temperature": MISSING if temperature is None else figures(temperature),
        "stored": "stored with it" if found.get("helps") is True else "not used",
        "cells": [decimal(value, 3) if value is not None else MISSING for pair in pairs.values() for value in pair],
        "why": sentence(text(found.get("why"))),
    }


def timings(shipped: Record, rows: Sequence[Standing]) -> list[View]:
    """Every latency that was measured, by model."""
    groups: list[View] = []
    for row in {row.key: row for row in rows}.values():
        found = [
            timed for timed in records(mapping(shipped.get("measured")).get("rows")) if timed.get("model") == row.key
        ]
        cells = [timing_cells(timed) for timed in found]
        if cells:
            groups.append({"name": row.name, "key": key_mark(row.slot, row.shape), "rows": cells})
    return groups


def timing_cells(timed: Record) -> list[str]:
    """Threads, batch, length, p50, its spread, p95, p99, examples a second and calls."""

    def cell(key: str) -> str:
        value = number(timed.get(key))
        return MISSING if value is None else figures(value)

    def count(key: str) -> str:
        value = number(timed.get(key))
        return MISSING if value is None else f"{value:,.0f}"

    spread = interval(timed.get("spread"))
    between = f"{figures(spread[0])} to {figures(spread[1])}" if spread else MISSING
    setting = [count(key) for key in ("threads", "batch", "length")]
    return [*setting, cell("p50"), between, *(cell(key) for key in ("p95", "p99", "throughput")), count("calls")]


def machine(shipped: Record) -> View:
    """The processor, what it can do, and what that means for int8."""
    cpu = mapping(mapping(shipped.get("measured")).get("cpu"))
    listed = [text(flag) for flag in sequence(cpu.get("flags"))]
    cores = number(cpu.get("cores"))
    parts = [text(cpu.get("name")), plural(int(cores), "core") if cores is not None else "", ", ".join(listed)]
    return {
        "cpu": "; ".join(part for part in parts if part),
        "int8_note": text(cpu.get("int8_note")),
        "measured": text(mapping(shipped.get("measured")).get("measured")),
    }
