"""From a checked config to a study."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from tutelage.config.arms import Company, check_objectives
from tutelage.config.company import RECIPES
from tutelage.config.cut_keys import is_plain
from tutelage.config.cutting import Starts
from tutelage.config.explaining import nearest
from tutelage.config.models import build_teacher, model_source, naming, user_function
from tutelage.config.schema import DataSection, LabelsSection, StudyConfig, ViewStep
from tutelage.config.stage import build_stage
from tutelage.data import (
    Chain,
    DataSource,
    Draws,
    GaussianNoise,
    HorizontalFlip,
    Normalise,
    PerExample,
    RandomShift,
    Splits,
    Tokenise,
    View,
    is_random,
    load_source,
    split,
)
from tutelage.errors import ConfigError, TutelageError
from tutelage.studies import Gates, Labels, Study
from tutelage.studies.faculty import seen_beforehand
from tutelage.studies.starting import splits_with

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
    check_objectives(config)
    arms = [arm for arm in config.study.arms if isinstance(arm, str) and arm not in RECIPES]
    labelled, tokenizer = _splits(config.data, folder)
    splits = _for_student(config.data, labelled)
    teacher, recipe = build_teacher(config, folder, labelled.train)
    seen = cache(lambda: seen_beforehand(teacher, recipe))
    starts = Starts(config, folder, splits.train, tokenizer, seen)
    student = starts.of(config.student, "student")
    company = Company(config, folder, starts, student, seen)
    own = config.student.model if is_plain(config.student) else None
    return Study(
        splits=splits if student.view is None else splits_with(splits, student.view),
        student=student.maker,
        teacher=teacher,
        objective=company.objective(),
        training=config.training,
        seeds=config.study.seeds,
        arms=arms,
        extra_arms=company.arms(),
        start=student.start if own is None else None,
        stage=build_stage(config.stage, folder, splits=splits, tokenizer=tokenizer),
        uncut=student.uncut,
        label_smoothing=config.study.label_smoothing,
        gates=Gates(**config.gates.model_dump()),
        teacher_training=recipe,
        chain=company.chain(),
        labels=labels_of(config.labels, folder),
        together=None if config.study.together == "auto" else config.study.together,
        title=config.title or folder.resolve().name,
        processing=student.tokenizer,
        config=config.resolved(),
        fingerprint=company.fingerprint(config.student, student),
        command=command,
        config_folder=folder,
        # of a model that was cut, the code makes the whole one
        student_source=None if own is None else model_source(own, folder),
    )


def labels_of(said: LabelsSection | None, folder: Path) -> Labels | None:
    """A study's ``labels``; None where the config has no such section.

    Args:
        said: the section.
        folder: where the config lies.
    """
    if said is None:
        return None
    store = folder / said.store if said.store is not None and "://" not in said.store else said.store
    return Labels(
        form=said.form,
        store=store,
        dtype=said.dtype,
        temperature=said.temperature,
        draws=said.draws,
        scheme=said.scheme,
        k=said.k,
        views=said.views,
        features=tuple(said.features or ()),
        batch_size=said.batch_size,
        spot_check=said.spot_check,
    )


def _splits(data: DataSection, folder: Path) -> tuple[Splits, Any]:
    make = user_function(data.python, folder, "data.python", 0) if data.python is not None else None
    source = DataSource(
        source=data.source,
        path=data.path,
        test_path=data.test_path,
        inputs=data.inputs,
        label=data.label,
        metadata=data.metadata,
        name=data.name,
        revision=data.revision,
        split=data.split or "train",
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
    return splits if data.label_noise is None else splits.with_label_noise(data.label_noise, data.seed), tokenizer


def _for_student(data: DataSection, labelled: Splits) -> Splits:
    """The data as far as the student may learn from them: of fewer classes, or with fewer labels, than a teacher that the run trains."""
    splits = labelled.omit_classes(data.omit) if data.omit is not None else labelled
    return splits if data.labelled is None else splits.keep_labels(data.labelled, data.seed)


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
    if name == "python":
        return _FileView(str(options), user_function(str(options), folder, f"{where}.python", 2))
    if name == "per_example":
        return PerExample(_FileTransform(str(options), user_function(str(options), folder, f"{where}.per_example", 1)))
    if name not in _VIEWS:
        known = [*_VIEWS, "per_example", "python"]
        raise ConfigError(
            f"{where}: unknown view {name!r}{nearest(str(name), known)} (a view is one of {', '.join(known)})"
        )
    if not isinstance(options, Mapping):
        raise ConfigError(f"{where}.{name} is {options!r}, expected its options as a mapping")
    given = dict(options)
    if name == "tokenise" and (folder / str(given.get("tokenizer", ""))).is_dir():
        given["tokenizer"] = str(folder / given["tokenizer"])
    make = _VIEWS[name]
    taken = list(inspect.signature(make).parameters)
    for option in given:
        if option not in taken:
            raise ConfigError(f"{where}.{name}: unknown option {str(option)!r}{nearest(str(option), taken)}")
    with naming(f"{where}.{name}"):
        try:
            return make(**given)
        except (TypeError, ValueError) as error:
            if isinstance(error, TutelageError):
                raise
            raise ConfigError(f"{error}; it takes {', '.join(taken)}") from error


@dataclass(frozen=True)
class _FileView:
    """A view from the user's file. It shows as its reference, the same in every session: a run is resumed by it."""

    reference: str
    function: Callable[..., Any] = field(repr=False)

    @property
    def random(self) -> bool:
        """As the function says, and random where it does not say."""
        return is_random(self.function)

    def __call__(self, inputs: Any, draws: Draws, /) -> Any:
        return self.function(inputs, draws)


@dataclass(frozen=True)
class _FileTransform:
    """A transform of one example from the user's file; see :class:`_FileView`."""

    reference: str
    function: Callable[[Any], torch.Tensor] = field(repr=False)

    def __call__(self, example: Any, /) -> torch.Tensor:
        return self.function(example)
