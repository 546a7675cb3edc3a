"""The section on students without a larger teacher: generations that teach the next, and two that teach each other."""

from __future__ import annotations

from typing import Any

from tutelage.report.charts import Row, interval_chart, key_mark
from tutelage.report.graphs import Axis, Curve, Level, Point, graph
from tutelage.report.record import Record, interval, mapping, number, records
from tutelage.report.sections import arms_of, percent_tick, seed_values
from tutelage.report.words import ARMS, METRICS, MISSING, Arm, amount, decimal, difference, duration, plural

View = dict[str, Any]


def peers_section(result: Record) -> View | None:
    """What the section shows, or None where every student had a teacher that was not one of its kind."""
    born = [
        _generations(place, arm, record, result)
        for place, (arm, record) in enumerate(arms_of(result))
        if records(record.get("generations"))
    ]
    pairs = [
        _pair(place, arm, record, result)
        for place, (arm, record) in enumerate(arms_of(result))
        if mapping(record.get("peer"))
    ]
    return {"born": born, "pairs": pairs} if born or pairs else None


def _accuracy(record: Record) -> tuple[float | None, tuple[float, float] | None]:
    """An arm's accuracy and its interval."""
    return number(mapping(record.get("mean")).get("accuracy")), interval(mapping(record.get("ci95")).get("accuracy"))


def _control(result: Record) -> tuple[float | None, tuple[float, float] | None]:
    """The accuracy of the same student on labels alone, and its interval."""
    return _accuracy(mapping(mapping(result.get("arms")).get("scratch")))


def _between(ci: tuple[float, float] | None) -> str:
    metric = METRICS["accuracy"]
    return f"{amount(metric, ci[0])} to {amount(metric, ci[1])}" if ci else "no interval"


def _generations(place: int, arm: Arm, record: Record, result: Record) -> View:
    """Accuracy against generation."""
    metric, points, table = METRICS["accuracy"], list[Point](), list[View]()
    for row in records(record.get("generations")):
        index, value, ci = number(row.get("generation")), number(row.get("accuracy")), interval(row.get("ci95"))
        name = MISSING if index is None else f"{index:.0f}"
        if index is not None and value is not None:
            points.append(Point(index, value, ci, f"Generation {name}: {amount(metric, value)}"))
        table.append(
            {
                "name": name,
                "accuracy": amount(metric, value),
                "ci": _between(ci),
                "seconds": duration(number(row.get("seconds"))),
            }
        )
    points.sort(key=lambda point: point.x)
    return {
        "id": f"generations-{place}",
        "arm": arm,
        "key": key_mark(arm.slot, arm.shape),
        "said": _rise(points, result),
        "chart": _generation_chart(place, arm, points, result) if points else None,
        "table": table,
    }


def _generation_chart(place: int, arm: Arm, points: list[Point], result: Record) -> Any:
    value, ci = _control(result)
    scratch = ARMS["scratch"]
    levels = [Level(scratch.short, value, ci, scratch.slot, scratch.shape, scratch.dash)] if value is not None else []
    against = f" Labels alone: {amount(METRICS['accuracy'], value)}." if value is not None else ""
    return graph(
        f"chart-generations-{place}",
        f"Test accuracy of every generation of {arm.phrase}",
        "; ".join(point.tip for point in points) + f". Whiskers are 95% intervals.{against}",
        [Curve("", points, arm.slot, arm.shape)],
        levels,
        Axis("generation", [point.x for point in points], lambda tick: f"{tick:.0f}"),
        lambda tick, places: f"{decimal(100 * tick, max(places - 2, 0))}%",
        height=260,
    )


def _rise(points: list[Point], result: Record) -> str:
    """How far the last generation is from the first and from labels alone, and whether their intervals meet."""
    if not points:
        return "No generation’s accuracy is recorded."
    metric, last, (control, control_ci) = METRICS["accuracy"], points[-1], _control(result)
    said: list[str] = []
    begun = "Generation 0 learned from the labels alone. " if points[0].x == 0 else ""
    if len(points) > 1:
        said.append(
            f"From the first generation to the last, {difference(metric, last.y - points[0].y)} of accuracy"
            + _meet(points[0].ci, last.ci)
        )
    if control is not None:
        said.append(
            f"{'the' if said else 'The'} last is {difference(metric, last.y - control)} against labels alone{_meet(control_ci, last.ci)}"
        )
    return begun + "; ".join(said) + "." if said else begun.strip()


def _meet(a: tuple[float, float] | None, b: tuple[float, float] | None) -> str:
    if a is None or b is None:
        return ", with no interval to tell it from chance"
    apart = a[1] < b[0] or b[1] < a[0]
    return ", their intervals apart" if apart else ", their intervals overlapping"


def _pair(place: int, arm: Arm, record: Record, result: Record) -> View:
    """The student that is judged, the peer that it learned with, and labels alone."""
    peer, scratch = mapping(record.get("peer")), mapping(mapping(result.get("arms")).get("scratch"))
    its = Arm("peer", "Its peer", "the peer", "the peer", "peer", "member", "cross", "")
    lines = [(arm, *_accuracy(record)), (its, number(peer.get("accuracy")), interval(peer.get("ci95")))]
    lines += [(ARMS["scratch"], *_accuracy(scratch))] if scratch else []
    rows, table = list[Row](), list[View]()
    for looks, mean, ci in lines:
        reads = "not measured" if mean is None else amount(METRICS["accuracy"], mean)
        seeds = seed_values(mapping(mapping(result.get("arms")).get(looks.key)), "accuracy")
        rows.append(Row(looks.name, reads, mean, ci if mean is not None else None, seeds, looks.slot, looks.shape))
        table.append(
            {"name": looks.name, "key": key_mark(looks.slot, looks.shape), "accuracy": reads, "ci": _between(ci)}
        )
    chart = interval_chart(
        f"chart-pair-{place}",
        f"Test accuracy of {arm.phrase} and of its peer",
        "; ".join(f"{row.label} {row.reading}" for row in rows) + ". Whiskers are 95% intervals.",
        rows,
        percent_tick(rows),
    )
    return {
        "id": f"pair-{place}",
        "seeds": plural(len(records(record.get("seeds"))), "seed"),
        "chart": chart,
        "table": table,
    }
