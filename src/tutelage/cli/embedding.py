"""What a terminal shows of a sentence encoder's study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tutelage.cli.summaries import say_verdict, seeds_said

if TYPE_CHECKING:
    from rich.table import Table

#: Tasks that are told, worst first.
_TOLD = 3


def summarise_embedding(result: Mapping[str, Any]) -> None:
    """The worst tasks first, the arms side by side, what was gained in speed, then the verdict and why, in 80 columns or fewer."""
    from rich.console import Console
    from rich.text import Text

    from tutelage.report.words import duration

    console = Console(highlight=False)
    texts, seeds = result["splits"]["test"], len(result["arms"]["kd"]["seeds"])
    console.print(
        Text(f"\n{result['title']}: {texts:,} test texts, {seeds_said(seeds)}, {duration(result['seconds'])}")
    )
    for line in worst_tasks(result):
        console.print(Text(line), soft_wrap=True)
    console.print(_arms_table(result))
    console.print(Text(cost_line(result["cost"])), soft_wrap=True)
    say_verdict(console, result["verdict"])


def worst_tasks(result: Mapping[str, Any]) -> list[str]:
    """A line for each of the tasks that lose most, and one for those that are too small to say anything of."""
    lines: list[str] = []
    few = [row for row in result["tasks"] if row["few"]]
    for row in [row for row in result["tasks"] if not row["few"]][:_TOLD]:
        agreement = row["arms"]["kd"]["spearman"]
        said = [f"Spearman {agreement:.3f}"] if agreement is not None else []
        if row["drop"] is not None:
            judged = result["retrieval"]["judged"]
            side = "below" if row["drop"] >= 0 else "above"
            said.append(f"{judged} {abs(100 * row['drop']):.1f} points {side} the teacher")
        if said:
            place = "worst task: " if not lines else "then:       "
            lines.append(f"{place}{row['task']} ({row['texts']:,} texts): {', '.join(said)}")
    if few:
        names = ", ".join(f"{row['task']} ({row['texts']:,})" for row in few[:_TOLD])
        more = f" and {len(few) - _TOLD:,} more" if len(few) > _TOLD else ""
        what = "texts with answers, or one group" if result["retrieval"] is not None else "texts"
        lines.append(f"too few to say (under {result['least_a_task']:,} {what}): {names}{more}")
    return lines


def cost_line(cost: Mapping[str, Any]) -> str:
    """How many texts a second both encode, and how large the student is."""
    student, teacher = cost["student"], cost["teacher"]
    own, theirs = student["texts_per_second"], teacher["texts_per_second"]
    return (
        f"throughput:  {own:,.0f} texts a second, the teacher {theirs:,.0f} ({own / theirs:.3g} times as many), batches of "
        f"{student['batch']:,}; its weights take {student['bytes'] / teacher['bytes']:.1%} of the teacher's"
    )


def _arms_table(result: Mapping[str, Any]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    judged = result["retrieval"]["judged"] if result["retrieval"] is not None else None
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("arm", overflow="fold", min_width=6)
    for name in ("Spearman", "95% interval", *((judged, "95% interval") if judged else ())):
        table.add_column(name, justify="right", no_wrap=True)
    for arm, found in result["arms"].items():
        mean, ends = found["mean"], found["ci95"]
        cells = [_number(mean.get("spearman")), _span(ends.get("spearman"))]
        if judged:
            cells += [_number(mean.get(judged), share=True), _span(ends.get(judged), share=True)]
        table.add_row(Text(arm), *cells)
    table.caption = "Spearman: of the model's similarities with the teacher's"
    table.caption_justify = "left"
    return table


def _number(value: float | None, *, share: bool = False) -> str:
    if value is None:
        return "–"
    return f"{value:z.1%}" if share else f"{value:z.3f}"


def _span(interval: Sequence[float | None] | None, *, share: bool = False) -> str:
    if not interval or None in interval:
        return "–"
    low, high = (_number(end, share=share) for end in interval)
    return f"{low} to {high}"
