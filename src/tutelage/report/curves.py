"""Training curves: one thin line a seed, named at its end, with its arm's colour, dashes and marker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tutelage.report.charts import figure, join, mark, ticks
from tutelage.report.panes import EndName, Pane, drawing, end_names, position_axis, value_axis
from tutelage.report.words import Arm

#: More points than this a line would fill the file and show nothing more at this size.
MOST_POINTS = 160

Line = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Series:
    """The lines of one arm, one a seed: points ``(step, value)``."""

    arm: Arm
    lines: Sequence[Line]

    @property
    def end(self) -> tuple[float, float]:
        """The last step, and the mean over seeds of the last value."""
        last = [line[-1] for line in self.lines]
        return max(step for step, _ in last), sum(value for _, value in last) / len(last)


def thinned(line: Line) -> Line:
    """At most ``MOST_POINTS`` points of the line, evenly spread, the first and the last among them."""
    if len(line) <= MOST_POINTS:
        return line
    stride = (len(line) - 1) / (MOST_POINTS - 1)
    return [line[round(index * stride)] for index in range(MOST_POINTS)]


def line_chart(
    chart_id: str,
    title: str,
    description: str,
    series: Sequence[Series],
    window: tuple[float, float],
    write: Callable[[float], str],
    height: int = 260,
    named: bool = True,
) -> Markup:
    """Values against optimiser steps; lines that leave the window of values are cut at its edge.

    Args:
        chart_id: unique in the page.
        title: for the ``<title>``.
        description: what a reader who cannot see it should know.
        series: at least one, each with at least one line of at least one point.
        window: the lowest and highest value shown.
        write: writes a tick of the vertical axis.
        height: in pixels.
        named: writes the arms' names at the ends of their lines; else their markers stand there, for a legend or a heading beside it.
    """
    last_step = max(series_.end[0] for series_ in series) or 1.0
    pane = Pane(10.5, 72.5 if named else 97.0, 10.0, height - 40.0, (0.0, last_step), window)
    parts = [
        value_axis(pane, ticks(*window), write),
        position_axis(pane, ticks(0, last_step, 4), lambda tick: f"{tick:,.0f}", "optimiser steps"),
        drawn_lines(series, pane),
    ]
    if named:
        parts.append(
            end_names([EndName(item.arm.short, item.arm.slot, item.arm.shape, *item.end) for item in series], pane)
        )
    else:
        parts += [_end_mark(item, pane) for item in series]
    return figure(chart_id, title, description, height, join(parts))


def _end_mark(item: Series, pane: Pane) -> Markup:
    step, value = item.end
    down = pane.down(min(max(value, pane.window[0]), pane.window[1]))
    return Markup('<g class="s-{}">{}</g>').format(
        item.arm.slot, mark(item.arm.shape, pane.across(step), round(down, 1))
    )


def drawn_lines(series: Sequence[Series], pane: Pane) -> Markup:
    """The polylines, a thin one a seed."""
    return drawing(
        pane,
        [
            polyline([pane.stretched(*point) for point in thinned(line)], item.arm.slot, item.arm.dash)
            for item in series
            for line in item.lines
        ],
    )


def polyline(points: Sequence[str], slot: str, dash: str, kind: str = "") -> Markup:
    """A line through stretched points.

    Args:
        points: each ``x,y``.
        slot: the colour slot.
        dash: its dashes, or none.
        kind: a class of its own.
    """
    dashes = Markup(' stroke-dasharray="{}"').format(dash) if dash else ""
    return Markup('<polyline class="s-{}" points="{}"{}/>').format(
        f"{slot} {kind}" if kind else slot, " ".join(points), dashes
    )
