"""Parallel coordinates, lying down: an axis a line, one below the other, so that names of any length fit on a phone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tutelage.report.charts import cut, figure, join, mark

#: Between an axis and the next, in pixels.
PITCH = 84
#: Of the first axis, from the upper edge.
TOP = 30
#: Where the axes begin and end, in per cent of the width.
LEFT, RIGHT = 5.0, 95.0
#: How many shades a line may have, worst to best.
SHADES = 5


@dataclass(frozen=True)
class Coordinate:
    """One axis: its name, and what stands at its ticks, ``(share of the axis, text)`` from left to right."""

    name: str
    ticks: Sequence[tuple[float, str]]


@dataclass(frozen=True)
class Strand:
    """One configuration: its place on every axis, 0 to 1, how good it is in rank, 0 to 1, and what it is in words."""

    places: Sequence[float]
    rank: float
    tip: str


def parallel(
    chart_id: str, title: str, description: str, axes: Sequence[Coordinate], strands: Sequence[Strand], best: Strand
) -> Markup:
    """Every strand from the first axis to the last, the better ones darker and on top, the best one marked.

    Args:
        chart_id: unique in the page.
        title: for the ``<title>``.
        description: what a reader who cannot see it should know.
        axes: at least two; the last is what the strands are ranked by.
        strands: at least one.
        best: among them.
    """
    bottom = TOP + PITCH * (len(axes) - 1)
    ordered = [strand for strand in sorted(strands, key=lambda strand: strand.rank) if strand is not best]
    lines = [_line(strand, len(axes), f"shade-{1 + min(int(SHADES * strand.rank), SHADES - 1)}") for strand in ordered]
    drawn = Markup(
        '<svg class="lines" x="{}%" y="{}" width="{}%" height="{}" viewBox="0 0 1000 {}" preserveAspectRatio="none">{}</svg>'
    ).format(
        LEFT,
        TOP,
        RIGHT - LEFT,
        bottom - TOP,
        1000 * (len(axes) - 1),
        join([*lines, _line(best, len(axes), "s-kd winner")]),
    )
    return figure(
        chart_id,
        title,
        description,
        bottom + 24,
        join([drawn, *(_axis(axis, place) for place, axis in enumerate(axes)), _marks(best)]),
    )


def spaced(low: float, high: float, transform: Callable[[float], float]) -> Callable[[float], float]:
    """The share of an axis from ``low`` to ``high`` at which a number lies; the middle where there is but one."""
    first, last = transform(low), transform(high)
    return lambda value: 0.5 if last == first else (transform(value) - first) / (last - first)


def _line(strand: Strand, axes: int, kind: str) -> Markup:
    points = " ".join(f"{1000 * share:.0f},{1000 * place}" for place, share in enumerate(strand.places[:axes]))
    return Markup('<polyline class="{}" points="{}"><title>{}</title></polyline>').format(kind, points, strand.tip)


def _axis(axis: Coordinate, place: int) -> Markup:
    height = TOP + PITCH * place
    parts = [
        Markup('<line class="axis" x1="{}%" x2="{}%" y1="{y}" y2="{y}"/>').format(LEFT, RIGHT, y=height),
        Markup('<text class="name" x="0" y="{}">{}</text>').format(height - 13, cut(axis.name, 40)),
    ]
    for share, words in axis.ticks:
        side, at = _side(share, words)
        parts.append(
            Markup(
                '<line class="axis" x1="{x}" x2="{x}" y1="{}" y2="{}"/><text class="tick halo{}" x="{}" y="{}">{}</text>'
            ).format(height - 3, height + 3, side, at, height + 17, words, x=_across(share))
        )
    return join(parts)


def _side(share: float, words: str) -> tuple[str, str]:
    """Where a tick's words stand: below it, or within the chart's edge where they would leave it."""
    if len(words) > 4 and share < 0.02:
        return " from", "0"
    if len(words) > 4 and share > 0.98:
        return " end", "100%"
    return "", _across(share)


def _marks(best: Strand) -> Markup:
    marks = [mark("circle", _across(share), TOP + PITCH * place) for place, share in enumerate(best.places)]
    return Markup('<g class="s-kd">{}</g>').format(join(marks))


def _across(share: float) -> str:
    return f"{LEFT + (RIGHT - LEFT) * share:.2f}%"
