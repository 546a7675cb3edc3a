"""Rows of text divided by their content: equal rows stay together, and a row's place does not depend on the others' order."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import blake2b

from jinja2 import Environment, meta

from tutelage.data.language.conversations import Columns
from tutelage.data.language.prompts import PromptView
from tutelage.data.language.templates import Row, columns_near
from tutelage.errors import DataError


def split_rows(
    rows: Sequence[Row],
    validation: float,
    test: float = 0.0,
    seed: int = 0,
    by: str | Sequence[str] | None = None,
    read: Sequence[Row] | None = None,
) -> tuple[list[int], list[int], list[int]]:
    """Which rows are the transfer set's, the validation set's and the test set's, each in the rows' own order.

    Args:
        rows: of one table.
        validation: the fraction of the distinct rows that selects.
        test: the fraction of them that is tested on; 0 where a test set came with the data.
        seed: another seed gives another division.
        by: columns that decide what is equal (a question, whatever its answers; a patient); None for all that is read.
        read: of each row what models read (:func:`read_parts`), so that two which differ in a number beside it stay together; None for
            all columns.

    Raises:
        DataError: fractions below 0, or that leave nothing to learn from; a part that would be empty; a column that is not there.
    """
    fractions = [validation, test]
    if any(not 0 <= fraction < 1 for fraction in fractions) or sum(fractions) >= 1:
        raise DataError(
            f"split fractions {fractions} must be at least 0, and below 1 together: something must be left to learn from"
        )
    keys = row_keys(rows, by)
    if by is None and read is not None:
        keys = _joined(keys, row_keys(read))
    # ordered by a digest of seed and content, so that a row's place among equals in number hangs on nothing else
    order = sorted(set(keys), key=lambda key: (blake2b(key, key=f"split {seed}".encode(), digest_size=8).digest(), key))
    counts = [round(fraction * len(order)) for fraction in fractions]
    parts: dict[bytes, int] = {}
    for part, count in enumerate(counts, start=1):
        start = sum(counts[: part - 1])
        parts |= dict.fromkeys(order[start : start + count], part)
    found: tuple[list[int], list[int], list[int]] = ([], [], [])
    for index, key in enumerate(keys):
        found[parts.get(key, 0)].append(index)
    if any(not part and wanted > 0 for part, wanted in zip(found, [1.0, *fractions], strict=True)):
        raise DataError(
            f"{len(rows):,} rows, {len(order):,} of them different, are too few to cut into fractions {fractions}: a part would be empty"
        )
    return found


def overlapping(rows: Sequence[Row], others: Sequence[Row], by: str | Sequence[str] | None = None) -> list[int]:
    """Which of ``rows`` also stand in ``others``, by content: a student would be tested on what it was taught.

    Args:
        rows: of one table.
        others: of another.
        by: columns that decide what is equal; None for all.
    """
    known = set(row_keys(others, by))
    return [index for index, key in enumerate(row_keys(rows, by)) if key in known]


def read_parts(
    rows: Sequence[Row], views: Sequence[PromptView], columns: Columns | None = None, *, answered: bool = True
) -> list[Row]:
    """Of each row the columns that models read: those that the views' templates name, and its messages, its prompt and completion, or
    its text, as far as they are read.

    Args:
        rows: of one table.
        views: of both models.
        columns: the names of what is learnt; None for the usual ones.
        answered: whether the rows' own completions are read.

    Returns:
        Whole rows where a template names ``row``, of which it may read anything.
    """
    named = _named(views)
    if "row" in named:
        return list(rows)
    columns = columns or Columns()
    prompted = not all(view.user is not None or view.text is not None for view in views)
    return [_read(row, named, columns, prompted=prompted, answered=answered) for row in rows]


def _named(views: Sequence[PromptView]) -> set[str]:
    """What the views' templates look up."""
    own = [text for view in views for text in (view.user, view.system, view.text) if text is not None]
    shots = [text for view in views for shot in view.shots for text in shot.values()]
    environment = Environment(autoescape=False)
    return set[str]().union(
        *(meta.find_undeclared_variables(environment.parse(template)) for template in [*own, *shots])
    )


def _read(row: Row, named: set[str], columns: Columns, *, prompted: bool, answered: bool) -> Row:
    wanted = set(named)
    if prompted or answered:
        if row.get(columns.messages) is not None:
            wanted.add(columns.messages)
        else:
            pair = [columns.prompt] if prompted else []
            pair += [columns.completion] if answered else []
            wanted.update(pair if any(row.get(name) is not None for name in pair) else [columns.text])
    return {name: value for name, value in row.items() if name in wanted and value is not None}


def _joined(keys: list[bytes], groups: list[bytes]) -> list[bytes]:
    """One key for all of a group: the least, which is a row's own where it is alone, whatever else is read of it."""
    least: dict[bytes, bytes] = {}
    for key, group in zip(keys, groups, strict=True):
        least[group] = min(least.get(group, key), key)
    return [least[group] for group in groups]


def row_keys(rows: Sequence[Row], by: str | Sequence[str] | None = None) -> list[bytes]:
    """A digest of each row's content, the order of its columns aside.

    Raises:
        DataError: a column of ``by`` that a row does not have.
    """
    wanted = [by] if isinstance(by, str) else by
    keys: list[bytes] = []
    for index, row in enumerate(rows):
        for column in wanted or ():
            if column not in row:
                raise DataError(f"row {index} has no column {column!r} to be divided by; {columns_near(column, row)}")
        content = dict(row) if wanted is None else {column: row[column] for column in wanted}
        text = json.dumps(content, sort_keys=True, default=repr)
        keys.append(blake2b(text.encode(), digest_size=16).digest())
    return keys
