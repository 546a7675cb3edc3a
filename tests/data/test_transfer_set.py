"""The transfer set: batches, views, labels, keys and loaders."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from tutelage.data import Chain, GaussianNoise, HorizontalFlip, Normalise, RandomShift, TransferSet, content_ids
from tutelage.errors import DataError
from tutelage.signals import NO_LABEL

IMAGES = torch.rand(10, 1, 6, 6, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, NO_LABEL, 0, 1, NO_LABEL])


def test_a_batch_holds_its_own_rows():
    """Rows, ids and labels that came from different orders would join each example to another's label."""
    data = TransferSet(IMAGES, LABELS)
    rows = torch.tensor([7, 2, 6])
    batch = data.batch(rows)
    assert torch.equal(batch["student"], IMAGES[rows])
    assert torch.equal(batch["ids"], content_ids(IMAGES)[rows])
    assert batch["labels"].tolist() == [0, 2, NO_LABEL]
    assert "teacher" not in batch
    assert (len(data), data.classes, data.labelled) == (10, 3, 8)


def test_named_inputs_and_texts():
    """Every kind of raw input is taken by row, in the order asked for."""
    named = TransferSet({"x": IMAGES, "n": torch.arange(10)})
    batch = named.batch(torch.tensor([3, 1]))
    assert torch.equal(batch["student"]["x"], IMAGES[[3, 1]])
    assert batch["student"]["n"].tolist() == [3, 1]
    assert named.classes is None
    assert named.labelled == 0
    assert TransferSet(["a", "b", "c"]).batch(torch.tensor([2, 0]))["student"] == ["c", "a"]


def test_views_differ_and_share_the_augmentation():
    """The student's normalisation fed to the teacher, or another crop, makes a good teacher look like a bad one."""
    data = TransferSet(
        IMAGES, student_view=Normalise(0.5, 0.5), teacher_view=Normalise(0.1, 2.0), augment=RandomShift(2), seed=3
    )
    batch = data.batch(torch.arange(10), epoch=4)
    assert "teacher" in batch
    torch.testing.assert_close(batch["student"] * 0.5 + 0.5, batch["teacher"] * 2.0 + 0.1)
    assert not torch.allclose(batch["student"] * 0.5 + 0.5, IMAGES)
    again = data.batch(torch.arange(10), epoch=4)
    assert torch.equal(again["student"], batch["student"])
    assert not torch.equal(data.batch(torch.arange(10), epoch=5)["student"], batch["student"])
    pair = data.batch(torch.tensor([8, 2]), epoch=4)
    assert torch.equal(pair["student"], batch["student"][[8, 2]])


def test_seed_changes_the_augmentation():
    """Seeds of a study that shared every crop would understate the spread."""
    one, two = (TransferSet(IMAGES, augment=RandomShift(2), seed=seed).batch(torch.arange(10)) for seed in (1, 2))
    assert not torch.equal(one["student"], two["student"])


def test_a_view_that_writes_into_its_inputs_is_refused():
    """The teacher would see the image normalised twice, once for the student, and answer with confidence."""

    def in_place(inputs: torch.Tensor, draws: Any) -> torch.Tensor:
        return inputs.sub_(0.5)

    data = TransferSet(IMAGES.clone(), student_view=in_place, teacher_view=Normalise(0.1, 2.0))
    with pytest.raises(DataError, match="in place"):
        data.batch(torch.arange(3))
    assert torch.equal(TransferSet(IMAGES, student_view=in_place).batch(torch.arange(3))["student"], IMAGES[:3] - 0.5)


def test_the_raw_inputs_are_never_changed():
    """A view that changed the set itself would augment an augmentation, more each epoch."""
    images = IMAGES.clone()
    data = TransferSet(images, student_view=lambda inputs, draws: inputs.mul_(2), augment=GaussianNoise(0.1))
    data.batch(torch.arange(10))
    assert torch.equal(images, IMAGES)


