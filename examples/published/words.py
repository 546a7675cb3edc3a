"""Numbers as the tables say them, and the places in a README that a command writes."""

import math
import re
from collections.abc import Sequence
from pathlib import Path

from tutelage.evaluation import Comparison


def percent(mean: float, interval: Sequence[float | None], digits: int = 1) -> str:
    """``91.2 (90.4 to 91.9)`` from fractions."""
    return f"{_minus(100 * mean, digits)} ({_ends(interval, digits)})"


def nats(mean: float) -> str:
    """``0.254``."""
    return f"{mean:.3f}"


def points(found: Comparison) -> str:
    """``+0.6 (+0.2 to +1.0), p = 0.004``, bold where the interval excludes 0."""
    low, high = 100 * found.low, 100 * found.high
    said = f"{_signed(100 * found.difference)} ({_signed(low)} to {_signed(high)}), {chance(found.p_value)}"
    return f"**{said}**" if low > 0 or high < 0 else said


def chance(p_value: float) -> str:
    """``p = 0.004``."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.2g}"


def _signed(value: float) -> str:
    return "unbounded" if math.isinf(value) else f"{value:+.1f}".replace("-", "−")


def _minus(value: float, digits: int) -> str:
    return f"{value:.{digits}f}".replace("-", "−")


def _ends(interval: Sequence[float | None], digits: int) -> str:
    return " to ".join("unbounded" if end is None or math.isinf(end) else _minus(100 * end, digits) for end in interval)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def put(path: Path, name: str, text: str) -> None:
    """Replace what stands between ``<!-- NAME -->`` and ``<!-- end of NAME -->`` of a file.

    Raises:
        ValueError: the file has no such place.
    """
    before = path.read_text()
    place = re.compile(rf"(<!-- {re.escape(name)} -->).*?(<!-- end of {re.escape(name)} -->)", re.DOTALL)
    if not place.search(before):
        raise ValueError(f"{path} has no place <!-- {name} --> … <!-- end of {name} -->, so its table would be lost")
    path.write_text(place.sub(lambda found: found[1] + text + found[2], before))
