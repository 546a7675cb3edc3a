"""An ONNX artefact, ready to answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import ExportError
from tutelage.export.onnx_inspection import LOGITS, UNNAMED, onnxruntime_package
from tutelage.export.refusals import first_line
from tutelage.export.specs import TensorSpec, named
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
        feed = self._feed(inputs)
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

    def _feed(self, inputs: Inputs) -> dict[str, NDArray[Any]]:
        given = {name: values.detach().cpu().numpy() for name, values in named(inputs).items()}
        missing = [spec.name for spec in self.inputs if spec.name not in given]
        if missing:
            raise ExportError(
                f"{self.path.name} takes {', '.join(spec.name for spec in self.inputs)}, got {', '.join(given) or 'nothing'}: "
                f"{', '.join(missing)} is missing; name the tensors as the model does (a lone tensor is called 'input')"
            )
        free: dict[str, int] = {}
        return {spec.name: self._checked(spec, given[spec.name], free) for spec in self.inputs}

    def _checked(self, spec: TensorSpec, values: NDArray[Any], free: dict[str, int]) -> NDArray[Any]:
        expected = f"expected {spec.dtype} [{', '.join(map(str, spec.shape))}]"
        got = f"{self.path.name}: {spec.name!r} is {values.dtype} {list(values.shape)}, {expected}"
        if str(values.dtype) != spec.dtype:
            integers = values.dtype.kind in "iu" and spec.dtype.startswith(("int", "uint"))
            if not integers or not np.can_cast(values.dtype, spec.dtype):
                raise ExportError(
                    f"{got}: a cast could change the values; give the tensor in the type the model was trained with"
                )
            values = values.astype(spec.dtype)
        if values.ndim != len(spec.shape):
            raise ExportError(f"{got}: an axis is missing or too many; give a batch of examples, even for a single one")
        for axis, (size, limit) in enumerate(zip(values.shape, spec.shape, strict=True)):
            if limit != UNNAMED and size != (free.setdefault(limit, size) if isinstance(limit, str) else limit):
                other = f", but another has {free[limit]:,}" if isinstance(limit, str) else ""
                raise ExportError(
                    f"{got}: axis {axis} has {size:,}{other}; the examples were prepared for another model, or not alike"
                )
        if values.size == 0:
            raise ExportError(f"{got}: there is nothing in it; give at least one example, and one token")
        return np.ascontiguousarray(values)


def _spec(value: Any) -> TensorSpec:
    element = str(value.type).removeprefix("tensor(").removesuffix(")")
    shape = tuple(UNNAMED if size is None else size for size in value.shape)
    return TensorSpec(value.name, ELEMENT_TYPES.get(element, element), shape)