@pytest.mark.parametrize(
    ("views", "varies"),
    [
        ({}, False),
        ({"student_view": Normalise(0.0, 1.0)}, False),
        ({"student_view": RandomShift(1)}, True),
        ({"student_view": RandomShift(1), "teacher_view": Normalise(0.0, 1.0)}, False),
        ({"student_view": Normalise(0.0, 1.0), "teacher_view": HorizontalFlip()}, True),
        ({"augment": HorizontalFlip(), "teacher_view": Normalise(0.0, 1.0)}, True),
        ({"augment": Normalise(0.0, 1.0)}, False),
        ({"teacher_view": lambda inputs, draws: inputs}, True),
    ],
)
def test_teacher_varies(views: dict[str, Any], varies: bool):
    """Wrongly said to be fixed, the teacher's answer to one crop would be taught for every crop."""
    assert TransferSet(IMAGES, **views).teacher_varies is varies


def test_a_view_that_counts_as_false_is_still_a_view():
    """Truth is a matter of ``__len__``: an empty pipeline given as the teacher's view is not the student's view."""

    class Identity(list[Any]):
        random = False

        def __call__(self, inputs: Any, draws: Any) -> Any:
            return inputs

    data = TransferSet(IMAGES, student_view=RandomShift(1), teacher_view=Identity())
    assert not data.teacher_varies
    assert torch.equal(data.for_teacher_training().batch(torch.arange(3))["student"], IMAGES[:3])


def test_for_evaluation_drops_the_augmentation_alone():
    """Accuracy on augmented images is another number, and a lower one."""
    data = TransferSet(IMAGES, LABELS, augment=RandomShift(2), student_view=Normalise(0.5, 2.0))
    plain = data.for_evaluation()
    assert torch.equal(plain.batch(torch.arange(10), epoch=9)["student"], (IMAGES - 0.5) / 2)
    assert torch.equal(plain.ids, data.ids)
    assert torch.equal(plain.known_labels, data.known_labels)
    assert plain.for_evaluation() is plain
    assert data.augment is not None


def test_for_teacher_training_shows_the_teachers_view():
    """A teacher trained on the student's view would be asked about inputs it never saw."""
    data = TransferSet(IMAGES, student_view=Normalise(0.5, 2.0), teacher_view=Normalise(0.0, 3.0))
    batch = data.for_teacher_training().batch(torch.arange(4))
    assert torch.equal(batch["student"], IMAGES[:4] / 3)
    assert "teacher" not in batch
    only_student = TransferSet(IMAGES, student_view=Normalise(0.5, 2.0)).for_teacher_training()
    assert torch.equal(only_student.batch(torch.arange(4))["student"], (IMAGES[:4] - 0.5) / 2)


def test_select_and_with_labels_keep_what_belongs_together():
    """A selection whose ids stayed behind would look up other examples' stored labels."""
    for touch_first in (False, True):
        data = TransferSet(IMAGES, LABELS, ["a", "b", "c"], seed=7, augment=RandomShift(1))
        if touch_first:
            assert len(data.ids) == 10
        chosen = data.select(torch.tensor([5, 0]))
        assert torch.equal(chosen.ids, content_ids(IMAGES[[5, 0]]))
        assert chosen.known_labels.tolist() == [2, 0]
        assert (chosen.seed, chosen.augment, chosen.class_names) == (7, data.augment, ["a", "b", "c"])
        relabelled = data.with_labels(None)
        assert relabelled.labelled == 0
        assert relabelled.classes == 3
        assert torch.equal(relabelled.ids, data.ids)
        assert data.labelled == 8


class _Keys:
    """Batches of keys of one epoch, as a training sampler gives them."""

    def __init__(self, data: TransferSet, epoch: int) -> None:
        self.data, self.epoch = data, epoch

    def __iter__(self) -> Any:
        order = torch.randperm(len(self.data), generator=torch.Generator().manual_seed(self.epoch)).tolist()
        for start in range(0, len(order), 4):
            yield [self.data.key(row, self.epoch) for row in order[start : start + 4]]


