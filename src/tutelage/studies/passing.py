"""Which arms' students pass the study's stage before the task, and how they begin after it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from tutelage.studies.setting import Setting
from tutelage.studies.stage import run_stage, stage_record, staged
from tutelage.studies.starting import Arm, Uncut

if TYPE_CHECKING:
    from tutelage.studies.study import Study

Json = dict[str, Any]


def passes_stage(study: Study, arm: str) -> bool:
    """Whether an arm's students pass the study's stage: all do, unless the arm says otherwise."""
    extra = study.extra_arms.get(arm)
    return study.stage is not None and not (isinstance(extra, Arm) and extra.stage is False)


def whose_stages(study: Study) -> list[str | None]:
    """Whose students pass it: None for the study's own, and the arms that have one of their own."""
    passing = [arm for arm in study.objectives if passes_stage(study, arm)]
    own = [arm for arm in passing if arm in study.own_starts]
    return [*([None] if len(own) < len(passing) else []), *own]


def stage_trainings(study: Study) -> int:
    """How many trainings the stage is, its own teacher's among them."""
    if study.stage is None:
        return 0
    return study.stage.teacher_trainings + len(whose_stages(study)) * len(study.seed_list)


def settings_of(study: Study, setting: Setting) -> dict[str, Setting]:
    """The setting of each arm; of those whose students pass the stage, with it before them.

    Args:
        study: whose arms.
        setting: what all trainings share.
    """
    found: dict[str, Setting] = {}
    shared = _after(study, setting, None) if study.stage is not None else setting
    for arm in study.objectives:
        own = study.setting_of(arm, setting)
        if not passes_stage(study, arm):
            found[arm] = own
        elif arm in study.own_starts:
            found[arm] = _after(study, own, arm)
        else:
            found[arm] = shared
    return found


def stage_said(study: Study, folder: Path) -> Json:
    """The key ``stage`` of ``result.json``; none without a stage."""
    if study.stage is None:
        return {}
    arms = [arm for arm in study.objectives if passes_stage(study, arm)]
    return {"stage": {**stage_record(study.stage, folder, study.seed_list, whose_stages(study)), "arms": arms}}


def passing_setting(study: Study, setting: Setting, of: str | None) -> Setting:
    """The setting in which a stage is passed: with the student's vocabulary whole, where it is cut after that.

    Args:
        study: whose stage it is.
        setting: of whose students.
        of: the arm that they are of, where it has one of its own; None for the study's.
    """
    uncut = _uncut(study, of)
    return setting if uncut is None else replace(setting, student=setting.made(uncut.student))


def _uncut(study: Study, of: str | None) -> Uncut | None:
    return study.uncut if of is None else study.own_starts[of].uncut


def _after(study: Study, setting: Setting, of: str | None) -> Setting:
    uncut, passing = _uncut(study, of), passing_setting(study, setting, of)

    @cache  # every arm that begins alike has one student a seed, whose stage is read once
    def begin(seed: int) -> Callable[[], nn.Module]:
        assert study.stage is not None
        begun = staged(passing.student, run_stage(study.stage, passing, seed, of))
        if uncut is None:
            return begun
        cut = uncut.cut
        return lambda: cut(begun())

    return replace(setting, begin=begin)
