"""Where a config's data comes from: scikit-learn's digits, IDX files, Parquet, the hub, or a function of the user's."""

from __future__ import annotations

import glob
import gzip
import math
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tutelage.data.transfer_set import TransferSet
from tutelage.errors import DataError, missing_extra
from tutelage.signals import NO_LABEL


@dataclass(frozen=True)
class DataSource:
    """A source by name, with what it needs.

    Args:
        source: one of ``digits``, ``idx``, ``parquet``, ``hub``, ``python``.
        path: ``idx``: the folder; ``parquet``: a file, or a pattern of several; ``hub``: a data set's id or folder.
        test_path: ``parquet``: the file of a test set that comes with the data.
        inputs: ``parquet`` and ``hub``: the input column, or several.
        label: ``parquet`` and ``hub``: the label column, or None.
        metadata: ``parquet`` and ``hub``: columns to cut results into slices by, or None.
        name: ``hub``: the configuration of the data set.
        revision: ``hub``: the revision (a commit hash pins it).
        split: ``hub``: the split to take from.
        test_split: ``hub``: the split that is the test set, if there is one.
        folder: what relative paths are relative to.
        make: ``python``: the function that returns a :class:`TransferSet`, or a pair with the test set.
    """

    source: str
    path: str | None = None
    test_path: str | None = None
    inputs: str | Sequence[str] | None = None
    label: str | None = None
    metadata: Sequence[str] | None = None
    name: str | None = None
    revision: str | None = None
    split: str = "train"
    test_split: str | None = None
    folder: Path = Path()
    make: Callable[[], Any] | None = None


#: A pool to divide, and the test set that came with it, if one did.
Loaded = tuple[TransferSet, TransferSet | None]


def load_source(source: DataSource) -> Loaded:
    """Read a source into memory.

    Raises:
        DataError: an unknown source, a missing or damaged file, missing keys.
        MissingExtraError: the source needs a package that is not installed.
    """
    if source.source not in SOURCES:
        raise DataError(f"unknown data source {source.source!r}; there are {', '.join(SOURCES)}")
    return SOURCES[source.source](source)


def _digits(_: DataSource) -> Loaded:
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    images = torch.from_numpy(bunch.images).float()[:, None] / 16
    labels = torch.from_numpy(bunch.target).long()
    return TransferSet(images, labels, [str(name) for name in bunch.target_names]), None


def _idx(source: DataSource) -> Loaded:
    folder = source.folder / needed(source, "path")
    if not folder.is_dir():
        raise DataError(
            f"idx: {folder} is not a folder; give the one that holds train-images-idx3-ubyte and the others"
        )
    train = _read_idx_pair(folder, "train")
    test = _read_idx_pair(folder, "t10k")
    if train is None:
        raise DataError(
            f"idx: {folder} holds no train-images-idx3-ubyte with train-labels-idx1-ubyte (each may end in .gz); it holds "
            f"{', '.join(sorted(path.name for path in folder.iterdir())[:8]) or 'nothing'}"
        )
    return train, test


