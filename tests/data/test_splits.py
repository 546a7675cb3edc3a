"""Splits by content: the fence between what is taught and what is tested."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.data import Splits, TransferSet, keep_labels, split
from tutelage.errors import DataError
from tutelage.signals import NO_LABEL


def _pool(sizes: list[int], seed: int = 0) -> TransferSet:
    labels = torch.cat([torch.full((size,), label) for label, size in enumerate(sizes)])
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return TransferSet(torch.arange(float(len(labels)))[:, None], labels).select(order)


def _parts(splits: Splits) -> list[TransferSet]:
    return [splits.train, splits.validation, splits.test]


def _id_sets(splits: Splits) -> list[set[int]]:
    return [set(part.ids.tolist()) for part in _parts(splits)]


def test_sizes_and_strata():
    """A test split with few of the rare class measures the common ones alone."""
    splits = split(_pool([100, 60, 40]), validation=0.15, test=0.2)
    assert [len(part) for part in _parts(splits)] == [130, 30, 40]
    for part, expected in zip(_parts(splits), ([65, 39, 26], [15, 9, 6], [20, 12, 8]), strict=True):
        assert part.known_labels.bincount().tolist() == expected
    assert splits.classes == 3
    assert splits.class_labels() == ["0", "1", "2"]


@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    fractions=st.tuples(st.floats(0.05, 0.45), st.floats(0.05, 0.45)),
    seed=st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_every_example_is_in_one_split_and_sizes_are_exact(sizes: list[int], fractions: Any, seed: int):
    """Classes of one or two examples must neither be counted twice nor shorten the test split without a word."""
    pool = _pool(sizes)
    wanted = [round(fraction * len(pool)) for fraction in fractions]
    if min(wanted) == 0 or sum(wanted) == len(pool):
        return
    splits = split(pool, validation=fractions[0], test=fractions[1], seed=seed)
    assert [len(splits.validation), len(splits.test)] == wanted
    train, validation, test = _id_sets(splits)
    assert train | validation | test == set(pool.ids.tolist())
    assert len(train) + len(validation) + len(test) == len(pool)
    for label, size in enumerate(sizes):
        got = int((splits.validation.known_labels == label).sum())
        assert abs(got - size * wanted[0] / len(pool)) < 1


def test_seed_and_order():
    """A split by position would change when the file is sorted, and test examples of one run be taught in the next."""
    pool = _pool([50, 50])
    splits = split(pool, validation=0.2, test=0.2, seed=1)
    shuffled = pool.select(torch.randperm(100, generator=torch.Generator().manual_seed(9)))
    assert _id_sets(split(shuffled, validation=0.2, test=0.2, seed=1)) == _id_sets(splits)
    assert _id_sets(split(pool, validation=0.2, test=0.2, seed=1)) == _id_sets(splits)
    other = _id_sets(split(pool, validation=0.2, test=0.2, seed=2))
    assert other != _id_sets(splits)
    assert len(other[2] & _id_sets(splits)[2]) < 15


def test_duplicates_stay_in_one_split_whatever_their_labels():
    """The same image in train and in test is a test of memory; two copies with two labels are still one image."""
    pool = _pool([40, 40])
    values = torch.cat([pool.inputs, pool.inputs[:30]])  # pyright: ignore
    labels = torch.cat([pool.known_labels, 1 - pool.known_labels[:30]])
    doubled = TransferSet(values, labels)
    splits = split(doubled, validation=0.25, test=0.25)
    train, validation, test = _id_sets(splits)
    assert not train & validation | train & test | validation & test
    assert sum(len(part) for part in _parts(splits)) == 110
    backwards = split(doubled.select(torch.arange(110).flip(0)), validation=0.25, test=0.25)
    assert _id_sets(backwards) == [train, validation, test]


def test_unlabelled_examples_of_the_pool_go_to_train():
    """Divided like a class of their own, they would make every pool with unlabelled examples impossible to split."""
    labelled = _pool([30, 30])
    unlabelled = torch.arange(1000.0, 1040.0)[:, None]
    pool = TransferSet(
        torch.cat([labelled.inputs, unlabelled]),  # pyright: ignore
        torch.cat([labelled.known_labels, torch.full((40,), NO_LABEL)]),
    )
    splits = split(pool, validation=0.2, test=0.1)
    assert [len(part) for part in _parts(splits)] == [82, 12, 6]
    assert splits.train.labelled == 42
    assert splits.validation.known_labels.bincount().tolist() == [6, 6]


def test_a_labelled_copy_of_an_unlabelled_example_goes_to_train_too():
    """Were the copy tested on, its twin would be in the transfer set; were both, one would have no label to be measured."""
    pool = _pool([20, 20])
    doubled = TransferSet(
        torch.cat([pool.inputs, pool.inputs]),  # pyright: ignore
        torch.cat([torch.where(torch.arange(40) < 10, NO_LABEL, pool.known_labels), pool.known_labels]),
    )
    splits = split(doubled, validation=0.2, test=0.2)
    assert set(pool.ids[:10].tolist()) <= _id_sets(splits)[0]


@pytest.mark.parametrize(("validation", "test"), [(0.0, 0.2), (0.2, 1.0), (0.6, 0.4), (-0.1, 0.2), (float("nan"), 0.1)])
def test_fractions_that_leave_nothing(validation: float, test: float):
    """A split of nothing selects and tests on nothing, and every arm looks alike."""
    with pytest.raises(DataError, match="fractions"):
        split(_pool([50]), validation=validation, test=test)
    with pytest.raises(DataError, match="too few"):
        split(_pool([3]), validation=0.1, test=0.1)


def test_a_given_test_set():
    """A test set that came with the data is used whole; the fraction is of the pool."""
    pool, test = _pool([40, 40]), TransferSet(-1 - torch.arange(10.0)[:, None], torch.tensor([0, 1] * 5))
    splits = split(pool, validation=0.25, test=test)
    assert [len(part) for part in _parts(splits)] == [60, 20, 10]
    assert splits.test is test


def test_overlap_with_a_given_test_set_is_refused_or_dropped():
    """The student would be tested on what it was taught, and every number be too good."""
    pool = _pool([40, 40])
    test = pool.select(torch.tensor([3, 11, 12]))
    with pytest.raises(DataError, match=r"also stand in the (transfer|validation) set.*drop_overlap"):
        split(pool, validation=0.25, test=test)
    splits = split(pool, validation=0.25, test=test, drop_overlap=True)
    assert not (_id_sets(splits)[0] | _id_sets(splits)[1]) & _id_sets(splits)[2]
    assert len(splits.train) + len(splits.validation) == 77
    with pytest.raises(DataError, match="nothing is left"):
        split(test, validation=0.5, test=test, drop_overlap=True)


def test_overlap_is_found_by_content_and_named():
    """Copies made by two scripts share nothing but their bytes: names and positions would not show the leak."""
    pool = _pool([20, 20])
    train, validation = pool.select(torch.arange(20)), pool.select(torch.arange(20, 30))
    leaked = TransferSet(
        torch.tensor([[-1.0], [float(train.inputs[4])]]),  # pyright: ignore
        torch.tensor([0, 1]),
    )
    for parts in ((train, validation, leaked), (validation, train, leaked), (train, leaked, validation)):
        with pytest.raises(DataError, match=f"row 1 .id {int(train.ids[4]) % 2**64:016x}"):
            Splits(*parts)


def test_unlabelled_test_examples_are_refused():
    """Left out without a word, they would make the accuracy that of the labelled ones alone."""
    pool = _pool([20, 20])
    parts = [pool.select(torch.arange(start, start + 10)) for start in (0, 10, 20)]
    hidden = parts[1].with_labels(torch.where(torch.arange(10) == 3, NO_LABEL, parts[1].known_labels))
    with pytest.raises(DataError, match="1 of 10 validation examples have no label"):
        Splits(parts[0], hidden, parts[2])
    with pytest.raises(DataError, match="1 of 10 test examples"):
        Splits(parts[0], parts[2], hidden)
    assert Splits(hidden, parts[0], parts[2]).train.labelled == 9


def test_splits_of_two_dtypes_are_refused():
    """Ids know the dtype: the same images as float32 and float64 would overlap and not be found to."""
    pool = _pool([20, 20])
    parts = [pool.select(torch.arange(start, start + 10)) for start in (0, 10, 20)]
    double = TransferSet(parts[2].inputs.double(), parts[2].labels)  # pyright: ignore
    with pytest.raises(DataError, match=r"torch\.float32, of the test set torch\.float64"):
        Splits(parts[0], parts[1], double)
    with pytest.raises(DataError, match="of the validation set x torch"):
        Splits(parts[0], TransferSet({"x": parts[1].inputs}, parts[1].labels), parts[2])  # pyright: ignore


def test_splits_with_two_lists_of_classes_are_refused():
    """Class 1 of one list against class 1 of the other: a perfect student would score 0."""
    pool = _pool([20, 20])
    parts = [pool.select(torch.arange(start, start + 10)) for start in (0, 10, 20)]
    named = [
        TransferSet(part.inputs, part.labels, names)
        for part, names in zip(parts, (["cat", "dog"], ["cat", "dog"], ["dog", "cat"]), strict=True)
    ]
    with pytest.raises(DataError, match="mean two classes"):
        Splits(*named)
    assert Splits(named[0], named[1], parts[2]).class_labels() == ["cat", "dog"]


def test_classes_are_those_of_all_three():
    """With few labels left the largest one in train may not be the largest there is: the head would be too small."""
    pool = _pool([30, 30, 30])
    splits = split(pool, validation=0.2, test=0.2).keep_labels(1)
    assert splits.train.labelled == 1
    assert splits.classes == 3


@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=6), share=st.floats(0, 1), seed=st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_keep_labels_is_exact_and_stratified(sizes: list[int], share: float, seed: int):
    """127 labels where 128 were asked for, or 30 of one class and 3 of another, is another experiment."""
    pool = _pool(sizes)
    count = round(share * len(pool))
    kept = keep_labels(pool, count, seed)
    assert kept.labelled == count
    assert torch.equal(kept.ids, pool.ids)
    labels = kept.known_labels
    assert torch.equal(labels[labels != NO_LABEL], pool.known_labels[labels != NO_LABEL])
    for label, size in enumerate(sizes):
        assert abs(int((labels == label).sum()) - size * count / len(pool)) < 1


def test_keep_labels_by_content():
    """Which examples keep their label must not hang on the file's order, or the seed would not name the experiment."""
    pool = _pool([50, 50])
    kept = keep_labels(pool, 20, seed=3)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(4))
    again = keep_labels(pool.select(order), 20, seed=3)
    assert torch.equal(again.known_labels, kept.known_labels[order])
    assert not torch.equal(keep_labels(pool, 20, seed=4).known_labels, kept.known_labels)
    assert keep_labels(kept, 20).labelled == 20
    for count in (21, -1):
        with pytest.raises(DataError, match="more labels than the 20"):
            keep_labels(kept, count)
