"""``Search``: what a sweep tries, in which order, and what it calls better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tutelage.errors import ConfigError, TutelageError
from tutelage.objectives import as_objective
from tutelage.studies.sweeping.board import Board, Trial
from tutelage.studies.sweeping.space import (
    Choices,
    Direction,
    Params,
    Space,
    canonical,
    is_grid,
    points_of,
    probes_of,
    short_hash,
    suggest,
)
from tutelage.studies.sweeping.trials import Candidate, Make

Json = dict[str, Any]
Metric = Literal["accuracy", "nll"]

#: Trials that a search over ranges asks for at a time, where nothing is said.
BATCH = 8


@dataclass(frozen=True)
class Search:
    """Many configurations of one study, each over the same seeds, judged on the validation split.

    A space of choices alone is a grid: every point is tried once. With a range, Optuna's TPE sampler suggests ``trials`` points,
    ``batch`` at a time, each batch from what the batches before it found: so the same search makes the same trials with any
    number of workers, and however often it was cut off; up to rounding where students are trained together, whose stacks
    follow the workers.

    Args:
        space: what varies, by dotted key.
        make: the candidate of a point; of the configuration as it stands for an empty one.
        seeds: of every trial.
        metric: of the validation split, that the winner is chosen by.
        trials: how many, where there is a range.
        batch: how many are suggested at a time.
        seed: of the suggestions.
        storage: a database URL; None for SQLite in the sweep's folder.

    Raises:
        ConfigError: an empty space, trials for a grid or none for a range, or more of them than there are points.
    """

    space: Space
    make: Make
    seeds: Sequence[int] = (0, 1, 2)
    metric: Metric = "accuracy"
    trials: int | None = None
    batch: int = BATCH
    seed: int = 0
    storage: str | None = None

    def __post_init__(self) -> None:
        if not self.space:
            raise ConfigError(
                "search.space is empty: name at least one key that varies, e.g. objective.0.temperature: [1, 2, 4]"
            )
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"search.seeds are {list(self.seeds)}: expected at least one, each once")
        points = points_of(self.space)
        if is_grid(self.space):
            if self.trials is not None:
                raise ConfigError(
                    f"search.trials is {self.trials:,}, but every key has a list of choices: a grid is tried whole, here "
                    f"{len(points or []):,} trials; leave it out, or give a key a range: {{low: 1, high: 8}}"
                )
            return
        ranges = [key for key, dimension in self.space.items() if not isinstance(dimension, Choices)]
        if self.trials is None:
            raise ConfigError(
                f"search.trials is missing: {', '.join(ranges)} {'is a range' if len(ranges) == 1 else 'are ranges'}, of which so many "
                "points are tried; write for example  trials: 40"
            )
        if points is not None and self.trials > len(points):
            raise ConfigError(
                f"search.trials is {self.trials:,}, but the space has {len(points):,} points: none is tried twice"
            )

    @property
    def total(self) -> int:
        """How many trials there are to be."""
        return self.trials if self.trials is not None else len(points_of(self.space) or [])

    @property
    def direction(self) -> Direction:
        """Which values of the metric are better."""
        return "maximize" if self.metric == "accuracy" else "minimize"

    @property
    def sampler(self) -> str:
        """``grid`` or ``tpe``."""
        return "grid" if is_grid(self.space) else "tpe"

    @property
    def name(self) -> str:
        """What tells this search from another in one storage; that it goes on for more trials changes nothing."""
        space = {key: dimension.to_json() for key, dimension in self.space.items()}
        how = {} if is_grid(self.space) else {"batch": self.batch, "seed": self.seed}
        # every value of each key, with the others set as well: what follows other keys shows only there
        made = [self.make(params).identity for _, params in probes_of(self.space)]
        identity = {"space": space, "seeds": list(self.seeds), "metric": self.metric, "made": made, **how}
        return f"tutelage-{short_hash(identity)}"

    def value(self, record: Json) -> float:
        """What a trial is judged by."""
        return float(record["mean"][self.metric])

    def best(self, trials: Sequence[Trial]) -> Trial | None:
        """The best of the complete trials: by the metric, then by NLL, then the first."""
        sign = -1.0 if self.direction == "maximize" else 1.0
        complete = [trial for trial in trials if trial.record is not None and trial.state == "complete"]
        return min(
            complete,
            key=lambda trial: (
                sign * self.value(trial.record or {}),
                (trial.record or {})["mean"]["nll"],
                trial.number,
            ),
            default=None,
        )

    def top_up(self, board: Board) -> None:
        """Put the next trials on the board where it is time for them; the caller sees to it that nobody else does so meanwhile."""
        trials = board.trials()
        if len(trials) >= self.total:
            return
        if is_grid(self.space):
            for number, params in list(enumerate(points_of(self.space) or []))[len(trials) :]:
                board.add(number, params)
            return
        start = len(trials) // self.batch * self.batch
        if not all(trial.settled for trial in trials[:start]):
            return
        settled = [(t.params, self.value(t.record)) for t in trials[:start] if t.state == "complete" and t.record]
        asked = [trial.params for trial in trials[start:]]
        for number in range(len(trials), min(start + self.batch, self.total)):
            taken = [*(trial.params for trial in trials[:start]), *asked]
            params = suggest(self.space, settled, asked, taken, self.direction, (self.seed, number))
            board.add(number, params)
            asked.append(params)

    def over(self, board: Board) -> bool:
        """Whether every trial is settled."""
        trials = board.trials()
        return len(trials) >= self.total and all(trial.settled for trial in trials)

    def check(self, folder: Path) -> None:
        """Find out before the first trial that every configuration can be trained, and all are judged on the same examples.

        Raises:
            TutelageError: names the key and the value.
        """
        probes = probes_of(self.space)
        base = self.make({})
        for key, params in probes:
            candidate = self._checked(key, params, folder)
            if candidate.validation != base.validation:
                raise ConfigError(
                    f"search.space: {said(params)} changes the validation split: its trials would be judged on other examples than the "
                    "others; vary what is learnt from (data.labelled), not how the data is split"
                )
        if is_grid(self.space):
            self._check_grid()

    def _check_grid(self) -> None:
        known: dict[str, Params] = {}
        for params in points_of(self.space) or []:
            try:
                candidate = self.make(params)
            except TutelageError as error:
                raise type(error)(f"search.space, {said(params)}: {error}") from error
            # as the terms understand it: 1 and 1.0, or a default that is said and one that is not
            meant = as_objective(candidate.study.objective).describe()
            same = short_hash({**candidate.identity, "decides": {**candidate.decides, "objective": meant}})
            if same in known:
                raise ConfigError(
                    f"search.space: {said(known[same])} and {said(params)} are one configuration: it would be trained twice and count as "
                    "two draws; leave one of the two values out"
                )
            known[same] = params

    def _checked(self, key: str | None, params: Params, folder: Path) -> Candidate:
        try:
            candidate = self.make(params)
            candidate.study._check(folder)  # pyright: ignore[reportPrivateUsage]  # what its run would do first
        except TutelageError as error:
            found = key if key is not None else self._culprit(params, folder)
            shown = f"{found} = {canonical(params[found])}" if found is not None else said(params)
            raise type(error)(f"search.space, {shown}: {error}") from error
        return candidate

    def _culprit(self, params: Params, folder: Path) -> str | None:
        """The first key whose value alone cannot be trained either."""
        for key, value in params.items():
            try:
                self.make({key: value}).study._check(folder)  # pyright: ignore[reportPrivateUsage]  # as above
            except TutelageError:
                return key
        return None


def said(params: Params) -> str:
    """A point in a line: ``temperature 4, learning_rate 0.01``."""
    ends = [key.rpartition(".")[2] for key in params]
    parts: list[str] = []
    for key, value in params.items():
        end = key.rpartition(".")[2]
        text = canonical(value) if not isinstance(value, str) else value
        parts.append(f"{end if ends.count(end) == 1 else key} {text if len(text) <= 60 else text[:59] + '…'}")
    return ", ".join(parts)
