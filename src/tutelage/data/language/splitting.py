"""Rows of text divided by their content: equal rows stay together, and a row's place does not depend on the others' order."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import blake2b

from tutelage.data.language.templates import Row, columns_near
from tutelage.errors import DataError


def split_rows(
    rows: Sequence[Row],
    validation: float,
    test: float = 0.0,
    seed: int = 0,
    by: str | Sequence[str] | None = None,
) -> tuple[list[int], list[int], list[int]]:
    """Which rows are the transfer set's, the validation set's and the test set's, each in the rows' own order.

    Args:
        rows: of one table.
        validation: the fraction of the distinct rows that selects.
        test: the fraction of them that is tested on; 0 where a test set came with the data.
        seed: another seed gives another division.
        by: columns that decide what is equal (a question, whatever its answers; a patient); None for all columns.

    Raises:
        DataError: fractions below 0, or that leave nothing to learn from; a part that would be empty; a column that is not there.
    """
    fractions = [validation, test]
    if any(not 0 <= fraction < 1 for fraction in fractions) or sum(fractions) >= 1:
        raise DataError(
            f"split fractions {fractions} must be at least 0, and below 1 together: something must be left to learn from"
        )
    keys = row_keys(rows, by)
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
