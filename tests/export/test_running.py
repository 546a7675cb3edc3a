"""Models in processes of their own: who is asked when, what is made of the answers, and that nothing is left behind."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
import torch

from tutelage.errors import ConfigError, DataError, ExportError
from tutelage.export import running
from tutelage.export._worker import batch_of, others_ready
from tutelage.export.machine import CpuFacts
from tutelage.export.running import Sitting, Subject, cost_per_million, measure_running, time_in_turns
from tutelage.models import import_from_file

LINUX = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux tells a process's memory apart from its parent's"
)
MB = 10**6
X = torch.arange(6.0).reshape(2, 3)
TOKENS = {"input_ids": torch.arange(15).reshape(3, 5), "weight": torch.arange(3.0)}


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def note(path, **fields):
    with path.open("a") as file:
        file.write(json.dumps({"pid": os.getpid(), **fields}) + "\n")


def gone(pid):
    """Whether the process ends, now or within seconds; a zombie that waits for its parent (init, soon) has."""
    for _ in range(100):
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.05)
    return False


def once(*subjects, **options):
    return measure_running(subjects, **{"batches": (1,), "threads": (1,), "seconds": 0.01, "processes": 1, **options})


class Noted:
    """A module-level class of a test file: the worker finds it by the parent's import path."""

    def __init__(self, path, name):
        self.path, self.name = path, name

    def __call__(self, inputs):
        sys.stdout.write("chatter of the model\n")
        note(
            self.path,
            name=self.name,
            shapes=[list(values.shape) for values in inputs.values()],
            grad=torch.is_grad_enabled(),
        )


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Two processes each for two models, two threads; and what the models saw."""
    calls, made = tmp_path_factory.mktemp("running") / "calls", tmp_path_factory.mktemp("running") / "made"

    def make_noted(threads):
        note(
            made,
            name="noted",
            threads=[
                threads,
                torch.get_num_threads(),
                *(os.environ[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")),
            ],
            accelerators=os.environ["CUDA_VISIBLE_DEVICES"],
            imported="wave" in sys.modules,
        )
        return Noted(calls, "noted")

    def make_large(threads):
        note(made, name="large")
        np.ones(300 * MB, dtype=np.uint8).sum()
        weights = np.ones(200 * MB, dtype=np.uint8)
        noted = Noted(calls, "large")
        return lambda inputs: (noted(inputs), weights)

    # as large as a process that has trained a teacher
    np.ones(700 * MB, dtype=np.uint8).sum()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "cpu_facts", lambda: CpuFacts("two", 2, (), None))
        record = measure_running(
            [Subject("noted", make_noted, TOKENS, imports=("wave",)), Subject("large", make_large, TOKENS)],
            batches=(4, 1),
            lengths=(7, 2),
            threads=(2,),
            seconds=0.01,
            processes=2,
        )
    return record, lines_of(calls), lines_of(made)


def test_each_model_runs_in_fresh_processes_of_its_own(measured):
    """In one process the first model would pay for what all of them load, and memory would be everybody's."""
    _, calls, made = measured
    pids = {name: {line["pid"] for line in made if line["name"] == name} for name in ("noted", "large")}
    assert len(pids["noted"]) == len(pids["large"]) == 2
    assert len({os.getpid(), *pids["noted"], *pids["large"]}) == 5
    for name, own in pids.items():
        assert {line["pid"] for line in calls if line["name"] == name} == own


def test_threads_are_set_before_the_libraries_are_loaded(measured):
    """Set later, OpenMP's pools keep the size that they have, and rows of one and of two threads are the same row."""
    for line in measured[2]:
        if line["name"] == "noted":
            assert line["threads"] == [2, 2, "2", "2"]
            assert line["accelerators"] == ""


