"""Export to ONNX: any classifier, with batch and length left free, and nothing in the file but what its forward uses."""

from __future__ import annotations

import contextlib
import copy
import re
from collections import OrderedDict
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tutelage.errors import ExportError, TutelageError, missing_extra
from tutelage.export.onnx_inspection import OnnxFacts, first_line, inspect_onnx, onnx_package, onnxruntime_package
from tutelage.export.onnx_running import OnnxRunner
from tutelage.export.onnx_tracing import HELD_AS, quiet, trace
from tutelage.export.onnx_trials import Trial
from tutelage.export.specs import BATCH, TensorSpec, named
from tutelage.models import class_logits
from tutelage.models.calling import Inputs, unwrapped

__all__ = ["EXTERNAL_ABOVE", "OPSET", "OnnxFacts", "OnnxRunner", "inspect_onnx", "to_onnx"]

#: The first operator set with ``Gelu`` in one piece, and one that every onnxruntime since 1.17 (January 2024) runs. Later sets
#: bring classifiers little, and cost them the runtimes that do not know them yet.
OPSET = 20

#: Weights of more bytes lie in a file beside the model: protobuf ends at 2 GiB, and int8 tools need room for a copy.
EXTERNAL_ABOVE = 1 << 30

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def to_onnx(
    model: nn.Module, sample: Inputs, path: Path, opset: int = OPSET, *, external_above: int = EXTERNAL_ABOVE
) -> OnnxFacts:
    """Write ``model`` as ``path``, in eval mode, with batch and length free, and check what was written.

    The artefact's inputs are the tensors of ``sample`` that the model uses, under their names (a lone one is ``input``); its
    output is ``logits`` ``[batch, C]``. Forward hooks are left out, except those by which ``torch.nn.utils`` keeps weights
    (weight norm, spectral norm, pruning), and so are modules that ``forward`` never comes to. The model itself stays as it
    is: a copy is exported.

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
    _check_packages()
    data = path.with_name(f"{path.name}.data")
    for old in (path, data):
        old.unlink(missing_ok=True)
    _check_weights(model)
    deployed = _copy_as_deployed(unwrapped(model), sample)
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


def _check_packages() -> None:
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


def _copy_as_deployed(model: nn.Module, sample: Inputs) -> nn.Module:
    """A copy in eval mode without hooks, which the exporter may treat as it likes."""
    kind = type(model).__name__
    flags = {module: module.training for module in model.modules()}
    with _without_hooks(model):
        try:
            model.eval()
            with torch.no_grad():
                # also brings the weights that a hook computes up to date, without the gradient that cannot be copied
                class_logits(model, sample)
            return copy.deepcopy(model)
        except TutelageError:
            raise
        except Exception as error:  # whatever the model's own code raises
            shapes = ", ".join(f"{name!r} {list(values.shape)}" for name, values in named(sample).items())
            raise ExportError(
                f"{kind} cannot be run in eval mode on its own sample ({shapes}), or not be copied: {type(error).__name__}: "
                f"{first_line(error)} An exporter runs it on that; give a sample that it takes, and if it takes one batch size alone, "
                f"take that (axis 0, {BATCH!r}) from the tensor's shape instead of writing it as a number"
            ) from error
        finally:
            for module, training in flags.items():
                module.training = training


@contextlib.contextmanager
def _without_hooks(model: nn.Module) -> Generator[None]:
    """Take away the hooks that watch or train a model, and leave those that keep its weights."""
    kept = [(module, hooks, module.__dict__[hooks]) for module in model.modules() for hooks in _HOOKS]
    try:
        for module, hooks, found in kept:
            module.__dict__[hooks] = OrderedDict((key, hook) for key, hook in found.items() if _keeps_weights(hook))
        yield
    finally:
        for module, hooks, found in kept:
            module.__dict__[hooks] = found


def _keeps_weights(hook: Any) -> bool:
    module = getattr(hook, "__module__", None) or type(hook).__module__
    return str(module).startswith("torch.nn.utils.")


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
