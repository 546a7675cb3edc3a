"""One model alone in a process of its own, timed when asked: ``python -m tutelage.export._worker``, started by `running`.

Over its standard input come a line of JSON (how many threads, which imports), a pickle of the pair (make, inputs), and then
one request a line; over what was its standard output goes one answer a line. The end of the input ends the process.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pickle
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from tutelage.export.specs import LENGTH, input_specs, named
from tutelage.models.calling import Inputs

#: Calls before the first that is timed at a setting, in number and in seconds, whichever is more: kernels are chosen,
#: buffers laid out and the clock of the processor raised in the first ones.
WARM_UP_CALLS, WARM_UP_SECONDS = 3, 0.1

#: A turn's timed calls: as many as fit into this time, but one at least and so many at most.
TURN_SECONDS, CALLS_A_TURN = 0.02, 50

#: A worker is quiet once no thread of it wants a core after so long a sleep, in which it used a quarter of that at most.
QUIET_SECONDS = 0.002

#: The longest wait for that. Threads that look for work, as pools do for some milliseconds after a call, are done long before.
RESTLESS_SECONDS = 1.0


def main() -> None:
    """Serve requests until the input ends."""
    requests = sys.stdin.buffer
    answers = _claim_standard_output()
    threads, imports = json.loads(requests.readline())
    for module in imports:
        importlib.import_module(module)
    torch.set_num_threads(threads)
    gc.collect()
    runtime_bytes = resident_bytes()
    make: Callable[[int], Callable[[Inputs], Any]]
    make, inputs = pickle.load(requests)
    worker = _Worker(make(threads), inputs)
    del make
    _answer(answers, {"runtime_bytes": runtime_bytes})
    with torch.inference_mode():
        for line in requests:
            request: dict[str, Any] = json.loads(line)
            _answer(answers, getattr(worker, request.pop("do"))(**request))


class _Worker:
    def __init__(self, call: Callable[[Inputs], Any], sample: Inputs) -> None:
        self._call, self._sample = call, sample
        self._inputs = sample

    def warm_up(self, batch: int, length: int | None) -> dict[str, Any]:
        """Make ready for calls with ``batch`` examples."""
        self._inputs = batch_of(self._sample, batch, length)
        gc.collect()
        forget_peak()
        calls, start = 0, time.perf_counter()
        while calls < WARM_UP_CALLS or time.perf_counter() - start < WARM_UP_SECONDS:
            self._call(self._inputs)
            calls += 1
        return {"quiet": _falls_quiet()}

    def turn(self) -> dict[str, Any]:
        """Seconds of each timed call, after one that brings the model back into the caches."""
        self._call(self._inputs)
        times: list[float] = []
        before = waited_seconds()
        end = time.perf_counter() + TURN_SECONDS
        while not times or (time.perf_counter() < end and len(times) < CALLS_A_TURN):
            start = time.perf_counter()
            self._call(self._inputs)
            times.append(time.perf_counter() - start)
        after = waited_seconds()
        # a thread that has ended takes what it waited with it
        waited = None if before is None or after is None else max(0.0, after - before)
        return {"seconds": times, "waited": waited, "quiet": _falls_quiet()}

    def finish(self) -> dict[str, Any]:
        """The most memory that was resident since the warm-up began."""
        return {"peak_bytes": peak_bytes()}


def batch_of(sample: Inputs, batch: int, length: int | None) -> Inputs:
    """``batch`` examples, and tokens of the given length, each repeated from the first one again where there are fewer.

    Args:
        sample: the inputs as a model takes them, ``[B, ...]``; the axes that `input_specs` calls length are cut or repeated.
        batch: examples.
        length: tokens; None leaves them as they are.
    """
    tensors = named(sample)
    for spec in input_specs(sample):
        values = tensors[spec.name]
        values = values[torch.arange(batch) % values.shape[0]]
        if length is not None and LENGTH in spec.shape:
            values = values[:, torch.arange(length) % values.shape[1]]
        tensors[spec.name] = values.contiguous()
    return next(iter(tensors.values())) if isinstance(sample, Tensor) else tensors


def resident_bytes() -> int | None:
    """Memory of this process that is in RAM now; where only the highest is known, that; None where nothing is."""
    return _status("VmRSS") or peak_bytes()


def peak_bytes() -> int | None:
    """The most that was in RAM since `forget_peak`, or since the start where that is not possible; None where unknown."""
    # Linux hands the parent's own peak down in ru_maxrss, across fork and exec: a worker would seem as large as its parent.
    found = _status("VmHWM")
    if found is not None:
        return found
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def forget_peak() -> None:
    """Begin anew to look for the most memory, where the system lets us: what unpacking took is not what serving takes."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def waited_seconds() -> float | None:
    """Seconds for which this process's threads, added up, were ready and had no core to run on; None where unknown."""
    if not Path("/proc/self/schedstat").exists():
        return None
    nanoseconds = 0
    for thread in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            nanoseconds += int((thread / "schedstat").read_text().split()[1])
    return 1e-9 * nanoseconds


def _status(field: str) -> int | None:
    """Bytes that Linux tells of this process."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), None)


def _falls_quiet() -> bool:
    """Wait until the threads of this process sleep; whether they did.

    Pools of threads look for more work for a while after a call. That is how they will run, so it is left on; but they must
    have stopped before another worker's turn, which they would slow.
    """
    deadline = time.perf_counter() + RESTLESS_SECONDS
    while time.perf_counter() < deadline:
        before = time.process_time()
        time.sleep(QUIET_SECONDS)
        # not in proportion to the time that passed: on a busy machine the sleep is long, and a spinning thread gets little of it
        if time.process_time() - before < QUIET_SECONDS / 4 and not others_ready():
            return True
    return False


def others_ready() -> bool:
    """Whether another thread of this process runs, or would if it had a core; False where the system does not tell."""
    me = str(threading.get_native_id())
    for thread in Path("/proc/self/task").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            # the state follows the name, which is in brackets and may hold anything
            if thread.name != me and (thread / "stat").read_text().rpartition(")")[2].split()[0] == "R":
                return True
    return False


def _claim_standard_output() -> BinaryIO:
    """The way to the parent; whatever else is printed from now on goes where the errors go."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return answers


def _answer(answers: BinaryIO, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer).encode() + b"\n")
    answers.flush()


if __name__ == "__main__":
    main()
