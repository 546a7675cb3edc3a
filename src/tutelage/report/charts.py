"""Small SVG charts, drawn by hand: colours come from the page's CSS variables, texts keep their size at every width.

Horizontal positions are percentages of the width and vertical ones pixels, so that a chart is as wide as its column, on
a phone and on paper, while its letters stay legible. Each is ``role="img"`` with a title and a description in words.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

SHAPES = {
    "circle": "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0z",
    "square": "M-4.5-4.5h9v9h-9z",
    "diamond": "M0-6.2L6.2 0L0 6.2L-6.2 0z",
    "triangle": "M0-5.6L5.6 4.4H-5.6z",
    "cross": "M-5-2h3v-3h4v3h3v4h-3v3h-4v-3h-3z",
    "down": "M0 5.6L5.6-4.4H-5.6z",
    "saltire": "M-5-2.6L-2.6-5L0-2.4L2.6-5L5-2.6L2.4 0L5 2.6L2.6 5L0 2.4L-2.6 5L-5 2.6L-2.4 0z",
    "bow": "M-5.8-4.6L0-1.2L5.8-4.6V4.6L0 1.2L-5.8 4.6z",
    "hourglass": "M-4.6-5.8H4.6L1.2 0L4.6 5.8H-4.6L-1.2 0z",
    "star": "M0-6.4L1.7-2.3L6.1-2L2.8 0.9L3.8 5.2L0 2.9L-3.8 5.2L-2.8 0.9L-6.1-2L-1.7-2.3z",
    "hexagon": "M0-5.8L5-2.9V2.9L0 5.8L-5 2.9V-2.9z",
    "pentagon": "M0-5.9L5.6-1.8L3.5 4.8H-3.5L-5.6-1.8z",
    "right": "M-4.4-5.6L5.6 0L-4.4 5.6z",
    "left": "M4.4-5.6L-5.6 0L4.4 5.6z",
}

#: Of an interval chart, in pixels: nearer to its own name than to the next line's.
ROW_HEIGHT = 56
#: Where in its line the marker is, in pixels.
MIDDLE = 32
#: Characters of a row's name that leave room for its number on a phone.
LONGEST_LABEL = 32


@dataclass(frozen=True)
class Row:
    """One line of an interval chart; a value of None is drawn as nothing, its ``reading`` says why.

    Args:
        label: the name of the line.
        reading: the number in words, at the right.
        value: the mean or the difference.
        ci: its 95% interval, or None where there is none.
        seeds: the value of each seed, drawn as small ticks.
        slot: the colour slot, ``s-<slot>`` in the CSS.
        shape: a key of ``SHAPES``.
        hollow: draws the marker as an outline: a value that proves nothing.
    """

    label: str
    reading: str
    value: float | None
    ci: tuple[float, float] | None
    seeds: Sequence[float]
    slot: str
    shape: str
    hollow: bool = False


def join(parts: Iterable[Markup]) -> Markup:
    """The parts one after another."""
    return Markup("").join(parts)


def figure(chart_id: str, title: str, description: str, height: int, body: Markup, view_box: str = "") -> Markup:
    """An ``<svg role="img">`` as wide as its column; with a view box it scales as a whole instead."""
    size = Markup('viewBox="{}"').format(view_box) if view_box else Markup('width="100%" height="{}"').format(height)
    return Markup(
        '<svg class="chart" role="img" aria-labelledby="{id}-t {id}-d" {size}>'
        '<title id="{id}-t">{title}</title><desc id="{id}-d">{description}</desc>{body}</svg>'
    ).format(id=chart_id, size=size, title=title, description=description, body=body)


def mark(shape: str, x: str, y: float, tip: str = "", hollow: bool = False) -> Markup:
    """A marker whose place may be a percentage: a path cannot have one, the ``<svg>`` around it can."""
    return Markup('<svg x="{}" y="{}" class="mark{}"><path d="{}">{}</path></svg>').format(
        x, f"{y:g}", " hollow" if hollow else "", SHAPES[shape], Markup("<title>{}</title>").format(tip) if tip else ""
    )


def cut(name: str, longest: int) -> str:
    """A name that has room for so many characters."""
    return name if len(name) <= longest else name[: longest - 1] + "…"


def key_mark(slot: str, shape: str) -> Markup:
    """An arm's marker for use within a line of text; the name stands beside it, so it is hidden from screen readers."""
    return Markup(
        '<svg class="key s-{}" viewBox="-7 -7 14 14" aria-hidden="true" focusable="false"><path d="{}"/></svg>'
    ).format(slot, SHAPES[shape])


