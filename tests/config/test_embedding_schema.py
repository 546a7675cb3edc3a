"""An encoder's config: every mistake is one message, and senseless combinations are named before torch is loaded."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tutelage.config import EmbeddingConfig, load_config
from tutelage.config.embedding.checking import arms_of, check_embedding_config
from tutelage.config.embedding.texts import read_texts
from tutelage.config.reading import load_classifier_config
from tutelage.config.searching import set_key
from tutelage.errors import ConfigError, DataError
from tutelage.studies.yaml_text import to_yaml

BASE: dict[str, Any] = {
    "task": "embedding",
    "data": {"source": "jsonl", "path": "texts.jsonl", "groups": "group", "splits": {"test": 0.2, "validation": 0.2}},
    "teacher": {"model": {"hub": "teacher"}},
    "student": {"from": "teacher", "layers": 3},
    "training": {"max_steps": 2},
}


def changed(**keys: Any) -> dict[str, Any]:
    """The config with dotted keys set (``__`` for the dot)."""
    data = copy.deepcopy(BASE)
    for dotted, value in keys.items():
        set_key(data, dotted.replace("__", "."), value)
    return data


def mistake(**keys: Any) -> str:
    with pytest.raises(ConfigError) as refused:
        check_embedding_config(changed(**keys), "here.yaml")
    return str(refused.value)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"stage": {"training": {}}}, ["stage is for task: classification"]),
        ({"stage": {}, "data__sauce": 1}, ["stage is for task: classification", "unknown key 'data.sauce'"]),
        ({"data__sauce": 1}, ["unknown key 'data.sauce'", "did you mean 'source'?"]),
        ({"data__source": "cvs"}, ["unknown data source 'cvs'", "did you mean 'csv'?"]),
        ({"data__path": None}, ["data.path is missing"]),
        ({"data__split": "train"}, ["data.split does nothing with the source 'jsonl'"]),
        ({"data__groups": "text"}, ["data.groups is 'text', the column of the texts"]),
        ({"data__max_length": 1}, ["data.max_length is 1, expected at least 2"]),
        ({"teacher": {}}, ["'teacher.model' is missing", "hub: folder-or-id"]),
        ({"student": {}}, ["student has neither model nor from"]),
        ({"student__model": {"hub": "x"}}, ["student has model beside from: teacher"]),
        ({"student__tokenizer": "x"}, ["student.tokenizer beside from: teacher"]),
        ({"student__layers": "frist:2"}, ["student.layers is 'frist:2'", "did you mean 'first'?"]),
        ({"student__layers": [2, 0]}, ["expected rising numbers"]),
        ({"student__static": {"width": 8}}, ["student.static beside layers"]),
        ({"student": {"model": {"hub": "x"}, "static": {}}}, ["say from: teacher in the place of model"]),
        ({"student": {"model": {"hub": "x"}, "initial": "random"}}, ["student.initial says how a student made of"]),
        ({"student__layer": 2}, ["unknown key 'student.layer'", "did you mean 'layers'?"]),
        ({"training__lr": 1e-3}, ["training.lr is not an argument", "did you mean 'learning_rate'?"]),
        ({"study__arms": ["kd", "untuched"]}, ["no arm 'untuched'", "did you mean 'untouched'?"]),
        ({"study__arms": ["untouched"]}, ["'kd', which the verdict is about, is missing"]),
        ({"study__arms": ["kd", {"kd": []}]}, ["'kd' is there twice"]),
        ({"study__arms": ["kd", {"mse": {"objectiv": []}}]}, ["unknown key 'study.arms.mse.objectiv'"]),
        ({"study__arms": ["kd", {"mse": {}}]}, ["'mse' says nothing that differs from kd"]),
        ({"study__arms": ["kd", {"s": {"student": {"layers": 2}}}]}, ["'s', student has neither model nor from"]),
        ({"study__seeds": [1, 1]}, ["expected different seeds"]),
        ({"retrieval": {"k": [10, 1]}}, ["retrieval.k is [10, 1], expected rising"]),
        ({"retrieval": {"k": [1]}, "data__groups": None}, ["retrieval is there, and data.groups is not"]),
        ({"gates": {"recall_drop": 0.1}, "data__groups": None}, ["gates.recall_drop asks", "data.groups is not there"]),
        ({"gates": {"worst_task_drop": 0.1}}, ["gates.worst_task_drop asks", "data.tasks is not there"]),
        (
            {"gates": {"gain_over_untouched": 0.1}, "study__arms": ["kd"]},
            ["gates.gain_over_untouched is there, and the arm untouched is not"],
        ),
        ({"gates": {"spearmen": 0.9}}, ["unknown key 'gates.spearmen'", "did you mean 'spearman'?"]),
    ],
)
def test_a_mistake_is_one_message(keys: Any, said: list[str]) -> None:
    found = mistake(**keys)
    for words in said:
        assert words in found, found


def test_what_was_resolved_is_read_again(tmp_path: Path) -> None:
    """The config.yaml that a run leaves must run again, also where a default gate had nothing to ask."""
    for keys in ({}, {"data__groups": None, "study__arms": ["kd", {"mse": [{"term": "embedding_mse"}]}]}):
        config = check_embedding_config(changed(**keys), "here")
        (tmp_path / "config.yaml").write_text(to_yaml(config.resolved()))
        again = load_config(tmp_path / "config.yaml")
        assert isinstance(again, EmbeddingConfig)
        assert again == config
        assert again.objective == [{"term": "embedding_cosine"}]
    assert again.gates.recall_drop is None
    assert again.gates.gain_over_untouched is None
    standard, own = arms_of(again)
    assert standard == ["kd"]
    assert own["mse"].objective == [{"term": "embedding_mse"}]


def test_other_commands_say_what_it_is_about(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(to_yaml(BASE))
    with pytest.raises(ConfigError, match=r"a sentence encoder \(task: embedding\), and this works on classifiers"):
        load_classifier_config(tmp_path / "config.yaml", instead="use run")


def test_checking_loads_no_torch(tmp_path: Path) -> None:
    """A typing mistake would take seconds to be told."""
    (tmp_path / "config.yaml").write_text(to_yaml(BASE))
    code = (
        "import sys; from pathlib import Path; from tutelage.config.embedding.checking import check_embedding_config as c; "
        "from tutelage.config.reading import read_yaml; "
        "import tutelage.config.embedding.schema; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def rows(count: int = 20) -> list[dict[str, Any]]:
    return [{"text": f"text {number}", "group": number // 2, "task": "ab"[number % 2]} for number in range(count)]


def read(folder: Path, given: Any, *, test: Any = None, suffix: str = "jsonl", **keys: Any) -> Any:
    for name, part in (("texts", given), ("tests", test)):
        if isinstance(part, str):
            (folder / f"{name}.{suffix}").write_text(part)
        elif part is not None:
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return read_texts(check_embedding_config(changed(**keys), "here"), folder)


def test_a_group_stays_on_one_side(tmp_path: Path) -> None:
    """The student would be taught one of two texts that answer each other, and be asked the other."""
    found = read(tmp_path, rows(), data__tasks="task")
    parts = [set(part.groups) for part in found.splits.values()]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert [len(part) for part in found.splits.values()] == [12, 4, 4]
    assert found.train.tasks is not None
    assert set(found.train.tasks) == {"a", "b"}
    doubled = read(tmp_path, [*rows(), rows()[3], rows()[5]])
    assert doubled.repeated == 2
    assert sorted(text for part in doubled.splits.values() for text in part.texts) == sorted(r["text"] for r in rows())


@pytest.mark.parametrize(
    ("given", "keys", "said"),
    [
        ([*rows(), {"text": " ", "group": 1}], {}, "texts.jsonl, line 21, column 'text': the text is empty"),
        ([*rows(), {"text": None, "group": 1}], {}, "texts.jsonl, line 21, column 'text': the text is null"),
        ([*rows(), {"text": 7, "group": 1}], {}, "the text is a int"),
        (
            [*rows(), {"txt": "x", "group": 1}],
            {},
            "line 21 has no column 'text', which data.text names; did you mean 'txt'",
        ),
        ([*rows(), {"text": "x"}], {}, "line 21 has no column 'group', which data.groups names"),
        ([*rows(), {"text": "x", "group": [1]}], {}, "holds a list, expected a text or a whole number"),
        ([*rows(), {"text": "x", "group": 77}], {}, "groups have one text in their split, the first '77'"),
        (
            [*rows(), {"text": "x", "group": 1, "task": None}],
            {"data__tasks": "task"},
            "line 21, column 'task': its task is null",
        ),
        (rows(4), {}, "too few to cut"),
        (rows(), {"data__splits": {"validation": 0.2}}, "splits.test is missing"),
        (
            rows(),
            {"data__splits__drop_overlap": True},
            "splits.drop_overlap is true, and the source brings no test set of its own",
        ),
    ],
)
def test_a_row_that_cannot_be_used_is_named(given: Any, keys: Any, said: str, tmp_path: Path) -> None:
    """Found after hours of a teacher's work, or never: an empty text teaches nothing, a lone text is never found."""
    with pytest.raises((DataError, ConfigError), match=r"^data: ") as refused:
        read(tmp_path, given, **keys)
    assert said in str(refused.value)


