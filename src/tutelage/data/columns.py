"""Columns of a Hugging Face dataset, read into memory as a transfer set's inputs, labels and metadata."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tutelage.data.ids import RawInputs
from tutelage.errors import DataError
from tutelage.signals import NO_LABEL

if TYPE_CHECKING:
    import datasets


def read_columns(
    dataset: datasets.Dataset, inputs: str | Sequence[str], label: str | None
) -> tuple[RawInputs, Tensor | None, list[str] | None]:
    """Inputs, labels ``[B]`` and class names of a dataset; see :meth:`TransferSet.from_dataset`."""
    dataset = dataset.with_format(None)
    wanted = [inputs] if isinstance(inputs, str) else list(inputs)
    _check_columns(dataset, [*wanted, *([label] if label is not None else [])])
    raw: RawInputs
    if isinstance(inputs, str):
        raw = _read_column(dataset, inputs)
    else:
        columns = {name: _read_column(dataset, name) for name in wanted}
        tensors = {name: values for name, values in columns.items() if isinstance(values, Tensor)}
        if len(tensors) < len(columns):
            texts = sorted(columns.keys() - tensors.keys())
            raise DataError(
                f"columns {', '.join(texts)} hold texts: give a text column alone, or join them into one first"
            )
        scalars = all(values.ndim == 1 for values in tensors.values())
        raw = torch.stack([values.float() for values in tensors.values()], dim=1) if scalars else tensors
    if label is None:
        return raw, None, None
    labels, names = _read_labels(dataset, label)
    return raw, labels, names


#: What a missing value is called.
MISSING = "(missing)"

#: Different values that a column may have whatever its length.
MANY = 50


def read_metadata(dataset: datasets.Dataset, columns: Sequence[str]) -> dict[str, list[str]]:
    """Columns to cut results into slices by, as texts; null, NaN and blank become ``(missing)``.

    Raises:
        DataError: no such column, other values than texts, numbers and truth values, or so many different ones that the
            slices could not be judged.
    """
    dataset = dataset.with_format(None)
    _check_columns(dataset, columns)
    return {column: _read_slices(dataset, column) for column in columns}


def _read_slices(dataset: datasets.Dataset, column: str) -> list[str]:
    names: list[str] | None = getattr(dataset.features[column], "names", None)
    values: list[Any] = list(dataset[column])
    wrong = next((row for row, value in enumerate(values) if not isinstance(value, str | int | float | None)), None)
    if wrong is not None:
        raise DataError(
            f"metadata column {column!r} holds a {type(values[wrong]).__name__} in row {wrong}, expected texts, numbers or true and "
            "false: nothing says which examples belong together; make a text column of it (of a date, its month)"
        )
    if names is not None:
        values = [names[value] if isinstance(value, int) and 0 <= value < len(names) else None for value in values]
    texts = [_slice_name(value) for value in values]
    different = len(set(texts))
    if different > MANY and any(isinstance(value, int | float) for value in values):
        raise DataError(
            f"metadata column {column!r} holds {different:,} different numbers: hardly two examples would share a slice; bin it into "
            f"{MANY} values or fewer (ages into decades), or make it a text column if each number is a name"
        )
    if different > max(MANY, len(texts) // 2):
        raise DataError(
            f"metadata column {column!r} holds {different:,} different texts in {len(texts):,} rows: slices of one or two examples "
            "cannot be judged; name a coarser column (the ward, not the patient)"
        )
    return texts


def _slice_name(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        # a whole number that came through a column with nulls in it is the whole number
        return MISSING if math.isnan(value) else str(int(value)) if value.is_integer() else repr(value)
    return MISSING if value is None or not str(value).strip() else str(value)


def _check_columns(dataset: datasets.Dataset, wanted: Sequence[str]) -> None:
    for column in wanted:
        if column not in dataset.column_names:
            raise DataError(f"there is no column {column!r}; the columns are {', '.join(dataset.column_names)}")


def _read_column(dataset: datasets.Dataset, column: str) -> Tensor | list[str]:
    values: list[Any] = list(dataset[column])
    missing = next((row for row, value in enumerate(values) if value is None), None)
    if missing is not None:
        raise DataError(f"column {column!r} is null in row {missing}: fill it in or drop the row")
    if values and isinstance(values[0], str):
        return values
    if values and hasattr(values[0], "convert"):  # a decoded image
        return _stack_images(values, column)
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise DataError(
            f"column {column!r} holds lists of different lengths: pad them, or give texts and a tokenizer"
        ) from error
    if array.dtype.kind not in "fiub":
        raise DataError(f"column {column!r} holds {array.dtype}, expected texts, images, numbers or lists of numbers")
    return torch.from_numpy(array.astype(np.float32) if array.dtype.kind == "f" else array.astype(np.int64))


def _stack_images(images: list[Any], column: str) -> Tensor:
    sizes = {image.size for image in images}
    if len(sizes) > 1:
        raise DataError(f"column {column!r} holds images of {len(sizes)} sizes: resize them to one size first")
    mode = "L" if all(image.mode in ("1", "L") for image in images) else "RGB"
    pixels = torch.stack([torch.from_numpy(np.array(image.convert(mode), dtype=np.uint8)) for image in images])
    pixels = pixels[:, None] if mode == "L" else pixels.permute(0, 3, 1, 2)
    return pixels.float() / 255


def _read_labels(dataset: datasets.Dataset, column: str) -> tuple[Tensor, list[str] | None]:
    names: list[str] | None = getattr(dataset.features[column], "names", None)
    values: list[Any] = list(dataset[column])
    known = [value for value in values if value is not None]
    if known and isinstance(known[0], str):
        names = sorted(set(known))
        index = {name: position for position, name in enumerate(names)}
        return torch.tensor([NO_LABEL if value is None else index[value] for value in values]), names
    if any(not isinstance(value, int) or isinstance(value, bool) for value in known):
        raise DataError(
            f"label column {column!r} holds {type(known[0]).__name__}, expected class indices or class names"
        )
    return torch.tensor([NO_LABEL if value is None or value == -1 else value for value in values]), names
