"""Why a model cannot be exported, in one message: what PyTorch's exporter says in pages, and where in the model it happened."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from torch import fx, nn

from tutelage.errors import ExportError
from tutelage.export.onnx_inspection import first_line

#: How ``torch.fx`` writes the operator that a node calls.
OPERATOR = re.compile(r"op='([\w.]+)'|torch\.ops\.([\w.]+)")

#: What the exporters call a decision, or a size, that depends on the values in a tensor.
DATA_DEPENDENT = re.compile(r"data[- _]?dependent|DynamicOutputShape|unbacked|Eager Tensor.*fake", re.IGNORECASE)


def refusal(error: Exception, model: nn.Module, prefix: str) -> ExportError:
    """The error to raise for one that the exporter raised, whose pages stay reachable as its cause.

    Args:
        error: the exporter's exception.
        model: what was being exported.
        prefix: of ``model``'s modules in the exporter's names, to be left out.
    """
    chain = list(_chain(error))
    kind = type(model).__name__
    where = _place(chain, model, prefix)
    untranslated = next((cause for cause in chain if type(cause).__name__ == "DispatchError"), None)
    if untranslated is not None:
        found = OPERATOR.search(str(untranslated))
        operator = next(filter(None, found.groups())) if found else first_line(untranslated)
        return ExportError(
            f"{kind} uses the operator {operator}{where}, for which ONNX has no counterpart: it could be run by PyTorch alone. Write that "
            "module with other operators, replace it before training, or export to safetensors, which keeps the code"
        )
    root = chain[-1]
    if any(DATA_DEPENDENT.search(f"{type(cause).__name__} {cause}") for cause in chain):
        return ExportError(
            f"{kind} decides by the values in a tensor{where}, expected the same operators for every input: the export would follow "
            f"the one branch that its sample takes. Use torch.where, a mask or torch.cond instead of if, while and item() "
            f"(the exporter: {first_line(root)})"
        )
    if re.search(r"inconsisten|Constraints? violated", str(root)):
        return ExportError(
            f"{kind} does not take every batch size or length{where}: the exporter found {_sentence(root)} Sizes other than the sample's "
            "would fail or be computed wrongly; take sizes from the tensor's shape instead of writing them as numbers"
        )
    return ExportError(
        f"{kind} cannot be turned into ONNX{where}: {type(root).__name__}: {first_line(root)} The model runs as it is, so it is the "
        "exporter that cannot follow it: write that module in plain tensor operators, or export to safetensors"
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception and those it came from, the outermost first."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def _sentence(error: BaseException) -> str:
    """An error's lines after a heading, as one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return "; ".join(lines[1:3] or lines).rstrip(".") + "."


def _place(chain: list[BaseException], model: nn.Module, prefix: str) -> str:
    """`` in its module 'encoder.0' (class Block), line 7 of net.py``, as far as it is known.

    The exporter's exceptions say it in no field, but the frames that they came through know.
    """
    names = {id(module): name for name, module in model.named_modules()}
    frames = [found for error in reversed(chain) for found in reversed(list(_frames(error)))]
    for frame, _ in frames:
        node = frame.f_locals.get("node")
        if isinstance(node, fx.Node) and node.meta.get("nn_module_stack"):
            name, kind = list(node.meta["nn_module_stack"].values())[-1]
            return _called(str(name).removeprefix(prefix).lstrip("."), getattr(kind, "__name__", str(kind)))
    owners = (frame.f_locals.get("self") for frame, _ in frames)
    owner = next((owner for owner in owners if id(owner) in names), None)
    if owner is None:
        return ""
    lines = (f", line {line} of {frame.f_code.co_filename}" for frame, line in frames if _is_users(frame))
    return _called(names[id(owner)], type(owner).__name__) + next(lines, "")


def _frames(error: BaseException) -> Iterator[tuple[FrameType, int]]:
    """An exception's frames and the lines they were at, the outermost first."""
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame, trace.tb_lineno
        trace = trace.tb_next


def _is_users(frame: FrameType) -> bool:
    package = str(frame.f_globals.get("__name__", "")).split(".")[0]
    return package not in ("torch", "tutelage") and Path(frame.f_code.co_filename).is_file()


def _called(name: str, kind: str) -> str:
    return f" in its module {name!r} (class {kind.rsplit('.', 1)[-1]})" if name else ""
