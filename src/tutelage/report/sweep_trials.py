"""Reading ``sweep.json``: its trials, best first, and the keys that they vary."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from tutelage.errors import DataError
from tutelage.report.charts import cut
from tutelage.report.record import Record, interval, mapping, number, records, sequence, text
from tutelage.report.words import Metric, amount, difference, metric_named, objective_text, scientific

#: Characters of a value: a term's options or a map of layers may be a value too.
LONGEST_VALUE = 48


@dataclass(frozen=True)
class Trial:
    """One configuration.

    Args:
        name: its number.
        params: the value of every key.
        state: ``"complete"``, ``"failed"`` or ``"running"``.
        error: why it failed; empty where it did not.
        seeds: what each of its seeds left.
        mean: each metric's mean over seeds, on the validation split.
        ci: its 95% interval.
    """

    name: str
    params: Record
    state: str
    error: str
    seeds: Sequence[Record]
    mean: Record
    ci: Record

    def value(self, metric: str) -> float | None:
        """The mean of a metric, of a complete trial."""
        return number(self.mean.get(metric)) if self.state == "complete" else None

    def between(self, metric: str) -> tuple[float, float] | None:
        """Its interval."""
        return interval(self.ci.get(metric))

    @property
    def seconds(self) -> float | None:
        """What all its seeds took; None where nothing was timed."""
        spent = [value for seed in self.seeds if (value := number(seed.get("seconds"))) is not None]
        return sum(spent) if spent else None


@dataclass(frozen=True)
class Key:
    """What a sweep varies.

    Args:
        key: dotted, as in the config.
        name: short, for people.
        values: the distinct ones that were tried: numbers in order, others as they came.
        numeric: whether all of them are numbers.
        listed: whether they were listed beforehand; else they were drawn from a range.
        log: whether they are to be seen on a logarithmic axis.
        importance: its share of what the metric varied by, or None.
    """

    key: str
    name: str
    values: Sequence[object]
    numeric: bool
    listed: bool
    log: bool
    importance: float | None

    def of(self, trial: Trial) -> object:
        """The trial's value."""
        return trial.params.get(self.key)

    def number_of(self, trial: Trial) -> float | None:
        """The trial's value as a number."""
        return number(trial.params.get(self.key))


@dataclass(frozen=True)
class Sweep:
    """A sweep's record, read once."""

    record: Record

    @cached_property
    def search(self) -> Record:
        """What was asked for."""
        return mapping(self.record.get("search"))

    @cached_property
    def metric(self) -> str:
        """What trials were chosen by."""
        return text(self.search.get("metric"), "accuracy")

    @property
    def measure(self) -> Metric:
        """How that is named and written."""
        return metric_named(self.metric)

    @cached_property
    def higher(self) -> bool:
        """Whether more of it is better."""
        return self.search.get("direction", "maximize" if self.measure.higher_is_better else "minimize") != "minimize"

    @cached_property
    def trials(self) -> list[Trial]:
        """The complete ones, best first (then by NLL and number, as the winner is chosen); those that run; those that failed."""

        def order(trial: Trial) -> tuple[int, float, float]:
            value = trial.value(self.metric)
            if value is None:
                return (2 if trial.state == "failed" else 1, 0.0, 0.0)
            return (0, -value if self.higher else value, trial.value("nll") or 0.0)

        return sorted((_trial(found) for found in records(self.record.get("trials"))), key=order)

    @cached_property
    def complete(self) -> list[Trial]:
        """Those that have a value, best first."""
        return [trial for trial in self.trials if trial.value(self.metric) is not None]

    @cached_property
    def best(self) -> Trial | None:
        """The one that the record names; the first of the complete where it names none."""
        named = text(self.record.get("best"))
        return next((trial for trial in self.complete if trial.name == named), None) or next(iter(self.complete), None)

    @cached_property
    def scratch(self) -> tuple[float | None, tuple[float, float] | None]:
        """The metric of the same student on labels alone, on the validation split, and its interval."""
        line = mapping(self.record.get("scratch"))
        return (
            number(mapping(line.get("mean")).get(self.metric)),
            interval(mapping(line.get("ci95")).get(self.metric)),
        )

    @cached_property
    def keys(self) -> list[Key]:
        """What takes more than one value, in the order of the search space."""
        space = mapping(self.search.get("space"))
        named = [*space, *(key for trial in self.trials for key in trial.params)]
        varied = [key for key in dict.fromkeys(named) if len(_distinct(key, self.trials)) > 1]
        importance = mapping(self.record.get("importance"))
        return [
            _key(key, name, _distinct(key, self.trials), space.get(key), number(importance.get(key)))
            for key, name in zip(varied, key_names(varied), strict=True)
        ]

    @property
    def write(self) -> Callable[[float | None], str]:
        """Writes a value of the metric."""
        return lambda value: amount(self.measure, value)

    def apart(self, a: float, b: float) -> str:
        """How much larger ``a`` is than ``b``."""
        return difference(self.measure, a - b)


