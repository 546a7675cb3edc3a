"""The parts of a sentence encoder's page: tasks, arms, cost, what was cut, what was learnt from, curves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from markupsafe import Markup

from tutelage.report.charts import Row, interval_chart, key_mark
from tutelage.report.curves import Series, line_chart
from tutelage.report.diagnosis import loss_curves, points
from tutelage.report.embedding_words import arm_list, is_small, judged_recall, metric_words, named_in, part_of
from tutelage.report.language_words import KD, TEACHER, arms_of, within
from tutelage.report.record import Record, interval, mapping, number, records, sequence, text
from tutelage.report.sections import cost_row, metric_cells, no_interval, percent_tick, seed_values
from tutelage.report.words import (
    MISSING,
    Arm,
    Metric,
    amount,
    bytes_text,
    decimal,
    difference,
    duration,
    flops_text,
    plural,
    times,
)

View = dict[str, Any]

#: Tasks beyond these are folded away.
MOST_TASKS = 20

_SIMILARITY = ("spearman", "cosine", "cka", "procrustes")
_SURGERY = {
    "layers": "Layers",
    "hidden": "Width",
    "heads": "Attention heads",
    "feed_forward": "Width of the feed-forward",
    "vocabulary": "Tokens of the vocabulary",
    "parameters": "Parameters",
    "embeddings": "… of them embeddings",
    "layer_weights": "… in layers",
    "others": "… elsewhere",
    "bytes": "Size of the weights",
    "flops_per_example": "Arithmetic of one text",
}


def tasks_section(result: Record) -> View:
    """Task by task, the worst first; those that are too small to say anything of apart."""
    named, recall, recorded = named_in(result), judged_recall(result), records(result.get("tasks"))
    rows = [_task(row, recall, named) for row in recorded if not is_small(row)]
    least = number(result.get("least_a_task"))
    return {
        "any": bool(recorded),
        "few": [_task(row, recall, named) for row in recorded if is_small(row)],
        "least": f"{least:,.0f}" if least is not None else "a few",
        "rows": rows[:MOST_TASKS],
        "folded": rows[MOST_TASKS:],
        "recall": named(recall).name if recall else "",
        "ranked": "by what is lost of the teacher’s recall" if recall else "by the rank correlation with the teacher",
    }


def _task(row: Record, recall: str, named: Callable[[str], Metric]) -> View:
    arms = mapping(row.get("arms"))
    own, theirs = mapping(arms.get(KD)), mapping(arms.get(TEACHER))
    drop, ci = number(row.get("drop")), interval(row.get("ci"))
    metric = named(recall) if recall else named("recall")
    return {
        "task": text(row.get("task"), "unnamed"),
        "texts": f"{count:,.0f}" if (count := number(row.get("texts"))) is not None else MISSING,
        "spearman": amount(named("spearman"), number(own.get("spearman"))),
        "recall": amount(metric, number(own.get(recall))) if recall else MISSING,
        "teacher": amount(metric, number(theirs.get(recall))) if recall else MISSING,
        "drop": MISSING if drop is None else difference(metric, drop, signed=True),
        "ci": "no interval"
        if ci is None
        else f"{difference(metric, ci[0], unit=False)} to {difference(metric, ci[1], unit=False)}",
        "worse": ci is not None and ci[0] > 0,
    }


def arms_section(result: Record) -> View:
    """Every arm: how near to the teacher, and what is found with it."""
    arms, named = arm_list(result), named_in(result)
    retrieval = mapping(result.get("retrieval"))
    found = [text(name) for name in sequence(retrieval.get("metrics")) if text(name)]
    similar = [key for key in _SIMILARITY if any(key in mapping(record.get("mean")) for _, record in arms)]
    similarity = mapping(result.get("similarity"))
    queries, searched = number(retrieval.get("queries")), number(retrieval.get("texts"))
    return {
        "list": [
            {
                "key": key_mark(arm.slot, arm.shape),
                "name": arm.name,
                "description": text(record.get("description")) or "No description recorded.",
            }
            for arm, record in arms
        ],
        "similar": _table([row for row in arms if row[0].key != TEACHER], similar, named),
        "pairs": text(similarity.get("method")) or "pairs of test texts",
        "chart": _chart("spearman", [row for row in arms if row[0].key != TEACHER], named, "chart-spearman"),
        "retrieval": _table(arms, found, named) if found else None,
        "retrieval_chart": _chart(judged_recall(result), arms, named, "chart-recall") if found else None,
        "judged": named("recall").name if found else "",
        "asked": f"{plural(int(queries), 'text')} with answers, each searched for among the other {searched - 1:,.0f} test texts"
        if queries is not None and searched is not None
        else "",
        "seeds": _every_seed(arms, [*similar, *found], named),
        "methods": _methods(arms),
    }


def _table(arms: Sequence[tuple[Arm, Record]], shown: Sequence[str], named: Callable[[str], Metric]) -> View:
    """Means and intervals; what is a number of a whole cloud of embeddings has no interval, and says so by its blank."""
    rows: list[View] = []
    for arm, record in arms:
        cells = metric_cells(record, shown, named)
        methods = mapping(record.get("ci_method"))
        cells = [
            cell if key in methods or cell["mean"] == MISSING else {**cell, "ci": ""}
            for key, cell in zip(shown, cells, strict=True)
        ]
        rows.append({"key": key_mark(arm.slot, arm.shape), "name": arm.name, "cells": cells})
    columns = [
        {"name": metric_words(named(key)), "aside": "" if named(key).higher_is_better else "lower is better"}
        for key in shown
    ]
    return {"columns": columns, "rows": rows}


def _chart(
    key: str, arms: Sequence[tuple[Arm, Record]], named: Callable[[str], Metric], chart_id: str
) -> Markup | None:
    metric, rows, said = named(key), list[Row](), list[str]()
    for arm, record in arms:
        mean, ci = number(mapping(record.get("mean")).get(key)), interval(mapping(record.get("ci95")).get(key))
        if mean is None:
            continue
        reads = amount(metric, mean)
        said.append(f"{arm.name} {reads}" + ("" if ci else f" ({no_interval(record)})"))
        rows.append(Row(arm.name, reads, mean, ci, seed_values(record, key, part_of(key)), arm.slot, arm.shape))
    if not rows:
        return None
    write = percent_tick(rows) if metric.unit == "share" else _plain_tick
    return interval_chart(
        chart_id,
        f"{metric_words(metric)} of every arm",
        "; ".join(said) + ". Whiskers are 95% intervals.",
        rows,
        write,
    )


def _plain_tick(tick: float) -> str:
    return f"{0.0 + round(tick, 10):g}".replace("-", "−")


def _every_seed(arms: Sequence[tuple[Arm, Record]], shown: Sequence[str], named: Callable[[str], Metric]) -> View:
    rows: list[View] = []
    for arm, record in arms:
        for seed in records(record.get("seeds")):
            values = [number(mapping(seed.get(part_of(key))).get(key)) for key in shown]
            steps, seconds = number(seed.get("steps")), number(seed.get("seconds"))
            rows.append(
                {
                    "name": arm.name,
                    "seed": text(seed.get("seed"), MISSING),
                    "cells": [amount(named(key), value) for key, value in zip(shown, values, strict=True)],
                    "steps": MISSING if steps is None else f"{steps:,.0f}",
                    "seconds": duration(seconds),
                }
            )
    return {"columns": [metric_words(named(key)) for key in shown], "rows": rows}


def _methods(arms: Sequence[tuple[Arm, Record]]) -> list[str]:
    """How intervals were made, each with the arms that it was used for."""
    used: dict[str, dict[str, None]] = {}
    for arm, record in arms:
        for key, method in mapping(record.get("ci_method")).items():
            if text(method) and interval(mapping(record.get("ci95")).get(key)) is not None:
                used.setdefault(text(method), {})[within(arm.name)] = None
    return [f"{method} ({', '.join(names)})" for method, names in used.items()]


def cost_section(result: Record) -> View:
    """Size and speed of the judged student beside the teacher, and of other students below."""
    both = mapping(result.get("cost"))
    teacher = mapping(both.get("teacher"))
    arms = arms_of(result)
    tables: list[View] = []
    for key, cost in both.items():
        if key == "teacher" or not mapping(cost):
            continue
        name = arms[KD][0].name if key == "student" and KD in arms else arms[key][0].name if key in arms else key
        tables.append({"name": name, "id": f"cost-{len(tables)}", "rows": _cost_rows(teacher, mapping(cost))})
    student = mapping(both.get("student"))
    batch, tokens = number(student.get("batch")), mapping(student.get("tokens"))
    mean, longest = number(tokens.get("mean")), number(tokens.get("longest"))
    provenance = mapping(result.get("provenance"))
    threads = number(student.get("threads")) or number(provenance.get("threads"))
    where = " on ".join(
        part for part in (plural(int(threads), "thread") if threads else "", text(provenance.get("cpu"))) if part
    )
    lengths = (
        f" of {decimal(mean, 1)} tokens on average, padded to {longest:,.0f}"
        if mean is not None and longest is not None
        else ""
    )
    return {
        "tables": tables,
        "batch": f"batches of {batch:,.0f} texts{lengths}" if batch is not None else "",
        "where": where,
    }


def _cost_rows(teacher: Record, student: Record) -> list[View]:
    return [
        cost_row("Parameters", teacher.get("parameters"), student.get("parameters"), lambda v: f"{v:,.0f}", "fewer"),
        cost_row("Size of the weights", teacher.get("bytes"), student.get("bytes"), bytes_text, "smaller"),
        _arithmetic(teacher, student),
        _rate("Texts a second, from text to embedding", "texts_per_second", teacher, student),
        _rate("Texts a second, the model alone", "forward_texts_per_second", teacher, student),
    ]


def _arithmetic(teacher: Record, student: Record) -> View:
    """A row whose student may need none: a table of tokens is looked up."""
    own = student.get("flops_per_text")
    row = cost_row("Arithmetic of a text", teacher.get("flops_per_text"), own, flops_text, "fewer")
    looked_up = {"student": "none", "share": MISSING, "bar": None, "words": "vectors are looked up"}
    return {**row, **looked_up} if number(own) == 0 else row


def _rate(name: str, key: str, teacher: Record, student: Record) -> View:
    """A row of which more is better."""
    row = cost_row(name, teacher.get(key), student.get(key), lambda value: f"{value:,.0f}", "faster")
    t, s = number(teacher.get(key)), number(student.get(key))
    share = t / s if t is not None and s else None
    found = {**row, "words": times(share, "faster"), "worse": share is not None and share > 1.05}
    # a tenth of a percent of many times as much is noise of the clock
    return found if s is None or not t or s < 10 * t else {**found, "share": f"{decimal(s / t, 0)} times"}


def surgery_section(result: Record) -> list[View]:
    """What was kept of the teacher in each student that was cut from it."""
    arms, tables = arms_of(result), list[View]()
    for key, found in mapping(result.get("surgery")).items():
        rows: list[View] = []
        for row in records(mapping(found).get("rows")):
            what = text(row.get("what"))
            write = {"bytes": bytes_text, "flops_per_example": flops_text}.get(what, _count)
            before, after, ratio = (number(row.get(name)) for name in ("before", "after", "ratio"))
            rows.append(
                {
                    "name": _SURGERY.get(what, what.replace("_", " ")),
                    "before": MISSING if before is None else write(before),
                    "after": MISSING if after is None else write(after),
                    "ratio": MISSING if ratio is None else f"{decimal(100 * ratio, 1)}%",
                }
            )
        kept = [
            f"{layer:.0f}"
            for value in sequence(mapping(found).get("kept_layers"))
            if (layer := number(value)) is not None
        ]
        name = arms[key][0].name if key in arms else key
        tables.append({"name": name, "id": f"surgery-{len(tables)}", "rows": rows, "layers": ", ".join(kept)})
    return tables


def _count(value: float) -> str:
    return f"{value:,.0f}"


def transfer_section(result: Record) -> list[tuple[str, str]]:
    """What the students learnt from, fact by fact."""
    found, splits = mapping(result.get("transfer")), mapping(result.get("splits"))
    if not found:
        return []

    def count(key: str) -> str:
        value = number(found.get(key))
        return "not recorded" if value is None else f"{value:,.0f}"

    taught = mapping(result.get("taught"))
    width, longest, seconds = (number(taught.get(key)) for key in ("width", "max_length", "seconds"))
    made_in = f", computed once in {duration(seconds)}" if seconds is not None else ""
    return [
        ("Texts", count("texts")),
        ("Tokens, as the teacher reads them", count("tokens")),
        ("Texts are cut at", "not recorded" if longest is None else f"{longest:,.0f} tokens"),
        ("Texts that were cut", count("cut")),
        ("Left out as they stood there already", count("repeated")),
        ("The teacher’s embeddings", "not recorded" if width is None else f"{width:,.0f} wide{made_in}"),
        (
            "Splits",
            ", ".join(f"{value:,} {key}" for key, value in splits.items() if number(value) is not None)
            or "not recorded",
        ),
    ]


def curves_section(result: Record) -> View:
    """The validation split's rank correlation of all arms in one chart; the training loss of each in its own."""
    recorded = mapping(mapping(result.get("evidence")).get("curves"))
    held, losses = list[Series](), list[Series]()
    for key, (arm, _) in arms_of(result).items():
        runs = records(recorded.get(key))
        lines = [line for run in runs if (line := points(run.get("validation"), "spearman"))]
        trained = [line for run in runs if (line := points(run.get("train"), "loss"))]
        if lines:
            held.append(Series(arm, lines))
        if trained:
            losses.append(Series(arm, trained))
    return {"chart": _watched(held), "legend": _legend(held), "losses": loss_curves(losses)}


def _legend(held: Sequence[Series]) -> list[View]:
    return [{"key": key_mark(item.arm.slot, item.arm.shape), "name": item.arm.name} for item in held]


def _watched(held: Sequence[Series]) -> Markup | None:
    if not held:
        return None
    values = sorted(value for item in held for line in item.lines for _, value in line)
    low, high = values[0], values[-1]
    air = max(high - low, 1e-3)
    said = [f"{item.arm.name} ends at {decimal(item.end[1], 3)}" for item in held]
    return line_chart(
        "chart-validation",
        "Rank correlation on the validation split during training",
        "; ".join(said) + ".",
        held,
        (low - 0.06 * air, high + 0.06 * air),
        _plain_tick,
        height=320,
        named=False,
    )
