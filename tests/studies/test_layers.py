"""Arms that listen to layers: checked before anything is trained, and the teacher asked once where memory allows."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import CLASSES, TRAINING, WIDTH, splits, study
from torch import Tensor, nn

from tutelage import KL, CrossEntropy, EnsembleTeacher, MemoryTeacher, ModuleTeacher
from tutelage.data import GaussianNoise
from tutelage.errors import TutelageError
from tutelage.objectives import Hint
from tutelage.studies import Member, TeacherTraining, remembering
from tutelage.studies.remembering import RememberingTeacher, remembered

HINTED = KL() + 0.1 * Hint("0", "1", per_unit=True)


def student() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, 6), nn.Tanh(), nn.Linear(6, CLASSES))


def teacher() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return nn.Sequential(nn.Linear(WIDTH, 10), nn.Tanh(), nn.Linear(10, CLASSES))


class Counted(nn.Module):
    """A teacher that notes how many examples it is shown at once."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.asked = teacher(), []

    def forward(self, inputs: Tensor) -> Tensor:
        self.asked.append(len(inputs))
        return self.inner(inputs)


def hinted(**changes: Any) -> Any:
    given = {"student": student, "teacher": teacher(), "objective": HINTED, "arms": ["kd", "scratch"], **changes}
    return study(**given)


def test_a_hint_is_studied_and_a_second_run_knows_it_done(tmp_path: Path) -> None:
    """A finished arm is compared with the given teacher, a running one with kept answers: both must show the same layers, or
    it would be refused for nothing; and an objective of features alone needs the teacher as well."""
    made = hinted(extra_arms={"feature": CrossEntropy() + 0.1 * Hint("0", "0")})
    first = made.run(tmp_path)
    again = made.run(tmp_path)
    assert [row["metrics"] for row in first["arms"]["feature"]["seeds"]] == [
        row["metrics"] for row in again["arms"]["feature"]["seeds"]
    ]
    log = (tmp_path / "feature" / "seed-0" / "record.json").read_text()
    assert '"loss/hint"' in log
    names = {path.name for path in (tmp_path / "kd" / "seed-0").iterdir()}
    assert names == {"model.safetensors", "predictions.safetensors", "record.json"}, (
        "no projector is left in what is shipped"
    )


def test_the_teacher_is_asked_once_for_all_arms_and_seeds(tmp_path: Path) -> None:
    """Asked at each step, the teacher's forward passes would be most of a study's time."""
    counted = Counted()
    hint = 0.1 * Hint("0", "inner.1")
    objectives = {"objective": KL() + hint, "extra_arms": {"more": KL() + 2 * hint, "plain": KL()}}
    hinted(teacher=counted, **objectives).run(tmp_path)
    passes = [size for size in counted.asked if size == 60]
    assert len(passes) == 2, "the 60 training examples once for the layer, once for the logits alone"
    assert counted.asked.count(TRAINING["per_device_train_batch_size"]) == 0


def test_features_that_do_not_fit_are_asked_for_at_each_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A study that needs more memory than there is would end half-way; it must give the same students."""
    kept = hinted(seeds=1, arms=["kd"]).run(tmp_path / "kept")
    real = remembering.why_not_kept
    monkeypatch.setattr(remembering, "why_not_kept", lambda *given: real(*given, budget_bytes=100))
    counted = Counted()
    objective = KL() + 0.1 * Hint("0", "inner.1", per_unit=True)
    live = hinted(seeds=1, arms=["kd"], teacher=counted, objective=objective).run(tmp_path / "live")
    assert 16 in counted.asked
    assert live["arms"]["kd"]["mean"] == pytest.approx(kept["arms"]["kd"]["mean"], abs=1e-5)


def test_what_is_remembered() -> None:
    """One set of features at a time: a sweep over layer maps would fill the memory otherwise."""
    train = splits().train
    module = teacher()
    memory = remembered(ModuleTeacher(module), train)
    assert isinstance(memory, RememberingTeacher)
    batch = train.batch(torch.arange(5))
    first = memory.with_features(["0"])
    assert isinstance(first, MemoryTeacher)
    assert memory.with_features(["0"]) is first
    assert set(first.signals(batch).features) == {"0"}
    plain = memory.with_features([])
    memory.with_features(["0", "1"])
    assert memory.with_features([]) is plain
    assert memory.with_features(["0"]) is not first
    assert memory.signals(batch).features == {}
    noisy = replace(train, augment=GaussianNoise(0.1))
    live = ModuleTeacher(module)
    assert remembered(live, noisy) is live


class Tokens(nn.Module):
    """Shows so many tokens."""

    def __init__(self, length: int = 4) -> None:
        super().__init__()
        self.first, self.tokens = nn.Linear(WIDTH, length * 2), nn.Unflatten(1, (length, 2))
        self.last = nn.Linear(length * 2, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(self.tokens(self.first(inputs)).flatten(1))


RECIPE = TeacherTraining(splits().train, TRAINING)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"objective": KL() + Hint("block.0", "1")},
            "the arm 'kd': .*Sequential has no layer 'block.0'; the nearest are 0",
        ),
        ({"objective": KL() + Hint("0", "9")}, "the arm 'kd': .*Sequential has no layer '9'; there are 0, 1, 2"),
        (
            {"teacher": teacher, "teacher_training": RECIPE, "objective": KL() + Hint("0", "9")},
            "the arm 'kd': .*Sequential has no layer '9'",
        ),
        ({"extra_arms": {"other": KL() + Hint("3", "1")}}, "the arm 'other': .*Sequential has no layer '3'"),
        (
            {
                "teacher": Tokens,
                "teacher_training": RECIPE,
                "student": lambda: Tokens(5),
                "objective": KL() + Hint("tokens", "tokens"),
            },
            r"the arm 'kd': the student's 'tokens' shows \[2, 5, 2\] and the teacher's 'tokens' \[2, 4, 2\]",
        ),
        (
            {"teacher": EnsembleTeacher([teacher(), teacher()])},
            "the arm 'kd': .*the layers '1' are asked of an ensemble of 2",
        ),
        (
            {"teacher": [Member(teacher, RECIPE), Member(teacher, RECIPE)]},
            "the arm 'kd': .*the layers '1' are asked of an ensemble of 2",
        ),
        (
            {"teacher": "memory"},
            "the arm 'kd': .*the features of '1' are not among the teacher's kept answers",
        ),
    ],
)
def test_layers_that_are_not_there_or_cannot_meet_cost_no_training(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    """The teacher's training would come first, for hours, and then the message."""
    whole = splits()
    if changes.get("teacher") == "memory":
        everything = replace(whole.train, inputs=torch.cat([part.inputs for part in parts(whole)]), labels=None)
        changes = {"teacher": MemoryTeacher.of(teacher(), everything)}
    with pytest.raises(TutelageError, match=said):
        hinted(splits=whole, **changes).run(tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


def parts(whole: Any) -> list[Any]:
    return [whole.train, whole.validation, whole.test]
