"""What one worker of a sweep does: take trials that nobody is at work on, train them together, put down what they found."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from tutelage.errors import CheckpointError, MissingExtraError, NonFiniteError
from tutelage.studies.arm import ArmPlan, Progress, plan_name
from tutelage.studies.sweeping.board import Board, Trial, hold, this_worker
from tutelage.studies.sweeping.search import Search, said
from tutelage.studies.sweeping.trials import SCRATCH, Teachers, all_done, record_of, scratch_plans, trial_plans
from tutelage.studies.together import run_all

Json = dict[str, Any]

#: Seconds between two looks at the board of a worker that has nothing to do.
_LOOK = 1.0
#: What stops a worker instead of failing a trial: the same would happen to the next one.
_OURS = (OSError, MemoryError, CheckpointError, MissingExtraError)


def gate(folder: Path) -> FileLock:
    """Held while trials are put on the board or taken from it."""
    return FileLock(folder / ".sweep.lock")


@dataclass
class _Job:
    """A trial that this worker holds; without one, the line that the trials are held against."""

    trial: Trial | None
    lock: FileLock
    plans: list[ArmPlan] = field(default_factory=list[ArmPlan])
    settled: bool = False


def work(
    search: Search,
    board: Board,
    folder: Path,
    progress: Progress,
    teachers: Teachers,
    *,
    workers: int = 1,
    noted: Callable[[], None] = lambda: None,
) -> None:
    """Work on a sweep until every trial is settled, by this worker or another.

    Args:
        search: what is tried.
        board: where the trials are.
        folder: of the sweep, shared by all workers.
        progress: who watches.
        teachers: of the trials.
        workers: how many share what is there to be done: this one takes its share of it at a time.
        noted: called when something was put down, and now and then while others are at work.
    """
    search.make({})  # reads the data before others are kept waiting at the gate
    while True:
        with gate(folder):
            search.top_up(board)
            jobs = _take(search, board, folder, workers)
        if jobs:
            _do(jobs, search, board, folder, teachers, progress, noted)
        elif search.over(board):
            return
        else:
            noted()
            time.sleep(_LOOK)


def wants_scratch(search: Search) -> bool:
    """Whether there are labels for a student without a teacher to learn from."""
    return search.make({}).study.splits.train.labelled > 0


def _take(search: Search, board: Board, folder: Path, workers: int) -> list[_Job]:
    """This worker's share of what nobody is at work on."""
    held: list[tuple[Trial, FileLock]] = []
    for trial in board.trials():
        if trial.state == "waiting" or (trial.state == "running" and _forsaken(trial, board)):
            lock = hold(folder / search.make(trial.params).folder)
            held += [(trial, lock)] if lock is not None else []
    held = _still_open(held, board)
    share = math.ceil(len(held) / workers)
    # what one worker left was perhaps trained as one stack, and goes on as one
    left_by = [trial.worker for trial, _ in held[:share] if trial.worker is not None]
    jobs: list[_Job] = []
    for index, (trial, lock) in enumerate(held):
        if index < share or trial.worker in left_by:
            board.take(trial)
            jobs.append(_Job(trial, lock))
        else:
            lock.release()
    if wants_scratch(search) and board.noted(SCRATCH) is None:
        lock = hold(folder / SCRATCH)
        jobs += [_Job(None, lock)] if lock is not None else []
    return jobs


def _still_open(held: Sequence[tuple[Trial, FileLock]], board: Board) -> list[tuple[Trial, FileLock]]:
    """Of the trials whose locks were had, those that nobody has settled: a worker settles one before it lets go of the lock."""
    now = {trial.id: trial for trial in board.trials()} if held else {}
    for trial, lock in held:
        if now[trial.id].settled:
            lock.release()
    return [(now[trial.id], lock) for trial, lock in held if not now[trial.id].settled]


def _forsaken(trial: Trial, board: Board) -> bool:
    # A lock that can be had says that its holder is gone; but some shared file systems do not carry locks from one machine to
    # the other, so a worker elsewhere must have fallen silent as well.
    return (trial.worker or {}).get("host") == this_worker()["host"] or trial.id in board.silent()