def _trial(found: Record) -> Trial:
    state = text(found.get("state"), "running")
    return Trial(
        name=text(found.get("number"), "?"),
        params=mapping(found.get("params")),
        state=state,
        error=text(found.get("error")),
        seeds=records(found.get("seeds")),
        mean=mapping(found.get("mean")),
        ci=mapping(found.get("ci95")),
    )


def _distinct(key: str, trials: Sequence[Trial]) -> list[object]:
    """The values that a key took: numbers in order, others as they came."""
    found = {json.dumps(trial.params[key], default=str): trial.params[key] for trial in trials if key in trial.params}
    values = list(found.values())
    numbers = [value for value in values if number(value) is not None]
    return sorted(numbers, key=lambda value: number(value) or 0.0) if len(numbers) == len(values) else values


def _key(key: str, name: str, values: Sequence[object], dimension: object, importance: float | None) -> Key:
    numbers = [value for each in values if (value := number(each)) is not None]
    numeric = len(numbers) == len(values)
    positive = numeric and numbers[0] > 0
    asked = mapping(dimension)
    # a range says what it is; choices are meant to be seen by their ratios where those are more even than their differences
    log = positive and (asked.get("log") is True if asked else _geometric(numbers))
    return Key(key, name, values, numeric, not asked, log, importance)


def _geometric(numbers: Sequence[float]) -> bool:
    """Whether numbers in order grow by factors rather than by steps."""
    if len(numbers) < 3 or numbers[-1] < 4 * numbers[0]:
        return False

    def unevenness(steps: Sequence[float]) -> float:
        return max(steps) / min(steps)

    steps = [after - before for before, after in itertools.pairwise(numbers)]
    factors = [math.log(after / before) for before, after in itertools.pairwise(numbers)]
    return unevenness(factors) < unevenness(steps)


def key_names(keys: Sequence[str]) -> list[str]:
    """The last part of each dotted key, or all of it where two would be called the same or it is a place in a list."""
    last = [key.rsplit(".", 1)[-1].replace("_", " ") for key in keys]
    return [name if last.count(name) == 1 and not name.isdigit() else key for key, name in zip(keys, last, strict=True)]


def written(value: object) -> str:
    """A value as a config has it."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "none"}[value]
    if (as_number := number(value)) is not None:
        return (
            scientific(as_number)
            if 0 < abs(as_number) < 0.0001
            else f"{as_number:,.5g}"
            if abs(as_number) < 1e5
            else f"{as_number:,.0f}"
        )
    if "term" in mapping(value):
        return cut(objective_text(mapping(value)), LONGEST_VALUE)
    if isinstance(value, list) and value and all("term" in mapping(item) for item in sequence(value)):
        return cut(" + ".join(objective_text(item) for item in records(value)), LONGEST_VALUE)
    if isinstance(value, Mapping | list):
        return cut(json.dumps(value, default=str, ensure_ascii=False), LONGEST_VALUE)
    return cut(str(value), LONGEST_VALUE)


def settings(sweep: Sweep, params: Record) -> str:
    """``temperature 4, weight 0.5``: what a configuration has that others have not."""
    said = [f"{key.name} {written(params[key.key])}" for key in sweep.keys if key.key in params]
    if not said:
        said = [
            f"{name} {written(value)}" for name, value in zip(key_names(list(params)), params.values(), strict=True)
        ]
    return ", ".join(said) or "settings that are not recorded"


def check_sweep(record: object, where: str) -> Record:
    """The record of a sweep, if a page can be made of it.

    Args:
        record: what was read.
        where: names it in the message, e.g. its path.

    Raises:
        DataError: the search or the trials are absent or of another shape.
    """
    found = mapping(record)
    problems: list[str] = []
    if not isinstance(record, Mapping):
        problems.append(f"the top level is {type(record).__name__}, expected an object")
    if not isinstance(found.get("search"), Mapping):
        problems.append("'search' must be an object that says what was varied")
    trials = found.get("trials")
    if not isinstance(trials, list) or not all(isinstance(trial, Mapping) for trial in sequence(trials)):
        problems.append("'trials' must be a list with one object for each trial")
    if problems:
        raise DataError(
            f"{where} is not the record of a sweep (written by tutelage {text(found.get('tutelage'), 'of an unknown version')}): "
            f"{'; '.join(problems)}. A page made from it would leave trials out unnoticed; run `tutelage sweep` again with the same "
            "config, which writes it anew"
        )
    return found
