"""What each section of the page shows: numbers, sentences and charts made from the record, ready for the template."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from tutelage.report.charts import (
    Row,
    domain,
    interval_chart,
    key_mark,
    share_bar,
)
from tutelage.report.gate_words import gate_amount, gate_name, gate_needs
from tutelage.report.record import Record, interval, mapping, number, records, text
from tutelage.report.words import (
    METRICS,
    MISSING,
    Arm,
    Metric,
    amount,
    arms_named,
    bytes_text,
    decimal,
    difference,
    flops_text,
    metric_named,
    p_value,
    plural,
    reading,
    times,
)

View = dict[str, Any]
Named = Callable[[str], Metric]

TASK_METRICS = ("accuracy", "macro_f1", "nll", "brier", "ece")
#: The arms that differ from the distilled student in not hearing the teacher, and in nothing else.
CONTROLS = ("scratch", "label_smoothing")

FIDELITY_METRICS = ("agreement", "kl", "negative_flips", "positive_flips")


def arms_of(result: Record) -> list[tuple[Arm, Record]]:
    """The arms: the teacher, the distilled student, its controls, then any other in the record's order."""
    found = mapping(result.get("arms"))
    return [(arm, mapping(found[arm.key])) for arm in arms_in(result, found)]


def arms_in(result: Record, found: Record) -> list[Arm]:
    """The arms that a part of the evidence speaks of, in the page's order."""
    named, first = arms_named(result), ("teacher", "kd", *CONTROLS)
    order = [key for key in first if key in found]
    return [named(key) for key in [*order, *(key for key in found if key not in order)]]


def gates(verdict: Record, named: Named = metric_named) -> list[View]:
    """Every gate of a verdict with its state in a word."""
    return [
        {
            "name": gate_name(gate),
            "state": "passed"
            if gate.get("passed") is True
            else "failed"
            if gate.get("passed") is False
            else "undecided",
            "value": gate_amount(gate, "value", named),
            "limit": gate_amount(gate, "limit", named),
            "why": text(gate.get("why"), "The record gives no reason."),
            "needs": gate_needs(gate),
        }
        for gate in records(verdict.get("gates"))
    ]


def seed_values(arm: Record, metric: str, part: str = "metrics") -> list[float]:
    """A metric's value for each seed that has one."""
    values = (number(mapping(seed.get(part)).get(metric)) for seed in records(arm.get("seeds")))
    return [value for value in values if value is not None]


def no_interval(arm: Record) -> str:
    """Why an arm has no interval."""
    count = len(records(arm.get("seeds")))
    return "one seed" if count == 1 else "no interval"


def metric_cells(arm: Record, metrics: Sequence[str], named: Named = metric_named) -> list[View]:
    """An arm's mean and interval for each metric."""
    means, intervals = mapping(arm.get("mean")), mapping(arm.get("ci95"))
    cells: list[View] = []
    for key in metrics:
        metric, mean, ci = named(key), number(means.get(key)), interval(intervals.get(key))
        between = f"{amount(metric, ci[0])} to {amount(metric, ci[1])}" if ci else no_interval(arm)
        cells.append({"mean": amount(metric, mean), "ci": between if mean is not None else "not measured"})
    return cells


def side_by_side(result: Record) -> View:
    """Teacher, student and controls: the chart of accuracy, the table of metrics and the value of every seed."""
    metric, rows, table = METRICS["accuracy"], list[Row](), list[View]()
    said: list[str] = []
    for arm, record in arms_of(result):
        mean = number(mapping(record.get("mean")).get("accuracy"))
        ci = interval(mapping(record.get("ci95")).get("accuracy"))
        seeds = seed_values(record, "accuracy")
        reads = amount(metric, mean) if mean is not None else "not measured"
        said.append(f"{arm.name} {reads}" + (f" ({amount(metric, ci[0])} to {amount(metric, ci[1])})" if ci else ""))
        rows.append(Row(arm.name, reads, mean, ci if mean is not None else None, seeds, arm.slot, arm.shape))
        table.append(
            {
                "arm": arm,
                "key": key_mark(arm.slot, arm.shape),
                "description": text(record.get("description")),
                "cells": metric_cells(record, TASK_METRICS),
                "seeds": [
                    {
                        "seed": text(seed.get("seed"), MISSING),
                        "steps": text(seed.get("steps"), MISSING),
                        "seconds": decimal(seconds, 1)
                        if (seconds := number(seed.get("seconds"))) is not None
                        else MISSING,
                        "cells": [
                            amount(metric_named(key), number(mapping(seed.get("metrics")).get(key)))
                            for key in TASK_METRICS
                        ],
                    }
                    for seed in records(record.get("seeds"))
                ],
            }
        )
    methods = {
        text(method)
        for _, record in arms_of(result)
        for key, method in mapping(record.get("ci_method")).items()
        if key in TASK_METRICS and interval(mapping(record.get("ci95")).get(key)) is not None
    }
    chart = interval_chart(
        "chart-arms",
        "Test accuracy of every arm",
        "; ".join(said) + ". Whiskers are 95% intervals.",
        rows,
        percent_tick(rows),
    )
    return {"chart": chart, "table": table, "methods": sorted(methods - {""}), "controls": _controls_said(result)}