def test_settings_run_from_small_to_large_with_batches_and_tokens_cut_and_repeated(measured):
    record, calls, _ = measured
    first = [line for line in calls if line["name"] == "noted"]
    first = [line for line in first if line["pid"] == first[0]["pid"]]
    shapes = list(dict.fromkeys(json.dumps(line["shapes"]) for line in first))
    assert shapes == ["[[1, 2], [1]]", "[[4, 2], [4]]", "[[1, 7], [1]]", "[[4, 7], [4]]"]
    assert [(row.length, row.batch, row.model) for row in record.rows] == [
        (length, batch, name) for length in (2, 7) for batch in (1, 4) for name in ("noted", "large")
    ]
    assert not any(line["grad"] for line in calls)


def test_timed_calls_are_counted_and_warm_up_is_not(measured):
    record, calls, _ = measured
    made = Counter((line["name"], *line["shapes"][0]) for line in calls)
    for row in record.rows:
        # two processes: at least three calls each to warm up, and one before each of at least three turns
        assert 6 <= row.calls <= made[row.model, row.batch, row.length] - 2 * (3 + 3)


@LINUX
def test_memory_is_the_models_own(measured):
    """The parent's own peak is handed down in ru_maxrss: a student would seem as large as what trained it. And what unpacking or
    loading took for a moment is not what serving takes."""
    record, _, _ = measured
    noted, large = record.memory["noted"], record.memory["large"]
    assert 0 < noted.runtime_bytes <= noted.peak_bytes < 600 * MB
    assert noted.peak_bytes - noted.runtime_bytes < 60 * MB
    assert 200 * MB <= large.peak_bytes - large.runtime_bytes < 260 * MB
    assert large.peak_bytes == max(row.peak_bytes for row in record.rows if row.model == "large")


@LINUX
def test_imports_of_the_runtime_are_there_before_its_memory_is_read(measured):
    assert all(line["imported"] for line in measured[2] if line["name"] == "noted")


def test_json_has_the_layout_of_the_record(measured):
    record = json.loads(json.dumps(measured[0].to_json(), allow_nan=False))
    assert list(record) == ["cpu", "measured", "rows", "memory"]
    assert record["cpu"] == {"name": "two", "cores": 2, "flags": [], "int8_note": None}
    assert set(record["rows"][0]) == {
        *(
            "model",
            "threads",
            "batch",
            "length",
            "p50",
            "p95",
            "p99",
            "spread",
            "throughput",
            "calls",
            "waited",
            "peak_bytes",
        )
    }
    for row in record["rows"]:
        assert 0 < row["spread"][0] <= row["p50"] <= row["spread"][1]
        assert row["p50"] <= row["p95"] <= row["p99"]
        assert row["waited"] >= 0 if sys.platform == "linux" else row["waited"] is None
    assert set(record["memory"]) == {"noted", "large"}
    assert set(record["memory"]["noted"]) == {"peak_bytes", "runtime_bytes"}


class Fake:
    """A worker whose calls take as long as it is told, by a clock that nobody waits for."""

    def __init__(self, name, log, clock, seconds, waited=0.25):
        self.name, self.log, self.clock, self.seconds, self.waited = name, log, clock, seconds, waited

    def ask(self, what, **arguments):
        self.log.append((what, self.name, *arguments.values()))
        if what == "turn":
            self.clock[0] += self.seconds
            return {"seconds": [self.seconds], "waited": self.waited}
        return {"peak_bytes": 7}

    def answer(self):
        return {"runtime_bytes": 5}


def test_turns_go_forwards_and_then_backwards():
    """Always in the same order, or one model after the other, a machine that slows down would slow the later ones."""
    log, clock = [], [0.0]
    workers = {name: Fake(name, log, clock, 1.0) for name in "abc"}
    sittings = time_in_turns(workers, 4, None, 7.5, lambda: clock[0])
    assert log[:3] == [("warm_up", name, 4, None) for name in "abc"]
    assert "".join(name for what, name, *_ in log if what == "turn") == "abccbaabc"
    assert log[-3:] == [("finish", name) for name in "abc"]
    assert sittings["b"] == Sitting([[1.0]] * 3, 0.75, 7)


