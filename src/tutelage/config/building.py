"""From a checked config to a study."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tutelage.config.schema import DataSection, ModelSection, StudyConfig, ViewStep
from tutelage.data import (
    Chain,
    DataSource,
    GaussianNoise,
    HorizontalFlip,
    Normalise,
    PerExample,
    RandomShift,
    Splits,
    Tokenise,
    TransferSet,
    View,
    load_source,
    split,
)
from tutelage.errors import ConfigError
from tutelage.models import ModelSource, import_from_file, load_model
from tutelage.objectives import Objective, objective_from_config
from tutelage.studies import Gates, Study, TeacherTraining
from tutelage.teachers import ModuleTeacher

_VIEWS: dict[str, Callable[..., View]] = {
    "normalise": Normalise,
    "random_shift": RandomShift,
    "horizontal_flip": HorizontalFlip,
    "gaussian_noise": GaussianNoise,
    "tokenise": Tokenise,
}


def build_study(config: StudyConfig, folder: Path, command: str) -> Study:
    """Read the data, prepare the models and put the study together.

    Args:
        config: the checked config.
        folder: where it lies; relative paths in it are relative to this.
        command: how the run was started, for the record.

    Raises:
        TutelageError: something the config names is not there, or does not fit.
    """
    objective, extra_arms = _objectives(config)
    labelled, tokenizer = _splits(config.data, folder)
    splits = (
        labelled.keep_labels(config.data.labelled, config.data.seed) if config.data.labelled is not None else labelled
    )
    teacher, recipe = _teacher(config, folder, labelled.train)
    student_source = _model_source(config.student.model, folder)
    return Study(
        splits=splits,
        # a study seeds torch before it asks for a student
        student=lambda: load_model(student_source, seed=torch.initial_seed()),
        teacher=teacher,
        objective=objective,
        training=config.training,
        seeds=config.study.seeds,
        arms=[arm for arm in config.study.arms if isinstance(arm, str)],
        extra_arms=extra_arms,
        label_smoothing=config.study.label_smoothing,
        gates=Gates(**config.gates.model_dump()),
        teacher_training=recipe,
        title=config.title or folder.resolve().name,
        processing=tokenizer,
        config=config.model_dump(exclude_none=True),
        fingerprint=_fingerprint(config, folder),
        command=command,
    )


def _objectives(config: StudyConfig) -> tuple[Objective, dict[str, Objective]]:
    extra: dict[str, Objective] = {}
    for arm in config.study.arms:
        if isinstance(arm, str):
            continue
        if len(arm) != 1:
            raise ConfigError(f"study.arms: {arm} has {len(arm)} names, expected one name with its list of terms")
        ((name, items),) = arm.items()
        extra[name] = objective_from_config(items)
    return objective_from_config(config.objective), extra


def _splits(data: DataSection, folder: Path) -> tuple[Splits, Any]:
    make = import_from_file(data.python, folder) if data.python is not None else None
    source = DataSource(
        source=data.source,
        path=data.path,
        test_path=data.test_path,
        inputs=data.inputs,
        label=data.label,
        name=data.name,
        revision=data.revision,
        split=data.split,
        test_split=data.test_split,
        folder=folder,
        make=make,
    )
    pool, given_test = load_source(source)
    if data.splits.test is None and given_test is None:
        raise ConfigError(
            "data.splits.test is missing, and the source brings no test set of its own: give a fraction, e.g. 0.2"
        )
    if data.splits.test is not None and given_test is not None:
        raise ConfigError(
            f"data.splits.test is {data.splits.test}, but the source brings a test set of its own: leave the fraction out to use it, or "
            "name only the training part"
        )
    student_view, tokenizer = _view(data.views.student, folder, "data.views.student")
    teacher_view = None
    if data.views.teacher is not None:
        # An empty list is a wish too: the inputs as they are, whatever the student sees.
        teacher_view = _view(data.views.teacher, folder, "data.views.teacher")[0] or Chain([])
    augment, _ = _view(data.augment, folder, "data.augment")
    seen = {"student_view": student_view, "teacher_view": teacher_view, "seed": data.seed}
    seen = {name: value for name, value in seen.items() if value is not None}
    pool = replace(pool, **seen, **({"augment": augment} if augment is not None else {}))
    test = replace(given_test, **seen) if given_test is not None else data.splits.test
    assert test is not None
    splits = split(
        pool, validation=data.splits.validation, test=test, seed=data.seed, drop_overlap=data.splits.drop_overlap
    )
    return splits, tokenizer


def _view(steps: Sequence[ViewStep], folder: Path, where: str) -> tuple[View | None, Any]:
    views: list[View] = []
    tokenizer: Any = None
    for step in steps:
        view = _view_step(step, folder, where)
        tokenizer = view.tokenizer if isinstance(view, Tokenise) else tokenizer
        views.append(view)
    if not views:
        return None, None
    return views[0] if len(views) == 1 else Chain(views), tokenizer


def _view_step(step: ViewStep, folder: Path, where: str) -> View:
    named: Mapping[str, Any] = {step: {}} if isinstance(step, str) else step
    if len(named) != 1:
        raise ConfigError(f"{where}: {dict(named)} has {len(named)} keys, expected one view with its options")
    ((name, options),) = named.items()
    if name in ("python", "per_example"):
        function = import_from_file(str(options), folder)
        return PerExample(function) if name == "per_example" else function
    if name not in _VIEWS:
        raise ConfigError(f"{where}: unknown view {name!r}; there are {', '.join([*_VIEWS, 'per_example', 'python'])}")
    if not isinstance(options, Mapping):
        raise ConfigError(f"{where}.{name} is {options!r}, expected its options as a mapping")
    given = dict(options)
    if name == "tokenise" and (folder / str(given.get("tokenizer", ""))).is_dir():
        given["tokenizer"] = str(folder / given["tokenizer"])
    try:
        return _VIEWS[name](**given)
    except TypeError as error:
        raise ConfigError(f"{where}.{name}: {error}") from error


def _teacher(
    config: StudyConfig, folder: Path, labelled: TransferSet
) -> tuple[ModuleTeacher | Callable[[], nn.Module], TeacherTraining | None]:
    section = config.teacher
    source = _model_source(section.model, folder)
    if section.training is not None:
        return lambda: load_model(source, seed=torch.initial_seed()), TeacherTraining(
            labelled, section.training, section.seed
        )
    model = load_model(source, seed=section.seed, trained=True)
    return ModuleTeacher(model, allow_masked_classes=section.allow_masked_classes), None


def _model_source(section: ModelSection, folder: Path) -> ModelSource:
    return ModelSource(**section.model_dump(), folder=folder)


def _fingerprint(config: StudyConfig, folder: Path) -> dict[str, Any]:
    """The config's facts that decide the weights, by their dotted keys, and the contents of the files it names."""
    facts = config.model_dump(include={"data": True, "teacher": True, "student": True}, exclude_none=True)
    flat: dict[str, Any] = {}

    def flatten(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, item in value.items():
                flatten(f"{prefix}.{key}" if prefix else key, item)
        else:
            flat[prefix] = value

    flatten("", facts)
    for reference in sorted({str(value).rpartition(":")[0] for value in flat.values() if ".py:" in str(value)}):
        path = folder / reference
        if path.is_file():
            flat[f"contents of {reference}"] = sha256(path.read_bytes()).hexdigest()[:16]
    return flat
