"""Sources: reading what a config names, and refusing what cannot be read as it is meant."""

from __future__ import annotations

import gzip
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tutelage.data import DataSource, Splits, TransferSet, load_source, split
from tutelage.data.sources import read_idx
from tutelage.errors import DataError, MissingExtraError
from tutelage.signals import NO_LABEL

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 3, 4), dtype=np.uint8)
DIGITS = np.array([3, 1, 4, 1, 5, 9], dtype=np.uint8)
FASHION = Path("/usr/share/datasets/fashion-mnist")


def _idx(values: np.ndarray, kind: int = 8) -> bytes:
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, kind, values.ndim, *values.shape) + values.tobytes()


def _write_idx(folder: Path, prefix: str, images: np.ndarray, labels: np.ndarray, zipped: bool = False) -> None:
    for name, values in (("images-idx3", images), ("labels-idx1", labels)):
        content = _idx(values)
        path = folder / f"{prefix}-{name}-ubyte{'.gz' if zipped else ''}"
        path.write_bytes(gzip.compress(content) if zipped else content)


def test_digits():
    """The embedded default: 1,797 images in [0, 1], ten names."""
    pool, test = load_source(DataSource("digits"))
    assert test is None
    assert isinstance(pool.inputs, torch.Tensor)
    assert pool.inputs.shape == (1797, 1, 8, 8)
    assert pool.inputs.dtype is torch.float32
    assert (float(pool.inputs.min()), float(pool.inputs.max())) == (0, 1)
    assert pool.classes == 10
    assert pool.labelled == 1797


@pytest.mark.parametrize("zipped", [False, True])
def test_idx(tmp_path: Path, zipped: bool):
    """MNIST's own format, big-endian: read little-endian its shape would be nonsense."""
    _write_idx(tmp_path, "train", IMAGES, DIGITS, zipped)
    pool, test = load_source(DataSource("idx", path=tmp_path.name, folder=tmp_path.parent))
    assert test is None
    torch.testing.assert_close(pool.inputs, torch.from_numpy(IMAGES)[:, None] / 255)
    assert pool.known_labels.tolist() == DIGITS.tolist()
    _write_idx(tmp_path, "t10k", IMAGES[:2], DIGITS[:2], not zipped)
    _, test = load_source(DataSource("idx", path=str(tmp_path)))
    assert test is not None
    assert len(test) == 2


def test_idx_folders_that_are_not_whole(tmp_path: Path):
    """Images alone would be read as no test set at all, and the pool be cut instead."""
    source = DataSource("idx", path=str(tmp_path))
    with pytest.raises(DataError, match="is not a folder"):
        load_source(DataSource("idx", path=str(tmp_path / "nowhere")))
    with pytest.raises(DataError, match="it holds nothing"):
        load_source(source)
    _write_idx(tmp_path, "train", IMAGES, DIGITS)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(_idx(IMAGES))
    with pytest.raises(DataError, match="t10k-images-idx3-ubyte alone"):
        load_source(source)


def test_idx_files_that_do_not_match(tmp_path: Path):
    """Five labels for six images: from the missing one on, every image would have its neighbour's label."""
    _write_idx(tmp_path, "train", IMAGES, DIGITS[:5])
    with pytest.raises(DataError, match="rows would not match"):
        load_source(DataSource("idx", path=str(tmp_path)))
    _write_idx(tmp_path, "train", DIGITS, DIGITS)
    with pytest.raises(DataError, match=r"holds shape \(6,\)"):
        load_source(DataSource("idx", path=str(tmp_path)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (_idx(IMAGES)[:-1], "holds 71 values"),
        (_idx(IMAGES) + b"\0", "holds 73 values"),
        (_idx(IMAGES)[:9], "inside its header"),
        (_idx(IMAGES)[:3], "does not begin"),
        (b"", "does not begin"),
        (b"<!DOCTYPE html>", "does not begin"),
        (_idx(IMAGES, kind=0x0D), "unsigned bytes"),
        (struct.pack(">BBBB3I", 0, 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1), "says shape"),
    ],
)
def test_damaged_idx(tmp_path: Path, content: bytes, message: str):
    """A download that broke off must say so, not give fewer images, and an error page is not an image."""
    path = tmp_path / "images"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_idx(path)


