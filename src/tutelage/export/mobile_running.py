"""An ExecuTorch program, ready to answer by the same runtime that a phone has; and its packages, kept quiet."""

from __future__ import annotations

import importlib
import io
import json
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Generator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tutelage.errors import ConfigError, ExportError, missing_extra
from tutelage.export.fitting import fitting
from tutelage.export.quieting import silenced
from tutelage.export.specs import BATCH, LENGTH, TensorSpec
from tutelage.models.calling import Inputs

#: The method of a program by which it says what it takes: ExecuTorch itself keeps neither names nor which axes are free.
ABOUT = "tutelage"

#: What the runtime's C++ puts before each line of its log.
_LOG_PLACE = re.compile(r"^\[\w+\.cpp:\d+\] ")


class ExecutorchRunner:
    """An ExecuTorch classifier on this machine's CPU.

    XNNPACK's threads belong to the process: a runner that asks for another number than there are now makes new ones, and
    every runner of the process loads its program again at its next call. For a measurement, give each process one number.

    Args:
        path: a ``.pte`` file that :func:`~tutelage.export.mobile.to_executorch` wrote.
        threads: that one call may use; None: as many as there are, at first one a core.

    Raises:
        ConfigError: ``threads`` is not positive.
        ExportError: the runtime cannot load the file, or it is not one of tutelage's.
        MissingExtraError: executorch is not installed.
    """

    _pool: ClassVar[int] = 0  # how often the process's threads were made anew

    def __init__(self, path: Path, threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise ConfigError(f"threads is {threads}, expected at least 1, or None for the runtime's own choice")
        executorch_package("running an ExecuTorch artefact")
        with quiet_packages():
            self._portable: Any = importlib.import_module("executorch.extension.pybindings.portable_lib")
        self.path = path
        self.threads = threads
        self._load()
        about: dict[str, Any] = json.loads(self._about)
        self.inputs = [TensorSpec.from_json(fields) for fields in about["inputs"]]
        self.max_batch: int = about["max_batch"]
        self.max_length: int | None = about["max_length"]
        self._answered = False

    def __call__(self, inputs: Inputs) -> NDArray[np.float32]:
        """Logits ``[B, C]``. Names that the artefact does not take are left out; narrower integers are widened.

        Raises:
            ExportError: an input is missing, of another type, rank or size than the artefact takes, or beyond the bounds that
                it was exported with; or the runtime failed.
        """
        limits = {BATCH: self.max_batch, LENGTH: self.max_length}
        tensors = list(fitting(self.path.name, self.inputs, inputs, limits).values())
        if self._loaded_for != ExecutorchRunner._pool or (self.threads or self._count()) != self._count():
            self._load()
        outputs = self._run(tensors)
        logits = outputs[0].numpy() if len(outputs) == 1 and isinstance(outputs[0], Tensor) else np.empty(0)
        if logits.ndim != 2 or len(logits) != len(tensors[0]):
            raise ExportError(
                f"{self.path.name} gave {list(logits.shape)} for {len(tensors[0]):,} examples, expected [{len(tensors[0]):,}, classes]: "
                "answers would be read for the wrong examples; export the model again"
            )
        return logits.astype(np.float32, copy=False)

    def _run(self, tensors: list[Tensor]) -> list[Any]:
        said = ""
        try:
            if self._answered:
                return self._forward(tensors)
            with captured_stderr() as heard:  # at its first call the runtime complains about the machine
                try:
                    outputs = self._forward(tensors)
                finally:
                    said = heard.text()
            self._answered = True
            return outputs
        except RuntimeError as error:
            shapes = ", ".join(
                f"{spec.name} {list(values.shape)}" for spec, values in zip(self.inputs, tensors, strict=True)
            )
            raise ExportError(
                f"ExecuTorch's runtime could not run {self.path.name} on {shapes}: {error}. {said}An operator of the model does not bear "
                "these sizes in that runtime; export to ONNX instead, or write the model without that operator"
            ) from error

    def _count(self) -> int:
        return self._portable._threadpool_get_thread_count()

    def _load(self) -> None:
        """Load the program for the threads there are, which a loaded one keeps pointing at."""
        with captured_stderr() as said:
            if self.threads is not None and self.threads != self._count():
                self._portable._unsafe_reset_threadpool(self.threads)
                ExecutorchRunner._pool += 1
            self._loaded_for = ExecutorchRunner._pool
            try:
                self._program = self._portable._load_program(
                    str(self.path), program_verification=self._portable.Verification.InternalConsistency
                )
                names = [self._program.get_method_name(index) for index in range(self._program.num_methods())]
                if ABOUT not in names:
                    raise ExportError(
                        f"{self.path} is an ExecuTorch program that tutelage did not write (its methods: {', '.join(names)}): the "
                        "order of its inputs and the sizes it takes are not known; export the student with `tutelage export`"
                    )
                self._about: str = self._program.load_method(ABOUT)(())[0]
                self._forward: Any = self._program.load_method("forward")
            except RuntimeError as error:
                if isinstance(error, ExportError):
                    raise
                raise ExportError(
                    f"ExecuTorch's runtime cannot load {self.path}: {error}. {said.text()}Expected a whole .pte file, and a runtime that "
                    "has its operators; copy the file again, or export the model with the executorch that is installed here"
                ) from error

    def bounds(self) -> list[tuple[int, ...]]:
        """The largest shape of each input that memory is planned for, by the program itself."""
        meta = self._program.method_meta("forward")
        return [tuple(meta.input_tensor_meta(index).sizes()) for index in range(meta.num_inputs())]


def executorch_package(feature: str) -> None:
    """Make sure that ExecuTorch is there.

    Raises:
        MissingExtraError: it is not.
    """
    for package in ("executorch", "torchao"):
        try:
            with quiet_packages():
                importlib.import_module(package)
        except ImportError as error:
            raise missing_extra(package, "mobile", feature) from error


@contextmanager
def quiet_packages() -> Generator[None]:
    """Keep off the terminal what executorch and torchao say of themselves, at import and at work."""
    with silenced("torch", "torchao", "executorch"), warnings.catch_warnings():
        # deprecations inside the packages, and ExecuTorch's notice that its whole interface is experimental
        for category in (DeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", category)
        warnings.filterwarnings("ignore", message="This API is experimental")
        yield


class Said:
    """What is written to the standard error meanwhile, by C++ and through Python's object: the runtime does both."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._kept = b""
        self.python = io.StringIO()

    def keep(self) -> None:
        """Read it for the last time."""
        self._file.seek(0)
        self._kept = self._file.read()

    def text(self) -> str:
        """The first lines, as a sentence to put into a message; empty where nothing was said."""
        if not self._file.closed:
            self.keep()
        said = self._kept.decode(errors="replace") + self.python.getvalue()
        lines = [_LOG_PLACE.sub("", line).strip() for line in said.splitlines() if "cpuinfo" not in line]
        return f"It said: {'; '.join(list(filter(None, lines))[:2])}. " if lines else ""


@contextmanager
def captured_stderr() -> Generator[Said]:
    """Collect what the runtime writes to the standard error, which its exceptions do not say.

    The process's own descriptor is turned aside for the time being: only around a short call.
    """
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file:
        said = Said(file)
        kept = os.dup(2)
        try:
            os.dup2(file.fileno(), 2)
            with redirect_stderr(said.python):
                yield said
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            said.keep()
