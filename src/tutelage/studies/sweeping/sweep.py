"""``tutelage sweep``: many configurations beside each other, chosen from on the validation split; the winner is run whole."""

from __future__ import annotations

import json
import shutil
import time
import uuid
from contextlib import suppress
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from filelock import FileLock

from tutelage.errors import ConfigError, TutelageError
from tutelage.files import write_atomically
from tutelage.studies.arm import Progress, Silent
from tutelage.studies.gates import JUDGED
from tutelage.studies.preflight import check_folder
from tutelage.studies.study import RESULT
from tutelage.studies.sweeping.board import DATABASE, Board, Trial
from tutelage.studies.sweeping.processes import run_workers
from tutelage.studies.sweeping.record import sweep_record
from tutelage.studies.sweeping.search import Search, said
from tutelage.studies.sweeping.space import canonical, import_optuna, probes_of, short_hash
from tutelage.studies.sweeping.trials import SCRATCH, Teachers
from tutelage.studies.sweeping.work import gate, wants_scratch, work

Json = dict[str, Any]

SWEEP = "sweep.json"
WINNER = "winner"

#: Seconds between two looks for what other workers have put down.
_LOOK = 2.0


def run_sweep(search: Search, out: str | Path, progress: Progress | None = None, *, workers: int = 1) -> Json:
    """Try every configuration that is not tried yet, and run the best one whole.

    The same call goes on with a sweep that was cut off, and several of them, on one or more machines that share ``out``, work on
    one sweep together. Trials are judged on the validation split; the test split is met by the winner alone, so its result there
    is not the best of many draws.

    Args:
        search: what is tried.
        out: the folder of the sweep.
        progress: who watches.
        workers: processes of this call; this one only supervises where there are several.

    Returns:
        What ``sweep.json`` holds.

    Raises:
        MissingExtraError: Optuna is not installed.
        ConfigError: a configuration that cannot be trained, or a storage that cannot be reached; nothing has been trained yet.
        TutelageError: no trial could be finished, or a worker met with an error; the same call goes on.
    """
    import_optuna()
    folder, watch = Path(out), progress if progress is not None else Silent()
    if workers < 1:
        raise ConfigError(f"{workers} workers, expected at least 1")
    check_folder(folder)
    if (folder / RESULT).is_file():
        raise ConfigError(f"{folder} holds a run, expected a folder for the sweep alone: name another one with --out")
    search.check(folder)
    folder.mkdir(parents=True, exist_ok=True)
    url = search.storage or f"sqlite:///{(folder / DATABASE).resolve()}"
    with gate(folder):
        board = Board(url, search.name, search.space, search.direction)
        _claim(board, folder, search.name)
        _again(board)
    try:
        writing = _Writing(search, board, folder)
        _tell_done(search, board, watch)
        teachers = Teachers(folder)
        _prepare_teacher(search, teachers, watch)
        if workers == 1:
            work(search, board, folder, watch, teachers, noted=writing.now_and_then)
        else:
            run_workers(search, url, search.name, folder, workers, watch, writing.now_and_then)
        result = writing.now()
        trials = board.trials()
        if not search.over(board):
            left = search.total - sum(trial.settled for trial in trials)
            raise TutelageError(
                f"every worker has ended with {left:,} of {search.total:,} trials left; the same command goes on"
            )
        best = search.best(trials)
        if best is None:
            raise TutelageError(f"none of the {len(trials):,} trials could be finished; the first: {trials[0].error}")
        result["winner"] = _run_winner(search, best, folder, teachers, watch)
        _write(folder, result)
        return result
    finally:
        board.close()


def trainings_of(search: Search) -> int:
    """How many trainings a whole sweep is, the winner's run and its teacher included."""
    study = search.make({}).study
    students = len(study.objectives) * len(study.seed_list)
    before = max(0, study.trainings - students)
    return (search.total + int(wants_scratch(search))) * len(search.seeds) + study.trainings + before


