"""Which layers to compute in 8 bits, and how: found by measuring, with every trial on the record."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

#: Layers are measured one by one up to this number, in runs of neighbours beyond it.
MAX_GROUPS = 32

#: Lines of the table in an error; the first ones and the last ones are shown.
MAX_LINES = 24


@dataclass(frozen=True)
class Setting:
    """How everything that is quantised is quantised.

    Args:
        weights: the type of the weights, as in `tutelage.export.quantising.WEIGHTS`.
        per_channel: one scale for each output channel of a weight, or one for the whole weight.
        calibration: how the ranges of activations were taken from the calibration data, None where they are taken anew in
            every call (dynamic).
    """

    weights: str
    per_channel: bool
    calibration: str | None

    def __str__(self) -> str:
        scales = "a scale per channel" if self.per_channel else "a scale per tensor"
        return f"{self.weights}, {scales}" + (f", ranges by {self.calibration}" if self.calibration else "")


@dataclass(frozen=True)
class Measured:
    """One quantised model against the fp32 one, on the search data.

    Args:
        kl: mean KL(fp32 ‖ int8) in nats an example; infinite where int8 gave logits that are not finite.
        agreement: fraction of the examples with the same top class.
        accuracy: against the labels, None without them.
        bytes: of the file, external data included.
        int8_weights: scalars in weights of 8 bits.
    """

    kl: float
    agreement: float
    accuracy: float | None
    bytes: int
    int8_weights: int


@dataclass(frozen=True)
class Trial:
    """Something that was tried, and how it went.

    Args:
        what: in words.
        setting: of what is quantised.
        float_nodes: nodes left in float.
        measured: how it went.
    """

    what: str
    setting: Setting
    float_nodes: frozenset[str]
    measured: Measured

    def to_json(self) -> dict[str, Any]:
        """A row of the record's table; a KL that is not finite is None."""
        kl = self.measured.kl if math.isfinite(self.measured.kl) else None
        row = {"what": self.what, "kl": kl, "agreement": self.measured.agreement, "accuracy": self.measured.accuracy}
        return {**row, "bytes": self.measured.bytes}

    def __str__(self) -> str:
        accuracy = "" if self.measured.accuracy is None else f", accuracy {self.measured.accuracy:.2%}"
        kl, agreement = self.measured.kl, self.measured.agreement
        return f"{self.what}: KL {kl:.3g} nats, agreement {agreement:.2%}{accuracy}, {self.measured.bytes:,} bytes"


@dataclass(frozen=True)
class Found:
    """What the search came to.

    Args:
        trial: the best model that keeps the accuracy, None where there is none.
        tried: everything, in order.
        why: in a sentence.
    """

    trial: Trial | None
    tried: list[Trial]
    why: str


