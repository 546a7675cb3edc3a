"""The data of every experiment here: Fashion-MNIST from its IDX files, or handwritten digits where they are not at hand."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch.nn.functional import interpolate, pad

from tutelage import TransferSet
from tutelage.data import DataSource, load_source

#: Where Debian's ``dataset-fashion-mnist`` puts the files.
FOLDER = Path(os.environ.get("FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))
CLOTHES = ["T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]


def clothes_or_digits() -> tuple[TransferSet, TransferSet]:
    """A pool to divide and a test set, images ``[B, 1, 28, 28]`` with values in 0 … 1, ten classes."""
    if FOLDER.is_dir():
        pool, test = load_source(DataSource("idx", path=str(FOLDER)))
        assert test is not None
        return replace(pool, class_names=CLOTHES), replace(test, class_names=CLOTHES)
    print(f"{FOLDER} is not there: 1,797 handwritten digits take the place of Fashion-MNIST", file=sys.stderr)
    pool, _ = load_source(DataSource("digits"))
    assert isinstance(pool.inputs, torch.Tensor)
    large = replace(pool, inputs=pad(interpolate(pool.inputs, scale_factor=3), (2, 2, 2, 2)))
    # by content, so that two equal images cannot stand on both sides
    tested = large.ids % 5 == 0
    return large.select(torch.nonzero(~tested)[:, 0]), large.select(torch.nonzero(tested)[:, 0])
