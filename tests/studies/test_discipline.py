"""What makes the evidence fair: one start, one order and one budget for all arms; and a test split that teaches nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from tiny import TRAINING, CountingTeacher, blobs, good_teacher, recording, splits, student, study, without_labels
from torch import Tensor, nn

from tutelage import KL, CrossEntropy, MemoryTeacher
from tutelage.data import GaussianNoise, Splits
from tutelage.errors import CheckpointError, ConfigError, TutelageError
from tutelage.studies import TeacherTraining


def trained(log: list[tuple[Tensor, list[Tensor]]]) -> list[tuple[Tensor, list[Tensor]]]:
    return [(weights, seen) for weights, seen in log if seen]


def test_arms_of_a_seed_share_start_order_and_steps_and_seeds_differ(tmp_path: Path) -> None:
    """Different budgets or starts for method and baseline are the commonest way to find a gain that is not there."""
    log: list[tuple[Tensor, list[Tensor]]] = []
    result = study(student=recording(log), together=False, extra_arms={"hot": KL(temperature=4.0)}).run(tmp_path)
    runs = trained(log)
    assert len(runs) == 8
    for seed in (0, 1):
        (weights, seen), *others = runs[seed::2]
        for other_weights, other_seen in others:
            assert torch.equal(weights, other_weights)
            assert len(seen) == len(other_seen) == 8
            assert all(torch.equal(a, b) for a, b in zip(seen, other_seen, strict=True))
    assert not torch.equal(runs[0][0], runs[1][0])
    assert not torch.equal(runs[0][1][0], runs[1][1][0])
    steps = {row["steps"] for name, arm in result["arms"].items() if name != "teacher" for row in arm["seeds"]}
    assert steps == {8}


def test_the_test_split_is_opened_after_training_and_changes_no_weight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A best epoch chosen on the test split makes every number too good."""
    from tutelage import TransferSet

    whole = splits()
    other = Splits(whole.train, whole.validation, blobs(45, 99))
    fetched: list[str] = []
    batch = TransferSet.batch

    def spy(self: TransferSet, rows: Tensor, epoch: int = 0) -> Any:
        known = {id(whole.train.ids): "train", id(whole.test.ids): "test", id(whole.validation.ids): "validation"}
        fetched.append(known.get(id(self.ids), "?"))
        return batch(self, rows, epoch)

    monkeypatch.setattr(TransferSet, "batch", spy)

    class Watch:
        def started(self, what: str, total_steps: int, steps_done: int) -> None:
            fetched.append(f"start {what}")

        def advanced(self, steps_done: int) -> None:
            fetched.append("step")

        def finished(self, what: str, outcome: str) -> None:
            fetched.append("finished")

    study(splits=whole, arms=["kd"], seeds=2).run(tmp_path / "a", Watch())
    assert "?" not in fetched
    first = fetched.index("test")
    assert "step" in fetched[:first]
    for place, what in enumerate(fetched):
        if what == "test":
            assert (
                "step" not in fetched[place : place + fetched[place:].index("finished")]
                if "finished" in fetched[place:]
                else True
            )
    assert fetched.count("test") == 5, (
        "once for each student, once for the teacher, twice for the cost: of one example and of many"
    )
    study(splits=other, arms=["kd"], seeds=2).run(tmp_path / "b")
    for seed in (0, 1):
        weights = [(tmp_path / run / "kd" / f"seed-{seed}" / "model.safetensors").read_bytes() for run in ("a", "b")]
        assert weights[0] == weights[1]


def test_a_teacher_whose_view_is_fixed_is_asked_once_for_all_arms(tmp_path: Path) -> None:
    teacher = CountingTeacher(good_teacher())
    whole = splits()
    study(splits=whole, teacher=teacher, extra_arms={"hot": KL(temperature=4.0)}).run(tmp_path)
    asked = torch.cat(teacher.asked)
    for example in whole.train.ids.tolist():
        # two examples are looked at beforehand, to count the classes, and one again, to see what all answers would take
        assert int((asked == example).sum()) <= 3
    assert int(torch.isin(asked, whole.train.ids).sum()) == 60 + 2 + 1
    assert int(torch.isin(asked, whole.test.ids).sum()) == 45
    assert not torch.isin(asked, whole.validation.ids).any()


