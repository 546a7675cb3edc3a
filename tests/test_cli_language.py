"""A language model at the terminal: every way of distilling from a config, and each bad input as one message that loses nothing."""

from __future__ import annotations

import json
import os
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from forked import forked
from language_project import CONFIG, rows, write_project, write_rows
from terminal import is_one_message, sets
from tutelage.cli import main
from tutelage.cli.language import _context, _transfer
from tutelage.studies.language import costing

RUN = Path("runs/sorts")
#: What makes a run short: one arm, few steps, nothing to show.
SHORT = ("training.max_steps=2", "study.arms=[kd]", "samples.count=1", "score=null")


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a model costs is not what these tests are about."""
    monkeypatch.setattr(costing, "_ROUNDS", 1)
    monkeypatch.setattr(costing, "_MOST_ROUNDS", 1)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = write_project(tmp_path / "sorts")
    monkeypatch.chdir(home)
    return home


def result() -> dict[str, Any]:
    return json.loads((RUN / "result.json").read_text())


def test_a_run_tells_its_arms_and_leaves_plain_folders(tutelage: Any, project: Path) -> None:
    """What a user does first: run, read the table, load the student as any other model."""
    left = tutelage("run", "config.yaml")
    assert left.code == 0, left.err
    words = " ".join(left.out.split())
    assert "three sorts [v1]: 12 test examples, 1 seed" in words
    assert "[4/4] kd, seed 0" in left.err
    assert not any(bar in left.err for bar in ("Writing model shards", "Loading weights", "it/s", "%|"))
    for heading in ("score", "95% interval", "perplexity", "KL, nats"):
        assert heading in words
    assert "29 completions, as given, 58 supervised tokens" in words
    assert "8 tokens fewer a request" in words
    assert "verdict: hold" in words
    assert max(map(len, left.out.splitlines()[:12])) <= 80
    record = result()
    assert list(record["arms"]) == ["teacher", "untouched", "sft", "kd"]
    assert record["score_name"] == "accuracy over 3 choices"
    student = AutoModelForCausalLM.from_pretrained(RUN / "kd" / "seed-0")
    assert student.config.num_hidden_layers == 1
    assert AutoTokenizer.from_pretrained(RUN / "kd" / "seed-0").chat_template


def test_the_starter_runs_as_it_is_written_but_for_the_model(
    tutelage: Any, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A starter that fails at its first command is worse than none."""
    empty = tmp_path / "starter"
    empty.mkdir()
    monkeypatch.chdir(empty)
    assert tutelage("init", "language_model").code == 0
    assert sorted(path.name for path in empty.iterdir()) == ["config.yaml", "data.py"]
    pieces = f"tokenizer: {project}/models.py:long_pieces"
    own = [f"{who}={{model: {{python: '{project}/models.py:wide_{who}'}}, {pieces}}}" for who in ("student", "teacher")]
    # the tiny models read 128 tokens, and theirs are single letters
    short = (
        "training.max_steps=2",
        "study.arms=[kd]",
        "gates.gap_closed=null",
        "samples.count=1",
        'views.teacher={text: "Route {{ ticket }}:"}',
    )
    left = tutelage("run", "config.yaml", *sets(*own, *short))
    assert left.code == 0, left.err


def bad_rows(**changes: str) -> list[dict[str, str]]:
    """The rows, of which the third is another one."""
    given = rows()
    given[2] = {**given[2], **changes}
    return given


