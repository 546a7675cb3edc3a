"""int8 for XNNPACK, by PyTorch's quantisation of exported programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.errors import ExportError
from tutelage.export.fitting import fitting
from tutelage.export.mobile_tracing import Bounds, export_program, refused
from tutelage.export.refusals import module_of
from tutelage.export.specs import LENGTH, input_specs
from tutelage.models.calling import Inputs

_CONVOLUTIONS = (
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "convolution",
)
_ATTENTION = ("scaled_dot_product_attention", "bmm", "baddbmm")


@dataclass(frozen=True)
class QuantisedLayers:
    """What became of a model's layers.

    Args:
        method: ``static`` or ``dynamic``.
        quantised: the linear and convolutional layers whose weights are int8, by module.
        kept: the layers with weights that stay in float32, embeddings among them.
    """

    method: str
    quantised: list[str]
    kept: list[str]

    def to_json(self) -> dict[str, Any]:
        """As in an artefact's manifest."""
        why = (
            "it convolves: activations are quantised by ranges found on training examples"
            if self.method == "static"
            else "attention or linear layers alone: each call finds the ranges of its own activations"
        )
        return {
            "method": f"{self.method} (XNNPACK)",
            "per_channel": True,
            "quantised_nodes": self.quantised,
            "float_nodes": self.kept,
            "tried": [],
            "why": why,
        }


def quantised(
    model: nn.Module, program: Any, inputs: Mapping[str, Tensor], calibration: Sequence[Inputs], bounds: Bounds
) -> tuple[Any, QuantisedLayers]:
    """The program in int8.

    Args:
        model: what ``program`` was traced from, to be named in messages.
        program: traced at the bounds with ``inputs``.
        inputs: what it was traced with.
        calibration: inputs from the training split.
        bounds: of the free axes; a larger calibration batch is cut into several.

    Raises:
        ExportError: calibration data are missing or do not fit, or nothing could be quantised.
    """
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    operators = {_operator(node) for node in program.graph.nodes}
    static = bool(operators.intersection(_CONVOLUTIONS)) and not operators.intersection(_ATTENTION)
    kind = type(model).__name__
    if static and not calibration:
        raise ExportError(
            f"{kind} convolves, so that int8 needs the ranges of its activations, and there are no calibration data: without them every "
            "scale would be a guess; give inputs from the training split"
        )
    specs, limits = input_specs(inputs), {LENGTH: bounds.length}
    given = [fitting("the calibration for int8", specs, batch, limits).values() for batch in calibration]
    batches = [
        cut for tensors in given for cut in zip(*(values.split(bounds.batch) for values in tensors), strict=True)
    ]
    try:
        with torch.no_grad():
            prepared = prepare_pt2e(program.module(), _quantiser(static))
            for batch in batches or [tuple(inputs.values())]:  # dynamic scales of weights ask for a call, not for data
                prepared(*batch)
            converted = convert_pt2e(prepared)
        found = _layers(converted, "static" if static else "dynamic")
        if not found.quantised:
            raise ExportError(
                f"int8 changes nothing in {kind}: it has no {'convolutional' if static else 'linear'} layer whose weights could be "
                "quantised. The artefact would be float32 under another name; export it without int8"
            )
        return export_program(converted, inputs, bounds), found
    except ExportError:
        raise
    except Exception as error:  # observers and passes raise what they like
        raise refused(error, model, program) from error


def _quantiser(static: bool) -> Any:
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )

    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=not static)
    if static:
        return XNNPACKQuantizer().set_global(config)

    class LinearAlone(XNNPACKQuantizer):
        """Without its turning of every number in a sum into a float tensor, by which positions (integers) become floats."""

        def transform_for_annotation(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
            return model

    linear: Any = (
        torch.ops.aten.linear.default
    )  # an overload, whatever its annotation says: the quantiser compares nodes' targets
    return LinearAlone().set_operator_type(linear, config)


def _operator(node: torch.fx.Node) -> str:
    """ATen's name of what a node calls, without its overload; empty for other nodes."""
    package, _, name = str(node.target).partition(".")
    return name.split(".")[0] if node.op == "call_function" and package == "aten" else ""


def _layers(converted: torch.fx.GraphModule, method: str) -> QuantisedLayers:
    lists: dict[bool, list[str]] = {True: [], False: []}
    for node in converted.graph.nodes:
        name = _operator(node)
        if name in ("embedding", "linear", *_CONVOLUTIONS):
            is_int8 = name != "embedding" and "dequantize" in str(getattr(node.args[1], "target", ""))
            module, _ = module_of(node) or ("", "")
            lists[is_int8].append(module or node.name)
    return QuantisedLayers(method, *(list(dict.fromkeys(lists[is_int8])) for is_int8 in (True, False)))
