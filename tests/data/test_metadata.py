"""Metadata: it stays with its example through every cut, and nothing that is learned depends on it."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tutelage.data import DataSource, GaussianNoise, TransferSet, load_source, split
from tutelage.data.columns import MANY, MISSING
from tutelage.errors import DataError
from tutelage.signals import NO_LABEL

INPUTS = torch.arange(40.0)[:, None]
WARDS = [f"ward {int(value)}" for value in INPUTS[:, 0]]
DATA = TransferSet(INPUTS, torch.arange(40) % 2, metadata={"ward": WARDS, "device": ["a", "b"] * 20})


def belongs(data: TransferSet) -> bool:
    """Whether each example still has the metadata that was made from it."""
    assert data.metadata is not None
    assert isinstance(data.inputs, torch.Tensor)
    values = [int(value) for value in data.inputs[:, 0]]
    return list(data.metadata["ward"]) == [f"ward {value}" for value in values] and list(data.metadata["device"]) == [
        "ab"[value % 2] for value in values
    ]


def test_it_follows_its_examples_wherever_they_go():
    """A cut that forgot it, or kept it in the old order, would put each answer into another hospital's slice."""
    rows = torch.tensor([7, 2, 2, 39])
    assert belongs(DATA.select(rows))
    assert belongs(DATA.select(rows).select(torch.tensor([3, 0])))
    assert belongs(DATA.with_labels(None))
    assert belongs(TransferSet(INPUTS, augment=GaussianNoise(1.0), metadata=DATA.metadata).for_evaluation())
    assert belongs(DATA.for_teacher_training())
    for splits in (split(DATA, validation=0.2, test=0.2), split(DATA, validation=0.2, test=0.2).keep_labels(6)):
        assert all(belongs(part) for part in (splits.train, splits.validation, splits.test))
    with_test = split(DATA, validation=0.2, test=DATA.select(torch.arange(5)), drop_overlap=True)
    assert belongs(with_test.test)
    assert belongs(with_test.train)
    assert len(with_test.train) < 40


def test_nothing_learned_depends_on_it():
    """Ids that changed with it would lose every stored label; a batch that held it could show it to a model."""
    plain = TransferSet(INPUTS, DATA.labels)
    assert plain.metadata is None
    assert plain.select(torch.arange(3)).metadata is None
    assert torch.equal(plain.ids, DATA.ids)
    assert set(DATA.batch(torch.arange(3))) == set(plain.batch(torch.arange(3))) == {"ids", "labels", "student"}
    for name in ("train", "validation", "test"):
        ids = [getattr(split(data, validation=0.2, test=0.2), name).ids for data in (plain, DATA)]
        assert torch.equal(*ids)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"ward": WARDS[:-1]}, "'ward' has 39 values for 40 examples"),
        ({"ward": "x" * 40}, "'ward' is a str, expected a list"),
        ({"ward": np.array(WARDS)}, "'ward' is a ndarray, expected a list"),
        ({"ward": [*WARDS[:3], 4, *WARDS[4:]]}, "'ward' holds a int in row 3"),
        ({"ward": [*WARDS[:-1], None]}, "'ward' holds a NoneType in row 39"),
        ({"class": WARDS}, "'class': results are cut by class as it is"),
        (WARDS, "metadata is a list, expected a mapping"),
    ],
)
def test_what_is_no_metadata_is_refused(metadata: Any, message: str):
    """Each would end in wrong slices or, after hours of training, in none."""
    with pytest.raises(DataError, match=message):
        TransferSet(INPUTS, metadata=metadata)


def read(**columns: Any) -> dict[str, Any]:
    rows = datasets.Dataset.from_dict({"x": [float(i) for i in range(len(next(iter(columns.values()))))], **columns})
    data = TransferSet.from_dataset(rows, "x", metadata=list(columns))
    assert data.metadata is not None
    return dict(data.metadata)


