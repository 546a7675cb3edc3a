"""From evidence to a decision: ``ship``, ``hold`` (not enough evidence) or ``reject``.

A gate on accuracy, calibration or flips asks its *interval*, not its mean: it passes when the whole 95% interval lies on
the right side of the limit, fails when the whole of it lies on the wrong side, and is undecided in between. One seed
cannot tell luck in training from merit, so with one seed every such gate is undecided.
"""

from __future__ import annotations

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
        for name in ("accuracy_drop_vs_teacher", "size_ratio", "latency_ratio", "ece", "negative_flips"):
            limit = getattr(self, name)
            if limit is not None and limit < 0:
                raise ConfigError(f"gate {name} has the limit {limit}: no student could pass it; expected 0 or more")


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
        _ceiling_gate("ece", "expected calibration error", gates.ece, arms),
        _ceiling_gate("negative_flips", "share of negative flips", gates.negative_flips, arms),
        _ratio_gate("size_ratio", "bytes", gates.size_ratio, cost),
        _ratio_gate("latency_ratio", "latency at batch 1", gates.latency_ratio, cost),
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
        return f"there is no arm {other!r} to compare with, so this cannot be decided"
    if comparison["seeds"] < 2:
        return "one seed cannot tell luck in training from merit: run at least 2 seeds, better 5"
    if comparison["ci95"] is None or None in comparison["ci95"]:
        return "no interval could be computed"
    return None


def _points(value: float) -> str:
    return f"{100 * value:.1f}"


def _drop_gate(limit: float | None, comparisons: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    if limit is None:
        return None
    name = "accuracy_drop_vs_teacher"
    comparison = _accuracy_comparison("teacher", comparisons)
    drop = -comparison["difference"] if comparison is not None else None
    why = _insufficient(comparison, "teacher")
    if why is not None or comparison is None or drop is None:
        return _gate(name, drop, limit, None, why or "")
    least, most = -comparison["ci95"][1], -comparison["ci95"][0]
    span = f"the drop is {_points(drop)} points of accuracy, 95% interval {_points(least)} to {_points(most)}"
    if most < limit:
        return _gate(name, drop, limit, True, f"{span}, all of it within the margin of {_points(limit)}")
    if least > limit:
        return _gate(name, drop, limit, False, f"{span}, all of it beyond the margin of {_points(limit)}")
    return _gate(
        name,
        drop,
        limit,
        None,
        f"{span}, which holds the margin of {_points(limit)}: more seeds or test examples would decide",
    )


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
    span = f"the gain is {_points(gain)} points of accuracy, 95% interval {_points(low)} to {_points(high)}"
    if low > limit:
        return _gate(name, gain, limit, True, f"{span}, all of it above {_points(limit)}")
    if high < limit:
        return _gate(name, gain, limit, False, f"{span}, all of it below {_points(limit)}")
    return _gate(name, gain, limit, None, f"{span}, which holds {_points(limit)}: no gain that can be told from chance")


def _ceiling_gate(name: str, words: str, limit: float | None, arms: Mapping[str, Any]) -> dict[str, Any] | None:
    if limit is None:
        return None
    arm = arms.get(JUDGED)
    if arm is None or name not in arm["mean"]:
        return _gate(name, None, limit, None, f"the {words} was not measured")
    value, interval = arm["mean"][name], arm["ci95"].get(name)
    if len(arm["seeds"]) < 2 or interval is None or None in interval:
        return _gate(
            name, value, limit, None, "one seed cannot tell luck in training from merit: run at least 2 seeds, better 5"
        )
    low, high = interval
    span = f"the {words} is {value:.3f}, 95% interval {low:.3f} to {high:.3f}"
    if high <= limit:
        return _gate(name, value, limit, True, f"{span}, all of it at most {limit:g}")
    if low > limit:
        return _gate(name, value, limit, False, f"{span}, all of it above {limit:g}")
    return _gate(name, value, limit, None, f"{span}, which holds the limit of {limit:g}")


def _ratio_gate(name: str, words: str, limit: float | None, cost: Mapping[str, Any]) -> dict[str, Any] | None:
    if limit is None:
        return None
    if "teacher" not in cost or "student" not in cost:
        return _gate(name, None, limit, None, f"the teacher's {words} could not be measured here")

    def measure(who: str) -> float:
        return cost[who]["bytes"] if name == "size_ratio" else cost[who]["latency_ms"]["p50"]

    ratio = measure("student") / measure("teacher")
    return _gate(
        name,
        ratio,
        limit,
        ratio <= limit,
        f"the student's {words} is {ratio:.2f} of the teacher's; {limit:g} is the most allowed",
    )
