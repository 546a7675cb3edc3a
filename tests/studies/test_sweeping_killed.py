"""Workers and supervisor are killed; the same command ends with what an undisturbed sweep finds, and trains nothing twice."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import pytest
from sweep_run import slow_search
from sweeps import Listening, found, search

from forked import begun
from tutelage.errors import TutelageError
from tutelage.studies.sweeping import run_sweep, sweep

SCRIPT = Path(__file__).with_name("sweep_run.py")


@contextmanager
def started(folder: Path, workers: int) -> Iterator[tuple[int, TextIO]]:
    """The supervisor's number, and what it says."""
    pipe = folder.with_name("said")
    os.mkfifo(pipe)
    process = begun(SCRIPT, folder, workers, out=pipe, err=folder.with_name("complaints"))
    assert process.pid is not None
    with pipe.open() as said:
        yield process.pid, said
    process.join()


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(true: Callable[[], bool], seconds: float = 200.0) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.05)


def heard(said: TextIO, what: str) -> None:
    """Returns at the first line that starts so."""
    assert any(line.startswith(what) for line in said), f"it ended without {what!r}"


def done(folder: Path) -> list[str]:
    return sorted(str(path.parent.relative_to(folder)) for path in folder.glob("trials/*/*/record.json"))


def written(folder: Path) -> dict[str, float]:
    return {name: (folder / name / "record.json").stat().st_mtime_ns for name in done(folder)}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the workers by /proc")
def test_a_killed_worker_and_a_killed_supervisor_cost_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one process a sweep that was cut off leaves its locks and open transactions behind; a killed one leaves nobody to
    answer for its trials. Nothing of either may be trained twice, be missing, or differ in the end."""
    monkeypatch.setattr("tutelage.studies.sweeping.sweep._run_winner", lambda *_: None)
    monkeypatch.setattr("sweep_run.STEP_SECONDS", 0.0)
    folder = tmp_path / "killed"
    with started(folder, workers=2) as (supervisor, said):
        heard(said, "trial")
        workers = children(supervisor)
        assert len(workers) == 2
        os.kill(workers[0], signal.SIGKILL)
        heard(said, "worker")
        heard(said, "trial")
        os.kill(supervisor, signal.SIGKILL)
    wait_until(lambda: not any(alive(pid) for pid in workers))
    before = written(folder)
    assert len(before) >= 2
    listening = Listening()
    result = run_sweep(slow_search(), folder, listening)
    assert {name: time for name, time in written(folder).items() if name in before} == before
    assert len(listening.trained) == len(set(listening.trained))
    assert sum(what.startswith("trial") for what in listening.trained) == 6 - len(before)
    whole = run_sweep(slow_search(), tmp_path / "whole")
    assert found(result) == found(whole)
    assert result["scratch"]["mean"] == whole["scratch"]["mean"]
    assert len(result["trials"]) == 3
    assert sum(worker["trials"] for worker in result["workers"]) == 3


def test_an_error_of_a_worker_ends_the_sweep_with_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that fails alone leaves a supervisor that waits for ever, or one that says 'exit code 2'."""
    supervise = sweep.run_workers

    def one(*given: Any) -> None:
        *task, _, watch, now_and_then = given
        supervise(*task, 1, watch, now_and_then)

    monkeypatch.setattr(sweep, "run_workers", one)
    (tmp_path / "trials").write_text("a file where the folder should be")
    with pytest.raises(TutelageError, match="trials"):
        run_sweep(search(seeds=(0,)), tmp_path, workers=2)