def test_slow_models_have_some_turns_all_the_same():
    clock = [0.0]
    sittings = time_in_turns({"a": Fake("a", [], clock, 100.0, waited=None)}, 1, None, 0.5, lambda: clock[0])
    assert sittings["a"] == Sitting([[100.0]] * running.MIN_ROUNDS, None, 7)


def test_every_number_of_threads_has_its_fresh_set_of_workers(monkeypatch):
    log, clock, sets = [], [0.0], []

    @contextmanager
    def started(subjects, parcels, threads, patience):
        sets.append((threads, patience))
        log.append(("start", threads))
        yield {subject.name: Fake(subject.name, log, clock, 2e-3 * len(sets)) for subject in subjects}
        log.append(("end", threads))

    monkeypatch.setattr(running, "started", started)
    monkeypatch.setattr(running, "cpu_facts", lambda: CpuFacts("three", 3, (), None))
    record = measure_running(
        [Subject(name, lambda n: len, X) for name in "ab"], seconds=1e-9, processes=2, patience=9.0
    )
    assert sets == [(1, 9.0), (1, 9.0), (3, 9.0), (3, 9.0)]
    assert [entry for entry in log if entry[0] in ("start", "end")] == [
        (w, t) for t in (1, 1, 3, 3) for w in ("start", "end")
    ]
    assert [(row.threads, row.batch, row.model) for row in record.rows] == [
        (threads, batch, name) for threads in (1, 3) for batch in (1, 32) for name in "ab"
    ]
    row = record.rows[2]
    # the first process took 2 ms a call, the second 4: a spread that knew one of them only would be none
    assert row.spread == (pytest.approx(2.0), pytest.approx(4.0))
    assert (row.p50, row.calls) == (pytest.approx(3.0), 6)
    assert row.throughput == pytest.approx(32 / 3e-3)
    assert row.waited == pytest.approx(6 * 0.25 / (3 * 2e-3 + 3 * 4e-3))
    assert record.memory["a"] == running.Memory(7, 5)


def test_the_spread_of_one_process_is_that_of_its_rounds():
    """Calls of one turn are alike: drawn one by one they would promise a median that the next minute breaks."""
    generator = np.random.default_rng(3)
    drift = generator.normal(10.0, 1.0, size=40)
    turns = [list(1e-3 * generator.normal(level, 0.01, size=50)) for level in drift]
    row = running._row(1, None, 1, "m", [Sitting(turns, None, None)])
    low, high = row.spread
    # the median of 40 independent rounds has a standard error of 1.25/√40 = 0.2 ms; of 2,000 calls it would be 0.03
    assert 0.4 < high - low < 1.4
    assert low < row.p50 < high
    calls = np.sort(1e3 * np.concatenate(turns))
    assert row.p95 == pytest.approx(calls[int(0.95 * len(calls))], rel=0.01)
    assert row.p99 == pytest.approx(calls[int(0.99 * len(calls))], rel=0.01)
    assert row.waited is None
    assert row.peak_bytes is None


@pytest.mark.parametrize(("batch", "length", "expected"), [
    (1, None, [[0, 1, 2]]),
    (3, 2, [[0, 1], [3, 4], [0, 1]]),
    (2, 5, [[0, 1, 2, 0, 1], [3, 4, 5, 3, 4]]),
])  # fmt: skip
def test_batches_and_lengths(batch, length, expected):
    made = batch_of({"ids": torch.arange(6).reshape(2, 3), "mask": torch.ones(2, 3, dtype=torch.bool)}, batch, length)
    assert made["ids"].tolist() == expected
    assert made["mask"].shape == made["ids"].shape
    pixels = batch_of(torch.zeros(2, 1, 8, 8), batch, length)
    assert pixels.shape == (batch, 1, 8, 8)


