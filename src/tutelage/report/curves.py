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
    left, right = 10.5, 72.5 if named else 97.0
    top, bottom = 10.0, height - 40.0
    low, high = window
    last_step = max(series_.end[0] for series_ in series) or 1.0

    def across(step: float) -> str:
        return f"{left + (right - left) * step / last_step:.2f}%"

    def down(value: float) -> float:
        return bottom - (bottom - top) * (value - low) / ((high - low) or 1)

    parts: list[Markup] = []
    for tick in ticks(low, high):
        parts.append(
            Markup(
                '<line class="grid" x1="{}%" x2="{}%" y1="{y}" y2="{y}"/>'
                '<text class="tick end" x="{}%" y="{}">{}</text>'
            ).format(left, right, left - 1.2, f"{down(tick) + 4:.1f}", write(tick), y=f"{down(tick):.1f}")
        )
    for tick in ticks(0, last_step, 4):
        parts.append(
            Markup('<text class="tick" x="{}" y="{}">{}</text>').format(across(tick), bottom + 16, f"{tick:,.0f}")
        )
    parts.append(
        Markup('<text class="tick" x="{}%" y="{}">optimiser steps</text>').format(
            (left + right) / 2, f"{bottom + 32:g}"
        )
    )
    parts.append(drawn_lines(series, (left, right, top, bottom), last_step, window))
    if named:
        heights = spread([down(min(max(s.end[1], low), high)) for s in series], 17, top + 4, bottom)
        for item, place in zip(series, heights, strict=True):
            parts.append(
                Markup(
                    '<g class="s-{}"><line class="leader" x1="{}" x2="{}%" y1="{}" y2="{y}"/>{}'
                    '<text class="name" x="{}%" dx="13" y="{}">{}</text></g>'
                ).format(
                    item.arm.slot,
                    across(item.end[0]),
                    right + 1.2,
                    f"{down(min(max(item.end[1], low), high)):.1f}",
                    mark(item.arm.shape, f"{right + 2.6}%", place),
                    right + 2.6,
                    f"{place + 4:.1f}",
                    item.arm.short,
                    y=f"{place:.1f}",
                )
            )
    return figure(chart_id, title, description, height, join(parts))


def drawn_lines(
    series: Sequence[Series], box: tuple[float, float, float, float], last_step: float, window: tuple[float, float]
) -> Markup:
    """The polylines in a pane of their own, stretched to the box (two percentages, two heights) and cut at its edge."""
    left, right, top, bottom = box
    low, high = window
    drawn: list[Markup] = []
    for item in series:
        for line in item.lines:
            points = " ".join(
                f"{1000 * step / last_step:.0f},{1000 * (high - value) / ((high - low) or 1):.0f}"
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
    ).format(left, top, right - left, bottom - top, join(drawn))