class Search:
    """Look for the quantised model that keeps the fp32 model's accuracy with the fewest nodes in float.

    Settings come in stages, the fastest kernels first: a later stage is tried only where no setting of the earlier ones keeps
    the accuracy. Where none of all does, each node's own harm is measured by quantising *it alone*: measured the other way, as
    what is gained by leaving it out, two harmful nodes would hide each other. In the order of harm nodes are put back into
    float until the accuracy is kept; those that then turn out not to be needed there are quantised again. With the rest in
    float the settings are compared once more, since the fastest may do by then.

    Accuracy on a few hundred examples is coarse, so models that keep it are told apart by their KL.

    Args:
        measure: writes and measures the model with a setting and some nodes in float.
        nodes: that can be quantised, in the order of the graph.
        stages: settings, those of the fastest kernels first.
        fp32_accuracy: against the labels, None where agreement with fp32 stands for it.
        max_drop: of accuracy, as a fraction.
        seconds: after which no further trial is begun. The only thing here that depends on the machine's speed.
    """

    def __init__(
        self,
        measure: Callable[[Setting, frozenset[str]], Measured],
        nodes: Sequence[str],
        stages: Sequence[Sequence[Setting]],
        *,
        fp32_accuracy: float | None,
        max_drop: float,
        seconds: float,
    ) -> None:
        self._measure = measure
        self._nodes = list(nodes)
        self._stages = stages
        self._fp32_accuracy = fp32_accuracy
        self._max_drop = max_drop
        self._seconds = seconds
        self._deadline = time.perf_counter() + seconds
        self._tried: dict[tuple[Setting, frozenset[str]], Trial] = {}

    def run(self) -> Found:
        """Search; one model is tried at least, however little time there is."""
        kept = self._first_kept("all in int8", frozenset())
        if kept:
            why = f"every layer that can be is in int8; {kept.setting}: the lowest KL of the settings that keep the accuracy"
            if kept.setting not in self._stages[0]:
                why += ", which those with faster kernels do not"
            return self._found(kept, why)
        return self._put_back(min(self._tried.values(), key=self._rank).setting)

    def drop(self, trial: Trial) -> float:
        """Accuracy lost against fp32; without labels, the fraction of the examples whose top class changed."""
        if self._fp32_accuracy is None or trial.measured.accuracy is None:
            return 1 - trial.measured.agreement
        return self._fp32_accuracy - trial.measured.accuracy

    def keeps(self, trial: Trial) -> bool:
        """Whether the drop is no larger than it may be; rounding of the difference is forgiven."""
        return self.drop(trial) <= self._max_drop + 1e-9 and math.isfinite(trial.measured.kl)

    def _rank(self, trial: Trial) -> tuple[bool, float, float, int]:
        kept = self.keeps(trial)
        return (not kept, 0.0 if kept else self.drop(trial), trial.measured.kl, trial.measured.bytes)

    def _first_kept(self, what: str, float_nodes: frozenset[str]) -> Trial | None:
        """The best setting of the first stage that has one that keeps the accuracy."""
        for stage in self._stages:
            trials: list[Trial] = []
            for setting in stage:
                if not self._tried or not self._late():
                    trials.append(self._try(f"{what} ({setting})", setting, float_nodes))
            best = min(trials, key=self._rank, default=None)
            if best and self.keeps(best):
                return best
        return None

    def _put_back(self, setting: Setting) -> Found:
        every = frozenset(self._nodes)
        alone: list[tuple[float, list[str]]] = []
        for group in _runs(self._nodes):
            if self._late():
                return self._found(None, "no setting keeps it for all layers")
            trial = self._try(f"only {_names(group)} in int8", setting, every - set(group))
            alone.append((trial.measured.kl, group))
        put_back: list[str] = []
        # stable: nodes that do equal harm stay in the order of the graph
        for _, group in sorted(alone, key=lambda pair: -pair[0]):
            if self._late():
                return self._found(None, f"it is not kept with {len(put_back)} layers in float")
            put_back += group
            trial = self._try(f"{_names(put_back)} in float", setting, frozenset(put_back))
            if not trial.measured.int8_weights:
                break
            if self.keeps(trial):
                return self._settled(self._take_again(trial, put_back))
        return self._found(None, "it is lost before a single layer is left in int8")

    def _take_again(self, found: Trial, put_back: Sequence[str]) -> Trial:
        """Quantise again the nodes that came into float before the harmful one did, or beside it in its group."""
        for node in reversed(put_back):
            rest = [name for name in put_back if name in found.float_nodes and name != node]
            if rest and not self._late():
                trial = self._try(f"{_names(rest)} in float", found.setting, frozenset(rest))
                found = trial if self.keeps(trial) else found
        return found

    def _settled(self, found: Trial) -> Found:
        names = [name for name in self._nodes if name in found.float_nodes]
        best = self._first_kept(f"{_names(names)} in float", found.float_nodes) or found
        why = f"{_names(names)} in float, or more than {self._max_drop:.2%} of accuracy would be lost; {best.setting}"
        return self._found(best, f"{why}: the lowest KL of the settings that keep the accuracy so")

    def _try(self, what: str, setting: Setting, float_nodes: frozenset[str]) -> Trial:
        key = (setting, float_nodes)
        if key not in self._tried:
            self._tried[key] = Trial(what, setting, float_nodes, self._measure(setting, float_nodes))
        return self._tried[key]

    def _found(self, trial: Trial | None, why: str) -> Found:
        if self._late():
            why += f" (the search was cut short after {self._seconds:g} seconds and {len(self._tried)} trials)"
        return Found(trial, list(self._tried.values()), why)

    def _late(self) -> bool:
        return time.perf_counter() > self._deadline


def table(tried: Sequence[Trial]) -> str:
    """What was tried, a line each; the middle of a long table is left out."""
    lines = [f"  {trial}" for trial in tried]
    if len(lines) > MAX_LINES:
        half = MAX_LINES // 2
        lines = [*lines[:half], f"  … {len(lines) - 2 * half} more …", *lines[-half:]]
    return "\n".join(lines)


def _names(nodes: Sequence[str]) -> str:
    return ", ".join(nodes) if len(nodes) <= 4 else f"{', '.join(nodes[:3])} and {len(nodes) - 3} more"


def _runs(nodes: Sequence[str]) -> list[list[str]]:
    """The nodes in at most `MAX_GROUPS` runs of neighbours of nearly equal length."""
    groups = min(MAX_GROUPS, len(nodes))
    edges = [round(index * len(nodes) / groups) for index in range(groups + 1)]
    return [list(nodes[start:end]) for start, end in pairwise(edges)]
