"""``tutelage plan`` at the terminal: what it says, what it leaves, that its section fits the config, and that a mistake is one message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

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
study: {seeds: 2, arms: [kd, scratch]}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "blobs"
    home.mkdir()
    (home / "models.py").write_text(MODELS)
    (home / "config.yaml").write_text(CONFIG)
    monkeypatch.chdir(home)
    return home


def planned(home: Path) -> dict[str, Any]:
    return json.loads((home / "runs" / "blobs" / "plan.json").read_text())


def with_section(home: Path, labels: dict[str, Any]) -> None:
    with (home / "config.yaml").open("a") as config:
        YAML(typ="safe", pure=True).dump({"labels": labels}, config)


def test_a_plan_is_told_and_kept(tutelage: Any, project: Path) -> None:
    """A number on the terminal that the record does not have could not be looked up; and nothing is trained on the way."""
    done = tutelage("plan", "config.yaml")
    assert done.code == 0, done.err
    said = " ".join(done.out.split())
    assert "three blobs [v2]: timing a few steps of teacher and student" in said
    assert "The run asks its teacher about 450 examples in 2 trainings; 75 of them are different." in said
    for way in ("live", "in memory", "dense store", "sparse store"):
        assert way in said
    assert "take: in memory" in said
    assert "no labels section" in said
    assert "12 training steps" in said
    assert "fresh weights" in said
    found = planned(project)
    assert found["command"] == "tutelage plan config.yaml"
    assert (found["asks"]["live"], found["asks"]["examples"]) == (450, 75)
    assert found["ways"]["sparse"]["labels"] == {"form": "sampled", "temperature": 1.0, "draws": 50}
    assert sorted(path.name for path in (project / "runs" / "blobs").iterdir()) == ["plan.json"]


@pytest.mark.parametrize("way", ["dense", "sparse"])
@pytest.mark.parametrize("teacher", ["", "members: 2, "])
def test_the_section_it_names_fits_the_config(tutelage: Any, project: Path, way: str, teacher: str) -> None:
    """A section to be pasted that the config then refuses would be worse than none."""
    small = CONFIG.replace("{seeds: 2, arms: [kd, scratch]}", "{seeds: 1, arms: [kd]}")
    (project / "config.yaml").write_text(small.replace("teacher: {", f"teacher: {{{teacher}"))
    assert tutelage("plan", "config.yaml").code == 0
    section = planned(project)["ways"][way]["labels"]
    with_section(project, section)
    again = tutelage("plan", "config.yaml")
    assert again.code == 0, again.err
    assert planned(project)["ways"][way]["labels"] == section
    run = tutelage("run", "config.yaml")
    assert run.code == 0, run.err


def test_random_views_are_stored_by_their_number(tutelage: Any, project: Path) -> None:
    """Without labels.views the only way is the live one; with it, the plan is for so many views of each example."""
    (project / "config.yaml").write_text(CONFIG.replace("data: {", "data: {augment: [{gaussian_noise: {std: 0.1}}], "))
    done = tutelage("plan", "config.yaml")
    assert done.code == 0, done.err
    assert "take: live" in " ".join(done.out.split())
    assert done.out.count("cannot be: the teacher sees another view of each example in every epoch") == 3
    with_section(project, {"form": "dense", "views": 2})
    done = tutelage("plan", "config.yaml")
    assert done.code == 0, done.err
    found = planned(project)["ways"]["dense"]
    assert (found["cannot"], found["labels"]) == ([], {"form": "dense", "views": 2})


def test_a_sweep_is_planned_for_as_a_sweep(tutelage: Any, project: Path) -> None:
    """Planned as the one run that it is not, a sweep's teacher would look cheaper by the number of its trials."""
    with (project / "config.yaml").open("a") as config:
        config.write("search: {space: {objective.0.temperature: [1, 2, 4]}, seeds: 2}\n")
    done = tutelage("plan", "config.yaml")
    assert done.code == 0, done.err
    assert "The sweep asks its teacher about 1,800 examples in 8 trainings" in " ".join(done.out.split())
    assert planned(project)["sweep"] is True


def test_mistakes_are_one_message(tutelage: Any, project: Path) -> None:
    deaf = tutelage("plan", "config.yaml", "--set", "objective=[{term: cross_entropy}]")
    missing = tutelage("plan", "nowhere.yaml")
    assert (deaf.code, missing.code) == (2, 2)
    assert deaf.err.count("error: ") == missing.err.count("error: ") == 1
    assert "no arm's objective listens to the teacher" in deaf.err
    assert "nowhere.yaml" in missing.err
    assert "Traceback" not in deaf.err + missing.err
