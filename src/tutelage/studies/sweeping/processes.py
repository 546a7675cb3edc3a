"""The supervisor's end of a sweep's worker processes: start them, hear them, end them."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

import cloudpickle

from tutelage.errors import ConfigError, TutelageError
from tutelage.studies.arm import Progress
from tutelage.studies.sweeping.search import Search

Json = dict[str, Any]

#: Seconds between two looks at the board, and how long a worker that was asked to end may take.
_LOOK, _PATIENCE = 2.0, 10.0

#: What torch's thread pools read when they are loaded.
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


class Hand:
    """One worker process; ``number`` is counted from 1."""

    def __init__(
        self, number: int, parcel: bytes, threads: int, events: queue.SimpleQueue[tuple[int, Json | None]]
    ) -> None:
        self.number = number
        self._events = events
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tutelage.studies.sweeping.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=_environment(threads),
            # an interrupt at the terminal is the supervisor's to hear; it ends the group of each worker
            start_new_session=True,
        )
        self._thread = Thread(target=self._converse, args=(parcel,), daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def ended(self) -> str | None:
        """How it ended, in words; None where it ended well."""
        code = self._process.wait()
        if code == 0:
            return None
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    def ask_to_end(self) -> None:
        """Send it the signal to end."""
        self._signal(signal.SIGTERM)

    def end(self) -> None:
        """Wait for its end, and bring it about where it does not come."""
        with suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        try:
            self._process.wait(timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self._process.wait()
        self._thread.join(timeout=_PATIENCE)
        if not self._thread.is_alive():
            assert self._process.stdout is not None
            self._process.stdout.close()

    def _signal(self, number: signal.Signals) -> None:
        if self._process.poll() is not None:
            return
        with suppress(ProcessLookupError, PermissionError):
            if sys.platform == "win32":
                self._process.terminate()
            else:
                os.killpg(self._process.pid, number)

    def _converse(self, parcel: bytes) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        # one that has died already says so by the end of its output
        with suppress(OSError):
            self._process.stdin.write(len(parcel).to_bytes(8, "big") + parcel)
            self._process.stdin.flush()
        for line in self._process.stdout:
            self._events.put((self.number, json.loads(line)))
        self._events.put((self.number, None))


def run_workers(
    search: Search, url: str, name: str, folder: Path, workers: int, progress: Progress, noted: Callable[[], None]
) -> None:
    """Work on a sweep with several processes until they have all ended.

    A worker that is killed is not replaced: the others take its trials up. An error of one ends all.

    Raises:
        TutelageError: a worker's error.
        ConfigError: the search cannot be sent to another process.
    """
    parcel = _packed({"search": search, "url": url, "name": name, "folder": str(folder), "workers": workers})
    events: queue.SimpleQueue[tuple[int, Json | None]] = queue.SimpleQueue()
    threads = max(1, (os.cpu_count() or 1) // workers)
    hands: dict[int, Hand] = {}
    try:
        for number in range(1, workers + 1):
            hands[number] = Hand(number, parcel, threads, events)
        working = set(hands)
        while working:
            try:
                number, event = events.get(timeout=_LOOK)
            except queue.Empty:
                noted()
                continue
            if event is None:
                working.discard(number)
                how = hands[number].ended()
                if how is not None:
                    progress.finished(
                        f"worker {number}", f"{how}; its trials are taken up by the others, or by the same command"
                    )
            else:
                if "error" in event:
                    raise TutelageError(event["error"])
                progress.finished(event["finished"], event["outcome"])
                noted()
    finally:
        _end_all(list(hands.values()))


def _end_all(hands: Sequence[Hand]) -> None:
    for hand in hands:
        hand.ask_to_end()
    for hand in hands:
        hand.end()


def _packed(parcel: Json) -> bytes:
    try:
        return cloudpickle.dumps(parcel)
    except Exception as error:  # pickling runs whatever the objects of a closure define
        raise ConfigError(
            f"the search cannot be sent to other processes: {type(error).__name__}: {error}; let `make` hold paths and plain values, and "
            "read data and models when it is called, or use one worker"
        ) from error


def _environment(threads: int) -> dict[str, str]:
    # what this process can import, a worker can
    path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
    said = {name: os.environ.get(name, str(threads)) for name in _THREAD_VARIABLES}
    return {**os.environ, **said, "PYTHONPATH": path}
