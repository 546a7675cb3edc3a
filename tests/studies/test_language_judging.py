"""The gates of a language study, on made-up evidence: which way each is read, and what no interval can decide."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tutelage.errors import ConfigError
from tutelage.evaluation import paired_comparison
from tutelage.studies.language import LanguageGates
from tutelage.studies.language.judging import Evidence, judge_language

NO_GATES: dict[str, Any] = dict.fromkeys(vars(LanguageGates()))


def evidence(metric: str = "score", seeds: int = 4, **levels: float) -> Evidence:
    """Arms with a level of the metric each; the same examples are hard for all of them."""
    draws = np.random.default_rng(0)
    hard = draws.normal(0, 0.1, 300)
    levels = {"teacher": 0.8, "untouched": 0.5, "sft": 0.6, "kd": 0.79, **levels}
    scores = {
        arm: level + hard + draws.normal(0, 0.01, (seeds if arm in ("kd", "sft") else 1, 300))
        for arm, level in levels.items()
    }
    higher = metric == "score"
    rows = [
        {"a": "kd", "b": arm, **paired_comparison(scores["kd"], values, metric, higher_is_better=higher).to_json()}
        for arm, values in scores.items()
        if arm != "kd" and (higher or arm != "teacher")
    ]
    kl = {
        "mean": {"kl": float(scores["kd"].mean())},
        "ci95": {"kl": [float(scores["kd"].mean()) + end for end in (-0.02, 0.02)]},
    }
    cost = {"teacher": {"bytes": 100, "request_ms": 8.0}, "student": {"bytes": 20, "request_ms": 4.0}}
    return Evidence(
        arms={"kd": {"seeds": [{}] * seeds, **kl}},
        comparisons=rows,
        cost=cost,
        gap={"closed": 0.93, "ci95": [0.91, 0.95]},
        metric=metric,
        fraction=higher,
        values={arm: values if higher else -values for arm, values in scores.items()},
    )


def judged(seen: Evidence, **limits: float) -> dict[str, Any]:
    verdict = judge_language(LanguageGates(**{**NO_GATES, **limits}), seen)
    assert len(verdict["gates"]) == len(limits)
    return verdict


@pytest.mark.parametrize(
    ("limits", "passed"),
    [
        ({"score_drop_vs_teacher": 0.03}, True),
        ({"score_drop_vs_teacher": 0.0001}, False),
        ({"gain_over_sft": 0.0}, True),
        ({"gain_over_sft": 0.3}, False),
        ({"gain_over_untouched": 0.2}, True),
        ({"gap_closed": 0.9}, True),
        ({"gap_closed": 0.92}, None),
        ({"gap_closed": 0.96}, False),
        ({"size_ratio": 0.2}, True),
        ({"size_ratio": 0.1}, False),
        ({"latency_ratio": 0.5}, True),
        ({"latency_ratio": 0.4}, False),
    ],
)
def test_each_gate_is_read_the_right_way(limits: dict[str, float], passed: bool | None) -> None:
    """A gate read the wrong way ships what should be rejected."""
    verdict = judged(evidence(), **limits)
    assert verdict["gates"][0]["passed"] is passed, verdict["gates"][0]["why"]
    assert verdict["decision"] == {True: "ship", False: "reject", None: "hold"}[passed]


def test_a_lower_bound_of_the_kl_passes_no_ceiling() -> None:
    """Of a teacher that tells its twenty likeliest tokens, a student that is wrong about all others would be shipped as a near copy."""
    bound = replace(evidence("kl", kd=0.3), likeliest=20)
    gates = [judged(bound, kl=limit)["gates"][0] for limit in (0.4, 0.3, 0.2)]
    assert [gate["passed"] for gate in gates] == [None, None, False]
    assert "of its 20 likeliest tokens and all others as one: a lower bound" in gates[0]["why"]


def test_less_kl_is_a_gain() -> None:
    """Without a task's score less is better: read as a score, the worse student would pass."""
    better = evidence("kl", kd=0.3)
    assert judged(better, gain_over_sft=0.0)["gates"][0]["passed"] is True
    assert judged(better, gain_over_sft=0.0)["gates"][0]["value"] == pytest.approx(0.3, abs=0.01)
    assert "nats a token better" in judged(better, gain_over_sft=0.0)["gates"][0]["why"]
    assert judged(evidence("kl", kd=0.7), gain_over_sft=0.0)["decision"] == "reject"
    assert judge_language(LanguageGates(**{**NO_GATES, "score_drop_vs_teacher": 0.03}), better) == {
        "decision": "hold",
        "gates": [],
    }
    assert [judged(better, kl=limit)["gates"][0]["passed"] for limit in (0.4, 0.3, 0.2)] == [True, None, False]


def test_what_lies_in_the_interval_is_held_with_what_would_decide() -> None:
    """An estimate just past the limit is no evidence, and its user wants to know how much more is."""
    gate = judged(evidence(kd=0.6005), gain_over_sft=0.0)["gates"][0]
    assert gate["passed"] is None
    assert gate["needs"]["why"]


def test_one_seed_and_missing_arms_decide_nothing() -> None:
    """One seed's luck would be shipped; an arm that was left out would pass as beaten."""
    one = evidence(seeds=1)
    for limits in ({"score_drop_vs_teacher": 0.03}, {"gain_over_sft": 0.0}, {"gap_closed": 0.5}, {"kl": 2.0}):
        gate = judged(one, **limits)["gates"][0]
        assert gate["passed"] is None
        assert "One seed" in gate["why"]
    bare = Evidence(
        {"kd": {"seeds": [{}] * 3, "mean": {}, "ci95": {}}}, [], {"student": {"bytes": 1}}, None, "score", True, {}
    )
    limits = dict.fromkeys(NO_GATES, 0.5)
    assert {gate["passed"] for gate in judged(bare, **limits)["gates"]} == {None}


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"kl": -0.1}, "no student could pass"),
        ({"gap_closed": 90}, "0.9 for 90%"),
        ({"gain_over_sft": float("nan")}, "finite"),
        ({"size_ratio": True}, "finite"),
    ],
)
def test_limits_that_could_not_be_meant(limits: dict[str, float], said: str) -> None:
    """A limit in percent where shares are meant passes or fails everything."""
    with pytest.raises(ConfigError, match=said):
        LanguageGates(**limits)


def test_a_reason_has_true_minus_signs() -> None:
    """A hyphen before a number breaks off at the end of a line, and the number below it is then another."""
    why = judged(evidence(kd=0.6, sft=0.605), gain_over_sft=0.0)["gates"][0]["why"]
    assert "−" in why
    assert " -" not in why
