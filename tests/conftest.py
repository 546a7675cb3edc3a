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


@pytest.fixture(scope="module", autouse=True)
def _what_stays_is_no_garbage() -> None:
    """Each training collects garbage once, and would walk through every library and every collected test for it: ten times as
    long as a small training takes."""
    gc.collect()
    gc.freeze()


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
