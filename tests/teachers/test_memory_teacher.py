"""A teacher's answers kept by content id: the same lesson without the teacher, or an error."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tutelage.data import HorizontalFlip, Normalise, TransferSet, hex_id
from tutelage.errors import TeacherError
from tutelage.signals import Logits, MixtureLogits, Signals
from tutelage.teachers import EnsembleTeacher, MemoryTeacher, ModuleTeacher, Teacher

INPUTS = torch.randn(50, 1, 2, 2, generator=torch.Generator().manual_seed(0))
DATA = TransferSet(INPUTS)


def _teacher() -> ModuleTeacher:
    torch.manual_seed(2)
    return ModuleTeacher(nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Dropout(0.5), nn.BatchNorm1d(3)))


def _at(
    teacher: Teacher, data: TransferSet, rows: torch.Tensor, temperature: float = 2.0, epoch: int = 0
) -> torch.Tensor:
    logits = teacher.signals(data.batch(rows, epoch)).logits
    assert logits is not None
    return logits.at(temperature)


def test_equals_the_live_teacher_in_any_order():
    """Joined by position, every example of a shuffled epoch would be taught another example's answer."""
    live = _teacher()
    kept = MemoryTeacher.of(live, DATA, batch_size=7)
    for epoch in range(2):
        rows = torch.randperm(50, generator=torch.Generator().manual_seed(epoch))[:23]
        torch.testing.assert_close(_at(kept, DATA, rows, epoch=epoch), _at(live, DATA, rows))
    shuffled = DATA.select(torch.randperm(50, generator=torch.Generator().manual_seed(5)))
    torch.testing.assert_close(_at(kept, shuffled, torch.arange(50)), _at(live, shuffled, torch.arange(50)))
    assert kept.classes == 3
    assert not _at(kept, DATA, torch.arange(3)).requires_grad


def test_the_same_kind_of_signal_as_the_live_one():
    """An objective cannot tell which teacher it hears."""
    assert isinstance(MemoryTeacher.of(_teacher(), DATA).signals(DATA.batch(torch.arange(2))).logits, Logits)


def test_unknown_examples_are_refused():
    """The nearest id's answer would be a wrong row, silently."""
    kept = MemoryTeacher.of(_teacher(), DATA.select(torch.arange(40)))
    batch = DATA.batch(torch.tensor([3, 45, 1, 47]))
    with pytest.raises(TeacherError, match=f"2 examples .* the first with id {hex_id(int(DATA.ids[45]))}"):
        kept.signals(batch)
    for beyond in (-(2**63), 2**63 - 1):  # before the least and after the greatest of the kept ids
        batch = DATA.batch(torch.tensor([3, 1]))
        batch["ids"][1] = beyond
        with pytest.raises(TeacherError, match="never shown to the teacher"):
            kept.signals(batch)


@pytest.mark.parametrize(
    "views", [{"augment": HorizontalFlip()}, {"teacher_view": HorizontalFlip()}, {"student_view": lambda x, draws: x}]
)
def test_a_random_view_is_refused(views: dict[str, Any]):
    """The answer to epoch 0's crop would be taught for every crop of every epoch."""
    with pytest.raises(TeacherError, match="random"):
        MemoryTeacher.of(_teacher(), TransferSet(INPUTS, **views))


def test_a_random_student_view_beside_a_fixed_teacher_view_is_fine():
    """Only what the teacher sees must stand still."""
    data = TransferSet(INPUTS, student_view=HorizontalFlip(), teacher_view=Normalise(0.5, 2.0))
    live = _teacher()
    kept = MemoryTeacher.of(live, data)
    torch.testing.assert_close(_at(kept, data, torch.arange(50), epoch=3), _at(live, data, torch.arange(50)))


