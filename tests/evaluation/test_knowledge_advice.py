"""The sentences: each warning where its fault is planted and nowhere else, and ranges that follow the logits' scale."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tutelage.evaluation.knowledge import best_renumbering, look_at, quality
from tutelage.evaluation.knowledge_advice import Findings, advice, first_speaking, settled_from, warnings_of
from tutelage.signals import NO_LABEL, Logits

CLASSES, EXAMPLES = 5, 400


def teacher(scale: float, accuracy: float = 0.9, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels: rightly answered in so many cases, with logits of that scale."""
    draws = np.random.default_rng(seed)
    labels = np.arange(EXAMPLES) % CLASSES
    answers = np.where(draws.random(EXAMPLES) < accuracy, labels, (labels + 1 + draws.integers(4, size=EXAMPLES)) % 5)
    return scale * (np.eye(CLASSES)[answers] + 0.1 * draws.normal(size=(EXAMPLES, CLASSES))), labels


def found(scale: float = 3.7, accuracy: float = 0.9, **changes: Any) -> Findings:
    logits, labels = teacher(scale, accuracy)
    fresh, fresh_labels = teacher(scale, accuracy, seed=1)
    return replace(
        Findings(
            classes=["cat", "dog", "eel", "fox", "gnu"],
            table=look_at(Logits(torch.from_numpy(logits)), labels),
            validation=quality(fresh, fresh_labels),
            train=quality(logits, labels),
            renumbering=best_renumbering(fresh.argmax(1), fresh_labels, CLASSES),
            given=False,
        ),
        **changes,
    )


def kinds(findings: Findings) -> list[str]:
    return [warning["kind"] for warning in warnings_of(findings)]


def rival(difference: float, half: float, kind: str = "student") -> dict[str, Any]:
    ci = [difference - half, difference + half]
    about = "5 seeds of this run"
    return {"name": "the student", "kind": kind, "about": about, "accuracy": 0.9, "difference": difference, "ci95": ci}


def test_a_sound_teacher_is_not_warned_of() -> None:
    """A page that always warns is soon not read."""
    assert kinds(found()) == []
    assert kinds(found(rivals=[rival(-0.05, 0.01)])) == []


def test_near_one_hot_targets_and_where_that_stops() -> None:
    (warning,) = warnings_of(found(scale=40.0, accuracy=1.0))
    assert warning["kind"] == "near_one_hot"
    ends = first_speaking(found(scale=40.0, accuracy=1.0).table, 1.05)
    assert f"that stops at T = {ends:g}" in warning["text"]
    assert ends == 8.0
    assert "check their scale" in warnings_of(found(scale=4000.0, accuracy=1.0))[0]["text"]


def test_targets_that_are_washed_out_already() -> None:
    """A teacher that was hardly trained is right and unsure: to advise T = 1 without a word would be to advise noise."""
    (warning,) = warnings_of(found(scale=0.5, accuracy=0.9))
    assert warning["kind"] == "washed_out"
    assert "effective classes of 5" in warning["text"]
    assert "washed_out" not in kinds(found(scale=3.7))


def test_an_over_confident_teacher() -> None:
    (first, *_) = warnings_of(found(scale=9.0, accuracy=0.7))
    assert first["kind"] == "over_confident"
    assert "over_confident" not in kinds(found(scale=2.0, accuracy=0.9)), "it is not sure enough"


def test_a_few_examples_do_not_prove_over_confidence() -> None:
    validation = found().validation | {"over_confidence": 0.05, "over_confidence_se": 0.04}
    assert kinds(found(validation=validation)) == []


def test_a_permuted_label_map_is_named() -> None:
    predictions = np.tile(np.arange(5), 20)
    findings = found(renumbering=best_renumbering(predictions, np.array([1, 2, 0, 3, 4])[predictions], 5))
    (first, *_) = warnings_of(findings)
    assert first["kind"] == "permuted_labels"
    assert "its 0 (cat) is your 1 (dog)" in first["text"]
    assert "fox" not in first["text"], "what is in its place is not listed"
    assert advice(findings)["weight"] == {"low": 0.0, "high": 0.0}


