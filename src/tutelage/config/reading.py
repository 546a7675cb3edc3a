"""From a YAML file to a checked config; every mistake is one message that names the key and the nearest right one."""

from __future__ import annotations

import difflib
import math
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from tutelage.config.schema import StudyConfig
from tutelage.errors import ConfigError


def load_config(path: Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """Read and check a config.

    Args:
        path: the YAML file.
        overrides: ``key=value`` with a dotted key, e.g. ``training.learning_rate=1e-3`` or ``objective.0.temperature=4``.

    Raises:
        ConfigError: one message with every mistake found.
    """
    return check_config(apply_overrides(read_yaml(path), overrides), str(path))


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML 1.2 mapping safely: ``1e-4`` is a number, ``no`` a string, a duplicate key an error.

    Raises:
        ConfigError: no such file, no valid YAML, a duplicate key, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        nearby = sorted(found.name for found in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        hint = f"; in that folder: {', '.join(nearby)}" if nearby else "; `tutelage init` writes a starter config"
        raise ConfigError(f"there is no config {path}{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    try:
        data = YAML(typ="safe", pure=True).load(text)
    except DuplicateKeyError as error:
        raise ConfigError(f"{path}: {_problem(error)}: one of the two values would silently win; keep one") from error
    except YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {_problem(error)}") from error
    if not isinstance(data, dict):
        raise ConfigError(
            f"{path} holds {'nothing' if data is None else f'a {type(data).__name__}'}, expected a mapping of sections"
        )
    return data


def apply_overrides(data: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Set dotted keys; values are read as YAML.

    Raises:
        ConfigError: an override that is not ``key=value``, or a key that leads through something that has no keys.
    """
    for override in overrides:
        dotted, separator, text = override.partition("=")
        if not separator or not dotted:
            raise ConfigError(f"--set {override!r}: expected key=value, for example training.learning_rate=1e-3")
        try:
            value = YAML(typ="safe", pure=True).load(text)
        except YAMLError as error:
            raise ConfigError(f"--set {override!r}: the value is not valid YAML: {_problem(error)}") from error
        *parents, last = dotted.split(".")
        place: Any = data
        for part in parents:
            place = _enter(place, part, override)
        if isinstance(place, list):
            place[_index(place, last, override)] = value
        elif isinstance(place, dict):
            place[last] = value
        else:
            raise ConfigError(f"--set {override!r}: {'.'.join(parents)} is a {type(place).__name__} and has no keys")
    return data


def check_config(data: Mapping[str, Any], where: str) -> StudyConfig:
    """Check a config's keys, types and ranges.

    Raises:
        ConfigError: lists every mistake, with the nearest known key for an unknown one.
    """
    try:
        config = StudyConfig.model_validate(data)
    except ValidationError as error:
        lines = [_explain(detail) for detail in error.errors()]
        raise ConfigError(f"{where}: " + (lines[0] if len(lines) == 1 else "\n  " + "\n  ".join(lines))) from None
    problems = check_training(config.training, "training")
    if config.teacher.training is not None:
        problems += check_training(config.teacher.training, "teacher.training")
    if problems:
        raise ConfigError(f"{where}: " + (problems[0] if len(problems) == 1 else "\n  " + "\n  ".join(problems)))
    return config


def check_training(training: Mapping[str, Any], where: str) -> list[str]:
    """What is wrong with a section of ``transformers.TrainingArguments``, by name, type and range."""
    import dataclasses

    from tutelage.training import DistillationArguments

    fields = {field.name: field for field in dataclasses.fields(DistillationArguments) if field.init}
    problems: list[str] = []
    for key, value in training.items():
        if key not in fields:
            problems.append(
                f"{where}.{key} is not an argument of transformers.TrainingArguments{_nearest(key, fields)}"
            )
            continue
        problem = _type_problem(value, _resolved(fields[key].type))
        if problem is not None:
            problems.append(f"{where}.{key} is {value!r}, expected {problem}")
    for key, (least, strict) in _RANGES.items():
        value = training.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if (value <= least if strict else value < least) or not math.isfinite(value):
            problems.append(f"{where}.{key} is {value}, expected {'more than' if strict else 'at least'} {least}")
    return problems


_RANGES: dict[str, tuple[float, bool]] = {
    "per_device_train_batch_size": (1, False),
    "per_device_eval_batch_size": (1, False),
    "gradient_accumulation_steps": (1, False),
    "num_train_epochs": (0, True),
    "learning_rate": (0, True),
    "max_grad_norm": (0, False),
    "weight_decay": (0, False),
}


def _resolved(annotation: Any) -> Any:
    # `from __future__ import annotations` leaves the types of some fields as text.
    if isinstance(annotation, str):
        return {"int": int, "float": float, "bool": bool, "str": str}.get(annotation)
    return annotation


def _type_problem(value: Any, expected: Any) -> str | None:
    """What a plain value should have been, or None where it fits or nothing definite is known."""
    options = get_args(expected) if get_origin(expected) in (Union, types.UnionType) else (expected,)
    plain = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    if not options or any(option not in (*plain, type(None)) for option in options):
        return None
    if value is None:
        return None if type(None) in options else " or ".join(plain[option] for option in options)
    allowed = set(options) | ({int} if float in options else set())
    return None if type(value) in allowed else " or ".join(plain[option] for option in options if option in plain)


def _explain(detail: ErrorDetails) -> str:
    location = [part for part in detail["loc"] if not (isinstance(part, str) and _is_union_tag(part))]
    dotted = ".".join(str(part) for part in location)
    kind, value = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        return f"unknown key {dotted!r}{_nearest(str(location[-1]), _keys_at(location[:-1]))}"
    if kind == "missing":
        return f"the key {dotted!r} is missing"
    message = detail["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return f"{dotted} is {value!r}, expected {message}"


def _is_union_tag(part: str) -> bool:
    return part in ("int", "str", "float") or part.startswith(("list[", "dict[", "constrained-", "function-"))


def _keys_at(location: Sequence[int | str]) -> list[str]:
    section: Any = StudyConfig
    for part in location:
        field = (
            section.model_fields.get(str(part))
            if isinstance(section, type) and issubclass(section, BaseModel)
            else None
        )
        section = field.annotation if field is not None else None
    return list(section.model_fields) if isinstance(section, type) and issubclass(section, BaseModel) else []


def _nearest(key: str, known: Any) -> str:
    found = difflib.get_close_matches(key, list(known), n=1, cutoff=0.5)
    return f"; did you mean {found[0]!r}?" if found else ""


def _enter(place: Any, part: str, override: str) -> Any:
    if isinstance(place, list):
        return place[_index(place, part, override)]
    if isinstance(place, dict):
        return place.setdefault(part, {})
    raise ConfigError(f"--set {override!r}: {part!r} is inside a {type(place).__name__}, which has no keys")


def _index(place: list[Any], part: str, override: str) -> int:
    if not part.isdigit() or int(part) >= len(place):
        raise ConfigError(f"--set {override!r}: {part!r} is not a position in a list of {len(place)}, counted from 0")
    return int(part)


def _problem(error: Exception) -> str:
    if isinstance(error, MarkedYAMLError):
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
        return f"{place}{(error.problem or '').splitlines()[0] if error.problem else error.context}"
    return str(error).splitlines()[0]
