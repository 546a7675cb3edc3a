"""From a config's ``search:`` to a search: which key takes which values, and the study of each configuration."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tutelage.config.building import build_study
from tutelage.config.explaining import nearest
from tutelage.config.reading import check_config
from tutelage.config.schema import SearchSection, StudyConfig, TieSection
from tutelage.errors import ConfigError
from tutelage.objectives import needs_layer_map, objective_from_config
from tutelage.studies import Study
from tutelage.studies.sweeping.search import Search
from tutelage.studies.sweeping.space import Choices, Params, Range, Space, canonical
from tutelage.studies.sweeping.trials import Candidate

Json = dict[str, Any]

#: Sections that decide nothing about a trial: what is done with finished students, and how a run is called.
_WINNERS_OWN = ("title", "task", "study", "gates")

_EXAMPLE = "search: {space: {objective.0.temperature: [1, 2, 4, 8]}, seeds: 3}"


def build_search(config: StudyConfig, folder: Path, command: str) -> Search:
    """The search that a config describes; nothing of it is tried yet.

    Args:
        config: the checked config.
        folder: where it lies; relative paths in it are relative to this.
        command: how the sweep was started, for the winner's record.

    Raises:
        ConfigError: no ``search`` section, or a space that cannot be meant.
    """
    section = config.search
    if section is None:
        raise ConfigError(f"the config has no search section, so nothing would vary; write for example  {_EXAMPLE}")
    if config.stage is not None:
        raise ConfigError(
            "search beside stage: every trial would have to pass the stage anew; run the stage once with `tutelage run`, and search "
            "with the student that it left (student: {model: {hub: RUN/stage/seed-0}}) and without the section stage"
        )
    space = {key: _dimension(key, given) for key, given in section.space.items()}
    for key in [*space, *section.tie]:
        _check_key(key, config)
    _check_ties(section.tie, space)
    seeds = list(range(section.seeds)) if isinstance(section.seeds, int) else list(section.seeds)
    return Search(
        space=space,
        make=ConfigCandidates(config.resolved(), dict(section.tie), folder.resolve(), command),
        seeds=seeds,
        metric=section.metric,
        trials=section.trials,
        batch=section.batch,
        seed=section.seed,
        storage=_storage(section, folder),
    )


@dataclass
class ConfigCandidates:
    """Makes the candidate of a point: the config with the point's values, each data set and teacher read once.

    Args:
        data: the resolved config.
        ties: keys that follow others.
        folder: where the config lies.
        command: for the winner's record.
    """

    data: Json
    ties: Mapping[str, TieSection]
    folder: Path
    command: str
    _studies: dict[str, Study] = field(default_factory=dict[str, Study], repr=False)
    _on_data: dict[str, Study] = field(default_factory=dict[str, Study], repr=False)

    def __call__(self, params: Params) -> Candidate:
        """The candidate of a point; an empty one is the config as it stands.

        Raises:
            TutelageError: what does not fit.
        """
        config = check_config(self._with(params), "config")
        resolved = config.resolved()
        decides = {name: section for name, section in resolved.items() if name not in _WINNERS_OWN}
        decides["data"] = {key: value for key, value in decides["data"].items() if key != "metadata"}
        return Candidate(self._study(config, decides), decides, _taught_by(config, decides))

    def __getstate__(self) -> Json:
        # the studies hold the data and the teacher: another process reads them itself
        return {**self.__dict__, "_studies": {}, "_on_data": {}}

    def _with(self, params: Params) -> Json:
        data = copy.deepcopy(self.data)
        # a section comes before the keys inside it, or it would undo them
        for key, value in sorted(params.items(), key=lambda item: item[0].count(".")):
            set_key(data, key, copy.deepcopy(value))
        for key, tie in self.ties.items():
            other = tie.one_minus or tie.same_as
            assert other is not None
            if other in params:
                value = params[other]
                set_key(data, key, round(1.0 - value, 12) if tie.one_minus else copy.deepcopy(value))
        return data

    def _study(self, config: StudyConfig, decides: Json) -> Study:
        # studies that differ in these alone share their data and models; but assistants follow the student's, and so do layers by name
        whole = config.assistants is not None or needs_layer_map(config.objective)
        apart = () if whole else ("objective", "training")
        shared = canonical({name: section for name, section in decides.items() if name not in apart})
        if shared not in self._studies:
            self._studies[shared] = self._with_known_data(
                config, build_study(config, self.folder, self.command), decides
            )
        base = self._studies[shared]
        if whole:
            return base
        objective = objective_from_config(config.objective)
        return replace(base, objective=objective, training=config.training, config=config.resolved())

    def _with_known_data(self, config: StudyConfig, made: Study, decides: Json) -> Study:
        """The study on data that was read before, where that is the same: many copies of it would fill the memory."""
        # a student whose vocabulary is cut sees other numbers
        sees = ["data", "teacher", "student"] if config.student.vocabulary is not None else ["data"]
        known = self._on_data.setdefault(canonical({name: decides[name] for name in sees}), made)
        recipe = made.teacher_training
        if recipe is not None and known.teacher_training is not None:
            recipe = replace(recipe, data=known.teacher_training.data)
        return replace(made, splits=known.splits, teacher_training=recipe)


def _taught_by(config: StudyConfig, decides: Json) -> Json:
    """The sections that decide the teacher."""
    names = ["data", "teacher"]
    if config.assistants:
        # an assistant has the student's objective and budget where it has none of its own, and a road is chosen by the student
        names += ["assistants", "student", "objective", "training"]
    if config.student.vocabulary is not None:
        names.append("student")  # who is heard is heard beside what the student sees
    if config.labels is not None:
        names.append("labels")
    return {name: decides[name] for name in names}


def set_key(data: Json, dotted: str, value: Any) -> None:
    """Set a dotted key of a config.

    Raises:
        ConfigError: it leads through something that has no such key.
    """
    *parents, last = dotted.split(".")
    place: Any = data
    for depth, part in enumerate(parents):
        if isinstance(place, list):
            place = place[_position(place, part, dotted)]
        elif isinstance(place, dict):
            if place.get(part) is None:
                place[part] = {}
            place = place[part]
        else:
            raise ConfigError(
                f"{dotted}: {'.'.join(parents[:depth])} is {place!r}, which has no keys; name the key itself"
            )
    if isinstance(place, list):
        place[_position(place, last, dotted)] = value
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise ConfigError(f"{dotted}: {'.'.join(parents)} is {place!r}, which has no keys; name the key itself")


def _position(place: list[Any], part: str, dotted: str) -> int:
    if not part.isdecimal() or int(part) >= len(place):
        raise ConfigError(f"{dotted}: {part!r} is not a position in a list of {len(place)}, counted from 0")
    return int(part)


def _dimension(key: str, given: Any) -> Choices | Range:
    where = f"search.space, {key}"
    try:
        if isinstance(given, list):
            return Choices(tuple(json.loads(json.dumps(given))))
        if isinstance(given, Mapping):
            return _range(given)
    except (ConfigError, TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from error
    raise ConfigError(
        f"{where} is {given!r}: expected a list of choices, such as [1, 2, 4], or a range, such as {{low: 1, high: 8, log: true}}"
    )


def _range(given: Mapping[str, Any]) -> Range:
    known = ("low", "high", "log", "step", "integer")
    for name, value in given.items():
        if name not in known:
            raise ConfigError(f"a range has no key {name!r}{nearest(str(name), known)}")
        numeric = isinstance(value, int | float) and not isinstance(value, bool)
        if numeric != (name in ("low", "high", "step")) and not (
            name in ("log", "integer") and isinstance(value, bool)
        ):
            expected = "a number" if name in ("low", "high", "step") else "true or false"
            raise ConfigError(f"{name} is {value!r}, expected {expected}")
    for name in ("low", "high"):
        if name not in given:
            raise ConfigError(
                f"{dict(given)} has no {name!r}: a range is {{low: 1, high: 8}}, with log, step or integer as needed"
            )
    return Range(**given)


def _check_key(key: str, config: StudyConfig) -> None:
    section = key.partition(".")[0]
    able = [name for name in type(config).model_fields if name not in (*_WINNERS_OWN, "search")]
    if section not in able:
        what = (
            "decides nothing about a student" if section in type(config).model_fields else "is no section of a config"
        )
        raise ConfigError(
            f"search.space, {key}: {section!r} {what}{nearest(section, able)}; what may vary is {', '.join(able)}"
        )
    if not all(key.split(".")):
        raise ConfigError(f"search.space, {key!r}: expected a dotted key, such as objective.0.temperature")


def _check_ties(ties: Mapping[str, TieSection], space: Space) -> None:
    for key, tie in ties.items():
        if (tie.one_minus is None) == (tie.same_as is None):
            raise ConfigError(f"search.tie, {key}: expected one of {{one_minus: KEY}} and {{same_as: KEY}}")
        other = tie.one_minus or tie.same_as
        if key in space:
            raise ConfigError(
                f"search.tie, {key}: it is in search.space too, and one of the two would silently win; keep one"
            )
        if other is None or other not in space:
            raise ConfigError(
                f"search.tie, {key}: it follows {other!r}, which is not in search.space{nearest(str(other), list(space))}"
            )
        dimension = space[other]
        numbers = dimension.values if isinstance(dimension, Choices) else ()
        if tie.one_minus and any(isinstance(value, bool) or not isinstance(value, int | float) for value in numbers):
            raise ConfigError(
                f"search.tie, {key}: 1 minus {other} needs numbers there, and it has other choices; use same_as, or none"
            )


def _storage(section: SearchSection, folder: Path) -> str | None:
    """A relative SQLite file is meant relative to the config, as every path in it."""
    start = "sqlite:///"
    if section.storage is None or not section.storage.startswith(start) or section.storage.startswith(f"{start}/"):
        return section.storage
    name = section.storage.removeprefix(start)
    return section.storage if not name or name == ":memory:" else f"{start}{(folder / name).resolve()}"
