"""An artefact, or any runner, asked about a whole split."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from tutelage.data import TransferSet
from tutelage.export import Artefact, Runner, open_runner
from tutelage.models.calling import Inputs
from tutelage.models.saving import load_student
from tutelage.studies.arm import build_seeded
from tutelage.studies.finished import FinishedRun

#: Examples in a call, where the runner takes so many.
BATCH = 256


def answers(runner: Runner, transfer_set: TransferSet) -> NDArray[np.float32]:
    """Logits ``[N, C]`` of a runner for a whole split, without augmentation."""
    plain = transfer_set.for_evaluation()
    step = min(BATCH, limits(runner)[0] or BATCH)
    parts = [runner(student_view(plain, start, start + step)) for start in range(0, len(plain), step)]
    return np.concatenate(parts)


def limits(runner: Runner) -> tuple[int | None, int | None]:
    """The most examples, and the most tokens of an example, that a runner takes at once; None where it takes any number."""
    return getattr(runner, "max_batch", None), getattr(runner, "max_length", None)


def student_view(transfer_set: TransferSet, start: int, stop: int) -> Inputs:
    """What the student is given of these rows."""
    return transfer_set.batch(torch.arange(start, min(stop, len(transfer_set))))["student"]


def runner_of(run: FinishedRun, artefact: Artefact, threads: int | None = None) -> Runner:
    """An artefact, ready to answer."""
    module = None
    if artefact.format == "safetensors":
        module = load_student(build_seeded(run.study.student, run.seeds[0]), artefact.folder)
    return open_runner(artefact, threads, module)
