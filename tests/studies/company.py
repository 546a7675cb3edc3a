"""What the tests of ensembles, chains and recipes share: a watch, an interruption, and weights as they lie on disk."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from tiny import CLASSES, WIDTH, student
from torch import Tensor, nn


class Watch:
    """Notes what was trained, and what was found done; interrupts where it is told to.

    Args:
        at: interrupt the first training whose name begins so, after two steps.
    """

    def __init__(self, at: str | None = None) -> None:
        self.trained: list[str] = []
        self.found: list[str] = []
        self._at = at
        self._now = ""

    def started(self, what: str, total_steps: int, steps_done: int) -> None:
        self._now = what

    def advanced(self, steps_done: int) -> None:
        if self._at is not None and self._now.startswith(self._at) and steps_done == 2:
            raise KeyboardInterrupt

    def finished(self, what: str, outcome: str) -> None:
        (self.found if outcome == "done in an earlier run" else self.trained).append(what)


def hidden(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, width), nn.ReLU(), nn.Linear(width, CLASSES))


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def loaded(folder: Path, model: nn.Module | None = None) -> nn.Module:
    """The model that a training left; a linear student unless another one is given to load into."""
    module = model if model is not None else student()
    module.load_state_dict(weights(folder))
    return module.eval()


def same(a: Path, b: Path) -> bool:
    left, right = weights(a), weights(b)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def right(module: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float((module(inputs).argmax(1) == labels).float().mean())
