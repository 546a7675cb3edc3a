"""``tutelage label`` at the terminal, and a run that is taught from what it wrote: killed, damaged, changed, and gone on with."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from forked import forked
from terminal import is_one_message
from tutelage.cli import main, watching
from tutelage.labels import LabelStore

MODELS = '''\
import os, signal
import torch
from torch import nn
from tutelage import TransferSet
from tutelage.labels import LabelWriter

if os.environ.get("SMALL_SHARDS"):
    LabelWriter.__init__.__kwdefaults__["shard_examples"] = 20


class Teacher(nn.Module):
    """Stops the whole process, as a power cut would, at the call that DIE_AT names."""

    calls = 0

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 3)
        with torch.no_grad():
            self.layer.weight.copy_(2 * torch.eye(3, 8))
            self.layer.bias.zero_()

    def forward(self, inputs):
        Teacher.calls += 1
        if str(Teacher.calls) == os.environ.get("DIE_AT"):
            os.kill(os.getpid(), signal.SIGKILL)
        if str(Teacher.calls) == os.environ.get("STOP_AT"):
            raise KeyboardInterrupt
        return self.layer(inputs)


class Student(nn.Module):
    steps = 0

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 3)

    def forward(self, inputs):
        Student.steps += self.training
        if self.training and str(Student.steps) == os.environ.get("STUDENT_DIES_AT"):
            os.kill(os.getpid(), signal.SIGKILL)
        return self.layer(inputs)


def student():
    return Student()


def teacher():
    return Teacher()


def other_teacher():
    module = Teacher()
    with torch.no_grad():
        module.layer.weight.mul_(1.1)
    return module


def blobs():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(150) % 3
    return TransferSet(2 * torch.eye(3, 8)[labels] + torch.randn(150, 8, generator=generator), labels)
'''

CONFIG = """\
title: "three blobs [v2]"
data: {source: python, python: "models.py:blobs", splits: {validation: 0.2, test: 0.3}}
teacher: {model: {python: "models.py:teacher"}}
student: {model: {python: "models.py:student"}}
labels: {form: dense, dtype: float32, batch_size: 10}
objective: [{term: kl, weight: 0.9}, {term: cross_entropy, weight: 0.1}]
training: {num_train_epochs: 3, per_device_train_batch_size: 8, learning_rate: 0.05}
study: {seeds: 1, arms: [kd, scratch], together: false}
gates: {size_ratio: 9, latency_ratio: 90}
"""
STORE = Path("runs/blobs/labels")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "blobs"
    home.mkdir()
    (home / "models.py").write_text(MODELS)
    (home / "config.yaml").write_text(CONFIG)
    monkeypatch.chdir(home)
    monkeypatch.setenv("SMALL_SHARDS", "1")
    return home


def killed(*words: str, **environment: str) -> None:
    """The command in a process of its own, which ends by SIGKILL."""
    left = forked(main, *words, environment={**os.environ, **environment})
    assert left.returncode == -9, left.stderr


def test_label_then_run(tutelage: Any, project: Path) -> None:
    """What it wrote, what that takes and what it costs is told, and the run is taught from it and says so."""
    told = tutelage("label", "config.yaml")
    assert told.code == 0, told.err
    words = " ".join(told.out.split())
    assert "labels: the logits of all 3 classes in float32" in words
    assert "bytes an example" in words
    assert "of which the teacher itself took" in words
    assert "on 64 random rows a student’s gradient of forward KL at T = 1 is 0% away" in words
    assert "asked again about 8 random examples: nothing differs" in words
    assert "labelling 75 examples, into runs/blobs/labels" in " ".join(told.err.split())
    assert "[1/1] labels: 75 rows in" in told.err

    again = tutelage("label", "config.yaml")
    assert "labels: done in an earlier run" in again.err
    whole = tutelage("label", "config.yaml", "--verify")
    assert (whole.code, whole.out.count("4 shards in runs/blobs/labels")) == (0, 1)

    assert tutelage("run", "config.yaml").code == 0
    record = json.loads(Path("runs/blobs/result.json").read_text())["labels"]
    assert (record["store"], record["written"]) == ("labels", "before this run")
    assert record["certificate"]["rows"] == 64
    page = Path("runs/blobs/report.html").read_text()
    assert 'id="labels"' in page
    assert "The teacher was asked once about 75 examples, before this run" in page

    live = Path("live.yaml")
    live.write_text(CONFIG.replace("labels: {form: dense, dtype: float32, batch_size: 10}\n", ""))
    assert tutelage("run", "live.yaml", "--out", "live").code == 0
    kept, heard = (
        load_file(f"{folder}/kd/seed-0/predictions.safetensors")["logits"] for folder in ("runs/blobs", "live")
    )
    assert np.array_equal(kept, heard), "float32 labels teach as the teacher does"
    assert 'id="labels"' not in Path("live/report.html").read_text()


def test_killed_while_labelling_and_while_training(
    tutelage: Any, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a power cut left, the same command goes on: no finished shard is lost, no example is stored twice."""
    killed("run", "config.yaml", DIE_AT="9")
    part = LabelStore.open(STORE)
    assert not part.complete
    assert 0 < len(part) < 75
    assert len(part) % 20 == 0
    before = {shard.name for shard in part.manifest.shards}
    killed("run", "config.yaml", STUDENT_DIES_AT="20")
    whole = LabelStore.open(STORE)
    assert whole.complete
    assert len(whole) == 75
    assert before <= {shard.name for shard in whole.manifest.shards}, "what was finished was not labelled again"
    gone_on = tutelage("run", "config.yaml")
    assert gone_on.code == 0, gone_on.err
    assert "labels: done in an earlier run" in gone_on.err
    assert tutelage("run", "config.yaml", "--out", "undisturbed").code == 0
    logits = [
        load_file(f"{folder}/kd/seed-0/predictions.safetensors")["logits"] for folder in (STORE.parent, "undisturbed")
    ]
    assert np.array_equal(*logits)


