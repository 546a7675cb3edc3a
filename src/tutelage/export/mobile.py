"""The student on a phone: an ExecuTorch program whose operators run in XNNPACK, in float32 or int8."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tutelage.errors import ConfigError, ExportError
from tutelage.export.deployed import copy_as_deployed
from tutelage.export.mobile_quantising import quantised
from tutelage.export.mobile_running import ABOUT, ExecutorchRunner, executorch_package, quiet_packages
from tutelage.export.mobile_tracing import Bounds, refused, stretched, traced_as_used
from tutelage.export.specs import BATCH, LENGTH, TensorSpec, input_specs, named
from tutelage.models.calling import Inputs

__all__ = ["MAX_BATCH", "MAX_BATCH_OF_TEXTS", "ExecutorchRunner", "MobileFacts", "to_executorch"]

#: Examples in a call, at most, if nothing is said. Memory is planned for the largest call: a text's grows with its length too.
MAX_BATCH, MAX_BATCH_OF_TEXTS = 64, 16


@dataclass(frozen=True)
class MobileFacts:
    """What was written.

    Args:
        files: the program, by name.
        inputs, outputs: what it takes and gives; a free axis takes sizes from 1 to ``max_batch`` or ``max_length``.
        max_batch: examples in one call, at most.
        max_length: tokens of an example, at most; None where there are no tokens.
        planned_bytes: memory that the program takes at loading for what passes between its operators, at the bounds; what
            XNNPACK takes for itself comes on top.
        delegated: operators that XNNPACK runs.
        outside: how often each operator is called beside it, by ExecuTorch's portable kernels: plain loops on one thread.
        quantisation: what was quantised and how, as in an artefact's manifest; None in float32.
    """

    files: list[str]
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    max_batch: int
    max_length: int | None
    planned_bytes: int
    delegated: int
    outside: Mapping[str, int]
    quantisation: Mapping[str, Any] | None

    def to_json(self) -> dict[str, Any]:
        """What a manifest has no other place for."""
        fields = asdict(self)
        return {name: value for name, value in fields.items() if name not in ("files", "inputs", "outputs")}


def to_executorch(
    model: nn.Module,
    sample: Inputs,
    path: Path,
    *,
    int8: bool = False,
    calibration: Sequence[Inputs] = (),
    max_batch: int | None = None,
    max_length: int | None = None,
) -> MobileFacts:
    """Write ``model`` as the ExecuTorch program ``path``, in eval mode and on the CPU; the model itself stays as it is.

    The program takes the tensors of ``sample`` that the model uses, in their order, and gives logits ``[batch, C]`` in
    float32. Unlike other formats it plans its memory ahead, so that batch and length have upper bounds, which it carries with
    it. It is loaded again and run with one example before this returns.

    Args:
        model: called as :func:`tutelage.models.class_logits` does.
        sample: at least one example; integers and masks ``[B, T]`` are tokens, whose length is free.
        path: of the ``.pte`` file; one that is there is replaced.
        int8: quantise. Where the model convolves and has no attention, activations are quantised with ranges found on
            ``calibration`` (static); else the linear layers alone, with ranges found at each call (dynamic). Weights are
            symmetric, one scale an output channel; embeddings stay in float32.
        calibration: inputs from the training split; a static program cannot do without.
        max_batch: the largest batch; 64 if not given, 16 where there are tokens. With 1 the axis is fixed.
        max_length: the longest text; the sample's length if not given.

    Raises:
        ConfigError: a bound is not positive, or shorter than the sample; or a length for a model without tokens.
        ExportError: the model uses an operator that ExecuTorch lacks, decides by its data or fixes an axis; calibration data
            are missing or do not fit; or nothing was quantised. Nothing is left at ``path`` then.
        MissingExtraError: executorch is not installed.
        ModelError: the model cannot be called with ``sample``, or gives no class logits.
    """
    executorch_package("exporting to ExecuTorch")
    path.unlink(missing_ok=True)
    bounds = _bounds(sample, max_batch, max_length)
    with quiet_packages():
        deployed = copy_as_deployed(model, sample).cpu().float()
        program, inputs = traced_as_used(deployed, stretched(sample, bounds), bounds)
        layers = None
        if int8:
            program, layers = quantised(deployed, program, inputs, calibration, bounds)
        specs = [bounds.fixed(spec) for spec in input_specs(inputs)]
        about = {"inputs": [spec.to_json() for spec in specs], "max_batch": bounds.batch, "max_length": bounds.length}
        edge, written = _lowered(deployed, program, about)
    classes = int(program.graph.output_node().args[0][0].meta["val"].shape[1])
    logits = TensorSpec("logits", "float32", (bounds.axis(BATCH), classes))
    plan = written.executorch_program.execution_plan[0]
    delegated, outside = _operators(edge, plan)
    try:
        with path.open("wb") as file:
            written.write_to_file(file)
        _check(path, sample, inputs, type(deployed).__name__)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return MobileFacts(
        [path.name],
        specs,
        [logits],
        bounds.batch,
        bounds.length,
        sum(plan.non_const_buffer_sizes),
        delegated,
        outside,
        layers.to_json() if layers is not None else None,
    )


def _bounds(sample: Inputs, max_batch: int | None, max_length: int | None) -> Bounds:
    specs = input_specs(sample)
    tokens = {spec.name: named(sample)[spec.name].shape[1] for spec in specs if LENGTH in spec.shape}
    if len(set(tokens.values())) > 1:
        told = ", ".join(f"{name} {length:,}" for name, length in tokens.items())
        raise ExportError(
            f"the sample's tokens have different lengths ({told}), expected one: they share the free axis"
        )
    longest = next(iter(tokens.values()), None)
    if max_length is not None and longest is None:
        raise ConfigError(f"max_length is {max_length:,}, but none of {', '.join(named(sample))} are tokens; drop it")
    batch = max_batch if max_batch is not None else (MAX_BATCH if longest is None else MAX_BATCH_OF_TEXTS)
    length = max_length if max_length is not None else longest
    if batch < 1 or (length is not None and length < 1):
        raise ConfigError(f"max_batch {batch}, max_length {length}: expected at least 1, the largest call it must bear")
    return Bounds(batch, length)


def _lowered(model: nn.Module, program: Any, about: Mapping[str, Any]) -> tuple[Any, Any]:
    """The program with XNNPACK's parts marked, and as it is written."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime

    try:
        edge = to_edge_transform_and_lower(
            program, partitioner=[XnnpackPartitioner()], constant_methods={ABOUT: json.dumps(about)}
        )
        written = edge.to_executorch()
    except Exception as error:  # verifiers, passes and the emitter each raise what they like
        raise refused(error, model, program) from error
    kernels = Runtime.get().operator_registry.operator_names
    wanted = [
        f"{operator.name}.{operator.overload}" for operator in written.executorch_program.execution_plan[0].operators
    ]
    lacking = [name for name in wanted if name not in kernels and name.removesuffix(".") not in kernels]
    if lacking:
        raise refused(ExportError(f"Missing out variants: {lacking}"), model, program)
    return edge, written


