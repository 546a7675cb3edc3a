"""A stage is run once a seed, and what it taught goes into the task's students."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tutelage.errors import CheckpointError
from tutelage.models.masked_language import carry_over
from tutelage.models.saving import load_student
from tutelage.studies.arm import build_seeded
from tutelage.studies.setting import Setting
from tutelage.studies.stage.job import run_job
from tutelage.studies.stage.plan import StagePlan, student_folder, teacher_folder


def run_stage(plan: StagePlan, setting: Setting, seed: int, of: str | None = None) -> Path:
    """Train a seed's student in the stage, or continue it, or find it done; the stage's own teacher is trained first where that is to be.

    Args:
        plan: the stage.
        setting: of the arm, of which only the folder, the student and who watches count: a stage is the same whatever the task.
        seed: of the student.
        of: the arm, where it has a student of its own; None for the study's.

    Returns:
        The folder with its weights, for :func:`staged`.

    Raises:
        CheckpointError: the folder holds another stage; the message shows the difference.
        TutelageError: as :func:`tutelage.studies.stage.check_stage`.
    """
    teacher = _ready_teacher(plan, setting)
    folder = student_folder(setting.folder, seed, of)
    run_job(plan.student_job(folder, seed, setting.student, teacher, of), setting.progress)
    return folder


def staged(student: Callable[[], nn.Module], folder: Path) -> Callable[[], nn.Module]:
    """Makes fresh students of the task whose encoder has passed the stage; all else is as ``student`` makes it.

    Args:
        student: the task's maker that the stage was run for.
        folder: :func:`run_stage` of it.
    """
    return lambda: carry_over(_stage_model(folder), student())


def _ready_teacher(plan: StagePlan, setting: Setting) -> nn.Module:
    if isinstance(plan.teacher, nn.Module):
        return plan.teacher
    folder = teacher_folder(setting.folder)
    if folder not in plan.ready:
        job = plan.teacher_job(folder)
        run_job(job, setting.progress)
        plan.ready[folder] = load_student(build_seeded(job.build, job.seed), folder).eval()
    return plan.ready[folder]


def _stage_model(folder: Path) -> Any:
    from transformers import AutoModelForMaskedLM

    try:
        with torch.random.fork_rng(devices=[]):
            return AutoModelForMaskedLM.from_pretrained(folder, dtype="auto", local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder} holds no masked language model ({error}): the students would begin without the stage; run the stage again"
        ) from error