def test_damaged_gzip(tmp_path: Path):
    """Compressed files break in three ways, and each raises something else in Python."""
    whole = gzip.compress(_idx(IMAGES))
    broken = whole[:20] + bytes(byte ^ 0xFF for byte in whole[20:30]) + whole[30:]
    for content in (whole[:-12], b"plain text", broken, whole[:-8] + bytes(8)):
        path = tmp_path / "images.gz"
        path.write_bytes(content)
        with pytest.raises(DataError, match="copy it again"):
            read_idx(path)


@pytest.mark.skipif(not FASHION.is_dir(), reason="the Debian package dataset-fashion-mnist is not installed")
def test_fashion_mnist():
    """Real files as people have them."""
    pool, test = load_source(DataSource("idx", path=str(FASHION)))
    assert test is not None
    assert (len(pool), len(test)) == (60_000, 10_000)
    assert isinstance(pool.inputs, torch.Tensor)
    assert pool.inputs.shape[1:] == (1, 28, 28)
    assert pool.known_labels.bincount().tolist() == [6000] * 10
    splits = split(pool, validation=0.1, test=test, drop_overlap=True)
    assert len(splits.test) == 10_000


def _parquet(path: Path, **columns: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path)


def test_parquet_one_file(tmp_path: Path):
    """Number columns are stacked to features, in the order they are named."""
    _parquet(tmp_path / "a.parquet", x=[1.0, 2.0], y=[3, 4], label=[0, 1], other=["p", "q"])
    pool, test = load_source(DataSource("parquet", path="a.parquet", inputs=["y", "x"], label="label", folder=tmp_path))
    assert test is None
    assert pool.inputs.tolist() == [[3.0, 1.0], [4.0, 2.0]]  # pyright: ignore
    assert pool.known_labels.tolist() == [0, 1]


