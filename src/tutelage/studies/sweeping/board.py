"""The board of a sweep: every trial and who is at work on it, in Optuna's storage, seen by all workers."""

from __future__ import annotations

import json
import os
import socket
import warnings
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any, Literal

from filelock import FileLock, Timeout

from tutelage.errors import ConfigError, MissingExtraError
from tutelage.studies.sweeping.space import (
    Direction,
    Params,
    Space,
    canonical,
    distributions,
    import_optuna,
    to_storage,
)

Json = dict[str, Any]
State = Literal["waiting", "running", "complete", "failed"]

DATABASE = "study.db"

#: Seconds between two signs of life of a worker, and how long without one until it counts as dead.
HEARTBEAT, GRACE = 20, 120
#: Seconds that a writer waits for another one's transaction (SQLite).
_PATIENCE = 60


@dataclass(frozen=True)
class Trial:
    """One trial as the storage has it.

    Args:
        number: counted from 0 in the order in which they were asked for; a trial that is tried again keeps its number.
        id: of its latest row in the storage.
        params: what it tries.
        state: how far it is.
        worker: ``{"host", "pid"}`` of whoever took it last.
        record: its ``seeds``, ``mean`` and ``ci95`` where it is complete.
        error: why it failed.
        again: whether the same command tries it again: it failed for another reason than its values.
    """

    number: int
    id: int
    params: Params
    state: State
    worker: Mapping[str, Any] | None
    record: Json | None
    error: str | None
    again: bool

    @property
    def settled(self) -> bool:
        """Whether nothing more is to be done for it."""
        return self.state in ("complete", "failed")


class Board:
    """A sweep's trials in Optuna's relational storage.

    Args:
        url: of the storage, as SQLAlchemy writes it.
        name: of the sweep; another search in the same storage has another one.
        space: what varies.
        direction: which values are better.

    Raises:
        MissingExtraError: Optuna, or the database's driver, is not installed.
        ConfigError: the storage cannot be reached, or the URL is none.
    """

    def __init__(self, url: str, name: str, space: Space, direction: Direction) -> None:
        self._optuna = import_optuna()
        self._space, self._distributions = space, distributions(space)
        self._storage = _open(self._optuna, url)
        self._study = self._optuna.create_study(
            storage=self._storage, study_name=name, direction=direction, load_if_exists=True
        )

    def trials(self) -> list[Trial]:
        """Every trial, by its number."""
        latest: dict[int, Any] = {}
        for row in self._study.get_trials(deepcopy=False):
            latest[row.user_attrs["number"]] = row
        return [_trial(number, latest[number]) for number in sorted(latest)]

    def add(self, number: int, params: Params) -> None:
        """Put a trial on the board, in one transaction: it is there whole, or not."""
        self._study.add_trial(
            self._optuna.trial.create_trial(
                state=self._optuna.trial.TrialState.WAITING,
                params=to_storage(self._space, params),
                distributions=self._distributions,
                user_attrs={"number": number, "params": canonical(params)},
            )
        )

    def take(self, trial: Trial) -> None:
        """Say that this process is at work on a trial; the caller holds its files."""
        self._storage.set_trial_state_values(trial.id, self._optuna.trial.TrialState.RUNNING)
        self._storage.set_trial_user_attr(trial.id, "worker", this_worker())
        self._storage.record_heartbeat(trial.id)

    def complete(self, trial: Trial, value: float, record: Json) -> None:
        """Put down what a trial found."""
        self._storage.set_trial_user_attr(trial.id, "record", canonical(record))
        self._storage.set_trial_state_values(trial.id, self._optuna.trial.TrialState.COMPLETE, [value])

    def fail(self, trial: Trial, error: str, *, again: bool) -> None:
        """Put down why a trial cannot be finished."""
        self._storage.set_trial_user_attr(trial.id, "error", error)
        self._storage.set_trial_user_attr(trial.id, "again", again)
        self._storage.set_trial_state_values(trial.id, self._optuna.trial.TrialState.FAIL)

    def note(self, key: str, value: Any) -> None:
        """Keep a fact about the whole sweep."""
        self._study.set_user_attr(key, canonical(value))

    def noted(self, key: str) -> Any:
        """A fact about the whole sweep; None where it was not noted."""
        text = self._study.user_attrs.get(key)
        return None if text is None else json.loads(text)

    def silent(self) -> set[int]:
        """The ids of the trials whose workers have given no sign of life for ``GRACE`` seconds."""
        # Optuna's public way to them, fail_stale_trials, ends them for good; here their files are gone on with
        return set(self._storage._get_stale_trial_ids(self._study._study_id))

    @contextmanager
    def signs_of_life(self, trials: Iterable[Trial]) -> Generator[None]:
        """Tell the other workers all the while that these trials are being worked on."""
        ids, over = [trial.id for trial in trials], Event()

        def beat() -> None:
            while not over.wait(HEARTBEAT):
                for trial_id in ids:
                    # a storage that is away for a moment costs a beat, not the training
                    with suppress(self._optuna.exceptions.StorageInternalError, KeyError):
                        self._storage.record_heartbeat(trial_id)
            self._storage.remove_session()

        thread = Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(timeout=_PATIENCE)

    def close(self) -> None:
        """Let go of the database."""
        self._storage.remove_session()
        self._storage.engine.dispose()


