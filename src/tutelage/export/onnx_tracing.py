"""A model turned into an ONNX program by PyTorch's exporter, quietly, with a note of the sizes that it reasoned about."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.errors import ExportError
from tutelage.export.deployed import ByPosition
from tutelage.export.onnx_inspection import LOGITS
from tutelage.export.quieting import silenced
from tutelage.export.refusals import chain_of, first_line, place, refusal
from tutelage.export.specs import BATCH, LENGTH, TensorSpec

#: How ``torch.fx`` writes the operator that a node calls.
_OPERATOR = re.compile(r"op='([\w.]+)'|torch\.ops\.([\w.]+)")

#: A warning that says that the file holds a constant where the model computes.
_MADE_CONSTANT = re.compile(r"made static|treated as a constant|constant[- ]fold|baked in", re.IGNORECASE)


@dataclass(frozen=True)
class Traced:
    """What the exporter made of a model.

    Args:
        program: PyTorch's ``ONNXProgram``.
        decisive: sizes of each free axis at which something may change: the exporter took for granted, as its sample had it,
            that the axis is another than they, smaller or larger.
    """

    program: Any
    decisive: Mapping[str, set[int]]


def trace(model: nn.Module, specs: Sequence[TensorSpec], inputs: Mapping[str, Tensor], opset: int) -> Traced:
    """Export ``model``, which is in eval mode, with the free axes of ``specs`` free.

    Raises:
        ExportError: the exporter fails, or warns that it wrote a constant.
    """
    axes = {BATCH: torch.export.Dim(BATCH), LENGTH: torch.export.Dim(LENGTH)}
    shapes = tuple(
        {axis: axes[size] for axis, size in enumerate(spec.shape) if isinstance(size, str)} for spec in specs
    )
    decisive: dict[str, set[int]] = {BATCH: set(), LENGTH: set()}

    def note(tensors: Sequence[Tensor]) -> None:
        for axis, size in _decisive_sizes(specs, tensors):
            decisive[axis].add(size)

    caller = ByPosition(model, [spec.name for spec in specs], note).eval()
    with quiet() as caught, torch.no_grad():
        try:
            program = torch.onnx.export(
                caller,
                tuple(inputs[spec.name] for spec in specs),
                dynamo=True,
                dynamic_shapes=(shapes,),
                input_names=[spec.name for spec in specs],
                output_names=[LOGITS],
                opset_version=opset,
                verbose=False,
            )
        except Exception as error:  # they have no common base: what the model raises comes through too
            raise _refusal(error, model) from error
    for warning in caught:
        if warning.category.__name__ == "TracerWarning" or _MADE_CONSTANT.search(str(warning.message)):
            raise ExportError(
                f"{type(model).__name__}: the exporter warned that it writes a constant where the model computes ({warning.message}): "
                "other inputs than the sample would be answered wrongly; compute with tensors instead of Python numbers"
            )
    return Traced(program, decisive)


def _decisive_sizes(specs: Sequence[TensorSpec], tensors: Sequence[Tensor]) -> Iterator[tuple[str, int]]:
    """Sizes of the free axes by which the exporter, seen at work, has decided: afterwards it keeps that to itself."""
    import sympy

    for spec, tensor in zip(specs, tensors, strict=True):
        for free, size in zip(spec.shape, tensor.shape, strict=True):
            node: Any = getattr(size, "node", None)
            if not isinstance(free, str) or node is None:
                continue
            bounds = node.shape_env.bound_sympy(node.expr)
            assumed = [
                assertion.expr
                for assertions in node.shape_env.deferred_runtime_asserts.values()
                for assertion in assertions
                if node.expr in assertion.expr.free_symbols
            ]
            for expression in (bounds.lower, bounds.upper, *assumed):
                yield from ((free, int(number)) for number in expression.atoms(sympy.Integer))


def _refusal(error: Exception, model: nn.Module) -> ExportError:
    """As `tutelage.export.refusals.refusal`; an operator that ONNX lacks is named."""
    untranslated = next((cause for cause in chain_of(error) if type(cause).__name__ == "DispatchError"), None)
    if untranslated is None:
        return refusal(error, model, "ONNX")
    found = _OPERATOR.search(str(untranslated))
    operator = next(filter(None, found.groups())) if found else first_line(untranslated)
    return ExportError(
        f"{type(model).__name__} uses the operator {operator}{place(error, model)}, for which ONNX has no counterpart: it could be run by "
        "PyTorch alone. Write that module with other operators, replace it before training, or export to safetensors, which keeps "
        "the code"
    )


@contextlib.contextmanager
def quiet() -> Generator[list[warnings.WarningMessage]]:
    """Collect the exporter's warnings, and keep off the terminal what it prints and logs of its own workings."""
    with silenced("torch", "onnxscript", "onnx_ir"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught
