"""A metric against a number that was varied: points with their intervals, and the levels they are to be held against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tutelage.report.charts import cut, domain, figure, join, mark, ticks
from tutelage.report.curves import polyline
from tutelage.report.panes import EndName, Pane, drawing, end_names, position_axis, value_axis

#: Characters of a curve’s name beside the chart: more would not fit on a phone.
LONGEST = 10


@dataclass(frozen=True)
class Point:
    """One measurement: its interval is drawn as a whisker, or as a band along its curve."""

    x: float
    y: float
    ci: tuple[float, float] | None
    tip: str


@dataclass(frozen=True)
class Curve:
    """Points of one kind.

    Args:
        name: written at its end; empty for none.
        points: at least one, from left to right.
        slot: the colour slot.
        shape: of the markers.
        dash: of the line through the points.
        joined: whether there is such a line; dots that differ in more than ``x`` have none.
        band: draws the intervals as a band along the line, where every point has one, and else as whiskers.
        dots: whether the points have markers.
    """

    name: str
    points: Sequence[Point]
    slot: str
    shape: str
    dash: str = ""
    joined: bool = True
    band: bool = False
    dots: bool = True


@dataclass(frozen=True)
class Level:
    """A value that does not depend on the number: a dashed line across with a band of its interval."""

    name: str
    value: float
    ci: tuple[float, float] | None
    slot: str
    shape: str
    dash: str


@dataclass(frozen=True)
class Axis:
    """The horizontal axis: what it is, its ticks, how they are written, and whether it is logarithmic."""

    label: str
    ticks: Sequence[float]
    write: Callable[[float], str]
    log: bool = False


def graph(
    chart_id: str,
    title: str,
    description: str,
    curves: Sequence[Curve],
    levels: Sequence[Level],
    axis: Axis,
    write: Callable[[float, int], str],
    height: int = 300,
) -> Markup:
    """Curves and levels in one pane, their names at the right.

    Args:
        chart_id: unique in the page.
        title: for the ``<title>``.
        description: what a reader who cannot see it should know.
        curves: at least one.
        levels: in any order.
        axis: the horizontal one.
        write: writes a tick of the vertical axis, given how many decimals tell the ticks apart.
        height: in pixels.
    """
    points = [point for curve in curves for point in curve.points]
    named = bool(levels) or any(curve.name for curve in curves)
    ends = [end for item in (*points, *levels) for end in (item.ci or ())]
    pane = Pane(
        12.0,
        69.5 if named else 97.0,
        10.0,
        height - 42.0,
        _span([*axis.ticks, *(point.x for point in points)], axis.log),
        domain([*(point.y for point in points), *(level.value for level in levels), *ends]),
        log=axis.log,
    )
    marks = ticks(*pane.window)
    places = next((count for count in range(6) if all(abs(round(tick, count) - tick) < 1e-9 for tick in marks)), 6)
    parts = [
        value_axis(pane, marks, lambda tick: write(tick, places)),
        position_axis(pane, axis.ticks, axis.write, axis.label),
        drawing(
            pane,
            [*(_level(level, pane) for level in levels), *(_line(curve, pane, len(curves) == 1) for curve in curves)],
        ),
        join(_markers(curve, pane) for curve in curves if curve.dots),
        end_names(_names(curves, levels, pane), pane),
    ]
    return figure(chart_id, title, description, height, join(parts))


def _span(values: Sequence[float], log: bool) -> tuple[float, float]:
    """The range with room for a marker at both ends."""
    low, high = min(values), max(values)
    if log:
        air = (high / low) ** 0.06 if high > low else 2.0
        return low / air, high * air
    air = 0.06 * (high - low) or 1.0
    return low - air, high + air


def _banded(curve: Curve) -> bool:
    return curve.band and len(curve.points) > 1 and all(point.ci is not None for point in curve.points)


def _level(level: Level, pane: Pane) -> Markup:
    line = polyline(
        [pane.stretched(end, level.value) for end in pane.span], level.slot, level.dash or "6 4", kind="level"
    )
    return (
        line
        if level.ci is None
        else _band([(end, level.ci) for end in pane.span], level.slot, pane, "band faint") + line
    )


def _line(curve: Curve, pane: Pane, alone: bool) -> Markup:
    band = Markup("")
    if _banded(curve):
        ends = [(point.x, point.ci) for point in curve.points if point.ci is not None]
        # an only curve's band is to be seen, and those of several are to be seen through
        band = _band(ends, curve.slot, pane, "band" if alone else "band faint")
    if not curve.joined:
        return band
    return band + polyline(
        [pane.stretched(point.x, point.y) for point in curve.points], curve.slot, curve.dash, kind="bold"
    )


def _band(ends: Sequence[tuple[float, tuple[float, float]]], slot: str, pane: Pane, kind: str = "band") -> Markup:
    corners = [pane.stretched(x, ci[1]) for x, ci in ends] + [pane.stretched(x, ci[0]) for x, ci in reversed(ends)]
    return Markup('<polygon class="{} s-{}" points="{}"/>').format(kind, slot, " ".join(corners))


def _markers(curve: Curve, pane: Pane) -> Markup:
    parts: list[Markup] = []
    for point in curve.points:
        if point.ci is not None and not _banded(curve):
            parts.append(
                Markup('<line class="whisker thin" x1="{x}" x2="{x}" y1="{}" y2="{}"/>').format(
                    f"{pane.down(point.ci[1]):.1f}", f"{pane.down(point.ci[0]):.1f}", x=pane.across(point.x)
                )
            )
        parts.append(mark(curve.shape, pane.across(point.x), round(pane.down(point.y), 1), point.tip))
    return Markup('<g class="s-{}">{}</g>').format(curve.slot, join(parts))


def _end(curve: Curve, pane: Pane) -> tuple[float, float]:
    """The end of a curve's line; of markers without one, the upper right corner, where their names are listed."""
    return (curve.points[-1].x, curve.points[-1].y) if curve.joined else (pane.span[1], pane.window[1])


def _names(curves: Sequence[Curve], levels: Sequence[Level], pane: Pane) -> list[EndName]:
    found = [
        EndName(cut(curve.name, LONGEST), curve.slot, curve.shape, *_end(curve, pane), leads=curve.joined)
        for curve in curves
        if curve.name
    ]
    return found + [EndName(lv.name, lv.slot, lv.shape, pane.span[1], lv.value) for lv in levels]
