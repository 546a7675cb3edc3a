"""From a YAML file to a checked config; every mistake is one message that names the key and the nearest right one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from tutelage.config.company import check_company
from tutelage.config.embedding.checking import check_embedding_config
from tutelage.config.embedding.schema import EmbeddingConfig
from tutelage.config.explaining import explain, nearest, together
from tutelage.config.gate_keys import askable, check_gates, lacking
from tutelage.config.labels import check_labels
from tutelage.config.language.checking import check_language_config
from tutelage.config.language.schema import LanguageConfig
from tutelage.config.schema import DataSection, StudyConfig
from tutelage.config.training import check_training
from tutelage.errors import ConfigError

#: What a config may be about, and which one it is where it does not say.
TASKS = ("classification", "language_model", "embedding")


def load_config(path: Path, overrides: Sequence[str] = ()) -> StudyConfig | LanguageConfig | EmbeddingConfig:
    """Read and check a config of the task it names; one that names none is a classifier's.

    Args:
        path: the YAML file.
        overrides: ``key=value`` with a dotted key, e.g. ``training.learning_rate=1e-3`` or ``objective.0.temperature=4``.

    Raises:
        ConfigError: one message with every mistake found.
    """
    data = apply_overrides(read_yaml(path), overrides)
    task = data.get("task", TASKS[0])
    if task not in TASKS:
        known = " or ".join(map(repr, TASKS))
        raise ConfigError(f"{path}: task is {task!r}, expected {known}{nearest(str(task), TASKS)}")
    if task == "embedding":
        return check_embedding_config(data, str(path))
    return check_language_config(data, str(path)) if task == "language_model" else check_config(data, str(path))


def load_classifier_config(path: Path, overrides: Sequence[str] = (), *, instead: str) -> StudyConfig:
    """As :func:`load_config`, for what works on classifiers alone.

    Args:
        path: the YAML file.
        overrides: as there.
        instead: what to do with a language model, for the message.

    Raises:
        ConfigError: a mistake, or a config of another task.
    """
    config = load_config(path, overrides)
    if isinstance(config, EmbeddingConfig):
        raise ConfigError(
            f"{path} is about a sentence encoder (task: embedding), and this works on classifiers: `tutelage run` trains and measures it, "
            "and leaves students in folders that are served as they are"
        )
    if isinstance(config, LanguageConfig):
        raise ConfigError(
            f"{path} is about a language model (task: language_model), and this works on classifiers: {instead}"
        )
    return config


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML 1.2 mapping safely: ``1e-4`` is a number, ``no`` a string, a duplicate key an error.

    Raises:
        ConfigError: no such file, no valid YAML, a duplicate key, or not a mapping.
    """
    if path.is_dir():
        raise ConfigError(f"{path} is a folder, expected a config file{_configs_in(path) or ', such as config.yaml'}")
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        hint = _configs_in(path.parent) or "; `tutelage init` writes a starter config"
        raise ConfigError(f"there is no config {path}{hint}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path} is no text: {error.reason} at byte {error.start}; expected a YAML file in UTF-8"
        ) from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    try:
        data = YAML(typ="safe", pure=True).load(text)
    except DuplicateKeyError as error:
        raise ConfigError(f"{path}: {_problem(error)}: one of the two values would silently win; keep one") from error
    except (YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid YAML: {_problem(error)}") from error
    if not isinstance(data, dict):
        raise ConfigError(
            f"{path} holds {'nothing' if data is None else f'a {type(data).__name__}'}, expected a mapping of sections (data, teacher, "
            "student, objective, training); `tutelage init` writes a starter config"
        )
    return data


def apply_overrides(data: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Set dotted keys; values are read as YAML.

    Raises:
        ConfigError: an override that is not ``key=value``, or a key that leads through something that has no keys.
    """
    for override in overrides:
        dotted, separator, text = override.partition("=")
        if not separator or not all(dotted.split(".")):
            raise ConfigError(f"--set {override!r}: expected key=value, for example training.learning_rate=1e-3")
        try:
            value = YAML(typ="safe", pure=True).load(text)
        except (YAMLError, ValueError, RecursionError) as error:
            raise ConfigError(f"--set {override!r}: the value is not valid YAML: {_problem(error)}") from error
        *parents, last = dotted.split(".")
        place: Any = data
        for depth, part in enumerate(parents):
            place = _enter(place, part, override, ".".join(parents[:depth]))
        if isinstance(place, list):
            place[_index(place, last, override)] = value
        elif isinstance(place, dict):
            place[last] = value
        else:
            raise _no_keys(override, ".".join(parents), place)
    return data


def check_config(data: Mapping[str, Any], where: str) -> StudyConfig:
    """Check a classifier's config: its keys, types and ranges.

    Raises:
        ConfigError: lists every mistake, with the nearest known key for an unknown one.
    """
    try:
        config = StudyConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigError(together(where, explain(error.errors(), StudyConfig))) from None
    problems = check_source(config.data) + check_training(config.training, "training") + check_company(config)
    mixture = config.teacher.ensemble is not None or config.teacher.members is not None
    problems += check_labels(config.labels, mixture=mixture)
    missing = lacking(config)
    problems += check_gates(config.gates, missing)
    if problems:
        raise ConfigError(together(where, problems))
    return config.model_copy(update={"gates": askable(config.gates, missing)})


#: The keys that each source reads, besides those that every source has.
_SOURCE_KEYS: Mapping[str, tuple[str, ...]] = {
    "digits": (),
    "idx": ("path",),
    "parquet": ("path", "test_path", "inputs", "label", "metadata"),
    "hub": ("path", "name", "revision", "split", "test_split", "inputs", "label", "metadata"),
    "python": ("python",),
}


def check_source(data: DataSection) -> list[str]:
    """What is wrong with a data source's name, or with keys that it would not look at."""
    own = _SOURCE_KEYS.get(data.source)
    if own is None:
        known = ", ".join(_SOURCE_KEYS)
        return [
            f"unknown data source {data.source!r}{nearest(data.source, list(_SOURCE_KEYS))} (data.source is one of {known})"
        ]
    if data.omit is not None and data.label_noise is not None:
        return [
            "data.omit and data.label_noise together: a wrong label would hide an example of the omitted class among the others, and the "
            "student would have seen it; leave one of the two out"
        ]
    others = sorted({key for keys in _SOURCE_KEYS.values() for key in keys} - set(own))
    return [
        f"data.{key} does nothing with the source {data.source!r}, which reads {', '.join(own) or 'none of its own'}: leave it out, "
        "or choose the source that reads it"
        for key in others
        if getattr(data, key) is not None
    ]


def _configs_in(folder: Path) -> str:
    nearby = sorted(found.name for found in folder.glob("*.y*ml")) if folder.is_dir() else []
    return f"; in that folder: {', '.join(nearby)}" if nearby else ""


def _enter(place: Any, part: str, override: str, reached: str) -> Any:
    if isinstance(place, list):
        return place[_index(place, part, override)]
    if isinstance(place, dict):
        if place.get(part) is None:
            place[part] = {}
        return place[part]
    raise _no_keys(override, reached, place)


def _no_keys(override: str, reached: str, place: Any) -> ConfigError:
    return ConfigError(f"--set {override!r}: {reached} is {place!r}, which has no keys to set; name the key itself")


def _index(place: list[Any], part: str, override: str) -> int:
    if not part.isdecimal() or int(part) >= len(place):
        raise ConfigError(f"--set {override!r}: {part!r} is not a position in a list of {len(place)}, counted from 0")
    return int(part)


def _problem(error: Exception) -> str:
    if isinstance(error, MarkedYAMLError):
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
        return f"{place}{(error.problem or '').splitlines()[0] if error.problem else error.context}"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return next(iter(str(error).splitlines()), type(error).__name__)
