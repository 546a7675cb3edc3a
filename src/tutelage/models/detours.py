"""A layer's ``forward`` exchanged for a while, in one thread."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

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
