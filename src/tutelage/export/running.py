"""Models measured as they run: each alone in a fresh process, all of them asked in turn."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from threading import Thread
from typing import Any, Protocol

import cloudpickle
import numpy as np
from torch import Tensor

from tutelage.errors import ConfigError, DataError, ExportError
from tutelage.export.machine import CpuFacts, cpu_facts
from tutelage.export.specs import LENGTH, input_specs, named
from tutelage.models.calling import Inputs

#: Rounds of turns at a setting, even where its time is already up.
MIN_ROUNDS = 3

#: Resamples of the rounds behind the spread of a median.
RESAMPLES = 500

#: What a worker printed last, in an error.
LAST_LINES = 12

#: How the models' files name the modules they are read as; a worker cannot import those.
USER_MODULES = "tutelage_user_"

#: What the thread pools of OpenMP, MKL, OpenBLAS and Accelerate read when they are loaded.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


@dataclass(frozen=True)
class Subject:
    """A model to be measured.

    Args:
        name: as in the record.
        make: called in the worker with the number of threads; returns what is timed, a callable of inputs. It is sent there by
            value (cloudpickle): a closure may hold the model itself, in eval mode, or a path to read it from. Calls run in
            ``torch.inference_mode()``.
        inputs: at least one example as the model takes it: a tensor ``[B, ...]`` or a mapping of them.
        imports: modules that belong to the runtime (``"onnxruntime"``) and are not to be counted as the model's memory.
    """

    name: str
    make: Callable[[int], Callable[[Inputs], Any]]
    inputs: Inputs
    imports: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """What the calls of one model took at one setting; times are milliseconds of a whole call.

    Args:
        model: its name.
        threads: that it might use.
        batch: examples in a call.
        length: tokens of each; None: as the inputs were.
        p50: median of the timed calls, with the percentiles 95 and 99. Of fewer than a hundred calls, ``p99`` is nearly the
            slowest.
        spread: 95% bootstrap interval of ``p50``, the rounds being resampled.
        throughput: examples a second of one caller that asks without pause: all examples by all of the time.
        calls: that were timed.
        peak_bytes: most memory of the process in RAM from the warm-up to the last call; None where the system does not tell.
    """

    model: str
    threads: int
    batch: int
    length: int | None
    p50: float
    p95: float
    p99: float
    spread: tuple[float, float]
    throughput: float
    calls: int
    peak_bytes: int | None

    def to_json(self) -> dict[str, Any]:
        """The fields."""
        return {**vars(self), "spread": list(self.spread)}


@dataclass(frozen=True)
class Memory:
    """Bytes in RAM of the process that ran one model and nothing else; None where the system does not tell.

    Args:
        peak_bytes: the most over all settings, while it answered; how loading goes depends on how a model is stored, and is
            not in it.
        runtime_bytes: before the model was made: Python, PyTorch, and the subject's imports. The difference is the model's.
    """

    peak_bytes: int | None
    runtime_bytes: int | None


@dataclass(frozen=True)
class Running:
    """Models as they run on one machine.

    Args:
        cpu: the machine's processor.
        measured: when, ISO 8601 in UTC.
        rows: by threads, length, batch and model.
        memory: by model.
    """

    cpu: CpuFacts
    measured: str
    rows: tuple[Row, ...]
    memory: Mapping[str, Memory]

    def to_json(self) -> dict[str, Any]:
        """As under ``measured`` in ``shipped.json``."""
        return {
            "cpu": self.cpu.to_json(),
            "measured": self.measured,
            "rows": [row.to_json() for row in self.rows],
            "memory": {name: dict(vars(memory)) for name, memory in self.memory.items()},
        }


def measure_running(
    subjects: Sequence[Subject],
    *,
    batches: Sequence[int] = (1, 32),
    lengths: Sequence[int | None] = (None,),
    threads: Sequence[int] | None = None,
    seconds: float = 10.0,
    patience: float = 300.0,
) -> Running:
    """Measure models as they run: latency, throughput and memory by batch size, length and number of threads.

    Each model has a process of its own, started for this and told how many threads it may use. The processes of all models
    live together and take short turns, forwards and then backwards, with one of them at work at a time: whatever slows the
    machine meanwhile slows all of them alike, and the *ratio* of two latencies can be trusted further than either.

    Thread pools are left as the libraries ship them. Asked to sleep at once (``OMP_WAIT_POLICY=PASSIVE``, ONNX Runtime without
    ``allow_spinning``) they would not disturb their neighbours, but calls on several threads would take longer than they will
    take in use; so each worker ends its turn only when its threads have gone to sleep.

    Args:
        subjects: with names of their own.
        batches: numbers of examples in a call; a subject's examples are repeated where it has fewer.
        lengths: numbers of tokens, to which axis 1 of inputs of whole numbers is cut or repeated; None leaves them as they are.
        threads: numbers of threads; None: one, and as many as there are usable cores.
        seconds: of timing in all, shared equally by the settings; starting the processes (some seconds for each number of
            threads) and warming up come on top, and models so slow that `MIN_ROUNDS` take longer exceed it.
        patience: seconds that a worker may take to start, to warm up at a setting, or for one turn, before it is given up.

    Raises:
        ConfigError: nothing to measure, a number that is not positive, more threads than usable cores, two subjects with one
            name, a length for a model without tokens.
        DataError: a subject without examples.
        ExportError: a model cannot be sent to another process, or its process died, did not answer or would not rest; the
            message ends with what it printed last. No process is left behind, whatever happens.
    """
    cpu = cpu_facts()
    counts = sorted(set((1, cpu.cores) if threads is None else threads))
    settings = [(length, batch) for length in dict.fromkeys(lengths) for batch in sorted(set(batches))]
    # what a large batch leaves with the allocators would count for the small ones after it
    settings.sort(key=lambda setting: (setting[0] or 0, setting[1]))
    _check_arguments(subjects, settings, counts, cpu.cores, seconds, patience)
    parcels = {subject.name: _parcel(subject, max(batches)) for subject in subjects}
    share = seconds / (len(counts) * len(settings))
    rows: list[Row] = []
    memory: dict[str, list[Memory]] = {subject.name: [] for subject in subjects}
    for count in counts:
        with _started(subjects, parcels, count, patience) as workers:
            runtime = {name: worker.answer()["runtime_bytes"] for name, worker in workers.items()}
            for length, batch in settings:
                seconds_taken, peaks = time_in_turns(workers, batch, length, share)
                for name in workers:
                    rows.append(_row(name, count, batch, length, seconds_taken[name], peaks[name]))
                    memory[name].append(Memory(peaks[name], runtime[name]))
    most = {name: max(found, key=lambda memory: memory.peak_bytes or 0) for name, found in memory.items()}
    return Running(cpu, datetime.now(UTC).isoformat(timespec="seconds"), tuple(rows), most)


def cost_per_million(throughput: float, price_per_hour: float) -> float:
    """What a million inferences cost on a machine that is kept busy, in the currency of the price.

    Args:
        throughput: examples a second.
        price_per_hour: of the machine.

    Raises:
        ConfigError: a throughput that is not positive, or a negative price.
    """
    if not (0 < throughput < float("inf") and 0 <= price_per_hour < float("inf")):
        raise ConfigError(
            f"{throughput} examples a second at {price_per_hour} an hour: expected a positive rate and a price of 0 or more; the "
            "cost would mean nothing"
        )
    return 1e6 / throughput * price_per_hour / 3600


class Asked(Protocol):
    """A worker as the one who takes the times sees it."""

    def ask(self, what: str, **arguments: Any) -> dict[str, Any]:
        """Its answer to one request."""
        ...


def time_in_turns(
    workers: Mapping[str, Asked],
    batch: int,
    length: int | None,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[dict[str, list[list[float]]], dict[str, int | None]]:
    """Seconds of each call by worker and round, and the peak bytes of each worker, at one setting."""
    for worker in workers.values():
        worker.ask("warm_up", batch=batch, length=length)
    times: dict[str, list[list[float]]] = {name: [] for name in workers}
    deadline = clock() + seconds
    rounds = 0
    while rounds < MIN_ROUNDS or clock() < deadline:
        for name in workers if rounds % 2 == 0 else reversed(list(workers)):
            times[name].append(workers[name].ask("turn")["seconds"])
        rounds += 1
    return times, {name: worker.ask("finish")["peak_bytes"] for name, worker in workers.items()}


def _row(
    name: str, threads: int, batch: int, length: int | None, seconds: Sequence[Sequence[float]], peak: int | None
) -> Row:
    rounds = [1e3 * np.asarray(turn) for turn in seconds]
    milliseconds = np.concatenate(rounds)
    p50, p95, p99 = map(float, np.percentile(milliseconds, (50, 95, 99)))
    generator = np.random.default_rng(0)
    medians = [
        np.median(np.concatenate([rounds[index] for index in drawn]))
        for drawn in generator.integers(len(rounds), size=(RESAMPLES, len(rounds)))
    ]
    low, high = map(float, np.percentile(medians, (2.5, 97.5)))
    throughput = 1e3 * batch / float(milliseconds.mean())
    return Row(name, threads, batch, length, p50, p95, p99, (low, high), throughput, len(milliseconds), peak)


class _Worker:
    """The parent's end of one worker process."""

    def __init__(self, subject: Subject, parcel: bytes, threads: int, patience: float) -> None:
        self._name, self._patience = subject.name, patience
        # a file without a name: whatever becomes of this process, nothing is left of it
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            # -P: no module in the current folder takes the place of one of the same name
            [sys.executable, "-P", "-m", "tutelage.export._worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._printed,
            env=_environment(threads),
            # a group of its own, so that what it has started can be ended with it
            start_new_session=True,
        )
        self._answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        hello = json.dumps([threads, subject.imports]).encode() + b"\n" + parcel
        # a thread, because a pipe can be waited for with a bound on no system but some
        self._thread = Thread(target=self._converse, args=(hello,), daemon=True)
        self._thread.start()

    def ask(self, what: str, **arguments: Any) -> dict[str, Any]:
        """Send a request and wait for its answer."""
        self._send(json.dumps({"do": what, **arguments}).encode() + b"\n")
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """The next answer.

        Raises:
            ExportError: it died, did not answer in time, or does not rest.
        """
        try:
            line = self._answers.get(timeout=self._patience)
        except queue.Empty:
            raise self._failure(
                f"did not answer within {self._patience:g} seconds and was ended; give it more patience, or measure smaller "
                "batches"
            ) from None
        if not line:
            raise self._failure(f"ended without an answer ({self._how_it_ended()})")
        answer: dict[str, Any] = json.loads(line)
        if answer.get("quiet") is False:
            raise self._failure(
                "kept the processor busy after its calls had returned, and would have slowed the other models; end the threads "
                "that it leaves at work, or unset OMP_WAIT_POLICY=active"
            )
        return answer

    def close(self) -> None:
        """End the process and all that it started."""
        self._kill()
        self._process.wait()
        self._thread.join(timeout=5.0)
        if not self._thread.is_alive():
            for pipe in (self._process.stdin, self._process.stdout):
                with suppress(OSError):
                    assert pipe is not None
                    pipe.close()
        self._printed.close()

    def _converse(self, hello: bytes) -> None:
        self._send(hello)
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put(b"")

    def _send(self, message: bytes) -> None:
        assert self._process.stdin is not None
        # a process that has died says so where its answer is looked for
        with suppress(OSError):
            self._process.stdin.write(message)
            self._process.stdin.flush()

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            return "it closed its output"
        if code >= 0:
            return f"exit code {code}"
        ended_by = signal.Signals(-code).name
        return ended_by + (", as when the system runs out of memory" if ended_by == "SIGKILL" else "")

    def _failure(self, what: str) -> ExportError:
        self._kill()
        self._process.wait()
        self._printed.seek(0)
        lines = self._printed.read().decode(errors="replace").splitlines()[-LAST_LINES:]
        told = "it printed last:\n" + "\n".join(f"    {line}" for line in lines) if lines else "it printed nothing"
        return ExportError(f"the process that ran {self._name!r} {what}; nothing of it was measured; {told}")

    def _kill(self) -> None:
        # on macOS a group whose processes have all ended may not be signalled
        with suppress(ProcessLookupError, PermissionError):
            if sys.platform == "win32":
                self._process.kill()
            else:
                os.killpg(self._process.pid, signal.SIGKILL)


