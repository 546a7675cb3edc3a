"""The verdict: an interval and not a mean decides, one seed never does, and every reason reads as a sentence."""

import math
from typing import Any

import numpy as np
import pytest

from tutelage.errors import ConfigError
from tutelage.studies import Gates, judge
from tutelage.studies.judging import Beside

COST = {
    "teacher": {"bytes": 1000, "latency_ms": {"p50": 0.5}},
    "student": {"bytes": 100, "latency_ms": {"p50": 0.1}},
}
NONE_ASKED = Gates(accuracy_drop_vs_teacher=None, gain_over_scratch=None)


def comparison(other: str, difference: float, low: float | None, high: float | None, seeds: int = 5) -> dict[str, Any]:
    row = {"a": "kd", "b": other, "metric": "accuracy", "difference": difference}
    return row | {"ci95": [low, high], "seeds": seeds}


def arms(seeds: int = 5, **measured: tuple[float, float | None, float | None]) -> dict[str, Any]:
    return {
        "kd": {
            "seeds": [{}] * seeds,
            "mean": {name: mean for name, (mean, _, _) in measured.items()},
            "ci95": {name: [low, high] for name, (_, low, high) in measured.items()},
        }
    }


def only(**asked: float) -> Gates:
    return Gates(**{"accuracy_drop_vs_teacher": None, "gain_over_scratch": None, **asked})


def one_gate(gates: Gates, **given: Any) -> dict[str, Any]:
    (gate,) = judge(gates, given.get("arms", arms()), given.get("comparisons", []), given.get("cost", COST))["gates"]
    return gate


@pytest.mark.parametrize(
    ("low", "high", "passed"),
    [
        (-0.02, 0.01, True),
        (-0.03, -0.01, True),  # the margin itself is allowed
        (-0.0301, -0.01, None),
        (-0.05, -0.03, None),  # one end on the margin is not beyond it
        (-0.05, -0.0301, False),
    ],
)
def test_the_drop_is_judged_by_its_whole_interval(low: float, high: float, passed: bool | None) -> None:
    gate = one_gate(
        only(accuracy_drop_vs_teacher=0.03), comparisons=[comparison("teacher", (low + high) / 2, low, high)]
    )
    assert gate["passed"] is passed
    assert gate["value"] == pytest.approx(-(low + high) / 2), "a drop is positive"
    assert gate["limit"] == 0.03


@pytest.mark.parametrize(
    ("low", "high", "passed"),
    [(0.001, 0.05, True), (0.0, 0.05, None), (-0.01, 0.02, None), (-0.05, 0.0, False), (-0.05, -0.01, False)],
)
@pytest.mark.parametrize("control", ["scratch", "label_smoothing"])
def test_a_gain_must_be_more_than_its_limit(control: str, low: float, high: float, passed: bool | None) -> None:
    gate = one_gate(only(**{f"gain_over_{control}": 0.0}), comparisons=[comparison(control, 0.0, low, high)])
    assert gate["passed"] is passed


@pytest.mark.parametrize(
    ("low", "high", "passed"), [(0.0, 0.05, True), (0.04, 0.06, None), (0.05, 0.07, None), (0.06, 0.07, False)]
)
@pytest.mark.parametrize("name", ["ece", "negative_flips"])
def test_a_ceiling_is_judged_by_its_whole_interval(name: str, low: float, high: float, passed: bool | None) -> None:
    gate = one_gate(only(**{name: 0.05}), arms=arms(**{name: (0.05, low, high)}))
    assert gate["passed"] is passed
    assert gate["value"] == 0.05


@pytest.mark.parametrize(("name", "ratio"), [("size_ratio", 0.1), ("latency_ratio", 0.2)])
def test_a_ratio_is_measured_and_needs_no_interval(name: str, ratio: float) -> None:
    assert one_gate(only(**{name: ratio}))["passed"] is True
    assert one_gate(only(**{name: ratio - 0.01}))["passed"] is False
    assert one_gate(only(**{name: ratio}))["value"] == pytest.approx(ratio)


@pytest.mark.parametrize("name", ["size_ratio", "latency_ratio"])
def test_a_teacher_without_a_cost_leaves_a_ratio_undecided(name: str) -> None:
    """A stored or remote teacher has no bytes here; a division by them would crash after all the training."""
    nothing = {"bytes": 0, "latency_ms": {"p50": 0.0}}
    for cost in ({"student": COST["student"]}, {**COST, "teacher": nothing}):
        gate = one_gate(only(**{name: 0.5}), cost=cost)
        assert (gate["passed"], gate["value"]) == (None, None)
        assert "could not be measured" in gate["why"]


