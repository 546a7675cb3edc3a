"""What a stage says of itself in ``result.json``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from tutelage.errors import CheckpointError
from tutelage.studies.stage.job import masked_metrics, read_record
from tutelage.studies.stage.plan import StagePlan, student_folder, teacher_folder

#: What the study's own student is called among those of arms.
STUDENT = "student"
_KEPT = ("seed", "seconds", "steps", "before", "metrics")

Json = dict[str, Any]


def stage_record(plan: StagePlan, run: Path, seeds: Sequence[int], of: Sequence[str | None] = (None,)) -> Json:
    """The key ``stage`` of a run's record: texts, masks, teacher, and of each student and seed what it told before and after; of
    each student besides whether the head that it did it with began as the teacher's (``head_copied``), or was drawn.

    Args:
        plan: the stage.
        run: the run's folder, in which every student's stage is done.
        seeds: of the students.
        of: whose students passed it: None for the study's, and the arms that have one of their own.

    Raises:
        CheckpointError: a seed's stage is not done, or damaged.
    """
    return {
        "data": plan.texts.describe(),
        "masking": plan.texts.masking.describe(),
        "training": dict(plan.training),
        "teacher": _teacher(plan, run),
        "students": {STUDENT if arm is None else arm: _student(run, seeds, arm) for arm in of},
    }


def _student(run: Path, seeds: Sequence[int], of: str | None) -> Json:
    folders = [student_folder(run, seed, of) for seed in seeds]
    records = [_finished(folder) for folder in folders]
    rows: list[Json] = [
        {**{name: record[name] for name in _KEPT}, "folder": folder.relative_to(run).as_posix()}
        for record, folder in zip(records, folders, strict=True)
    ]
    return {
        "objective": records[0]["fingerprint"]["objective"],
        # a stage of an earlier version does not say it
        "head_copied": records[0].get("head_copied"),
        "seeds": rows,
        "mean": {name: sum(row["metrics"][name] for row in rows) / len(rows) for name in rows[0]["metrics"]},
    }


def _teacher(plan: StagePlan, run: Path) -> Json:
    if isinstance(plan.teacher, nn.Module):
        return {"trained": False, "metrics": masked_metrics(plan.teacher, plan.texts.validation)}
    record = _finished(teacher_folder(run))
    return {"trained": True, **{name: record[name] for name in ("seconds", "steps", "before", "metrics")}}


def _finished(folder: Path) -> Json:
    record = read_record(folder)
    if record is None:
        raise CheckpointError(f"{folder} holds no finished stage: its students are not trained yet; run it first")
    return record
