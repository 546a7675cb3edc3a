"""The paired comparisons of a sentence encoder's page: what training was worth, and what is lost to the teacher."""

from __future__ import annotations

from typing import Any

from tutelage.report.charts import Row, cut, interval_chart
from tutelage.report.embedding_words import judged_recall, named_in, part_of
from tutelage.report.language_words import KD, TEACHER, arms_of, within
from tutelage.report.record import Record, interval, mapping, number, records, text
from tutelage.report.sections import READINGS, comparison_cells, paired
from tutelage.report.words import decimal, difference, reading

View = dict[str, Any]


def worth_section(result: Record) -> View:
    """A chart of the differences in rank correlation, one of those in recall, and the table of all of them."""
    named, arms, recall = named_in(result), arms_of(result), judged_recall(result)
    table: list[View] = []
    for found in records(result.get("comparisons")):
        a, b = (text(found.get(side), "?") for side in ("a", "b"))
        first, second = (arms[side][0].name if side in arms else side.replace("_", " ") for side in (a, b))
        pair = f"{first} − {within(second)}"
        if not table or table[-1]["pair"] != pair:
            table.append({"pair": pair, "rows": []})
        table[-1]["rows"].append(comparison_cells(found, named))
    charts = [chart for key in ("spearman", recall) if key and (chart := _chart(result, key)) is not None]
    return {
        "charts": charts,
        "table": table,
        "methods": sorted({row["method"] for group in table for row in group["rows"]}),
        "against_teacher": TEACHER in arms and bool(recall),
    }


def _chart(result: Record, key: str) -> View | None:
    named, arms = named_in(result), arms_of(result)
    metric, rows, said = named(key), list[Row](), list[str]()
    for found in records(result.get("comparisons")):
        b = text(found.get("b"), "?")
        if found.get("metric") != key or found.get("a") != KD or b not in arms:
            continue
        other, value, reads = arms[b][0], number(found.get("difference")), reading(found)
        written = "not measured" if value is None else difference(metric, value)
        said.append(f"against {other.versus}: {written}, {READINGS[reads]}")
        rows.append(
            Row(
                cut(f"against {other.versus}", 30),
                written,
                value,
                interval(found.get("ci95")),
                paired(mapping(result.get("arms")), KD, b, key, part_of(key)),
                other.slot,
                other.shape,
                hollow=reads in ("chance", "unproven"),
            )
        )
    if not any(row.value is not None for row in rows):
        return None
    scale = 100 if metric.unit == "share" else 1
    chart = interval_chart(
        f"chart-worth-{'recall' if '@' in key else key}",
        f"Differences in {metric.name}",
        f"{'; '.join(said)}. Whiskers are 95% intervals; the vertical line is no difference.",
        rows,
        lambda tick: decimal(scale * tick, 0 if abs(tick) < 1e-12 else 1 if scale == 100 else 2, signed=True),
        zero=True,
    )
    return {"metric": metric.name, "unit": "points" if metric.unit == "share" else "", "chart": chart}
