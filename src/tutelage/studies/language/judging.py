"""From a language study's evidence to ``ship``, ``hold`` or ``reject``, by the rules of :mod:`tutelage.studies.judging`.

A gate on the score or the KL asks its interval: it passes or fails where the whole of it lies on one side of the limit, and is
undecided in between, or with one seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from tutelage.studies.gates import JUDGED
from tutelage.studies.judging import NO_INTERVAL, ONE_SEED, decide, gate_of, insufficient, undecided
from tutelage.studies.language.arms import SFT, UNTOUCHED
from tutelage.studies.language.gates import LanguageGates

Json = dict[str, Any]


@dataclass(frozen=True)
class Evidence:
    """What a language study's verdict rests on.

    Args:
        arms: the ``arms`` of ``result.json``.
        comparisons: its ``comparisons``.
        cost: its ``cost``.
        gap: its ``gap``; None where there is none.
        metric: what arms are compared on, ``score`` or ``kl``.
        fraction: whether that is a share, told in points.
        values: by arm ``[S, N]``, of the metric, more being better: what an undecided gate is asked of for how much more would decide.
        likeliest: of how many of its likeliest tokens the teacher told, where the KL is of these and the rest as one, a lower bound;
            None where it is of all.
    """

    arms: Mapping[str, Any]
    comparisons: Sequence[Mapping[str, Any]]
    cost: Mapping[str, Any]
    gap: Mapping[str, Any] | None
    metric: str
    fraction: bool
    values: Mapping[str, NDArray[Any]]
    likeliest: int | None = None

    def gain(self, other: str) -> Mapping[str, Any] | None:
        """The comparison of the judged arm with another, turned so that more is better."""
        wanted = (JUDGED, other, self.metric)
        row = next((row for row in self.comparisons if (row["a"], row["b"], row["metric"]) == wanted), None)
        if row is None or row["higher_is_better"]:
            return row
        low, high = row["ci95"]
        turned = [None if high is None else -high, None if low is None else -low]
        return {**row, "difference": -row["difference"], "ci95": turned}

    def amount(self, value: float) -> str:
        """A difference of the metric in words, without its sign."""
        if self.metric == "kl":
            return f"{abs(value):.3g} nats a token"
        return f"{abs(100 * value):.3g} points" if self.fraction else f"{abs(value):.3g}"

    def signed(self, value: float) -> str:
        """A difference with its sign."""
        number = 100 * value if self.fraction and self.metric == "score" else value
        return f"{number:+.3g}".replace("-", "−")


def judge_language(gates: LanguageGates, evidence: Evidence) -> Json:
    """The verdict as ``result.json`` has it."""
    judged = [
        _drop(gates.score_drop_vs_teacher, evidence) if evidence.metric == "score" else None,
        _gain("gain_over_sft", SFT, gates.gain_over_sft, evidence),
        _gain("gain_over_untouched", UNTOUCHED, gates.gain_over_untouched, evidence),
        _closed(gates.gap_closed, evidence),
        _ceiling(gates.kl, evidence),
        _ratio("size_ratio", "bytes", "weights take", gates.size_ratio, evidence.cost),
        _ratio("latency_ratio", "request_ms", "request takes", gates.latency_ratio, evidence.cost),
    ]
    asked = [gate for gate in judged if gate is not None]
    return {"decision": decide(asked), "gates": asked}


def _drop(limit: float | None, evidence: Evidence) -> Json | None:
    if limit is None:
        return None
    name, row = "score_drop_vs_teacher", evidence.gain("teacher")
    drop = 0.0 - row["difference"] if row is not None else None
    if row is None:
        return gate_of(
            name, None, limit, None, "The teacher's score is not known: it can neither write nor score answers here."
        )
    why = insufficient(row, "teacher", one_model=False)
    if why is not None or drop is None:
        return gate_of(name, drop, limit, None, why or "")
    low, high = row["ci95"]
    where = "below" if drop > 0 else "above"
    said = (
        f"The student's score is {evidence.amount(drop)} {where} the teacher's (95% interval of the difference: {evidence.signed(low)} to "
        f"{evidence.signed(high)})"
    )
    allowed = f"the {evidence.amount(limit)} allowed"
    if -low <= limit:
        return gate_of(name, drop, limit, True, f"{said}; all of the interval is within {allowed}.")
    if -high > limit:
        return gate_of(name, drop, limit, False, f"{said}; all of the interval is beyond {allowed}.")
    why = f"{said}; {allowed} lie inside the interval: more seeds or test examples would decide."
    gate = gate_of(name, drop, limit, None, why)
    return undecided(gate, evidence.values.get(JUDGED), evidence.values.get("teacher"), -limit)


def _gain(name: str, other: str, limit: float | None, evidence: Evidence) -> Json | None:
    if limit is None:
        return None
    row = evidence.gain(other)
    gain = row["difference"] if row is not None else None
    why = insufficient(row, other, one_model=False)
    if why is not None or row is None or gain is None:
        return gate_of(name, gain, limit, None, why or "")
    low, high = row["ci95"]
    control = {SFT: "the one fine-tuned without a teacher", UNTOUCHED: "the untouched one"}[other]
    what = "score" if evidence.metric == "score" else "KL to the teacher"
    better = "better" if gain >= 0 else "worse"
    said = (
        f"The distilled student's {what} is {evidence.amount(gain)} {better} than that of {control} (95% interval of the gain: "
        f"{evidence.signed(low)} to {evidence.signed(high)})"
    )
    asked = f"a gain of more than {'' if limit >= 0 else 'minus '}{evidence.amount(limit)}" if limit else "a gain"
    if low > limit:
        return gate_of(name, gain, limit, True, f"{said}; all of the interval is {asked}.")
    if high <= limit:
        return gate_of(name, gain, limit, False, f"{said}; none of the interval is {asked}.")
    chance = "that cannot be told from chance" if not limit else "more seeds or test examples would decide"
    gate = gate_of(name, gain, limit, None, f"{said}; only part of the interval is {asked}: {chance}.")
    return undecided(gate, evidence.values.get(JUDGED), evidence.values.get(other), limit)


def _closed(limit: float | None, evidence: Evidence) -> Json | None:
    if limit is None:
        return None
    name, gap = "gap_closed", evidence.gap
    if gap is None or gap["closed"] is None:
        why = (
            "There is no gap to close: the data do not show that the teacher does better than the untouched student, or one of the two "
            "was not measured."
        )
        return gate_of(name, None, limit, None, why)
    low, high = gap["ci95"]
    if len(evidence.arms[JUDGED]["seeds"]) < 2:
        return gate_of(name, gap["closed"], limit, None, ONE_SEED)
    if low is None or high is None:
        return gate_of(name, gap["closed"], limit, None, NO_INTERVAL)
    said = (
        f"{100 * gap['closed']:.1f}% of the way from the untouched student to the teacher is gone (95% interval: {100 * low:.1f}% to "
        f"{100 * high:.1f}%)"
    ).replace("-", "−")
    asked = f"the {100 * limit:.3g}% asked for"
    if low >= limit:
        return gate_of(name, gap["closed"], limit, True, f"{said}; all of the interval is at least {asked}.")
    if high < limit:
        return gate_of(name, gap["closed"], limit, False, f"{said}; all of the interval is below {asked}.")
    why = f"{said}; {asked} lie inside the interval: more seeds or test examples would decide."
    return gate_of(name, gap["closed"], limit, None, why)


def _ceiling(limit: float | None, evidence: Evidence) -> Json | None:
    if limit is None:
        return None
    arm = evidence.arms[JUDGED]
    value, interval = arm["mean"].get("kl"), arm["ci95"].get("kl")
    if value is None or interval is None:
        return gate_of(
            "kl", None, limit, None, "The KL to the teacher is not known: the two have no vocabulary in common."
        )
    if len(arm["seeds"]) < 2:
        return gate_of("kl", value, limit, None, ONE_SEED)
    if None in interval:
        return gate_of("kl", value, limit, None, NO_INTERVAL)
    low, high = interval
    said = f"The per-token KL to the teacher is {value:.3g} nats (95% interval: {low:.3g} to {high:.3g})"
    allowed = f"the {limit:g} allowed"
    if evidence.likeliest is not None and low <= limit:
        bound = f"of its {evidence.likeliest:,} likeliest tokens and all others as one: a lower bound"
        why = f"{said}, {bound}, since the teacher tells of no others; whether the whole is within {allowed} is not known."
        return gate_of("kl", value, limit, None, why)
    if high <= limit:
        return gate_of("kl", value, limit, True, f"{said}; all of the interval is within {allowed}.")
    if low > limit:
        return gate_of("kl", value, limit, False, f"{said}; all of the interval is beyond {allowed}.")
    return gate_of(
        "kl",
        value,
        limit,
        None,
        f"{said}; {allowed} lies inside the interval: more seeds or test examples would decide.",
    )


def _ratio(name: str, measure: str, what: str, limit: float | None, cost: Mapping[str, Any]) -> Json | None:
    if limit is None:
        return None
    if not cost.get("teacher", {}).get(measure):
        why = "The teacher's cost could not be measured here: it is no module that this machine runs."
        return gate_of(name, None, limit, None, why)
    ratio = cost["student"][measure] / cost["teacher"][measure]
    why = f"The student's {what} {100 * ratio:.3g}% of the teacher's; at most {100 * limit:.3g}% is allowed."
    return gate_of(name, ratio, limit, ratio <= limit, why)