def _controls_said(result: Record) -> str:
    """What the controls are, and that other arms are something else."""
    arms = [arm for arm, _ in arms_of(result)]
    controls = [arm.versus for arm in arms if arm.key in CONTROLS]
    others = [arm for arm in arms if arm.key not in ("teacher", "kd", *CONTROLS)]
    more = " What the other arms are stands under the table." if others else ""
    if not controls:
        return f"None of the arms is a control, the same student without the teacher.{more}"
    who = (
        f"The controls ({' and '.join(controls)}) share" if len(controls) > 1 else f"The control ({controls[0]}) shares"
    )
    hear = "hear" if len(controls) > 1 else "hears"
    return f"{who} the distilled student’s model, data and budget and never {hear} the teacher.{more}"


def percent_tick(rows: Sequence[Row]) -> Callable[[float], str]:
    """Writes the ticks of a chart of shares: in whole per cent where the rows are far enough apart."""
    low, high = domain(v for row in rows for v in (row.value, *(row.ci or ()), *row.seeds) if v is not None)
    places = 0 if high - low > 0.05 else 1
    return lambda tick: f"{decimal(100 * tick, places)}%"


READINGS = {
    "better": "better",
    "worse": "worse",
    "chance": "cannot be told from chance",
    "unproven": "not enough evidence",
}


def worth(result: Record) -> View:
    """The comparisons: a chart of the differences in accuracy, and the table of all of them."""
    metric, rows, table = METRICS["accuracy"], list[Row](), list[View]()
    arms, said, named = mapping(result.get("arms")), list[str](), arms_named(result)
    for found in records(result.get("comparisons")):
        a, b = named(text(found.get("a"), "?")), named(text(found.get("b"), "?"))
        value, ci, reads = number(found.get("difference")), interval(found.get("ci95")), reading(found)
        table.append({"pair": f"{a.name} − {b.name[0].lower()}{b.name[1:]}", **comparison_cells(found)})
        if found.get("metric") == "accuracy":
            written = "not measured" if value is None else difference(metric, value)
            label = f"against {b.versus}" if a.key == "kd" else f"{a.name} − {b.name}"
            drawn = b if a.key == "kd" else a
            said.append(f"{label}: {written}, {READINGS[reads]}")
            rows.append(
                Row(
                    label,
                    written,
                    value,
                    ci,
                    paired(arms, a.key, b.key),
                    drawn.slot,
                    drawn.shape,
                    hollow=reads in ("chance", "unproven"),
                )
            )
    chart = None
    if any(row.value is not None for row in rows):
        chart = interval_chart(
            "chart-worth",
            "Differences in test accuracy",
            f"{'; '.join(said)}. Whiskers are 95% intervals; the vertical line is no difference.",
            rows,
            lambda tick: decimal(100 * tick, 0 if abs(100 * tick) >= 1 or tick == 0 else 1, signed=True),
            zero=True,
        )
    return {"chart": chart, "table": table}


