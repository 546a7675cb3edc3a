"""Columns of a ``datasets.Dataset`` as inputs and labels."""

from __future__ import annotations

from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from tutelage.data import Normalise, TransferSet
from tutelage.errors import DataError
from tutelage.signals import NO_LABEL


def _dataset(**columns: Any) -> datasets.Dataset:
    return datasets.Dataset.from_dict(columns)


def test_texts_and_class_names():
    """Names are numbered in alphabetical order, whatever order they come in; null is no label."""
    data = TransferSet.from_dataset(_dataset(t=["x", "y", "z"], l=["dog", None, "cat"]), "t", "l")
    assert data.inputs == ["x", "y", "z"]
    assert data.known_labels.tolist() == [1, NO_LABEL, 0]
    assert data.class_names == ["cat", "dog"]


def test_class_label_feature():
    """A ClassLabel column brings its own names, and −1 for the hidden labels of a public test set."""
    features = datasets.Features({"x": datasets.Value("float32"), "l": datasets.ClassLabel(names=["no", "yes"])})
    data = TransferSet.from_dataset(
        datasets.Dataset.from_dict({"x": [1, 2], "l": [1, -1]}, features=features), "x", "l"
    )
    assert data.known_labels.tolist() == [1, NO_LABEL]
    assert data.class_names == ["no", "yes"]


def test_lists_are_passed_by_name():
    """Token ids stay integers: as floats they could not be looked up."""
    rows = _dataset(input_ids=[[1, 2], [3, 4]], attention_mask=[[1, 1], [1, 0]], l=[0, 1])
    data = TransferSet.from_dataset(rows, ["input_ids", "attention_mask"], "l")
    assert isinstance(data.inputs, dict)
    assert data.inputs["input_ids"].dtype is torch.int64
    assert data.inputs["attention_mask"].tolist() == [[1, 1], [1, 0]]


def test_images_grey_and_colour():
    """Channels first, in [0, 1]; one grey image among colour ones becomes colour, not a mistake of shape."""
    grey = Image.fromarray(np.array([[0, 255], [51, 102]], dtype=np.uint8))
    colour = Image.fromarray(np.full((2, 2, 3), [255, 0, 51], dtype=np.uint8))
    features = datasets.Features({"i": datasets.Image()})

    def read(*images: Any) -> torch.Tensor:
        data = TransferSet.from_dataset(datasets.Dataset.from_dict({"i": list(images)}, features=features), "i")
        assert isinstance(data.inputs, torch.Tensor)
        return data.inputs

    torch.testing.assert_close(read(grey, grey)[0, 0], torch.tensor([[0, 1], [0.2, 0.4]]))
    both = read(grey, colour)
    assert both.shape == (2, 3, 2, 2)
    torch.testing.assert_close(both[1, :, 0, 0], torch.tensor([1.0, 0.0, 0.2]))
    with pytest.raises(DataError, match="2 sizes"):
        read(grey, Image.fromarray(np.zeros((3, 3), dtype=np.uint8)))


@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_a_format_set_by_the_user_changes_nothing(kind: str):
    """``with_format('torch')`` hands out tensors for labels, which are no ``int``: a good data set would be refused."""
    rows = _dataset(x=[[1.0, 2.0], [3.0, 4.0]], l=[0, 1])
    data = TransferSet.from_dataset(rows.with_format(kind), "x", "l")
    plain = TransferSet.from_dataset(rows, "x", "l")
    assert torch.equal(data.ids, plain.ids)
    assert data.known_labels.tolist() == [0, 1]
    assert rows.with_format(kind).format["type"] == kind


def test_views_are_passed_on():
    """Views given beside the columns are the set's."""
    data = TransferSet.from_dataset(_dataset(x=[[1.0], [3.0]]), "x", student_view=Normalise(1.0, 2.0), seed=4)
    assert data.batch(torch.arange(2))["student"].tolist() == [[0.0], [1.0]]
    assert data.seed == 4
    assert data.labelled == 0


@pytest.mark.parametrize(
    ("columns", "inputs", "message"),
    [
        ({"x": [[1.0], [1.0, 2.0]]}, "x", "different lengths"),
        ({"x": ["a", "b"], "y": [1, 2]}, ["x", "y"], "columns x hold texts"),
        ({"x": [1.0, None]}, "x", "null in row 1"),
        ({"x": [1.0, float("nan")]}, "x", "row 1 holds NaN"),
        ({"x": [{"a": 1}, {"a": 2}]}, "x", "expected texts"),
        ({"x": [[1.0, None], [1.0, 2.0]]}, "x", "expected texts"),
    ],
)
def test_columns_that_are_no_inputs(columns: Any, inputs: Any, message: str):
    """A null filled in as 0, or a cut-off list, is a wrong example that nothing marks as wrong."""
    with pytest.raises(DataError, match=message):
        TransferSet.from_dataset(_dataset(**columns), inputs)


@pytest.mark.parametrize("labels", [[0.0, 1.0], [True, False], [[0], [1]], [-2, 0]])
def test_columns_that_are_no_labels(labels: Any):
    """0.7 rounded to class 0 is a regression target taught as a class."""
    with pytest.raises(DataError):
        TransferSet.from_dataset(_dataset(x=[1.0, 2.0], l=labels), "x", "l")
