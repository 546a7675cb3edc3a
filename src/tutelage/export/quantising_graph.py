"""An ONNX graph made ready for onnxruntime's quantisers, calibrated, and written with some nodes in int8."""

from __future__ import annotations

import contextlib
import io
import logging
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import ExportError
from tutelage.export.refusals import first_line

STATIC, DYNAMIC = "static QDQ", "dynamic"

#: The types of weights: name in onnxruntime, and whether to a range of 7 bits.
WEIGHTS = {"int8 weights of 7 bits": ("QInt8", True), "uint8 weights": ("QUInt8", False)}

#: How ranges of activations are taken from calibration data: name in onnxruntime, and its options. Its entropy method is left
#: out: it takes seconds a tensor, more where there are outliers, and gained nothing over these.
CALIBRATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "min-max": ("MinMax", {}),
    # onnxruntime would make this range symmetric, and waste half of it on what follows a ReLU
    "percentile 99.99": ("Percentile", {"percentile": 99.99, "symmetric": False}),
}

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
PRODUCTS = frozenset({"MatMul", "Gemm"})

#: Static: operators whose inputs and outputs are turned into int8 …
STATIC_LEADING = CONVOLUTIONS | PRODUCTS | {"Add", "Concat", "GlobalAveragePool"}
#: … and those that stay in int8 where their input is. Smooth functions (Sigmoid, Softmax, LayerNormalization) stay in float.
STATIC_FOLLOWING = frozenset(
    {
        "AveragePool",
        "Clip",
        "Flatten",
        "MaxPool",
        "Pad",
        "Relu",
        "Reshape",
        "Resize",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)

#: Dynamic: the operators with weights, but for convolutions.
DYNAMIC_LEADING = frozenset({"MatMul", "Gather", "LSTM"})

#: Which input of an operator is its weight, where it has one.
WEIGHT_INPUT = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1, "Gather": 0, "LSTM": 1}


@dataclass(frozen=True)
class Graph:
    """A model ready to be quantised.

    Args:
        path: of the prepared model, in float.
        model: the same, loaded, with the types of its tensors inferred.
        method: `STATIC` or `DYNAMIC`.
        nodes: that can be quantised, in the order of the graph.
        external: whether weights lie in a file of their own.
    """

    path: Path
    model: Any
    method: str
    nodes: list[str]
    external: bool


def prepare(source: Path, folder: Path, method: str | None, *, external: bool) -> Graph:
    """Fold constants and batch norms, infer types, name every node, and decide on the method if none is given.

    Raises:
        ExportError: onnxruntime cannot prepare it, or nothing in it can be quantised with this method.
    """
    import onnx
    from onnxruntime.quantization import quant_pre_process
    from onnxruntime.quantization.quant_utils import load_model_with_shape_infer

    folded, path = folder / "folded.onnx", folder / "prepared.onnx"
    try:
        # types are all that the quantisers need, and symbolic shapes fail on exported encoders
        quant_pre_process(
            str(source),
            str(folded),
            skip_symbolic_shape=True,
            save_as_external_data=external,
            all_tensors_to_one_file=True,
        )
        model = onnx.load(str(folded))
    except Exception as error:  # onnxruntime's exceptions have no common base
        raise ExportError(
            f"{source} cannot be prepared for int8: {first_line(error)} Export the model again, or ship it in fp32"
        ) from error
    method = method or suitable_method(model)
    _name_nodes(model)
    if method == DYNAMIC:
        _gemms_as_products(model)
    onnx.save_model(model, str(path), save_as_external_data=external, location=f"{path.name}.data")
    model = load_model_with_shape_infer(path)
    nodes = _quantisable(model, method)
    if not nodes:
        operators = Counter(node.op_type for node in model.graph.node)
        raise ExportError(
            f"{source} has no layer that {method} quantisation can compute in int8; its operators are "
            f"{', '.join(f'{count} {name}' for name, count in operators.most_common(12))}. The file would be an fp32 model with an int8 "
            "name; ship it in fp32, or force the other method"
        )
    return Graph(path, model, method, nodes, external)


