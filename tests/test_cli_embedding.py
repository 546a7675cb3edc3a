"""A sentence encoder at the terminal: a run from a config, and each bad input as one message that loses nothing."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedding_project import rows, write_project, write_rows
from forked import forked
from terminal import is_one_message, sets
from tutelage.cli import main
from tutelage.cli.embedding import worst_tasks
from tutelage.evaluation import embeddings
from tutelage.models.sentence import embed_texts
from tutelage.models.sentence_folders import load_sentence_encoder
from tutelage.studies.embedding import costing, recording

RUN = Path("runs/kinds")


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither what a model costs nor how an interval is resampled is what these tests are about."""
    for name in ("similarity_agreement", "agreement_difference"):
        monkeypatch.setattr(recording, name, partial(getattr(embeddings, name), resamples=40))
    monkeypatch.setattr(costing, "_ROUNDS", 1)
    monkeypatch.setattr(costing, "_MOST_ROUNDS", 1)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = write_project(tmp_path / "kinds")
    monkeypatch.chdir(home)
    return home


def test_a_run_tells_its_arms_and_leaves_plain_folders(tutelage: Any, project: Path) -> None:
    """What a user does first: run, read the worst task and the table, load the student by its folder."""
    own = "study.arms=[untouched, kd, {static: {student: {from: teacher, static: {width: 8}}, objective: [{term: similarity_matrix}]}}]"
    left = tutelage("run", "config.yaml", *sets(own))
    assert left.code == 0, left.err
    words = " ".join(left.out.split())
    assert "three kinds [v1]: 36 test texts, 1 seed" in words
    assert words.index("worst task: food") < words.index("too few to say") < words.index("Spearman 95% interval")
    assert "[5/5] static, seed 0" in left.err
    assert not any(bar in left.err for bar in ("Writing model shards", "Loading weights", "it/s", "%|"))
    assert "texts a second, the teacher" in words
    assert "verdict: hold" in words
    assert max(map(len, left.out.splitlines()[5:14])) <= 80
    record = json.loads((RUN / "result.json").read_text())
    assert list(record["arms"]) == ["teacher", "untouched", "untouched_static", "kd", "static"]
    page = (RUN / "report.html").read_text()
    assert "Task by task, the worst first" in page
    loaded = load_sentence_encoder(RUN / "kd" / "seed-0")
    assert np.linalg.norm(embed_texts(loaded, ["old aa ab"])) == pytest.approx(1.0, abs=1e-5)
    again = tutelage("run", "config.yaml", *sets(own, "gates.spearman=0.1"))
    assert again.code == 0, again.err
    assert again.err.count("done in an earlier run") == 4
    page_again = tutelage("report", str(RUN))
    assert page_again.code == 0


@pytest.mark.parametrize(
    ("given", "overrides", "said"),
    [
        ([*rows(), {"text": "", "group": 1, "kind": "food"}], [], ["texts.jsonl, line 121", "empty"]),
        ([*rows(), {"text": "x", "group": 999, "kind": "food"}], [], ["the first '999'", "nothing answers it"]),
        (None, ["data.text=txt"], ["has no column 'txt'", "did you mean 'text'?"]),
        (None, ["data.groups=grp"], ["has no column 'grp'", "data.groups"]),
        (None, ["retrieval.k=[1, 40]"], ["goes up to 40", "36 test texts"]),
        (None, ["data.path=text.jsonl"], ["no file matches", "text.jsonl"]),
        (None, ["teacher.model.python=models.py:untrained_teacher"], ["makes other weights from another seed"]),
        (None, ["student={model: {python: 'models.py:without_tokenizer'}}"], ["student.tokenizer is missing"]),
        (
            None,
            ["student={model: {python: 'models.py:without_tokenizer'}, tokenizer: 'models.py:no_padding'}"],
            ["no padding token"],
        ),
        (None, ["student={from: teacher, layers: 9}"], ["student", "9"]),
        (None, ["student={model: {hub: nowhere}}"], ["student", "nowhere"]),
        (None, ["objective=[{term: embeding_cosine}]"], ["unknown term 'embeding_cosine'"]),
        (None, ["objective=[{term: kl}]"], ["'kl'", "heard by its embeddings alone"]),
        (
            None,
            ["data.groups=null", "retrieval=null", "data.tasks=null", "gates.recall_drop=0.1"],
            ["gates.recall_drop"],
        ),
    ],
)
def test_a_bad_input_is_one_message_before_anything_is_trained(
    tutelage: Any, project: Path, given: Any, overrides: list[str], said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found an hour into a run, or never: an empty text teaches nothing, a lone text is never found."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if given is not None:
        write_rows(project, given)
    left = tutelage("run", "config.yaml", *sets(*overrides))
    assert is_one_message(left), left.err
    for words in said:
        assert words in left.err, left.err
    assert not RUN.exists()


@pytest.mark.parametrize("command", ["plan", "sweep", "inspect", "label", "generate"])
def test_what_is_for_others_says_what_it_is_about(tutelage: Any, project: Path, command: str) -> None:
    left = tutelage(command, "config.yaml")
    assert is_one_message(left), left.err
    assert "is about a sentence encoder (task: embedding)" in left.err
    assert "`tutelage run`" in left.err


def test_the_worst_tasks_are_told_first() -> None:
    """An average that holds would be read, and the task that was lost not."""
    rows_ = [
        {"task": "news", "texts": 1200, "few": False, "drop": 0.123, "arms": {"kd": {"spearman": 0.5}}},
        {"task": "law", "texts": 30, "few": False, "drop": None, "arms": {"kd": {"spearman": None}}},
        {"task": "sport", "texts": 40, "few": False, "drop": -0.01, "arms": {"kd": {"spearman": None}}},
        {"task": "art", "texts": 40, "few": False, "drop": -0.01, "arms": {"kd": {"spearman": None}}},
        *({"task": f"t{count}", "texts": count, "few": True, "drop": 0.9, "arms": {"kd": {}}} for count in range(2, 6)),
    ]
    told = worst_tasks({"tasks": rows_, "least_a_task": 20, "retrieval": {"judged": "recall@10"}})
    assert told == [
        "worst task: news (1,200 texts): Spearman 0.500, recall@10 12.3 points below the teacher",
        "then:       sport (40 texts): recall@10 1.0 points above the teacher",
        "too few to say (under 20 texts with answers, or one group): t2 (2), t3 (3), t4 (4) and 1 more",
    ]


@pytest.mark.slow
def test_a_killed_run_ends_in_the_same_weights(tutelage: Any, project: Path) -> None:
    """As for a classifier: the same command goes on, and nobody can tell from the student that anything happened."""
    own = "student={model: {python: 'models.py:student'}}"
    steps = sets(own, "training.max_steps=6", "training.save_steps=2", "study.arms=[kd]")
    killed = forked(main, "run", "config.yaml", *steps, environment={**os.environ, "DIE_AT": "5"})
    assert killed.returncode == -9, killed.stderr
    left = tutelage("run", "config.yaml", *steps)
    assert left.code == 0, left.err
    assert "goes on at step" in left.err
    assert tutelage("run", "config.yaml", *steps, "--out", "runs/whole").code == 0
    weights = [Path(run) / "kd/seed-0/model.safetensors" for run in (RUN, "runs/whole")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    other = tutelage("run", "config.yaml", *steps, *sets("training.learning_rate=0.02"))
    assert is_one_message(other)
    assert "learning_rate" in other.err