def test_parquet_several_files(tmp_path: Path):
    """A pattern takes its files in the order of their names, on every machine; from an absolute path too."""
    for name, value in (("b", 2.0), ("a", 1.0), ("c", 3.0)):
        _parquet(tmp_path / f"part-{name}.parquet", x=[[value, value]], label=[int(value)])
    _parquet(tmp_path / "test.parquet", x=[[9.0, 9.0]], label=[1])
    for path, folder in (("part-*.parquet", tmp_path), (str(tmp_path / "part-*.parquet"), Path("/nowhere"))):
        source = DataSource("parquet", path, str(tmp_path / "test.parquet"), "x", "label", folder=folder)
        pool, test = load_source(source)
        assert pool.known_labels.tolist() == [1, 2, 3]
        assert pool.inputs.tolist() == [[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]  # pyright: ignore
        assert test is not None
        assert len(test) == 1


def test_parquet_path_with_a_patterns_characters(tmp_path: Path):
    """A folder named ``run[1]`` is a folder, not a pattern that matches ``run1``."""
    folder = tmp_path / "run[1]"
    folder.mkdir()
    _parquet(folder / "a.parquet", x=[1.0, 2.0])
    assert len(load_source(DataSource("parquet", "a.parquet", inputs="x", folder=folder))[0]) == 2
    assert len(load_source(DataSource("parquet", str(folder / "a.parquet"), inputs="x"))[0]) == 2


def test_parquet_is_read_anew_when_it_changed(tmp_path: Path):
    """A cache by name would train on yesterday's file."""
    path = tmp_path / "a.parquet"
    for count in (2, 5):
        _parquet(path, x=[float(i) for i in range(count)])
        assert len(load_source(DataSource("parquet", str(path), inputs="x"))[0]) == count


def test_parquet_mistakes(tmp_path: Path):
    """Each mistake in one message that names the way out."""
    _parquet(tmp_path / "a.parquet", x=[1.0, None], y=[1.0, 2.0], label=[0.5, 1.5])
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")

    def load(path: str = "a.parquet", **keys: Any) -> Any:
        return load_source(DataSource("parquet", path, folder=tmp_path, **keys))

    _parquet(tmp_path / "shard-0.parquet", x=[1.0], label=[0])
    _parquet(tmp_path / "shard-1.parquet", x=[1.0])
    with pytest.raises(DataError, match="cannot be read"):
        load("shard-*.parquet", inputs="x", label="label")
    with pytest.raises(DataError, match="no file matches"):
        load("b*.txt", inputs="x")
    with pytest.raises(DataError, match="cannot be read"):
        load("bad.parquet", inputs="x")
    with pytest.raises(DataError, match="needs the key 'inputs'"):
        load()
    with pytest.raises(DataError, match="no column 'z'; the columns are x, y, label"):
        load(inputs="z")
    with pytest.raises(DataError, match="no column 'z'"):
        load(inputs="y", label="z")
    with pytest.raises(DataError, match="'x' is null in row 1"):
        load(inputs="x")
    with pytest.raises(DataError, match="holds float, expected class indices"):
        load(inputs="y", label="label")


def test_class_names_of_pool_and_test_are_numbered_alike(tmp_path: Path):
    """A test file without 'bird' would number 'cat' 0 where the pool says 1: a perfect student would score nothing."""
    _parquet(tmp_path / "pool.parquet", x=[1.0, 2.0, 3.0, 4.0], label=["cat", "bird", "dog", None])
    _parquet(tmp_path / "test.parquet", x=[5.0, 6.0, 7.0], label=["dog", "ant", "cat"])
    source = DataSource("parquet", "pool.parquet", "test.parquet", "x", "label", folder=tmp_path)
    pool, test = load_source(source)
    assert test is not None
    assert list(pool.class_names or ()) == list(test.class_names or ()) == ["bird", "cat", "dog", "ant"]
    assert pool.known_labels.tolist() == [1, 0, 2, NO_LABEL]
    assert test.known_labels.tolist() == [2, 3, 1]


@pytest.fixture
def offline(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No hub, as with HF_HUB_OFFLINE=1 set before the start, and a cache of its own."""
    import datasets
    import huggingface_hub

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.mark.usefixtures("offline")
def test_hub_from_a_folder(tmp_path: Path):
    """A folder of data files is read as the hub reads it, offline, with its splits."""
    _parquet(tmp_path / "train-0.parquet", text=["a b", "c"], label=["yes", "no"])
    _parquet(tmp_path / "test-0.parquet", text=["d"], label=["yes"])
    source = DataSource("hub", tmp_path.name, inputs="text", label="label", test_split="test", folder=tmp_path.parent)
    pool, test = load_source(source)
    assert pool.inputs == ["a b", "c"]
    assert pool.known_labels.tolist() == [1, 0]
    assert test is not None
    assert test.known_labels.tolist() == [1]
    with pytest.raises(DataError, match="split 'dev'"):
        load_source(DataSource("hub", str(tmp_path), inputs="text", split="dev"))
    with pytest.raises(DataError, match="could not be loaded"):
        load_source(DataSource("hub", "nobody/nothing-of-this-name", inputs="text"))
    with pytest.raises(DataError, match="needs the key 'path'"):
        load_source(DataSource("hub", inputs="text"))


def test_python_source():
    """The user's function gives a set, or a pair; anything else is refused before it is split."""
    pool, test = TransferSet(torch.zeros(2, 1)), TransferSet(torch.ones(1, 1))
    assert load_source(DataSource("python", make=lambda: pool)) == (pool, None)
    assert load_source(DataSource("python", make=lambda: (pool, test))) == (pool, test)
    assert load_source(DataSource("python", make=lambda: (pool, None))) == (pool, None)
    for wrong in (None, [pool, test], (pool, test, test), (pool, torch.zeros(2)), (test.inputs, pool)):
        with pytest.raises(DataError, match=f"returned a {type(wrong).__name__}"):
            load_source(DataSource("python", make=lambda wrong=wrong: wrong))
    with pytest.raises(DataError, match=r"file\.py:function"):
        load_source(DataSource("python"))


def test_missing_keys_and_unknown_sources():
    """The message lists what there is."""
    with pytest.raises(DataError, match="unknown data source 'csv'; there are digits, idx, parquet, hub, python"):
        load_source(DataSource("csv"))
    with pytest.raises(DataError, match="'idx' needs the key 'path'"):
        load_source(DataSource("idx"))
    with pytest.raises(DataError, match="'parquet' needs the key 'path'"):
        load_source(DataSource("parquet", inputs="x"))


@pytest.mark.parametrize("source", ["parquet", "hub"])
def test_missing_datasets_package(source: str, monkeypatch: pytest.MonkeyPatch):
    """Without the extra, the message is the command that mends it, and the error is also an ImportError."""
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'tutelage\[data\]'"):
        load_source(DataSource(source, path="x", inputs="x"))


def test_digits_splits_end_to_end():
    """The demo's own road: digits, few labels, the rest unlabelled."""
    pool, _ = load_source(DataSource("digits"))
    splits = split(pool, validation=0.15, test=0.2).keep_labels(128)
    assert isinstance(splits, Splits)
    assert splits.train.labelled == 128
    counts = splits.train.known_labels[splits.train.known_labels != NO_LABEL].bincount()
    assert counts.min() >= 12
    assert counts.max() <= 14