def test_one_seed_never_proves_anything() -> None:
    asked = Gates(gain_over_label_smoothing=0.0, ece=0.5, negative_flips=0.5)
    rows = [comparison(other, 0.5, 0.4, 0.6, seeds=1) for other in ("teacher", "scratch", "label_smoothing")]
    verdict = judge(asked, arms(1, ece=(0.1, 0.05, 0.15), negative_flips=(0.1, 0.05, 0.15)), rows, COST)
    assert verdict["decision"] == "hold"
    assert len(verdict["gates"]) == 5
    for gate in verdict["gates"]:
        assert gate["passed"] is None
        assert "One seed" in gate["why"]


def test_an_interval_without_bounds_decides_nothing() -> None:
    rows = [comparison(other, 0.5, None, None) for other in ("teacher", "scratch")]
    verdict = judge(Gates(ece=0.5), arms(ece=(0.1, None, None)), rows, COST)
    assert [gate["passed"] for gate in verdict["gates"]] == [None] * 3


def test_a_control_that_did_not_run_decides_nothing() -> None:
    gate = one_gate(only(gain_over_scratch=0.0))
    assert gate["passed"] is None
    assert "no arm 'scratch'" in gate["why"]


@pytest.mark.parametrize(
    ("outcomes", "decision"),
    [
        ([], "hold"),
        ([True], "ship"),
        ([True, True], "ship"),
        ([True, None], "hold"),
        ([None], "hold"),
        ([True, False], "reject"),
        ([None, False], "reject"),
        ([False], "reject"),
    ],
)
def test_the_decision_follows_from_the_gates(outcomes: list[bool | None], decision: str) -> None:
    """No gates asked is nothing shown; one failure outweighs any number of passes."""
    names = ["accuracy_drop_vs_teacher", "gain_over_scratch"]
    intervals = {
        "accuracy_drop_vs_teacher": {True: (-0.01, 0.01), False: (-0.5, -0.4), None: (-0.5, 0.1)},
        "gain_over_scratch": {True: (0.01, 0.02), False: (-0.2, -0.1), None: (-0.1, 0.1)},
    }
    asked = dict(zip(names, outcomes, strict=False))
    rows = [
        comparison("teacher" if "teacher" in name else "scratch", 0.0, *intervals[name][outcome])
        for name, outcome in asked.items()
    ]
    verdict = judge(only(**{name: 0.03 if "drop" in name else 0.0 for name in asked}), arms(), rows, COST)
    assert [gate["passed"] for gate in verdict["gates"]] == outcomes
    assert verdict["decision"] == decision


def test_all_seven_gates_come_in_one_order() -> None:
    asked = Gates(0.03, 0.0, 0.0, 0.5, 0.5, 0.05, 0.05)
    rows = [comparison("teacher", 0.0, -0.01, 0.01)]
    rows += [comparison(control, 0.02, 0.01, 0.03) for control in ("scratch", "label_smoothing")]
    verdict = judge(asked, arms(ece=(0.03, 0.02, 0.04), negative_flips=(0.03, 0.02, 0.04)), rows, COST)
    assert verdict["decision"] == "ship"
    assert [gate["name"] for gate in verdict["gates"]] == [
        "accuracy_drop_vs_teacher",
        "gain_over_scratch",
        "gain_over_label_smoothing",
        "ece",
        "negative_flips",
        "size_ratio",
        "latency_ratio",
    ]


@pytest.mark.parametrize(
    ("gates", "given", "why"),
    [
        (
            only(accuracy_drop_vs_teacher=0.05),
            {"comparisons": [comparison("teacher", -0.018, -0.033, -0.003)]},
            "The student is 1.8 points of accuracy below the teacher (95% interval: 0.3 to 3.3 points below); "
            "all of the interval is within the 5 points allowed.",
        ),
        (
            only(accuracy_drop_vs_teacher=0.05),
            {"comparisons": [comparison("teacher", -0.021, -0.074, 0.032)]},
            "The student is 2.1 points of accuracy below the teacher (95% interval: from 7.4 points below to 3.2 points above); "
            "the limit of 5 points lies inside the interval: more seeds or test examples would decide.",
        ),
        (
            only(accuracy_drop_vs_teacher=0.01),
            {"comparisons": [comparison("teacher", 0.012, 0.004, 0.02)]},
            "The student is 1.2 points of accuracy above the teacher (95% interval: 0.4 to 2.0 points above); "
            "all of the interval is within the 1 point allowed.",
        ),
        (
            only(gain_over_scratch=0.0),
            {"comparisons": [comparison("scratch", 0.032, 0.011, 0.052)]},
            "With the teacher the student is 3.2 points of accuracy above labels alone (95% interval: 1.1 to 5.2 points above); "
            "all of the interval is a gain.",
        ),
        (
            only(gain_over_label_smoothing=0.005),
            {"comparisons": [comparison("label_smoothing", -0.03, -0.05, -0.01)]},
            "With the teacher the student is 3.0 points of accuracy below label smoothing (95% interval: 1.0 to 5.0 points below); "
            "none of the interval is a gain of more than 0.5 points.",
        ),
        (
            only(size_ratio=0.25),
            {},
            "The student's weights take 10% of the teacher's bytes; at most 25% is allowed.",
        ),
        (
            only(latency_ratio=0.125),
            {},
            "The student takes 20% of the teacher's time to answer one example (0.1 ms); at most 12.5% is allowed.",
        ),
        (
            only(negative_flips=0.02),
            {"arms": arms(negative_flips=(0.031, 0.021, 0.041))},
            "The student is wrong where the teacher is right on 3.1% of the test examples (95% interval: 2.1% to 4.1%); "
            "all of the interval is beyond the 2% allowed.",
        ),
        (
            only(ece=0.05),
            {"arms": arms(ece=(0.03, 0.02, 0.06))},
            "The expected calibration error is 0.030 (95% interval: 0.020 to 0.060); the 0.05 allowed lies inside the interval: "
            "more seeds or test examples would decide.",
        ),
    ],
)
def test_a_reason_reads_as_a_sentence_without_negative_numbers(gates: Gates, given: dict[str, Any], why: str) -> None:
    assert one_gate(gates, **given)["why"] == why


