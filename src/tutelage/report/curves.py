"""Training curves: one thin line a seed, named at its end, with its arm's colour, dashes and marker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tutelage.report.charts import figure, join, mark, ticks
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


@dataclass(frozen=True)
class Pane:
    """Where a chart's lines lie (``left`` and ``right`` in per cent of its width, ``top`` and ``bottom`` in pixels) and what it spans."""

    left: float
    right: float
    top: float
    bottom: float
    last_step: float
    window: tuple[float, float]

    def across(self, step: float) -> str:
        """The place of a step, as a percentage of the width."""
        return f"{self.left + (self.right - self.left) * step / self.last_step:.2f}%"

    def down(self, value: float) -> float:
        """The height of a value, in pixels from the chart's upper edge."""
        low, high = self.window
        return self.bottom - (self.bottom - self.top) * (value - low) / ((high - low) or 1)


def thinned(line: Line) -> Line:
    """At most ``MOST_POINTS`` points of the line, evenly spread, the first and the last among them."""
    if len(line) <= MOST_POINTS:
        return line
    stride = (len(line) - 1) / (MOST_POINTS - 1)
    return [line[round(index * stride)] for index in range(MOST_POINTS)]


def spread(wanted: Sequence[float], gap: float, top: float, bottom: float) -> list[float]:
    """The wanted heights, moved as little as a sweep can so that neighbours are ``gap`` apart within ``[top, bottom]``."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    placed = [0.0] * len(wanted)
    above = top - gap
    for index in order:
        above = placed[index] = max(wanted[index], above + gap)
    below = bottom + gap
    for index in reversed(order):
        below = placed[index] = min(placed[index], below - gap)
    return placed


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
        named: writes the arms' names at the ends of their lines.
    """
    last_step = max(series_.end[0] for series_ in series) or 1.0
    pane = Pane(10.5, 72.5 if named else 97.0, 10.0, height - 40.0, last_step, window)
    parts = [axes(pane, write), drawn_lines(series, pane)]
    if named:
        parts.append(end_names(series, pane))
    return figure(chart_id, title, description, height, join(parts))


def axes(pane: Pane, write: Callable[[float], str]) -> Markup:
    """The lines and ticks of the values, the ticks of the steps, and what the steps are."""
    parts: list[Markup] = []
    for tick in ticks(*pane.window):
        parts.append(
            Markup(
                '<line class="grid" x1="{}%" x2="{}%" y1="{y}" y2="{y}"/>'
                '<text class="tick end" x="{}%" y="{}">{}</text>'
            ).format(
                pane.left,
                pane.right,
                pane.left - 1.2,
                f"{pane.down(tick) + 4:.1f}",
                write(tick),
                y=f"{pane.down(tick):.1f}",
            )
        )
    for tick in ticks(0, pane.last_step, 4):
        parts.append(
            Markup('<text class="tick" x="{}" y="{}">{}</text>').format(
                pane.across(tick), pane.bottom + 16, f"{tick:,.0f}"
            )
        )
    parts.append(
        Markup('<text class="tick" x="{}%" y="{}">optimiser steps</text>').format(
            (pane.left + pane.right) / 2, f"{pane.bottom + 32:g}"
        )
    )
    return join(parts)


def end_names(series: Sequence[Series], pane: Pane) -> Markup:
    """The arms' names at the ends of their lines, moved apart where they would overlap, each with a leader to its line."""
    low, high = pane.window
    ends = [pane.down(min(max(item.end[1], low), high)) for item in series]
    parts: list[Markup] = []
    for item, end, place in zip(series, ends, spread(ends, 17, pane.top + 4, pane.bottom), strict=True):
        parts.append(
            Markup(
                '<g class="s-{}"><line class="leader" x1="{}" x2="{}%" y1="{}" y2="{y}"/>{}'
                '<text class="name" x="{}%" dx="13" y="{}">{}</text></g>'
            ).format(
                item.arm.slot,
                pane.across(item.end[0]),
                pane.right + 1.2,
                f"{end:.1f}",
                mark(item.arm.shape, f"{pane.right + 2.6}%", place),
                pane.right + 2.6,
                f"{place + 4:.1f}",
                item.arm.short,
                y=f"{place:.1f}",
            )
        )
    return join(parts)


def drawn_lines(series: Sequence[Series], pane: Pane) -> Markup:
    """The polylines in a drawing of their own, stretched to the pane and cut at its edge."""
    low, high = pane.window
    drawn: list[Markup] = []
    for item in series:
        for line in item.lines:
            points = " ".join(
                f"{1000 * step / pane.last_step:.0f},{1000 * (high - value) / ((high - low) or 1):.0f}"
                for step, value in thinned(line)
            )
            drawn.append(
                Markup('<polyline class="s-{}" points="{}"{}/>').format(
                    item.arm.slot, points, Markup(' stroke-dasharray="{}"').format(item.arm.dash)
                )
                if item.arm.dash
                else Markup('<polyline class="s-{}" points="{}"/>').format(item.arm.slot, points)
            )
    return Markup(
        '<svg class="lines" x="{}%" y="{}" width="{}%" height="{}" viewBox="0 0 1000 1000" preserveAspectRatio="none">{}</svg>'
    ).format(pane.left, pane.top, pane.right - pane.left, pane.bottom - pane.top, join(drawn))
