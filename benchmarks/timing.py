"""Timing in turns: A B A B …, so that a machine whose speed drifts slows all alike."""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Times:
    """Milliseconds of each round, by contestant."""

    rounds: Mapping[str, list[float]]

    def median(self, name: str) -> float:
        """Median milliseconds."""
        return statistics.median(self.rounds[name])

    def ratio(self, name: str, peer: str) -> tuple[float, float, float]:
        """Ratio of the medians, and the least and greatest ratio within a round."""
        within = [a / b for a, b in zip(self.rounds[name], self.rounds[peer], strict=True)]
        return self.median(name) / self.median(peer), min(within), max(within)


def in_turns(contestants: Mapping[str, Callable[[], float]], rounds: int) -> Times:
    """Run each contestant once a round, after one round that is not counted; each returns milliseconds."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for counted in [False, *[True] * rounds]:
        for name, run in contestants.items():
            elapsed = run()
            if counted:
                times[name].append(elapsed)
    return Times(times)


def row(label: str, times: Times, name: str, peer: str, target: str) -> str:
    """A line of a Markdown table: label, both medians, the ratio with its spread, the target."""
    ratio, low, high = times.ratio(name, peer)
    return f"| {label} | {times.median(name):.3f} ms | {times.median(peer):.3f} ms | {ratio:.2f}× ({low:.2f} to {high:.2f}) | {target} |"
