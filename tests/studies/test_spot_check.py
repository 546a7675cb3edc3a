"""A few stored rows beside what the live teacher says of them now: what differs is told from rounding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import CLASSES, CountingTeacher, blobs, good_teacher
from torch import Tensor, nn

from tutelage import ModuleTeacher
from tutelage.errors import TeacherError
from tutelage.labels import Form
from tutelage.signals import Logits, Signals
from tutelage.studies import label, spot_check

SAMPLED = Form("sampled", CLASSES, temperature=1.0, draws=16)
DENSE = Form("dense", CLASSES, dtype="float32")


class Sharper:
    """The teacher's weights, and code that changed."""

    def __init__(self, by: float) -> None:
        self.by = by

    def signals(self, batch: Any) -> Signals:
        said = ModuleTeacher(good_teacher()).signals(batch).logits
        assert isinstance(said, Logits)
        return Signals(Logits(said.values * self.by))


@pytest.mark.parametrize(
    "form",
    [DENSE, Form("dense", CLASSES), Form("dense", CLASSES, dtype="bfloat16"), SAMPLED]
    + [Form("top_k", CLASSES, temperature=2.0, k=2, dtype=dtype) for dtype in ("float16", "float32")],
    ids=lambda form: f"{form.kind}-{form.dtype}",
)
def test_the_live_teacher_is_asked_again(tmp_path: Path, form: Form) -> None:
    """Weights can be the same while the code around them is not: then the store and the teacher say different things."""
    train = blobs(30, 1)
    store = label(good_teacher(), train, tmp_path / "labels", form)
    found = spot_check(store, ModuleTeacher(good_teacher()), train, 8)
    assert (found.examples, found.rows) == (8, 8)
    assert found.worst <= found.tolerance < 0.11
    assert spot_check(store, Sharper(1 + 1e-6), train, 8).worst <= found.tolerance
    with pytest.raises(TeacherError, match=r"not what the teacher says now: of example [0-9a-f]{16}"):
        spot_check(store, Sharper(3.0), train, 8)


@pytest.mark.parametrize("draws", [1, 2, 4, 64])
def test_few_draws_tell_another_teacher_too(tmp_path: Path, draws: int) -> None:
    """Of one draw a row can be no further away than 1: looked at row by row, another teacher passed for rounding."""
    train = blobs(200, 1)
    form = Form("sampled", CLASSES, temperature=1.0, draws=draws)
    store = label(good_teacher(), train, tmp_path / "labels", form)
    found = spot_check(store, ModuleTeacher(good_teacher()), train, 40)
    assert found.tolerance <= 1
    assert found.moved == 0
    assert found.may_move is not None
    assert found.may_move < 5
    assert spot_check(store, Sharper(1 + 1e-6), train, 40).tolerance <= 1
    with pytest.raises(TeacherError, match="not what the teacher says now"):
        spot_check(store, Reversed(), train, 40, seed=0)


def test_one_row_of_one_draw_is_looked_at(tmp_path: Path) -> None:
    train = blobs(9, 1)
    store = label(good_teacher(), train, tmp_path / "labels", Form("sampled", CLASSES, temperature=1.0, draws=1))
    assert spot_check(store, ModuleTeacher(good_teacher()), train, 1).may_move == 0


class Reversed:
    """The classes in another order."""

    def signals(self, batch: Any) -> Signals:
        said = ModuleTeacher(good_teacher()).signals(batch).logits
        assert isinstance(said, Logits)
        return Signals(Logits(said.values.flip(1)))


class Off(nn.Module):
    """A common offset on all logits, which no probability sees."""

    def __init__(self, by: float = 1.0, mask: bool = False) -> None:
        super().__init__()
        self.inner, self.by, self.mask = good_teacher(), by, mask

    def forward(self, inputs: Tensor) -> Tensor:
        logits = self.by * self.inner(inputs) + 500.0
        return logits.index_fill(1, torch.tensor([2]), -torch.inf) if self.mask else logits


@pytest.mark.parametrize(("dtype", "by"), [("float32", 0.9), ("float16", 0.5)])
def test_a_common_offset_hides_nothing(tmp_path: Path, dtype: str, by: float) -> None:
    """Relative to a logit of 500 any difference between the classes is small."""
    train = blobs(30, 1)
    store = label(Off(), train, tmp_path / "labels", Form("dense", CLASSES, dtype=dtype))
    found = spot_check(store, ModuleTeacher(Off()), train, 30)
    assert found.worst <= found.tolerance < 0.5
    with pytest.raises(TeacherError, match="of its spread away"):
        spot_check(store, ModuleTeacher(Off(by)), train, 30)


def test_masked_classes_are_compared_as_masks(tmp_path: Path) -> None:
    """−inf less −inf is no number: it would pass for any difference, or for none."""
    train = blobs(30, 1)
    store = label(ModuleTeacher(Off(mask=True), allow_masked_classes=True), train, tmp_path / "labels", DENSE)
    assert spot_check(store, ModuleTeacher(Off(mask=True), allow_masked_classes=True), train).worst < 1e-4
    with pytest.raises(TeacherError, match="is inf of its spread away"):
        spot_check(store, ModuleTeacher(Off()), train)


def test_the_spot_check_looks_at_features(tmp_path: Path) -> None:
    """Terms on layers would learn from features that the teacher does not have any more, while its logits are the same."""
    module = nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, CLASSES))
    train = blobs(30, 1)
    store = label(module, train, tmp_path / "labels", replace(DENSE, features=("0",)))
    assert spot_check(store, ModuleTeacher(module), train).worst < 1e-4
    with torch.no_grad():
        for name in ("weight", "bias"):
            first = getattr(module[0], name)
            first.copy_(first.flip(0))
        module[2].weight.copy_(module[2].weight.flip(1))  # pyright: ignore
    with pytest.raises(TeacherError, match="of the largest feature of '0' away"):
        spot_check(store, ModuleTeacher(module), train)


def test_other_examples_are_looked_at_each_time(tmp_path: Path) -> None:
    """The same eight at every opening would leave the others unseen for ever."""
    train = blobs(200, 1)
    store = label(good_teacher(), train, tmp_path / "labels", SAMPLED)
    teacher = CountingTeacher(good_teacher())
    for _ in range(6):
        spot_check(store, teacher, train)
    assert len(torch.cat(teacher.asked).unique()) > 20
    assert spot_check(store, good_teacher(), train).worst == 0, "a module is a teacher, as for label"
    spot_check(store, teacher, train, seed=1)
    spot_check(store, teacher, train, seed=1)
    assert torch.equal(*teacher.asked[-2:])