def test_a_teacher_whose_view_varies_is_asked_live_about_what_the_student_sees(tmp_path: Path) -> None:
    """An answer kept from one epoch would be learnt for another epoch's inputs."""
    log: list[tuple[Tensor, list[Tensor]]] = []
    teacher = CountingTeacher(good_teacher())
    whole = splits()
    noisy = Splits(blobs(60, 1, augment=GaussianNoise(0.5)), whole.validation, whole.test)
    study(splits=noisy, teacher=teacher, student=recording(log), arms=["kd"], seeds=1).run(tmp_path)
    ((_, seen),) = trained(log)
    assert len(seen) == 8
    for batch in seen:
        assert any(batch.shape == view.shape and torch.equal(batch, view) for view in teacher.seen)
    assert not torch.equal(torch.cat(seen[:4]).sort(0)[0], torch.cat(seen[4:]).sort(0)[0]), "epochs differ"


def test_arms_without_labels_learn_from_the_teacher_alone(tmp_path: Path) -> None:
    result = study(splits=without_labels(splits()), objective=KL(temperature=1.0), arms=["kd"]).run(tmp_path)
    assert result["transfer"] == {"examples": 60, "labelled": 0, "unlabelled": 60}
    assert result["arms"]["kd"]["mean"]["accuracy"] > 0.6
    assert result["verdict"]["decision"] == "hold"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "'cross_entropy' of the arm 'kd' learns from labels alone"),
        ({"objective": KL(temperature=1.0)}, "'cross_entropy' of the arm 'scratch' learns from labels alone"),
        ({"objective": KL(1.0), "arms": ["kd"], "extra_arms": {"hard": CrossEntropy()}}, "of the arm 'hard'"),
    ],
)
def test_an_arm_that_lacks_labels_is_found_before_the_teacher_is_trained(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    whole = splits()
    recipe = TeacherTraining(whole.train, TRAINING)
    with pytest.raises(ConfigError, match=said):
        study(splits=without_labels(whole), teacher=student, teacher_training=recipe, **changes).run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_more_seeds_and_arms_reuse_what_is_finished(tmp_path: Path) -> None:
    first = study(seeds=1, arms=["kd"]).run(tmp_path)
    before = (tmp_path / "kd" / "seed-0" / "model.safetensors").stat()
    outcomes: list[tuple[str, str]] = []

    class Watch:
        def started(self, what: str, total_steps: int, steps_done: int) -> None: ...
        def advanced(self, steps_done: int) -> None: ...
        def finished(self, what: str, outcome: str) -> None:
            outcomes.append((what, outcome))

    more = study(seeds=2).run(tmp_path, Watch())
    after = (tmp_path / "kd" / "seed-0" / "model.safetensors").stat()
    assert (before.st_mtime_ns, before.st_ino) == (after.st_mtime_ns, after.st_ino)
    assert [what for what, outcome in outcomes if outcome == "done in an earlier run"] == ["kd, seed 0"]
    assert len(outcomes) == 6
    assert more["arms"]["kd"]["seeds"][0] == first["arms"]["kd"]["seeds"][0]
    assert not list(tmp_path.rglob("checkpoints"))
    assert study(seeds=2).run(tmp_path)["arms"] == more["arms"]


def _noisy_labels() -> Splits:
    whole = splits()
    return Splits(whole.train, whole.validation, whole.test.with_labels(whole.test.known_labels.roll(1)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"training": {**TRAINING, "learning_rate": 0.1}}, "learning_rate: 0.05"),
        ({"objective": KL(temperature=2.0)}, "objective:"),
        ({"student": lambda: nn.Linear(8, 3, bias=False)}, "student:"),
        ({"splits": Splits(blobs(61, 1), blobs(30, 2), blobs(45, 3))}, "transfer_set:"),
        ({"splits": Splits(blobs(60, 1), blobs(31, 2), blobs(45, 3))}, "validation_set:"),
        ({"splits": Splits(blobs(60, 1), blobs(30, 2), blobs(45, 9))}, "test_set:"),
        ({"splits": _noisy_labels()}, "test_set:"),
        ({"splits": splits(student_view=lambda x, _: x)}, "student_view:"),
        ({"teacher": nn.Linear(8, 3)}, "teacher:"),
        ({"fingerprint": {"data.labelled": 4}}, "data.labelled: None"),
    ],
)
def test_a_changed_study_is_refused_with_the_difference(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    """Finished arms judged on another test split than the one they answered would be compared row by wrong row."""
    study(seeds=1, arms=["kd"]).run(tmp_path)
    before = (tmp_path / "result.json").read_bytes()
    with pytest.raises(CheckpointError) as caught:
        study(seeds=1, arms=["kd"], **changes).run(tmp_path)
    assert said in str(caught.value)
    assert (tmp_path / "result.json").read_bytes() == before


def test_another_view_is_another_study(tmp_path: Path) -> None:
    from tutelage.data import Normalise

    study(splits=splits(student_view=Normalise(0.0, 1.0)), seeds=1, arms=["kd"]).run(tmp_path)
    with pytest.raises(CheckpointError, match=r"student_view: .*1\.0.*2\.0"):
        study(splits=splits(student_view=Normalise(0.0, 2.0)), seeds=1, arms=["kd"]).run(tmp_path)


def test_gates_and_title_may_change_without_training_anew(tmp_path: Path) -> None:
    from tutelage.studies import Gates

    study(seeds=1).run(tmp_path)
    again = study(seeds=1, title="renamed", gates=Gates(ece=0.5)).run(tmp_path)
    assert again["title"] == "renamed"
    assert len(again["verdict"]["gates"]) == 3


@pytest.mark.parametrize("damage", ["truncate", "remove"])
def test_damaged_predictions_are_named_with_the_remedy(tmp_path: Path, damage: str) -> None:
    study(seeds=1, arms=["kd"]).run(tmp_path)
    path = tmp_path / "kd" / "seed-0" / "predictions.safetensors"
    if damage == "truncate":
        path.write_bytes(path.read_bytes()[:20])
    else:
        path.unlink()
    with pytest.raises(TutelageError, match=r"remove .*seed-0 to train it anew"):
        study(seeds=1, arms=["kd"]).run(tmp_path)


def test_a_given_teacher_is_left_as_it_was(tmp_path: Path) -> None:
    """A study that flips a user's module to eval mode, or trains it, changes what the user does next."""
    teacher = nn.Sequential(nn.Linear(8, 3), nn.Dropout(0.5), nn.BatchNorm1d(3)).train()
    teacher[2].eval()
    before = {name: values.clone() for name, values in teacher.state_dict().items()}
    study(teacher=teacher, seeds=1, arms=["kd"]).run(tmp_path)
    assert [module.training for module in teacher.modules()] == [True, True, True, False]
    assert all(torch.equal(values, before[name]) for name, values in teacher.state_dict().items())
    assert not any(parameter.grad is not None for parameter in teacher.parameters())


def test_a_finished_arm_without_its_student_is_not_finished(tmp_path: Path) -> None:
    """The numbers were reported again, of a student that was no longer there."""
    study(seeds=1, arms=["kd"]).run(tmp_path)
    (tmp_path / "kd" / "seed-0" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"kd.seed-0 is damaged .* remove .* to train it anew"):
        study(seeds=1, arms=["kd"]).run(tmp_path)


def test_other_answers_in_memory_are_another_teacher(tmp_path: Path) -> None:
    """Finished students were compared with a teacher that had not taught them."""
    whole = splits()
    ids = torch.cat([whole.train.ids, whole.validation.ids, whole.test.ids])
    inputs = torch.cat([part.inputs for part in (whole.train, whole.validation, whole.test)])  # type: ignore[misc]
    with torch.no_grad():
        answers = good_teacher()(inputs)
    study(teacher=MemoryTeacher(ids, answers), seeds=1, arms=["kd"]).run(tmp_path)
    changed = answers.clone()
    changed[-1] = -changed[-1]  # an example of the test split
    with pytest.raises(CheckpointError, match="teacher: 'MemoryTeacher"):
        study(teacher=MemoryTeacher(ids, changed), seeds=1, arms=["kd"]).run(tmp_path)


def test_a_custom_teacher_that_answers_otherwise_is_another_teacher(tmp_path: Path) -> None:
    """Only its class name was compared, which says nothing of the model behind it."""
    study(teacher=CountingTeacher(good_teacher()), seeds=1, arms=["kd"]).run(tmp_path)
    with pytest.raises(CheckpointError, match="teacher: the first examples give"):
        study(teacher=CountingTeacher(student()), seeds=1, arms=["kd"]).run(tmp_path)


def test_a_view_of_the_same_name_that_does_something_else_is_another_view(tmp_path: Path) -> None:
    """The old result came back beside a config that no longer made it."""

    def run(scale: float) -> None:
        def view(inputs: Any, draws: Any) -> Any:
            return inputs * scale

        view.random = False  # type: ignore[attr-defined]
        study(splits=splits(student_view=view), seeds=1, arms=["kd"]).run(tmp_path)

    run(1.0)
    with pytest.raises(CheckpointError, match="student_view: the first examples give"):
        run(3.0)


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    """The second deleted the first's half-written checkpoint, and the first died of it."""
    with FileLock(tmp_path / ".lock"), pytest.raises(ConfigError, match="another run is at work"):
        study(seeds=1).run(tmp_path)
