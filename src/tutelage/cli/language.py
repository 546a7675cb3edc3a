"""What a terminal shows of a language model's study, and of the completions that its teacher wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tutelage.cli.summaries import say_verdict, seeds_said

if TYPE_CHECKING:
    from rich.table import Table


def summarise_language(result: Mapping[str, Any]) -> None:
    """The arms side by side, how much of the gap is closed, then the verdict and why, in 80 columns or fewer."""
    from rich.console import Console
    from rich.text import Text

    from tutelage.report.words import duration

    console = Console(highlight=False)
    examples, seeds = result["splits"]["test"], len(result["arms"]["kd"]["seeds"])
    console.print(
        Text(f"\n{result['title']}: {examples:,} test examples, {seeds_said(seeds)}, {duration(result['seconds'])}")
    )
    console.print(_arms_table(result))
    for line in (_transfer(result["transfer"]), _gap(result), _context(result.get("context"))):
        if line:
            console.print(Text(line), soft_wrap=True)
    say_verdict(console, result["verdict"])


def summarise_generated(manifest: Mapping[str, Any], place: str) -> None:
    """How many completions were written and kept, why others were not, and what that took.

    Args:
        manifest: of the completions.
        place: their folder, in words.
    """
    from rich.console import Console
    from rich.text import Text

    from tutelage.report.words import duration

    console = Console(highlight=False)
    counts, made = manifest["counts"], manifest["made"]
    dropped = ", ".join(f"{count:,} {why}" for why, count in counts["dropped"].items())
    lines = {
        "kept": f"{counts['kept']:,} of {counts['written']:,}" + (f" ({dropped})" if dropped else ""),
        "prompts": f"{counts['prompts']:,}",
        "tokens": f"{made['tokens']:,} in {duration(made['seconds'])}",
        "lies in": place,
    }
    console.print(Text("\ncompletions of the teacher"))
    for name, words in lines.items():
        console.print(Text(f"  {name + ':':<9}{words}"), soft_wrap=True)


def _arms_table(result: Mapping[str, Any]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    arms: Mapping[str, Any] = result["arms"]
    # what no arm has is no column: a score that was not asked for, a KL across vocabularies
    shown = [name for name in ("score", "perplexity", "kl") if any(name in arm["mean"] for arm in arms.values())]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("arm", overflow="fold", min_width=6)
    for name in shown:
        table.add_column({"score": "score", "kl": "KL, nats"}.get(name, name), justify="right", no_wrap=True)
        if name != "perplexity":
            table.add_column("95% interval", justify="right", no_wrap=True)
    for arm, found in arms.items():
        cells: list[str] = []
        for name in shown:
            share = name == "score" and result.get("score_is_share", True)
            cells.append(_number(found["mean"].get(name), share=share))
            if name != "perplexity":
                cells.append(_span(found["ci95"].get(name), share=share))
        table.add_row(Text(arm), *cells)
    if result.get("score_name"):
        table.caption = f"score: {result['score_name']}; KL: of the teacher's distribution from the model's, a token"
        table.caption_justify = "left"
    return table


def _transfer(transfer: Mapping[str, Any]) -> str:
    author = "written by the teacher" if transfer["completions"] == "teacher" else "as given"
    one = transfer["examples"] == 1
    told = [
        f"{transfer['examples']:,} completion{'' if one else 's'}, {author}",
        f"{transfer['tokens']:,} supervised tokens",
    ]
    lost = [f"{transfer[key]:,} {words}" for key, words in _LOST.items() if transfer[key]]
    return f"learnt from: {', '.join(told)}" + (f"; of all splits together {', '.join(lost)}" if lost else "")


_LOST = {"cut": "cut at data.max_length", "dropped": "left out"}


def _gap(result: Mapping[str, Any]) -> str:
    gap = result.get("gap")
    if not gap or gap.get("closed") is None:
        return ""
    interval = gap.get("ci95")
    span = f" (95% interval: {_span(interval, share=True)})" if interval and None not in interval else ""
    return f"gap closed:  {gap['closed']:.1%}{span} of the way from the untouched student to the teacher"


def _context(context: Mapping[str, Any] | None) -> str:
    if not context or not context.get("saved"):
        return ""
    line = f"prompt:      {context['saved']:,.0f} tokens fewer a request"
    times = context.get("milliseconds")
    if times and times.get("full") is not None and times.get("bare") is not None:
        bare, full = (f"{times[which]:.3g} ms" for which in ("bare", "full"))
        # a shorter prompt costs no more work: what is slower was disturbed
        level = f", and no time that could be measured: {bare} to read it, {full} the full one"
        line += f": {bare} to read it in place of {full}" if times["bare"] < times["full"] else level
    return line


def _number(value: float | None, *, share: bool) -> str:
    if value is None:
        return "–"
    return f"{value:.1%}" if share else f"{value:.3g}"


def _span(interval: Sequence[float | None] | None, *, share: bool) -> str:
    if not interval or None in interval:
        return "–"
    low, high = (_number(end, share=share) for end in interval)
    return f"{low} to {high}"
