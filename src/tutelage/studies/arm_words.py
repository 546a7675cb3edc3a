"""What each arm of a study is, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tutelage.studies.chain import DIRECT, Walked
from tutelage.studies.gates import JUDGED
from tutelage.studies.passing import passes_stage

if TYPE_CHECKING:
    from tutelage.studies.study import Study


def arm_words(study: Study, arm: str, walked: Walked | None) -> str:
    """What an arm is.

    Args:
        study: whose.
        arm: its name.
        walked: the road to the judged student by way of assistants, where there are some.
    """
    skipped = study.stage is not None and not passes_stage(study, arm)
    return _words(study, arm, walked) + (", without the stage before the task" if skipped else "")


def _words(study: Study, arm: str, walked: Walked | None) -> str:
    if arm in study.recipes:
        return study.recipes[arm].words()
    if (own := study.own_starts.get(arm)) is not None:
        which = own.start.words if own.start is not None else "another model"
        return f"a student of its own: {which}; trained with {_objective_said(study, arm)}"
    judged = "the student, taught by the teacher"
    if walked is not None:
        judged = f"the student, taught by way of {', then '.join(link.name for link in walked.links)}"
    return {
        JUDGED: judged,
        DIRECT: "the same student, taught by the teacher itself",
        "scratch": "the same student, trained on the labels alone",
        "label_smoothing": f"the same student, trained on the labels smoothed by {study.label_smoothing:g}",
    }.get(arm) or f"the same student, trained with {_objective_said(study, arm)}"


def _objective_said(study: Study, arm: str) -> str:
    said = {each: study.objectives[each].describe() for each in (arm, JUDGED)}
    return "the study’s objective" if said[arm] == said[JUDGED] else "another objective"
