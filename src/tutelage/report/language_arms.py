"""The arms of a language study beside each other: the gap to the teacher, every metric, and what the training took."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tutelage.report.charts import Row, cut, domain, interval_chart, key_mark
from tutelage.report.language_charts import gap_chart
from tutelage.report.language_words import (
    KD,
    TEACHER,
    UNTOUCHED,
    arms_of,
    compared_on,
    metric_title,
    metrics_of,
    no_seeds,
    part_of,
    score_name,
    within,
)
from tutelage.report.record import Record, interval, mapping, number, records, text
from tutelage.report.sections import (
    READINGS,
    comparison_cells,
    metric_cells,
    no_interval,
    paired,
    percent_tick,
    seed_values,
)
from tutelage.report.words import (
    MISSING,
    Arm,
    Metric,
    amount,
    decimal,
    difference,
    duration,
    plural,
    reading,
)

View = dict[str, Any]

SHOWN = ("score", "kl", "agreement", "perplexity", "nll")
#: Metrics as a narrow column names them.
_SHORT = {"score": "score", "kl": "KL", "nll": "NLL"}
#: Characters of an arm's name that leave room for its number and its share of the gap on a phone.
_LONGEST = 22
#: A difference so many times as large as every other one is left out of their chart, in which they would be one dot.
_FAR = 8


def gap_section(result: Record) -> View:
    """The way from the untouched student to the teacher: a chart of every arm on it, and the shares in a table."""
    key, named, gap = compared_on(result), metrics_of(result), mapping(result.get("gap"))
    metric, shares = named(key), mapping(mapping(result.get("gap")).get("arms"))
    arms = arms_of(result)
    order = [name for name in arms if name != TEACHER] + [name for name in arms if name == TEACHER]
    rows, table, said = list[Row](), list[View](), list[str]()
    for name in order:
        arm, record = arms[name]
        mean, ci = number(mapping(record.get("mean")).get(key)), interval(mapping(record.get("ci95")).get(key))
        if name == TEACHER and key == "kl" and gap:
            mean, ci = 0.0, None
        share = mapping(shares.get(name))
        closed, between = number(share.get("closed")), interval(share.get("ci95"))
        value = amount(metric, mean) if mean is not None else "not measured"
        reads = value if closed is None else f"{value} · {decimal(100 * closed, 0)}% closed"
        said.append(f"{arm.name} {reads}")
        seeds = seed_values(record, key, part_of(key))
        rows.append(
            Row(cut(arm.name, _LONGEST), reads, mean, ci if mean is not None else None, seeds, arm.slot, arm.shape)
        )
        if name in (TEACHER, UNTOUCHED):
            continue
        table.append(
            {
                "key": key_mark(arm.slot, arm.shape),
                "name": arm.name,
                "value": value,
                "ci": written_interval(metric, ci, record) if mean is not None else "",
                "closed": MISSING if closed is None else f"{decimal(100 * closed, 1)}%",
                "between": f"{decimal(100 * between[0], 1)}% to {decimal(100 * between[1], 1)}%"
                if between
                else "no interval",
            }
        )
    ends = (number(gap.get(UNTOUCHED)), number(gap.get(TEACHER)))
    chart = None
    if any(row.value is not None for row in rows):
        chart = gap_chart(
            "chart-gap",
            f"{metric_title(metric)}: every arm, between the untouched student and the teacher",
            "; ".join(said) + ". Whiskers are 95% intervals; the band is the gap.",
            rows,
            (ends[0], ends[1]) if ends[0] is not None and ends[1] is not None else None,
            tick_writer(metric, rows),
        )
    return {
        "chart": chart,
        "table": table if shares else [],
        "metric": metric_title(metric) + (lower_bound(result) if key == "kl" else ""),
        "lower": not metric.higher_is_better,
        "known": bool(gap),
        "closed": number(gap.get("closed")) is not None,
    }


def written_interval(metric: Metric, ci: tuple[float, float] | None, record: Record) -> str:
    """``76.2% to 80.1%``, or why there is none."""
    return f"{amount(metric, ci[0])} to {amount(metric, ci[1])}" if ci else no_interval(record)


def tick_writer(metric: Metric, rows: Sequence[Row]) -> Callable[[float], str]:
    """Writes the ticks of a chart of that metric."""
    return percent_tick(rows) if metric.unit == "share" else lambda tick: f"{0.0 + round(tick, 10):g}".replace("-", "−")


def side_by_side(result: Record) -> View:
    """Every metric of every arm with its interval, what each arm is, every seed, and what the training took."""
    named = metrics_of(result)
    arms = list(arms_of(result).values())
    shown = [key for key in SHOWN if key != "score" or compared_on(result) == "score"]
    views = [_arm_view(arm, record, shown, named) for arm, record in arms]
    second = "kl" if compared_on(result) == "score" else "nll"
    chart, far = _second_chart(second, arms, named(second))
    return {
        "columns": [_column(key, result) for key in shown],
        "table": views,
        "methods": _methods(arms),
        "chart": chart,
        "far": far,
        "second": {
            "kl": f"KL to the teacher{lower_bound(result)}, nats a token",
            "nll": "NLL, nats a token: the logarithm of the perplexity",
        }[second],
        "taught": [view for view in views if not view["untrained"]],
    }


def _methods(arms: Sequence[tuple[Arm, Record]]) -> list[str]:
    """How intervals were made, each with the metrics and the arms that it was used for."""
    used: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
    for arm, record in arms:
        for key, method in mapping(record.get("ci_method")).items():
            if key in SHOWN and text(method) and interval(mapping(record.get("ci95")).get(key)) is not None:
                metrics, names = used.setdefault(text(method), ({}, {}))
                metrics[_SHORT.get(key, key)] = names[within(arm.name)] = None
    return [f"{method} ({', '.join(metrics)} of: {', '.join(names)})" for method, (metrics, names) in used.items()]


def lower_bound(result: Record) -> str:
    """Of which tokens a KL is, where the teacher does not tell of all: what is left out of it can only add to it."""
    told = number(result.get("kl_likeliest"))
    return "" if told is None else f" over its {plural(int(told), 'likeliest token')}, a lower bound"


def _column(key: str, result: Record) -> View:
    names = {
        "score": ("Score", score_name(result)),
        "kl": ("KL, nats a token", f"to the teacher{lower_bound(result)}, lower is closer"),
        "agreement": ("Top-1 agreement", "same most probable token"),
        "perplexity": ("Perplexity", "lower is better"),
        "nll": ("NLL, nats a token", "lower is better"),
    }
    name, aside = names[key]
    return {"name": name, "aside": aside}


def _arm_view(arm: Arm, record: Record, shown: Sequence[str], named: Callable[[str], Metric]) -> View:
    seeds = records(record.get("seeds"))
    cells = metric_cells(record, shown, named)
    if arm.key == TEACHER:
        own = {"kl": {"mean": MISSING, "ci": "is itself"}, "agreement": {"mean": MISSING, "ci": "is itself"}}
        means = mapping(record.get("mean"))
        cells = [
            own.get(key, cell) if number(means.get(key)) is None else cell
            for key, cell in zip(shown, cells, strict=True)
        ]
    return {
        "arm": arm,
        "key": key_mark(arm.slot, arm.shape),
        "description": (text(record.get("description")) or "No description recorded.") + _prepared(record),
        "cells": cells,
        "untrained": no_seeds(record),
        "count": len(seeds),
        **{name: _spent(seeds, name) for name in ("steps", "tokens", "seconds", "generation_share")},
        "seeds": [
            {
                "seed": text(seed.get("seed"), MISSING),
                "cells": [amount(named(key), number(mapping(seed.get(part_of(key))).get(key))) for key in shown],
                **{name: _spent([seed], name) for name in ("steps", "tokens", "seconds", "generation_share")},
            }
            for seed in seeds
        ],
    }


def _prepared(record: Record) -> str:
    """What the teacher took before the training, which the training's time does not show."""
    taken = number(record.get("preparation_seconds"))
    return "" if taken is None else f"; before it the teacher wrote or labelled for {duration(taken)}"


