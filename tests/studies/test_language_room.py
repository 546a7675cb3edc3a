"""Texts that models are to write: whether they fit is known before anybody writes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from language_tiny import TRAINING, data, study

from tutelage.errors import ConfigError
from tutelage.evaluation.task_score import ExactMatch
from tutelage.models.writing import Sampling
from tutelage.studies.arm import Silent
from tutelage.studies.language import Filters, Generation
from tutelage.studies.language.work import begin
from tutelage.training.on_policy import OnPolicy

SETTINGS: dict[str, Any] = {"arms": ("kd",), "seeds": 1, "training": {**TRAINING, "max_steps": 1}}


def writing(tokens: int, whose: str, max_length: int | None) -> dict[str, Any]:
    """A study in which somebody writes so many tokens; prompts are 2 tokens as the student sees them, 4 as the teacher does."""
    given = data(completed=whose == "student")
    settings = {**SETTINGS, "data": replace(given, max_length=max_length)}
    if whose == "student":
        return {**settings, "on_policy": OnPolicy(1.0, Sampling(tokens), [1])}
    generation = Generation(Sampling(tokens, greedy=True), filters=Filters(finished=False))
    return {**settings, "completions": "teacher", "generation": generation}


@pytest.mark.parametrize("whose", ["student", "teacher"])
def test_what_is_written_is_bound_by_the_longest_length(whose: str, tmp_path: Path) -> None:
    """Texts of any length would be learnt from, and none of them counted as cut; the teacher's prompt is the longer one."""
    begin(study(**writing(6, whose, 10)), tmp_path, Silent())
    begin(study(**writing(20, whose, None)), tmp_path, Silent())
    with pytest.raises(
        ConfigError, match=r"prompts of up to 4 .* 11 in all, and data.max_length is 10.*max_new_tokens to 6"
    ):
        begin(study(**writing(7, whose, 10)), tmp_path, Silent())


@pytest.mark.parametrize("whose", ["student", "teacher"])
def test_what_is_written_is_bound_by_the_positions_of_who_reads_it(whose: str, tmp_path: Path) -> None:
    """The student's prompt and answer fit; behind the teacher's own prompt the same answer goes beyond what it has positions for."""
    begin(study(**writing(28, whose, None)), tmp_path, Silent())
    with pytest.raises(ConfigError, match="33 in all, and the teacher has positions for 32"):
        begin(study(**writing(29, whose, None)), tmp_path, Silent())


@pytest.mark.parametrize("asked", [{"sample_tokens": 31}, {"score": ExactMatch("kind", max_new_tokens=31)}])
def test_what_is_asked_after_the_training_fits(asked: dict[str, Any], tmp_path: Path) -> None:
    """Found out after the first training, that training would have been for nothing."""
    with pytest.raises(ConfigError, match="33 in all, and the student has positions for 32"):
        begin(study(**SETTINGS, **asked), tmp_path, Silent())
