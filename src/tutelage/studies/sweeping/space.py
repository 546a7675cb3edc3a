"""What a sweep varies: choices and ranges, the points of a grid, and the next point of a search."""

from __future__ import annotations

import itertools
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Literal

import numpy as np

from tutelage.errors import ConfigError, missing_extra

Json = dict[str, Any]
Params = dict[str, Any]
Direction = Literal["maximize", "minimize"]

#: Suggestions that were made before are made again so often; then a point that is left is drawn.
_ATTEMPTS = 10


@dataclass(frozen=True)
class Choices:
    """One of these values; any that YAML can write.

    Raises:
        ConfigError: none, or one of them twice.
    """

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        written = [canonical(value) for value in self.values]
        twice = [text for text in written if written.count(text) > 1]
        if not written or twice:
            raise ConfigError(
                f"{f'{twice[0]} is there twice' if twice else 'there is nothing to choose from'}: expected at least one value, each once"
            )

    def to_json(self) -> list[Any]:
        """As in the config."""
        return list(self.values)


@dataclass(frozen=True)
class Range:
    """A number from ``low`` to ``high``, both included.

    Args:
        low: the least.
        high: the most.
        log: even on a logarithmic scale.
        step: a multiple of it above ``low``.
        integer: whole numbers alone.

    Raises:
        ConfigError: nothing lies in it, or its parts do not go together.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None
    integer: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ConfigError(f"it goes from {self.low:g} to {self.high:g}: expected finite numbers, low below high")
        if self.log and self.low <= 0:
            raise ConfigError(f"low is {self.low:g} on a logarithmic scale, which has nothing at or below 0")
        if self.log and self.step is not None:
            raise ConfigError(
                "log and step do not go together: steps are even on a linear scale; leave one of them out"
            )
        if self.step is not None and not self.step > 0:
            raise ConfigError(f"step is {self.step:g}, expected more than 0")
        parts = [self.low, self.high, *([] if self.step is None else [self.step])]
        if self.integer and any(part != int(part) for part in parts):
            raise ConfigError(
                f"integer, but {', '.join(f'{part:g}' for part in parts if part != int(part))} is no whole number"
            )
        if self.step is not None:
            steps = (self.high - self.low) / self.step
            if abs(steps - round(steps)) > 1e-9 * max(1.0, steps):
                last = self.low + math.floor(steps) * self.step
                raise ConfigError(
                    f"no whole number of steps of {self.step:g} leads from {self.low:g} to {self.high:g}: high would never be tried; "
                    f"set high to {last:g}"
                )

    @property
    def values(self) -> list[Any] | None:
        """Every value, where they can be counted."""
        step = self.step if self.step is not None else 1.0 if self.integer else None
        if step is None:
            return None
        made = [self.low + index * step for index in range(round((self.high - self.low) / step) + 1)]
        return [self.plain(value) for value in made]

    def plain(self, value: float) -> float | int:
        """A value as it is tried and shown: whole, or with few digits (five significant ones where no step says), in the range."""
        if self.integer:
            return int(value)
        return min(max(float(f"{value:.{5 if self.step is None else 12}g}"), self.low), self.high)

    def to_json(self) -> Json:
        """As in the config."""
        made: Json = {"low": self.plain(self.low), "high": self.plain(self.high)}
        made |= {"log": True} if self.log else {}
        made |= {"step": self.step} if self.step is not None else {}
        return made | ({"integer": True} if self.integer else {})


Space = Mapping[str, Choices | Range]


def canonical(value: Any) -> str:
    """One text for one value, whatever the order of its keys."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)


def short_hash(value: Any) -> str:
    """What a folder is named by."""
    return sha256(canonical(value).encode()).hexdigest()[:16]


def is_grid(space: Space) -> bool:
    """Whether every key has a list of choices."""
    return all(isinstance(dimension, Choices) for dimension in space.values())


def points_of(space: Space) -> list[Params] | None:
    """Every point, the last key varying fastest; None where they cannot be counted."""
    values = [list(found) if (found := dimension.values) is not None else None for dimension in space.values()]
    if any(found is None for found in values):
        return None
    return [dict(zip(space, point, strict=True)) for point in itertools.product(*[found or [] for found in values])]


