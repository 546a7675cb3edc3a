"""An artefact, or any runner, asked about a whole split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tutelage.data import TransferSet
from tutelage.evaluation import classification_metrics
from tutelage.export import Artefact, ModuleRunner, Runner, open_runner
from tutelage.export.parity import FP32_TOLERANCE
from tutelage.models.calling import Inputs
from tutelage.models.saving import load_student
from tutelage.studies.finished import FinishedRun

#: How much accuracy an int8 artefact may lose to the student on the validation split before it counts as broken.
INT8_BROKEN = 0.02

Json = dict[str, Any]

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
        module = load_student(run.fresh(run.seeds[0]), artefact.folder)
    return open_runner(artefact, threads, module)


@dataclass(frozen=True)
class Said:
    """What the artefact and the trained student said of the validation split, ``[N, C]`` each, and its labels ``[N]``."""

    artefact: NDArray[np.float32]
    trained: NDArray[np.float32]
    labels: NDArray[np.int64]

    @staticmethod
    def of(student: nn.Module, runner: Runner, validation: TransferSet) -> Said:
        """Ask both."""
        trained = answers(ModuleRunner(student), validation)
        return Said(answers(runner, validation), trained, validation.known_labels.numpy())

    def broken(self, int8: bool) -> str | None:
        """Why an artefact that passed its parity is not the student all the same, or None."""
        if int8:
            lost = float(
                (self.trained.argmax(1) == self.labels).mean() - (self.artefact.argmax(1) == self.labels).mean()
            )
            allowed = f"at most {100 * INT8_BROKEN:g} may be"
            return f"{100 * lost:.1f} points of validation accuracy are lost, {allowed}" if lost > INT8_BROKEN else None
        apart = np.abs(np.where(self.artefact == self.trained, 0.0, self.artefact - self.trained)).max()
        # a NaN is below no tolerance
        if apart <= FP32_TOLERANCE:
            return None
        return f"on the validation split a logit is {apart:.2g} from the student's, beyond {FP32_TOLERANCE:g}"

    def metrics(self) -> Json:
        """Of both."""
        return {
            "trained": classification_metrics(self.trained, self.labels),
            "artefact": classification_metrics(self.artefact, self.labels),
        }
