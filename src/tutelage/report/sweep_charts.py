"""The charts of a sweep: its metric against each number that was varied, and all keys at once."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from tutelage.report.charts import cut, ticks
from tutelage.report.graphs import Axis, Curve, Level, Point, graph
from tutelage.report.panes import log_ticks
from tutelage.report.parallel import Coordinate, Strand, parallel, spaced
from tutelage.report.sweep_trials import Key, Sweep, Trial, settings, written
from tutelage.report.words import ARMS, Metric, decimal

View = dict[str, Any]

#: How the curves of a chart look; no chart has more.
LOOKS = (
    ("kd", "circle", ""),
    ("smoothing", "triangle", "2 3"),
    ("member", "cross", "9 3"),
    ("born", "saltire", "9 3 2 3"),
)
#: Values of an axis that are all written at their ticks.
MOST_TICKS = 9
#: Trials that a description lists one by one.
MOST_SAID = 12


def charts(sweep: Sweep) -> list[View]:
    """The metric against each number that was varied: temperatures first, then weights, then the rest."""
    numeric = [key for key in sweep.keys if key.numeric]
    numeric.sort(key=lambda key: (not key.key.endswith("temperature"), not key.key.endswith("weight")))
    drawn = [key for key in numeric if any(key.number_of(trial) is not None for trial in sweep.complete)]
    return [_chart(place, key, sweep) for place, key in enumerate(drawn)]


def _chart(place: int, key: Key, sweep: Sweep) -> View:
    by = curves_by(key, sweep)
    others = [other for other in sweep.keys if other is not key and other is not by]
    curves, how = _curves(key, by, others, sweep)
    value, ci = sweep.scratch
    looks = ARMS["scratch"]
    levels = [Level(looks.short, value, ci, looks.slot, looks.shape, looks.dash)] if value is not None else []
    name = sweep.measure.name
    return {
        "title": f"{name[:1].upper()}{name[1:]} against {key.name}",
        "said": _said(by, others, how, bool(levels)),
        "chart": graph(
            f"chart-sweep-{place}",
            f"Validation {name} against {key.name}",
            _described(key, sweep),
            curves,
            levels,
            _axis(key),
            write_tick(sweep.measure),
            height=320,
        ),
    }


def curves_by(key: Key, sweep: Sweep) -> Key | None:
    """The other key whose values get a curve each: one of few values, the most important."""
    few = [other for other in sweep.keys if other is not key and 2 <= len(other.values) <= len(LOOKS)]
    return max(few, key=lambda other: other.importance or 0.0, default=None)


def _curves(key: Key, by: Key | None, others: Sequence[Key], sweep: Sweep) -> tuple[list[Curve], str]:
    """The curves, and how they are drawn: ``"alone"``, ``"means"`` or ``"dots"``."""
    grid = all(each.listed for each in sweep.keys)
    how = "alone" if grid and not others else "means" if grid else "dots"
    curves: list[Curve] = []
    for value, (slot, shape, dash) in zip(by.values if by else [None], LOOKS, strict=False):
        trials = [trial for trial in sweep.complete if by is None or same(by.of(trial), value)]
        points = [point for trial in trials if (point := _point(key, trial, sweep)) is not None]
        points.sort(key=lambda point: point.x)
        if not points:
            continue
        name = written(value) if by is not None else ""
        if how == "means":
            points = [Point(point.x, point.y, None, point.tip) for point in points]
            curves.append(Curve("", points, slot, shape, joined=False))
            points = _means(points)
            curves.append(Curve(name, points, slot, shape, dash, dots=False))
        else:
            curves.append(Curve(name, points, slot, shape, dash, joined=how == "alone", band=how == "alone"))
    return curves, how


def _point(key: Key, trial: Trial, sweep: Sweep) -> Point | None:
    """A trial in the chart against a key; None where it has no number there."""
    x, value = key.number_of(trial), trial.value(sweep.metric)
    if x is None or value is None:
        return None
    tip = f"Trial {trial.name}, {settings(sweep, trial.params)}: {sweep.write(value)}"
    return Point(x, value, trial.between(sweep.metric), tip)


def _means(points: Sequence[Point]) -> list[Point]:
    found: dict[float, list[float]] = {}
    for point in points:
        found.setdefault(point.x, []).append(point.y)
    return [Point(x, sum(values) / len(values), None, "") for x, values in found.items()]


def same(a: object, b: object) -> bool:
    """Whether two values of a config are one."""
    return json.dumps(a, default=str) == json.dumps(b, default=str)


def _axis(key: Key) -> Axis:
    """All values as ticks where they are few, else round numbers; those that would touch on a phone are left out."""
    numbers = [float(str(value)) for value in key.values]
    low, high = numbers[0], numbers[-1]
    wanted = numbers if key.listed and len(numbers) <= MOST_TICKS else (log_ticks if key.log else ticks)(low, high)
    place = spaced(low, high, math.log if key.log else float)
    kept: list[float] = []
    for tick in wanted:
        # a character takes about a thirtieth of the narrowest pane
        if not kept or place(tick) - place(kept[-1]) > 0.02 + 0.033 * (len(written(tick)) + len(written(kept[-1]))) / 2:
            kept.append(tick)
    label = f"{cut(key.name, 28)}{', logarithmic' if key.log else ''}"
    return Axis(label, kept, written, key.log)


def write_tick(measure: Metric) -> Callable[[float, int], str]:
    """Writes a tick of the metric with so many decimals."""
    if measure.unit == "share":
        return lambda tick, places: f"{decimal(100 * tick, max(places - 2, 0))}%"
    return lambda tick, places: f"{tick:.{places}f}"


def _said(by: Key | None, others: Sequence[Key], how: str, level: bool) -> str:
    """How to read the chart."""
    if how == "alone":
        said = "The band is the 95% interval of each trial’s mean."
    elif how == "means":
        said = f"Every marker is a trial; the line is the mean over {_listed(others)}."
    else:
        said = "Every marker is a trial, its whisker the 95% interval; trials differ in more than this, so there is no line."
    if by is not None:
        said = f"One {'curve' if how != 'dots' else 'marker'} for each value of {by.name}, named at the right. {said}"
    return said + (" The dashed level is the same student on labels alone." if level else "")


def _listed(keys: Sequence[Key]) -> str:
    names = [key.name for key in keys]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _described(key: Key, sweep: Sweep) -> str:
    ordered = sorted(sweep.complete, key=lambda trial: key.number_of(trial) or 0.0)
    said = [
        f"{settings(sweep, trial.params)}: {sweep.write(trial.value(sweep.metric))}" for trial in ordered[:MOST_SAID]
    ]
    more = len(ordered) - len(said)
    value, _ = sweep.scratch
    against = f" Labels alone: {sweep.write(value)}." if value is not None else ""
    return "; ".join(said) + (f"; and {more} more in the table" if more > 0 else "") + f".{against}"


def coordinates(sweep: Sweep) -> Any:
    """All keys at once, in parallel coordinates; None where one key varies or fewer than three trials are complete."""
    if len(sweep.keys) < 2 or len(sweep.complete) < 3 or sweep.best is None:
        return None
    values = [value for trial in sweep.complete if (value := trial.value(sweep.metric)) is not None]
    low, high = min(values), max(values)
    # better lies at the right, whichever way the metric points
    ends = (low, high) if sweep.higher else (high, low)
    last = spaced(*ends, transform=lambda value: value if sweep.higher else -value)
    axes = [Coordinate(f"{key.name}{', logarithmic' if key.log else ''}", _ticks(key)) for key in sweep.keys]
    axes.append(Coordinate(f"validation {sweep.measure.name}", [(last(end), sweep.write(end)) for end in ends]))
    count = max(len(sweep.complete) - 1, 1)
    strands: dict[str, Strand] = {}
    for rank, trial in enumerate(sweep.complete):
        value, places = trial.value(sweep.metric), [_place(key, trial) for key in sweep.keys]
        known = [place for place in places if place is not None]
        # a trial without one of the keys has no line
        if value is not None and len(known) == len(places):
            tip = f"Trial {trial.name}, {settings(sweep, trial.params)}: {sweep.write(value)}"
            strands[trial.name] = Strand([*known, last(value)], 1 - rank / count, tip)
    best = strands.get(sweep.best.name)
    if best is None:
        return None
    return parallel(
        "chart-parallel",
        "All trials in parallel coordinates",
        f"{len(strands)} trials over {_listed(sweep.keys)}, ranked by validation {sweep.measure.name}. Best: {best.tip}. The table "
        "below has every number.",
        axes,
        list(strands.values()),
        best,
    )


def _place(key: Key, trial: Trial) -> float | None:
    """Where a trial lies on a key's axis: by its number, or evenly spaced among the values; None where it has none."""
    if key.numeric:
        value = key.number_of(trial)
        return None if value is None else _scale(key)(value)
    places = [index for index, value in enumerate(key.values) if key.key in trial.params and same(value, key.of(trial))]
    return places[0] / max(len(key.values) - 1, 1) if places else None


def _scale(key: Key) -> Callable[[float], float]:
    numbers = [float(str(value)) for value in key.values]
    return spaced(numbers[0], numbers[-1], math.log if key.log else float)


def _ticks(key: Key) -> list[tuple[float, str]]:
    if key.numeric:
        axis, scale = _axis(key), _scale(key)
        return [(scale(tick), written(tick)) for tick in axis.ticks]
    # each has its share of the width
    room = max(6, 44 // len(key.values))
    return [(index / max(len(key.values) - 1, 1), cut(written(value), room)) for index, value in enumerate(key.values)]