def test_a_teacher_below_the_student_is_not_trusted() -> None:
    worse = found(rivals=[rival(0.05, 0.02)])
    assert kinds(worse) == ["worse_than_student"]
    assert "is worse than the student" in warnings_of(worse)[0]["text"]
    assert advice(worse)["weight"]["high"] <= 0.3
    doubtful = found(rivals=[rival(0.01, 0.02)])
    assert "may be chance" in warnings_of(doubtful)[0]["text"]
    assert advice(doubtful)["weight"]["high"] == 0.9, "what may be chance decides nothing"
    assert kinds(found(rivals=[rival(0.05, 0.02, "baseline")])) == ["worse_than_baseline"]


def seen(plain: float | None, augmented: float | None, agreement: float = 0.97) -> dict[str, Any]:
    return {"plain": {"accuracy": plain}, "augmented": {"accuracy": augmented}, "agreement": agreement}


def test_augmentation_that_the_teacher_was_not_trained_with() -> None:
    """There the labels of unrecognisable views are wrong, and a low weight on the teacher teaches them."""
    given = found(augmentation=seen(0.95, 0.94), given=True)
    assert kinds(given) == ["augmentation"]
    assert advice(given)["weight"] == {"low": 0.9, "high": 1.0}
    assert kinds(found(augmentation=seen(0.95, 0.9))) == ["augmentation"]
    assert kinds(found(augmentation=seen(0.95, 0.94))) == []
    assert "97.0% of augmented" in warnings_of(found(augmentation=seen(None, None), given=True))[0]["text"]


def test_training_labels_that_the_teacher_contradicts() -> None:
    train = found().train
    assert train is not None
    assert kinds(found(train=train | {"accuracy": 0.7})) == ["doubtful_labels"]
    assert kinds(found(train=train | {"accuracy": 0.99})) == ["learnt_by_heart"]
    assert kinds(found(train=None)) == []


@pytest.mark.parametrize("scale", [4.0, 8.0, 16.0])
def test_the_range_follows_the_scale_of_the_logits(scale: float) -> None:
    """Logits twice as large are the same teacher at twice the temperature: a fixed range would fit one of the two."""
    once, twice = (advice(found(scale=s, accuracy=1.0))["temperature"] for s in (scale, 2 * scale))
    assert twice["low"] == 2 * once["low"] or once["low"] == 1.0
    assert twice["high"] == 2 * once["high"]
    assert once["try"][0] == 1.0
    assert once["try"][-1] == once["high"]


def test_unlabelled_examples_make_a_cold_target_news() -> None:
    few = advice(found(scale=40.0, accuracy=1.0, unlabelled=0.9))
    assert few["temperature"]["low"] == 1.0
    assert few["weight"] == {"low": 0.8, "high": 1.0}
    assert advice(found(scale=40.0, accuracy=1.0))["temperature"]["low"] > 1.0


def test_where_nothing_is_labelled_the_balance_is_not_spoken_of() -> None:
    logits, _ = teacher(4.0)
    table = look_at(Logits(torch.from_numpy(logits)), np.full(EXAMPLES, NO_LABEL))
    told = advice(found(table=table, train=None, unlabelled=1.0))
    assert not any("pull" in reason for reason in told["reasons"])
    assert settled_from(table) is None
    assert "no promise" in told["hedge"]


def test_where_the_pull_has_settled() -> None:
    def row(temperature: float, ratio: float) -> dict[str, Any]:
        return {"temperature": temperature, "pull": {"untrained": {"ratio": ratio}}}

    assert settled_from([row(1, 1.0), row(2, 1.9), row(4, 2.02), row(8, 2.0)]) == 4
    assert settled_from([row(1, 1.0), row(2, 1.5), row(4, 2.0)]) is None
