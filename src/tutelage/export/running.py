"""Models measured as they run: each alone in a fresh process, all of them asked in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import ConfigError, DataError
from tutelage.export._processes import Subject, packed, started
from tutelage.export.machine import CpuFacts, cpu_facts
from tutelage.export.specs import LENGTH, input_specs, named

#: Rounds of turns at a setting, even where its time is already up.
MIN_ROUNDS = 3

#: Resamples of the rounds behind the interval of a median.
RESAMPLES = 500


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
        spread: where the median lies in one process or another: the lowest and the highest end of the 95% bootstrap intervals of
            the processes' own medians, their rounds being resampled. Memory is laid out anew in each process, which moves a
            median further than its calls within one tell (Mytkowicz et al. 2009, Georges et al. 2007).
        throughput: examples a second of one caller that asks without pause: all examples by all of the time.
        calls: that were timed.
        waited: thread-seconds for which its threads were ready and had no core to run on, for a second of timed calls; None
            where the system does not tell. Much above 0, other programs were at work: long calls are slowed then and short
            ones are not, and no ratio of theirs can be trusted.
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
    waited: float | None
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
    processes: int = 3,
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
        seconds: of timing in all, shared equally by the settings; starting the processes (some seconds for each set of them)
            and warming up come on top, and models so slow that `MIN_ROUNDS` take longer exceed it.
        processes: fresh ones for each model and number of threads, one after the other.
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
    settings = [(length, batch) for length in dict.fromkeys(lengths) for batch in set(batches)]
    # what a large batch leaves with the allocators would count for the small ones after it
    settings.sort(key=lambda setting: (setting[0] or 0, setting[1]))
    _check_arguments(subjects, settings, [*counts, processes], seconds, patience)
    _check_threads(counts, cpu.cores)
    parcels = {subject.name: packed(subject, max(batches)) for subject in subjects}
    share = seconds / (len(counts) * processes * len(settings))
    sittings: dict[tuple[int, int | None, int, str], list[Sitting]] = {}
    memory: dict[str, list[Memory]] = {}
    for count in (count for count in counts for _ in range(processes)):
        with started(subjects, parcels, count, patience) as workers:
            runtime = {name: worker.answer()["runtime_bytes"] for name, worker in workers.items()}
            for length, batch in settings:
                for name, sitting in time_in_turns(workers, batch, length, share).items():
                    sittings.setdefault((count, length, batch, name), []).append(sitting)
                    memory.setdefault(name, []).append(Memory(sitting.peak_bytes, runtime[name]))
    return Running(
        cpu,
        datetime.now(UTC).isoformat(timespec="seconds"),
        tuple(_row(*setting, found) for setting, found in sittings.items()),
        {name: max(found, key=lambda memory: memory.peak_bytes or 0) for name, found in memory.items()},
    )


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


@dataclass(frozen=True)
class Sitting:
    """One process at one setting.

    Args:
        turns: seconds of each call, by round.
        waited: thread-seconds without a core during those calls; None where unknown.
        peak_bytes: the most memory it had in RAM; None where unknown.
    """

    turns: Sequence[Sequence[float]]
    waited: float | None
    peak_bytes: int | None


def time_in_turns(
    workers: Mapping[str, Asked],
    batch: int,
    length: int | None,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Sitting]:
    """Warm all workers up for a setting, then give them turns, forwards and backwards, until the time is up."""
    for worker in workers.values():
        worker.ask("warm_up", batch=batch, length=length)
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in workers}
    deadline = clock() + seconds
    rounds = 0
    while rounds < MIN_ROUNDS or clock() < deadline:
        for name in workers if rounds % 2 == 0 else reversed(list(workers)):
            turns[name].append(workers[name].ask("turn"))
        rounds += 1
    return {
        name: Sitting(
            [turn["seconds"] for turn in turns[name]],
            _total(turn["waited"] for turn in turns[name]),
            worker.ask("finish")["peak_bytes"],
        )
        for name, worker in workers.items()
    }


def _total(parts: Iterable[float | None]) -> float | None:
    known = list(parts)
    return None if None in known else sum(part for part in known if part is not None)


def _row(threads: int, length: int | None, batch: int, name: str, sittings: Sequence[Sitting]) -> Row:
    seconds = np.concatenate([turn for sitting in sittings for turn in sitting.turns])
    p50, p95, p99 = (1e3 * float(value) for value in np.percentile(seconds, (50, 95, 99)))
    intervals = [_interval_of_median([np.asarray(turn) for turn in sitting.turns]) for sitting in sittings]
    waited = _total(sitting.waited for sitting in sittings)
    return Row(
        model=name,
        threads=threads,
        batch=batch,
        length=length,
        p50=p50,
        p95=p95,
        p99=p99,
        spread=(1e3 * min(low for low, _ in intervals), 1e3 * max(high for _, high in intervals)),
        throughput=batch * len(seconds) / float(seconds.sum()),
        calls=len(seconds),
        waited=None if waited is None else waited / float(seconds.sum()),
        peak_bytes=max((sitting.peak_bytes for sitting in sittings if sitting.peak_bytes is not None), default=None),
    )


def _interval_of_median(rounds: Sequence[NDArray[np.float64]]) -> tuple[float, float]:
    """95% bootstrap interval; whole rounds are drawn, because the calls of one turn are alike."""
    drawn = np.random.default_rng(0).integers(len(rounds), size=(RESAMPLES, len(rounds)))
    medians = [np.median(np.concatenate([rounds[index] for index in row])) for row in drawn]
    low, high = np.percentile(medians, (2.5, 97.5))
    return float(low), float(high)


def _check_arguments(
    subjects: Sequence[Subject],
    settings: Sequence[tuple[int | None, int]],
    counts: Sequence[int],
    seconds: float,
    patience: float,
) -> None:
    numbers = [*counts, *(number for setting in settings for number in setting if number is not None)]
    if not subjects or not settings or len(counts) < 2 or min(numbers) < 1 or min(seconds, patience) <= 0:
        raise ConfigError(
            f"{len(subjects)} models, (length, batch) {settings}, threads {list(counts[:-1])}, {counts[-1]} processes, {seconds:g} "
            f"seconds, patience {patience:g}: expected at least one of each, all of the numbers positive; nothing would be measured"
        )
    names = [subject.name for subject in subjects]
    if len(set(names)) < len(names):
        raise ConfigError(f"the models are called {names}: one would take another's place; give each a name of its own")
    for subject in subjects:
        tensors = named(subject.inputs).values()
        if not tensors or any(values.ndim == 0 or 0 in values.shape[:2] for values in tensors):
            raise DataError(
                f"{subject.name!r} has no examples, or empty ones: there is nothing to time; give at least one"
            )
        has_tokens = any(LENGTH in spec.shape for spec in input_specs(subject.inputs))
        if not has_tokens and any(length is not None for length, _ in settings):
            raise ConfigError(
                f"lengths were asked for, but {subject.name!r} takes no tokens (whole numbers [B, T]): its rows would all be the "
                "same under different lengths; measure it without"
            )


def _check_threads(threads: Sequence[int], cores: int) -> None:
    if max(threads) > cores:
        raise ConfigError(
            f"{max(threads):,} threads, but this process may use {cores:,} cores: threads that wait for one another would be timed; "
            f"ask for {cores} at most"
        )
