"""What each arm is called on the page says what it differs in."""

from __future__ import annotations

from typing import Any, cast

from tiny import student, study

from tutelage import KL, CrossEntropy
from tutelage.studies.arm_words import arm_words
from tutelage.studies.starting import Arm, Start


def words(arm: Any, **changes: Any) -> str:
    return arm_words(study(extra_arms={"mine": arm}, **changes), "mine", None)


def test_an_arm_that_skips_the_stage_says_so() -> None:
    """It was called 'the same student', beside students that had learnt hidden words first."""
    stage = cast("Any", object())
    same = 0.9 * KL(temperature=1.0) + 0.1 * CrossEntropy()
    told = "the same student, trained with the study’s objective"
    assert words(Arm(stage=False), stage=stage) == f"{told}, without the stage before the task"
    assert words(Arm(same, stage=False), stage=stage) == f"{told}, without the stage before the task"
    assert words(Arm(same), stage=stage) == told
    assert words(Arm(same, stage=False)) == told, "without a stage there is none to skip"
    assert words(CrossEntropy()) == "the same student, trained with another objective"


def test_how_a_student_begins_stands_in_no_brackets_of_its_own() -> None:
    """How it begins has brackets itself: nested ones are hard to read."""
    start = Start("cut from the teacher (layers 1)")
    own = Arm(CrossEntropy(), student=student, start=start)
    assert words(own) == "a student of its own: cut from the teacher (layers 1); trained with another objective"
