"""Who teaches: a given teacher, one that this run trains first, or an ensemble of either kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tutelage.data import Splits, TransferSet
from tutelage.errors import ConfigError, TutelageError
from tutelage.models.saving import load_student
from tutelage.objectives import CrossEntropy, Objective, as_objective
from tutelage.signals import MixtureLogits, layers_needed
from tutelage.studies.arm import ArmPlan, ArmRun, build_seeded
from tutelage.studies.preflight import check_classes, check_features, check_training
from tutelage.studies.setting import Setting, held_out_identity
from tutelage.studies.teaching import teacher_predictions
from tutelage.teachers import EnsembleTeacher, ModuleTeacher, Teacher

TEACHER = "teacher"

Json = dict[str, Any]


@dataclass(frozen=True)
class TeacherTraining:
    """How a run trains its own teacher, on labels alone.

    Args:
        data: the labelled set; it may hold labels that the student's transfer set has forgotten.
        training: arguments of :class:`DistillationArguments`, by name.
        seed: of initialisation and data order.
    """

    data: TransferSet
    training: Mapping[str, Any]
    seed: int = 0


@dataclass(frozen=True)
class Member:
    """One of an ensemble's teachers; a study's ``teacher`` may be a list of them.

    Args:
        model: a module or a teacher; with ``training``, a function that makes the fresh module.
        training: given where this run trains it.
        weight: its share in the ensemble; the shares are scaled to sum to 1.
        fingerprint: facts that must not change between its training and a resumption; the study's where None.
    """

    model: nn.Module | Teacher | Callable[[], nn.Module]
    training: TeacherTraining | None = None
    weight: float = 1.0
    fingerprint: Mapping[str, Any] | None = None


#: What a study takes for its ``teacher``.
GivenTeacher = nn.Module | Teacher | Callable[[], nn.Module] | Sequence[Member]


@dataclass(frozen=True)
class ReadyMember:
    """A member that can teach.

    Args:
        name: ``member-1`` and so on, its folder where it was trained.
        teacher: it.
        share: its weight, of all members' sum.
        run: its training in this run; None for a given one.
    """

    name: str
    teacher: Teacher
    share: float
    run: ArmRun | None = None

    def test_logits(self, test: TransferSet) -> NDArray[np.float32]:
        """What it says of the test split, ``[N, C]``."""
        return self.run.test_logits if self.run is not None else teacher_predictions(self.teacher, test)


@dataclass(frozen=True)
class Faculty:
    """A study's teacher, ready to teach.

    Args:
        teacher: it, the ensemble of the members where there are some.
        run: its training in this run, where it is one model that was trained.
        members: of an ensemble.
    """

    teacher: Teacher
    run: ArmRun | None = None
    members: Sequence[ReadyMember] = field(default_factory=list[ReadyMember])

    @property
    def runs(self) -> list[ArmRun]:
        """Every training of a teacher in this run."""
        trained = [self.run, *(member.run for member in self.members)]
        return [run for run in trained if run is not None]

    @property
    def spent(self) -> tuple[float, int] | None:
        """Seconds and steps of all its training; None where some of it was given."""
        parts = [member.run for member in self.members] or [self.run]
        runs = [run for run in parts if run is not None]
        if len(runs) < len(parts):
            return None
        return sum(run.seconds for run in runs), sum(run.steps for run in runs)

    def test_logits(self, test: TransferSet) -> tuple[NDArray[np.float32], list[NDArray[np.float32]]]:
        """What the teacher ``[N, C]`` and each member say of the test split; nobody is asked twice."""
        if not self.members:
            return (self.run.test_logits if self.run is not None else teacher_predictions(self.teacher, test)), []
        said = [member.test_logits(test) for member in self.members]
        shares = torch.tensor([member.share for member in self.members])
        mixed = MixtureLogits(torch.from_numpy(np.stack(said)), shares).at(1.0)
        return mixed.float().numpy(), said


def check_teacher(
    teacher: GivenTeacher,
    recipe: TeacherTraining | None,
    student: nn.Module,
    splits: Splits,
    objectives: Mapping[str, Objective],
) -> None:
    """Find out before anything is trained that whoever is to teach can, and speaks of the student's classes.

    Args:
        teacher: as a study is given it.
        recipe: the study's ``teacher_training``.
        student: a fresh one.
        splits: the data; the test split is not looked at.
        objectives: of the arms that it teaches, by their names.

    Raises:
        ConfigError: what does not fit, with the member's name where it is one's.
    """
    if isinstance(teacher, Sequence):
        _check_members(teacher, recipe)
        # a mixture has no features, whoever its members are
        featured = {arm: each for arm, each in objectives.items() if layers_needed(each.needs, "teacher")}
        check_features(featured, student, seen_beforehand(teacher, recipe), splits)
        for name, member in _named(teacher):
            try:
                _check_one(member.model, member.training, "training", student, splits, {})
            except TutelageError as error:
                raise type(error)(f"{name} of the ensemble: {error}") from error
    else:
        _check_one(teacher, recipe, "teacher.training", student, splits, objectives)


def seen_beforehand(teacher: GivenTeacher, recipe: TeacherTraining | None) -> nn.Module | Teacher:
    """The teacher as far as it can be looked at before it is trained: a fresh module, the given teacher, or a stand-in for an
    ensemble, which has no layers to show whoever its members are.
    """
    if isinstance(teacher, Sequence):
        return EnsembleTeacher([nn.Identity() for _ in teacher])
    return _fresh(teacher, recipe) if recipe is not None else given_teacher(teacher)


def ready_faculty(teacher: GivenTeacher, recipe: TeacherTraining | None, setting: Setting) -> Faculty:
    """The study's teacher, trained first where this run is to train it; each member is resumable on its own."""
    if not isinstance(teacher, Sequence):
        if recipe is None:
            given = given_teacher(teacher)
            return Faculty(given, members=_own_members(given))
        (run,) = setting.run([_plan(setting, TEACHER, setting.folder / TEACHER, teacher, recipe, None)])
        return Faculty(load_faculty(teacher, recipe, setting.folder), run)
    plans = {
        name: _plan(
            setting,
            f"teacher {name}",
            setting.folder / TEACHER / name,
            member.model,
            member.training,
            member.fingerprint,
        )
        for name, member in _named(teacher)
        if member.training is not None
    }
    runs = dict(zip(plans, setting.run(list(plans.values())), strict=True))
    ensemble = load_faculty(teacher, None, setting.folder)
    assert isinstance(ensemble, EnsembleTeacher)
    return Faculty(ensemble, members=[replace(one, run=runs.get(one.name)) for one in _own_members(ensemble)])


