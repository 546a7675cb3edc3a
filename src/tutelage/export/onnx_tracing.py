"""A model turned into an ONNX program by PyTorch's exporter, quietly, with a note of the sizes that it reasoned about."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.errors import ExportError
from tutelage.export.onnx_inspection import LOGITS
from tutelage.export.onnx_refusals import refusal
from tutelage.export.specs import BATCH, LENGTH, LONE_INPUT, TensorSpec
from tutelage.models import class_logits

#: Under what name the exporter's own module holds the user's.
HELD_AS = "model"

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
    caller = _ByPosition(model, specs).eval()
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
            raise refusal(error, model, HELD_AS) from error
    for warning in caught:
        if warning.category.__name__ == "TracerWarning" or _MADE_CONSTANT.search(str(warning.message)):
            raise ExportError(
                f"{type(model).__name__}: the exporter warned that it writes a constant where the model computes ({warning.message}): "
                "other inputs than the sample would be answered wrongly; compute with tensors instead of Python numbers"
            )
    return Traced(program, caller.decisive)


class _ByPosition(nn.Module):
    """The user's model with its tensors in a row, as the exporter numbers them, and its logits as the one result."""

    def __init__(self, model: nn.Module, specs: Sequence[TensorSpec]) -> None:
        super().__init__()
        self.add_module(HELD_AS, model)
        self._specs = specs
        self.decisive: dict[str, set[int]] = {BATCH: set(), LENGTH: set()}

    def forward(self, *tensors: Tensor) -> Tensor:
        names = [spec.name for spec in self._specs]
        inputs = tensors[0] if names == [LONE_INPUT] else dict(zip(names, tensors, strict=True))
        logits = class_logits(self.get_submodule(HELD_AS), inputs)
        # the exporter's second attempt reads this code instead of running it
        if not torch.compiler.is_dynamo_compiling():
            self._note_decisive(tensors)
        return logits

    def _note_decisive(self, tensors: Sequence[Tensor]) -> None:
        """What the exporter takes for granted it keeps to itself, and leaves out of the file: see it while it is at work."""
        import sympy

        for spec, tensor in zip(self._specs, tensors, strict=True):
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
                    self.decisive[free].update(int(number) for number in expression.atoms(sympy.Integer))


@contextlib.contextmanager
def quiet() -> Generator[list[warnings.WarningMessage]]:
    """Collect the exporter's warnings, and keep off the terminal what it prints and logs of its own workings."""
    loggers = [
        logger
        for name, logger in list(logging.root.manager.loggerDict.items())
        if isinstance(logger, logging.Logger) and name.split(".")[0] in ("torch", "onnxscript", "onnx_ir")
    ]
    levels = [(logger, logger.level) for logger in {logging.getLogger("torch"), *loggers}]
    printed = io.StringIO()
    try:
        for logger, _ in levels:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
                yield caught
    finally:
        for logger, level in levels:
            logger.setLevel(level)
