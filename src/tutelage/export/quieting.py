"""Packages that print and log of their own workings, kept off the terminal for a while."""

from __future__ import annotations

import io
import logging
from collections.abc import Generator
from contextlib import contextmanager, redirect_stderr, redirect_stdout


@contextmanager
def silenced(*packages: str) -> Generator[None]:
    """Drop what is printed meanwhile and what these packages log, and take the log handlers out again that were added.

    Args:
        packages: by the first part of their loggers' names.
    """
    root = logging.getLogger()
    handlers = list(root.handlers)
    known = [name for name in root.manager.loggerDict if name.split(".")[0] in packages]
    loggers = [logging.getLogger(name) for name in {*packages, *known}]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for handler in set(root.handlers) - set(handlers):
            root.removeHandler(handler)  # executorch calls logging.basicConfig, which is the application's to call