def _read_idx_pair(folder: Path, prefix: str) -> TransferSet | None:
    names = [f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"]
    paths = [path for path in (_existing(folder, name) for name in names) if path is not None]
    if not paths:
        return None
    if len(paths) == 1:
        raise DataError(f"idx: {folder} holds {paths[0].name} alone, expected both {' and '.join(names)}")
    images, labels = (read_idx(path) for path in paths)
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise DataError(
            f"idx: {paths[0].name} holds shape {tuple(images.shape)}, {paths[1].name} {tuple(labels.shape)}, expected images [B, H, W] "
            "and as many labels [B]: rows would not match; copy both files of one data set"
        )
    return TransferSet(images[:, None].float() / 255, labels.long())


def _existing(folder: Path, name: str) -> Path | None:
    candidates = [folder / name, folder / f"{name}.gz"]
    return next((path for path in candidates if path.is_file()), None)


def read_idx(path: Path) -> Tensor:
    """Read one IDX file of unsigned bytes (MNIST's own format), gzipped or not, as uint8 of its stated shape.

    Raises:
        DataError: it is not an IDX file of bytes, or is cut short.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"idx: {path} cannot be read: {error}; it may be cut short, copy it again") from error
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise DataError(
            f"idx: {path} does not begin as an IDX file of unsigned bytes (00 00 08), but with {content[:4].hex(' ')}"
        )
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise DataError(f"idx: {path} ends inside its header: it is cut short or damaged; copy it again")
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    values = np.frombuffer(content[start:], dtype=np.uint8)
    if values.size != math.prod(shape):
        raise DataError(
            f"idx: {path} says shape {shape} but holds {values.size} values: it is cut short or damaged; copy it again"
        )
    return torch.from_numpy(values.reshape(shape).copy())


def _parquet(source: DataSource) -> Loaded:
    datasets = datasets_package("data source 'parquet'")
    import pyarrow as pa
    import pyarrow.parquet as pq

    def read(path: str) -> TransferSet:
        literal = source.folder / path
        matches = [literal] if literal.is_file() else [source.folder / name for name in _matches(source, path)]
        found = sorted(str(match) for match in matches if match.is_file())
        if not found:
            raise DataError(f"parquet: no file matches {literal}; give a file, or a pattern such as train-*.parquet")
        try:
            # read here and not by from_parquet, which keeps a copy in a cache and takes a path for a pattern
            table = datasets.Dataset(pa.concat_tables([pq.ParquetFile(name).read() for name in found]))
        except Exception as error:
            raise DataError(f"parquet: {', '.join(found)} cannot be read: {error}") from error
        return TransferSet.from_dataset(table, source.inputs or needed(source, "inputs"), source.label, source.metadata)

    pool = read(needed(source, "path"))
    return _by_one_list_of_names(pool, read(source.test_path) if source.test_path is not None else None)


def _hub(source: DataSource) -> Loaded:
    datasets = datasets_package("data source 'hub'")
    path = needed(source, "path")
    local = source.folder / path

    def read(split: str) -> TransferSet:
        try:
            rows = datasets.load_dataset(
                str(local) if local.is_dir() else path, source.name, split=split, revision=source.revision
            )
        except Exception as error:
            raise DataError(
                f"hub: {path!r} (split {split!r}) could not be loaded: {error}. Expected a data set's id (reachable, or already in "
                "the cache when offline) or a folder of data files"
            ) from error
        return TransferSet.from_dataset(rows, source.inputs or needed(source, "inputs"), source.label, source.metadata)

    return _by_one_list_of_names(read(source.split), read(source.test_split) if source.test_split is not None else None)


def _by_one_list_of_names(pool: TransferSet, test: TransferSet | None) -> Loaded:
    """Number both sets' classes alike: names read from one file alone may lack some, and shift the numbers of the rest."""
    if test is None or pool.class_names is None or test.class_names is None:
        return pool, test
    names = [*pool.class_names, *(name for name in test.class_names if name not in pool.class_names)]
    number = torch.tensor([names.index(name) for name in test.class_names])
    labels = test.known_labels.clone()
    labelled = labels != NO_LABEL
    labels[labelled] = number[labels[labelled]]
    return replace(pool, class_names=names), replace(test, class_names=names, labels=labels)


def _python(source: DataSource) -> Loaded:
    if source.make is None:
        raise DataError("python: give 'python: file.py:function' beside 'source: python'")
    made = source.make()
    pair: tuple[Any, ...] = made if isinstance(made, tuple) else (made, None)
    pool, test = pair if len(pair) == 2 else (None, None)
    if not isinstance(pool, TransferSet) or not isinstance(test, TransferSet | None):
        raise DataError(
            f"python: the function returned a {type(made).__name__}, expected a TransferSet, or a pair of them with the test set"
        )
    return pool, test


def _matches(source: DataSource, pattern: str) -> list[str]:
    return glob.glob(pattern, root_dir=source.folder, recursive=True)


def needed(source: Any, key: str) -> str:
    """A key that a source cannot do without; DataError where it is not said."""
    value = getattr(source, key)
    if value is None:
        raise DataError(f"data source {source.source!r} needs the key {key!r}")
    return value


def datasets_package(feature: str) -> Any:
    """The package ``datasets``; an error that names the extra where it is not installed."""
    try:
        import datasets
    except ImportError as error:
        raise missing_extra("datasets", "data", feature) from error
    return datasets


SOURCES: dict[str, Callable[[DataSource], Loaded]] = {
    "digits": _digits,
    "idx": _idx,
    "parquet": _parquet,
    "hub": _hub,
    "python": _python,
}
