"""The picture of a language study: the way from the untouched student to the teacher, and how far along it each arm is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from markupsafe import Markup

from tutelage.report.charts import ROW_HEIGHT, Row, domain, figure, interval_row, join, ticks


def gap_chart(
    chart_id: str,
    title: str,
    description: str,
    rows: Sequence[Row],
    ends: tuple[float, float] | None,
    write: Callable[[float], str],
) -> Markup:
    """One line an arm on one axis, on a band that reaches from the untouched student to the teacher.

    Args:
        chart_id: unique in the page.
        title: for the ``<title>``.
        description: what a reader who cannot see it should know.
        rows: at least one.
        ends: where the gap begins and where it ends, or None where one of the two is not known.
        write: writes a tick.
    """
    known = [v for row in rows for v in (row.value, *(row.ci or ()), *row.seeds) if v is not None]
    low, high = domain(known, keep=ends or ())

    def at(value: float) -> str:
        return f"{2 + 96 * (value - low) / (high - low):.2f}%"

    bottom = ROW_HEIGHT * len(rows)
    parts: list[Markup] = []
    if ends is not None and ends[0] != ends[1]:
        left, right = sorted(ends)
        parts.append(
            Markup('<rect class="way" x="{}" y="0" width="{:.2f}%" height="{}"/>').format(
                at(left), 96 * (right - left) / (high - low), bottom
            )
        )
    for tick in ticks(low, high):
        parts.append(
            Markup(
                '<line class="grid" x1="{x}" x2="{x}" y1="0" y2="{}"/><text class="tick" x="{x}" y="{}">{}</text>'
            ).format(bottom, bottom + 16, write(tick), x=at(tick))
        )
    # beside the markers alone: the numbers at the right stand where the better end of the gap is
    for end in sorted(set(ends or ())):
        for top in range(0, bottom, ROW_HEIGHT):
            parts.append(
                Markup('<line class="zero" x1="{x}" x2="{x}" y1="{}" y2="{}"/>').format(
                    top + 21, top + ROW_HEIGHT, x=at(end)
                )
            )
    parts += [interval_row(row, ROW_HEIGHT * index, at) for index, row in enumerate(rows)]
    return figure(chart_id, title, description, bottom + 22, join(parts))
