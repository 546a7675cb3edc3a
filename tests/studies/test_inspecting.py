"""An inspection from end to end: what it finds, where it leaves it, and that it never asks about the test split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import CLASSES, TRAINING, WIDTH, CountingTeacher, blobs, good_teacher, splits, student, study
from torch import Tensor, nn

from tutelage import TransferSet
from tutelage.data import GaussianNoise, Splits
from tutelage.errors import CheckpointError
from tutelage.studies import TeacherTraining
from tutelage.studies.inspecting import INSPECTION, inspect_teacher
from tutelage.teachers import EnsembleTeacher


class Watch:
    """Notes what is said of a training."""

    def __init__(self) -> None:
        self.outcomes: list[tuple[str, str]] = []

    def started(self, what: str, total_steps: int, steps_done: int) -> None: ...
    def advanced(self, steps_done: int) -> None: ...
    def finished(self, what: str, outcome: str) -> None:
        self.outcomes.append((what, outcome))


def kinds(found: dict[str, Any]) -> list[str]:
    return [warning["kind"] for warning in found["warnings"]]


def fetched_from(whole: Splits, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the splits that batches are taken from, from now on."""
    names = {id(whole.train.ids): "train", id(whole.validation.ids): "validation", id(whole.test.ids): "test"}
    fetched: list[str] = []
    batch = TransferSet.batch

    def spy(self: TransferSet, rows: Tensor, epoch: int = 0) -> Any:
        fetched.append(names.get(id(self.ids), "some"))
        return batch(self, rows, epoch)

    monkeypatch.setattr(TransferSet, "batch", spy)
    return fetched


def test_a_given_teacher_is_never_asked_about_the_test_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A temperature chosen by what is seen of the test split makes its accuracy too good."""
    whole = splits()
    teacher = CountingTeacher(good_teacher())
    fetched = fetched_from(whole, monkeypatch)
    inspect_teacher(study(splits=whole, teacher=teacher), tmp_path)
    assert "test" not in fetched
    assert "validation" in fetched
    asked = torch.cat(teacher.asked)
    assert not torch.isin(asked, whole.test.ids).any()
    assert set(asked.tolist()) == set(whole.train.ids.tolist()) | set(whole.validation.ids.tolist())


def test_what_it_says_does_not_depend_on_the_test_split(tmp_path: Path) -> None:
    """Where it trains the teacher, that arm is finished as a run finishes it; nothing of what it scored may be told."""
    told: list[dict[str, Any]] = []
    for place, seed in (("a", 3), ("b", 99)):
        whole = Splits(blobs(60, 1), blobs(30, 2), blobs(45, seed))
        recipe = TeacherTraining(whole.train, TRAINING)
        watch = Watch()
        found = inspect_teacher(study(splits=whole, teacher=student, teacher_training=recipe), tmp_path / place, watch)
        assert watch.outcomes == [("teacher", "ready")]
        told.append({key: value for key, value in found.items() if key not in ("started", "seconds")})
    assert told[0] == told[1]


def test_the_trained_teacher_is_reused_by_a_run(tmp_path: Path) -> None:
    """Trained elsewhere, it would be another teacher than the one that was inspected, and cost its training twice."""
    whole = splits()
    settings = {"splits": whole, "teacher": student, "teacher_training": TeacherTraining(whole.train, TRAINING)}
    inspect_teacher(study(**settings), tmp_path)
    before = (tmp_path / "teacher" / "model.safetensors").stat().st_mtime_ns
    watch = Watch()
    study(**settings, seeds=1, arms=["kd"]).run(tmp_path, watch)
    assert ("teacher", "done in an earlier run") in watch.outcomes
    assert (tmp_path / "teacher" / "model.safetensors").stat().st_mtime_ns == before


def test_after_a_run_its_students_stand_beside_the_teacher(tmp_path: Path) -> None:
    study().run(tmp_path)
    found = inspect_teacher(study(), tmp_path, command="tutelage inspect here")
    assert found["student"] == "kd/seed-0"
    (rival,) = found["rivals"]
    assert rival["kind"] == "student"
    assert rival["about"].startswith("2 seeds")
    assert found["temperatures"][0]["pull"]["trained"] != found["temperatures"][0]["pull"]["untrained"]
    assert json.loads((tmp_path / INSPECTION).read_text()) == json.loads(json.dumps(found))
    assert found["command"] == "tutelage inspect here"
    assert found["seconds"] > 0


def test_without_a_run_a_cheap_baseline_stands_there(tmp_path: Path) -> None:
    found = inspect_teacher(study(), tmp_path)
    assert found["student"] is None
    assert [rival["kind"] for rival in found["rivals"]] == ["baseline", "baseline"]
    majority, logistic = found["rivals"]
    assert majority["accuracy"] == pytest.approx(1 / CLASSES)
    assert logistic["accuracy"] > 0.7
    assert "to the 60 labels" in logistic["about"]


def test_a_worse_teacher_is_told(tmp_path: Path) -> None:
    """A study would train every arm before it showed that the teacher had nothing to teach."""
    torch.manual_seed(0)
    found = inspect_teacher(study(teacher=nn.Linear(WIDTH, CLASSES)), tmp_path)
    assert "worse_than_baseline" in kinds(found)


def test_a_permuted_teacher_is_told(tmp_path: Path) -> None:
    class Permuted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = good_teacher()

        def forward(self, inputs: Tensor) -> Tensor:
            return self.inner(inputs)[:, [1, 2, 0]]

    found = inspect_teacher(study(teacher=Permuted()), tmp_path)
    assert kinds(found)[0] == "permuted_labels"
    assert "its 0 (0) is your 1 (1)" in found["warnings"][0]["text"]
    assert "permuted_labels" not in kinds(inspect_teacher(study(), tmp_path / "good"))


def test_augmentation_is_measured_on_training_views(tmp_path: Path) -> None:
    noisy = Splits(blobs(60, 1, augment=GaussianNoise(6.0)), blobs(30, 2), blobs(45, 3))
    found = inspect_teacher(study(splits=noisy), tmp_path)
    seen = found["augmentation"]
    assert seen["augmented"]["accuracy"] < seen["plain"]["accuracy"] - 0.2
    assert seen["plain"]["accuracy"] == found["quality"]["train"]["accuracy"]
    assert seen["agreement"] < 0.8
    assert "augmentation" in kinds(found)
    assert inspect_teacher(study(), tmp_path / "plain")["augmentation"] is None


def test_the_teachers_own_labels_judge_it_where_the_student_has_none(tmp_path: Path) -> None:
    """Judged on the few labels that the student keeps, a teacher that learnt all by heart would not be found out."""
    whole = splits()
    few = Splits(whole.train.with_labels(None), whole.validation, whole.test)
    recipe = TeacherTraining(whole.train, TRAINING)
    blind = inspect_teacher(
        study(splits=few, teacher=student, teacher_training=recipe, objective=_soft_alone(), arms=["kd"]),
        tmp_path / "a",
    )
    assert blind["asked"]["labelled"] == 60
    assert blind["quality"]["train"]["examples"] == 60
    assert blind["advice"]["reasons"][0].startswith("100.0% of the transfer set has no label")
    given = inspect_teacher(study(splits=few, objective=_soft_alone(), arms=["kd"]), tmp_path / "b")
    assert given["quality"]["train"] is None
    assert given["rivals"] == []
    assert given["temperatures"][0]["pull"]["untrained"] is None


def _soft_alone() -> Any:
    from tutelage import KL

    return KL(temperature=1.0)


def test_an_ensemble_is_looked_at_as_it_teaches(tmp_path: Path) -> None:
    """The members' mean logits are not what a student hears, least of all at a high temperature."""
    torch.manual_seed(1)
    members = [good_teacher(), nn.Linear(WIDTH, CLASSES)]
    teacher = EnsembleTeacher(members, weights=[3.0, 1.0])
    whole = splits()
    found = inspect_teacher(study(splits=whole, teacher=teacher), tmp_path)
    assert found["teacher"] == {"given": True, "members": 2}
    inputs = whole.train.inputs
    assert isinstance(inputs, Tensor)
    with torch.no_grad():
        mixed = 0.75 * torch.softmax(members[0](inputs) / 4, 1) + 0.25 * torch.softmax(members[1](inputs) / 4, 1)
    entropy = -(mixed * mixed.log()).sum(1).mean()
    row = next(row for row in found["temperatures"] if row["temperature"] == 4)
    assert row["entropy"]["mean"] == pytest.approx(float(entropy), rel=1e-5)


