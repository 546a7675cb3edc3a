"""What does not fit together is found before anything is trained, so that no mistake costs an hour first."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import CLASSES, TRAINING, WIDTH, good_teacher, splits, student, study
from torch import Tensor, nn

from tutelage import EnsembleTeacher, MemoryTeacher, ModuleTeacher, TransferSet
from tutelage.data import PerExample, Splits
from tutelage.errors import ConfigError, TutelageError
from tutelage.studies import TeacherTraining

SHARED = student()
RECIPE = TeacherTraining(splits().train, TRAINING)


class Unseeded(nn.Linear):
    """Draws its weights from a generator that torch's seed does not reach."""

    drawn = 0

    def __init__(self) -> None:
        super().__init__(WIDTH, CLASSES)
        Unseeded.drawn += 1
        with torch.no_grad():
            self.weight.fill_(float(Unseeded.drawn))


class Named(nn.Module):
    """A Hugging Face model as far as its class names are concerned."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, CLASSES)
        self.config = type("Config", (), {"id2label": dict(enumerate(names))})()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"teacher": nn.Linear(WIDTH, 4)}, "the student has 3 classes, the teacher has 4 classes, and the data 3"),
        ({"teacher": ModuleTeacher(nn.Linear(WIDTH, 2))}, "the teacher has 2 classes"),
        ({"teacher": EnsembleTeacher([nn.Linear(WIDTH, 5)] * 2)}, "the teacher has 5 classes"),
        ({"teacher": lambda: nn.Linear(WIDTH, 9), "teacher_training": RECIPE}, "the teacher has 9 classes"),
        ({"student": lambda: nn.Linear(WIDTH, 2), "teacher": nn.Linear(WIDTH, 2)}, "and the data 3"),
        (
            {"student": lambda: nn.Linear(5, CLASSES)},
            r"the student does not take its view .*inputs torch\.float32 \[2, 8\]",
        ),
        ({"teacher": nn.Linear(5, CLASSES)}, "the teacher does not take its view of the data"),
        (
            {"teacher": student},
            "expected an nn.Module or a teacher; a function that makes a module needs teacher_training",
        ),
        ({"teacher": student(), "teacher_training": RECIPE}, "teacher must be a function that makes the fresh module"),
        ({"teacher": lambda: 3, "teacher_training": RECIPE}, r"teacher\(\) returned a int"),
        ({"student": lambda: 3}, r"student\(\) returned a int"),
        ({"student": lambda: SHARED}, "the same parameters twice: the second arm would start from what the first"),
        ({"student": Unseeded}, "two different modules from one torch seed"),
        ({"training": {**TRAINING, "seed": 3}}, "training.seed is the study's to set"),
        ({"training": {**TRAINING, "lr_scheduler_type": "zigzag"}}, "training: .*zigzag"),
        ({"training": {**TRAINING, "logging_steps": 0}}, "training: .*logging_steps"),
        ({"training": {**TRAINING, "label_smoothing_factor": 0.1}}, "training: label_smoothing_factor=0.1"),
        ({"training": {**TRAINING, "no_such_thing": 0.1}}, "training: .*no_such_thing"),
        (
            {"teacher": student, "teacher_training": TeacherTraining(splits().train, {"output_dir": "x"})},
            "teacher.training.output_dir is the study's to set",
        ),
        (
            {"teacher": student, "teacher_training": TeacherTraining(splits().train, {"optim": "magic"})},
            "teacher.training: .*magic",
        ),
        (
            {"splits": splits(class_names=["cat", "dog", "fox"]), "teacher": Named(["Dog", "Cat", "Fox"])},
            "the teacher numbers its classes dog, cat, fox, the data cat, dog, fox",
        ),
        (
            {"teacher": MemoryTeacher.of(ModuleTeacher(good_teacher()), splits().train)},
            "answers in memory do not cover the test split",
        ),
    ],
)
def test_a_misfit_is_found_before_the_first_step(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(TutelageError, match=said):
        study(**changes).run(tmp_path / "run")
    assert not list(tmp_path.rglob("checkpoint*"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"arms": ["scratch"]}, "expected 'kd' with any of"),
        ({"arms": ["kd", "scrach"]}, r"arms are \['kd', 'scrach'\]"),
        ({"arms": ["kd", "kd"]}, "each once"),
        ({"arms": []}, "expected 'kd'"),
        ({"extra_arms": {"teacher": None}}, "that name is taken"),
        ({"extra_arms": {"../up": None}}, "it names a folder too"),
        ({"extra_arms": {"": None}}, "it names a folder too"),
        ({"seeds": 0}, "a number of at least 1"),
        ({"seeds": []}, "a number of at least 1"),
        ({"seeds": [1, 1]}, "different seeds"),
        ({"seeds": [-1]}, "from 0 to"),
        ({"student": student()}, "expected a function that makes a fresh one"),
    ],
)
def test_a_study_that_means_nothing_is_refused_at_once(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        study(**changes)


def test_names_in_the_datas_order_or_of_another_kind_are_taken(tmp_path: Path) -> None:
    """A teacher that spells its classes otherwise, or only numbers them, was as good as refused."""
    whole = splits(class_names=["cat", "dog", "fox"])
    for names in (["Cat", "Dog", "Fox"], ["LABEL_0", "LABEL_1", "LABEL_2"]):
        result = study(splits=whole, teacher=Named(names), arms=["kd"], seeds=1).run(tmp_path / names[0])
        assert result["classes"] == ["cat", "dog", "fox"]


def test_the_output_folder_must_be_one_that_can_be_written(tmp_path: Path) -> None:
    """Found out at the end, the whole run would be lost."""
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(ConfigError, match=r"the output folder .*(is a file|cannot be written to)"):
            study().run(out)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="cannot be written to"):
        study().run(tmp_path)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"student_view": lambda inputs, draws: inputs.numpy()}, "would be given a ndarray"),
        ({"augment": PerExample(lambda example: example.numpy())}, "the transform returned a ndarray"),
        ({"augment": lambda inputs, draws: inputs / {}}, "a view of the data fails on the first examples"),
    ],
    ids=["array", "transform", "crash"],
)
def test_a_view_that_gives_no_tensor_is_found_before_the_first_step(
    tmp_path: Path, data: dict[str, Any], said: str
) -> None:
    """The commonest slip with texts, and with a transform of one's own, was a traceback, or came after the teacher's training."""
    whole = splits()
    changed = {"labels": whole.train.known_labels, "inputs": whole.train.inputs, **data}
    with pytest.raises(TutelageError, match=said):
        study(splits=replace(whole, train=TransferSet(**changed))).run(tmp_path)
    assert not (tmp_path / "kd").exists()


def test_texts_without_a_tokeniser_are_told_of_it(tmp_path: Path) -> None:
    """The likeliest slip of all with texts ended in an AttributeError."""

    def texts(part: TransferSet, name: str) -> TransferSet:
        return TransferSet([f"{name} {row}" for row in range(len(part))], part.known_labels)

    whole = splits()
    told = Splits(texts(whole.train, "a"), texts(whole.validation, "b"), texts(whole.test, "c"))
    with pytest.raises(TutelageError, match="give the transfer set a view that tokenises them"):
        study(splits=told).run(tmp_path)


def test_students_that_cannot_be_trained_at_once_are_found_before_the_teacher_is_trained(tmp_path: Path) -> None:
    """Found when the arms begin, a student with dropout would cost the teacher's whole training first."""

    def with_dropout() -> nn.Module:
        return nn.Sequential(nn.Linear(WIDTH, CLASSES), nn.Dropout(0.1))

    with pytest.raises(ConfigError, match=r"together is true, and the arm 'kd' cannot be .*dropout"):
        study(together=True, student=with_dropout).run(tmp_path)
    assert not (tmp_path / "kd").exists()
