"""What holds for every test."""

import gc
import os
import sys
from typing import Any

import pytest

# Before torch is imported: on a busy machine threads that wait for one another at each small operation take ten times as
# long as one thread, and the tests' models are small. Subprocesses inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")


class Left:
    """How a command ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


_MODULES = pytest.StashKey[int]()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """What stays is no garbage: each training collects it once, each export several times, and would walk through every library
    and every collected test for it, ten times as long as a small training takes."""
    if len(sys.modules) != item.config.stash.get(_MODULES, 0):
        gc.collect()
        gc.freeze()
        item.config.stash[_MODULES] = len(sys.modules)


@pytest.fixture
def tutelage(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """The command in this process."""
    from tutelage import cli

    def call(*words: str) -> Left:
        monkeypatch.setattr(sys, "argv", ["tutelage", *words])
        with pytest.raises(SystemExit) as left:
            cli.main()
        captured = capsys.readouterr()
        return Left(int(left.value.code or 0), captured.out, captured.err)

    return call