def _operators(edge: Any, plan: Any) -> tuple[int, dict[str, int]]:
    """How many operators XNNPACK has, and the kernels that are called beside it, by name."""
    graph = edge.exported_program().graph_module
    parts = [getattr(graph, node.target) for node in graph.graph.nodes if node.op == "get_attr"]
    nodes = [node for part in parts for node in part.original_module.graph.nodes if node.op == "call_function"]
    # what moves between float and int8 is a part of the operator that it serves
    delegated = [str(node.target) for node in nodes if "quantized_decomposed" not in str(node.target)]
    calls = [step.instr_args for chain in plan.chains for step in chain.instructions]
    operators = [plan.operators[call.op_index] for call in calls if type(call).__name__ == "KernelCall"]
    outside = Counter(operator.name.removeprefix("aten::") for operator in operators)
    return sum("getitem" not in name for name in delegated), dict(outside.most_common())


def _check(path: Path, sample: Inputs, inputs: Mapping[str, Tensor], kind: str) -> None:
    """Whether memory is planned for the bounds and one example is taken: ExecuTorch may narrow an axis without a word."""
    runner = ExecutorchRunner(path)
    planned = runner.bounds()
    wanted = [tuple(values.shape) for values in inputs.values()]
    if planned != wanted:
        raise ExportError(
            f"{kind}: the program has planned its memory for inputs of {planned}, expected {wanted}: larger batches than that would "
            "fail on the phone. An operator of the model was specialised to a size; export with another max_batch"
        )
    runner({name: values[:1] for name, values in named(sample).items()})
