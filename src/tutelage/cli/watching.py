"""Shows how far a study is: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

#: Seconds between two lines about the same training in a log.
_LOG_EVERY = 30.0


class _Once(logging.Handler):
    """Says each line once: every seed of an arm has the same to say."""

    def __init__(self, watcher: Watcher) -> None:
        super().__init__(logging.INFO)
        self._watcher, self._said = watcher, set[str]()

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        if line not in self._said:
            self._said.add(line)
            self._watcher.say(line)


class Watcher:
    """Shows how far a study is: a bar on a terminal, plain lines in a log."""

    def __init__(self, trainings: int) -> None:
        from rich.console import Console

        self._console = Console(stderr=True)
        self._trainings = trainings
        self._done = 0
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._what = ""
        self._total = 0
        self._said_at = 0.0
        # what was put between layers that would not have met is for whoever runs the study to know
        self._layers, self._lines = logging.getLogger("tutelage.training.listening"), _Once(self)

    def __enter__(self) -> Watcher:
        self._layers.addHandler(self._lines)
        self._layers.setLevel(logging.INFO)
        if self._console.is_terminal:
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Bar(*columns, console=self._console, transient=True)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._layers.removeHandler(self._lines)
        self._layers.setLevel(logging.NOTSET)
        if self._bar is not None:
            self._bar.stop()

    def say(self, line: str) -> None:
        """One line, as it is."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def started(self, what: str, total_steps: int, steps_done: int) -> None:
        """A training begins, or goes on."""
        self._what, self._total, self._said_at = what, total_steps, time.monotonic()
        if steps_done:
            self.say(f"{self._counted(what)}: goes on at step {steps_done:,}{self._of_all()}")
        if self._bar is not None:
            from rich.markup import escape

            self._task = self._bar.add_task(
                escape(self._counted(what)), total=total_steps or None, completed=steps_done
            )

    def advanced(self, steps_done: int) -> None:
        """It has made so many steps."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=steps_done)
        elif time.monotonic() - self._said_at >= _LOG_EVERY:
            self._said_at = time.monotonic()
            self.say(f"{self._counted(self._what)}: step {steps_done:,}{self._of_all()}")

    def _of_all(self) -> str:
        return f" of {self._total:,}" if self._total else ""

    def labelling(self, what: str, rows: int, done: int) -> None:
        """Labelling begins, or goes on at row ``done``."""
        self._what, self._total, self._said_at = what, rows, time.monotonic()
        if done:
            self.say(f"{self._counted(what)}: goes on at row {done:,} of {rows:,}")
        if self._bar is not None:
            from rich.markup import escape

            self._task = self._bar.add_task(escape(self._counted(what)), total=rows, completed=done)

    def labelled(self, done: int, rows_a_second: float) -> None:
        """So many rows are labelled, at this speed."""
        speed = f"{rows_a_second:,.0f} rows a second"
        if self._bar is not None and self._task is not None:
            from rich.markup import escape

            said = escape(f"{self._counted(self._what)}, {speed}")
            self._bar.update(self._task, completed=done, description=said)
        elif time.monotonic() - self._said_at >= _LOG_EVERY:
            from tutelage.report.words import duration

            self._said_at = time.monotonic()
            left = duration((self._total - done) / max(rows_a_second, 1e-9))
            self.say(f"{self._counted(self._what)}: {done:,} of {self._total:,} rows, {speed}, about {left} left")

    def finished(self, what: str, outcome: str) -> None:
        """It is done."""
        if self._bar is not None and self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None
        self.say(f"{self._counted(what)}: {outcome}")
        self._done += 1

    def _counted(self, what: str) -> str:
        return f"[{self._done + 1}/{self._trainings}] {what}"
