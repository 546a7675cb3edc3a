"""What is other in a model for a while: a layer's ``forward`` in one thread, its buffers."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class _Detour:
    """Stands for a layer's ``forward``; each thread that has put something in its place gets that."""

    def __init__(self, module: nn.Module) -> None:
        self.before = vars(module).get("forward")
        self.forward = module.forward
        self.ways: dict[int, list[Any]] = {}

    def __call__(self, *args: Any, **options: Any) -> Any:
        ways = self.ways.get(threading.get_ident())
        return ways[-1](*args, **options) if ways else self.forward(*args, **options)


_detours_lock = threading.Lock()


@contextmanager
def detour(module: nn.Module, way: Any) -> Generator[None]:
    """Within it, this thread's calls of a layer run ``way`` in the place of its ``forward``; its hooks fire as ever.

    It may be nested, also by models that share the layer; the layer is as before afterwards, whatever happened.
    """
    mine = threading.get_ident()
    with _detours_lock:
        stands = vars(module).get("forward")
        if not isinstance(stands, _Detour):
            stands = _Detour(module)
            module.forward = stands
        stands.ways.setdefault(mine, []).append(way)
    try:
        yield
    finally:
        with _detours_lock:
            stands.ways[mine].pop()
            if not stands.ways[mine]:
                del stands.ways[mine]
            if not stands.ways:
                del module.forward
                if stands.before is not None:
                    module.forward = stands.before


@contextmanager
def copied_buffers(model: nn.Module) -> Generator[None]:
    """Within it the model works on copies of its buffers; afterwards it has its own again, as they were.

    Undoing its changes instead would miss those made through ``.data``, and writing to a buffer that a backward pass still
    needs would break that pass.
    """
    buffers = [
        (module, name, buffer)
        for module in model.modules()
        if module._buffers  # pyright: ignore[reportPrivateUsage]  # most have none, and asking each for its names takes longer than a small layer
        for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False)
    ]
    try:
        with torch.no_grad():
            copies = {id(buffer): buffer.clone() for _, _, buffer in buffers}
        for module, name, buffer in buffers:
            setattr(module, name, copies[id(buffer)])
        yield
    finally:
        for module, name, buffer in buffers:
            setattr(module, name, buffer)
