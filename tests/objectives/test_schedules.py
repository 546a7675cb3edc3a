import math

import pytest

from tutelage.errors import ConfigError
from tutelage.objectives import Constant, Cosine, Linear, Piecewise, Schedule, as_schedule


def test_the_shapes():
    assert Constant(3)(0.7) == 3
    assert [Linear(8, 1)(x) for x in (0, 0.5, 1)] == [8, 4.5, 1]
    assert [Cosine(8, 1)(x) for x in (0, 0.5, 1)] == pytest.approx([8, 4.5, 1])
    assert Cosine(1, 0)(0.25) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    steps = Piecewise([[0.2, 8], [0.5, 2], [0.9, 4]])
    assert [steps(x) for x in (0, 0.2, 0.35, 0.5, 0.7, 0.9, 1)] == pytest.approx([8, 8, 5, 2, 3, 4, 4])
    assert Piecewise([[0.5, 2]])(0.1) == 2


@pytest.mark.parametrize("schedule", [Constant(2), Linear(8, 1), Cosine(1, 5), Piecewise([[0, 8], [0.5, 0.5], [1, 3]])])
def test_every_schedule(schedule):
    assert isinstance(schedule, Schedule)
    values = [schedule(x / 100) for x in range(101)]
    assert schedule.extremes() == pytest.approx((min(values), max(values)))
    assert [schedule.scaled(3)(x / 100) for x in range(101)] == pytest.approx([3 * v for v in values])
    assert as_schedule(schedule) is schedule
    assert as_schedule(schedule.describe()) == schedule
    # a last step that overshoots by a rounding error must not extrapolate to a weight below zero
    assert schedule(1 + 1e-6) == schedule(1)
    assert schedule(-1e-6) == schedule(0)


@pytest.mark.parametrize("schedule", [Linear(8, 1), Cosine(1, 5), Piecewise([[0, 8], [1, 3]])])
def test_progress_that_is_not_a_number_is_refused(schedule):
    """Comparisons with NaN are false: clipped, it would become the end of training."""
    with pytest.raises(ConfigError, match="NaN"):
        schedule(math.nan)


def test_ends_are_exact():
    """8 + 1·(0.1 − 8) is 0.09999…: a temperature that ends at 0.1 must end at 0.1, a weight that ends at 0 at 0."""
    for shape in (Linear, Cosine):
        assert shape(8, 0.1)(1.0) == 0.1
        assert shape(0.3, 0.0)(1.0) == 0.0
        assert shape(0.3, 0.9)(0.0) == 0.3


def test_config_forms():
    assert as_schedule(4) == Constant(4)
    assert as_schedule({"schedule": "linear", "start": 8, "end": 1}) == Linear(8, 1)
    assert as_schedule({"schedule": "cosine", "start": 8, "end": 1}) == Cosine(8, 1)
    assert as_schedule({"schedule": "constant", "value": 2}) == Constant(2)
    assert as_schedule({"schedule": "piecewise", "points": [[0, 8], [0.5, 2]]}) == Piecewise(((0, 8), (0.5, 2)))


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("4", "finite number"),
        (True, "finite number"),
        (None, "finite number"),
        (math.inf, "finite number"),
        ({"start": 1, "end": 2}, "unknown schedule"),
        ({"schedule": "liner", "start": 1, "end": 2}, "did you mean 'linear'"),
        ({"schedule": "linear", "start": 1, "stop": 2}, "no 'stop'"),
        ({"schedule": "linear", "start": 1}, "lacks end"),
        ({"schedule": "linear", "start": 1, "end": "x"}, "end is 'x'"),
        ({"schedule": "piecewise", "points": []}, "at least one"),
        ({"schedule": "piecewise", "points": [[0.5, 1], [0.2, 2]]}, "rising"),
        ({"schedule": "piecewise", "points": [[0, 1], [100, 2]]}, "within 0 to 1"),
        ({"schedule": "piecewise", "points": [0, 1]}, "pairs"),
        ({"schedule": "piecewise", "points": 3}, "pairs"),
        ({"schedule": "piecewise", "points": [[0, "x"]]}, "pairs"),
    ],
)
def test_what_is_no_schedule(form, message):
    with pytest.raises(ConfigError, match=message):
        as_schedule(form)