@pytest.mark.parametrize(
    ("given", "overrides", "said"),
    [
        (bad_rows(completion=""), [], ["row 2", "completion", "empty"]),
        (bad_rows(gloss="thing " * 70), [], ["row 2", "max_length 64", "drop_long"]),
        (
            None,
            ["student.tokenizer=models.py:without_template", "teacher.tokenizer=null"],
            ["no chat template", "text"],
        ),
        (None, ["teacher.tokenizer=models.py:three_others"], ["numbers mean different tokens", '"eats"', "alignment"]),
        (None, ['views.student.user="{{ glos }}"'], ["views.student.user, row 0", "gloss"]),
        (None, ["data.completion=answer"], ["'answer'", "completion"]),
        (None, ["score.column=kind"], ["'kind'", "gloss"]),
        (None, ["score.column=srt"], ["did you mean 'sort'?", "score.column"]),
        (None, ["data.path=row.jsonl"], ["no file matches", "row.jsonl"]),
        (None, ["student.model.python=models.py:studnet"], ["student.model", "did you mean 'student'?"]),
        (None, ["objective=[{term: kl_divergence}]"], ["unknown term 'kl_divergence'"]),
        (None, ["score={python: 'score.py:f'}"], ["score.python", "there is no file"]),
        (None, ["student={from: teacher, layers: 9}"], ["student.layers", "9"]),
    ],
)
def test_a_bad_input_is_one_message_before_anything_is_trained(
    tutelage: Any, project: Path, given: list[dict[str, str]] | None, overrides: list[str], said: list[str]
) -> None:
    """Found an hour into a run, or never: an empty completion teaches nothing, a cut prompt asks something else."""
    if given is not None:
        write_rows(project, given)
    left = tutelage("run", "config.yaml", *sets(*overrides))
    assert is_one_message(left), left.err
    for words in said:
        assert words in left.err, left.err
    assert not RUN.exists() or not list(RUN.rglob("*.safetensors"))


@pytest.mark.parametrize("command", ["plan", "sweep", "inspect"])
def test_what_is_for_classifiers_says_what_to_do_instead(tutelage: Any, project: Path, command: str) -> None:
    left = tutelage(command, "config.yaml")
    assert is_one_message(left), left.err
    assert "is about a language model (task: language_model), and this works on classifiers" in left.err
    assert "tutelage" in left.err


