"""``tutelage inspect`` at the terminal: what it says, where it leaves the page, and that a mistake is one message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

MODELS = """\
import torch
from torch import nn
from tutelage import TransferSet


def student():
    return nn.Linear(8, 3)


def teacher():
    return nn.Linear(8, 3)


def blobs():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(150) % 3
    return TransferSet(2 * torch.eye(3, 8)[labels] + torch.randn(150, 8, generator=generator), labels)
"""

CONFIG = """\
title: "three blobs [v2]"
data: {source: python, python: "models.py:blobs", splits: {validation: 0.2, test: 0.3}}
teacher: {model: {python: "models.py:teacher"}, training: {num_train_epochs: 2, learning_rate: 0.05}}
student: {model: {python: "models.py:student"}}
objective: [{term: kl, weight: 0.9}, {term: cross_entropy, weight: 0.1}]
training: {num_train_epochs: 3, per_device_train_batch_size: 8, learning_rate: 0.05}
study: {seeds: 1, arms: [kd, scratch]}
gates: {size_ratio: 9, latency_ratio: 90}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "blobs"
    home.mkdir()
    (home / "models.py").write_text(MODELS)
    (home / "config.yaml").write_text(CONFIG)
    monkeypatch.chdir(home)
    return home


def test_inspect_then_run_then_inspect(tutelage: Any, project: Path) -> None:
    """Before a run it has a page of its own and trains the teacher; after it, a section of the run's page, and trains nothing."""
    before = tutelage("inspect", "config.yaml", "--set", "data.labelled=30")
    assert before.code == 0
    assert "test accuracy" not in before.out + before.err, "the teacher's score on the test split is not told"
    assert "three blobs [v2]: the teacher, on 75 training and 30 validation examples" in " ".join(before.out.split())
    assert "effective classes of 3" in before.out
    assert "begin with: temperature 1" in before.out
    assert "no promise" in before.out
    folder = project / "runs" / "blobs"
    assert (folder / "inspect.html").is_file()
    record = json.loads((folder / "inspect.json").read_text())
    assert record["command"] == "tutelage inspect config.yaml --set data.labelled=30"
    weights = (folder / "teacher" / "model.safetensors").stat().st_mtime_ns

    assert tutelage("run", "config.yaml", "--set", "data.labelled=30").code == 0
    assert (folder / "teacher" / "model.safetensors").stat().st_mtime_ns == weights
    after = tutelage("inspect", "config.yaml", "--set", "data.labelled=30")
    assert "report.html" in after.out.replace("\n", "")
    assert 'id="knowledge"' in (folder / "report.html").read_text()
    assert json.loads((folder / "inspect.json").read_text())["rivals"][0]["kind"] == "student"


def test_mistakes_are_one_message(tutelage: Any, project: Path) -> None:
    assert tutelage("inspect", "config.yaml").code == 0
    other = tutelage("inspect", "config.yaml", "--set", "teacher.training.learning_rate=0.5")
    assert other.code == 2
    assert other.err.count("error: ") == 1
    assert "learning_rate" in other.err
    missing = tutelage("inspect", "nowhere.yaml")
    assert missing.code == 2
    assert "nowhere.yaml" in missing.err
    assert "Traceback" not in other.err + missing.err
