"""Both roads through a study's plans leave the same, and each goes on from what the other left."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from killed_together import OBJECTIVES, STEPS, plans
from safetensors.torch import load_file
from tiny import study
from torch import nn

from forked import forked
from tutelage.errors import CheckpointError, ConfigError
from tutelage.studies import together
from tutelage.studies.arm import CHECKPOINTS, TOGETHER, ArmPlan, Silent, run_arm
from tutelage.studies.together import run_all
from tutelage.training import DistillationTrainer
from tutelage.training.stacked import StackedTrainer

SCRIPT = Path(__file__).with_name("killed_together.py")


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "record.json").read_text())


def student_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same_bits(a: ArmPlan, b: ArmPlan) -> bool:
    left, right = student_of(a.folder), student_of(b.folder)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


class Watch(Silent):
    """Notes what is begun and finished; stops as a crash would after ``crash_after`` arms or at a step."""

    def __init__(self, crash_after: int = 10**9, crash_at: int = 10**9) -> None:
        self.begun: list[tuple[str, int]] = []
        self.done: list[str] = []
        self.crash_after, self.crash_at = crash_after, crash_at

    def started(self, what: str, total_steps: int, steps_done: int) -> None:
        self.begun.append((what, steps_done))

    def advanced(self, steps_done: int) -> None:
        if steps_done == self.crash_at:
            raise KeyboardInterrupt

    def finished(self, what: str, outcome: str) -> None:
        self.done.append(what)
        if len(self.done) == self.crash_after:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All plans, trained together without a break."""
    folder = tmp_path_factory.mktemp("whole")
    run_all(plans(folder), Silent())
    return folder


@pytest.fixture(scope="module")
def one_by_one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All plans, each alone."""
    folder = tmp_path_factory.mktemp("one-by-one")
    run_all(plans(folder), Silent(), together=False)
    return folder


def test_both_roads_leave_the_same(one_by_one: Path, whole: Path) -> None:
    """Where the records differed, a study would be read by the code of one road and refused by the other's."""
    for run, plan in zip(plans(one_by_one), plans(whole), strict=True):
        one, other = record(run.folder), record(plan.folder)
        assert other.pop("together") == 4
        assert {*one} == {*other}
        assert one["fingerprint"] == other["fingerprint"]
        assert {*one["files"]} == {*other["files"]}
        assert one["steps"] == other["steps"] == STEPS
        for name, values in student_of(run.folder).items():
            torch.testing.assert_close(student_of(plan.folder)[name], values, rtol=1e-5, atol=1e-5)
        curves = [[line["eval_nll"] for line in each["log"] if "eval_nll" in line] for each in (one, other)]
        assert len(curves[0]) == 4
        assert curves[1] == pytest.approx(curves[0], abs=1e-5)
        losses = [[line for line in each["log"] if "loss" in line] for each in (one, other)]
        assert [line.keys() for line in losses[0]] == [line.keys() for line in losses[1]]
        assert sorted(path.name for path in plan.folder.iterdir()) == sorted(path.name for path in run.folder.iterdir())


