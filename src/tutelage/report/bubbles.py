"""The plot of what is bought with a size and a latency: accuracy against time, a circle's area for the bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tutelage.report.charts import domain, figure, join, ticks

#: Of the largest circle, in pixels.
LARGEST = 28.0
#: Of a circle whose bytes are not known, drawn dashed.
UNKNOWN = 6.0
#: Of a line of the names above the plot, in pixels.
LANE = 20
#: Of the plot itself, in pixels.
PANE = 240
LEFT, RIGHT = 14.5, 98.0
#: Characters of a name: more would not fit half a phone's width.
LONGEST = 18


@dataclass(frozen=True)
class Bubble:
    """A model in the plot.

    Args:
        name: written above its circle.
        aside: written after the name, its size.
        tip: all of it in words.
        x: milliseconds, above 0.
        y: the accuracy.
        ci: its 95% interval, or None.
        size: bytes, or None.
        slot: the colour slot.
    """

    name: str
    aside: str
    tip: str
    x: float
    y: float
    ci: tuple[float, float] | None
    size: float | None
    slot: str


@dataclass(frozen=True)
class _Scale:
    """From milliseconds (logarithmic) and accuracies to places: per cent of the width, pixels from the top."""

    window: tuple[float, float]
    values: tuple[float, float]
    top: float

    def share(self, x: float) -> float:
        low, high = (math.log(end) for end in self.window)
        return LEFT + (RIGHT - LEFT) * (math.log(x) - low) / (high - low)

    def across(self, x: float) -> str:
        return f"{self.share(x):.2f}%"

    def down(self, y: float) -> float:
        low, high = self.values
        return self.top + PANE - PANE * (y - low) / (high - low)


def bubble_chart(
    chart_id: str,
    title: str,
    description: str,
    bubbles: Sequence[Bubble],
    across: str,
    write: tuple[Callable[[float], str], Callable[[float], str]],
) -> Markup:
    """Accuracy with its interval against latency on a logarithmic axis; each name stands on a line of its own above the plot.

    Names on lines of their own cannot overlap at any width, which names beside their circles would on a phone.

    Args:
        chart_id: unique in the page.
        title: for the ``<title>``.
        description: what a reader who cannot see it should know.
        bubbles: at least one.
        across: names the horizontal axis.
        write: writes a tick of the horizontal and of the vertical axis.
    """
    scale = _Scale(
        _log_domain([bubble.x for bubble in bubbles]),
        _room_for_circles([end for bubble in bubbles for end in (bubble.y, *(bubble.ci or ()))]),
        LANE * len(bubbles) + 12.0,
    )
    bottom = scale.top + PANE
    parts = [_axes(scale, bottom, across, write)]
    biggest = max((bubble.size for bubble in bubbles if bubble.size), default=1.0)
    radii = {id(bubble): _radius(bubble.size, biggest) for bubble in bubbles}
    parts += [_leader(bubble, lane, scale, radii[id(bubble)]) for lane, bubble in _lanes(bubbles, scale)]
    # the smaller are drawn last, so that a larger circle hides none
    for bubble in sorted(bubbles, key=lambda bubble: -radii[id(bubble)]):
        parts.append(_circle(bubble, scale, radii[id(bubble)]))
    parts += [_name(bubble, lane, scale) for lane, bubble in _lanes(bubbles, scale)]
    return figure(chart_id, title, description, int(bottom) + 42, join(parts))


def log_ticks(low: float, high: float, at_most: int = 5) -> list[float]:
    """Round numbers within ``[low, high]`` for a logarithmic axis: powers of ten, with 2 and 5 or more between where they fit."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for between in ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 5), (1, 3), (1,)):
        found = [factor * 10.0**power for power in decades for factor in between]
        found = [tick for tick in found if low <= tick <= high]
        if len(found) <= at_most:
            return found if len(found) > 1 else ticks(low, high, at_most)
    return found[:: math.ceil(len(found) / at_most)]


def _radius(size: float | None, biggest: float) -> float:
    return LARGEST * math.sqrt(size / biggest) if size else UNKNOWN


def _log_domain(values: Sequence[float]) -> tuple[float, float]:
    """The range of the latencies with room for half a circle on both sides, never less than a factor of 2."""
    low, high = min(values), max(values)
    widen = max(1.0, math.sqrt(2 * low / high))
    low, high = low / widen, high * widen
    air = (high / low) ** 0.1
    return low / air, high * air