def suitable_method(model: Any) -> str:
    """Static for convolutional nets, dynamic for all others; attention makes a net with convolutions a transformer.

    Attention is known by its product of two computed tensors.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    operators = {node.op_type for node in model.graph.node}
    attention = any(node.op_type == "MatMul" and not weights.intersection(node.input) for node in model.graph.node)
    return STATIC if operators & CONVOLUTIONS and not attention else DYNAMIC


def calibrate(graph: Graph, batches: Iterable[dict[str, NDArray[Any]]], calibration: str, folder: Path) -> Any:
    """The ranges of all activations over the batches, as onnxruntime keeps them."""
    from onnxruntime.quantization import CalibrationMethod, create_calibrator

    method, options = CALIBRATIONS[calibration]
    calibrator: Any = create_calibrator(
        graph.path,
        sorted(STATIC_LEADING | STATIC_FOLLOWING),
        augmented_model_path=str(folder / "augmented.onnx"),
        calibrate_method=CalibrationMethod[method],
        use_external_data_format=graph.external,
        extra_options=options,
    )
    for batch in batches:
        # one at a time: of a batch every activation is kept until its histogram is made
        calibrator.collect_data(_Reader(iter([batch])))
    return calibrator.compute_data()


def write(
    graph: Graph, path: Path, *, weights: str, per_channel: bool, float_nodes: Iterable[str], ranges: Any
) -> None:
    """Write the model with all quantisable nodes but ``float_nodes`` in int8; ``ranges`` are those of `calibrate`."""
    import onnx
    from onnxruntime.quantization import QDQQuantizer, QuantType, quantize_dynamic

    name, seven_bits = WEIGHTS[weights]
    left_out = sorted(float_nodes)
    if graph.method == DYNAMIC:
        quantize_dynamic(
            graph.path,
            path,
            op_types_to_quantize=sorted(DYNAMIC_LEADING),
            per_channel=per_channel,
            reduce_range=seven_bits,
            weight_type=QuantType[name],
            nodes_to_exclude=left_out,
            use_external_data_format=graph.external,
        )
        return
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    # the class that quantize_static calls, without calibrating anew for every trial
    quantizer = QDQQuantizer(
        model,
        per_channel,
        seven_bits,
        QuantType[name],
        QuantType.QUInt8,
        ranges,
        [],
        [*left_out, *_computed_products(model)],
        sorted(STATIC_LEADING | STATIC_FOLLOWING),
        {},
    )
    quantizer.quantize_model()
    _keep_in_float(quantizer.model.model.graph, left_out)
    quantizer.model.save_model_to_file(str(path), graph.external)


def int8_weights(path: Path) -> int:
    """Scalars in weights of 8 bits."""
    import onnx

    eight_bits = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    tensors = onnx.load(str(path), load_external_data=False).graph.initializer
    # scales' zero points are of 8 bits too, but have one axis at most
    return sum(
        int(np.prod(tensor.dims)) for tensor in tensors if tensor.data_type in eight_bits and len(tensor.dims) > 1
    )


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """Without what onnxruntime's quantisers print and log; its log functions would also set up the root logger."""
    root, handler = logging.getLogger(), logging.NullHandler()
    before = root.manager.disable
    root.addHandler(handler)
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
        root.removeHandler(handler)


class _Reader:
    """Calibration batches, as onnxruntime asks for them."""

    def __init__(self, batches: Iterator[Mapping[str, NDArray[Any]]]) -> None:
        self._batches = batches

    def get_next(self) -> Mapping[str, NDArray[Any]] | None:
        return next(self._batches, None)


def _name_nodes(model: Any) -> None:
    """Give each node a name of its own, by which the quantisers can be told to leave it out."""
    taken: set[str] = set()
    for index, node in enumerate(model.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.name or node.op_type}_{index}_of_graph"
        taken.add(node.name)


def _gemms_as_products(model: Any) -> None:
    """Write each ``Gemm`` as a ``MatMul`` of its name and an ``Add``, which is the form that dynamic quantisation knows.

    onnxruntime's own rewriting transposes the weight in place, twice where two layers share it, and leaves shapes behind that
    its own inference then rejects.
    """
    from onnx import helper, numpy_helper

    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes: list[Any] = []
    for node in model.graph.node:
        attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
        scaled = (
            attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0 or attributes.get("transA", 0)
        )
        if node.op_type != "Gemm" or scaled or node.input[1] not in weights:
            nodes.append(node)
            continue
        weight = node.input[1]
        if attributes.get("transB", 0):
            weight += "_transposed"
            if weight not in weights:
                values = np.ascontiguousarray(numpy_helper.to_array(weights[node.input[1]]).T)
                weights[weight] = numpy_helper.from_array(values, weight)
                model.graph.initializer.append(weights[weight])
        bias = node.input[2] if len(node.input) > 2 else ""
        product = f"{node.output[0]}_product" if bias else node.output[0]
        nodes.append(helper.make_node("MatMul", [node.input[0], weight], [product], node.name))
        if bias:
            nodes.append(helper.make_node("Add", [product, bias], [node.output[0]], f"{node.name}_bias"))
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _keep_in_float(graph: Any, float_nodes: Iterable[str]) -> None:
    """Put an operator that does nothing before each float convolution or linear layer that follows one in int8.

    From dequantised input to quantised output, onnxruntime (1.20 and later) quantises such a layer's weights as it loads the
    model, to one scale and the full range that saturates: what the search put back into float would run in int8 all the same.
    A sum of one tensor stands in the way, and is copied at most.
    """
    from onnx import helper

    left_out, dequantised = set(float_nodes), set[str]()
    for node in graph.node:
        if node.op_type == "DequantizeLinear":
            dequantised.update(node.output)
    for node in list(graph.node):
        if node.name in left_out and node.op_type in CONVOLUTIONS | {"Gemm"} and node.input[0] in dequantised:
            kept = f"{node.name}_input_in_float"
            graph.node.append(helper.make_node("Sum", [node.input[0]], [kept], f"{node.name}_kept_in_float"))
            node.input[0] = kept


def _quantisable(model: Any, method: str) -> list[str]:
    import onnx

    weights = {tensor.name for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
    types = {value.name: value.type.tensor_type.elem_type for value in (*model.graph.value_info, *model.graph.output)}
    leading = STATIC_LEADING if method == STATIC else DYNAMIC_LEADING
    return [
        node.name
        for node in model.graph.node
        if node.op_type in leading
        and types.get(next(filter(None, node.output))) == onnx.TensorProto.FLOAT
        and (node.op_type not in WEIGHT_INPUT or node.input[WEIGHT_INPUT[node.op_type]] in weights)
    ]


def _computed_products(model: Any) -> list[str]:
    weights = {tensor.name for tensor in model.graph.initializer}
    return [node.name for node in model.graph.node if node.op_type in PRODUCTS and node.input[1] not in weights]