@pytest.mark.parametrize("name", ["accuracy_drop_vs_teacher", "size_ratio", "latency_ratio", "ece", "negative_flips"])
def test_a_limit_that_nobody_could_meet_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} .* no student could pass it"):
        only(**{name: -0.1})


@pytest.mark.parametrize("name", vars(NONE_ASKED))
@pytest.mark.parametrize("limit", [math.nan, math.inf, True])
def test_a_limit_that_is_no_number_is_refused(name: str, limit: float) -> None:
    """NaN is on no side of anything: the gate would stay undecided for ever, and result.json could not hold it."""
    with pytest.raises(ConfigError, match="expected a finite number"):
        only(**{name: limit})


@pytest.mark.parametrize("name", ["accuracy_drop_vs_teacher", "gain_over_scratch", "ece", "negative_flips"])
def test_a_limit_in_per_cent_is_refused(name: str) -> None:
    """A margin of 3 meant as 3% is 300 points: every student would pass, and be shipped."""
    with pytest.raises(ConfigError, match=r"it is a fraction: .* write 0\.03 for 3 in a hundred"):
        only(**{name: 3})
    assert only(size_ratio=3).size_ratio == 3


def row(name: str, drop: float | None, low: float | None, high: float | None, examples: int = 50) -> dict[str, Any]:
    return {
        "slice": name,
        "examples": examples,
        "accuracy": 0.9,
        "teacher_accuracy": 0.9,
        "drop": drop,
        "ci": [low, high],
    }


@pytest.mark.parametrize(
    ("rows", "passed", "named"),
    [
        ([row("cat", 0.02, -0.01, 0.04), row("dog", 0.01, -0.02, 0.03)], True, "cat"),
        ([row("cat", 0.02, -0.01, 0.06), row("dog", 0.01, -0.02, 0.03)], None, "cat"),
        ([row("cat", 0.2, -0.01, 0.5), row("dog", 0.1, 0.06, 0.14)], False, "dog"),
        ([row("dog", 0.01, -0.02, 0.03), row("cat", 1.0, None, None, 1)], None, "dog"),
        ([row("dog", 0.01, -0.02, 0.03), row("cat", None, None, None, 0)], None, "dog"),
    ],
)
def test_every_class_must_be_within_the_limit(rows: list[dict[str, Any]], passed: bool | None, named: str) -> None:
    """The average hides a class that was lost; the worst *estimate* alone would blame the smallest class for its noise."""
    gates = only(worst_class_drop=0.05)
    (gate,) = judge(gates, arms(), [], COST, Beside(slices={"class": rows}))["gates"]
    assert gate["passed"] is passed
    assert named in gate["why"]
    assert gate["value"] == rows[0]["drop"]


def test_slices_are_judged_over_all_their_columns_and_classes_apart() -> None:
    """A column left out would hide the hospital that was lost; classes counted as slices would be judged twice."""
    slices = {
        "class": [row("cat", 0.5, 0.4, 0.6)],
        "device": [row("phone", 0.0, -0.01, 0.01)],
        "site": [row("north", 0.2, 0.1, 0.3)],
    }
    (gate,) = judge(only(worst_slice_drop=0.05), arms(), [], COST, Beside(slices=slices))["gates"]
    assert gate["passed"] is False
    assert "site='north'" in gate["why"]
    (without,) = judge(only(worst_slice_drop=0.05), arms(), [], COST, Beside(slices={"class": slices["class"]}))[
        "gates"
    ]
    assert without["passed"] is None
    assert "data.metadata" in without["why"]


