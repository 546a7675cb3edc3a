"""Templates over a row's columns: what a model is asked is written once, and filled in for each example."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError, TemplateSyntaxError, UndefinedError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tutelage.errors import ConfigError, DataError

#: A row of a table: its columns by name.
Row = Mapping[str, Any]


class _NoValueError(ValueError):
    """A template wrote something that is no value."""


def _written(value: Any) -> Any:
    """A null would be written as the word None, and a NaN as nan, which a model reads as any other word."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise _NoValueError("null" if value is None else "NaN")
    return value


_environment = ImmutableSandboxedEnvironment(
    undefined=StrictUndefined, finalize=_written, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
)


@lru_cache(maxsize=256)
def _compiled(template: str) -> Template:
    return _environment.from_string(template)


def check_template(template: str, where: str) -> None:
    """Refuse a template that can never be filled in.

    Args:
        template: jinja2.
        where: its key in the config, for the message.

    Raises:
        ConfigError: it is no text, or its syntax is wrong.
    """
    if not isinstance(template, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(
            f"{where} is a {type(template).__name__}, expected a text such as '{{{{ question }}}}', the row's column in braces"
        )
    try:
        _compiled(template)
    except TemplateSyntaxError as error:
        raise ConfigError(
            f"{where}, line {error.lineno}: {error.message}; columns are written as {{{{ name }}}}, and braces that shall stay as "
            "{{ '{{' }}"
        ) from error


def fill(template: str, row: Row, index: int, where: str) -> str:
    """The template with a row's columns in it; ``row`` is the row itself, for names that are no identifiers.

    Args:
        template: jinja2, run in a sandbox.
        row: the columns by name.
        index: which row, for the message.
        where: the template's key, for the message.

    Raises:
        DataError: the template names a column that is not there, writes a null, or fails.
    """
    try:
        return _compiled(template).render({"row": row, **row})
    except UndefinedError as error:
        raise DataError(f"{where}, row {index}: {error.message}; {columns_near(str(error.message), row)}") from error
    except _NoValueError as error:
        raise DataError(
            f"{where}, row {index}: a column that the template writes is {error}, and the model would read the word; fill it in, drop "
            "the row, or write {{ column or '' }}"
        ) from error
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise DataError(
            f"{where}, row {index}: the template cannot be filled in: {type(error).__name__}: {error}"
        ) from error


def columns_near(wanted: str, row: Row) -> str:
    """Which columns there are, and the one that a mistaken name, bare or quoted in a message, may have meant."""
    name = wanted.split("'")[1] if wanted.count("'") >= 2 else wanted
    near = difflib.get_close_matches(name, list(row), n=1, cutoff=0.6)
    there = f"the columns are {', '.join(row)}" if row else "the row has no columns"
    return f"did you mean {near[0]!r}? ({there})" if near else there


def some(names: Sequence[object], count: int = 5) -> str:
    """The first few of them, in words."""
    shown = ", ".join(str(name) for name in names[:count])
    return f"{shown} and {len(names) - count:,} more" if len(names) > count else shown
