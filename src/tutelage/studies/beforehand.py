"""A whole study looked at before anything is trained: what could only fail later fails now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from tutelage.errors import ConfigError, TutelageError
from tutelage.objectives import Objective
from tutelage.studies.arm import build_seeded, weights_digest
from tutelage.studies.chain_check import check_chain
from tutelage.studies.faculty import check_teacher, seen_beforehand
from tutelage.studies.gates import JUDGED, decidable
from tutelage.studies.mutual import Mutual
from tutelage.studies.passing import passing_setting, whose_stages
from tutelage.studies.preflight import (
    check_features,
    check_folder,
    check_labels,
    check_student,
    check_together,
    check_training,
)
from tutelage.studies.recipes import relative_seed
from tutelage.studies.setting import Setting
from tutelage.studies.stage import check_stage
from tutelage.studies.starting import as_student_sees
from tutelage.studies.stored_labels import check_form, check_kept
from tutelage.studies.teaching import deployed_module
from tutelage.teachers import as_teacher

if TYPE_CHECKING:
    from tutelage.studies.study import Study


def check_study(study: Study, folder: Path) -> None:
    """Find out before anything is trained what could only fail later.

    A teacher that the run is to train is looked at with fresh weights, and students that are made of it are made of these.

    Args:
        study: it.
        folder: where it is to be run.

    Raises:
        TutelageError: what does not fit.
    """
    objectives, own_starts, train = study.objectives, study.own_starts, study.splits.train
    for objective in objectives.values():
        objective.validate()
    for arm, recipe in study.recipes.items():
        check_labels(recipe.prerequisites(arm), train)
    check_labels(objectives, train)
    setting = study._setting(folder, None)  # pyright: ignore[reportPrivateUsage]  # what its run would begin with
    student = check_student(setting.student, study.seed_list[0])
    alike = {arm: objective for arm, objective in objectives.items() if arm not in own_starts}
    # with a chain, its last assistant teaches the judged arm
    own = {arm: objective for arm, objective in alike.items() if arm not in study.recipes}
    own = {arm: objective for arm, objective in own.items() if study.chain is None or arm != JUDGED}
    check_teacher(study.teacher, study.teacher_training, student, study.splits, own)
    _check_ratios(study)
    if study.labels is not None:
        shown = seen_beforehand(study.teacher, study.teacher_training)
        check_kept(study.labels, own, student, shown, study.splits, study.chain, setting)
    check_training(study.training, "training", student, objectives[JUDGED], train, study.splits.validation)
    if study.together:
        check_together(own | {JUDGED: objectives[JUDGED]}, student, study.training, train)
    if study.chain is not None:
        teacher = seen_beforehand(study.teacher, study.teacher_training)
        check_chain(study.chain, setting, student, teacher, objectives[JUDGED])
    _check_kin(study, {arm: each for arm, each in alike.items() if arm in study.recipes}, student, setting)
    for arm in own_starts:
        try:
            _check_own(study, arm, objectives[arm], study.setting_of(arm, setting))
        except TutelageError as error:
            raise type(error)(f"the student of the arm {arm!r}: {error}") from error
    _check_stage(study, setting)
    check_folder(folder)


def _check_ratios(study: Study) -> None:
    """A ratio takes a teacher whose bytes and time this machine can measure."""
    asked = [gate for gate in ("size_ratio", "latency_ratio") if getattr(study.gates, gate) is not None]
    if not asked or study.teacher_training is not None:
        return
    if deployed_module(as_teacher(seen_beforehand(study.teacher, None))) is None:
        decidable(study.gates, dict.fromkeys(asked, "a teacher that is a module, or several"))


def _check_kin(study: Study, objectives: Mapping[str, Objective], student: nn.Module, setting: Setting) -> None:
    """Those who are taught by their own kind."""
    check_features(objectives, student, student, replace(study.splits, train=as_student_sees(study.splits.train)))
    for arm, recipe in study.recipes.items():
        if isinstance(recipe, Mutual):
            peer = build_seeded(setting.student, relative_seed(study.seed_list[0], 1))
            if weights_digest(peer) == weights_digest(student):
                raise ConfigError(
                    f"the arm {arm!r}: the student and its peer would begin with the same weights, whatever the seed, and have nothing to "
                    "teach each other; leave the arm out, or let the student begin at random"
                )


def _check_own(study: Study, arm: str, objective: Objective, setting: Setting) -> None:
    """An arm whose student begins otherwise than the others."""
    splits = setting.splits
    student = check_student(setting.student, study.seed_list[0])
    check_teacher(study.teacher, study.teacher_training, student, splits, {arm: objective})
    check_training(study.training, "training", student, objective, splits.train, splits.validation)
    if study.labels is not None:
        check_form(study.labels, {arm: objective}, student, splits.train)
    if study.together:
        check_together({arm: objective}, student, study.training, splits.train)


def _check_stage(study: Study, setting: Setting) -> None:
    if study.stage is None:
        return
    if study.recipes:
        raise ConfigError(
            f"the arm {next(iter(study.recipes))!r} trains more students than one a seed, and each would have to pass the stage: leave "
            "out the stage, or that arm"
        )
    for arm in whose_stages(study):
        own = setting if arm is None else study.setting_of(arm, setting)
        check_stage(study.stage, passing_setting(study, own, arm).student)
