"""What each arm of a study is, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tutelage.studies.chain import DIRECT, Walked
from tutelage.studies.gates import JUDGED

if TYPE_CHECKING:
    from tutelage.studies.study import Study


def arm_words(study: Study, arm: str, walked: Walked | None) -> str:
    """What an arm is.

    Args:
        study: whose.
        arm: its name.
        walked: the road to the judged student by way of assistants, where there are some.
    """
    if arm in study.recipes:
        return study.recipes[arm].words()
    if (own := study.own_starts.get(arm)) is not None:
        which = own.start.words if own.start is not None else "another model"
        how = "the study’s objective" if own.objective is None else "an objective of its own"
        return f"a student of its own ({which}), trained with {how}"
    judged = "the student, taught by the teacher"
    if walked is not None:
        judged = f"the student, taught by way of {', then '.join(link.name for link in walked.links)}"
    return {
        JUDGED: judged,
        DIRECT: "the same student, taught by the teacher itself",
        "scratch": "the same student, trained on the labels alone",
        "label_smoothing": f"the same student, trained on the labels smoothed by {study.label_smoothing:g}",
    }.get(arm, "the same student, trained with another objective")
