"""The gates of a verdict in words: their names, their values in their own units, what they need, and what came of them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from tutelage.report.record import Record, mapping, number, records, text
from tutelage.report.words import (
    Metric,
    agreement_text,
    amount,
    decimal,
    difference,
    metric_named,
    plural,
    scientific,
)


@dataclass(frozen=True)
class GateWords:
    """A gate's name in words, the metric its value is written in, and how its limit reads."""

    name: str
    kind: Literal["difference", "ratio", "value", "parity"]
    metric: str
    limit: str


GATES: dict[str, GateWords] = {
    "accuracy_drop_vs_teacher": GateWords("accuracy lost against the teacher", "difference", "accuracy", "at most"),
    "gain_over_scratch": GateWords("gain over labels alone", "difference", "accuracy", "more than"),
    "gain_over_label_smoothing": GateWords("gain over label smoothing", "difference", "accuracy", "more than"),
    "size_ratio": GateWords("size against the teacher", "ratio", "", "at most"),
    "latency_ratio": GateWords("latency against the teacher", "ratio", "", "at most"),
    "ece": GateWords("calibration error (ECE)", "value", "ece", "at most"),
    "negative_flips": GateWords("negative flips", "value", "negative_flips", "at most"),
    "worst_class_drop": GateWords("accuracy lost in the worst class", "difference", "accuracy", "at most"),
    "worst_slice_drop": GateWords("accuracy lost in the worst slice", "difference", "accuracy", "at most"),
    "parity": GateWords("parity with the trained student", "parity", "", "at most"),
    "negative_flips_vs_baseline": GateWords(
        "negative flips against the baseline", "value", "negative_flips", "at most"
    ),
    "score_drop_vs_teacher": GateWords("score lost against the teacher", "difference", "compared", "at most"),
    "gain_over_sft": GateWords("gain over fine-tuning without a teacher", "difference", "compared", "more than"),
    "gain_over_untouched": GateWords("gain over the untouched student", "difference", "compared", "more than"),
    "gap_closed": GateWords("gap to the teacher closed", "value", "gap", "at least"),
    "kl": GateWords("KL to the teacher, nats a token", "value", "kl", "at most"),
    "spearman": GateWords("rank correlation of similarities with the teacher", "value", "spearman", "at least"),
    "recall_drop": GateWords("recall lost against the teacher", "difference", "recall", "at most"),
    "worst_task_drop": GateWords("recall lost in the worst task", "difference", "recall", "at most"),
    "throughput_ratio": GateWords("texts a second against the teacher", "ratio", "", "at least"),
}


#: By task, the gates that are asked by default, and the arm that each compares with.
_CONTROL_OF = {
    "classification": {"gain_over_scratch": "scratch"},
    "language_model": {"gain_over_sft": "sft", "gain_over_untouched": "untouched"},
    "embedding": {"gain_over_untouched": "untouched"},
}


def not_asked(task: str, arms: Collection[str], asked: Collection[str]) -> str:
    """Which gates a study did not ask because it has not got the arm that they compare with, in a sentence; empty where there are none.

    Args:
        task: the study's.
        arms: their names.
        asked: the gates that it asks.
    """
    control_of = _CONTROL_OF.get(task, {})
    idle = {gate: arm for gate, arm in control_of.items() if arm not in arms and gate not in asked}
    if not idle:
        return ""
    names = " and ".join(GATES[gate].name for gate in idle)
    return f"Not asked, for this study has no arm {' or '.join(dict.fromkeys(idle.values()))}: {names}."


def gate_name(gate: Record) -> str:
    """The gate's name in words."""
    key = text(gate.get("name"), "unnamed gate")
    return GATES[key].name if key in GATES else key.replace("_", " ")


def gate_amount(gate: Record, key: str, named: Callable[[str], Metric] = metric_named) -> str:
    """The gate's value or limit (``key``) in its own unit; ``named`` knows the metrics."""
    value, words = number(gate.get(key)), GATES.get(text(gate.get("name")))
    if value is None:
        return "not measured" if key == "value" else "none"
    if words is None:
        written = decimal(value, 3)
    elif words.kind == "difference":
        written = difference(named(words.metric), value, signed=key == "value" and words.limit == "more than")
    elif words.kind == "ratio":
        written = f"{decimal(100 * value, 1)}% of the teacher’s"
    elif words.kind == "parity":
        # int8 has no limit on how far a logit may lie: its value is the share of the same answers
        alike = number(gate.get("limit")) is None
        return f"{agreement_text(value)} alike" if alike else ("at most " if key == "limit" else "") + scientific(value)
    else:
        written = amount(named(words.metric), value)
    if key == "limit":
        # a limit is a round number that someone chose: 3 points, not 3.0
        written = re.sub(r"(\d)\.0+(?=\D|$)|(\.\d*?[1-9])0+(?=\D|$)", r"\1\2", written)
    return f"{words.limit} {written}" if words and key == "limit" else written


def gate_needs(gate: Record) -> str:
    """How much more evidence would decide an undecided gate, in a sentence; empty where that is not recorded."""
    needs = mapping(gate.get("needs"))
    counts = [
        plural(math.ceil(count), noun)
        for count, noun in ((number(needs.get("seeds")), "seed"), (number(needs.get("examples")), "test example"))
        if count is not None
    ]
    why = text(needs.get("why"))
    # most reasons begin with the same numbers, in round figures
    said = re.match(r"About [\d,]+ (seed|test example)", why) is not None
    asked = f"To decide: about {' or '.join(counts)} in all." if counts and not said else ""
    return " ".join(part for part in (asked, why) if part)


def because(result: Record) -> str:
    """The decision in terms of the gates: how many passed, which failed and which stay open."""
    gates = records(mapping(result.get("verdict")).get("gates"))
    arms = mapping(result.get("arms"))
    # the verdict on an artefact stands by itself, and the arms with the run's
    idle = not_asked(text(result.get("task")), arms, [text(gate.get("name")) for gate in gates]) if arms else ""
    return f"{_outcome(gates)} {idle}".strip()


def _outcome(gates: Sequence[Record]) -> str:
    if not gates:
        return "No gates were set, so nothing in particular was asked of the student."
    failed = [gate_name(gate) for gate in gates if gate.get("passed") is False]
    undecided = [gate_name(gate) for gate in gates if gate.get("passed") is None]
    if not failed and not undecided:
        return "The one gate passed." if len(gates) == 1 else f"All {len(gates)} gates passed."
    said = [f"Failed: {', '.join(failed)}."] if failed else []
    said += [f"Undecided for want of evidence: {', '.join(undecided)}."] if undecided else []
    return " ".join(said)
