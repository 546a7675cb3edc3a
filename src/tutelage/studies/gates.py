"""From evidence to a decision: ``ship``, ``hold`` (not enough evidence) or ``reject``.

A gate on accuracy, calibration or flips asks its *interval*, not its mean: it passes when the whole 95% interval lies on
the right side of the limit, fails when the whole of it lies on the wrong side, and is undecided in between. One seed
cannot tell luck in training from merit, so with one seed every such gate is undecided. A limit belongs to what is allowed ("at
most"), except that of a gain, which must be exceeded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tutelage.errors import ConfigError

Decision = Literal["ship", "hold", "reject"]

#: The arm that is judged.
JUDGED = "kd"


@dataclass(frozen=True)
class Gates:
    """The limits a student must meet; None leaves a gate out.

    Args:
        accuracy_drop_vs_teacher: non-inferiority margin: how much accuracy (0 … 1) the student may lose to the teacher.
        gain_over_scratch: the accuracy gain over the same student trained on labels alone must exceed this.
        gain_over_label_smoothing: the same, over the student trained with label smoothing.
        size_ratio: bytes of the student over bytes of the teacher, at most.
        latency_ratio: median latency at batch 1, student over teacher, at most.
        ece: expected calibration error of the student, at most.
        negative_flips: fraction of the test examples that the teacher gets right and the student wrong, at most.
    """

    accuracy_drop_vs_teacher: float | None = 0.03
    gain_over_scratch: float | None = 0.0
    gain_over_label_smoothing: float | None = None
    size_ratio: float | None = None
    latency_ratio: float | None = None
    ece: float | None = None
    negative_flips: float | None = None

    def __post_init__(self) -> None:
        for name, limit in vars(self).items():
            if limit is None:
                continue
            if isinstance(limit, bool) or not math.isfinite(limit):
                raise ConfigError(
                    f"gate {name} has the limit {limit}, expected a finite number, or null to leave it out"
                )
            if limit < 0 and name not in ("gain_over_scratch", "gain_over_label_smoothing"):
                raise ConfigError(f"gate {name} has the limit {limit}: no student could pass it; expected 0 or more")
            if abs(limit) >= 1 and name not in ("size_ratio", "latency_ratio"):
                raise ConfigError(
                    f"gate {name} has the limit {limit}, and it is a fraction: every student would be on the same side of it; write "
                    f"{limit / 100:g} for {limit:g} in a hundred"
                )


def judge(
    gates: Gates, arms: Mapping[str, Any], comparisons: Sequence[Mapping[str, Any]], cost: Mapping[str, Any]
) -> dict[str, Any]:
    """The verdict as ``result.json`` has it.

    Args:
        gates: the limits.
        arms: the ``arms`` of ``result.json``.
        comparisons: its ``comparisons``.
        cost: its ``cost``.
    """
    judged = [
        _drop_gate(gates.accuracy_drop_vs_teacher, comparisons),
        _gain_gate("gain_over_scratch", "scratch", gates.gain_over_scratch, comparisons),
        _gain_gate("gain_over_label_smoothing", "label_smoothing", gates.gain_over_label_smoothing, comparisons),
        _ceiling_gate("ece", gates.ece, arms),
        _ceiling_gate("negative_flips", gates.negative_flips, arms),
        _ratio_gate("size_ratio", gates.size_ratio, cost),
        _ratio_gate("latency_ratio", gates.latency_ratio, cost),
    ]
    asked = [gate for gate in judged if gate is not None]
    return {"decision": _decide(asked), "gates": asked}


def _decide(gates: Sequence[Mapping[str, Any]]) -> Decision:
    outcomes = [gate["passed"] for gate in gates]
    if False in outcomes:
        return "reject"
    # Nothing asked is nothing shown.
    return "ship" if outcomes and all(outcomes) else "hold"


def _gate(name: str, value: float | None, limit: float, passed: bool | None, why: str) -> dict[str, Any]:
    return {"name": name, "value": value, "limit": limit, "passed": passed, "why": why}


def _accuracy_comparison(other: str, comparisons: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    wanted = (JUDGED, other, "accuracy")
    return next((row for row in comparisons if (row["a"], row["b"], row["metric"]) == wanted), None)


def _insufficient(comparison: Mapping[str, Any] | None, other: str) -> str | None:
    """Why a comparison cannot decide anything, or None."""
    if comparison is None:
        return f"There is no arm {other!r} to compare with, so this cannot be decided."
    if comparison["seeds"] < 2:
        return _ONE_SEED
    if None in comparison["ci95"]:
        return "No interval could be computed: nothing varies between seeds or examples."
    return None


_ONE_SEED = "One seed cannot tell luck in training from merit: run at least 2 seeds, better 5."


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


def _drop_gate(limit: float | None, comparisons: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    if limit is None:
        return None
    name = "accuracy_drop_vs_teacher"
    comparison = _accuracy_comparison("teacher", comparisons)
    drop = -comparison["difference"] if comparison is not None else None
    why = _insufficient(comparison, "teacher")
    if why is not None or comparison is None or drop is None:
        return _gate(name, drop, limit, None, why or "")
    low, high = comparison["ci95"]
    moved = f"is {abs(100 * drop):.1f} points of accuracy {'below' if drop > 0 else 'above'} the teacher"
    said = f"The student {moved} (95% interval: {_span(low, high, 'above', 'below')})"
    if -low <= limit:
        return _gate(name, drop, limit, True, f"{said}; all of the interval is within the {_points(limit)} allowed.")
    if -high > limit:
        return _gate(name, drop, limit, False, f"{said}; all of the interval is beyond the {_points(limit)} allowed.")
    undecided = (
        f"{said}; the limit of {_points(limit)} lies inside the interval: more seeds or test examples would decide."
    )
    return _gate(name, drop, limit, None, undecided)


def _gain_gate(
    name: str, other: str, limit: float | None, comparisons: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    if limit is None:
        return None
    comparison = _accuracy_comparison(other, comparisons)
    gain = comparison["difference"] if comparison is not None else None
    why = _insufficient(comparison, other)
    if why is not None or comparison is None or gain is None:
        return _gate(name, gain, limit, None, why or "")
    low, high = comparison["ci95"]
    control = {"scratch": "labels alone", "label_smoothing": "label smoothing"}[other]
    moved = f"{abs(100 * gain):.1f} points of accuracy {'below' if gain < 0 else 'above'} {control}"
    said = f"With the teacher the student is {moved} (95% interval: {_span(low, high, 'above', 'below')})"
    asked = f"a gain of more than {'' if limit >= 0 else 'minus '}{_points(limit)}" if limit else "a gain"
    if low > limit:
        return _gate(name, gain, limit, True, f"{said}; all of the interval is {asked}.")
    if high <= limit:
        return _gate(name, gain, limit, False, f"{said}; none of the interval is {asked}.")
    chance = "that cannot be told from chance" if not limit else "more seeds or test examples would decide"
    return _gate(name, gain, limit, None, f"{said}; only part of the interval is {asked}: {chance}.")


def _ceiling_gate(name: str, limit: float | None, arms: Mapping[str, Any]) -> dict[str, Any] | None:
    if limit is None:
        return None
    arm = arms[JUDGED]
    value, interval = arm["mean"][name], arm["ci95"][name]
    if len(arm["seeds"]) < 2:
        return _gate(name, value, limit, None, _ONE_SEED)
    if None in interval:
        return _gate(
            name, value, limit, None, "No interval could be computed: nothing varies between seeds or examples."
        )
    low, high = interval
    if name == "ece":
        said = f"The expected calibration error is {value:.3f} (95% interval: {low:.3f} to {high:.3f})"
        allowed = f"the {limit:g} allowed"
    else:
        flips = f"{value:.1%} of the test examples (95% interval: {low:.1%} to {high:.1%})"
        said = f"The student is wrong where the teacher is right on {flips}"
        allowed = f"the {100 * limit:.3g}% allowed"
    if high <= limit:
        return _gate(name, value, limit, True, f"{said}; all of the interval is within {allowed}.")
    if low > limit:
        return _gate(name, value, limit, False, f"{said}; all of the interval is beyond {allowed}.")
    undecided = f"{said}; {allowed} lies inside the interval: more seeds or test examples would decide."
    return _gate(name, value, limit, None, undecided)


def _ratio_gate(name: str, limit: float | None, cost: Mapping[str, Any]) -> dict[str, Any] | None:
    if limit is None:
        return None

    def measure(who: str) -> float:
        return cost[who]["bytes"] if name == "size_ratio" else cost[who]["latency_ms"]["p50"]

    what = "size" if name == "size_ratio" else "latency"
    if "teacher" not in cost or not measure("teacher"):
        why = f"The teacher's {what} could not be measured here: it is no module that this machine runs."
        return _gate(name, None, limit, None, why)
    ratio = measure("student") / measure("teacher")
    share = f"{100 * ratio:.3g}% of the teacher's"
    said = {
        "size_ratio": f"The student's weights take {share} bytes",
        "latency_ratio": f"The student takes {share} time to answer one example ({measure('student'):.2g} ms)",
    }[name]
    return _gate(name, ratio, limit, ratio <= limit, f"{said}; at most {100 * limit:.3g}% is allowed.")
