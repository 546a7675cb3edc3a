"""An artefact, opened to answer by the runtime of its format."""

from __future__ import annotations

from torch import nn

from tutelage.errors import ExportError
from tutelage.export.artefacts import Artefact, Format
from tutelage.export.hub_folder import ModuleRunner
from tutelage.export.mobile import ExecutorchRunner
from tutelage.export.mobile_running import executorch_package
from tutelage.export.onnx_format import OnnxRunner, check_packages
from tutelage.export.specs import Runner


def require_packages(to: Format) -> None:
    """Find out before anything is done whether the packages of a format are there.

    Raises:
        MissingExtraError: one is not; the message names the install command.
    """
    if to == "onnx":
        check_packages()
    elif to == "executorch":
        executorch_package("exporting to ExecuTorch")


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