def test_models_of_a_users_file_travel_whole(tmp_path):
    """The module that such a file is read as exists in the process that read it, and nowhere else."""
    (tmp_path / "models.py").write_text(
        "import torch\nSCALE = 3.0\ndef scaled(x):\n    return SCALE * x\n"
        "class Mine(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.w = torch.nn.Linear(3, 2)\n"
        "    def forward(self, x):\n        return scaled(self.w(x))\n"
    )
    mine = import_from_file("models.py:Mine", tmp_path)().eval()
    before = cloudpickle.list_registry_pickle_by_value()
    found = tmp_path / "logits"
    expected = mine(X).tolist()

    def make(threads):
        def call(inputs):
            found.write_text(json.dumps(mine(inputs).tolist()))

        return call

    once(Subject("mine", make, X), batches=(2,))
    torch.testing.assert_close(json.loads(found.read_text()), expected)
    assert cloudpickle.list_registry_pickle_by_value() == before


def test_models_of_a_script_travel_whole(tmp_path):
    """A worker that ran the user's script again to find its classes would train again, and start workers of its own."""
    script = tmp_path / "script.py"
    script.write_text(
        "import torch\nfrom tutelage.export.running import Subject, measure_running\n"
        "print('once')\n"
        "class Mine(torch.nn.Module):\n    def forward(self, x):\n        return x\n"
        "def make(threads):\n    return Mine()\n"
        "r = measure_running([Subject('m', make, torch.ones(1, 2))], batches=(1,), threads=(1,), seconds=.01, processes=1)\n"
        "print(len(r.rows))\n"
    )
    (tmp_path / "json.py").write_text("raise SystemExit('a file of the user took the place of a library')")
    command = [sys.executable, "-P", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False)
    assert done.stdout == "once\n1\n", done.stderr


@pytest.fixture
def empty_temporary_folder(tmp_path, monkeypatch):
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield
    assert list(folder.iterdir()) == []


@pytest.mark.usefixtures("empty_temporary_folder")
def test_a_model_that_fails_says_what_it_said(tmp_path):
    """The traceback is in another process; without it the user would learn that something failed somewhere."""
    pids = tmp_path / "pids"

    def make_good(threads):
        note(pids)
        return len

    def make_bad(threads):
        raise ValueError("no such layer: conv7")

    with pytest.raises(
        ExportError, match=r"'bad' ended without an answer \(exit code 1\)(.|\n)*ValueError: no such layer: conv7"
    ):
        once(Subject("good", make_good, X), Subject("bad", make_bad, X))
    assert all(gone(line["pid"]) for line in lines_of(pids))


def test_a_killed_worker_is_an_error_and_no_row():
    def make(threads):
        sys.stdout.write("loading the weights\n")
        sys.stdout.flush()
        return lambda inputs: os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(ExportError, match=r"SIGKILL, as when the system runs out of memory(.|\n)*loading the weights"):
        once(Subject("m", make, X))


@pytest.mark.usefixtures("empty_temporary_folder")
def test_a_worker_that_hangs_is_ended_with_all_that_it_started(tmp_path, monkeypatch):
    """A check in a pipeline must end; and the next one must not share the machine with what this one left."""
    pids = tmp_path / "pids"

    def make(threads):
        note(pids)
        # holds the pipe of the answers open, and would keep whoever reads it waiting
        if os.fork() == 0:
            note(pids)
            time.sleep(600)
        return lambda inputs: time.sleep(600)

    def with_less_patience(workers, *arguments):
        workers["m"]._patience = 0.2
        return time_in_turns(workers, *arguments)

    monkeypatch.setattr(running, "time_in_turns", with_less_patience)
    with pytest.raises(ExportError, match=r"'m' did not answer within 0.2 seconds"):
        once(Subject("m", make, X))
    assert len(lines_of(pids)) == 2
    assert all(gone(line["pid"]) for line in lines_of(pids))