def test_a_run_is_known_for_a_language_models_before_packages_are_asked_for(
    tutelage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told to install a package first, one would install it for nothing."""
    config = CONFIG.encode()
    (tmp_path / "config.yaml").write_bytes(config)
    (tmp_path / "result.json").write_text(json.dumps({"config_sha256": sha256(config).hexdigest(), "arms": {"kd": {}}}))
    monkeypatch.setitem(sys.modules, "onnx", None)
    for command in (["export", str(tmp_path), "--to", "onnx"], ["check", str(tmp_path)]):
        left = tutelage(*command)
        assert is_one_message(left), left.err
        assert "is about a language model (task: language_model), and this works on classifiers" in left.err


def test_the_terminal_says_no_more_than_was_found() -> None:
    """More cut texts than there are, and a prompt that is slower though it is shorter, would be told as facts about the student."""
    transfer = {"examples": 1, "tokens": 1716, "cut": 63, "dropped": 0, "completions": "data"}
    said = _transfer(transfer)
    assert said == (
        "learnt from: 1 completion, as given, 1,716 supervised tokens; of all splits together 63 cut at data.max_length"
    )
    assert "together" not in _transfer({**transfer, "cut": 0})
    slower = _context({"saved": 9, "milliseconds": {"bare": 10.8, "full": 8.13}})
    assert slower.endswith("no time that could be measured: 10.8 ms to read it, 8.13 ms the full one")
    faster = _context({"saved": 9, "milliseconds": {"bare": 8.13, "full": 10.8}})
    assert faster.endswith("a request: 8.13 ms to read it in place of 10.8 ms")


def test_generate_refuses_what_it_cannot_mean(tutelage: Any, project: Path) -> None:
    left = tutelage("generate", "config.yaml")
    assert is_one_message(left)
    assert "has no section 'generate'" in left.err
    (project / "digits.yaml").write_text(
        "data: {source: digits}\nteacher: {model: {hub: x}}\nstudent: {model: {hub: x}}\nobjective: [{term: kl}]\ntraining: {}\n"
    )
    left = tutelage("generate", "digits.yaml")
    assert is_one_message(left)
    assert "is about a classifier" in left.err
    left = tutelage("generate", "config.yaml", *sets("generate={max_new_tokens: 3}"))
    assert is_one_message(left)
    assert "data.completions: teacher" in left.err


def test_the_teacher_writes_and_the_student_learns_it(tutelage: Any, project: Path) -> None:
    """Sequence level with a padding token that is the end of a text: what was written is kept, told of, and not written again."""
    written = (
        "student.tokenizer=models.py:pad_is_eos",
        "teacher.tokenizer=models.py:pad_is_eos",
        "data.completions=teacher",
        "generate={n: 2, max_new_tokens: 4, seed: 1, filters: {finished: false}}",
        "objective=[{term: cross_entropy}]",
        "study.arms=[kd, {own: {objective: [{term: reverse_kl}], on_policy: {max_new_tokens: 3}}}]",
        "training.max_steps=3",
    )
    left = tutelage("generate", "config.yaml", *sets(*written))
    assert left.code == 0, left.err
    words = " ".join(left.out.split())
    assert "completions of the teacher kept: " in words
    assert "of 58" in words
    assert "lies in: runs/sorts/generated" in words
    made = {path: path.stat().st_mtime_ns for path in (RUN / "generated").glob("part-*")}
    left = tutelage("run", "config.yaml", *sets(*written))
    assert left.code == 0, left.err
    assert {path: path.stat().st_mtime_ns for path in (RUN / "generated").glob("part-*")} == made
    assert "written by the teacher" in left.out
    record = result()
    assert record["transfer"]["completions"] == "teacher"
    assert record["arms"]["own"]["seeds"][0]["generation_share"] > 0
    assert record["arms"]["kd"]["seeds"][0]["generation_share"] is None
    kept = [json.loads(line) for path in made for line in path.read_text().splitlines()]
    assert all(line["finished"] == (line["tokens"][-1] == 2) for line in kept)


def test_a_server_that_goes_down_loses_nothing(tutelage: Any, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same command goes on from the last checkpoint, and neither the message nor any file holds the key."""
    monkeypatch.syspath_prepend(Path(__file__).parent / "teachers")
    from remote_server import KEY, serving

    with serving() as server:
        server.key = KEY
        monkeypatch.setenv("TEACHER_KEY", KEY)
        remote = (
            f"teacher={{remote: {{url: '{server.url}', model: teacher, k: 4, retries: 1, key_env: TEACHER_KEY}}}}",
            "gates={}",
            *SHORT,
            "training.max_steps=4",
            "training.save_steps=2",
            "training.eval_strategy=no",
        )
        plain = server.answer

        def failing(asked: dict[str, Any]) -> Any:
            if len(list(RUN.rglob("checkpoint-2"))) and not server.troubles:
                server.troubles = [("drop",)] * 20
            return plain(asked)

        server.answer = failing
        left = tutelage("run", "config.yaml", *sets(*remote))
        assert is_one_message(left), left.err
        assert KEY not in left.err
        server.answer, server.troubles = plain, []
        left = tutelage("run", "config.yaml", *sets(*remote))
        assert left.code == 0, left.err
        assert "goes on at step 2 of 4" in left.err
    for path in RUN.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path


@pytest.mark.slow
def test_a_killed_run_ends_in_the_same_weights(tutelage: Any, project: Path) -> None:
    """As for a classifier: the same command goes on, and nobody can tell from the student that anything happened."""
    steps = sets(*SHORT, "training.max_steps=6", "training.save_steps=2", "study.arms=[kd]")
    killed = forked(main, "run", "config.yaml", *steps, environment={**os.environ, "DIE_AT": "5"})
    assert killed.returncode == -9, killed.stderr
    left = tutelage("run", "config.yaml", *steps)
    assert left.code == 0, left.err
    assert "goes on at step" in left.err
    assert tutelage("run", "config.yaml", *steps, "--out", "runs/whole").code == 0
    weights = [Path(run) / "kd/seed-0/model.safetensors" for run in (RUN, "runs/whole")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    trained = weights[0].stat().st_mtime_ns
    again = tutelage("run", "config.yaml", *steps, *sets("gates.kl=9"))
    assert again.code == 0, again.err
    assert weights[0].stat().st_mtime_ns == trained
    other = tutelage("run", "config.yaml", *steps, *sets("training.learning_rate=0.02"))
    assert is_one_message(other)
    assert "learning_rate" in other.err
