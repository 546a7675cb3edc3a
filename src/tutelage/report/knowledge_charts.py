"""The charts of what a teacher knows: softness and pull against temperature, and the matrix of classes thought alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tutelage.report.charts import figure, join
from tutelage.report.panes import EndName, Pane, drawing, end_names, log_ticks, position_axis, value_axis
from tutelage.report.words import decimal

#: Classes up to which a cell of the matrix has room for its number.
NUMBERED = 12
#: Of the strongest cell: ink on it must stay legible in both themes.
STRONGEST = 0.5

#: Half a step of temperature: the first and the last point stand clear of the pane's edges.
_EDGE = math.sqrt(2.0)


@dataclass(frozen=True)
class Softness:
    """One temperature's entropy, in nats: its mean over examples and the tenth and ninetieth percentile."""

    temperature: float
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class PullLine:
    """How the soft term's pull compares with the hard one's on one student: points ``(T, ratio)``, ratios above 0."""

    name: str
    slot: str
    shape: str
    dash: str
    points: Sequence[tuple[float, float]]


def softness_chart(
    chart_id: str, description: str, rows: Sequence[Softness], classes: int, advised: tuple[float, float] | None
) -> Markup:
    """Entropy against temperature with the band of most examples: classes at the left, nats at the right.

    An entropy's exponential is a number of classes, so that one axis, linear in nats, serves both.

    Args:
        chart_id: unique in the page.
        description: what a reader who cannot see it should know.
        rows: two or more, lowest temperature first.
        classes: C; the dashed line is that of a uniform target, ``ln C``.
        advised: the range of temperatures to try, shaded.
    """
    most = math.log(classes)
    pane = _pane([row.temperature for row in rows], (0.0, most * 1.06), right=90.0)
    band = [pane.stretched(row.temperature, row.high) for row in rows]
    band += [pane.stretched(row.temperature, row.low) for row in reversed(rows)]
    line = " ".join(pane.stretched(row.temperature, row.mean) for row in rows)
    counts = _class_ticks(classes)
    parts = [
        _advised(pane, advised),
        value_axis(pane, [math.log(count) for count in counts], lambda nats: f"{round(math.exp(nats)):,}"),
        *[
            Markup('<text class="tick" x="{}%" dx="17" y="{}">{}</text>').format(
                pane.right, f"{pane.down(math.log(count)) + 4:.1f}", decimal(math.log(count), 1)
            )
            for count in counts
        ],
        drawing(
            pane,
            [
                Markup('<polygon class="band s-teacher" points="{}"/>').format(" ".join(band)),
                Markup('<polyline class="trend s-teacher" points="{}"/>').format(line),
            ],
        ),
        Markup('<line class="zero" x1="{}%" x2="{}%" y1="{y}" y2="{y}"/>').format(
            pane.left, pane.right, y=f"{pane.down(most):.1f}"
        ),
        _dots(pane, "teacher", [(row.temperature, row.mean) for row in rows]),
        position_axis(pane, [row.temperature for row in rows], lambda tick: f"{tick:g}", "temperature"),
    ]
    return figure(chart_id, "Softness of the targets at each temperature", description, 320, join(parts))


def pull_chart(
    chart_id: str, description: str, lines: Sequence[PullLine], advised: tuple[float, float] | None
) -> Markup:
    """Length of the soft term's gradient over that of the hard one's against temperature, both axes logarithmic.

    Args:
        chart_id: unique in the page.
        description: what a reader who cannot see it should know.
        lines: one or two, each of two points or more.
        advised: the range of temperatures to try, shaded.
    """
    ratios = [ratio for line in lines for _, ratio in line.points]
    low, high = min(*ratios, 1.0) / 1.3, max(*ratios, 1.0) * 1.3
    pane = _pane([t for line in lines for t, _ in line.points], (math.log(low), math.log(high)), right=72.5)
    drawn: list[Markup] = []
    for line in lines:
        points = " ".join(pane.stretched(t, math.log(ratio)) for t, ratio in line.points)
        drawn.append(
            Markup('<polyline class="trend s-{}" points="{}"{}/>').format(
                line.slot, points, Markup(' stroke-dasharray="{}"').format(line.dash) if line.dash else ""
            )
        )
    names = [
        EndName(line.name, line.slot, line.shape, line.points[-1][0], math.log(line.points[-1][1])) for line in lines
    ]
    temperatures = sorted({t for line in lines for t, _ in line.points})
    parts = [
        _advised(pane, advised),
        value_axis(pane, [math.log(tick) for tick in log_ticks(low, high)], lambda tick: f"{math.exp(tick):g}"),
        Markup('<line class="zero" x1="{}%" x2="{}%" y1="{y}" y2="{y}"/>').format(
            pane.left, pane.right, y=f"{pane.down(0.0):.1f}"
        ),
        drawing(pane, drawn),
        *[_dots(pane, line.slot, [(t, math.log(ratio)) for t, ratio in line.points]) for line in lines],
        position_axis(pane, temperatures, lambda tick: f"{tick:g}", "temperature"),
        end_names(names, pane),
    ]
    return figure(chart_id, "Pull of the soft term over that of the hard one", description, 260, join(parts))