def _room_for_circles(values: Sequence[float]) -> tuple[float, float]:
    """The range of the accuracies with room for a circle above and below."""
    low, high = domain(values)
    room = LARGEST / (PANE - 2 * LARGEST) * (high - low)
    return low - room, high + room


def _lanes(bubbles: Sequence[Bubble], scale: _Scale) -> list[tuple[int, Bubble]]:
    """Each bubble's line above the plot. Names of the left half begin at their circle, those of the right half end there.

    From the top, the outermost of each half come first, so that no line down to a circle crosses a name of its own half; the
    emptier half is on top.
    """
    order = sorted(bubbles, key=lambda bubble: bubble.x)
    left = [bubble for bubble in order if scale.share(bubble.x) < 50]
    right = [bubble for bubble in order if scale.share(bubble.x) >= 50][::-1]
    return list(enumerate([*right, *left] if len(right) < len(left) else [*left, *right]))


def _axes(
    scale: _Scale, bottom: float, across: str, write: tuple[Callable[[float], str], Callable[[float], str]]
) -> Markup:
    parts: list[Markup] = []
    for tick in ticks(*scale.values):
        # no accuracy lies above 1, whatever room the circles need
        if tick <= 1:
            parts.append(
                Markup(
                    '<line class="grid" x1="{}%" x2="{}%" y1="{y}" y2="{y}"/>'
                    '<text class="tick end" x="{}%" y="{}">{}</text>'
                ).format(
                    LEFT, RIGHT, LEFT - 1.2, f"{scale.down(tick) + 4:.1f}", write[1](tick), y=f"{scale.down(tick):.1f}"
                )
            )
    parts.append(
        Markup('<line class="axis" x1="{}%" x2="{}%" y1="{y}" y2="{y}"/>').format(LEFT, RIGHT, y=f"{bottom:g}")
    )
    for tick in log_ticks(*scale.window):
        parts.append(
            Markup(
                '<line class="axis" x1="{x}" x2="{x}" y1="{}" y2="{}"/><text class="tick" x="{x}" y="{}">{}</text>'
            ).format(f"{bottom:g}", f"{bottom + 4:g}", f"{bottom + 17:g}", write[0](tick), x=scale.across(tick))
        )
    parts.append(Markup('<text class="tick" x="50%" y="{}">{}</text>').format(f"{bottom + 35:g}", across))
    return join(parts)


def _leader(bubble: Bubble, lane: int, scale: _Scale, radius: float) -> Markup:
    highest = min(scale.down(bubble.y) - radius, scale.down(bubble.ci[1]) if bubble.ci else math.inf)
    return Markup('<g class="s-{}"><line class="leader" x1="{x}" x2="{x}" y1="{}" y2="{}"/></g>').format(
        bubble.slot, lane * LANE + 18, f"{highest:.1f}", x=scale.across(bubble.x)
    )


def _circle(bubble: Bubble, scale: _Scale, radius: float) -> Markup:
    x, y = scale.across(bubble.x), f"{scale.down(bubble.y):.1f}"
    whisker = Markup("")
    if bubble.ci is not None:
        whisker = Markup('<line class="whisker thin" x1="{x}" x2="{x}" y1="{}" y2="{}"/>').format(
            f"{scale.down(bubble.ci[1]):.1f}", f"{scale.down(bubble.ci[0]):.1f}", x=x
        )
    return Markup(
        '<g class="s-{}">{}<circle class="bubble{}" cx="{}" cy="{}" r="{}"><title>{}</title></circle></g>'
    ).format(bubble.slot, whisker, "" if bubble.size else " unsized", x, y, f"{radius:.1f}", bubble.tip)


def _name(bubble: Bubble, lane: int, scale: _Scale) -> Markup:
    name = bubble.name if len(bubble.name) <= LONGEST else bubble.name[: LONGEST - 1] + "…"
    side = "from" if scale.share(bubble.x) < 50 else "to"
    return Markup('<text class="name {}" x="{}" y="{}">{}<tspan class="aside">{}</tspan></text>').format(
        side, scale.across(bubble.x), lane * LANE + 14, name, f" {bubble.aside}" if bubble.aside else ""
    )