def ticks(low: float, high: float, at_most: int = 5) -> list[float]:
    """Round numbers within ``[low, high]``, a step of 1, 2, 2.5 or 5 times a power of ten apart."""
    if not high > low:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / at_most))
    for factor in (1.0, 2.0, 2.5, 5.0, 10.0, 20.0):
        step = factor * power
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first + 1 <= at_most:
            return [count * step for count in range(first, last + 1)]
    return [low, high]


def up_to_a_tick(low: float, high: float) -> float:
    """The least upper end of an axis from ``low`` that holds ``high`` and is a tick of its own."""
    if not high > low:
        return high
    top = high
    while True:
        marks = ticks(low, top)
        # another end may have other ticks
        if marks[-1] >= high and ticks(low, marks[-1])[-1] >= high:
            return marks[-1]
        top = marks[-1] + (marks[1] - marks[0] if len(marks) > 1 else high - low)


def domain(values: Iterable[float], keep: Sequence[float] = ()) -> tuple[float, float]:
    """The range of the values (and of those to ``keep`` in sight) with some air on both sides."""
    found = [*values, *keep] or [0.0, 1.0]
    low, high = min(found), max(found)
    air = 0.06 * (high - low) or max(abs(high), 1e-3) * 0.05
    return low - air, high + air


@dataclass(frozen=True)
class Road:
    """A line from one row's marker to another's: who was taught by whom."""

    start: int
    end: int
    slot: str
    dash: str = ""


def interval_chart(
    chart_id: str,
    title: str,
    description: str,
    rows: Sequence[Row],
    write: Callable[[float], str],
    zero: bool = False,
    roads: Sequence[Road] = (),
) -> Markup:
    """Dots with their 95% intervals, one line an arm or a comparison, the name above and the number at the right.

    Args:
        chart_id: unique in the page.
        title: for the ``<title>``.
        description: what a reader who cannot see it should know.
        rows: at least one.
        write: writes a tick.
        zero: draws the line of no difference and keeps it in sight.
        roads: between rows that have a value.
    """
    known = [v for row in rows for v in (row.value, *(row.ci or ()), *row.seeds) if v is not None]
    low, high = domain(known, keep=(0.0,) if zero else ())

    def at(value: float) -> str:
        return f"{2 + 96 * (value - low) / (high - low):.2f}%"

    bottom = ROW_HEIGHT * len(rows)
    parts: list[Markup] = []
    for tick in ticks(low, high):
        # beside the markers alone: through the names it would strike them out
        origin = zero and abs(tick) < 1e-12
        spans = [(top + 21, top + ROW_HEIGHT) for top in range(0, bottom, ROW_HEIGHT)] if origin else [(0, bottom)]
        parts += [
            Markup('<line class="{}" x1="{x}" x2="{x}" y1="{}" y2="{}"/>').format(
                "zero" if origin else "grid", *span, x=at(tick)
            )
            for span in spans
        ]
        parts.append(Markup('<text class="tick" x="{}" y="{}">{}</text>').format(at(tick), bottom + 16, write(tick)))
    for road in roads:
        start, end = rows[road.start].value, rows[road.end].value
        if start is not None and end is not None:
            parts.append(
                Markup('<line class="road s-{}" x1="{}" x2="{}" y1="{}" y2="{}" stroke-dasharray="{}"/>').format(
                    road.slot,
                    at(start),
                    at(end),
                    *(ROW_HEIGHT * row + MIDDLE for row in (road.start, road.end)),
                    road.dash or "none",
                )
            )
    for index, row in enumerate(rows):
        parts.append(interval_row(row, ROW_HEIGHT * index, at))
    return figure(chart_id, title, description, bottom + 22, join(parts))


