"""What an ONNX file says of itself, read without trusting it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from tutelage.errors import ExportError, missing_extra
from tutelage.export.refusals import first_line
from tutelage.export.specs import UNNAMED, TensorSpec

#: The one output of an artefact.
LOGITS = "logits"

STANDARD_DOMAINS = ("", "ai.onnx")


@dataclass(frozen=True)
class OnnxFacts:
    """What an ONNX artefact consists of, takes and gives.

    Args:
        files: names of the model's file and of those that hold its external data, all in one folder.
        opset: version of the standard operators it is written in.
        inputs: in the file's order.
        outputs: ``logits`` alone, float32 ``[batch, C]``.
    """

    files: list[str]
    opset: int
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]


def onnx_package(feature: str) -> Any:
    """The ``onnx`` package; ``feature`` is what needs it.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise missing_extra("onnx", "onnx", feature) from error
    return onnx


def onnxruntime_package(feature: str) -> Any:
    """The ``onnxruntime`` package; ``feature`` is what needs it.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise missing_extra("onnxruntime", "onnx", feature) from error
    return onnxruntime


def inspect_onnx(path: Path) -> OnnxFacts:
    """Check a file that may be damaged, hostile or somebody else's, and say what it takes and gives.

    Where its external data lie is settled before a byte of them is read: a location that leads out of the file's folder would
    make whoever loads the model read, and perhaps pass on, another file of this machine (GHSA-538c-55jv-c5g9 and the ones
    before it). Only then do onnx's checker and onnxruntime see it, the latter without optimising anything.

    Raises:
        ExportError: it is no ONNX file; its external data are missing, too short or elsewhere; it has not one output
            ``logits`` ``[batch, C]``; onnxruntime cannot run it.
        MissingExtraError: onnx or onnxruntime is not installed.
    """
    onnx = onnx_package("inspecting an ONNX file")
    model = _parsed(path, onnx)
    external = {
        _check_external(path, tensor) for tensor in _tensors(model) if tensor.data_location == onnx.TensorProto.EXTERNAL
    }
    # before IR version 4, weights were listed as inputs too
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [_spec(value, onnx) for value in model.graph.input if value.name not in weights]
    outputs = [_spec(value, onnx) for value in model.graph.output]
    _check_interface(path, inputs, outputs)
    try:
        onnx.checker.check_model(str(path))
    except Exception as error:  # a ValidationError, or whatever hostile bytes make of the parser
        raise ExportError(
            f"{path} is not valid ONNX: {first_line(error)} A runtime might answer all the same, with anything; export the model again"
        ) from error
    _check_runs(path, model)
    return OnnxFacts([path.name, *sorted(external)], _opset(model), inputs, outputs)


def _parsed(path: Path, onnx: Any) -> Any:
    if not path.is_file():
        raise ExportError(
            f"there is no ONNX file {path}: give the file that an export wrote, or export the model again"
        )
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's DecodeError, or whatever hostile bytes make of the parser
        raise ExportError(
            f"{path} is not an ONNX file, or is cut short: {first_line(error)} Copy it again, or export the model again"
        ) from error
    if not model.graph.node or not _opset(model):
        raise ExportError(
            f"{path} holds no ONNX model, expected a graph of operators and the version of their set: protobuf reads some other "
            "files without complaint; export the model again"
        )
    return model


def _opset(model: Any) -> int:
    return max((entry.version for entry in model.opset_import if entry.domain in STANDARD_DOMAINS), default=0)


def _tensors(message: Any) -> Iterator[Any]:
    """Every tensor in a protobuf message: initialisers, attributes, those of subgraphs, of functions and of sparse tensors."""
    if message.DESCRIPTOR.name == "TensorProto":
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in value if field.is_repeated else (value,):
                yield from _tensors(part)


def _check_external(path: Path, tensor: Any) -> str:
    """The name of the file that holds a tensor's data, found to be where it may be and long enough."""
    fields = {entry.key: entry.value for entry in tensor.external_data}
    location = fields.get("location", "")
    what = f"{path}: the data of {tensor.name!r}"
    relative = PurePosixPath(location)
    # a drive or a backslash means a folder on Windows alone, but there it does
    foreign = bool(PureWindowsPath(location).drive) or "\\" in location or "\0" in location
    if not location or foreign or relative.is_absolute() or ".." in relative.parts:
        raise ExportError(
            f"{what} are said to lie in {location!r}, expected the name of a file beside the model: reading them could take in any "
            "file of this machine; do not load this model, or ask its maker for one with its weights inside"
        )
    folder = path.parent.resolve()
    data = (folder / relative).resolve()
    if not data.is_relative_to(folder):
        raise ExportError(
            f"{what} lie in {location!r}, a link that leads out of the folder, to {data}: reading them could take in any file of "
            "this machine; if that file is the right one, put a copy of it beside the model"
        )
    if not data.is_file():
        raise ExportError(
            f"{what} should lie in {location!r}, which is {'no ordinary file' if data.exists() else 'missing'}: without it the "
            "model has no weights; copy the whole folder again, or export the model again"
        )
    if data.stat().st_nlink > 1:
        raise ExportError(
            f"{what} lie in {location!r}, a file that has another name as well (a hard link), which may be one outside the folder: "
            "reading them could take in any file of this machine; if it is the right one, put a copy of it beside the model"
        )
    _check_extent(what, tensor, fields, data)
    return location


