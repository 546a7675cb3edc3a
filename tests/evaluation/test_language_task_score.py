"""A task's own score: what counts as right, and what must not count as anything."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from tutelage.data import Ragged
from tutelage.errors import ConfigError, DataError
from tutelage.evaluation.task_score import ChoiceScore, ExactMatch, PythonScore

PROMPTS = Ragged.of([[1], [2], [3]])
ROWS = [{"kind": "food", "n": 1}, {"kind": "place", "n": 2}, {"kind": "food", "n": 3}]


class Parrot:
    """Writes what it was given, and likes choices as it was told."""

    def __init__(self, written: Sequence[str] = (), liked: Sequence[Sequence[float]] = ()) -> None:
        self.written, self.liked = list(written), torch.tensor(liked)
        self.asked: list[int] = []

    def texts(self, prompts: Ragged, max_new_tokens: int) -> list[str]:
        self.asked.append(max_new_tokens)
        return self.written

    def choice_scores(self, prompts: Ragged, choices: Sequence[str]) -> torch.Tensor:
        return self.liked


def test_the_likeliest_choice_counts() -> None:
    """Columns in another order than the choices would score one answer as another."""
    score = ChoiceScore(("place", "food"), "kind")
    found = score(Parrot(liked=[[-3.0, -1.0], [-9.0, -2.0], [-1.0, -0.5]]), PROMPTS, ROWS)
    assert found.tolist() == [1.0, 0.0, 1.0]
    assert score.name == "accuracy over 2 choices"
    assert score.describe() == {"choices": ["place", "food"], "column": "kind"}


def test_a_row_that_no_choice_answers_is_refused() -> None:
    """Scored as wrong, a misspelt label would lower every arm alike and nobody would know."""
    with pytest.raises(DataError, match=r"row 1 has 'place' .* none of the choices"):
        ChoiceScore(("food", "plaice"), "kind")(Parrot(liked=[[0.0, 1.0]] * 3), PROMPTS, ROWS)
    with pytest.raises(DataError, match=r"row 0 has no 'sort'.*'kind', 'n'"):
        ExactMatch("sort")(Parrot(["a"] * 3), PROMPTS, ROWS)
    with pytest.raises(DataError, match="row 2 has no 'n'"):
        ExactMatch("n")(Parrot(["1"] * 3), PROMPTS, [*ROWS[:2], {"n": None}])


@pytest.mark.parametrize("choices", [("food",), ("food", "food"), "food", ()])
def test_choices_between_which_nothing_can_be_chosen(choices: Sequence[str]) -> None:
    """One choice is always right; a text taken for a list of choices would be its letters."""
    with pytest.raises(ConfigError, match="at least two different"):
        ChoiceScore(choices, "kind")


def test_exact_match_ignores_case_and_space_unless_told_otherwise() -> None:
    """'Food' and 'food\\n' are the answer; an exact comparison of generated text finds hardly any."""
    speaker = Parrot([" Food\n", "place  ", "foods"])
    assert ExactMatch("kind", max_new_tokens=9)(speaker, PROMPTS, ROWS).tolist() == [1.0, 1.0, 0.0]
    assert ExactMatch("kind", normalise=False)(speaker, PROMPTS, ROWS).tolist() == [0.0, 0.0, 0.0]
    assert speaker.asked == [9, 64]


def test_a_users_function_sees_text_and_row() -> None:
    """Texts beside other examples' rows would score at random."""
    score = PythonScore(lambda text, row: text.count("a") / row["n"], "a's", max_new_tokens=5)
    assert score(Parrot(["a", "aa", ""]), PROMPTS, ROWS).tolist() == [1.0, 1.0, 0.0]
    assert score.describe()["name"] == "a's"


@pytest.mark.parametrize(
    ("function", "fraction", "said"),
    [
        (lambda text, row: float("nan"), True, "from 0 to 1"),
        (lambda text, row: 100.0, True, "fraction=False"),
        (lambda text, row: float("inf"), False, "a finite number"),
    ],
)
def test_a_number_that_is_none_is_refused(function: Callable[..., float], fraction: bool, said: str) -> None:
    """One NaN makes the mean NaN; a percentage among shares makes a gate pass that should not."""
    with pytest.raises(DataError, match=said):
        PythonScore(function, fraction=fraction)(Parrot(["a"] * 3), PROMPTS, ROWS)
    wide = PythonScore(lambda text, row: 100.0, fraction=False)
    np.testing.assert_array_equal(wide(Parrot(["a"] * 3), PROMPTS, ROWS), [100.0] * 3)
