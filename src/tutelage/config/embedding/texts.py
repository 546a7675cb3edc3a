"""From a config's ``data`` to the texts of a study's three splits."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tutelage.config.embedding.schema import EmbeddingConfig, EmbeddingDataSection
from tutelage.config.explaining import nearest
from tutelage.config.models import naming, user_function
from tutelage.data.language import Row, TextSource, read_rows, split_rows
from tutelage.data.sources import needed
from tutelage.errors import ConfigError, DataError
from tutelage.studies.embedding import EmbeddingData, TextSplit


class _Text(NamedTuple):
    """One text of the data: ``row`` it stands in · ``group`` whose texts answer one another · ``task`` it belongs to."""

    row: int
    text: str
    group: str | None
    task: str | None


def read_texts(config: EmbeddingConfig, folder: Path) -> EmbeddingData:
    """The texts in three splits, a group always on one side.

    Args:
        config: the config.
        folder: where it lies.

    Raises:
        DataError: a source that cannot be read, a row without a text (it is named), splits that overlap, a group of one text.
        ConfigError: no test set is said or given, or two are.
    """
    data = config.data
    with naming("data"):
        pool, given = _read(data, folder)
        _expect_test(data, given is not None)
        texts, repeated = _texts(pool[: data.limit], data, set())
        tested: list[_Text] = []
        if given is not None:
            tested, more = _texts(given, data, set())
            repeated += more
            texts = _apart(texts, tested, data.splits.drop_overlap)
        keys: list[Row] = [
            {"key": f"group {one.group}" if one.group is not None else f"text {one.text}"} for one in texts
        ]
        parts = split_rows(keys, data.splits.validation, data.splits.test or 0.0, data.seed)
        chosen = [[texts[place] for place in part] for part in parts]
        if given is not None:
            chosen[2] = tested
        splits = [_split(part, data) for part in chosen]
        return EmbeddingData(*splits, repeated=repeated)


def _read(data: EmbeddingDataSection, folder: Path) -> tuple[list[Row], list[Row] | None]:
    make = user_function(data.python, folder, "data.python", 0) if data.python is not None else None
    source = TextSource(
        source=data.source,
        path=data.path,
        test_path=data.test_path,
        name=data.name,
        revision=data.revision,
        split=data.split or "train",
        test_split=data.test_split,
        folder=folder,
        make=make,
    )
    return _csv(source) if data.source == "csv" else read_rows(source)


def _csv(source: TextSource) -> tuple[list[Row], list[Row] | None]:
    pool = _csv_rows(source.folder / needed(source, "path"))  # pyright: ignore[reportArgumentType]
    return pool, None if source.test_path is None else _csv_rows(source.folder / source.test_path)


def _csv_rows(path: Path) -> list[Row]:
    """Rows of a file with a line of column names; an empty cell is null.

    Raises:
        DataError: it is not there, no UTF-8, has no rows, or a row has more cells than there are columns (the line is named).
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"csv: there is no file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"csv: {path} cannot be read: {error}; expected text in UTF-8") from error
    reader = csv.DictReader(io.StringIO(text), delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
    rows: list[Row] = []
    try:
        for row in reader:
            if None in row or any(value is None for value in row.values()):
                raise DataError(
                    f"csv: {path}, line {reader.line_num} has another number of cells than the {len(reader.fieldnames or ()):,} columns: a "
                    "value would stand in another one's column; put texts with commas in double quotes"
                )
            rows.append({str(column): value if value != "" else None for column, value in row.items()})
    except csv.Error as error:
        raise DataError(f"csv: {path}, line {reader.line_num}: {error}; mend it there") from error
    if not rows:
        raise DataError(f"csv: {path} holds no rows; expected a line of column names, and a row a line below it")
    return rows


def _expect_test(data: EmbeddingDataSection, given: bool) -> None:
    if data.splits.test is None and not given:
        raise ConfigError(
            "splits.test is missing, and the source brings no test set of its own: give a fraction, e.g. 0.2"
        )
    if data.splits.test is not None and given:
        raise ConfigError(
            f"splits.test is {data.splits.test}, but the source brings a test set of its own: leave the fraction out to use it, or name "
            "only the training part"
        )


def _texts(rows: Sequence[Row], data: EmbeddingDataSection, seen: set[str]) -> tuple[list[_Text], int]:
    """Each different text with its group and task, and how many stood there already."""
    found: list[_Text] = []
    repeated = 0
    for number, row in enumerate(rows):
        text = _column(row, data.text, number, "text")
        if not isinstance(text, str) or not text.strip():
            got = "null" if text is None else f"a {type(text).__name__}" if not isinstance(text, str) else "empty"
            raise DataError(
                f"row {number}, column {data.text!r}: the text is {got}: a model would be taught from padding alone; leave the row out"
            )
        if text in seen:
            repeated += 1
            continue
        seen.add(text)
        group = _name(row, data.groups, number, "groups")
        task = _name(row, data.tasks, number, "tasks")
        if data.tasks is not None and task is None:
            raise DataError(
                f"row {number}, column {data.tasks!r}: its task is null, and its results would be listed nowhere; give every row a task"
            )
        found.append(_Text(number, text, group, task))
    return found, repeated


def _column(row: Row, column: str, number: int, key: str) -> Any:
    if column not in row:
        raise DataError(
            f"row {number} has no column {column!r}, which data.{key} names{nearest(column, list(row))}; it has {', '.join(row) or 'none'}"
        )
    return row[column]


def _name(row: Row, column: str | None, number: int, key: str) -> str | None:
    if column is None:
        return None
    value = _column(row, column, number, key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise DataError(
            f"row {number}, column {column!r} holds a {type(value).__name__}, expected a text or a whole number, whose equals belong "
            "together; convert it"
        )
    return str(value)


def _apart(texts: list[_Text], tested: Sequence[_Text], drop: bool) -> list[_Text]:
    """The texts that stand in no given test set, nor belong to one of its groups."""
    words, groups = {one.text for one in tested}, {one.group for one in tested} - {None}
    shared = [one for one in texts if one.text in words or one.group in groups]
    if shared and not drop:
        raise DataError(
            f"{len(shared):,} of {len(texts):,} texts also stand in the test set, or belong to one of its groups, the first in row "
            f"{shared[0].row}: the student would be tested on what it was taught; take them out with splits.drop_overlap: true"
        )
    gone = {one.row for one in shared}
    return [one for one in texts if one.row not in gone]


def _split(part: Sequence[_Text], data: EmbeddingDataSection) -> TextSplit:
    return TextSplit(
        texts=[one.text for one in part],
        groups=[one.group for one in part] if data.groups is not None else None,
        tasks=[one.task or "" for one in part] if data.tasks is not None else None,
    )
