"""A study's teacher: the module behind it, what identifies it, and what it says about the test split."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tutelage.data import TransferSet, shortest_first
from tutelage.errors import ConfigError
from tutelage.models import class_logits
from tutelage.objectives import Objective
from tutelage.signals import ClassScores, MixtureLogits, whole
from tutelage.studies.arm import weights_digest
from tutelage.studies.label_binds import store_digest
from tutelage.studies.remembering import Disk, remembered
from tutelage.teachers import EnsembleTeacher, MemoryTeacher, ModuleTeacher, StoredTeacher, Teacher
from tutelage.teachers.crossing import CrossTokenizerTeacher, SortedTeacher
from tutelage.teachers.remote import RemoteTeacher

_BATCH = 512


class EnsembleModule(nn.Module):
    """An ensemble as it would be deployed: every member runs, and their probabilities are averaged."""

    def __init__(self, members: Sequence[nn.Module], weights: torch.Tensor) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.register_buffer("weights", weights.float(), persistent=False)

    def forward(self, inputs: Any) -> torch.Tensor:
        """Log-probabilities ``[B, C]``."""
        values = torch.stack([class_logits(member, inputs) for member in self.members])
        return MixtureLogits(values, self.get_buffer("weights")).at(1.0)


@dataclass(frozen=True)
class Heard:
    """A teacher as a training hears it.

    Args:
        teacher: it.
        train: the transfer set on which it is heard.
        disk: where answers may be kept that memory does not hold; None for nowhere.
    """

    teacher: Teacher
    train: TransferSet
    disk: Disk | None = None

    @cached_property
    def identity(self) -> str:
        """See :func:`teacher_identity`."""
        return teacher_identity(self.teacher)

    def answering(self) -> Teacher:
        """The teacher; where what it sees is the same in every epoch, its answers, asked for once for all arms and seeds."""
        return self._answers

    @cached_property
    def _answers(self) -> Teacher:
        return remembered(self.teacher, self.train, self.disk)


def deployed_module(teacher: Teacher) -> nn.Module | None:
    """The module that would have to be deployed instead of the student, where there is one."""
    if isinstance(teacher, ModuleTeacher):
        return teacher.model
    if isinstance(teacher, EnsembleTeacher):
        modules = [deployed_module(member) for member in teacher.members]
        found = [module for module in modules if module is not None]
        return EnsembleModule(found, teacher.weights) if len(found) == len(modules) else None
    return None


@contextmanager
def on_cpu(module: nn.Module) -> Generator[nn.Module]:
    """The module on the CPU, where latencies are measured; back on its device afterwards."""
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    try:
        yield module.cpu()
    finally:
        module.to(device)


def teacher_identity(teacher: Teacher) -> str:
    """What tells this teacher from another: its weights, kept answers or name; others are told by a probe when they are asked."""
    kind = type(teacher).__name__
    if isinstance(teacher, MemoryTeacher):
        return f"{kind} {teacher.digest}"
    if isinstance(teacher, StoredTeacher):
        return f"{kind} {store_digest(teacher.store)}"
    if isinstance(teacher, RemoteTeacher):
        return f"{teacher.fact}, {teacher.k} of each place"
    if isinstance(teacher, CrossTokenizerTeacher | SortedTeacher):
        return f"{kind} of {teacher_identity(teacher.teacher)}, vocabularies {teacher.crossing.digest}"
    module = deployed_module(teacher)
    shares = (
        f", weights {[round(share, 6) for share in teacher.weights.tolist()]}"
        if isinstance(teacher, EnsembleTeacher)
        else ""
    )
    return f"{kind} {weights_digest(module)}{shares}" if module is not None else kind


def teacher_predictions(teacher: Teacher, test: TransferSet) -> NDArray[np.float32]:
    """Logits ``[N, C]`` of the teacher on the test split (effective ones at T = 1 for an ensemble)."""
    plain = test.for_evaluation()
    order = shortest_first(plain.inputs)
    asked = (logits_of(teacher, plain.batch(rows), "the teacher") for rows in order.split(_BATCH))
    return torch.cat([scores.at(1.0).float().cpu() for scores in asked])[order.argsort()].numpy()


def listens(objective: Objective) -> bool:
    """Whether some term reads anything of a teacher's."""
    return any(need.startswith("teacher.") for need in objective.needs)


def logits_of(teacher: Teacher, batch: Any, who: str) -> ClassScores:
    """A teacher's class scores for a batch.

    Raises:
        ConfigError: it gives none, so that nothing could be compared with it.
    """
    scores = teacher.signals(batch).logits
    if scores is None:
        raise ConfigError(f"{who} gives no logits: no student could be compared with it; use a teacher that classifies")
    return whole(scores, who)