def _check_extent(what: str, tensor: Any, fields: dict[str, str], data: Path) -> None:
    from onnx_ir import DataType

    try:
        needed = math.ceil(math.prod(tensor.dims) * DataType(tensor.data_type).itemsize)
        offset, length = int(fields.get("offset", 0)), int(fields.get("length", needed))
    except (TypeError, ValueError) as error:
        raise ExportError(
            f"{what} are of no type, or at no place, that raw data can have ({first_line(error)}): they cannot be read; export the "
            "model again"
        ) from error
    size = data.stat().st_size
    if min(needed, offset) < 0 or length != needed or offset + length > size:
        raise ExportError(
            f"{what} take {needed:,} bytes, {length:,} are said to lie at byte {offset:,} of {data.name!r}, which has {size:,}: it is "
            "cut short or belongs to another model; copy the whole folder again, or export the model again"
        )


def _spec(value: Any, onnx: Any) -> TensorSpec:
    tensor = value.type.tensor_type
    shape = tuple(
        axis.dim_value if axis.HasField("dim_value") else axis.dim_param or UNNAMED for axis in tensor.shape.dim
    )
    known = value.type.HasField("tensor_type") and tensor.elem_type
    return TensorSpec(
        value.name, str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)) if known else "none", shape
    )


def _check_interface(path: Path, inputs: list[TensorSpec], outputs: list[TensorSpec]) -> None:
    found = ", ".join(f"{spec.name!r} {spec.dtype} {list(spec.shape)}" for spec in outputs) or "none"
    good = [spec.name for spec in outputs] == [LOGITS] and outputs[0].dtype == "float32" and len(outputs[0].shape) == 2
    if not good or not isinstance(outputs[0].shape[0], str) or not isinstance(outputs[0].shape[1], int):
        raise ExportError(
            f"{path} gives the outputs {found}, expected one alone, {LOGITS!r} float32 ['batch', classes], free in its first axis "
            "and fixed in its second: something else would be read as class scores; export the model with tutelage"
        )
    for spec in inputs:
        if not spec.shape or not isinstance(spec.shape[0], str):
            raise ExportError(
                f"{path} takes {spec.name!r} {spec.dtype} {list(spec.shape)}, expected a tensor whose first axis, the batch, is free: "
                "only batches of one size could be given to it; export the model with tutelage"
            )
    if not inputs:
        raise ExportError(f"{path} takes no inputs: it answers every example alike; export the model again")


def _check_runs(path: Path, model: Any) -> None:
    ort = onnxruntime_package("inspecting an ONNX file")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4  # the exception says it all
    try:
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common base
        functions = {(function.domain, function.name) for function in model.functions}
        foreign = {
            f"{node.domain}.{node.op_type} (node {node.name!r})"
            for node in model.graph.node
            if node.domain not in STANDARD_DOMAINS and (node.domain, node.op_type) not in functions
        }
        raise ExportError(
            f"onnxruntime {ort.__version__} cannot run {path}: {first_line(error)}"
            + (f" Its operators outside the standard set are {', '.join(sorted(foreign)[:5])}." if foreign else "")
            + " Wherever it is deployed it would fail alike; export the model in standard operators, or use a newer onnxruntime"
        ) from error
