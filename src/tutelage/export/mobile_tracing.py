"""A classifier as ``torch.export`` sees it, with batch and length free up to a bound; and why it cannot be, in one message."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.errors import ExportError, TutelageError
from tutelage.export.deployed import ByPosition
from tutelage.export.refusals import module_of, place_of, refusal
from tutelage.export.specs import BATCH, LENGTH, TensorSpec, input_specs, named
from tutelage.models.calling import Inputs

#: How ExecuTorch's verifiers and its emitter name an operator that they have no place for.
_OPERATORS = re.compile(r"Operator:? (?:torch\._ops\.|<EdgeOpOverload: )([\w.]+)|Missing out variants: [\[{](.*)[\]}]")


@dataclass(frozen=True)
class Bounds:
    """The largest sizes of the free axes.

    Args:
        batch: examples.
        length: tokens, None where there are none.
    """

    batch: int
    length: int | None

    def of(self, axis: str) -> int:
        """The bound of ``batch`` or ``length``."""
        bound = self.batch if axis == BATCH else self.length
        assert bound is not None
        return bound

    def axis(self, name: str) -> str | int:
        """What a spec says of an axis: its name, or 1 where it can be nothing else."""
        return name if self.of(name) > 1 else 1

    def fixed(self, spec: TensorSpec) -> TensorSpec:
        """A spec without the axes that can only be 1."""
        return replace(spec, shape=tuple(self.axis(size) if isinstance(size, str) else size for size in spec.shape))


def stretched(sample: Inputs, bounds: Bounds) -> dict[str, Tensor]:
    """The sample's tensors, its examples and tokens repeated up to the bounds.

    A program is traced at its bounds and not at the sample: where an operator's own code asks whether a batch is below
    some number (a convolution does), the answer narrows the range of sizes to the side on which the traced size lies, and
    ExecuTorch plans its memory for that without a word.
    """
    found: dict[str, Tensor] = {}
    for spec in input_specs(sample):
        values = named(sample)[spec.name].detach().cpu()
        for axis, size in enumerate(spec.shape):
            if isinstance(size, str):
                if values.shape[axis] == 0:
                    raise ExportError(
                        f"the sample's {spec.name!r} is {list(values.shape)}, expected at least one example and token"
                    )
                values = values.index_select(axis, torch.arange(bounds.of(size)) % values.shape[axis])
        found[spec.name] = values.contiguous()
    return found


def traced_as_used(model: nn.Module, inputs: Mapping[str, Tensor], bounds: Bounds) -> tuple[Any, dict[str, Tensor]]:
    """The model's program, and those of the inputs that it reads: a phone should not have to make the others."""
    program = traced(model, inputs, bounds)
    reached: set[Any] = set()
    ahead = [program.graph.output_node()]
    while ahead:
        node = ahead.pop()
        if node not in reached and not str(node.target).startswith("aten.sym_size"):  # another input has that size too
            reached.add(node)
            ahead += node.all_input_nodes
    names = {node.name for node in reached}
    places = zip(inputs.items(), program.graph_signature.user_inputs, strict=True)
    used = {name: values for (name, values), place in places if place in names}
    if used and len(used) < len(inputs):
        try:
            return traced(model, used, bounds), used
        except TutelageError:
            pass  # it asks for the tensor's presence or shape, not for what is in it
    return program, dict(inputs)


def traced(model: nn.Module, inputs: Mapping[str, Tensor], bounds: Bounds) -> Any:
    """The model as a ``torch.export`` program whose free axes go from 1 to the bounds.

    Raises:
        ExportError: it cannot be followed; the message names the module.
    """
    try:
        return export_program(ByPosition(model, list(inputs)).eval(), inputs, bounds, varargs=True)
    except TutelageError:
        raise
    except Exception as error:  # the model's own exceptions come through too
        raise refused(error, model) from error


def export_program(module: nn.Module, inputs: Mapping[str, Tensor], bounds: Bounds, *, varargs: bool = False) -> Any:
    """``torch.export`` with the bounds; ``varargs`` where the module's forward takes its tensors by ``*``."""
    axes = {
        name: torch.export.Dim(name, min=1, max=bounds.of(name)) for name in (BATCH, LENGTH) if _is_free(bounds, name)
    }
    shapes = tuple(
        {axis: axes[size] for axis, size in enumerate(spec.shape) if isinstance(size, str) and size in axes}
        for spec in input_specs(inputs)
    )
    with torch.no_grad():
        return torch.export.export(
            module, tuple(inputs.values()), dynamic_shapes=(shapes,) if varargs else shapes, strict=False
        )


def _is_free(bounds: Bounds, name: str) -> bool:
    return (name == BATCH or bounds.length is not None) and bounds.of(name) > 1


def refused(error: Exception, model: nn.Module, program: Any = None) -> ExportError:
    """As `tutelage.export.refusals.refusal`; an operator of ``program`` that ExecuTorch lacks is named, with its module."""
    found = _OPERATORS.search(str(error))
    if not found or program is None:
        return refusal(error, model, "an ExecuTorch program")
    operator = next(filter(None, found.groups())).strip("'\" ").rstrip(".")
    return ExportError(
        f"{type(model).__name__} uses the operator {operator}{_place_of(operator, program)}, for which ExecuTorch has no kernel, or none "
        "for the types it is given: the program could not be loaded on any phone. Write that module with other operators, or export "
        "to ONNX"
    )


def _place_of(operator: str, program: Any) -> str:
    """Where a program calls an operator, in its own words or once it is taken apart into simpler ones."""
    word = operator.replace("::", ".").split(",")[0].strip("'\" ")
    word = ".".join(word.split(".")[:2])
    for graph in (program.graph, program.run_decompositions().graph):
        for node in graph.nodes:
            if node.op == "call_function" and f"{node.target}.".startswith(f"{word}.") and module_of(node):
                return place_of(node)
    return ""
