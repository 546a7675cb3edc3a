"""The models that a config names, from the teacher to the student, and what identifies them."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tutelage.config.company import member_seed
from tutelage.config.schema import MemberSection, ModelSection, StudyConfig
from tutelage.data import TransferSet
from tutelage.errors import ConfigError, TutelageError
from tutelage.models import ModelSource, import_from_file, imported_beside, load_model
from tutelage.objectives import objective_from_config
from tutelage.studies import BornAgain, Member, Mutual, TeacherTraining
from tutelage.studies.arm import weights_digest
from tutelage.studies.faculty import GivenTeacher
from tutelage.studies.recipes import Recipe
from tutelage.teachers import ModuleTeacher

#: Of a teacher's arguments, those that say how its weights are held: a student made from it is trained in float32 all the same.
HELD = ("dtype", "quantization_config", "device_map")


@contextmanager
def naming(where: str) -> Generator[None]:
    """Say which part of the config an error is about."""
    try:
        yield
    except TutelageError as error:
        raise type(error)(f"{where}: {error}") from error


def user_function(
    reference: str, folder: Path, where: str, arguments: int, called_with: str | None = None
) -> Callable[..., Any]:
    """The user's function that a reference names, checked to take so many arguments.

    Args:
        reference: ``"file.py:function"``.
        folder: where the config lies.
        where: the config's key, for messages.
        arguments: how many it is given.
        called_with: what they are, in words; those of data and views where None.

    Raises:
        ConfigError: there is no such function, or it does not take them.
    """
    with naming(where):
        function = import_from_file(reference, folder)
        if not callable(function):
            raise ConfigError(f"{reference!r} is a {type(function).__name__}, expected a function")
        try:
            inspect.signature(function).bind(*[None] * arguments)
        except TypeError as error:
            takes = called_with or {0: "no arguments", 1: "one example", 2: "(inputs, draws)"}[arguments]
            raise ConfigError(f"{reference!r} will be called with {takes}, which does not fit: {error}") from error
    return function


def model_source(section: ModelSection, folder: Path) -> ModelSource:
    """Where a model comes from."""
    return ModelSource(**section.model_dump(), folder=folder)


def in_full_precision(source: ModelSource) -> ModelSource:
    """The source without the arguments that say how weights are held."""
    return replace(source, arguments={name: value for name, value in source.arguments.items() if name not in HELD})


def maker(section: ModelSection, folder: Path, where: str) -> Callable[[], nn.Module]:
    """Makes fresh ones of a model; whoever calls it has seeded torch."""
    source = model_source(section, folder)
    return lambda: _load(source, where, seed=torch.initial_seed())


def build_teacher(
    config: StudyConfig, folder: Path, labelled: TransferSet
) -> tuple[GivenTeacher, TeacherTraining | None]:
    """A study's ``teacher`` and ``teacher_training``.

    Args:
        config: the config.
        folder: where it lies.
        labelled: what this run trains a teacher on.
    """
    section = config.teacher
    if section.classes is not None and (section.model is None or section.training is not None):
        raise ConfigError(
            "teacher.classes says which classes of a trained model the student knows, and this teacher is "
            f"{'an ensemble' if section.model is None else 'trained by this run, on the same classes as the student'}: it would change "
            "nothing; leave it out, or give one trained model"
        )
    if section.ensemble is not None:
        return [
            _member(member, number, section.seed, config, folder, labelled)
            for number, member in enumerate(section.ensemble)
        ], None
    assert section.model is not None  # check_company found one or the other
    if section.members is not None:
        member = MemberSection(model=section.model, training=section.training)
        return [
            _member(member, number, section.seed, config, folder, labelled, "teacher")
            for number in range(section.members)
        ], None
    if section.training is not None:
        recipe = TeacherTraining(labelled, section.training, section.seed)
        return maker(section.model, folder, "teacher.model"), recipe
    given = _given(section.model, section.seed, section.allow_masked_classes, folder, "teacher.model", section.classes)
    return given, None


def build_recipe(name: str, options: Mapping[str, Any]) -> Recipe:
    """``born_again`` or ``mutual`` with its options, which :func:`check_company` has looked at."""
    objective = objective_from_config(options["objective"]) if "objective" in options else None
    return BornAgain(options.get("generations", 3), objective) if name == "born_again" else Mutual(objective)


def _short_hash(file: Path) -> str:
    """Of a file's contents."""
    return sha256(file.read_bytes()).hexdigest()[:16]


def facts_of(sections: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The facts that decide weights, by their dotted keys, and the contents of the files they name."""
    flat: dict[str, Any] = {}

    def flatten(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, item in value.items():
                flatten(f"{prefix}.{key}" if prefix else key, item)
        else:
            flat[prefix] = value

    plain = json.loads(json.dumps(sections, default=str))
    # what results are cut into slices by decides no weight: a finished run may be asked for other slices
    plain["data"].pop("metadata", None)
    flatten("", plain)
    for reference in sorted({text.rpartition(":")[0] for text in _texts(flat.values()) if ".py:" in text}):
        path = folder / reference
        if path.is_file():
            for file in (path, *imported_beside(path)):
                flat[f"contents of {Path(reference).parent / file.relative_to(path.parent)}"] = _short_hash(file)
    return flat


def _texts(values: Iterable[Any]) -> Generator[str]:
    for value in values:
        if isinstance(value, str):
            yield value
        elif isinstance(value, list):
            yield from _texts(value)
        elif isinstance(value, dict):
            yield from _texts(value.values())


def _member(
    section: MemberSection,
    number: int,
    first_seed: int,
    config: StudyConfig,
    folder: Path,
    labelled: TransferSet,
    where: str | None = None,
) -> Member:
    where = where or f"teacher.ensemble.{number}"
    seed = member_seed(section, number, first_seed)
    if section.training is None:
        given = _given(section.model, seed, section.allow_masked_classes, folder, f"{where}.model")
        return Member(given, weight=section.weight)
    return Member(
        maker(section.model, folder, f"{where}.model"),
        TeacherTraining(labelled, section.training, seed),
        section.weight,
        own_facts(section.model, config, folder),
    )


def own_facts(model: ModelSection, config: StudyConfig, folder: Path) -> dict[str, Any]:
    """What decides the weights of one of several models: the others may come and go without its being trained again."""
    return facts_of({"data": config.data.resolved(), "model": model.resolved()}, folder)


def _given(
    model: ModelSection,
    seed: int,
    allow_masked_classes: bool,
    folder: Path,
    where: str,
    classes: int | list[int] | None = None,
) -> ModuleTeacher:
    source = model_source(model, folder)
    made = _load(source, where, seed=seed, trained=True)
    if model.python is not None and model.checkpoint is None:
        another = _load(source, where, seed=seed + 1, trained=True)
        if weights_digest(made) != weights_digest(another):
            raise ConfigError(
                f"{where}: {model.python!r} makes other weights from another seed, so they are not trained ones, and the "
                "student would be taught noise; give 'checkpoint: file.safetensors', or 'training' for this run to train it"
            )
    chosen = torch.tensor(classes) if isinstance(classes, list) else classes
    with naming("teacher.classes"):
        return ModuleTeacher(made, allow_masked_classes=allow_masked_classes, classes=chosen)


def _load(source: ModelSource, where: str, *, seed: int, trained: bool = False) -> nn.Module:
    with naming(where):
        return load_model(source, seed=seed, trained=trained)
