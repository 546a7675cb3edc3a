"""Token-level rows: labels of next tokens, batches, views and what is refused."""

from __future__ import annotations

import pytest
import torch

from tutelage.data import (
    GaussianNoise,
    RandomShift,
    Splits,
    TransferSet,
    keep_labels,
    next_token_labels,
    noisy_labels,
    rows_of,
    split,
)
from tutelage.errors import DataError
from tutelage.signals import NO_LABEL

X = NO_LABEL
IDS = torch.tensor([[5, 6, 7, 8], [1, 2, 3, 0], [0, 0, 4, 5]])


def test_a_label_is_the_next_token():
    """Unshifted labels teach a model to copy its input, with a loss that falls very well."""
    assert next_token_labels(IDS).tolist() == [[6, 7, 8, X], [2, 3, 0, X], [0, 4, 5, X]]


def test_padding_on_either_side_is_not_supervised():
    """A padding token as a target, or as a place that predicts the first real one, teaches to pad."""
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [0, 0, 1, 1]])
    assert next_token_labels(IDS, mask).tolist() == [[6, 7, 8, X], [2, 3, X, X], [X, X, 5, X]]


def test_only_the_completion_is_supervised():
    """The mask says which *tokens* are learnt; taken for positions, the first token of each completion would be lost."""
    completion = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 0], [0, 0, 0, 0]], dtype=torch.bool)
    assert next_token_labels(IDS, supervised=completion).tolist() == [[X, 7, 8, X], [2, 3, X, X], [X, X, X, X]]


@pytest.mark.parametrize(
    ("tokens", "mask", "message"),
    [
        (torch.zeros(3), None, "whole token numbers"),
        (torch.zeros(2, 3), None, "whole token numbers"),
        (IDS, torch.ones(3, 1), "attention_mask is"),
    ],
)
def test_wrong_shapes_are_refused(tokens, mask, message):
    """A mask that is broadcast supervises whole rows."""
    with pytest.raises(DataError, match=message):
        next_token_labels(tokens, mask)


LABELS = torch.tensor([[6, 7, X, X], [X, X, X, X], [X, 4, 5, X]])


def token_set(**options) -> TransferSet:
    return TransferSet({"input_ids": IDS, "extra": torch.rand(3, 4)}, LABELS, **options)


def test_rows_are_the_labelled_positions_in_row_major_order():
    """Another order than the one in which logits are gathered gives each token another token's label."""
    data = token_set()
    batch = data.batch(torch.tensor([2, 0, 1]))
    rows = rows_of(batch)
    assert batch["labels"].tolist() == [[X, 4, 5, X], [6, 7, X, X], [X, X, X, X]]
    assert rows["labels"].tolist() == [4, 5, 6, 7]
    assert rows["ids"].tolist() == [int(data.ids[row]) for row in (2, 2, 0, 0)]


def test_rows_of_examples_keep_the_unlabelled_ones():
    """A classifier's unlabelled example is a row all the same: the teacher labels it."""
    data = TransferSet(torch.rand(3, 2), torch.tensor([1, NO_LABEL, 0]))
    rows = rows_of(data.batch(torch.arange(3)))
    assert rows["labels"].tolist() == [1, NO_LABEL, 0]
    assert torch.equal(rows["ids"], data.ids)


def test_a_set_of_tokens_counts_selects_and_relabels():
    """``labelled`` counts examples wherever it is shown beside ``len``: four labelled tokens of three examples are no four."""
    data = token_set()
    assert (data.token_level, data.labelled, data.classes, len(data)) == (True, 2, 8, 3)
    chosen = data.select(torch.tensor([2, 1]))
    assert torch.equal(chosen.known_labels, LABELS[[2, 1]])
    assert torch.equal(chosen.ids, data.ids[[2, 1]])
    plain = data.with_labels(None)
    assert (plain.token_level, plain.labelled) == (False, 0)
    assert torch.equal(data.for_evaluation().known_labels, LABELS)
    assert not TransferSet(torch.rand(3, 2), torch.tensor([1, 0, 1])).token_level


@pytest.mark.parametrize("shape", [(3, 1), (2, 4), (3, 4, 2)])
def test_labels_of_other_shapes_are_refused(shape):
    """A column of labels is one label an example, and not sequences of one token with nothing to predict."""
    with pytest.raises(DataError, match="expected one for each of 3 examples"):
        TransferSet(torch.rand(3, 4), torch.zeros(shape, dtype=torch.int64))


def test_a_token_without_a_name_is_named_by_its_row():
    """The place in a matrix is two numbers, of which one was expected: the error itself would fail."""
    with pytest.raises(DataError, match="label 6 of row 0 has no name among 6"):
        TransferSet(IDS, LABELS, [str(index) for index in range(6)])


def test_what_goes_by_one_label_an_example_is_refused():
    """Stratifying by tokens, or making one of them wrong, would divide and spoil something else than was asked for."""
    data = token_set()
    whole = TransferSet(torch.rand(9, 2), torch.arange(9) % 2)
    parts = Splits(data, data_apart(7), data_apart(11))
    for attempt in (
        lambda: split(data, validation=0.3, test=0.3),
        lambda: keep_labels(data, 1),
        lambda: noisy_labels(data, 0.5, 8),
        lambda: parts.omit_classes([6]),
        lambda: parts.with_label_noise(0.5),
    ):
        with pytest.raises(DataError, match="one a token"):
            attempt()
    assert len(keep_labels(whole, 4)) == 9


def data_apart(offset: int) -> TransferSet:
    inputs = {"input_ids": IDS + offset, "extra": torch.rand(3, 4)}
    return TransferSet(inputs, next_token_labels(IDS + offset))


def test_views_come_round():
    """With two views stored, a third one would be looked up in vain, or the wrong one be given for it."""
    images = torch.rand(4, 1, 6, 6)
    data = TransferSet(images, augment=RandomShift(2), views=2, seed=3)
    rows = torch.arange(4)
    shown = [data.batch(rows, epoch) for epoch in range(5)]
    assert [batch["view"].tolist() for batch in shown] == [[e % 2] * 4 for e in range(5)]
    assert torch.equal(shown[0]["student"], shown[2]["student"])
    assert torch.equal(shown[1]["student"], shown[3]["student"])
    assert not torch.equal(shown[0]["student"], shown[1]["student"])
    assert data.select(rows[:2]).batch(rows[:1], 3)["view"].tolist() == [1]
    endless = TransferSet(images, augment=RandomShift(2), seed=3)
    assert endless.batch(rows, 4)["view"].tolist() == [4] * 4
    assert torch.equal(endless.batch(rows, 1)["student"], shown[1]["student"])


def test_a_view_is_named_only_where_the_teachers_varies():
    """A store of fixed inputs has one answer an example, and would be asked for that of epoch 7."""
    images = torch.rand(4, 3)
    noisy = TransferSet(images, student_view=GaussianNoise(0.1), teacher_view=lambda x, draws: x)
    object.__setattr__(noisy.teacher_view, "random", False)
    assert not noisy.teacher_varies
    assert "view" not in noisy.batch(torch.arange(2), 7)
    assert "view" not in TransferSet(images).batch(torch.arange(2), 7)


@pytest.mark.parametrize("views", [0, -1, 1.5, True])
def test_views_that_are_no_number_are_refused(views):
    """An epoch modulo nothing is an error in the middle of a training."""
    with pytest.raises(DataError, match="views is"):
        TransferSet(torch.rand(2, 2), views=views)