@contextmanager
def _started(
    subjects: Sequence[Subject], parcels: Mapping[str, bytes], threads: int, patience: float
) -> Generator[dict[str, _Worker]]:
    """A fresh worker for each subject, starting; all of them are ended afterwards."""
    with ExitStack() as stack:
        workers: dict[str, _Worker] = {}
        for subject in subjects:
            worker = _Worker(subject, parcels[subject.name], threads, patience)
            stack.callback(worker.close)
            workers[subject.name] = worker
        yield workers


def _environment(threads: int) -> dict[str, str]:
    # what this process can import, the worker can: functions travel by the names of their modules
    path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
    # accelerators are out of sight: calls return there before the work is done, and the time would be too short
    return {
        **os.environ,
        **dict.fromkeys(THREAD_VARIABLES, str(threads)),
        "PYTHONPATH": path,
        "CUDA_VISIBLE_DEVICES": "",
    }


def _parcel(subject: Subject, examples: int) -> bytes:
    """How to make the model, and as many examples as are used, for the worker to unpack."""
    # a part of a tensor is sent with all of the storage that it looks into: hence the clones
    tensors = {name: values[:examples].detach().cpu().clone() for name, values in named(subject.inputs).items()}
    inputs = next(iter(tensors.values())) if isinstance(subject.inputs, Tensor) else tensors
    try:
        with _user_modules_by_value():
            return cloudpickle.dumps((subject.make, inputs))
    except Exception as error:  # pickling runs whatever the objects of a closure define
        raise ExportError(
            f"{subject.name!r} cannot be sent to a process of its own: {type(error).__name__}: {error}; let `make` hold a path or "
            "a module, and no open file, lock or session"
        ) from error


