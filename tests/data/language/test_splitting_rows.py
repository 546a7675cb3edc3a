"""Rows of text divided by their content."""

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.data.language import Columns, PromptView, overlapping, read_parts, split_rows
from tutelage.errors import DataError

ROWS = [{"question": f"q{number}", "answer": str(number % 7)} for number in range(200)]


def test_parts_have_their_sizes_and_hold_each_row_once() -> None:
    """A row in two parts is a student tested on what it was taught; one in none is lost."""
    parts = split_rows(ROWS, 0.1, 0.2, seed=3)
    assert [len(part) for part in parts] == [140, 20, 40]
    assert sorted(index for part in parts for index in part) == list(range(200))
    assert all(part == sorted(part) for part in parts)
    assert split_rows(ROWS, 0.1, 0.2, seed=4) != parts
    assert split_rows(ROWS, 0.1, 0.2, seed=3) == parts


@given(st.randoms(use_true_random=False), st.lists(st.integers(0, 30), min_size=40, max_size=80))
def test_a_rows_part_hangs_on_its_content_alone(rng: random.Random, numbers: list[int]) -> None:
    """Sorted otherwise, a file would put last week's test rows among today's training rows; equal rows may not be torn apart."""
    rows = [{"text": str(number), "extra": None} for number in [*numbers, *range(12)]]
    shuffled = list(rows)
    rng.shuffle(shuffled)
    turned = [{"extra": None, "text": row["text"]} for row in shuffled]

    def contents(rows: list[dict[str, Any]]) -> list[set[str]]:
        return [{rows[index]["text"] for index in part} for part in split_rows(rows, 0.2, 0.2)]

    found = contents(rows)
    assert found == contents(turned)
    assert sum(map(len, found)) == len(set.union(*found))


def test_rows_of_one_question_stay_together() -> None:
    """Another answer to a question of the test set would give its answer away."""
    rows = [{"question": str(number // 4), "answer": str(number)} for number in range(200)]
    parts = split_rows(rows, 0.2, 0.2, by="question")
    questions = [{rows[index]["question"] for index in part} for part in parts]
    assert [len(part) for part in questions] == [30, 10, 10]
    assert not questions[0] & questions[2]


def test_rows_that_read_alike_stay_together_whatever_their_numbers() -> None:
    """A text that stands in a table twice, under two numbers, would be learnt under one and tested under the other."""
    rows = [{"id": number, "question": f"q{number // 2}", "note": number, "completion": "yes"} for number in range(80)]
    views = [PromptView(user="{{ question }}"), PromptView(user="{% for x in [1] %}{{ question | upper }}{% endfor %}")]
    read = read_parts(rows, views)
    assert read[5] == {"question": "q2", "completion": "yes"}
    parts = [{rows[index]["question"] for index in part} for part in split_rows(rows, 0.2, 0.2, read=read)]
    assert [len(part) for part in parts] == [24, 8, 8]
    torn = [{rows[index]["question"] for index in part} for part in split_rows(rows, 0.2, 0.2)]
    assert torn[0] & torn[2], "by whole rows this table is torn apart"
    once = rows[::2]
    assert split_rows(once, 0.2, 0.2, read=read_parts(once, views)) == split_rows(once, 0.2, 0.2)


def test_what_is_read_of_a_row() -> None:
    """A column too many tears equal texts apart; one too few keeps rows together that are different examples."""
    row = {"id": 1, "prompt": "p", "completion": "c", "text": "t", "hint": "h", "messages": None}
    plain, fixed = PromptView(), PromptView(text="{{ hint }}")

    def names(*views: PromptView, given: dict[str, Any] = row, **options: Any) -> set[str]:
        return set(read_parts([given], views, **options)[0])

    assert names(plain) == {"prompt", "completion"}
    assert names(plain, answered=False) == {"prompt"}
    assert names(plain, fixed) == {"prompt", "completion", "hint"}
    assert names(fixed) == {"completion", "hint"}
    assert names(fixed, answered=False) == {"hint"}
    assert names(plain, given={**row, "messages": [{"role": "user", "content": "x"}]}) == {"messages"}
    assert names(plain, given={"id": 1, "text": "t"}) == {"text"}
    assert names(plain, columns=Columns(prompt="hint", completion="id")) == {"hint", "id"}
    assert names(PromptView(text="{{ row['odd name'] }}")) == set(row)
    shot = PromptView(user="{{ hint }}", shots=[{"user": "{{ id }}", "assistant": "a"}])
    assert names(shot) == {"hint", "id", "completion"}


def test_a_test_set_that_came_with_the_data_leaves_the_rest_undivided() -> None:
    """A share would be held out twice."""
    train, validation, test = split_rows(ROWS, 0.5)
    assert (len(train), len(validation), test) == (100, 100, [])


def test_rows_that_stand_in_both_tables_are_found() -> None:
    """A test set that was cut out of the same file by hand often overlaps it, and every number is then too good."""
    assert overlapping(ROWS[:4], ROWS[2:6]) == [2, 3]
    other = [{"answer": "other", "question": "q1"}]
    assert overlapping(ROWS[:4], other) == []
    assert overlapping(ROWS[:4], other, by="question") == [1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.5, 0.5), "below 1 together"),
        ((-0.1, 0.5), "at least 0"),
        ((0.001, 0.5), "200 rows, 200 of them different, are too few"),
    ],
)
def test_fractions_that_leave_a_part_empty_are_refused(arguments: tuple[float, float], message: str) -> None:
    """Nothing would be measured on an empty part, and nothing learnt from an empty transfer set."""
    with pytest.raises(DataError, match=message):
        split_rows(ROWS, *arguments)


def test_a_column_that_is_not_there_is_named() -> None:
    """Every row would be alone of its kind."""
    with pytest.raises(DataError, match=r"no column 'qestion'.*did you mean 'question'"):
        split_rows(ROWS, 0.1, 0.1, by="qestion")