def test_values_become_names():
    """1 and 1.0, null and NaN are one slice each; a slice without a name could not be talked about."""
    got = read(
        text=["a", None, " ", ""],
        number=[3, None, 3, -1],
        fraction=[2.0, float("nan"), 0.25, None],
        flag=[True, False, None, True],
    )
    assert got["text"] == ["a", MISSING, MISSING, MISSING]
    assert got["number"] == ["3", MISSING, "3", "-1"]
    assert got["fraction"] == ["2", MISSING, "0.25", MISSING]
    assert got["flag"] == ["true", "false", MISSING, "true"]


def test_class_names_are_used():
    """A reader who sees slice '1' of a column of names has to look up what it was."""
    features = datasets.Features(
        {"x": datasets.Value("float32"), "site": datasets.ClassLabel(names=["north", "south"])}
    )
    rows = datasets.Dataset.from_dict({"x": [1, 2, 3], "site": [1, 0, -1]}, features=features)
    data = TransferSet.from_dataset(rows.with_format("torch"), "x", metadata=["site"])
    assert data.metadata == {"site": ["south", "north", MISSING]}


def test_too_many_values_to_be_slices():
    """An age in years, or a patient's number, cuts the test split into examples, and every slice is undecided."""
    few, many = list(range(MANY)), list(range(MANY + 1))
    assert len(set(read(age=few * 4)["age"])) == MANY
    with pytest.raises(DataError, match=r"'age' holds 51 different numbers: .* bin it"):
        read(age=many * 4)
    with pytest.raises(DataError, match=r"bin it"):
        read(age=[*(value / 7 for value in many), None])
    patients = [f"p{value}" for value in many]
    assert len(set(read(patient=patients * 2)["patient"])) == MANY + 1
    with pytest.raises(DataError, match="'patient' holds 51 different texts in 51 rows"):
        read(patient=patients)
    assert len(set(read(patient=patients[:MANY])["patient"])) == MANY


@pytest.mark.parametrize("values", [[[1], [2]], [{"a": 1}, {"a": 2}], [datetime(2024, 1, 1), None]])
def test_values_that_are_no_names(values: Any):
    """The text of a list or of a moment is a slice for each example."""
    with pytest.raises(DataError, match="make a text column of it"):
        read(when=values)


def test_an_unknown_column_is_named():
    """A misspelt column must not end as no slices at all."""
    rows = datasets.Dataset.from_dict({"x": [1.0], "device": ["a"]})
    with pytest.raises(DataError, match="no column 'devise'; the columns are x, device"):
        TransferSet.from_dataset(rows, "x", metadata=["devise"])


@pytest.mark.parametrize("source", ["parquet", "hub"])
def test_sources_read_it_for_pool_and_test(tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch):
    """The slices are of the test split: a column read for the pool alone would never be seen again."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "data"
    folder.mkdir()
    for name, start in (("train", 0), ("test", 4)):
        table = pa.table(
            {"x": [start + i / 8 for i in range(4)], "y": ["cat", "dog"] * 2, "ward": [start + i for i in range(4)]}
        )
        pq.write_table(table, folder / f"{name}-0.parquet")
    given = {
        "parquet": DataSource("parquet", "train-0.parquet", "test-0.parquet", "x", "y", ["ward"], folder=folder),
        "hub": DataSource("hub", str(folder), inputs="x", label="y", metadata=["ward"], test_split="test"),
    }[source]
    pool, test = load_source(given)
    assert test is not None
    assert pool.metadata == {"ward": ["0", "1", "2", "3"]}
    assert test.metadata == {"ward": ["4", "5", "6", "7"]}


def test_a_function_may_bring_it():
    """The `python` source has no key for it: what it returns is taken as it is."""
    pool, _ = load_source(DataSource("python", make=lambda: DATA))
    assert pool.metadata == DATA.metadata
    assert pool.known_labels[0] != NO_LABEL
