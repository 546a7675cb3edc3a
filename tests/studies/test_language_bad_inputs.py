"""Bad inputs of a language study: each is one message, and what can be known before the teacher is asked is said before."""

from pathlib import Path
from typing import Any

import pytest
from language_tiny import KINDS, data, study, tokenizer

from tutelage.errors import DataError, TutelageError
from tutelage.evaluation.task_score import ChoiceScore, ExactMatch, PythonScore
from tutelage.models.writing import Sampling
from tutelage.studies import Labels
from tutelage.studies.arm import Silent
from tutelage.studies.language import Filters, Generation
from tutelage.studies.language.speaking import ModuleSpeaker
from tutelage.studies.language.work import begin


@pytest.mark.parametrize(
    ("score", "said"),
    [
        (ChoiceScore(KINDS, "knd"), "row 0 has no 'knd'"),
        (ChoiceScore(KINDS[:2], "kind"), "which is none of the choices"),
        (ChoiceScore([*KINDS, "beast meal"], "kind"), "begin those of 'beast meal'"),
        (ExactMatch("knd", max_new_tokens=3), "row 0 has no 'knd'"),
    ],
)
def test_a_score_that_cannot_be_read_is_found_before_the_teacher_is_asked(
    score: Any, said: str, tmp_path: Path
) -> None:
    """Found when students are asked, the teacher would have written and labelled for hours, and a student been trained."""
    with pytest.raises(TutelageError, match=said):
        begin(study(score=score, labels=Labels()), tmp_path, Silent())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("function", "said"),
    [(lambda text, row: None, "gave None for the test example 0"), (lambda text, row: row["x"], "KeyError: 'x'")],
)
def test_a_users_score_that_fails_is_named(function: Any, said: str) -> None:
    """A bare TypeError says neither which function nor which example."""
    speaker = ModuleSpeaker(study().teacher.model, tokenizer(), [1])  # pyright: ignore[reportAttributeAccessIssue]
    test = data().test.first(2)
    with pytest.raises(DataError, match=f"the score 'mine'.*{said}"):
        PythonScore(function, name="mine", max_new_tokens=2)(speaker, test.prompts, test.rows)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda text, row: None, "gave None"),
        (lambda text, row: row["x"], "fails for the completion 'beast'.*KeyError: 'x'"),
    ],
)
def test_a_filter_that_fails_is_named(function: Any, said: str, tmp_path: Path) -> None:
    """None would drop every completion, and an error of its own say nothing of the example."""
    generation = Generation(Sampling(3, greedy=True), filters=Filters(python=function, python_name="mine.py:keep"))
    asked = study(data=data(completed=False), completions="teacher", generation=generation, score=None)
    with pytest.raises(DataError, match=f"the filter mine.py:keep {said}"):
        asked.generate(tmp_path)
