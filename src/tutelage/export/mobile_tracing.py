"""A classifier as ``torch.export`` sees it, with batch and length free up to a bound; and why it cannot be, in one message."""

from __future__ import annotations

import copy
import re
from collections import OrderedDict
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.errors import ExportError, TutelageError
from tutelage.export.specs import BATCH, LENGTH, LONE_INPUT, TensorSpec, input_specs, named
from tutelage.models import class_logits
from tutelage.models.calling import Inputs, on_device, unwrapped

#: How ExecuTorch's verifiers and its emitter name an operator that they have no place for.
_OPERATORS = re.compile(r"Operator:? (?:torch\._ops\.|<EdgeOpOverload: )([\w.]+)|Missing out variants: [\[{](.*)[\]}]")

#: What PyTorch calls a decision, or a size, that depends on the values in a tensor.
_DATA_DEPENDENT = re.compile(r"data[- _]?dependent|DynamicOutputShape|unbacked", re.IGNORECASE)

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


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


def copy_as_deployed(model: nn.Module, sample: Inputs) -> nn.Module:
    """A copy in eval mode, in float32 and on the CPU, without the hooks of training.

    Raises:
        ExportError: it fails on ``sample``, or cannot be copied.
        ModelError: it cannot be called with ``sample``, or gives no class logits.
    """
    model = unwrapped(model)
    with _as_deployed(model), torch.no_grad():
        try:
            device = next((weight.device for weight in model.parameters()), None)
            # weights that a hook makes are made here, without gradient
            class_logits(model, on_device(sample, device))
            return _without_makers(copy.deepcopy(model)).cpu().float()
        except TutelageError:
            raise
        except Exception as error:  # the user's own code runs here
            raise ExportError(
                f"{type(model).__name__} cannot be run on its sample and copied, {type(error).__name__}: {error} Give inputs as the model "
                "was trained on, and a model that copy.deepcopy takes: the export leaves the original as it is"
            ) from error


@contextmanager
def _as_deployed(model: nn.Module) -> Generator[None]:
    """Eval mode, and no hooks but those by which ``torch.nn.utils`` makes weights (weight norm, spectral norm); then as before."""
    flags = {module: module.training for module in model.modules()}
    hooks = [(module, name, getattr(module, name)) for module in flags for name in _HOOKS]
    try:
        model.eval()
        for module, name, found in hooks:
            module.__dict__[name] = OrderedDict((key, hook) for key, hook in found.items() if _keeps_weights(hook))
        yield
    finally:
        for module, training in flags.items():
            module.training = training
        for module, name, found in hooks:
            module.__dict__[name] = found


def _without_makers(model: nn.Module) -> nn.Module:
    """The same with the weights that hooks made as plain tensors of its own, and the hooks gone."""
    for module in model.modules():
        if module.__dict__["_forward_pre_hooks"]:
            module.__dict__["_forward_pre_hooks"] = OrderedDict()
            made = [name for name, value in vars(module).items() if isinstance(value, Tensor)]
            for name in made:
                module.register_buffer(name, module.__dict__.pop(name))
    return model


def _keeps_weights(hook: Any) -> bool:
    return str(getattr(hook, "__module__", None) or type(hook).__module__).startswith("torch.nn.utils.")


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


class _ByPosition(nn.Module):
    """The user's model with its tensors in a row, as a program numbers them, and its logits as the one result."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self._names = names

    def forward(self, *tensors: Tensor) -> Tensor:
        lone = list(self._names) == [LONE_INPUT]
        return class_logits(self.model, tensors[0] if lone else dict(zip(self._names, tensors, strict=True)))


def traced(model: nn.Module, inputs: Mapping[str, Tensor], bounds: Bounds) -> Any:
    """The model as a ``torch.export`` program whose free axes go from 1 to the bounds.

    Raises:
        ExportError: it cannot be followed; the message names the module.
    """
    try:
        return export_program(_ByPosition(model, list(inputs)).eval(), inputs, bounds, varargs=True)
    except TutelageError:
        raise
    except Exception as error:  # the model's own exceptions come through too
        raise refusal(error, model) from error


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


def refusal(error: Exception, model: nn.Module, program: Any = None) -> ExportError:
    """The error to raise for one that PyTorch or ExecuTorch raised, whose pages stay reachable as its cause."""
    kind, said = type(model).__name__, str(error)
    where, first = _place(error, model), next(iter(said.strip().splitlines()), type(error).__name__)
    found = _OPERATORS.search(said)
    if found and program is not None:
        operator = next(filter(None, found.groups())).strip("'\" ").rstrip(".")
        return ExportError(
            f"{kind} uses the operator {operator}{_place_of(operator, program)}, for which ExecuTorch has no kernel, or none for the types "
            "it is given: the program could not be loaded on any phone. Write that module with other operators, or export to ONNX"
        )
    if _DATA_DEPENDENT.search(f"{type(error).__name__} {said}"):
        return ExportError(
            f"{kind} decides by the values in a tensor{where}, expected the same operators for every input: the program would follow the "
            f"one branch that its sample takes ({first}). Use torch.where or a mask instead of if, while and item()"
        )
    if re.search(r"Constraints? violated|inconsisten", said):
        found_out = " ".join(line.strip() for line in said.splitlines()[1:2]).lstrip("- ")
        return ExportError(
            f"{kind} does not take every batch size or length up to the bounds{where}: {found_out} Sizes other than the sample's would "
            "fail or be computed wrongly; take sizes from the tensor's shape instead of writing them as numbers"
        )
    return ExportError(
        f"{kind} cannot be turned into an ExecuTorch program{where}: {type(error).__name__}: {first} Write that module in plain tensor "
        "operators, or export to safetensors, which keeps the code"
    )


def _place(error: BaseException, model: nn.Module) -> str:
    """`` in its module 'encoder.0' (a Block)``: the innermost module at work, which the frames know and the error does not."""
    names = {id(module): name for name, module in model.named_modules()}
    found = ""
    for frame in _frames(error):
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and names.get(id(owner)):
            found = _called(names[id(owner)], type(owner).__name__)
    return found


def _called(name: str, kind: str) -> str:
    return f" in its module {name!r} (a {kind})" if name else f" in its own forward (that of {kind})"


def _frames(error: BaseException) -> Iterator[Any]:
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next


def _place_of(operator: str, program: Any) -> str:
    """Where a program calls an operator, in its own words or once it is taken apart into simpler ones."""
    word = operator.replace("::", ".").split(",")[0].strip("'\" ")
    word = ".".join(word.split(".")[:2])
    for graph in (program.graph, program.run_decompositions().graph):
        for node in graph.nodes:
            stack = list((node.meta.get("nn_module_stack") or {}).values())
            if node.op == "call_function" and f"{node.target}.".startswith(f"{word}.") and stack:
                return _called(module_name(node), str(stack[-1][1]).rsplit(".", 1)[-1])
    return ""


def module_name(node: Any) -> str:
    """The module of the user's model that a node comes from."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return re.sub(r"^model\.?", "", str(stack[-1][0])) if stack else ""
