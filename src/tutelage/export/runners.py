"""An artefact, opened to answer by the runtime of its format."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tutelage.errors import ExportError
from tutelage.export.artefacts import Artefact
from tutelage.export.mobile import ExecutorchRunner
from tutelage.export.onnx_format import OnnxRunner
from tutelage.export.specs import Runner
from tutelage.models import class_logits
from tutelage.models.calling import Inputs


class ModuleRunner:
    """A torch module on the CPU as a runner: in eval mode and without gradients.

    Args:
        module: it is put into eval mode for good.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module.eval()

    def __call__(self, inputs: Inputs) -> NDArray[np.float32]:
        """Logits ``[B, C]``."""
        with torch.inference_mode():
            return class_logits(self.module, inputs).float().numpy()


def open_runner(artefact: Artefact, threads: int | None = None, module: nn.Module | None = None) -> Runner:
    """Open an artefact with the runtime that it is made for.

    Args:
        artefact: a verified one.
        threads: that the runtime may use, None for its own choice.
        module: for ``safetensors``, which holds weights alone: the student with those weights loaded.

    Raises:
        ExportError: the runtime does not take it, or a folder of weights without a module.
        MissingExtraError: the runtime is not installed.
    """
    if artefact.format == "onnx":
        return OnnxRunner(artefact.model, threads)
    if artefact.format == "executorch":
        return ExecutorchRunner(artefact.model, threads)
    if module is None:
        raise ExportError(
            f"{artefact.folder} holds weights alone, and no module was given to load them into: nothing could answer; give the student"
        )
    return ModuleRunner(module)
