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
from tutelage.labels.sampling import row_keys, sample
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
    """One draw a row says little of one row: another teacher would pass for rounding if its place were not looked at."""
    train = blobs(200, 1)
    form = Form("sampled", CLASSES, temperature=1.0, draws=draws)
    store = label(good_teacher(), train, tmp_path / "labels", form)
    found = spot_check(store, ModuleTeacher(good_teacher()), train, 40)
    assert found.worst == 0
    assert 0 < spot_check(store, Sharper(1 + 1e-6), train, 40).tolerance < 0.01
    with pytest.raises(TeacherError, match="not what the teacher says now"):
        spot_check(store, Reversed(), train, 40, seed=0)


class LongTail(nn.Module):
    """Some 20,000 classes that are almost alike, as the first word of a text has, and what another order of sums makes of them."""

    def __init__(self, rounding: float = 0.0, by: float = 1.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(8, 20_000, generator=generator) * by)
        self.rounding = rounding * torch.randn(20_000, generator=generator)

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ self.weight + self.rounding


def test_several_draws_of_a_row_may_fall_otherwise_in_a_long_tail(tmp_path: Path) -> None:
    """Rounding moves a point past the edges of many small classes: a run of ten minutes' labelling was refused for it."""
    train = blobs(30, 1)
    form = Form("sampled", 20_000, temperature=1.0, draws=50)
    store = label(LongTail(), train, tmp_path / "labels", form)
    other = LongTail(rounding=1e-4)
    ids = train.ids
    again = sample(
        Logits(other(train.batch(torch.arange(30))["student"]).detach()), row_keys(ids, seed=train.seed), draws=50
    )
    fell = [
        len(set(now.tolist()) ^ set(then.tolist()))
        for now, then in zip(again.ids, store.lookup(ids, None).ids, strict=True)
    ]
    assert max(fell) > 2, "or this shows nothing: at least two draws of a row fall otherwise"
    assert 0 < spot_check(store, other, train, 30).worst < 1e-3
    with pytest.raises(TeacherError, match="of its probability away"):
        spot_check(store, LongTail(by=1.1), train, 30)


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
