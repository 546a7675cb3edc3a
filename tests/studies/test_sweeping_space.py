"""What a sweep varies: values that cannot be meant are refused, and the same search asks for the same points."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tutelage.errors import ConfigError
from tutelage.studies.sweeping.space import (
    Choices,
    Range,
    canonical,
    distributions,
    is_grid,
    points_of,
    probes_of,
    suggest,
    to_storage,
)

SPACE = {"rate": Range(1e-4, 1.0, log=True), "kind": Choices(("a", "b"))}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"low": 2, "high": 1}, "low below high"),
        ({"low": 1, "high": math.inf}, "finite"),
        ({"low": 0, "high": 1, "log": True}, "nothing at or below 0"),
        ({"low": 1, "high": 2, "log": True, "step": 0.5}, "do not go together"),
        ({"low": 1, "high": 2, "step": 0}, "more than 0"),
        ({"low": 1, "high": 2.5, "integer": True}, "2.5 is no whole number"),
        ({"low": 0, "high": 1, "step": 0.3}, "set high to 0.9"),
    ],
)
def test_ranges_that_cannot_be_meant(options: dict[str, Any], said: str) -> None:
    """Optuna moves some of these bounds with a warning, and the range tried is not the one written."""
    with pytest.raises(ConfigError, match=said):
        Range(**options)


def test_the_values_of_a_range_that_can_be_counted() -> None:
    """0.1 + 0.2 is not 0.3: a page would show seventeen digits, and a grid point would meet itself as another one."""
    assert Range(0.1, 0.5, step=0.1).values == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert Range(2, 8, step=3, integer=True).values == [2, 5, 8]
    assert Range(1, 4, integer=True).values == [1, 2, 3, 4]
    assert Range(1, 4).values is None


def test_choices_are_there_each_once() -> None:
    """A value twice would be tried twice, and called two values."""
    with pytest.raises(ConfigError, match="there twice"):
        Choices(({"a": 1, "b": 2}, {"b": 2, "a": 1}))
    with pytest.raises(ConfigError, match="nothing to choose from"):
        Choices(())
    assert len(Choices((1, 1.0, True, "1")).values) == 4


def test_points_and_probes() -> None:
    """A point left out of the grid is a configuration that nobody knows was not tried."""
    grid = {"a": Choices((1, 2)), "b": Choices(("x", "y", "z"))}
    points = points_of(grid) or []
    assert is_grid(grid)
    assert not is_grid(SPACE)
    assert points[:4] == [{"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"a": 1, "b": "z"}, {"a": 2, "b": "x"}]
    assert len({canonical(point) for point in points}) == 6
    assert points_of(SPACE) is None
    probes = probes_of(SPACE)
    assert probes[0] == (None, {"rate": 1e-4, "kind": "a"})
    assert probes[1:] == [("rate", {"rate": 1.0, "kind": "a"}), ("kind", {"rate": 1e-4, "kind": "b"})]


@pytest.mark.parametrize("values", [([1, 2], {"term": "kl"}), (1, 1.0), (True, 1), (None, "a"), (1, 2.5)])
def test_any_yaml_value_can_be_a_category(values: tuple[Any, ...]) -> None:
    """Optuna tells categories apart by ==: of 1 and true, or of two lists, it would store and give back the wrong one."""
    space = {"key": Choices(values)}
    category = distributions(space)["key"]
    stored = [to_storage(space, {"key": value})["key"] for value in values]
    assert len({category.to_internal_repr(value) for value in stored}) == len(values)


def suggested(number: int, **changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {"settled": [], "asked": [], "taken": [], "direction": "maximize", "seed": (0, number)}
    return suggest(SPACE, **{**arguments, **changes})


def test_the_same_search_asks_for_the_same_points() -> None:
    """A sampler that draws from a state in memory asks for others after each interruption, and no sweep can be made again."""
    first = [suggested(number) for number in range(4)]
    assert first == [suggested(number) for number in range(4)]
    assert len({canonical(point) for point in first}) == 4
    assert suggested(0, seed=(1, 0)) != first[0]
    assert all(1e-4 <= point["rate"] <= 1.0 and point["kind"] in "ab" for point in first)
    assert all(point["rate"] == float(f"{point['rate']:.5g}") for point in first)


def test_suggestions_learn_from_what_was_found() -> None:
    """If values never reached the sampler, a search would be random draws at the price of one that learns."""
    settled = [
        ({"rate": 10 ** (-4 + index / 5), "kind": "ab"[index % 2]}, -abs(index - 15) / 15) for index in range(20)
    ]
    near = [abs(math.log10(suggested(number, settled=settled)["rate"]) + 1) for number in range(20, 40)]
    blind = [abs(math.log10(suggested(number)["rate"]) + 1) for number in range(20, 40)]
    assert sum(near) / 20 < 0.6 * sum(blind) / 20


def test_no_point_is_suggested_twice_even_of_few() -> None:
    """Of a small space TPE asks again for the point it likes: seeds would be trained that are trained already."""
    space = {"a": Range(1, 3, integer=True), "b": Choices(("x", "y"))}
    taken: list[dict[str, Any]] = []
    for number in range(6):
        settled = [(point, float(point["a"] == 2)) for point in taken]
        taken.append(suggest(space, settled, [], taken, "maximize", (0, number)))
    assert len({canonical(point) for point in taken}) == 6
