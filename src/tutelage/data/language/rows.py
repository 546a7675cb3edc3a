"""Rows of text: JSONL, Parquet, the hub, or a function of the user's, each row a mapping from column to value."""

from __future__ import annotations

import glob
import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tutelage.data.language.templates import Row
from tutelage.data.sources import datasets_package, needed
from tutelage.errors import DataError

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True)
class TextSource:
    """A source of rows by name, with what it needs.

    Args:
        source: one of ``jsonl``, ``parquet``, ``hub``, ``python``.
        path: ``jsonl`` and ``parquet``: a file, or a pattern of several, gzipped or not where it is JSONL; ``hub``: a data set's id
            or folder.
        test_path: ``jsonl`` and ``parquet``: the file of a test set that comes with the data.
        name: ``hub``: the configuration of the data set.
        revision: ``hub``: the revision (a commit hash pins it).
        split: ``hub``: the split to take from.
        test_split: ``hub``: the split that is the test set, if there is one.
        folder: what relative paths are relative to.
        make: ``python``: the function that returns rows (mappings, or a ``datasets.Dataset``), or a pair with the test set's.
    """

    source: str
    path: str | None = None
    test_path: str | None = None
    name: str | None = None
    revision: str | None = None
    split: str = "train"
    test_split: str | None = None
    folder: Path = Path()
    make: Callable[[], Any] | None = None


#: The rows to divide, and those of the test set that came with them, if one did.
Read = tuple[list[Row], list[Row] | None]


def read_rows(source: TextSource) -> Read:
    """Read a source into memory.

    Raises:
        DataError: an unknown source, a missing, empty or damaged file (the line is named), rows that are no mappings.
        MissingExtraError: the source needs a package that is not installed.
    """
    if source.source not in TEXT_SOURCES:
        raise DataError(f"unknown source of texts {source.source!r}; there are {', '.join(TEXT_SOURCES)}")
    return TEXT_SOURCES[source.source](source)


def row_place(source: TextSource, number: int, *, of_test: bool = False) -> str:
    """Where a row stands, for messages: the line of its file where rows are lines of JSON, else its number.

    Args:
        source: it was read from.
        number: its place among the rows that :func:`read_rows` gave, from 0.
        of_test: whether among those of the test set.
    """
    path = source.test_path if of_test else source.path
    if source.source == "jsonl" and path is not None:
        lines = ((file, line) for file in _files(source, path) for line, _ in _lines(file))
        file, line = next(islice(lines, number, None))
        return f"{file}, line {line}"
    return f"row {number} (counted from 0){' of the test set' if of_test else ''}"


def rows_from_dataset(dataset: datasets.Dataset) -> list[Row]:
    """The rows of a Hugging Face ``datasets.Dataset``; the number of a class becomes its name, and -1 (none known) null."""
    dataset = dataset.with_format(None)
    names = {column: kind.names for column, kind in dataset.features.items() if getattr(kind, "names", None)}
    rows: list[dict[str, Any]] = dataset.to_list()
    for column, classes in names.items():
        for row in rows:
            number = row[column]
            row[column] = classes[number] if isinstance(number, int) and 0 <= number < len(classes) else None
    return list(rows)


def _jsonl(source: TextSource) -> Read:
    def read(path: str) -> list[Row]:
        return [row for file in _files(source, path) for row in _read_jsonl(file)]

    return read(needed(source, "path")), None if source.test_path is None else read(source.test_path)


def _read_jsonl(path: Path) -> list[Row]:
    rows = [_row(line, f"jsonl: {path}, line {number}", first=number == 1) for number, line in _lines(path)]
    if not rows:
        raise DataError(f"jsonl: {path} holds no rows; give a file with one JSON object a line")
    return rows


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not empty, each with its number from 1."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"jsonl: {path} cannot be read: {error}; it may be cut short, copy it again") from error
    # by bytes: str.splitlines also ends a line at U+2028 and its like, which stand in texts as they are
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if line.strip():
            yield number, line