def _claim(board: Board, folder: Path, name: str) -> None:
    """Make sure that all who work on this sweep share its folder: there the trainings lie."""
    mark = folder / ".sweep-id"
    if not mark.is_file():
        write_atomically(mark, uuid.uuid4().hex)
    known = board.noted("folder")
    if known is None:
        board.note("folder", {"id": mark.read_text(), "path": str(folder.resolve())})
        board.note("begun", datetime.now(UTC).isoformat(timespec="seconds"))
    elif known["id"] != mark.read_text():
        raise ConfigError(
            f"the storage holds this sweep already, with its trainings in {known['path']}, and {folder} is another folder: they would be "
            "done twice. Give --out that folder (machines that work on one sweep share it); or, where it is gone for good, forget the "
            f"sweep with  optuna delete-study --study-name {name} --storage URL"
        )


def _again(board: Board) -> None:
    """Put trials that failed for another reason than their values on the board once more: a full disk is mended by now."""
    for trial in board.trials():
        if trial.state == "failed" and trial.again:
            board.add(trial.number, trial.params)
    if (board.noted(SCRATCH) or {}).get("again", False):
        board.note(SCRATCH, None)


def _tell_done(search: Search, board: Board, progress: Progress) -> None:
    for trial in board.trials():
        if trial.state == "complete":
            for seed in search.seeds:
                progress.finished(f"trial {trial.number} ({said(trial.params)}), seed {seed}", "done in an earlier run")


def _prepare_teacher(search: Search, teachers: Teachers, progress: Progress) -> None:
    """Train the teacher before there are workers, where it is one for all trials; else each is trained by who first needs it."""
    candidates = {made.teacher_folder: made for made in (search.make(params) for _, params in probes_of(search.space))}
    if len(candidates) == 1:
        teachers.heard_by(next(iter(candidates.values())), progress)


def _run_winner(search: Search, best: Trial, folder: Path, teachers: Teachers, progress: Progress) -> Json:
    candidate = search.make(best.params)
    place, name = folder / WINNER, short_hash(candidate.decides)
    with FileLock(folder / ".winner.lock"):
        _make_way(place, name)
        teachers.heard_by(candidate, Silent())
        teachers.hand_over(candidate, place)
        result = candidate.study.run(place, progress)
    arm = result["arms"][JUDGED]
    return {
        "folder": WINNER,
        "params": best.params,
        "decision": result["verdict"]["decision"],
        "accuracy": arm["mean"]["accuracy"],
        "ci95": arm["ci95"]["accuracy"],
    }


def _make_way(place: Path, name: str) -> None:
    """Set another winner's run aside, from before the search was changed, and bring this one's back where it was set aside."""
    mark = ".winner"
    if place.exists():
        other = (place / mark).read_text() if (place / mark).is_file() else "unknown"
        if other == name:
            return
        aside = place.with_name(f"{WINNER}-{other}")
        shutil.rmtree(aside, ignore_errors=True)
        place.rename(aside)
    before = place.with_name(f"{WINNER}-{name}")
    if before.exists():
        before.rename(place)
    else:
        write_atomically(place / mark, name)


class _Writing:
    """Writes ``sweep.json``, whole each time."""

    def __init__(self, search: Search, board: Board, folder: Path) -> None:
        self._search, self._board, self._folder = search, board, folder
        study = search.make({}).study
        self._head: Json = {
            "config_sha256": sha256(canonical(study.config or search.make({}).decides).encode()).hexdigest(),
            "title": study.title,
            "started": board.noted("begun"),
            "classes": study.splits.classes,
        }
        self._before = _earlier(folder, search.name)
        self._started, self._at = time.monotonic(), 0.0

    def now_and_then(self) -> None:
        """Write, unless that was done a moment ago."""
        if time.monotonic() - self._at >= _LOOK:
            self.now()

    def now(self) -> Json:
        """Write, and return it."""
        seconds = self._before.get("seconds", 0.0) + time.monotonic() - self._started
        result = sweep_record(self._search, self._board, {**self._head, "seconds": seconds})
        if self._before.get("best") == result["best"]:
            result["winner"] = self._before.get("winner")
        _write(self._folder, result)
        self._at = time.monotonic()
        return result


def _earlier(folder: Path, name: str) -> Json:
    """What an earlier call left of the same search; nothing where there is none."""
    with suppress(OSError, ValueError):
        left: Any = json.loads((folder / SWEEP).read_text(encoding="utf-8"))
        if left["search"]["name"] == name:
            return left
    return {}


def _write(folder: Path, result: Json) -> None:
    write_atomically(folder / SWEEP, json.dumps(result, indent=1, allow_nan=False))