def this_worker() -> Json:
    """This process, as it is noted on the board."""
    return {"host": socket.gethostname(), "pid": os.getpid()}


def hold(path: Path) -> FileLock | None:
    """Hold a folder against other workers; None where one has it. It is let go when this process ends, however it ends."""
    path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    return lock


def _trial(number: int, row: Any) -> Trial:
    said = row.user_attrs
    state: dict[str, State] = {"WAITING": "waiting", "RUNNING": "running", "COMPLETE": "complete"}
    return Trial(
        number=number,
        id=row._trial_id,
        params=json.loads(said["params"]),
        state=state.get(row.state.name, "failed"),
        worker=said.get("worker"),
        record=json.loads(said["record"]) if "record" in said else None,
        error=said.get("error"),
        again=bool(said.get("again", False)),
    )


def _open(optuna: Any, url: str) -> Any:
    import sqlalchemy
    import sqlalchemy.exc

    try:
        parsed = sqlalchemy.engine.make_url(url)
        shown = parsed.render_as_string(hide_password=True)
    except sqlalchemy.exc.ArgumentError as error:
        raise ConfigError(
            "search.storage is no database URL: write for example postgresql+psycopg://user@host/database, or leave it out for a "
            f"{DATABASE} in the output folder"
        ) from error
    in_file = parsed.get_backend_name() == "sqlite"
    if in_file and parsed.database in (None, "", ":memory:"):
        raise ConfigError(
            f"search.storage is {shown}, a database in memory: no other worker could see it, and it would be lost with this process; "
            f"name a file, or leave it out for a {DATABASE} in the output folder"
        )
    arguments = {"connect_args": {"timeout": _PATIENCE}} if in_file else {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.storages.RDBStorage(
                url, engine_kwargs=arguments, heartbeat_interval=HEARTBEAT, grace_period=GRACE
            )
    except ImportError as error:
        driver = parsed.get_driver_name()
        hint = ", or pip install 'psycopg[binary]' and write postgresql+psycopg://…" if driver == "psycopg2" else ""
        raise MissingExtraError(
            f"the storage {shown} needs the database driver {driver!r}, which is not installed. Install it with: pip install {driver}{hint}"
        ) from error
    except sqlalchemy.exc.NoSuchModuleError as error:
        raise ConfigError(
            f"search.storage is {shown}: there is no such kind of database; a sweep knows sqlite and postgresql (and mysql)"
        ) from error
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        told = str(getattr(error, "orig", None) or error).strip().splitlines()
        raise ConfigError(
            f"the storage {shown} cannot be reached: {told[0] if told else type(error).__name__}; no trial could be noted. See that the "
            "server runs, and that its name, user and password are right, and give the same command again"
        ) from error
