"""The parent's end of the worker processes: start them, send them their models, ask them, end them."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from threading import Thread
from typing import Any

import cloudpickle
from torch import Tensor

from tutelage.errors import ExportError
from tutelage.export.specs import named
from tutelage.models.calling import Inputs

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


class Worker:
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
def started(
    subjects: Sequence[Subject], parcels: Mapping[str, bytes], threads: int, patience: float
) -> Generator[dict[str, Worker]]:
    """A fresh worker for each subject, starting; all of them are ended afterwards."""
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for subject in subjects:
            worker = Worker(subject, parcels[subject.name], threads, patience)
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


def packed(subject: Subject, examples: int) -> bytes:
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