def test_duplicate_examples():
    """Two equal examples are one id with one answer; a table given with two rows for an id is a mistake."""
    live = _teacher()
    doubled = TransferSet(torch.cat([INPUTS[:10], INPUTS[:5], INPUTS[3:4]]))
    kept = MemoryTeacher.of(live, doubled, batch_size=6)
    torch.testing.assert_close(_at(kept, doubled, torch.arange(16)), _at(live, doubled, torch.arange(16)))
    with pytest.raises(TeacherError, match="there twice"):
        MemoryTeacher(torch.tensor([5, 7, 5]), torch.zeros(3, 2))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_an_ensemble_in_memory(temperature: float):
    """Kept as one mean it would be right at one temperature alone."""
    live = EnsembleTeacher([_teacher(), nn.Sequential(nn.Flatten(), nn.Linear(4, 3))], [1, 3])
    doubled = TransferSet(torch.cat([INPUTS, INPUTS[:5]]))
    kept = MemoryTeacher.of(live, doubled, batch_size=8)
    rows = torch.tensor([54, 1, 30, 2, 50])
    torch.testing.assert_close(_at(kept, doubled, rows, temperature), _at(live, doubled, rows, temperature))
    signals = kept.signals(doubled.batch(rows))
    assert isinstance(signals.logits, MixtureLogits)
    assert signals.logits.members.shape == (2, 5, 3)
    assert kept.classes == 3


def test_texts():
    """Ids of texts join as those of tensors do."""

    def letters(texts: list[str], draws: Any) -> torch.Tensor:
        return torch.tensor([[float(len(text)), float(text.count("a"))] for text in texts])

    letters.random = False  # pyright: ignore
    data = TransferSet(["a", "banana", "xyz", "a cat"], student_view=letters)
    live = ModuleTeacher(nn.Linear(2, 3))
    kept = MemoryTeacher.of(live, data, batch_size=3)
    rows = torch.tensor([3, 0, 2])
    torch.testing.assert_close(_at(kept, data, rows), _at(live, data, rows))


@pytest.mark.parametrize(
    ("ids", "logits", "weights"),
    [
        (3, (2, 4), None),
        (3, (4,), None),
        (3, (3, 2, 2), None),
        (3, (2, 3, 2), None),
        (3, (3, 2), torch.tensor([0.5, 0.5])),
        (3, (2, 3, 2), torch.tensor([1.0])),
        (0, (0, 2), None),
    ],
)
def test_shapes_that_do_not_fit(ids: int, logits: tuple[int, ...], weights: torch.Tensor | None):
    """Rows and ids of different lengths are joined by luck."""
    with pytest.raises(TeacherError, match="expected at least one id"):
        MemoryTeacher(torch.arange(ids), torch.zeros(logits), weights)


def test_stored_answers_that_are_not_finite():
    """A damaged table is named before it is learnt from, not by a NaN loss an hour later; a masked class is none."""
    logits = torch.zeros(4, 3)
    logits[2, 1] = float("nan")
    with pytest.raises(TeacherError, match=f"in memory gave nan for the example with id {hex_id(9)}"):
        MemoryTeacher(torch.tensor([5, 7, 9, 11]), logits)
    with pytest.raises(TeacherError, match=f"id {hex_id(9)}"):
        MemoryTeacher(torch.tensor([5, 7, 9, 11]), torch.stack([torch.zeros(4, 3), logits]), torch.tensor([0.5, 0.5]))
    logits[2, 1] = -float("inf")
    assert MemoryTeacher(torch.tensor([5, 7, 9, 11]), logits).classes == 3


def test_a_teacher_without_logits():
    """Nothing to keep is an error, not an empty table."""

    class Silent:
        def signals(self, batch: Any) -> Signals:
            return Signals()

    with pytest.raises(TeacherError, match="Silent gives no logits"):
        MemoryTeacher.of(Silent(), DATA)


def test_texts_are_asked_in_order_of_length_and_answered_by_id():
    """Texts of unlike length are mostly padding; answers in the order in which they were asked would be other texts'."""
    words = ["x" * length for length in (9, 2, 7, 2, 5, 1, 9)]
    asked = []

    class Lengths:
        def signals(self, batch):
            asked.append(batch["student"])
            return Signals(Logits(batch["student"].float()[:, None] * torch.tensor([1.0, 2.0])))

    class InCharacters:
        random = False

        def __call__(self, texts, draws):
            return torch.tensor([len(text) for text in texts])

    data = TransferSet(words, student_view=InCharacters())
    memory = MemoryTeacher.of(Lengths(), data, batch_size=3)
    assert torch.cat(asked).tolist() == [1, 2, 2, 5, 7, 9, 9]
    said = memory.signals(data.batch(torch.tensor([0, 5, 3]))).logits.at(1.0)
    assert said[:, 0].tolist() == [9, 1, 2]
