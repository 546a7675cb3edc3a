"""Schedules: a weight or a temperature as a function of training progress, 0 at the first step and 1 at the last.

Progress outside [0, 1] is clipped to it: the last step of a run may overshoot by a rounding error.
"""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Protocol, runtime_checkable

from tutelage.errors import ConfigError


@runtime_checkable
class Schedule(Protocol):
    """A number that may change as training goes on."""

    def __call__(self, progress: float) -> float:
        """The value at ``progress`` in [0, 1]."""
        ...

    def extremes(self) -> tuple[float, float]:
        """The lowest and the highest value over the whole of training."""
        ...

    def scaled(self, factor: float) -> Schedule:
        """The same schedule, times ``factor``."""
        ...

    def describe(self) -> float | dict[str, Any]:
        """What a config would say: a number, or ``{"schedule": name, …}``."""
        ...


def _clip(progress: float) -> float:
    if math.isnan(progress):
        raise ConfigError("progress is NaN: give the fraction of the training that is done, 0 to 1")
    return min(max(progress, 0.0), 1.0)


@dataclass(frozen=True)
class Constant:
    """``value`` throughout."""

    value: float

    def __post_init__(self) -> None:
        _make_finite(self, "value")

    def __call__(self, progress: float) -> float:  # noqa: ARG002 - the same at every progress
        """``value``."""
        return self.value

    def extremes(self) -> tuple[float, float]:
        """``value`` twice."""
        return self.value, self.value

    def scaled(self, factor: float) -> Constant:
        """A constant of ``value · factor``."""
        return Constant(self.value * factor)

    def describe(self) -> float:
        """The number itself."""
        return self.value


@dataclass(frozen=True)
class Linear:
    """From ``start`` to ``end`` in a straight line."""

    start: float
    end: float

    def __post_init__(self) -> None:
        _make_finite(self, "start", "end")

    def __call__(self, progress: float) -> float:
        """The value at ``progress``."""
        done = _clip(progress)
        return (1.0 - done) * self.start + done * self.end

    def extremes(self) -> tuple[float, float]:
        """The ends, lower first."""
        return min(self.start, self.end), max(self.start, self.end)

    def scaled(self, factor: float) -> Linear:
        """Both ends times ``factor``."""
        return Linear(self.start * factor, self.end * factor)

    def describe(self) -> dict[str, Any]:
        """The mapping of a config."""
        return {"schedule": "linear", "start": self.start, "end": self.end}


@dataclass(frozen=True)
class Cosine:
    """From ``start`` to ``end`` along half a cosine: slow at both ends, fastest half-way."""

    start: float
    end: float

    def __post_init__(self) -> None:
        _make_finite(self, "start", "end")

    def __call__(self, progress: float) -> float:
        """The value at ``progress``."""
        done = (1.0 - math.cos(math.pi * _clip(progress))) / 2.0
        return (1.0 - done) * self.start + done * self.end

    def extremes(self) -> tuple[float, float]:
        """The ends, lower first."""
        return min(self.start, self.end), max(self.start, self.end)

    def scaled(self, factor: float) -> Cosine:
        """Both ends times ``factor``."""
        return Cosine(self.start * factor, self.end * factor)

    def describe(self) -> dict[str, Any]:
        """The mapping of a config."""
        return {"schedule": "cosine", "start": self.start, "end": self.end}


@dataclass(frozen=True)
class Piecewise:
    """Straight lines from point to point; constant before the first and after the last.

    Args:
        points: ``(progress, value)`` pairs with progress in [0, 1], rising. For a jump, put two points close together.
    """

    points: tuple[tuple[float, float], ...]

    def __init__(self, points: Sequence[Sequence[float]]) -> None:
        given: Any = points
        try:
            pairs = tuple((_number(at, "progress"), _number(value, "value")) for at, value in given)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"piecewise points {given!r} are not pairs of numbers: write [[progress, value], …], e.g. [[0, 8], [0.5, 2]]"
            ) from error
        places = [at for at, _ in pairs]
        if not pairs or places[0] < 0.0 or places[-1] > 1.0 or any(a >= b for a, b in itertools.pairwise(places)):
            raise ConfigError(
                f"piecewise points are at progress {places}: expected at least one, rising, within 0 to 1; "
                "in another order the value in between would be undefined"
            )
        object.__setattr__(self, "points", pairs)

    def __call__(self, progress: float) -> float:
        """The value at ``progress``."""
        done = _clip(progress)
        at, value = self.points[0]
        for next_at, next_value in self.points:
            if done < next_at:
                part = (done - at) / (next_at - at) if next_at > at else 0.0
                return (1.0 - part) * value + part * next_value
            at, value = next_at, next_value
        return value

    def extremes(self) -> tuple[float, float]:
        """The lowest and highest point: between points it is straight."""
        values = [value for _, value in self.points]
        return min(values), max(values)

    def scaled(self, factor: float) -> Piecewise:
        """Every value times ``factor``."""
        return Piecewise([(at, value * factor) for at, value in self.points])

    def describe(self) -> dict[str, Any]:
        """The mapping of a config."""
        return {"schedule": "piecewise", "points": [list(point) for point in self.points]}


_FORMS: Mapping[str, tuple[Callable[..., Schedule], tuple[str, ...]]] = {
    "constant": (Constant, ("value",)),
    "linear": (Linear, ("start", "end")),
    "cosine": (Cosine, ("start", "end")),
    "piecewise": (Piecewise, ("points",)),
}


def as_schedule(value: float | Schedule | Mapping[str, Any]) -> Schedule:
    """A schedule from a number, a schedule, or the mapping that a config holds.

    Mappings: ``{schedule: linear, start: 8, end: 1}``, ``{schedule: cosine, start: 8, end: 1}``,
    ``{schedule: piecewise, points: [[0, 8], [0.5, 2]]}``, ``{schedule: constant, value: 4}``.

    Raises:
        ConfigError: anything else, or a number that is not finite.
    """
    if isinstance(value, Mapping):
        return _from_mapping(value)
    if isinstance(value, Schedule):
        return value
    return Constant(_number(value, "schedule"))


def _from_mapping(value: Mapping[str, Any]) -> Schedule:
    name = str(value.get("schedule"))
    if name not in _FORMS:
        raise ConfigError(f"unknown schedule {name!r}{nearest(name, _FORMS)}: one of {', '.join(_FORMS)}, or a number")
    form, keys = _FORMS[name]
    given = {key: item for key, item in value.items() if key != "schedule"}
    for key in given:
        if key not in keys:
            raise ConfigError(f"schedule {name!r} has no {key!r}{nearest(key, keys)}: it takes {', '.join(keys)}")
    missing = [key for key in keys if key not in given]
    if missing:
        raise ConfigError(f"schedule {name!r} lacks {', '.join(missing)}: it takes {', '.join(keys)}")
    return form(**given)


def nearest(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    """``" (did you mean 'x'?)"`` for the known name nearest to ``name``, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ConfigError(
            f"{what} is {value!r}: expected a finite number, or a schedule such as {{schedule: linear, start: 8, end: 1}}"
        )
    return float(value)


def _make_finite(schedule: object, *names: str) -> None:
    for name in names:
        object.__setattr__(schedule, name, _number(getattr(schedule, name), name))