def _row(line: bytes, where: str, *, first: bool) -> Row:
    try:
        row = json.loads(line.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_once_each)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: byte {error.start + 1} is not UTF-8 ({error.reason}); save the file as UTF-8"
        ) from error
    except ValueError as error:
        why = str(error)
        if first and line.strip() in (b"[", b"{"):
            why = "the file seems to be one JSON value over many lines, expected one object a line; write it anew so"
        elif isinstance(error, json.JSONDecodeError):
            why = f"{error.msg} at column {error.colno}; the line may be cut short: mend it, or take it out"
        raise DataError(f"{where} is no JSON: {why}") from error
    if not isinstance(row, dict):
        raise DataError(
            f"{where} holds a {type(row).__name__}, expected an object with the columns by name, such as "
            '{"prompt": "…", "completion": "…"}'
        )
    return cast("Row", row)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is a word of Python's and not of JSON's; write null where a number is not known")


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key in found if sum(key == other for other, _ in pairs) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object, and one of its values would be lost")
    return found


def _parquet(source: TextSource) -> Read:
    datasets = datasets_package("data source 'parquet'")
    import pyarrow as pa
    import pyarrow.parquet as pq

    def read(path: str) -> list[Row]:
        found = _files(source, path)
        try:
            # read here and not by from_parquet, which keeps a copy in a cache and takes a path for a pattern
            table = datasets.Dataset(pa.concat_tables([pq.ParquetFile(name).read() for name in found]))
        except Exception as error:
            raise DataError(f"parquet: {', '.join(map(str, found))} cannot be read: {error}") from error
        return _some_rows(rows_from_dataset(table), f"parquet: {', '.join(map(str, found))}")

    return read(needed(source, "path")), None if source.test_path is None else read(source.test_path)


def _hub(source: TextSource) -> Read:
    datasets = datasets_package("data source 'hub'")
    path = needed(source, "path")
    local = source.folder / path

    def read(split: str) -> list[Row]:
        try:
            rows = datasets.load_dataset(
                str(local) if local.is_dir() else path, source.name, split=split, revision=source.revision
            )
        except Exception as error:
            raise DataError(
                f"hub: {path!r} (split {split!r}) could not be loaded: {error}. Expected a data set's id (reachable, or already in "
                "the cache when offline) or a folder of data files"
            ) from error
        return _some_rows(rows_from_dataset(rows), f"hub: {path!r} (split {split!r})")

    return read(source.split), None if source.test_split is None else read(source.test_split)


def _python(source: TextSource) -> Read:
    if source.make is None:
        raise DataError("python: give 'python: file.py:function' beside 'source: python'")
    made = source.make()
    pool, test = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    return _rows_of(pool), None if test is None else _rows_of(test)


def _rows_of(made: Any) -> list[Row]:
    if hasattr(made, "features") and hasattr(made, "with_format"):
        return _some_rows(rows_from_dataset(made), "python: the data set that the function returned")
    if isinstance(made, str | Mapping) or not isinstance(made, Iterable):
        raise DataError(
            f"python: the function returned a {type(made).__name__}, expected a list of rows, each a mapping from column to value, or "
            "a pair of lists with the test set's"
        )
    rows: list[Any] = list(made)
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping) or not all(isinstance(column, str) for column in row):
            raise DataError(
                f"python: row {index} is a {type(row).__name__}, expected a mapping from column names to values, such as "
                "{'prompt': '…', 'completion': '…'}"
            )
    return _some_rows(rows, "python: the list that the function returned")


def _some_rows(rows: list[Row], what: str) -> list[Row]:
    if not rows:
        raise DataError(f"{what} holds no rows: there is nothing to learn from")
    return rows


def _files(source: TextSource, path: str) -> list[Path]:
    literal = source.folder / path
    names = glob.glob(path, root_dir=source.folder, recursive=True)
    found = [literal] if literal.is_file() else sorted(source.folder / name for name in names)
    found = [file for file in found if file.is_file()]
    if not found:
        raise DataError(
            f"{source.source}: no file matches {literal}; give a file, or a pattern such as train-*.{source.source}"
        )
    return found


TEXT_SOURCES: dict[str, Callable[[TextSource], Read]] = {
    "jsonl": _jsonl,
    "parquet": _parquet,
    "hub": _hub,
    "python": _python,
}
