"""Processes of their own that start at once: forked from one that has imported everything.

A fresh Python takes some nine seconds to import what a training needs, and the tests that kill a run start several. What is
started here is as real a process: a signal ends it, and only what is on disk is left. What a start itself says is for the few
tests that start the command afresh.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from tempfile import TemporaryDirectory

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tutelage.cli", "tutelage.config.building", "tutelage.labels", "tutelage.report"])

Program = Path | Callable[[], object]


def forked(
    program: Program, *words: object, cwd: Path | None = None, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """How a script, or a function such as a command's, ended, and what it said."""
    with TemporaryDirectory() as place:
        out, err = Path(place, "out"), Path(place, "err")
        process = begun(program, *words, out=out, err=err, cwd=cwd, environment=environment)
        try:
            process.join()
        finally:
            process.kill()  # where the test's time was over first
        assert process.exitcode is not None
        return subprocess.CompletedProcess(words, process.exitcode, out.read_text(), err.read_text())


def begun(
    program: Program,
    *words: object,
    out: Path,
    err: Path,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> ForkServerProcess:
    """The process, while it runs; it writes into the two files, which may be a terminal's or a pipe's."""
    given = dict(os.environ if environment is None else environment)
    process = _FORKS.Process(target=_become, args=(program, [*map(str, words)], out, err, cwd or Path.cwd(), given))
    process.start()
    return process


def _become(program: Program, words: list[str], out: Path, err: Path, cwd: Path, environment: dict[str, str]) -> None:
    for descriptor, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOCTTY), descriptor)
    gc.freeze()  # as in conftest.py
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests are started in the background
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    if isinstance(program, Path):
        sys.argv = [str(program), *words]
        sys.path.insert(0, str(program.parent))
        runpy.run_path(str(program), run_name="__main__")
    else:
        sys.argv = [program.__name__, *words]
        program()
