"""Plans as a study would make them, trained together; ``killed_together.py FOLDER STEP`` kills itself after that step."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from tiny import blobs, good_teacher
from torch import nn

from tutelage.data import GaussianNoise, Splits
from tutelage.objectives import KL, CrossEntropy, Objective, as_objective
from tutelage.studies.arm import ArmPlan, Silent
from tutelage.studies.together import run_all
from tutelage.teachers import ModuleTeacher

OBJECTIVES: dict[str, Objective] = {
    "warm": 0.5 * KL(2.0) + 0.5 * CrossEntropy(),
    "scratch": as_objective(CrossEntropy()),
}
STEPS = 20


def student() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 10), nn.ReLU(), nn.Linear(10, 3))


def plans(folder: Path, seeds: int = 2, **changes: Any) -> list[ArmPlan]:
    data = Splits(blobs(60, 1, augment=GaussianNoise(0.2)), blobs(30, 2), blobs(45, 3))
    teacher = ModuleTeacher(good_teacher())
    training = {"max_steps": STEPS, "per_device_train_batch_size": 16, "learning_rate": 0.02, "eval_steps": 5}
    own: dict[str, Any] = {"training": {**training, **changes.pop("training", {})}, "build": student, **changes}
    return [
        ArmPlan(
            arm=arm,
            seed=seed,
            folder=folder / arm / f"seed-{seed}",
            objective=objective,
            train=data.train,
            validation=data.validation,
            test=data.test,
            teacher=lambda: teacher,
            given_teacher=teacher,
            **own,
        )
        for arm, objective in OBJECTIVES.items()
        for seed in range(seeds)
    ]


class DieAt(Silent):
    def __init__(self, step: int) -> None:
        self.step = step

    def advanced(self, steps_done: int) -> None:
        if steps_done == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_all(plans(Path(sys.argv[1])), DieAt(int(sys.argv[2])), together=True)