def _spent(seeds: Sequence[Record], name: str) -> str:
    """What training took, the mean over seeds."""
    values = [value for seed in seeds if (value := number(seed.get(name))) is not None]
    if not values:
        return MISSING
    mean = sum(values) / len(values)
    if name == "seconds":
        return duration(mean)
    return f"{decimal(100 * mean, 1)}%" if name == "generation_share" else f"{mean:,.0f}"


def _second_chart(key: str, arms: Sequence[tuple[Arm, Record]], metric: Metric) -> tuple[Any, bool]:
    rows, said = list[Row](), list[str]()
    for arm, record in arms:
        mean, ci = number(mapping(record.get("mean")).get(key)), interval(mapping(record.get("ci95")).get(key))
        if mean is None:
            continue
        reads = amount(metric, mean)
        said.append(f"{arm.name} {reads}")
        rows.append(Row(arm.name, reads, mean, ci, seed_values(record, key, part_of(key)), arm.slot, arm.shape))
    kept, far = near(rows, arm_name(UNTOUCHED, arms))
    if not kept:
        return None, False
    chart = interval_chart(
        f"chart-{key}",
        f"{metric_title(metric)}: every arm",
        "; ".join(said) + ". Whiskers are 95% intervals.",
        kept,
        tick_writer(metric, kept),
        zero=key == "kl",
    )
    return chart, far


