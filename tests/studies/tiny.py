"""A study small enough to run in a second: three blobs in eight dimensions, and linear models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tutelage import KL, CrossEntropy, Study, TransferSet
from tutelage.data import Batch, Splits
from tutelage.signals import Signals
from tutelage.teachers import ModuleTeacher

CLASSES, WIDTH = 3, 8
TRAINING: dict[str, Any] = {"num_train_epochs": 2, "per_device_train_batch_size": 16, "learning_rate": 0.05}


def blobs(count: int, seed: int, **options: Any) -> TransferSet:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    centres = torch.eye(CLASSES, WIDTH) * 2
    return TransferSet(centres[labels] + torch.randn(count, WIDTH, generator=generator), labels, **options)


def splits(**options: Any) -> Splits:
    return Splits(blobs(60, 1, **options), blobs(30, 2, **options), blobs(45, 3, **options))


def student() -> nn.Module:
    return nn.Linear(WIDTH, CLASSES)


def good_teacher() -> nn.Module:
    module = nn.Linear(WIDTH, CLASSES)
    with torch.no_grad():
        module.weight.copy_(torch.eye(CLASSES, WIDTH) * 2)
        module.bias.zero_()
    return module


def study(**changes: Any) -> Study:
    settings: dict[str, Any] = {
        "splits": splits(),
        "student": student,
        "teacher": good_teacher(),
        "objective": 0.9 * KL(temperature=1.0) + 0.1 * CrossEntropy(),
        "training": TRAINING,
        "seeds": 2,
    }
    return Study(**{**settings, **changes})


def without_labels(whole: Splits) -> Splits:
    return replace(whole, train=whole.train.with_labels(None))


class CountingTeacher:
    """A teacher that notes how many examples it was asked about, and in which epoch's shape it saw them."""

    def __init__(self, module: nn.Module) -> None:
        self._inner = ModuleTeacher(module)
        self.asked: list[Tensor] = []
        self.seen: list[Tensor] = []

    def signals(self, batch: Batch) -> Signals:
        self.asked.append(batch["ids"])
        self.seen.append(batch.get("teacher", batch["student"]))
        return self._inner.signals(batch)


class Recording(nn.Module):
    """A student that notes every training batch it is given."""

    def __init__(self, seen: list[Tensor]) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, CLASSES)
        self.seen = seen

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.seen.append(inputs.detach().clone())
        return self.layer(inputs)


def recording(log: list[tuple[Tensor, list[Tensor]]]) -> Callable[[], nn.Module]:
    """A student function; each student's initial weights and training batches are added to ``log``."""

    def build() -> nn.Module:
        seen: list[Tensor] = []
        module = Recording(seen)
        log.append((module.layer.weight.detach().clone(), seen))
        return module

    return build