def test_pictures_and_texts_are_shown_and_numbers_are_not(tmp_path: Path) -> None:
    shown = inspect_teacher(study(), tmp_path / "numbers")["examples"]["shown"]
    assert shown
    assert all(example["image"] is None and example["text"] is None for example in shown)
    assert {(example["label"], example["second"]) for example in shown} <= {
        (a, b) for a in "012" for b in "012" if a != b
    }
    assert len({(example["label"], example["second"]) for example in shown}) == len(shown)

    def pictures(count: int, seed: int) -> TransferSet:
        flat = blobs(count, seed)
        assert isinstance(flat.inputs, Tensor)
        return TransferSet(torch.nn.functional.pad(flat.inputs, (0, 8)).reshape(count, 1, 4, 4), flat.labels)

    def seeing() -> nn.Module:
        module = nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES))
        with torch.no_grad():
            module[1].weight.copy_(torch.eye(CLASSES, 16) * 2)  # type: ignore[union-attr]
        return module

    whole = Splits(pictures(60, 1), pictures(30, 2), pictures(45, 3))
    seen = inspect_teacher(study(splits=whole, teacher=seeing(), student=seeing), tmp_path / "pictures")
    assert all(example["image"].startswith("data:image/png;base64,") for example in seen["examples"]["shown"])


def test_a_teacher_of_other_settings_is_refused(tmp_path: Path) -> None:
    """The page of the folder's run would speak of a teacher that did not teach in it."""
    whole = splits()
    recipe = TeacherTraining(whole.train, TRAINING)
    inspect_teacher(study(splits=whole, teacher=student, teacher_training=recipe), tmp_path)
    before = (tmp_path / INSPECTION).read_bytes()
    other = TeacherTraining(whole.train, {**TRAINING, "learning_rate": 0.5})
    with pytest.raises(CheckpointError, match=r"learning_rate: 0\.05"):
        inspect_teacher(study(splits=whole, teacher=student, teacher_training=other), tmp_path)
    assert (tmp_path / INSPECTION).read_bytes() == before


def test_a_student_that_its_code_no_longer_builds_is_refused(tmp_path: Path) -> None:
    study(seeds=1).run(tmp_path)
    with pytest.raises(CheckpointError, match="do not fit the student"):
        inspect_teacher(study(seeds=1, student=lambda: nn.Linear(WIDTH, CLASSES, bias=False)), tmp_path)