def test_either_road_reads_what_the_other_left(one_by_one: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Choosing another road must not train a finished study again, nor let a changed one pass."""

    def nobody(*_: Any, **__: Any) -> None:
        pytest.fail("a finished arm was trained again")

    monkeypatch.setattr(StackedTrainer, "train", nobody)
    monkeypatch.setattr(DistillationTrainer, "train", nobody)
    for folder, road in ((whole, False), (one_by_one, True), (whole, None)):
        watch = Watch()
        assert [run.arm for run in run_all(plans(folder), watch, together=road)] == ["warm"] * 2 + ["scratch"] * 2
        assert watch.begun == []
    with pytest.raises(CheckpointError, match="learning_rate"):
        run_all(plans(whole, training={"learning_rate": 0.5}), Silent())


def test_killed_and_run_again_ends_bit_for_bit_the_same(tmp_path: Path, whole: Path) -> None:
    """A killed process leaves only what is on disk: a moment or a batch that is not would change every student."""
    sitting = forked(SCRIPT, tmp_path, 13)
    assert sitting.returncode == -signal.SIGKILL, sitting.stderr
    host = plans(tmp_path)[0].folder / TOGETHER
    assert sorted(path.name for path in host.iterdir()) == ["checkpoint-10", "checkpoint-12"]
    watch = Watch()
    run_all(plans(tmp_path), watch)
    assert watch.begun == [("4 students at once (warm × 2, scratch × 2)", 12)]
    assert all(same_bits(a, b) for a, b in zip(plans(tmp_path), plans(whole), strict=True))
    assert not host.exists()


@pytest.mark.parametrize("committed", [1, 3])
def test_killed_while_arms_are_committed(tmp_path: Path, whole: Path, committed: int) -> None:
    """The stack's checkpoints lie with one of its arms: were that one committed first, the others would be trained again."""
    with pytest.raises(KeyboardInterrupt):
        run_all(plans(tmp_path), Watch(crash_after=committed))
    watch = Watch()
    run_all(plans(tmp_path), watch)
    assert [steps for _, steps in watch.begun] == [STEPS]
    assert len(watch.done) == 4
    assert all(same_bits(a, b) for a, b in zip(plans(tmp_path), plans(whole), strict=True))


def test_finished_begun_and_new_plans_at_once(tmp_path: Path, whole: Path) -> None:
    """One arm is done, one was begun alone, a stack of others was cut off, and more seeds are asked for: each goes on where it
    is, and nobody's checkpoint is another's."""
    first, second, third, fourth = plans(tmp_path)
    run_arm(first, Silent())
    with pytest.raises(KeyboardInterrupt):
        run_arm(second, Watch(crash_at=9))
    with pytest.raises(KeyboardInterrupt):
        run_all([third, fourth], Watch(crash_at=9))
    assert list((second.folder / CHECKPOINTS).glob("checkpoint-*"))
    watch = Watch()
    runs = run_all(plans(tmp_path, seeds=4), watch)
    assert [(run.arm, run.seed) for run in runs] == [(arm, seed) for arm in OBJECTIVES for seed in range(4)]
    assert watch.begun == [
        ("warm, seed 1", 8),
        ("4 students at once (warm × 2, scratch × 2)", 0),
        ("2 students at once (scratch × 2)", 8),
    ]
    for plan, expected in zip((first, second, third, fourth), plans(whole), strict=True):
        for name, values in student_of(expected.folder).items():
            torch.testing.assert_close(student_of(plan.folder)[name], values, rtol=1e-5, atol=1e-5)
    assert not list(tmp_path.rglob("checkpoint*"))


def test_what_must_train_alone_is_refused_where_together_is_demanded(tmp_path: Path) -> None:
    """Whoever asks for a stack plans with its time; and the reason is found before anything is trained."""

    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(8, 3), nn.Dropout(0.5))

    with pytest.raises(ConfigError, match=r"warm, seed 0 cannot be trained with others: .*dropout"):
        run_all(plans(tmp_path, build=build), Watch(), together=True)
    with pytest.raises(ConfigError, match="gradient_accumulation_steps"):
        run_all(plans(tmp_path, training={"gradient_accumulation_steps": 2}), Watch(), together=True)
    watch = Watch()
    run_all(plans(tmp_path, seeds=1, build=build, training={"max_steps": 2}), watch)
    assert [what for what, _ in watch.begun] == ["warm, seed 0", "scratch, seed 0"]


def test_one_plan_is_nobodys_neighbour(tmp_path: Path) -> None:
    """A study's teacher is a single plan, and must not be refused for the company that its students are to have."""
    watch = Watch()
    run_all(plans(tmp_path, training={"max_steps": 2})[:1], watch, together=True)
    assert watch.begun == [("warm, seed 0", 0)]


def test_memory_splits_a_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of trials in one stack would not fit; nor may one of a hundred and one be left over by itself."""
    parameters = sum(values.numel() for values in plans(tmp_path)[0].build().parameters())
    monkeypatch.setattr(together, "MEMORY", 3 * parameters * together.BYTES_A_PARAMETER)
    watch = Watch()
    run_all(plans(tmp_path, seeds=3, training={"max_steps": 2}), watch)
    assert [what for what, _ in watch.begun] == ["3 students at once (warm × 3)", "3 students at once (scratch × 3)"]


def test_a_study_says_the_same_on_both_roads(tmp_path: Path) -> None:
    """The verdict must not depend on how the time was saved."""
    results = {road: study(together=road).run(tmp_path / str(road)) for road in (None, False)}
    assert record(tmp_path / "None" / "kd" / "seed-0")["together"] == 6
    for arm, one in results[False]["arms"].items():
        assert results[None]["arms"][arm]["mean"] == pytest.approx(one["mean"], abs=1e-5)
        assert results[None]["arms"][arm]["ci95"]["accuracy"] == pytest.approx(one["ci95"]["accuracy"], abs=1e-6)
    assert results[None]["verdict"]["decision"] == results[False]["verdict"]["decision"]
