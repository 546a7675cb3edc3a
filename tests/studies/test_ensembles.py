"""An ensemble's members: trained each on its own, weighed as asked, shown each beside the whole."""

from pathlib import Path
from typing import Any

import pytest
import torch
from company import Watch, loaded, right
from tiny import CLASSES, TRAINING, WIDTH, CountingTeacher, good_teacher, splits, student, study
from torch import nn

from tutelage import EnsembleTeacher
from tutelage.errors import CheckpointError, TutelageError
from tutelage.models import count_parameters
from tutelage.studies import Member, Study, TeacherTraining, open_run

WEIGHTS = (1.0, 3.0, 4.0)
SHARES = (0.125, 0.375, 0.5)
ALONE: dict[str, Any] = {"arms": ["kd"], "seeds": 1}


def trained(seed: int, **options: Any) -> Member:
    return Member(student, TeacherTraining(splits().train, TRAINING, seed=seed), **options)


def three(**options: Any) -> list[Member]:
    """Two that the run trains and one that is given."""
    return [trained(4, weight=1.0), trained(5, weight=3.0), Member(good_teacher(), weight=4.0)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Study, dict[str, Any]]:
    folder, whole = tmp_path_factory.mktemp("ensemble"), study(teacher=three(), seeds=2)
    return folder, whole, whole.run(folder)


def members_on_disk(folder: Path) -> list[nn.Module]:
    return [*(loaded(folder / "teacher" / f"member-{number}") for number in (1, 2)), good_teacher()]


def test_the_teacher_is_the_weighted_mean_of_its_members_probabilities(
    finished: tuple[Path, Study, dict[str, Any]],
) -> None:
    """Equal weights, or a mean of logits, would be another teacher under the same name."""
    folder, whole, result = finished
    test = whole.splits.test
    with torch.no_grad():
        said = [torch.softmax(member(test.inputs), 1) for member in members_on_disk(folder)]
    mixed = sum(share * p for share, p in zip(SHARES, said, strict=True))
    assert isinstance(mixed, torch.Tensor)
    nll = float(-mixed.log().gather(1, test.known_labels[:, None]).mean())
    record = result["arms"]["teacher"]
    assert record["mean"]["nll"] == pytest.approx(nll, rel=1e-5)
    assert record["mean"]["accuracy"] == pytest.approx(float((mixed.argmax(1) == test.known_labels).float().mean()))
    assert "3 models whose probabilities are averaged" in record["description"]


def test_each_member_is_recorded_with_its_share_and_its_own_numbers(
    finished: tuple[Path, Study, dict[str, Any]],
) -> None:
    """Beside the whole, the page shows what each of them knew alone."""
    folder, whole, result = finished
    test = whole.splits.test
    rows = result["members"]
    assert [row["name"] for row in rows] == ["member-1", "member-2", "member-3"]
    assert [row["weight"] for row in rows] == pytest.approx(SHARES)
    for row, module in zip(rows, members_on_disk(folder), strict=True):
        assert row["parameters"] == count_parameters(student())
        assert row["mean"]["accuracy"] == pytest.approx(right(module, test.inputs, test.known_labels))  # type: ignore[arg-type]
        assert row["seeds"][0]["metrics"]["accuracy"] == row["mean"]["accuracy"]
        assert row["ci95"]["accuracy"][0] <= row["mean"]["accuracy"] <= row["ci95"]["accuracy"][1]
    assert [row["seeds"][0]["seed"] for row in rows] == [4, 5, None]
    assert [row["seconds"] is None for row in rows] == [False, False, True]
    assert rows[0]["description"] == "trained by this run with seed 4"
    assert rows[2]["description"] == "given"


def test_the_costs_of_all_members_are_the_teachers(finished: tuple[Path, Study, dict[str, Any]]) -> None:
    """One member's cost would make the student look dearer than what it replaces."""
    _, _, result = finished
    assert result["cost"]["teacher"]["parameters"] == 3 * count_parameters(student())
    assert result["cost"]["teacher"]["flops_per_example"] == 3 * result["cost"]["student"]["flops_per_example"]
    assert [curve["seed"] for curve in result["evidence"]["curves"]["teacher"]] == [4, 5]


def test_an_ensemble_that_was_trained_whole_says_what_it_took(tmp_path: Path) -> None:
    """The teacher's training time is part of what its knowledge costs; of a given member nobody knows it."""
    result = study(teacher=[trained(1), trained(2)], **ALONE).run(tmp_path)
    (row,) = result["arms"]["teacher"]["seeds"]
    assert row["seconds"] == pytest.approx(sum(member["seconds"] for member in result["members"]))
    assert row["steps"] == 16
    assert row["seed"] is None


