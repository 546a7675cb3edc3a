"""From a config's ``data`` to the texts of a study's three splits."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from functools import partial
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from tutelage.config.embedding.schema import EmbeddingConfig, EmbeddingDataSection
from tutelage.config.explaining import nearest
from tutelage.config.models import naming, user_function
from tutelage.data.language import Row, TextSource, read_rows, row_place, split_rows
from tutelage.data.sources import needed
from tutelage.errors import ConfigError, DataError
from tutelage.studies.embedding import EmbeddingData, TextSplit


class _Text(NamedTuple):
    """One text of the data: ``row`` it stands in · ``group`` whose texts answer one another · ``task`` it belongs to."""

    row: int
    text: str
    group: str | None
    task: str | None


class _Rows(NamedTuple):
    """Rows of one table: ``rows`` · ``place``, which says of one by its number where it stands."""

    rows: Sequence[Row]
    place: Callable[[int], str]


def read_texts(config: EmbeddingConfig, folder: Path) -> EmbeddingData:
    """The texts in three splits, a group always on one side.

    Args:
        config: the config.
        folder: where it lies.

    Raises:
        DataError: a source that cannot be read, a row without a text (it is named), splits that overlap, a group of one text.
        ConfigError: no test set is said or given, or two are, or overlap is to be dropped that there cannot be.
    """
    data = config.data
    with naming("data"):
        pool, given = _read(data, folder)
        _expect_test(data, given is not None)
        texts, repeated = _texts(pool, data)
        tested: list[_Text] = []
        if given is not None:
            tested, more = _texts(given, data)
            repeated += more
            texts = _apart(texts, tested, pool.place, data.splits.drop_overlap)
        texts = _drawn(texts, data.limit, data.seed)
        keys: list[Row] = [
            {"key": f"group {one.group}" if one.group is not None else f"text {one.text}"} for one in texts
        ]
        parts = split_rows(keys, data.splits.validation, data.splits.test or 0.0, data.seed)
        chosen = [[texts[place] for place in part] for part in parts]
        if given is not None:
            chosen[2] = tested
        splits = [_split(part, data) for part in chosen]
        return EmbeddingData(*splits, repeated=repeated)


def _read(data: EmbeddingDataSection, folder: Path) -> tuple[_Rows, _Rows | None]:
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
    if data.source == "csv":
        return _csv(source)
    pool, test = read_rows(source)
    rows = _Rows(pool, partial(row_place, source))
    return rows, None if test is None else _Rows(test, partial(row_place, source, of_test=True))


def _csv(source: TextSource) -> tuple[_Rows, _Rows | None]:
    pool = _csv_rows(source.folder / needed(source, "path"))  # pyright: ignore[reportArgumentType]
    return pool, None if source.test_path is None else _csv_rows(source.folder / source.test_path)


def _csv_rows(path: Path) -> _Rows:
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
    lines: list[int] = []
    try:
        for row in reader:
            if None in row or any(value is None for value in row.values()):
                raise DataError(
                    f"csv: {path}, line {reader.line_num} has another number of cells than the {len(reader.fieldnames or ()):,} columns: a "
                    "value would stand in another one's column; put texts with commas in double quotes"
                )
            rows.append({str(column): value if value != "" else None for column, value in row.items()})
            lines.append(reader.line_num)
    except csv.Error as error:
        raise DataError(f"csv: {path}, line {reader.line_num}: {error}; mend it there") from error
    if not rows:
        raise DataError(f"csv: {path} holds no rows; expected a line of column names, and a row a line below it")
    return _Rows(rows, lambda number: f"{path}, line {lines[number]}")


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
    if data.splits.drop_overlap and not given:
        raise ConfigError(
            "splits.drop_overlap is true, and the source brings no test set of its own: parts of one division share no text and no group, "
            "so nothing would be taken out of anything; leave it out, or name the test set that was meant"
        )


def _texts(given: _Rows, data: EmbeddingDataSection) -> tuple[list[_Text], int]:
    """Each different text with its group and task, and how many stood there already."""
    found: list[_Text] = []
    seen: set[str] = set()
    repeated = 0
    for number, row in enumerate(given.rows):
        place = partial(given.place, number)
        text = _column(row, data.text, place, "text")
        if not isinstance(text, str) or not text.strip():
            got = "null" if text is None else f"a {type(text).__name__}" if not isinstance(text, str) else "empty"
            raise DataError(
                f"{place()}, column {data.text!r}: the text is {got}: a model would be taught from padding alone; leave the row out"
            )
        if text in seen:
            repeated += 1
            continue
        seen.add(text)
        group = _name(row, data.groups, place, "groups")
        task = _name(row, data.tasks, place, "tasks")
        if data.tasks is not None and task is None:
            raise DataError(
                f"{place()}, column {data.tasks!r}: its task is null, and its results would be listed nowhere; give every row a task"
            )
        if task is not None and task.isdecimal():
            task = f"{data.tasks} {task}"  # a bare number on a page is no name
        found.append(_Text(number, text, group, task))
    return found, repeated


def _column(row: Row, column: str, place: Callable[[], str], key: str) -> Any:
    if column not in row:
        raise DataError(
            f"{place()} has no column {column!r}, which data.{key} names{nearest(column, list(row))}; it has {', '.join(row) or 'none'}"
        )
    return row[column]


def _name(row: Row, column: str | None, place: Callable[[], str], key: str) -> str | None:
    if column is None:
        return None
    value = _column(row, column, place, key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise DataError(
            f"{place()}, column {column!r} holds a {type(value).__name__}, expected a text or a whole number, whose equals belong "
            "together; convert it"
        )
    return str(value)


def _apart(texts: list[_Text], tested: Sequence[_Text], place: Callable[[int], str], drop: bool) -> list[_Text]:
    """The texts that stand in no given test set, nor belong to one of its groups."""
    words, groups = {one.text for one in tested}, {one.group for one in tested} - {None}
    shared = [one for one in texts if one.text in words or one.group in groups]
    if shared and not drop:
        raise DataError(
            f"{len(shared):,} of {len(texts):,} texts also stand in the test set, or belong to one of its groups, the first in "
            f"{place(shared[0].row)}: the student would be tested on what it was taught; take them out with splits.drop_overlap: true"
        )
    gone = {one.row for one in shared}
    return [one for one in texts if one.row not in gone]


def _drawn(texts: list[_Text], limit: int | None, seed: int) -> list[_Text]:
    """At most so many of the texts, drawn by their content, in their own order; of a group two at least, which answer each other."""
    if limit is None or len(texts) <= limit:
        return texts

    def rank(some: Sequence[_Text]) -> bytes:
        content = "\n".join(one.text for one in some).encode(errors="surrogatepass")
        return blake2b(content, key=f"limit {seed}".encode(), digest_size=8).digest()

    groups: dict[str | int, list[_Text]] = {}
    for one in texts:
        groups.setdefault(one.row if one.group is None else one.group, []).append(one)
    units: list[Sequence[_Text]] = []
    for members in groups.values():
        drawn = sorted(members, key=lambda one: rank([one]))
        starts = range(0, max(len(drawn) - 1, 1), 2)
        units += [drawn[start:end] for start, end in pairwise([*starts, len(drawn)])]
    kept: set[int] = set()
    for unit in sorted(units, key=rank):
        if len(kept) + len(unit) > limit:
            break
        kept |= {one.row for one in unit}
    if not kept:
        raise DataError(f"data.limit is {limit}: not one group of texts fits, of which at least two are kept; raise it")
    return [one for one in texts if one.row in kept]


def _split(part: Sequence[_Text], data: EmbeddingDataSection) -> TextSplit:
    return TextSplit(
        texts=[one.text for one in part],
        groups=[one.group for one in part] if data.groups is not None else None,
        tasks=[one.task or "" for one in part] if data.tasks is not None else None,
    )