def arm_name(key: str, arms: Sequence[tuple[Arm, Record]]) -> str:
    """An arm's name, or nothing where the study has none of that key."""
    return next((arm.name for arm, _ in arms if arm.key == key), "")


def near(rows: Sequence[Row], name: str) -> tuple[list[Row], bool]:
    """The rows without the one of that name where it dwarfs all others, and whether it does."""
    rest = [row for row in rows if row.label != name]
    most = max((abs(end) for row in rest for end in (row.value, *(row.ci or ())) if end is not None), default=0.0)
    value = next((row.value for row in rows if row.label == name), None)
    far = value is not None and most > 0 and abs(value) > _FAR * most
    return (rest, True) if far else (list(rows), False)


def worth(result: Record) -> View:
    """The paired comparisons: a chart of the differences in the metric that decides, and the table of all of them."""
    key, named, arms = compared_on(result), metrics_of(result), arms_of(result)
    metric, table, said = named(key), list[View](), list[str]()
    rows: list[Row] = []
    for found in records(result.get("comparisons")):
        a, b = (text(found.get(side), "?") for side in ("a", "b"))
        first, second = (arms[side][0].name if side in arms else side.replace("_", " ") for side in (a, b))
        pair = f"{first} − {within(second)}"
        if not table or table[-1]["pair"] != pair:
            table.append({"pair": pair, "rows": []})
        short = _SHORT.get(text(found.get("metric")))
        cells = comparison_cells(found, named)
        table[-1]["rows"].append({**cells, "metric": short or cells["metric"]})
        value, ci, reads = number(found.get("difference")), interval(found.get("ci95")), reading(found)
        if found.get("metric") != key or a != KD or b not in arms:
            continue
        other = arms[b][0]
        written = "not measured" if value is None else difference(metric, value)
        said.append(f"against {other.versus}: {written}, {READINGS[reads]}")
        seeds = paired(mapping(result.get("arms")), a, b, key, part_of(key))
        hollow = reads in ("chance", "unproven")
        rows.append(
            Row(
                cut(f"against {other.versus}", 30),
                written,
                value,
                ci,
                seeds,
                other.slot,
                other.shape,
                hollow=hollow,
            )
        )
    untouched = f"against {arms[UNTOUCHED][0].versus}" if UNTOUCHED in arms else ""
    kept, far = near(rows, untouched)
    chart = None
    if any(row.value is not None for row in kept):
        chart = interval_chart(
            "chart-worth",
            f"Differences in {metric.name}",
            f"{'; '.join(said)}. Whiskers are 95% intervals; the vertical line is no difference.",
            kept,
            _signed_tick(metric, kept),
            zero=True,
        )
    return {
        "chart": chart,
        "table": table,
        "methods": sorted({row["method"] for group in table for row in group["rows"]}),
        "far": far,
        "metric": metric.name,
        "unit": ", in points" if metric.unit == "share" else ", in nats a token" if metric.unit == "nats" else "",
        "lower": not metric.higher_is_better,
    }


def _signed_tick(metric: Metric, rows: Sequence[Row]) -> Callable[[float], str]:
    scale = 100 if metric.unit == "share" else 1
    low, high = domain([v for row in rows for v in (row.value, *(row.ci or ())) if v is not None], keep=(0.0,))
    places = 0 if scale * (high - low) >= 5 else 1 if scale * (high - low) >= 0.5 else 2
    return lambda tick: decimal(scale * tick, 0 if abs(tick) < 1e-12 else places, signed=True)


def seeds_in_all(result: Record) -> str:
    """``6 arms, 3 seeds``: for the line under the title."""
    arms = [record for key, (_, record) in arms_of(result).items() if key not in (TEACHER, UNTOUCHED)]
    return plural(len(arms), "trained arm") if arms else ""