def _identity(batch: Any) -> Any:
    return batch


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_sees_the_right_epoch(workers: int):
    """A worker holds its own copy of the set: told of an epoch by an attribute, it would stay in the first for ever."""
    data = TransferSet(IMAGES, LABELS, augment=Chain([RandomShift(2), GaussianNoise(0.1)]))
    for epoch in (0, 3):
        expected = data.batch(torch.arange(10), epoch)
        row_of = {int(content_id): row for row, content_id in enumerate(data.ids)}
        seen: list[int] = []
        loader: Any = DataLoader(data, batch_sampler=_Keys(data, epoch), num_workers=workers, collate_fn=_identity)
        for batch in loader:
            rows = [row_of[int(content_id)] for content_id in batch["ids"]]
            assert torch.equal(batch["student"], expected["student"][rows])
            assert torch.equal(batch["labels"], LABELS[rows])
            seen += rows
        assert sorted(seen) == list(range(10))


def test_plain_row_numbers_are_epoch_0_and_iteration_ends():
    """Without an end of its own, ``for batch in data`` would walk on into epoch 1, 2, 3 and never return."""
    data = TransferSet(IMAGES, LABELS, augment=RandomShift(2))
    assert torch.equal(data[4]["student"], data.batch(torch.tensor([4]))["student"])
    assert torch.equal(data[data.key(4, 2)]["student"], data.batch(torch.tensor([4]), epoch=2)["student"])
    assert len(list(data)) == 10


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ("one text", "expected a tensor"),
        ([1, 2], "expected a tensor"),
        (IMAGES.numpy(), "expected a tensor"),
        (torch.tensor(1.0), "without an axis"),
        ({}, "empty mapping"),
        ({"x": [1, 2]}, "expected a tensor"),
        ({"x": torch.zeros(3), "y": torch.zeros(4)}, "different lengths"),
        (torch.zeros(0, 3), "no examples"),
        ([], "no examples"),
        (torch.zeros(3, 0), "no values"),
    ],
)
def test_wrong_inputs_are_refused(inputs: Any, message: str):
    """Tensors of different lengths would be joined by position; an empty set trains for no step and reports success."""
    with pytest.raises(DataError, match=message):
        TransferSet(inputs)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 1, 2, 2)])
def test_inputs_that_are_not_finite_are_named(value: float, shape: tuple[int, ...]):
    """One NaN in one input makes every weight NaN one step later."""
    inputs = torch.zeros(shape)
    inputs[2].fill_(value)
    with pytest.raises(DataError, match="row 2"):
        TransferSet(inputs)
    with pytest.raises(DataError, match="column of row 2"):
        TransferSet({"column": inputs})


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(9, dtype=torch.int64), "expected one for each of 10"),
        (torch.zeros(10, 1, dtype=torch.int64), "expected one for each"),
        (torch.zeros(10), "expected integer class indices"),
        (torch.zeros(10, dtype=torch.bool), "expected integer class indices"),
        (torch.full((10,), -1), "-100"),
        (torch.full((10,), 3), "no name among 3"),
        ([0] * 10, "torch.as_tensor"),
    ],
)
def test_wrong_labels_are_refused(labels: Any, message: str):
    """A label of −1 indexes the last class from the end in NumPy and crashes in torch: it is never a class."""
    with pytest.raises(DataError, match=message):
        TransferSet(IMAGES, labels, ["a", "b", "c"])


def test_small_integer_labels_are_widened():
    """Labels read as bytes cannot hold −100."""
    data = TransferSet(IMAGES, torch.tensor([0, 1] * 5, dtype=torch.uint8))
    assert data.known_labels.dtype is torch.int64


def test_two_views_work_under_inference_mode() -> None:
    """Tensors made there have no version counter; a user's own prediction loop failed on sets with a teacher view."""
    data = TransferSet(torch.rand(4, 3), teacher_view=Normalise(0.5, 0.25))
    with torch.inference_mode():
        batch = data.batch(torch.arange(2))
    assert torch.equal(batch["teacher"], (data.inputs[:2] - 0.5) / 0.25)