@contextmanager
def _user_modules_by_value() -> Generator[None]:
    """Functions and classes of the users' own files are sent whole: those files are no modules that can be imported."""
    known = cloudpickle.list_registry_pickle_by_value()
    modules = [m for name, m in list(sys.modules.items()) if name.startswith(USER_MODULES) and name not in known]
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)


def _check_arguments(
    subjects: Sequence[Subject],
    settings: Sequence[tuple[int | None, int]],
    threads: Sequence[int],
    cores: int,
    seconds: float,
    patience: float,
) -> None:
    numbers = [*threads, *(number for setting in settings for number in setting if number is not None)]
    if not subjects or not settings or not threads or min(numbers) < 1 or min(seconds, patience) <= 0:
        raise ConfigError(
            f"{len(subjects)} models, (length, batch) {settings}, threads {list(threads)}, {seconds:g} seconds, patience {patience:g}: "
            "expected at least one of each, all of the numbers positive; nothing would be measured"
        )
    if max(threads) > cores:
        raise ConfigError(
            f"{max(threads)} threads, but this process may use {cores} cores: threads that wait for one another would be timed; "
            f"ask for {cores} at most"
        )
    names = [subject.name for subject in subjects]
    if len(set(names)) < len(names):
        raise ConfigError(f"the models are called {names}: one would take another's place; give each a name of its own")
    for subject in subjects:
        tensors = named(subject.inputs).values()
        if not tensors or any(values.ndim == 0 or values.shape[0] == 0 for values in tensors):
            raise DataError(f"{subject.name!r} has no examples: there is nothing to time; give at least one")
        has_tokens = any(LENGTH in spec.shape for spec in input_specs(subject.inputs))
        if not has_tokens and any(length is not None for length, _ in settings):
            raise ConfigError(
                f"lengths were asked for, but {subject.name!r} takes no tokens (whole numbers [B, T]): its rows would all be the "
                "same under different lengths; measure it without"
            )
