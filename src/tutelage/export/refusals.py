"""Why a model cannot be exported, in one message: what PyTorch's exporters say in pages, and where in the model it happened."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from torch import fx, nn

from tutelage.errors import ExportError

#: Under what name an exporter's own module holds the user's (`tutelage.export.deployed.ByPosition`): exporters' names begin with it.
HELD_AS = "model"

#: What the exporters call a decision, or a size, that depends on the values in a tensor.
_DATA_DEPENDENT = re.compile(r"data[- _]?dependent|DynamicOutputShape|unbacked|Eager Tensor.*fake", re.IGNORECASE)

_SIZES_DISAGREE = re.compile(r"inconsisten|Constraints? violated")


def refusal(error: Exception, model: nn.Module, into: str) -> ExportError:
    """The error to raise for one that an exporter raised, whose pages stay reachable as its cause.

    Args:
        error: the exporter's exception.
        model: what was being exported.
        into: what the model should have become, such as ``ONNX``.
    """
    chain = list(chain_of(error))
    root, kind, where = chain[-1], type(model).__name__, place(error, model)
    if any(_DATA_DEPENDENT.search(f"{type(cause).__name__} {cause}") for cause in chain):
        return ExportError(
            f"{kind} decides by the values in a tensor{where}, expected the same operators for every input: the export would follow "
            f"the one branch that its sample takes. Use torch.where or a mask instead of if, while and item() "
            f"(the exporter: {first_line(root)})"
        )
    if _SIZES_DISAGREE.search(str(root)):
        return ExportError(
            f"{kind} does not take every batch size or length{where}: the exporter found: {_finding(root)} Sizes other than the sample's "
            "would fail or be computed wrongly; take sizes from the tensor's shape instead of writing them as numbers"
        )
    return ExportError(
        f"{kind} cannot be turned into {into}{where}: {type(root).__name__}: {first_line(root)} The model runs as it is, so it is the "
        "exporter that cannot follow it: write that module in plain tensor operators, or export to safetensors, which keeps the code"
    )


def place(error: BaseException, model: nn.Module) -> str:
    """`` in its module 'encoder.0' (class Block), line 7 of net.py``, as far as it is known; else nothing.

    The exporters' exceptions say it in no field, but the frames that they came through know.
    """
    names = {id(module): name for name, module in model.named_modules()}
    frames = [found for cause in reversed(list(chain_of(error))) for found in reversed(list(_frames(cause)))]
    for frame, _ in frames:
        node = frame.f_locals.get("node")
        if isinstance(node, fx.Node) and module_of(node) is not None:
            return place_of(node)
    owner = next((owner for frame, _ in frames if id(owner := frame.f_locals.get("self")) in names), None)
    if owner is None:
        return ""
    lines = (f", line {line} of {frame.f_code.co_filename}" for frame, line in frames if _is_users(frame))
    return _called(names[id(owner)], type(owner).__name__) + next(lines, "")


def place_of(node: fx.Node) -> str:
    """`` in its module 'encoder.0' (class Block)``: where a graph's node comes from; nothing if it does not say."""
    found = module_of(node)
    return _called(*found) if found is not None else ""


def module_of(node: fx.Node) -> tuple[str, str] | None:
    """The user's module that a graph's node comes from: its name, empty for the model itself, and its class; None if unknown."""
    stack: list[Any] = list((node.meta.get("nn_module_stack") or {}).values())
    if not stack:
        return None
    name, kind = stack[-1]
    return re.sub(rf"^{HELD_AS}(\.|$)", "", str(name)), getattr(kind, "__name__", str(kind)).rsplit(".", 1)[-1]


def chain_of(error: BaseException) -> Iterator[BaseException]:
    """An exception and those it came from, the outermost first."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says something, with a full stop."""
    lines = [line.strip() for line in str(error).splitlines()]
    text = next(filter(None, lines), type(error).__name__)
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _called(name: str, kind: str) -> str:
    return f" in its module {name!r} (class {kind})" if name else f" in its own forward (class {kind})"


def _finding(error: BaseException) -> str:
    """The first line of an error's message below its heading, as a sentence."""
    lines = [line.strip().removeprefix("- ") for line in str(error).splitlines() if line.strip()]
    return (lines[1:] or lines)[0].rstrip(".") + "."


def _frames(error: BaseException) -> Iterator[tuple[FrameType, int]]:
    """An exception's frames and the lines they were at, the outermost first."""
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame, trace.tb_lineno
        trace = trace.tb_next


def _is_users(frame: FrameType) -> bool:
    package = str(frame.f_globals.get("__name__", "")).split(".")[0]
    return package not in ("torch", "tutelage") and Path(frame.f_code.co_filename).is_file()
