"""Rows of text as they are read, and what is refused, with the line."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from tutelage.data.language import TextSource, read_rows, rows_from_dataset
from tutelage.errors import DataError

ROWS = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}]


def jsonl(folder: Path, content: bytes, name: str = "rows.jsonl") -> TextSource:
    (folder / name).write_bytes(content)
    return TextSource("jsonl", path=name, folder=folder)


def lines(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def test_jsonl_with_a_byte_order_mark_blank_lines_and_carriage_returns(tmp_path: Path) -> None:
    """Files from other systems would be refused at line 1, or give a column that no one can name."""
    content = b"\xef\xbb\xbf" + lines(ROWS[:1]).replace(b"\n", b"\r\n") + b"\r\n\n" + lines(ROWS[1:])
    assert read_rows(jsonl(tmp_path, content)) == (ROWS, None)


def test_a_line_separator_inside_a_text_ends_no_line(tmp_path: Path) -> None:
    """U+2028 stands unescaped in many web texts; cut there, two halves of a row are no JSON."""
    rows = [{"text": "one\u2028two\u0085three\x0cfour"}]
    assert read_rows(jsonl(tmp_path, lines(rows))) == (rows, None)


def test_several_files_in_their_names_order_and_a_test_set(tmp_path: Path) -> None:
    """In the file system's order, another machine's rows would have other numbers."""
    jsonl(tmp_path, lines(ROWS[1:]), "part-2.jsonl")
    (tmp_path / "part-1.jsonl.gz").write_bytes(gzip.compress(lines(ROWS[:1])))
    jsonl(tmp_path, lines(ROWS[:1]), "test.jsonl")
    source = TextSource("jsonl", path="part-*", test_path="test.jsonl", folder=tmp_path)
    assert read_rows(source) == (ROWS, ROWS[:1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lines(ROWS) + b'{"prompt": "cut', r"line 3 is no JSON: Unterminated string.*cut short"),
        (b'\n{"a": 1}\n"text"\n', "line 3 holds a str, expected an object"),
        (b'{"a": "\xff"}\n', "line 1: byte 8 is not UTF-8"),
        (b"", "holds no rows"),
        (b"\xef\xbb\xbf\n \n", "holds no rows"),
        (b'[\n{"a": 1}\n]\n', "line 1 is no JSON.*one JSON value over many lines"),
        (b'{"a": 1, "b": NaN}\n', "line 1 is no JSON: NaN"),
        (b'{"a": 1, "a": 2}\n', "line 1 is no JSON: .*'a' stands twice"),
    ],
)
def test_a_broken_jsonl_is_refused_with_its_line(tmp_path: Path, content: bytes, message: str) -> None:
    """A line left out in silence is an example lost, and a file half written would pass for a whole one."""
    with pytest.raises(DataError, match=message):
        read_rows(jsonl(tmp_path, content))


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    """What gzip could still read would pass for all there is."""
    with pytest.raises(DataError, match="cut short"):
        read_rows(jsonl(tmp_path, gzip.compress(lines(ROWS))[:-9], "rows.jsonl.gz"))


def test_parquet_rows_with_classes_by_name(tmp_path: Path) -> None:
    """A template would write the number of a class, which says nothing to a model."""
    kinds = datasets.Features(
        {"gloss": datasets.Value("string"), "kind": datasets.ClassLabel(names=["animal", "food"])}
    )
    table = datasets.Dataset.from_dict({"gloss": ["a dog", "a pear", "?"], "kind": [0, 1, None]}, features=kinds)
    table.to_parquet(tmp_path / "rows.parquet")
    rows, test = read_rows(TextSource("parquet", path="rows.parquet", test_path="rows.parquet", folder=tmp_path))
    assert rows == test == rows_from_dataset(table)
    assert [row["kind"] for row in rows] == ["animal", "food", None]


def test_parquet_that_is_none_and_parquet_without_rows_are_refused(tmp_path: Path) -> None:
    """An empty table would end much later, in a study of nothing."""
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(DataError, match="cannot be read"):
        read_rows(TextSource("parquet", path="bad.parquet", folder=tmp_path))
    datasets.Dataset.from_dict({"text": []}).to_parquet(tmp_path / "none.parquet")
    with pytest.raises(DataError, match="holds no rows"):
        read_rows(TextSource("parquet", path="none.parquet", folder=tmp_path))


def test_a_folder_as_the_hub_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's road would only be known to work where there is a hub."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for split, rows in (("train", ROWS), ("test", ROWS[:1])):
        (tmp_path / "set").mkdir(exist_ok=True)
        (tmp_path / "set" / f"{split}.jsonl").write_bytes(lines(rows))
    found = read_rows(TextSource("hub", path="set", test_split="test", folder=tmp_path))
    assert found == (ROWS, ROWS[:1])
    with pytest.raises(DataError, match="split 'nowhere'"):
        read_rows(TextSource("hub", path="set", split="nowhere", folder=tmp_path))


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (ROWS, (ROWS, None)),
        ((ROWS, ROWS[:1]), (ROWS, ROWS[:1])),
        (iter(ROWS), (ROWS, None)),
        (datasets.Dataset.from_list(ROWS), (ROWS, None)),
    ],
)
def test_rows_from_a_function(made: Any, expected: Any) -> None:
    """A pair would be taken for two rows, or a data set for no list."""
    assert read_rows(TextSource("python", make=lambda: made)) == expected


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: "text", "returned a str"),
        (lambda: ["text"], "row 0 is a str"),
        (lambda: [{1: "a"}], "row 0 is a dict"),
        (list, "holds no rows"),
        (None, "give 'python: file.py:function'"),
    ],
)
def test_a_function_that_returns_no_rows_is_refused(make: Callable[[], Any] | None, message: str) -> None:
    """Letters of a text would be taken for rows."""
    with pytest.raises(DataError, match=message):
        read_rows(TextSource("python", make=make))


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    """A mistyped file or source would end in a traceback."""
    with pytest.raises(DataError, match=r"no file matches .*rows\.jsonl"):
        read_rows(TextSource("jsonl", path="rows.jsonl", folder=tmp_path))
    with pytest.raises(DataError, match="needs the key 'path'"):
        read_rows(TextSource("parquet"))
    with pytest.raises(DataError, match=r"unknown source of texts 'csv'; there are jsonl, parquet"):
        read_rows(TextSource("csv"))
