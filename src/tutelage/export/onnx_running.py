"""An ONNX artefact, ready to answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import ExportError
from tutelage.export.fitting import fitting
from tutelage.export.onnx_inspection import LOGITS, onnxruntime_package
from tutelage.export.refusals import first_line
from tutelage.export.specs import UNNAMED, TensorSpec
from tutelage.models.calling import Inputs

#: onnxruntime's names of element types, where they are not NumPy's.
ELEMENT_TYPES = {"float": "float32", "double": "float64"}


class OnnxRunner:
    """An ONNX classifier on the CPU, by onnxruntime, one operator after the other.

    A file of unknown origin is for :func:`~tutelage.export.onnx_format.inspect_onnx` first; here neither ``onnx`` is imported
    nor the file parsed twice, so that the memory measured of a runner is the model's.

    Args:
        path: the ``.onnx`` file; its external data lie beside it.
        threads: that one operator may use; None: as many as there are cores.

    Raises:
        ExportError: onnxruntime cannot load it, or it has no output ``logits``.
        MissingExtraError: onnxruntime is not installed.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        ort = onnxruntime_package("running an ONNX artefact")
        options = ort.SessionOptions()
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = 4  # the exceptions say it all
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions have no common base
            raise ExportError(
                f"onnxruntime {ort.__version__} cannot load {path}: {first_line(error)} Expected a whole ONNX model with its external "
                "data beside it; copy the folder again, or export the model again"
            ) from error
        self.path = path
        self.inputs = [_spec(value) for value in self._session.get_inputs()]
        outputs = [value.name for value in self._session.get_outputs()]
        if LOGITS not in outputs:
            raise ExportError(
                f"{path} gives {', '.join(map(repr, outputs)) or 'nothing'}, expected an output {LOGITS!r}: something else would be read "
                "as class scores; export the model with tutelage"
            )

    def __call__(self, inputs: Inputs) -> NDArray[np.float32]:
        """Logits ``[B, C]``. Names that the artefact does not take are left out; narrower integers are widened.

        Raises:
            ExportError: an input is missing, or of another type, rank or size than the artefact takes; or it did not give a
                row of logits for each example.
        """
        taken = fitting(self.path.name, self.inputs, inputs)
        feed = {name: values.numpy() for name, values in taken.items()}
        try:
            logits: Any = self._session.run([LOGITS], feed)[0]
        except Exception as error:  # onnxruntime's exceptions have no common base
            shapes = ", ".join(f"{name} {list(values.shape)}" for name, values in feed.items())
            raise ExportError(
                f"{self.path.name} does not bear inputs of the shapes {shapes}: {first_line(error)} Either the model itself cannot take "
                "them, or an axis was fixed when it was exported; compare with the trained model"
            ) from error
        examples = len(next(iter(feed.values())))
        if logits.ndim != 2 or len(logits) != examples:
            raise ExportError(
                f"{self.path.name} gave logits {list(logits.shape)} for {examples:,} examples, expected [{examples:,}, classes]: answers "
                "would be read for the wrong examples; export the model again"
            )
        return logits.astype(np.float32, copy=False)


def _spec(value: Any) -> TensorSpec:
    element = str(value.type).removeprefix("tensor(").removesuffix(")")
    shape = tuple(UNNAMED if size is None else size for size in value.shape)
    return TensorSpec(value.name, ELEMENT_TYPES.get(element, element), shape)