def comparison_cells(found: Record, named: Named = metric_named) -> View:
    """A comparison's difference, interval, p-value and what it proves, in words."""
    its, value, ci = (
        named(text(found.get("metric"), "?")),
        number(found.get("difference")),
        interval(found.get("ci95")),
    )
    reads = reading(found)
    return {
        "metric": its.name + ("" if its.higher_is_better else " (lower is better)"),
        "difference": MISSING if value is None else difference(its, value),
        "ci": "no interval" if ci is None else f"{difference(its, ci[0], unit=False)} to {difference(its, ci[1])}",
        "p": p_value(number(found.get("p_value"))).replace("\u00a0", " ").removeprefix("p = ").removeprefix("p ")
        or MISSING,
        "reading": reads,
        "words": READINGS[reads],
        "method": text(found.get("method"), "not recorded"),
    }


def paired(arms: Record, a: str, b: str, metric: str = "accuracy", part: str = "metrics") -> list[float]:
    """The difference in a metric for each seed; none where the two arms' seeds differ, unless ``b`` has only one."""
    by_seed: list[dict[str, float]] = []
    for key in (a, b):
        found: dict[str, float] = {}
        for seed in records(mapping(arms.get(key)).get("seeds")):
            value = number(mapping(seed.get(part)).get(metric))
            if value is not None:
                found[text(seed.get("seed"))] = value
        by_seed.append(found)
    first, second = by_seed
    if len(second) == 1:
        return [value - other for value in first.values() for other in second.values()]
    return [value - second[seed] for seed, value in first.items()] if first.keys() == second.keys() else []


def cost(result: Record) -> View:
    """Size and speed of the student beside the teacher."""
    both = mapping(result.get("cost"))
    teacher, student = mapping(both.get("teacher")), mapping(both.get("student"))
    table = [
        cost_row("Parameters", teacher.get("parameters"), student.get("parameters"), lambda v: f"{v:,.0f}", "fewer"),
        cost_row("Size of the weights", teacher.get("bytes"), student.get("bytes"), bytes_text, "smaller"),
        cost_row(
            "Arithmetic an example",
            teacher.get("flops_per_example"),
            student.get("flops_per_example"),
            flops_text,
            "fewer",
        ),
    ]
    batches = {**latencies(student), **latencies(teacher)}
    for batch in sorted(batches, key=lambda b: (len(b), b)):
        for key, name in (("p50", "median"), ("p95", "p95")):
            table.append(
                cost_row(
                    f"Latency, batch {batch}, {name}",
                    latencies(teacher).get(batch, {}).get(key),
                    latencies(student).get(batch, {}).get(key),
                    lambda v: f"{decimal(v, 2)} ms",
                    "faster",
                )
            )
    provenance = mapping(result.get("provenance"))
    threads = number(student.get("threads")) or number(teacher.get("threads")) or number(provenance.get("threads"))
    where = " on ".join(
        part for part in (plural(int(threads), "thread") if threads else "", text(provenance.get("cpu"))) if part
    )
    missing = " and ".join(f"the {who}" for who, its in (("teacher", teacher), ("student", student)) if not its)
    return {
        "table": table if teacher or student else [],
        "where": where,
        "missing": missing,
        "example": _example_said(teacher, student),
    }


def _example_said(teacher: Record, student: Record) -> str:
    """Of what text the arithmetic is; empty where the record says of none."""
    own, its = number(student.get("example_tokens")), number(teacher.get("example_tokens"))
    if own is None:
        return ""
    tokens = plural(int(own), "token")
    if its is not None and its != own:
        tokens += f" to the student, {its:,.0f} to the teacher"
    return f"Arithmetic, and latency at batch 1, are of the test text of middle length: {tokens}, and no padding."


def latencies(cost: Record) -> dict[str, Record]:
    """Latency by batch size, from the fuller table where there is one."""
    found = {batch: mapping(value) for batch, value in mapping(cost.get("latency_ms_at")).items()}
    single = mapping(cost.get("latency_ms"))
    return found or ({text(single.get("batch"), "1"): single} if single else {})


def cost_row(
    name: str, teacher: object, student: object, write: Any, verb: Literal["fewer", "smaller", "faster"]
) -> View:
    """One quantity of both, and the student's as a share of the teacher's."""
    t, s = number(teacher), number(student)
    share = s / t if s is not None and t else None
    return {
        "name": name,
        "teacher": "not measured" if t is None else write(t),
        "student": "not measured" if s is None else write(s),
        "share": MISSING if share is None else f"{decimal(100 * share, 1)}%",
        "bar": None if share is None else share_bar(share),
        "words": times(share, verb),
        "worse": share is not None and share > 1.05,
    }
