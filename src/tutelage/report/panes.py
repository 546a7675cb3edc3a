"""The pane of a chart with two axes: where a pair of numbers lies, its ticks, and names at the ends of lines.

Across, places are percentages of the chart's width; down, they are pixels: see ``charts``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tutelage.report.charts import join, mark, ticks

Write = Callable[[float], str]


@dataclass(frozen=True)
class Pane:
    """Where a chart's lines lie, and what it spans.

    Args:
        left: edge, in per cent of the width, as is ``right``.
        right: edge.
        top: edge, in pixels, as is ``bottom``.
        bottom: edge.
        span: the first and the last number of the horizontal axis.
        window: the lowest and the highest of the vertical one.
        log: whether the horizontal axis is logarithmic; its span lies above 0 then.
    """

    left: float
    right: float
    top: float
    bottom: float
    span: tuple[float, float]
    window: tuple[float, float]
    log: bool = False

    def share(self, x: float) -> float:
        """How far along the horizontal axis a number is: 0 at its first, 1 at its last."""
        low, high = (math.log(end) for end in self.span) if self.log else self.span
        return ((math.log(x) if self.log else x) - low) / ((high - low) or 1)

    def place(self, x: float) -> float:
        """The place of a number, in per cent of the width."""
        return self.left + (self.right - self.left) * self.share(x)

    def across(self, x: float) -> str:
        """The place of a number, as an attribute."""
        return f"{self.place(x):.2f}%"

    def down(self, y: float) -> float:
        """The height of a value, in pixels from the chart's upper edge."""
        low, high = self.window
        return self.bottom - (self.bottom - self.top) * (y - low) / ((high - low) or 1)

    def stretched(self, x: float, y: float) -> str:
        """A pair in the units of ``drawing``."""
        low, high = self.window
        return f"{1000 * self.share(x):.0f},{1000 * (high - y) / ((high - low) or 1):.0f}"


@dataclass(frozen=True)
class EndName:
    """The name at the end of a line, beside its marker; of markers without a line there is nothing to lead to."""

    name: str
    slot: str
    shape: str
    x: float
    y: float
    leads: bool = True


def drawing(pane: Pane, parts: Sequence[Markup]) -> Markup:
    """Shapes in a drawing of their own of 1000 by 1000, stretched to the pane and cut at its edge."""
    return Markup(
        '<svg class="lines" x="{}%" y="{}" width="{}%" height="{}" viewBox="0 0 1000 1000" preserveAspectRatio="none">{}</svg>'
    ).format(pane.left, pane.top, pane.right - pane.left, pane.bottom - pane.top, join(parts))


def value_axis(pane: Pane, at: Sequence[float], write: Write) -> Markup:
    """The lines and the ticks of the vertical axis."""
    return join(
        Markup(
            '<line class="grid" x1="{}%" x2="{}%" y1="{y}" y2="{y}"/><text class="tick end" x="{}%" y="{}">{}</text>'
        ).format(
            pane.left,
            pane.right,
            pane.left - 1.2,
            f"{pane.down(tick) + 4:.1f}",
            write(tick),
            y=f"{pane.down(tick):.1f}",
        )
        for tick in at
    )


def position_axis(pane: Pane, at: Sequence[float], write: Write, label: str) -> Markup:
    """The horizontal axis with its ticks, and what it is; takes 36 pixels below the pane."""
    parts = [
        Markup('<line class="axis" x1="{}%" x2="{}%" y1="{y}" y2="{y}"/>').format(
            pane.left, pane.right, y=f"{pane.bottom:g}"
        )
    ]
    for tick in at:
        parts.append(
            Markup(
                '<line class="axis" x1="{x}" x2="{x}" y1="{}" y2="{}"/><text class="tick" x="{x}" y="{}">{}</text>'
            ).format(
                f"{pane.bottom:g}",
                f"{pane.bottom + 4:g}",
                f"{pane.bottom + 17:g}",
                write(tick),
                x=pane.across(tick),
            )
        )
    parts.append(
        Markup('<text class="tick" x="{}%" y="{}">{}</text>').format(
            f"{(pane.left + pane.right) / 2:g}", f"{pane.bottom + 35:g}", label
        )
    )
    return join(parts)


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


def end_names(names: Sequence[EndName], pane: Pane) -> Markup:
    """Names right of the pane, moved apart where they would overlap, each with a leader to the end of its line."""
    low, high = pane.window
    ends = [pane.down(min(max(item.y, low), high)) for item in names]
    parts: list[Markup] = []
    for item, end, height in zip(names, ends, spread(ends, 17, pane.top + 4, pane.bottom), strict=True):
        leader = Markup('<line class="leader" x1="{}" x2="{}%" y1="{}" y2="{}"/>').format(
            pane.across(item.x), pane.right + 1.2, f"{end:.1f}", f"{height:.1f}"
        )
        parts.append(
            Markup('<g class="s-{}">{}{}<text class="name" x="{}%" dx="13" y="{}">{}</text></g>').format(
                item.slot,
                leader if item.leads else "",
                mark(item.shape, f"{pane.right + 2.6}%", height),
                pane.right + 2.6,
                f"{height + 4:.1f}",
                item.name,
            )
        )
    return join(parts)


def log_ticks(low: float, high: float, at_most: int = 5) -> list[float]:
    """Round numbers within ``[low, high]`` for a logarithmic axis: powers of ten, with 2 and 5 or more between where they fit."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for between in ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 5), (1, 3), (1,)):
        found = [factor * 10.0**power for power in decades for factor in between]
        found = [tick for tick in found if low <= tick <= high]
        if len(found) <= at_most:
            return found if len(found) > 1 else ticks(low, high, at_most)
    return found[:: math.ceil(len(found) / at_most)]
