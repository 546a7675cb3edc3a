"""The plot of what is bought with a size and a latency: accuracy against time, a circle's area for the bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tutelage.report.charts import cut, domain, figure, join, ticks
from tutelage.report.panes import Pane, log_ticks, position_axis, value_axis

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
    top = LANE * len(bubbles) + 12.0
    pane = Pane(
        LEFT,
        RIGHT,
        top,
        top + PANE,
        _log_domain([bubble.x for bubble in bubbles]),
        _room_for_circles([end for bubble in bubbles for end in (bubble.y, *(bubble.ci or ()))]),
        log=True,
    )
    # no accuracy lies above 1, whatever room the circles need
    parts = [
        value_axis(pane, [tick for tick in ticks(*pane.window) if tick <= 1], write[1]),
        position_axis(pane, log_ticks(*pane.span), write[0], across),
    ]
    biggest = max((bubble.size for bubble in bubbles if bubble.size), default=1.0)
    radii = {id(bubble): _radius(bubble.size, biggest) for bubble in bubbles}
    parts += [_leader(bubble, lane, pane, radii[id(bubble)]) for lane, bubble in _lanes(bubbles, pane)]
    # the smaller are drawn last, so that a larger circle hides none
    for bubble in sorted(bubbles, key=lambda bubble: -radii[id(bubble)]):
        parts.append(_circle(bubble, pane, radii[id(bubble)]))
    parts += [_name(bubble, lane, pane) for lane, bubble in _lanes(bubbles, pane)]
    return figure(chart_id, title, description, int(pane.bottom) + 42, join(parts))


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


def _lanes(bubbles: Sequence[Bubble], pane: Pane) -> list[tuple[int, Bubble]]:
    """Each bubble's line above the plot. Names of the left half begin at their circle, those of the right half end there.

    From the top, the outermost of each half come first, so that no line down to a circle crosses a name of its own half; the
    emptier half is on top.
    """
    order = sorted(bubbles, key=lambda bubble: bubble.x)
    left = [bubble for bubble in order if pane.place(bubble.x) < 50]
    right = [bubble for bubble in order if pane.place(bubble.x) >= 50][::-1]
    return list(enumerate([*right, *left] if len(right) < len(left) else [*left, *right]))


def _leader(bubble: Bubble, lane: int, pane: Pane, radius: float) -> Markup:
    highest = min(pane.down(bubble.y) - radius, pane.down(bubble.ci[1]) if bubble.ci else math.inf)
    return Markup('<g class="s-{}"><line class="leader" x1="{x}" x2="{x}" y1="{}" y2="{}"/></g>').format(
        bubble.slot, lane * LANE + 18, f"{highest:.1f}", x=pane.across(bubble.x)
    )


def _circle(bubble: Bubble, pane: Pane, radius: float) -> Markup:
    x, y = pane.across(bubble.x), f"{pane.down(bubble.y):.1f}"
    whisker = Markup("")
    if bubble.ci is not None:
        whisker = Markup('<line class="whisker thin" x1="{x}" x2="{x}" y1="{}" y2="{}"/>').format(
            f"{pane.down(bubble.ci[1]):.1f}", f"{pane.down(bubble.ci[0]):.1f}", x=x
        )
    return Markup(
        '<g class="s-{}">{}<circle class="bubble{}" cx="{}" cy="{}" r="{}"><title>{}</title></circle></g>'
    ).format(bubble.slot, whisker, "" if bubble.size else " unsized", x, y, f"{radius:.1f}", bubble.tip)


def _name(bubble: Bubble, lane: int, pane: Pane) -> Markup:
    side = "from" if pane.place(bubble.x) < 50 else "to"
    return Markup('<text class="name {}" x="{}" y="{}">{}<tspan class="aside">{}</tspan></text>').format(
        side,
        pane.across(bubble.x),
        lane * LANE + 14,
        cut(bubble.name, LONGEST),
        f" {bubble.aside}" if bubble.aside else "",
    )