def test_a_given_test_set_is_kept_apart(tmp_path: Path) -> None:
    given = {"data__test_path": "tests.jsonl", "data__splits": {"validation": 0.2}}
    tests = [{"text": f"other {number}", "group": 100 + number // 2} for number in range(6)]
    found = read(tmp_path, rows(), test=tests, **given)
    assert [len(part) for part in found.splits.values()] == [16, 4, 6]
    astride = [{**row, "group": 3} for row in tests]
    said = r"2 of 20 texts also stand in the test set, or belong to one of its groups, the first in \S+texts.jsonl, line 7:"
    with pytest.raises(DataError, match=said):
        read(tmp_path, rows(), test=astride, **given)
    with pytest.raises(DataError, match=r"tests.jsonl, line 7, column 'text': the text is empty"):
        read(tmp_path, rows(), test=[*tests, {"text": "", "group": 1}], **given)
    apart = read(tmp_path, rows(), test=astride, **{**given, "data__splits": {"validation": 0.2, "drop_overlap": True}})
    assert len(apart.train) + len(apart.validation) == 18
    with pytest.raises(ConfigError, match="brings a test set of its own"):
        read(tmp_path, rows(), test=tests, data__test_path="tests.jsonl")


def test_a_csv_is_read_by_its_columns(tmp_path: Path) -> None:
    csv = {"data__source": "csv", "data__path": "texts.csv"}
    lines = "".join(f'"text, number {number}",{number // 2}\n' for number in range(20))
    found = read(tmp_path, "text,group\n" + lines, suffix="csv", **csv)
    assert "text, number 3" in [text for part in found.splits.values() for text in part.texts]
    with pytest.raises(DataError, match=r"line 3 has another number of cells than the 2 columns"):
        read(tmp_path, "text,group\none,1\ntwo, with a comma,1\n", suffix="csv", **csv)
    with pytest.raises(DataError, match=r"texts.csv, line 4, column 'text': the text is null"):
        read(tmp_path, 'text,group\n"one\nline",1\n,1\n', suffix="csv", **csv)
    with pytest.raises(DataError, match="holds no rows"):
        read(tmp_path, "text,group\n", suffix="csv", **csv)
    with pytest.raises(DataError, match="there is no file"):
        read(tmp_path, None, data__source="csv", data__path="none.csv")


def test_rows_of_no_file_are_counted(tmp_path: Path) -> None:
    """A number that may be from 0 or from 1 sends its reader to the row beside it."""
    (tmp_path / "rows.py").write_text("def rows():\n    return [{'text': 'a'}], [{'text': 'b'}, {'text': ''}]\n")
    keys = {"data__source": "python", "data__python": "rows.py:rows", "data__path": None, "data__groups": None}
    said = r"row 1 \(counted from 0\) of the test set, column 'text': the text is empty"
    with pytest.raises(DataError, match=said):
        read(tmp_path, None, data__splits={"validation": 0.2}, **keys)


def test_a_limit_draws_from_all_of_the_file(tmp_path: Path) -> None:
    """The first rows of a file sorted by task are of one task; single texts of many groups would answer nothing."""
    sorted_by_task = [
        {"text": f"{task} {number}", "group": f"{task} {number // 3}", "task": task}
        for task in ("art", "law", "news")
        for number in range(60)
    ]
    found = read(tmp_path, sorted_by_task, data__limit=50, data__tasks="task")
    parts = list(found.splits.values())
    texts = [text for part in parts for text in part.texts]
    assert 48 <= len(texts) <= 50
    assert all(sum(text.startswith(task) for text in texts) > 5 for task in ("art", "law", "news"))
    backwards = read(tmp_path, sorted_by_task[::-1], data__limit=50, data__tasks="task")
    assert sorted(text for part in backwards.splits.values() for text in part.texts) == sorted(texts)
    fewer = read(tmp_path, sorted_by_task, data__limit=20, data__tasks="task")
    assert {text for part in fewer.splits.values() for text in part.texts} < set(texts)
    one_group = [{"text": f"text {number}", "group": number // 90} for number in range(180)]
    alone = [{"text": f"alone {number}", "group": None} for number in range(180)]
    mixed = read(tmp_path, [*one_group, *alone], data__limit=200)
    answered = [group for part in mixed.splits.values() for group in part.groups if group is not None]
    assert set(answered) == {"0", "1"}
    assert 60 < len(answered) < 140


def test_a_task_that_is_a_number_says_of_what(tmp_path: Path) -> None:
    """A page whose worst task is "1" tells its reader nothing."""
    numbered = [{**row, "task": number % 2} for number, row in enumerate(rows())]
    assert set(read(tmp_path, numbered, data__tasks="task").train.tasks) == {"task 0", "task 1"}