def matrix_chart(
    chart_id: str,
    description: str,
    names: Sequence[str],
    shares: Sequence[Sequence[float | None]],
    order: Sequence[int],
) -> Markup:
    """Which classes are thought alike: a row an answer, a column another class, the darker the more alike.

    It has a size of its own: a matrix squeezed to a phone's width could not be read, so its place must scroll.

    Args:
        chart_id: unique in the page.
        description: what a reader who cannot see it should know.
        names: of all classes.
        shares: of row i's remaining probability, what class j gets; None where nothing is known.
        order: of the classes, both ways.
    """
    grid = _Grid.of(names)
    strongest = max((share for row in shares for share in row if share), default=1.0)
    parts: list[Markup] = []
    for place, own in enumerate(order):
        parts += _names_of(grid, place, _short(names[own]))
        for across, other in enumerate(order):
            x, y = grid.left + grid.cell * across, grid.top + grid.cell * place
            parts.append(
                _cell(x, y, grid.cell, shares[own][other], strongest) if own != other else _own(x, y, grid.cell)
            )
    width = grid.left + grid.cell * len(order) + grid.beyond
    height = grid.top + grid.cell * len(order) + 4
    size = Markup('width="{w}" height="{h}" viewBox="0 0 {w} {h}"').format(w=width, h=height)
    return Markup(
        '<svg class="chart" role="img" aria-labelledby="{id}-t {id}-d" {size}><title id="{id}-t">{title}</title>'
        '<desc id="{id}-d">{description}</desc><g class="s-teacher">{body}</g></svg>'
    ).format(id=chart_id, size=size, title="Classes thought alike", description=description, body=join(parts))


@dataclass(frozen=True)
class _Grid:
    """Where a matrix's cells lie, in pixels: their size, the first one's corner, and the room beside the last one."""

    cell: int
    left: int
    top: int
    beyond: int
    slanted: bool

    @classmethod
    def of(cls, names: Sequence[str]) -> _Grid:
        """The grid that has room for these names; long ones are slanted above their columns."""
        longest = max(len(_short(name)) for name in names)
        slanted, above = longest > 3, round(5.4 * longest)
        return cls(
            cell=30 if len(names) <= NUMBERED else 22,
            left=14 + round(7.4 * longest),
            top=14 + above if slanted else 24,
            beyond=above if slanted else 4,
            slanted=slanted,
        )


def _names_of(grid: _Grid, place: int, name: str) -> list[Markup]:
    """A class's name before its row and above its column."""
    y, x = grid.top + grid.cell * place + grid.cell / 2 + 4, f"{grid.left + grid.cell * place + grid.cell / 2:g}"
    turn = Markup(' transform="rotate(-45 {} {})"').format(x, grid.top - 8) if grid.slanted else ""
    return [
        Markup('<text class="tick end" x="{}" y="{}">{}</text>').format(grid.left - 8, y, name),
        Markup('<text class="tick {}" x="{}" y="{}"{}>{}</text>').format(
            "from" if grid.slanted else "", x, grid.top - 8, turn, name
        ),
    ]


def _own(x: float, y: float, size: int) -> Markup:
    return Markup('<rect class="own" x="{}" y="{}" width="{s}" height="{s}"/>').format(x, y, s=size - 1)


def _cell(x: float, y: float, size: int, share: float | None, strongest: float) -> Markup:
    if share is None:
        return Markup('<text class="tick" x="{}" y="{}">·</text>').format(x + size / 2, y + size / 2 + 4)
    square = Markup('<rect class="cell" x="{}" y="{}" width="{s}" height="{s}" fill-opacity="{}"/>').format(
        x, y, f"{STRONGEST * share / (strongest or 1):.3f}", s=size - 1
    )
    if size < 30:
        return square
    return square + Markup('<text class="share" x="{}" y="{}">{}</text>').format(
        x + (size - 1) / 2, y + size / 2 + 4, f"{100 * share:.0f}"
    )


def _short(name: str) -> str:
    return name if len(name) <= 18 else f"{name[:17]}…"


def _pane(temperatures: Sequence[float], window: tuple[float, float], right: float) -> Pane:
    span = (min(temperatures) / _EDGE, max(temperatures) * _EDGE)
    return Pane(10.5, right, 12.0, 208.0 if right < 80 else 268.0, span, window, log=True)


def _advised(pane: Pane, advised: tuple[float, float] | None) -> Markup:
    if advised is None:
        return Markup("")
    low, high = max(advised[0] / _EDGE, pane.span[0]), min(advised[1] * _EDGE, pane.span[1])
    return Markup('<rect class="advised" x="{}" y="{}" width="{}%" height="{}"/>').format(
        pane.across(low), f"{pane.top:g}", f"{pane.place(high) - pane.place(low):.2f}", f"{pane.bottom - pane.top:g}"
    )


def _dots(pane: Pane, slot: str, points: Sequence[tuple[float, float]]) -> Markup:
    return Markup('<g class="s-{}">{}</g>').format(
        slot,
        join(
            Markup('<circle class="dot" cx="{}" cy="{}" r="3.5"/>').format(pane.across(x), f"{pane.down(y):.1f}")
            for x, y in points
        ),
    )


def _class_ticks(classes: int) -> list[int]:
    """Numbers of classes worth a line: 1, C, and round ones between that stand apart from both."""
    steps = (2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000)
    apart = math.log(classes) / 9
    inside = [step for step in steps if apart < math.log(step) < math.log(classes) - apart]
    kept = inside if len(inside) <= 4 else inside[:: math.ceil(len(inside) / 4)]
    return [1, *kept, classes]