def probes_of(space: Space) -> list[tuple[str | None, Params]]:
    """The first point, then every other value of each key (a range's ends) with the first of the others.

    Returns:
        Pairs of the key that differs from the first point, None for that point itself, and the point.
    """
    ends = {
        key: list(d.values) if isinstance(d, Choices) else [d.plain(d.low), d.plain(d.high)] for key, d in space.items()
    }
    first = {key: values[0] for key, values in ends.items()}
    others = [(key, first | {key: value}) for key, values in ends.items() for value in values[1:]]
    return [(None, first), *others]


def import_optuna() -> Any:
    """Optuna, told to keep its lines to itself.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise missing_extra("optuna", "sweep", "tutelage sweep") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def distributions(space: Space) -> dict[str, Any]:
    """The space in Optuna's terms."""
    optuna = import_optuna()
    made: dict[str, Any] = {}
    for key, dimension in space.items():
        if isinstance(dimension, Choices):
            made[key] = optuna.distributions.CategoricalDistribution([_stored(v, dimension) for v in dimension.values])
        elif dimension.integer:
            low, high, step = int(dimension.low), int(dimension.high), int(dimension.step or 1)
            made[key] = optuna.distributions.IntDistribution(low, high, log=dimension.log, step=step)
        else:
            made[key] = optuna.distributions.FloatDistribution(
                dimension.low, dimension.high, log=dimension.log, step=dimension.step
            )
    return made


def to_storage(space: Space, params: Params) -> dict[str, Any]:
    """A point as Optuna's storage and its dashboard show it."""
    return {
        key: _stored(params[key], dimension) if isinstance(dimension, Choices) else params[key]
        for key, dimension in space.items()
    }


def _stored(value: Any, choices: Choices) -> Any:
    # Optuna's categories are plain values, told apart by ==, by which 1, 1.0 and True are one
    plain = all(item is None or isinstance(item, str | int | float) for item in choices.values)
    distinct = len({item for item in choices.values}) == len(choices.values) if plain else False  # noqa: C416
    return value if distinct else canonical(value)


def suggest(
    space: Space,
    settled: Sequence[tuple[Params, float]],
    asked: Sequence[Params],
    taken: Sequence[Params],
    direction: Direction,
    seed: tuple[int, int],
) -> Params:
    """The next point by Optuna's TPE sampler (Bergstra et al. 2011); the same for the same arguments.

    Args:
        space: what varies.
        settled: the points that the sampler may know, with their values.
        asked: those whose values are still to come: points near them are avoided (the constant liar).
        taken: every point there is so far, which is not suggested again.
        direction: what is better.
        seed: the search's seed and the trial's number.
    """
    optuna = import_optuna()
    made = distributions(space)
    known = {canonical(params) for params in taken}
    state = optuna.trial.TrialState
    for attempt in range(_ATTEMPTS):
        drawn = int(np.random.SeedSequence([*seed, attempt]).generate_state(1)[0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(seed=drawn, multivariate=True, constant_liar=True)
        study = optuna.create_study(sampler=sampler, direction=direction)
        for params, value in settled:
            stored = to_storage(space, params)
            study.add_trial(optuna.trial.create_trial(params=stored, distributions=made, value=value))
        for params in asked:
            stored = to_storage(space, params)
            study.add_trial(optuna.trial.create_trial(params=stored, distributions=made, state=state.RUNNING))
        found = _from_storage(space, study.ask(made).params)
        if canonical(found) not in known:
            return found
    left = [point for point in points_of(space) or [] if canonical(point) not in known]
    return left[int(np.random.default_rng(seed).integers(len(left)))] if left else found  # pyright: ignore[reportPossiblyUnboundVariable]


def _from_storage(space: Space, stored: Mapping[str, Any]) -> Params:
    params: Params = {}
    for key, dimension in space.items():
        if isinstance(dimension, Choices):
            params[key] = next(value for value in dimension.values if _stored(value, dimension) == stored[key])
        else:
            params[key] = dimension.plain(stored[key])
    return params