def test_interrupted(tutelage: Any, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends in a line that says how to go on, and loses nothing that was answered."""
    monkeypatch.setenv("STOP_AT", "8")
    left = tutelage("label", "config.yaml")
    assert left.code == 130
    assert "stopped; the same command goes on after the last finished shard" in left.err
    assert "Traceback" not in left.err
    there = len(LabelStore.open(STORE))
    assert there > 0
    unfinished = tutelage("label", "config.yaml", "--verify")
    assert is_one_message(unfinished)
    assert "are not finished" in unfinished.err
    monkeypatch.delenv("STOP_AT")
    on = tutelage("label", "config.yaml")
    assert on.code == 0, on.err
    assert f"labels: goes on at row {there} of 75" in on.err


def test_how_far_it_is(tutelage: Any, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hours of labelling without a line would leave nobody able to tell a slow teacher from a stuck one."""
    monkeypatch.setattr(watching, "_LOG_EVERY", 0.0)
    told = tutelage("label", "config.yaml")
    assert re.search(r"\[1/1\] labels: 30 of 75 rows, [\d,]+ rows a second, about [\d.]+ s left", told.err), told.err


def test_a_full_disk(tutelage: Any, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills up in the night must cost no more than the shard that did not fit."""
    from tutelage.labels.place import Place

    write, left = Place._write_locally, [3]

    def full(path: Path, contents: bytes) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, contents)

    with monkeypatch.context() as patched:
        patched.setattr(Place, "_write_locally", staticmethod(full))
        refused = tutelage("label", "config.yaml")
    assert is_one_message(refused), refused.err
    assert "No space left on device" in refused.err
    assert "run the same command again" in " ".join(refused.err.split())
    assert tutelage("label", "config.yaml").code == 0
    assert LabelStore.open(STORE).complete


def test_a_damaged_shard(tutelage: Any, project: Path) -> None:
    """Damage is named, and mended by labelling that shard alone."""
    assert tutelage("label", "config.yaml").code == 0
    before = LabelStore.open(STORE).manifest.shards
    damaged = STORE / before[1].name
    damaged.write_bytes(damaged.read_bytes()[:-40])
    named = tutelage("label", "config.yaml", "--verify")
    assert is_one_message(named)
    assert before[1].name in named.out
    assert "1 of 4 shards" in named.err
    on = tutelage("label", "config.yaml")
    assert on.code == 0, on.err
    assert "labels: goes on at row 55 of 75" in on.err
    after = {shard.name for shard in LabelStore.open(STORE).manifest.shards}
    assert {shard.name for shard in before} - {before[1].name} <= after
    assert tutelage("label", "config.yaml", "--verify").code == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("teacher.model.python=models.py:other_teacher", "teacher: "),
        ("data.views.student=[{normalise: {mean: 0.5, std: 2.0}}]", "teacher's view"),
        ("data.splits.validation=0.3", "transfer set"),
        ("labels.dtype=float16", "dtype"),
    ],
)
def test_what_changed_is_shown(tutelage: Any, project: Path, change: str, said: str) -> None:
    """Labels of another teacher, view or set would teach without a sign of it."""
    if not (labelled := STORE / "manifest.json").is_file():
        assert tutelage("label", "config.yaml").code == 0
    assert labelled.is_file()
    for verb in ("label", "run"):
        refused = tutelage(verb, "config.yaml", "--set", change)
        assert is_one_message(refused), refused.err
        assert "was made from something else" in refused.err
        assert said in refused.err
        assert "label anew in another folder" in " ".join(refused.err.split())


def test_other_labels_are_refused_before_a_teacher_is_trained_for_them(tutelage: Any, project: Path) -> None:
    """Found out after the teacher's training, the mistake would have cost all of it."""
    training = ("--set", "teacher.training={max_steps: 3}")
    assert tutelage("label", "config.yaml", *training).code == 0
    shutil.rmtree("runs/blobs/teacher")
    refused = tutelage("label", "config.yaml", *training, "--set", "data.splits.validation=0.3")
    assert is_one_message(refused), refused.err
    assert "examples: 75 says the store" in refused.err
    assert not Path("runs/blobs/teacher").exists()


def test_mistakes_are_one_message(tutelage: Any, project: Path) -> None:
    """A form that the objective cannot learn from is refused before the teacher is asked anything."""
    sampled = "labels={form: sampled, draws: 8, temperature: 1}"
    refused = tutelage("run", "config.yaml", "--set", sampled, "--set", "objective=[{term: kl, direction: reverse}]")
    assert is_one_message(refused), refused.err
    assert "the arm 'kd' cannot learn from labels of the form 'sampled'" in " ".join(refused.err.split())
    assert not STORE.exists()
    nothing = tutelage("label", "config.yaml", "--set", "labels=null")
    assert is_one_message(nothing)
    assert "has no section 'labels'" in nothing.err
    nowhere = tutelage("label", "config.yaml", "--verify")
    assert is_one_message(nowhere)
    assert "there is no label store" in " ".join(nowhere.err.split())