def interval_row(row: Row, top: int, at: Callable[[float], str]) -> Markup:
    """One line of an interval chart, ``ROW_HEIGHT`` pixels high."""
    middle = top + MIDDLE
    parts = [
        Markup('<text class="name" x="0" y="{y}">{}</text><text class="value" x="100%" y="{y}">{}</text>').format(
            cut(row.label, LONGEST_LABEL), row.reading, y=top + 16
        )
    ]
    for value in row.seeds:
        parts.append(
            Markup('<line class="seed" x1="{x}" x2="{x}" y1="{}" y2="{}"/>').format(middle - 8, middle + 8, x=at(value))
        )
    if row.ci is not None:
        parts.append(
            Markup('<line class="whisker" x1="{}" x2="{}" y1="{y}" y2="{y}"/>').format(
                at(row.ci[0]), at(row.ci[1]), y=middle
            )
        )
    if row.value is not None:
        parts.append(mark(row.shape, at(row.value), middle, f"{row.label}: {row.reading}", row.hollow))
    return Markup('<g class="s-{}">{}</g>').format(row.slot, join(parts))


def share_bar(share: float) -> Markup:
    """A bar of a share of 1, for a table cell whose number stands beside it."""
    width = f"{100 * min(max(share, 0.0), 1.0):.2f}%"
    return Markup(
        '<svg class="bar" aria-hidden="true" focusable="false" width="100%" height="6">'
        '<rect class="track" width="100%" height="6" rx="3"/><rect class="fill" width="{}" height="6" rx="3"/></svg>'
    ).format(width)


def dot_strip(dots: Sequence[tuple[str, str, float]], low: float) -> Markup:
    """Markers ``(slot, shape, value)`` on a line from ``low`` to 1, for a table cell whose numbers stand beside it."""
    parts = [
        Markup('<g class="s-{}">{}</g>').format(
            slot, mark(shape, f"{4 + 92 * (value - low) / ((1 - low) or 1):.1f}%", 9)
        )
        for slot, shape, value in dots
    ]
    return Markup(
        '<svg class="strip" aria-hidden="true" focusable="false" width="100%" height="18">'
        '<line class="grid" x1="4%" x2="96%" y1="9" y2="9"/>{}</svg>'
    ).format(join(parts))


@dataclass(frozen=True)
class Bin:
    """A bin of a reliability diagram that holds at least one example."""

    low: float
    high: float
    confidence: float
    accuracy: float
    count: int


def reliability_diagram(chart_id: str, title: str, description: str, bins: Sequence[Bin], slot: str) -> Markup:
    """Accuracy against confidence: the dots' area is the number of examples, the stems the gap to the diagonal.

    Below the diagram, bars show where the examples are.
    """
    total = sum(b.count for b in bins) or 1
    most = max((b.count for b in bins), default=1)

    def x(value: float) -> float:
        return 34 + 190 * value

    def y(value: float) -> float:
        return 198 - 190 * value

    parts = [Markup('<rect class="pane" x="34" y="8" width="190" height="190"/>')]
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(
            Markup(
                '<line class="grid" x1="34" x2="224" y1="{y}" y2="{y}"/><text class="tick end" x="29" y="{ty}">{label}</text>'
                '<text class="tick" x="{x}" y="248">{label}</text>'
            ).format(y=y(tick), ty=y(tick) + 4, x=x(tick), label=f"{100 * tick:.0f}")
        )
    parts.append(Markup('<line class="zero" x1="34" y1="198" x2="224" y2="8"/>'))
    for b in bins:
        tip = f"{b.count:,} examples: said {100 * b.confidence:.0f}%, right {100 * b.accuracy:.0f}%"
        parts.append(
            Markup(
                '<line class="gap" x1="{x}" x2="{x}" y1="{}" y2="{y}"/>'
                '<circle class="dot" cx="{x}" cy="{y}" r="{}"><title>{}</title></circle>'
                '<rect class="count" x="{}" y="{}" width="{}" height="{}"/>'
            ).format(
                f"{y(b.confidence):.1f}",
                f"{2.2 + 7 * math.sqrt(b.count / total):.1f}",
                tip,
                f"{x(b.low) + 0.5:.1f}",
                f"{232 - 26 * b.count / most:.1f}",
                f"{max(190 * (b.high - b.low) - 1, 1):.1f}",
                f"{26 * b.count / most:.1f}",
                x=f"{x(b.confidence):.1f}",
                y=f"{y(b.accuracy):.1f}",
            )
        )
    parts.append(Markup('<line class="axis" x1="34" x2="224" y1="232" y2="232"/>'))
    body = Markup('<g class="s-{}">{}</g>').format(slot, join(parts))
    return figure(chart_id, title, description, 0, body, view_box="0 0 240 254")
