"""``teacher.classes`` of a config: which of a trained model's classes the student knows."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tutelage.config import load_config
from tutelage.config.building import build_study
from tutelage.errors import ConfigError
from tutelage.teachers import ModuleTeacher

GIVEN = """\
data: {source: python, python: "models.py:data", splits: {validation: 0.2, test: 0.3}}
teacher: {model: {python: "models.py:wide", checkpoint: given.safetensors}, classes: CLASSES}
student: {model: {python: "models.py:narrow"}}
objective: [{term: kl}]
training: {max_steps: 4}
"""
MODELS = """\
import torch

import tutelage

def wide():
    return torch.nn.Linear(4, 5)

def narrow():
    return torch.nn.Linear(4, 2)

def data():
    return tutelage.TransferSet(torch.randn(60, 4, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 2)
"""


def built(folder: Path, text: str):
    (folder / "models.py").write_text(MODELS)
    save_file(torch.nn.Linear(4, 5).state_dict(), str(folder / "given.safetensors"))
    (folder / "config.yaml").write_text(text)
    return build_study(load_config(folder / "config.yaml"), folder, "")


@pytest.mark.parametrize(("said", "columns"), [("2", [0, 1]), ("[3, 1]", [3, 1])])
def test_the_teacher_is_asked_about_these_classes_alone(tmp_path: Path, said: str, columns: list[int]):
    """A list whose order is lost teaches each class as another one."""
    study = built(tmp_path, GIVEN.replace("CLASSES", said))
    assert isinstance(study.teacher, ModuleTeacher)
    batch = study.splits.train.batch(torch.arange(6))
    logits = study.teacher.signals(batch).logits
    assert logits is not None
    assert torch.equal(logits.at(1.0), study.teacher.model(batch["student"]).detach()[:, columns])


@pytest.mark.parametrize("said", ["0", "[]", "[1, 1]", "[-1]", "many"])
def test_classes_that_name_none_are_refused(tmp_path: Path, said: str):
    """A class that is there twice takes part in the softmax twice."""
    with pytest.raises(ConfigError, match=r"teacher\.classes"):
        built(tmp_path, GIVEN.replace("CLASSES", said))


def test_a_teacher_that_is_trained_here_has_the_students_classes(tmp_path: Path):
    """A key that changes nothing would be believed to have done something."""
    text = GIVEN.replace(", checkpoint: given.safetensors", "").replace("CLASSES", "2, training: {max_steps: 2}")
    with pytest.raises(ConfigError, match="trained by this run"):
        built(tmp_path, text)
