"""One worker process of a sweep: ``python -m tutelage.studies.sweeping.child``, started by :mod:`.processes` alone."""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from threading import Lock, Thread
from typing import Any, TextIO

import cloudpickle

from tutelage.errors import TutelageError
from tutelage.studies.sweeping.board import Board
from tutelage.studies.sweeping.search import Search
from tutelage.studies.sweeping.trials import Teachers
from tutelage.studies.sweeping.work import work


class Telling:
    """Tells the supervisor how far this worker is, a JSON line an event."""

    def __init__(self, pipe: TextIO) -> None:
        self._pipe, self._lock = pipe, Lock()

    def tell(self, **event: Any) -> None:
        """Send one event."""
        with self._lock:
            self._pipe.write(json.dumps(event) + "\n")
            self._pipe.flush()

    def started(self, what: str, total_steps: int, steps_done: int) -> None:
        """Several workers' steps would drown each other: what is finished is told."""

    def advanced(self, steps_done: int) -> None:
        """As for :meth:`started`."""

    def finished(self, what: str, outcome: str) -> None:
        """It is done."""
        self.tell(finished=what, outcome=outcome)


def serve() -> int:
    """Work on the sweep that stands on standard input, until it is over or standard input is closed."""
    length = int.from_bytes(_exactly(8), "big")
    parcel: dict[str, Any] = cloudpickle.loads(_exactly(length))
    # what the user's code prints is for the terminal, and would be taken for an event in the pipe
    pipe = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    telling = Telling(pipe)
    Thread(target=_end_with_the_supervisor, daemon=True).start()
    _quieten()
    search: Search = parcel["search"]
    try:
        board = Board(parcel["url"], parcel["name"], search.space, search.direction)
        folder = Path(parcel["folder"])
        work(search, board, folder, telling, Teachers(folder), workers=parcel["workers"])
    except (TutelageError, OSError) as error:
        telling.tell(error=str(error))
        return 2
    except Exception as error:
        traceback.print_exc()
        telling.tell(error=f"{type(error).__name__}: {error}")
        return 1
    return 0


def _exactly(count: int) -> bytes:
    data = sys.stdin.buffer.read(count)
    if len(data) < count:
        sys.exit(1)
    return data


def _end_with_the_supervisor() -> None:
    """Standard input is closed when the supervisor goes, however it goes; a worker may be cut off anywhere."""
    # the descriptor itself: the buffer's lock would be held against the interpreter's end
    while os.read(0, 1024):
        pass
    os._exit(1)


def _quieten() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


if __name__ == "__main__":
    sys.exit(serve())
