"""What a transfer set may lack: a class, or the truth of its labels."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.data import TransferSet, noisy_labels, split
from tutelage.errors import DataError
from tutelage.signals import NO_LABEL


def _pool(size: int = 200, classes: int = 4) -> TransferSet:
    return TransferSet(torch.arange(float(size))[:, None], torch.arange(size) % classes, ["a", "b", "c", "d"][:classes])


def test_an_omitted_class_is_gone_from_the_transfer_set_alone():
    """A class missing from validation too could be neither corrected nor measured; one left in train was not unseen."""
    splits = split(_pool(), validation=0.2, test=0.2)
    without = splits.omit_classes(["c", 0])
    assert without.omitted == (0, 2)
    assert set(without.train.known_labels.tolist()) == {1, 3}
    assert set(without.train.ids.tolist()) < set(splits.train.ids.tolist())
    assert without.validation is splits.validation
    assert without.test is splits.test
    assert without.keep_labels(4).omitted == (0, 2)
    assert without.omit_classes([1]).omitted == (0, 1, 2)


def test_a_class_is_omitted_before_labels_are_forgotten():
    """Where the labels went first, its unlabelled examples would have stayed and been learnt from."""
    splits = split(_pool(), validation=0.2, test=0.2)
    few = splits.omit_classes([2]).keep_labels(5)
    ids = splits.train.ids[splits.train.known_labels == 2]
    assert few.train.labelled == 5
    assert not bool(torch.isin(few.train.ids, ids).any())


@pytest.mark.parametrize("classes", [["e"], [4], [-1], [True]])
def test_an_unknown_class_is_named(classes: list[object]):
    """Omitting a misspelt class would leave nothing out, and the student would be said never to have seen it."""
    with pytest.raises(DataError, match="there is no class"):
        split(_pool(), validation=0.2, test=0.2).omit_classes(classes)  # pyright: ignore[reportArgumentType]


def test_omitting_nothing_or_everything_is_an_error():
    """A class without labelled examples may be there unlabelled; without any class there is nothing to learn from."""
    splits = split(_pool(), validation=0.2, test=0.2)
    with pytest.raises(DataError, match="no example labelled 'c'"):
        splits.keep_labels(0).omit_classes(["c"])
    with pytest.raises(DataError, match="is empty"):
        splits.omit_classes(["a", "b", "c", "d"])


@given(fraction=st.floats(0, 0.99), seed=st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_noise_is_exact_and_never_the_truth(fraction: float, seed: int):
    """Noise drawn over all classes would leave a tenth of the "wrong" labels right, and 20% would be 18%."""
    pool = _pool()
    noisy = noisy_labels(pool, fraction, 4, seed)
    assert int((noisy.known_labels != pool.known_labels).sum()) == round(fraction * 200)
    assert set(noisy.known_labels.tolist()) <= {0, 1, 2, 3}
    assert torch.equal(noisy.ids, pool.ids)


def test_noise_goes_by_content_and_reaches_every_wrong_class():
    """Noise by position would be another experiment after a reshuffle; noise into one class is not symmetric."""
    pool = _pool(400)
    noisy = noisy_labels(pool, 0.5, 4, seed=3)
    order = torch.randperm(400, generator=torch.Generator().manual_seed(4))
    assert torch.equal(noisy_labels(pool.select(order), 0.5, 4, seed=3).known_labels, noisy.known_labels[order])
    wrong = noisy.known_labels != pool.known_labels
    steps = ((noisy.known_labels - pool.known_labels) % 4)[wrong].bincount(minlength=4).tolist()
    assert steps[0] == 0
    assert min(steps[1:]) > 40
    assert not torch.equal(noisy_labels(pool, 0.5, 4, seed=4).known_labels, noisy.known_labels)


def test_noise_leaves_held_out_labels_and_missing_ones_alone():
    """A noisy test split measures the noise; a label made up for an unlabelled example is no noise but invention."""
    splits = split(_pool(), validation=0.2, test=0.2).keep_labels(20)
    noisy = splits.with_label_noise(0.5)
    assert noisy.validation is splits.validation
    assert noisy.test is splits.test
    assert torch.equal(noisy.train.known_labels == NO_LABEL, splits.train.known_labels == NO_LABEL)
    assert int((noisy.train.known_labels != splits.train.known_labels).sum()) == 10


@pytest.mark.parametrize(("fraction", "classes"), [(1.0, 4), (-0.1, 4), (float("nan"), 4), (0.2, 1)])
def test_impossible_noise_is_refused(fraction: float, classes: int):
    """All labels wrong, or another class where there is none, has no meaning."""
    with pytest.raises(DataError, match="label_noise"):
        noisy_labels(_pool(), fraction, classes)