def test_a_given_ensemble_shows_its_members_and_asks_nobody_twice(tmp_path: Path) -> None:
    members = [CountingTeacher(good_teacher()), CountingTeacher(student())]
    whole = splits()
    result = study(splits=whole, teacher=EnsembleTeacher(members, [1, 3]), **ALONE).run(tmp_path)
    assert [row["weight"] for row in result["members"]] == [0.25, 0.75]
    assert result["members"][0]["parameters"] is None
    for member in members:
        asked = torch.cat(member.asked)
        assert int(torch.isin(asked, whole.test.ids).sum()) == len(whole.test)


def test_a_run_that_is_opened_again_has_the_same_teacher(finished: tuple[Path, Study, dict[str, Any]]) -> None:
    """Export and check hold the student against the ensemble: with other members or weights, against somebody else."""
    folder, whole, result = finished
    run = open_run(whole, folder)
    teacher = run.teacher
    assert isinstance(teacher, EnsembleTeacher)
    assert teacher.weights.tolist() == pytest.approx(SHARES)
    labels = whole.splits.test.known_labels.numpy()
    accuracy = (run.test_logits["teacher"][0].argmax(1) == labels).mean()
    assert accuracy == pytest.approx(result["arms"]["teacher"]["mean"]["accuracy"])


def test_each_member_goes_on_where_it_was_cut_off(tmp_path: Path) -> None:
    """Five members are hours of work: the third one's crash must not cost the first two."""
    whole = study(teacher=three(), training={**TRAINING, "save_steps": 1}, together=False, **ALONE)
    watch = Watch(at="teacher member-2")
    with pytest.raises(KeyboardInterrupt):
        whole.run(tmp_path / "cut", watch)
    assert watch.trained == ["teacher member-1, seed 4"]
    again = Watch()
    whole.run(tmp_path / "cut", again)
    assert again.found == ["teacher member-1, seed 4"]
    whole.run(tmp_path / "whole")
    for place in ("teacher/member-1", "teacher/member-2", "kd/seed-0"):
        kept = [(tmp_path / run / place / "model.safetensors").read_bytes() for run in ("cut", "whole")]
        assert kept[0] == kept[1], place


def test_another_weight_is_another_teacher_and_trains_no_member_again(tmp_path: Path) -> None:
    """The finished student was taught by another mixture; the members are what they were."""
    study(teacher=[trained(1), trained(2)], **ALONE).run(tmp_path)
    watch = Watch()
    with pytest.raises(CheckpointError, match="teacher: 'EnsembleTeacher"):
        study(teacher=[trained(1), trained(2, weight=2.0)], **ALONE).run(tmp_path, watch)
    assert watch.found == ["teacher member-1, seed 1", "teacher member-2, seed 2"]
    assert watch.trained == []


@pytest.mark.parametrize(
    ("teacher", "more", "said"),
    [
        ([], {}, "at least one member"),
        ([trained(0), trained(1, weight=-1.0)], {}, "none negative"),
        ([trained(0, weight=0.0)], {}, "not all zero"),
        ([good_teacher()], {}, r"a list with a Linear, expected Member"),
        ([trained(0)], {"teacher_training": TeacherTraining(splits().train, TRAINING)}, "which of them it trains"),
        ([trained(0), Member(nn.Linear(WIDTH, CLASSES + 1))], {}, "member-2 of the ensemble: .* teacher has 4 classes"),
        (
            [Member(lambda: nn.Linear(WIDTH, 2), TeacherTraining(splits().train, TRAINING)), trained(0)],
            {},
            "member-1 of the ensemble: .* teacher has 2 classes",
        ),
        (
            [trained(0), Member(student, TeacherTraining(splits().train, {"optim": "magic"}))],
            {},
            "member-2 of the ensemble: training: .*magic",
        ),
        ([Member(student)], {}, "member-1 of the ensemble: .* random weights"),
        (
            [Member(good_teacher(), TeacherTraining(splits().train, TRAINING))],
            {},
            "member-1 of the ensemble: .*a function that makes the fresh module",
        ),
    ],
)
def test_a_misfit_is_found_before_any_member_is_trained(
    tmp_path: Path, teacher: list[Any], more: dict[str, Any], said: str
) -> None:
    """The last of five members would otherwise fail after the first four hours."""
    with pytest.raises(TutelageError, match=said):
        study(teacher=teacher, **more).run(tmp_path / "run")
    assert not list(tmp_path.rglob("checkpoint*"))