def test_classes_too_small_to_judge_leave_the_gate_undecided() -> None:
    """A test split without a class would pass its gate, or end the study in an error after hours of training."""
    rows = [row("cat", 1.0, None, None, 1), row("dog", None, None, None, 0)]
    (gate,) = judge(only(worst_class_drop=0.05), arms(), [], COST, Beside(slices={"class": rows}))["gates"]
    assert gate == {**gate, "passed": None, "value": None}
    assert "two test examples" in gate["why"]


def test_one_model_is_judged_without_the_rule_of_seeds_but_not_against_one_seed_of_a_control() -> None:
    """An artefact is one model for good: asked for seeds, it could never ship. Its control is a recipe all the same."""
    gates = only(accuracy_drop_vs_teacher=0.03, gain_over_scratch=0.0)
    compared = [comparison("teacher", 0.0, -0.01, 0.01, seeds=1), comparison("scratch", 0.02, 0.01, 0.03, seeds=1)]
    beside = Beside(one_model=True, what="The artefact")
    drop, gain = judge(gates, arms(seeds=1), compared, COST, beside)["gates"]
    assert drop["passed"] is True
    assert drop["why"].startswith("The artefact")
    assert gain["passed"] is None
    assert "One seed" in gain["why"]
    assert all(gate["passed"] is None for gate in judge(gates, arms(seeds=1), compared, COST)["gates"])


def test_flips_against_a_baseline_are_asked_only_where_there_is_one() -> None:
    """Without a baseline the gate would hold every release for ever."""
    gates = only(negative_flips_vs_baseline=0.02)
    assert judge(gates, arms(), [], COST)["gates"] == [], "a study has nothing shipped to compare with"
    (missing,) = judge(gates, arms(), [], COST, Beside(one_model=True))["gates"]
    assert missing["passed"] is None, "a forgotten --baseline would release"
    for interval, passed in (([0.0, 0.01], True), ([0.01, 0.03], None), ([0.03, 0.05], False)):
        beside = Beside(baseline_flips={"rate": 0.02, "ci95": interval}, one_model=True)
        (gate,) = judge(gates, arms(), [], COST, beside)["gates"]
        assert gate["passed"] is passed
        assert "baseline" in gate["why"]


def test_an_undecided_gate_says_how_much_more_would_decide_and_a_decided_one_does_not() -> None:
    """'More examples' without a number sends people to collect a hundred where ten thousand are needed."""
    generator = np.random.default_rng(0)
    teacher = (generator.random((1, 400)) < 0.95).astype(float)
    student = teacher * (generator.random((3, 400)) < 0.98)
    beside = Beside(correct={"kd": student, "teacher": teacher})
    difference = float((student - teacher).mean())
    compared = [comparison("teacher", difference, difference - 0.02, difference + 0.02, seeds=3)]
    (gate,) = judge(only(accuracy_drop_vs_teacher=0.025), arms(), compared, COST, beside)["gates"]
    assert gate["passed"] is None
    assert gate["needs"]["examples"] is None or gate["needs"]["examples"] > 400
    assert gate["needs"]["why"].endswith(".")
    (decided,) = judge(only(accuracy_drop_vs_teacher=0.2), arms(), compared, COST, beside)["gates"]
    assert "needs" not in decided


@pytest.mark.parametrize(("spread", "passed"), [([0.09, 0.11], True), ([0.09, 0.3], None), ([0.24, 0.3], False)])
def test_a_latency_that_moves_across_the_limit_decides_nothing(spread: list[float], passed: bool | None) -> None:
    """On a busy machine the same model passes one day and fails the next: the noise must not decide a release."""
    latency = {"p50": sum(spread) / 2, "spread": spread}
    cost = {
        "teacher": {"bytes": 1, "latency_ms": {"p50": 0.5, "spread": [0.45, 0.5]}},
        "student": {"bytes": 1, "latency_ms": latency},
    }
    gate = one_gate(only(latency_ratio=0.45), cost=cost)
    assert gate["passed"] is passed
    assert ("--seconds" in gate["why"]) is (passed is None)


def test_a_latency_on_a_busy_machine_decides_nothing() -> None:
    """Another program's work would pass for the teacher's slowness."""
    latency = {"p50": 0.1, "spread": [0.1, 0.1], "waited": 0.4}
    cost = {
        "teacher": {"bytes": 1, "latency_ms": {"p50": 0.5, "spread": [0.5, 0.5], "waited": 0.0}},
        "student": {"bytes": 1, "latency_ms": latency},
    }
    gate = one_gate(only(latency_ratio=0.45), cost=cost)
    assert gate["passed"] is None
    assert "40%" in gate["why"]
