"""Export to ONNX: any classifier, with batch and length left free, and nothing in the file but what its forward uses."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tutelage.errors import ExportError, missing_extra
from tutelage.export.deployed import copy_as_deployed
from tutelage.export.onnx_inspection import OnnxFacts, inspect_onnx, onnx_package, onnxruntime_package
from tutelage.export.onnx_running import OnnxRunner
from tutelage.export.onnx_tracing import quiet, trace
from tutelage.export.onnx_trials import Trial
from tutelage.export.refusals import HELD_AS
from tutelage.export.specs import BATCH, TensorSpec
from tutelage.models.calling import Inputs

__all__ = ["EXTERNAL_ABOVE", "OPSET", "OnnxFacts", "OnnxRunner", "inspect_onnx", "to_onnx"]

#: The first operator set with ``Gelu`` in one piece, and one that every onnxruntime since 1.17 (January 2024) runs. Later sets
#: bring classifiers little, and cost them the runtimes that do not know them yet.
OPSET = 20

#: Weights of more bytes lie in a file beside the model: protobuf ends at 2 GiB, and int8 tools need room for a copy.
EXTERNAL_ABOVE = 1 << 30


def to_onnx(
    model: nn.Module, sample: Inputs, path: Path, opset: int = OPSET, *, external_above: int = EXTERNAL_ABOVE
) -> OnnxFacts:
    """Write ``model`` as ``path``, in eval mode, with batch and length free, and check what was written.

    The artefact's inputs are the tensors of ``sample`` that the model uses, under their names (a lone one is ``input``); its
    output is ``logits`` ``[batch, C]``. Hooks are left out, and so are modules that ``forward`` never comes to; weights that
    hooks of ``torch.nn.utils`` make (weight norm, spectral norm, pruning) are written as they make them. The model itself
    stays as it is: a copy is exported.

    The file is also run at sizes that it was not exported with, beside the model: an exporter may fix an axis, or follow the
    branch that its sample took, without a word.

    Args:
        model: on the CPU, in float32; called as :func:`tutelage.models.class_logits` does.
        sample: at least one example as the model takes it; integers and masks ``[B, T]`` are tokens, whose length is free.
        path: of the ``.onnx`` file; one that is there is replaced.
        opset: version of ONNX's operators.
        external_above: bytes of weights above which they lie in a file beside ``path``, called after it with ``.data`` added.

    Raises:
        ExportError: the model fixes an axis that should be free, decides by its data, uses an operator that ONNX lacks, or is
            otherwise not to be exported; then there is nothing at ``path``.
        ModelError: the model gives no class logits, or needs an input that the sample lacks.
        MissingExtraError: onnx, onnxscript or onnxruntime is not installed.
    """
    check_packages()
    data = path.with_name(f"{path.name}.data")
    for old in (path, data):
        old.unlink(missing_ok=True)
    _check_weights(model)
    deployed = copy_as_deployed(model, sample)
    trial = Trial(deployed, sample)
    traced = trace(deployed, trial.specs, trial.inputs, opset)
    _check_free(type(deployed).__name__, traced.program.model.graph, trial.specs)
    _tidy(traced.program.model)
    try:
        weights = traced.program.model.graph.initializers.values()
        size = sum(weight.const_value.nbytes for weight in weights)
        with quiet():
            traced.program.save(path, external_data=size > external_above)
        facts = inspect_onnx(path)
        trial.compare(OnnxRunner(path, threads=1), traced.decisive)
    except BaseException:
        for bad in (path, data):
            bad.unlink(missing_ok=True)
        raise
    return facts


def check_packages() -> None:
    """Make sure that what an export to ONNX needs is there.

    Raises:
        MissingExtraError: it is not.
    """
    onnx_package("exporting to ONNX")
    onnxruntime_package("exporting to ONNX")
    try:
        import onnxscript  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError as error:
        raise missing_extra("onnxscript", "onnx", "exporting to ONNX") from error


def _check_weights(model: nn.Module) -> None:
    for name, weight in model.named_parameters():
        if weight.device.type != "cpu" or (weight.is_floating_point() and weight.dtype != torch.float32):
            raise ExportError(
                f"{name} is {str(weight.dtype).removeprefix('torch.')} on {weight.device}, expected float32 on the CPU: the artefact "
                "would be of another precision than it says; export model.float().cpu(), and quantise the artefact"
            )


def _check_free(kind: str, graph: Any, specs: Sequence[TensorSpec]) -> None:
    """Compare the shapes that the file will declare with what they should be."""
    expected = {spec.name: spec.shape for spec in specs}
    for value in graph.inputs:
        for axis, (got, wanted) in enumerate(zip(_declared(value), expected[value.name], strict=True)):
            if got != wanted:
                raise ExportError(
                    f"{kind} fixes axis {axis} ({wanted!r}) of its input {value.name!r}: the exporter declares {got!r} there, expected it "
                    "to be free. Only inputs of the sample's size would be taken. Look for a branch on that size, for range(), int() "
                    "or float() of it, and for a size written as a number; use tensor operators that take it from the shape"
                )
    got = _declared(graph.outputs[0])
    if got[0] != BATCH:
        raise ExportError(
            f"{kind} gives logits whose axis 0 is {got[0]!r} by the exporter's reasoning, expected {BATCH!r} as in its inputs: answers "
            "could be read for the wrong examples; keep the batch axis through the whole model, without writing its size as a number"
        )


def _declared(value: Any) -> list[int | str | None]:
    return [size if isinstance(size, int) else size.value for size in value.shape]


def _tidy(model: Any) -> None:
    """Name nodes and weights as in the user's model, and drop what deployment has no use for.

    The exporter notes source lines, and paths of this machine, at each node; it lists inputs that nothing uses; and it states
    the weights' shapes a second time, which keeps onnxruntime's quantiser from transposing them.
    """
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    for node in model.graph:
        scopes = re.findall(rf"'{HELD_AS}\.([^']*)'", node.metadata_props.get("pkg.torch.onnx.name_scopes", ""))
        node.name = f"{scopes[-1]}/{node.name}" if scopes else node.name
    for weight in list(model.graph.initializers.values()):
        weight.name = weight.name.removeprefix(f"{HELD_AS}.")
        weight.shape = weight.type = None
    for value in list(model.graph.inputs):
        if not value.uses():
            model.graph.inputs.remove(value)
    ClearMetadataAndDocStringPass()(model)
    model.graph.metadata_props.clear()
