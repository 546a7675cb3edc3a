"""From evidence to a decision: ``ship``, ``hold`` (not enough evidence) or ``reject``.

A gate on accuracy, calibration or flips asks its *interval*, not its mean: it passes when the whole 95% interval lies on
the right side of the limit, fails when the whole of it lies on the wrong side, and is undecided in between. A study judges a
recipe, and one seed cannot tell luck in training from merit, so with one seed every such gate is undecided. An artefact is
one model, judged as it is: there the test examples alone are the sample. A limit belongs to what is allowed ("at most"), except
that of a gain, which must be exceeded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tutelage.evaluation import needed_to_decide, worst
from tutelage.studies.gates import JUDGED, Gates

Decision = Literal["ship", "hold", "reject"]

Json = dict[str, Any]

#: Share of the time that timed threads waited for a core from which on a machine counts as busy.
BUSY = 0.1

#: Why a gate that asks an interval cannot be decided.
ONE_SEED = "One seed cannot tell luck in training from merit: run at least 2 seeds, better 5."
NO_INTERVAL = "No interval could be computed: nothing varies between seeds or examples."


@dataclass(frozen=True)
class Beside:
    """What a verdict may rest on besides the numbers of ``result.json``.

    Args:
        correct: 0/1 by arm, ``[S, N]``: what an undecided gate is asked of for how much more would decide.
        slices: rows of :func:`tutelage.evaluation.slice_table` by column, ``class`` among them.
        baseline_flips: ``{"rate", "ci95"}`` against a previously shipped artefact, or None.
        baseline_correct: 0/1 of that artefact, ``[1, N]``, or None.
        recipe: for an artefact, right answers ``[S, N]`` of the recipe that made it, with what its export changed; a gain is asked of it,
            because the best of S students beats a control's average by being the best.
        one_model: whether one model is judged as it is, and not a recipe over seeds.
        what: who is judged, to begin a sentence with.
    """

    correct: Mapping[str, NDArray[Any]] = field(default_factory=dict[str, NDArray[Any]])
    slices: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict[str, Sequence[Mapping[str, Any]]])
    baseline_flips: Mapping[str, Any] | None = None
    baseline_correct: NDArray[Any] | None = None
    recipe: NDArray[Any] | None = None
    one_model: bool = False
    what: str = "The student"


_NOTHING_BESIDE = Beside()


def judge(
    gates: Gates,
    arms: Mapping[str, Any],
    comparisons: Sequence[Mapping[str, Any]],
    cost: Mapping[str, Any],
    beside: Beside = _NOTHING_BESIDE,
) -> Json:
    """The verdict as ``result.json`` has it; an undecided gate says under ``needs`` how many more seeds or examples would decide.

    Args:
        gates: the limits.
        arms: the ``arms`` of ``result.json``.
        comparisons: its ``comparisons``.
        cost: its ``cost``.
        beside: what else is known.
    """
    judged = [
        _drop_gate(gates.accuracy_drop_vs_teacher, comparisons, beside),
        _gain_gate("gain_over_scratch", "scratch", gates.gain_over_scratch, comparisons, beside),
        _gain_gate(
            "gain_over_label_smoothing", "label_smoothing", gates.gain_over_label_smoothing, comparisons, beside
        ),
        _worst_gate("worst_class_drop", gates.worst_class_drop, beside),
        _worst_gate("worst_slice_drop", gates.worst_slice_drop, beside),
        _ceiling_gate("ece", gates.ece, arms, beside),
        _ceiling_gate("negative_flips", gates.negative_flips, arms, beside),
        _baseline_gate(gates.negative_flips_vs_baseline, beside),
        _ratio_gate("size_ratio", gates.size_ratio, cost, beside.what),
        _ratio_gate("latency_ratio", gates.latency_ratio, cost, beside.what),
    ]
    asked = [gate for gate in judged if gate is not None]
    return {"decision": decide(asked), "gates": asked}


def decide(gates: Sequence[Mapping[str, Any]]) -> Decision:
    """One gate failed: reject. All passed: ship. Else hold; nothing asked is nothing shown."""
    outcomes = [gate["passed"] for gate in gates]
    if False in outcomes:
        return "reject"
    return "ship" if outcomes and all(outcomes) else "hold"


def gate_of(name: str, value: float | None, limit: float | None, passed: bool | None, why: str) -> Json:
    """One gate as ``result.json`` has it."""
    return {"name": name, "value": value, "limit": limit, "passed": passed, "why": why}


def _accuracy_comparison(other: str, comparisons: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    wanted = (JUDGED, other, "accuracy")
    return next((row for row in comparisons if (row["a"], row["b"], row["metric"]) == wanted), None)


def insufficient(comparison: Mapping[str, Any] | None, other: str, one_model: bool) -> str | None:
    """Why a comparison cannot decide anything, or None."""
    if comparison is None:
        return f"There is no arm {other!r} to compare with, so this cannot be decided."
    if comparison["seeds"] < 2 and not one_model:
        return ONE_SEED
    if None in comparison["ci95"]:
        return NO_INTERVAL
    return None


def undecided(gate: Json, a: NDArray[Any] | None, b: NDArray[Any] | None, limit: float) -> Json:
    """An undecided gate with what would decide it, where the scores are at hand to tell."""
    return gate if a is None or b is None else {**gate, "needs": needed_to_decide(a, b, limit).to_json()}


def _points(fraction: float) -> str:
    points = f"{abs(100 * fraction):.3g}"
    return f"{points} point" if points == "1" else f"{points} points"


def _span(low: float, high: float, up: str, down: str) -> str:
    """An interval of differences in words instead of signs, such as ``1.1 to 5.2 points up``."""
    ends = [f"{abs(100 * end):.1f}" for end in (low, high)]
    if low >= 0:
        return f"{ends[0]} to {ends[1]} points {up}"
    if high <= 0:
        return f"{ends[1]} to {ends[0]} points {down}"
    return f"from {ends[0]} points {down} to {ends[1]} points {up}"


def _drop_gate(limit: float | None, comparisons: Sequence[Mapping[str, Any]], beside: Beside) -> Json | None:
    if limit is None:
        return None
    name = "accuracy_drop_vs_teacher"
    comparison = _accuracy_comparison("teacher", comparisons)
    drop = -comparison["difference"] if comparison is not None else None
    why = insufficient(comparison, "teacher", beside.one_model)
    if why is not None or comparison is None or drop is None:
        return gate_of(name, drop, limit, None, why or "")
    low, high = comparison["ci95"]
    moved = f"is {abs(100 * drop):.1f} points of accuracy {'below' if drop > 0 else 'above'} the teacher"
    said = f"{beside.what} {moved} (95% interval: {_span(low, high, 'above', 'below')})"
    if -low <= limit:
        return gate_of(name, drop, limit, True, f"{said}; all of the interval is within the {_points(limit)} allowed.")
    if -high > limit:
        return gate_of(name, drop, limit, False, f"{said}; all of the interval is beyond the {_points(limit)} allowed.")
    more = "more test examples" if beside.one_model else "more seeds or test examples"
    gate = gate_of(
        name, drop, limit, None, f"{said}; the limit of {_points(limit)} lies inside the interval: {more} would decide."
    )
    return undecided(gate, beside.correct.get(JUDGED), beside.correct.get("teacher"), -limit)


def _gain_gate(
    name: str, other: str, limit: float | None, comparisons: Sequence[Mapping[str, Any]], beside: Beside
) -> Json | None:
    if limit is None:
        return None
    comparison = _accuracy_comparison(other, comparisons)
    gain = comparison["difference"] if comparison is not None else None
    # the control is a recipe even where the artefact is one model
    why = insufficient(comparison, other, one_model=False)
    if why is not None or comparison is None or gain is None:
        return gate_of(name, gain, limit, None, why or "")
    low, high = comparison["ci95"]
    control = {"scratch": "labels alone", "label_smoothing": "label smoothing"}[other]
    moved = f"{abs(100 * gain):.1f} points of accuracy {'below' if gain < 0 else 'above'} {control}"
    who = (
        "With the teacher the student"
        if beside.recipe is None
        else "The artefact's recipe, with what the export changed,"
    )
    said = f"{who} is {moved} (95% interval: {_span(low, high, 'above', 'below')})"
    asked = f"a gain of more than {'' if limit >= 0 else 'minus '}{_points(limit)}" if limit else "a gain"
    if low > limit:
        return gate_of(name, gain, limit, True, f"{said}; all of the interval is {asked}.")
    if high <= limit:
        return gate_of(name, gain, limit, False, f"{said}; none of the interval is {asked}.")
    chance = "that cannot be told from chance" if not limit else "more seeds or test examples would decide"
    gate = gate_of(name, gain, limit, None, f"{said}; only part of the interval is {asked}: {chance}.")
    mine = beside.recipe if beside.recipe is not None else beside.correct.get(JUDGED)
    return undecided(gate, mine, beside.correct.get(other), limit)


def _worst_gate(name: str, limit: float | None, beside: Beside) -> Json | None:
    """The class, or slice, that loses most to the teacher: none may lose more than the limit."""
    if limit is None:
        return None
    kind = "class" if name == "worst_class_drop" else "slice"
    columns = ["class"] if kind == "class" else [column for column in beside.slices if column != "class"]
    rows: list[Json] = [{**row, "column": column} for column in columns for row in beside.slices.get(column, ())]
    if not rows:
        why = "There are no slices: name columns under data.metadata." if kind == "slice" else "No classes are known."
        return gate_of(name, None, limit, None, why)
    most = worst(rows)
    if most is None:
        why = f"No {kind} has the two test examples that an interval takes at least: test on more."
        return gate_of(name, None, limit, None, why)
    called = f"{kind} {most['slice']!r}" if kind == "class" else f"slice {most['column']}={most['slice']!r}"
    said = f"The {called} loses most to the teacher, {100 * most['drop']:.1f} points on {most['examples']:,} examples"
    beyond = [row for row in rows if None not in row["ci"] and row["ci"][0] > limit]
    if beyond:
        surest = max(beyond, key=lambda row: row["ci"][0])
        low, high = surest["ci"]
        why = (
            f"{said}; {surest['slice']!r} loses {100 * low:.1f} to {100 * high:.1f} points (simultaneous 95% interval), all beyond the "
            f"{_points(limit)} allowed."
        )
        return gate_of(name, most["drop"], limit, False, why)
    open_rows = [row for row in rows if None in row["ci"] or row["ci"][1] > limit]
    if not open_rows:
        why = f"{said}; every {kind}'s interval (95%, simultaneous) is within the {_points(limit)} allowed."
        return gate_of(name, most["drop"], limit, True, why)
    why = (
        f"{said}; for {len(open_rows)} of {len(rows)} {'classes' if kind == 'class' else 'slices'} the interval (95%, simultaneous) "
        f"reaches beyond the {_points(limit)} allowed, or there is none: more test examples of them would decide."
    )
    return gate_of(name, most["drop"], limit, None, why)


def _ceiling_gate(name: str, limit: float | None, arms: Mapping[str, Any], beside: Beside) -> Json | None:
    if limit is None:
        return None
    arm = arms[JUDGED]
    value, interval = arm["mean"][name], arm["ci95"][name]
    if len(arm["seeds"]) < 2 and not beside.one_model:
        return gate_of(name, value, limit, None, ONE_SEED)
    if None in interval:
        return gate_of(name, value, limit, None, NO_INTERVAL)
    low, high = interval
    if name == "ece":
        said = f"The expected calibration error is {value:.3f} (95% interval: {low:.3f} to {high:.3f})"
        return _against_ceiling(name, value, interval, limit, said, f"the {limit:g} allowed")
    said = _flips_said(beside.what, "the teacher", value, interval)
    gate = _against_ceiling(name, value, interval, limit, said, f"the {100 * limit:.3g}% allowed")
    return _flips_undecided(gate, beside.correct.get(JUDGED), beside.correct.get("teacher"), limit)


def _baseline_gate(limit: float | None, beside: Beside) -> Json | None:
    if limit is None or not beside.one_model:
        return None
    if beside.baseline_flips is None:
        return gate_of(
            "negative_flips_vs_baseline", None, limit, None, "No artefact was named to compare with: give --baseline."
        )
    value, interval = beside.baseline_flips["rate"], beside.baseline_flips["ci95"]
    name = "negative_flips_vs_baseline"
    if None in interval:
        return gate_of(name, value, limit, None, NO_INTERVAL)
    said = _flips_said(beside.what, "the baseline", value, interval)
    gate = _against_ceiling(name, value, interval, limit, said, f"the {100 * limit:.3g}% allowed")
    return _flips_undecided(gate, beside.correct.get(JUDGED), beside.baseline_correct, limit)


def _flips_said(what: str, other: str, value: float, interval: Sequence[float]) -> str:
    low, high = interval
    return f"{what} is wrong where {other} is right on {value:.1%} of the test examples (95% interval: {low:.1%} to {high:.1%})"


def _flips_undecided(gate: Json, correct: NDArray[Any] | None, other: NDArray[Any] | None, limit: float) -> Json:
    if gate["passed"] is not None or correct is None or other is None:
        return gate
    flips = ((np.asarray(correct) == 0) & (np.asarray(other) == 1)).astype(np.float64)
    return undecided(gate, flips, np.zeros_like(flips), limit)


def _against_ceiling(name: str, value: float, interval: Sequence[float], limit: float, said: str, allowed: str) -> Json:
    low, high = interval
    if high <= limit:
        return gate_of(name, value, limit, True, f"{said}; all of the interval is within {allowed}.")
    if low > limit:
        return gate_of(name, value, limit, False, f"{said}; all of the interval is beyond {allowed}.")
    return gate_of(
        name,
        value,
        limit,
        None,
        f"{said}; {allowed} lies inside the interval: more seeds or test examples would decide.",
    )


def _ratio_gate(name: str, limit: float | None, cost: Mapping[str, Any], what: str) -> Json | None:
    if limit is None:
        return None
    kind = "size" if name == "size_ratio" else "latency"

    def measure(who: str) -> float:
        return cost[who]["bytes"] if kind == "size" else cost[who]["latency_ms"]["p50"]

    if "teacher" not in cost or not measure("teacher"):
        why = f"The teacher's {kind} could not be measured here: it is no module that this machine runs."
        return gate_of(name, None, limit, None, why)
    ratio = measure("student") / measure("teacher")
    share = f"{100 * ratio:.3g}% of the teacher's"
    if kind == "size":
        said = f"{what}'s weights take {share} bytes"
        return gate_of(name, ratio, limit, ratio <= limit, f"{said}; at most {100 * limit:.3g}% is allowed.")
    said = f"{what} takes {share} time to answer one example ({measure('student'):.2g} ms)"
    low, high = _ratio_spread(cost, ratio)
    waited = max(cost[who]["latency_ms"].get("waited") or 0.0 for who in ("student", "teacher"))
    if waited > BUSY:
        why = (
            f"{said}, but other programs were at work: the timed threads had no core for {waited:.0%} of the time, so the ratio shows "
            "nothing; measure on a machine that does nothing else."
        )
        return gate_of(name, ratio, limit, None, why)
    allowed = f"at most {100 * limit:.3g}% is allowed"
    if low <= limit < high:
        why = (
            f"{said}; {allowed}, and the medians move so much between processes that it may be {100 * low:.3g}% to {100 * high:.3g}%: "
            "measure longer (--seconds), on a machine that does nothing else."
        )
        return gate_of(name, ratio, limit, None, why)
    return gate_of(name, ratio, limit, ratio <= limit, f"{said}; {allowed}.")


def _ratio_spread(cost: Mapping[str, Any], ratio: float) -> tuple[float, float]:
    """The least and greatest ratio of latencies that the spreads of both medians allow; the ratio itself where none were kept."""
    spreads = [cost[who]["latency_ms"].get("spread") for who in ("student", "teacher")]
    if None in spreads or spreads[1][0] <= 0:
        return ratio, ratio
    (low, high), (teacher_low, teacher_high) = spreads
    return low / teacher_high, high / teacher_low