def _do(
    jobs: Sequence[_Job],
    search: Search,
    board: Board,
    folder: Path,
    teachers: Teachers,
    progress: Progress,
    noted: Callable[[], None],
) -> None:
    watch = _Settling(jobs, search, board, progress, noted)
    try:
        with board.signs_of_life([job.trial for job in jobs if job.trial is not None]):
            for job in jobs:
                job.plans = _plans(job, search, folder, teachers, progress)
            _train(jobs, search, watch)
            watch.settle()
    finally:
        for job in jobs:
            job.lock.release()
    noted()


def _train(jobs: Sequence[_Job], search: Search, watch: _Settling) -> None:
    """Train what is not settled; a trial that diverges is left out, and the others go on together."""
    open_jobs = list(jobs)
    while open_jobs:
        try:
            run_all([plan for job in open_jobs for plan in job.plans], watch, search.make({}).study.together)
            return
        except Exception as error:
            if watch.broken or isinstance(error, _OURS):
                raise
            open_jobs = [job for job in open_jobs if not job.settled]
            diverged = _diverged(open_jobs, error)
            if diverged is None:
                _one_by_one(open_jobs, error, watch)
                return
            watch.failed(diverged, error)
            open_jobs.remove(diverged)


def _diverged(jobs: Sequence[_Job], error: Exception) -> _Job | None:
    """Whose student is not finite any more, where the error says so."""
    name = error.training if isinstance(error, NonFiniteError) else None
    return next((job for job in jobs if name in [plan_name(plan) for plan in job.plans]), None) if name else None


def _plans(job: _Job, search: Search, folder: Path, teachers: Teachers, progress: Progress) -> list[ArmPlan]:
    if job.trial is None:
        return scratch_plans(search.make({}), folder / SCRATCH, search.seeds, teachers, progress)
    candidate = search.make(job.trial.params)
    name = f"trial {job.trial.number} ({said(job.trial.params)})"
    return trial_plans(candidate, name, folder / candidate.folder, search.seeds, teachers, progress)


def _one_by_one(open_jobs: Sequence[_Job], error: Exception, watch: _Settling) -> None:
    """Find out whose error it was: the others go on where they are."""
    for job in open_jobs:
        failure: Exception | None = error if len(open_jobs) == 1 else None
        if failure is None:
            try:
                # alone: a stack would go down with its one bad student again
                run_all(job.plans, watch, together=False)
            except Exception as own:
                if watch.broken or isinstance(own, _OURS):
                    raise
                failure = own
        if failure is not None:
            watch.failed(job, failure)


class _Settling:
    """Passes progress on, and puts each trial down as soon as its last seed is done."""

    def __init__(
        self,
        jobs: Sequence[_Job],
        search: Search,
        board: Board,
        progress: Progress,
        noted: Callable[[], None],
    ) -> None:
        self._jobs, self._search, self._board = jobs, search, board
        self._progress, self._noted = progress, noted
        self.broken = False

    def started(self, what: str, total_steps: int, steps_done: int) -> None:
        """A training begins, or goes on."""
        self._progress.started(what, total_steps, steps_done)

    def advanced(self, steps_done: int) -> None:
        """It has made so many steps."""
        self._progress.advanced(steps_done)

    def finished(self, what: str, outcome: str) -> None:
        """It is done."""
        self._progress.finished(what, outcome)
        self.settle()

    def settle(self) -> None:
        """Put down every trial whose seeds are all done."""
        for job in self._jobs:
            if job.settled or not job.plans or not all_done(job.plans):
                continue
            try:
                record = record_of(job.plans)
                if job.trial is None:
                    self._board.note(SCRATCH, record)
                else:
                    self._board.complete(job.trial, self._search.value(record), record)
                self._close(job)
            except Exception:
                self.broken = True
                raise

    def failed(self, job: _Job, error: Exception) -> None:
        """Put down that a trial cannot be finished; one that diverged is not tried again, its values are what is wrong."""
        told = f"{type(error).__name__}: {error}"
        if job.trial is None:
            self._board.note(SCRATCH, {"error": told, "again": not isinstance(error, NonFiniteError)})
        else:
            self._board.fail(job.trial, told, again=not isinstance(error, NonFiniteError))
        what = SCRATCH if job.trial is None else f"trial {job.trial.number} ({said(job.trial.params)})"
        self._progress.finished(what, f"failed: {told}")
        self._close(job)

    def _close(self, job: _Job) -> None:
        job.settled = True
        job.lock.release()
        self._noted()
