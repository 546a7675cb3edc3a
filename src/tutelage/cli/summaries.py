"""What a terminal shows of a finished run, and of an artefact that was checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def seeds_said(count: int) -> str:
    """``1 seed``, ``5 seeds``."""
    return f"{count} seed{'s' * (count != 1)}"


def summarise(result: Mapping[str, Any]) -> None:
    """The arms side by side, then the verdict and why, in 80 columns or fewer."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from tutelage.report.surgery import cut_line
    from tutelage.report.words import duration

    console = Console(highlight=False)
    arms = result["arms"]
    examples, seeds = result["splits"]["test"], len(arms["kd"]["seeds"])
    console.print(
        Text(f"\n{result['title']}: {examples:,} test examples, {seeds_said(seeds)}, {duration(result['seconds'])}")
    )
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("arm", overflow="fold", min_width=6)
    for heading in ("accuracy", "95% interval", "NLL", "ECE", "same as\nteacher"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, arm in arms.items():
        mean, interval = arm["mean"], arm["ci95"]["accuracy"]
        span = f"{interval[0]:.1%} to {interval[1]:.1%}" if None not in interval else "–"
        agreement = f"{mean['agreement']:.1%}" if "agreement" in mean else ""
        cells = (f"{mean['accuracy']:.1%}", span, f"{mean['nll']:.3f}", f"{mean['ece']:.3f}", agreement)
        table.add_row(Text(name), *cells)
    console.print(table)
    for cut in result.get("surgery", ()):
        console.print(Text(f"  {cut['start']}: {cut_line(cut)}"), soft_wrap=True)
    say_verdict(console, result["verdict"])


def summarise_artefact(name: str, shipped: Mapping[str, Any], *, timed: bool) -> None:
    """An artefact that was just exported: how near it is to the student, its size, and, if timed, its time beside the others'."""
    from rich.console import Console
    from rich.text import Text

    from tutelage.report.words import bytes_text

    console = Console(highlight=False)
    entry = shipped["artefacts"][name]
    trained, exported = entry["validation"]["trained"], entry["validation"]["artefact"]
    lines = [
        f"parity:      {entry['parity']['why']}",
        f"validation:  accuracy {exported['accuracy']:.2%}, the trained student {trained['accuracy']:.2%}",
        f"calibration: {entry['calibration']['why']}",
        f"size:        {bytes_text(entry['bytes'])}",
    ]
    if entry["quantisation"] is not None:
        lines.insert(1, f"int8:        {entry['quantisation']['why']}")
    console.print(Text(f"\n{name}, the student of seed {entry['seed']}"))
    for line in lines:
        console.print(Text(f"  {line}"), soft_wrap=True)
    _measured(console, shipped.get("measured") if timed else None)


def summarise_check(name: str, result: Mapping[str, Any], shipped: Mapping[str, Any]) -> None:
    """Trained and exported side by side on the test split, then the artefact's verdict and why."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    check = shipped["artefacts"][name]["check"]
    test = check["test"]
    low, high = test["ci95"]["accuracy"]
    span = f" (95% interval: {low:.1%} to {high:.1%})" if None not in (low, high) else ""
    console.print(Text(f"\n{result['title']}: {name} on {test['examples']:,} test examples"))
    console.print(
        Text(
            f"  accuracy {test['metrics']['accuracy']:.1%}{span}, ECE {test['metrics']['ece']:.3f}, same as the teacher on "
            f"{test['agreement_with_teacher']:.1%}"
        ),
        soft_wrap=True,
    )
    _measured(console, shipped.get("measured"))
    say_verdict(console, check)


def _measured(console: Console, measured: Mapping[str, Any] | None) -> None:
    """Latency, throughput, memory and size, one line a model, at the smallest batch and number of threads."""
    if measured is None:
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from tutelage.report.words import bytes_text
    from tutelage.studies.judging import BUSY

    threads = min(row["threads"] for row in measured["rows"])
    first = min(row["batch"] for row in measured["rows"])
    rows = [row for row in measured["rows"] if row["threads"] == threads]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("model", overflow="fold", min_width=6)
    for heading in ("p50 ms", "p95", "p99", "examples/s", "memory", "size"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        if row["batch"] != first:
            continue
        name = row["model"]
        best = max(other["throughput"] for other in rows if other["model"] == name)
        memory = measured["memory"].get(name, {}).get("peak_bytes")
        times = (f"{row[key]:.3g}" for key in ("p50", "p95", "p99"))
        told = (bytes_text(memory) if memory else "–", bytes_text(measured["bytes"][name]))
        table.add_row(Text(_labelled(row)), *times, f"{best:,.0f}", *told)
    console.print(table)
    plural = "s" if threads != 1 else ""
    console.print(
        Text(f"  {measured['cpu']['name']}, {threads} thread{plural}, batch {first}; examples/s at the best batch"),
        soft_wrap=True,
    )
    if max(row.get("waited") or 0.0 for row in measured["rows"]) > BUSY:
        console.print(Text("  other programs were at work: take these times for orders of magnitude"), soft_wrap=True)
    if measured["cpu"].get("int8_note"):
        console.print(Text(f"  {measured['cpu']['int8_note']}"), soft_wrap=True)
    if measured.get("price"):
        price = measured["price"]
        told = ", ".join(f"{model} {price['currency']}{cost:.3g}" for model, cost in price["per_million"].items())
        console.print(
            Text(f"  a million inferences at {price['currency']}{price['per_hour']:g} an hour: {told}"), soft_wrap=True
        )


def _labelled(row: Mapping[str, Any]) -> str:
    return row["model"] if row.get("length") is None else f"{row['model']}, {row['length']} tokens"


def say_verdict(console: Console, verdict: Mapping[str, Any]) -> None:
    """The decision, then each gate and why."""
    from rich.text import Text

    decision = verdict["decision"]
    colour, meaning = _DECISIONS[decision]
    console.print(Text.assemble("verdict: ", (decision, f"bold {colour}"), f" ({meaning})"))
    for gate in verdict["gates"]:
        colour, outcome = {True: ("green", "passed"), False: ("red", "failed"), None: ("yellow", "undecided")}[
            gate["passed"]
        ]
        console.print(Text.assemble("  ", (f"{outcome:<10}", colour), f"{gate['name']}: {gate['why']}"), soft_wrap=True)
        if gate.get("needs"):
            console.print(Text(f"             {gate['needs']['why']}"), soft_wrap=True)


_DECISIONS = {
    "ship": ("green", "every gate passed"),
    "hold": ("yellow", "not enough evidence"),
    "reject": ("red", "a gate failed"),
}