def load_faculty(teacher: GivenTeacher, recipe: TeacherTraining | None, folder: Path) -> Teacher:
    """The teacher of a run in ``folder``: the given one, or what the run trained there."""
    if not isinstance(teacher, Sequence):
        return _load(teacher, recipe, folder / TEACHER)
    members = [_load(member.model, member.training, folder / TEACHER / name) for name, member in _named(teacher)]
    return EnsembleTeacher(members, [member.weight for member in teacher])


def describe_members(members: Sequence[Member]) -> list[Json]:
    """The members as a config lists them, as far as they can be told without their code."""
    return [
        {
            "weight": member.weight,
            **(
                {"training": member.training.training, "seed": member.training.seed}
                if member.training is not None
                else {}
            ),
        }
        for member in members
    ]


def given_teacher(model: object) -> Teacher:
    """A module or a teacher, as a teacher.

    Raises:
        ConfigError: it is neither.
    """
    if isinstance(model, nn.Module):
        return ModuleTeacher(model)
    if not isinstance(model, Teacher):
        raise ConfigError(
            f"teacher is a {type(model).__name__}, expected an nn.Module or a teacher; a function that makes a module needs "
            "teacher_training, or it would teach with random weights"
        )
    return model


def _named(members: Sequence[Member]) -> list[tuple[str, Member]]:
    return [(f"member-{number}", member) for number, member in enumerate(members, start=1)]


def _own_members(teacher: Teacher) -> list[ReadyMember]:
    if not isinstance(teacher, EnsembleTeacher):
        return []
    shares = teacher.weights.tolist()
    return [
        ReadyMember(f"member-{number}", member, share)
        for number, (member, share) in enumerate(zip(teacher.members, shares, strict=True), start=1)
    ]


def _check_members(members: Sequence[Member], recipe: TeacherTraining | None) -> None:
    if recipe is not None:
        raise ConfigError(
            "teacher is a list of members and teacher_training is given too: which of them it trains is not said; give each Member "
            "its own training"
        )
    for member in members:
        if not isinstance(member, Member):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"teacher is a list with a {type(member).__name__}, expected Member(...) for each one")
    # who the members are does not matter to their weights
    EnsembleTeacher([nn.Identity() for _ in members], [member.weight for member in members])


def _check_one(
    model: object,
    recipe: TeacherTraining | None,
    where: str,
    student: nn.Module,
    splits: Splits,
    objectives: Mapping[str, Objective],
) -> None:
    teacher = _fresh(model, recipe) if recipe is not None else given_teacher(model)
    check_classes(student, teacher, splits, splits.train.class_names)
    check_features(objectives, student, teacher, splits)
    if recipe is not None and isinstance(teacher, nn.Module):
        data, validation = recipe.data.for_teacher_training(), splits.validation.for_teacher_training()
        check_training(recipe.training, where, teacher, as_objective(CrossEntropy()), data, validation)


def _fresh(model: object, recipe: TeacherTraining) -> nn.Module:
    if isinstance(model, nn.Module) or not callable(model):
        raise ConfigError("with teacher_training, teacher must be a function that makes the fresh module")
    made: Any = build_seeded(cast("Callable[[], nn.Module]", model), recipe.seed)
    if not isinstance(made, nn.Module):
        raise ConfigError(f"teacher() returned a {type(made).__name__}, expected a fresh nn.Module")
    return made


def _plan(
    setting: Setting,
    arm: str,
    folder: Path,
    model: object,
    recipe: TeacherTraining,
    fingerprint: Mapping[str, Any] | None,
) -> ArmPlan:
    # another student is no reason to train a teacher anew
    shared = {name: fact for name, fact in setting.identity.items() if not name.startswith("student")}
    identity = shared if fingerprint is None else {**fingerprint, **held_out_identity(setting.splits)}
    return ArmPlan(
        arm=arm,
        seed=recipe.seed,
        folder=folder,
        build=lambda: _fresh(model, recipe),
        objective=as_objective(CrossEntropy()),
        training=recipe.training,
        train=recipe.data.for_teacher_training(),
        validation=setting.splits.validation.for_teacher_training(),
        test=setting.splits.test.for_teacher_training(),
        fingerprint=identity,
    )


def _load(model: object, recipe: TeacherTraining | None, folder: Path) -> Teacher:
    if recipe is None:
        return given_teacher(model)
    return ModuleTeacher(load_student(_fresh(model, recipe), folder))