@pytest.mark.usefixtures("empty_temporary_folder")
def test_an_interrupt_leaves_nothing_behind(tmp_path, monkeypatch):
    pids = tmp_path / "pids"

    def make(threads):
        note(pids)
        return len

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "time_in_turns", interrupted)
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        once(Subject("a", make, X), Subject("b", make, X))
    assert len(lines_of(pids)) == 2
    assert all(gone(line["pid"]) for line in lines_of(pids))
    assert threading.active_count() == before


def test_threads_that_never_rest_are_an_error():
    """They would hold a core during the other models' turns, whose latencies would be too long by nobody's fault of theirs."""

    def make(threads):
        def spin():
            while True:
                pass

        threading.Thread(target=spin, daemon=True).start()
        return len

    with pytest.raises(ExportError, match=r"'m' kept the processor busy"):
        once(Subject("m", make, X))


@LINUX
def test_a_thread_that_wants_a_core_is_seen_whether_it_has_one_or_not():
    """On a busy machine a spinning thread uses no time while it waits, and would pass for asleep."""
    assert not others_ready()
    # works for seconds without the interpreter's lock
    worker = threading.Thread(target=hashlib.pbkdf2_hmac, args=("sha256", b"", b"", 2_000_000))
    worker.start()
    seen = False
    while worker.is_alive() and not seen:
        seen = others_ready()
    worker.join()
    assert seen
    # Python is done with a thread a moment before the system is
    patience = 200
    while others_ready() and patience:
        time.sleep(0.05)
        patience -= 1
    assert not others_ready()


def test_what_cannot_be_sent_is_an_error():
    lock = threading.Lock()
    with pytest.raises(ExportError, match=r"'m' cannot be sent(.|\n)*lock"):
        once(Subject("m", lambda threads: lock.locked, X))


def test_a_part_of_a_large_tensor_is_sent_alone():
    """A slice is pickled with the storage behind it: a validation set would travel with each example."""
    from tutelage.export._processes import packed

    assert len(packed(Subject("m", len, torch.zeros(1000, 1000)[:4]), 2)) < 20_000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batches": ()}, "nothing would be measured"),
        ({"batches": (0,)}, "nothing would be measured"),
        ({"threads": ()}, "nothing would be measured"),
        ({"lengths": (0,)}, "nothing would be measured"),
        ({"lengths": ()}, "nothing would be measured"),
        ({"processes": 0}, "nothing would be measured"),
        ({"seconds": 0.0}, "nothing would be measured"),
        ({"patience": 0.0}, "nothing would be measured"),
        ({"threads": (4096,)}, "4,096 threads, but"),
        ({"lengths": (8,)}, "takes no tokens"),
    ],
)
def test_senseless_settings_are_errors(options, message):
    with pytest.raises(ConfigError, match=message):
        once(Subject("m", lambda threads: len, X), **options)


def test_senseless_subjects_are_errors():
    subject = Subject("m", lambda threads: len, X)
    with pytest.raises(ConfigError, match="0 models"):
        once()
    with pytest.raises(ConfigError, match="another's place"):
        once(subject, subject)
    for empty in (X[:0], {}, torch.tensor(1.0), torch.zeros(2, 0, dtype=torch.int64)):
        with pytest.raises(DataError, match="no examples"):
            once(Subject("m", lambda threads: len, empty))


def test_cost_of_a_million():
    # 1,000 a second are 3.6 million an hour
    assert cost_per_million(1000.0, 3.6) == pytest.approx(1.0)
    assert cost_per_million(50.0, 0.0) == 0.0
    for throughput, price in (
        (0.0, 1.0),
        (-1.0, 1.0),
        (float("nan"), 1.0),
        (float("inf"), 1.0),
        (10.0, -0.1),
        (10.0, float("nan")),
    ):
        with pytest.raises(ConfigError, match="mean nothing"):
            cost_per_million(throughput, price)
