"""What a transfer set may be made of: inputs, labels and metadata that are refused before a model meets them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tutelage.data.completions import Completions
from tutelage.data.ids import RawInputs
from tutelage.errors import DataError
from tutelage.signals import NO_LABEL

#: What the slices by class are called, beside those by a metadata column.
BY_CLASS = "class"


def length_of(inputs: RawInputs) -> int:
    """How many examples there are."""
    return len(next(iter(inputs.values()))) if isinstance(inputs, Mapping) else len(inputs)


def _columns(inputs: Any) -> dict[str, Tensor]:
    """The tensors of raw inputs by name; none for texts."""
    if isinstance(inputs, Tensor):
        columns: dict[str, Any] = {"inputs": inputs}
    elif isinstance(inputs, Completions):
        columns = {}
    elif isinstance(inputs, Mapping):
        columns = dict(inputs)
        if not columns:
            raise DataError("inputs are an empty mapping, expected at least one tensor [B, ...]")
    elif isinstance(inputs, Sequence) and not isinstance(inputs, str) and all(isinstance(x, str) for x in inputs):
        columns = {}
    else:
        raise DataError(
            f"inputs are a {type(inputs).__name__}, expected a tensor [B, ...], a mapping of tensors or a list of texts"
        )
    for name, values in columns.items():
        if not isinstance(values, Tensor) or values.ndim == 0:
            raise DataError(
                f"{name} is a {type(values).__name__} without an axis of examples, expected a tensor [B, ...]"
            )
        if len(values) and not values.numel():
            raise DataError(f"{name} has shape {tuple(values.shape)}: no values to tell one example from another")
    return columns


def check_inputs(inputs: RawInputs) -> None:
    """Refuse what are no examples, none at all, lengths that differ, and numbers that are none.

    Raises:
        DataError: it names the column and the row.
    """
    columns = _columns(inputs)
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"inputs have different lengths {lengths}: rows would be joined by position; align them first")
    if length_of(inputs) == 0:
        raise DataError("the transfer set has no examples; check the source's path, filter or split")
    for name, values in columns.items():
        if values.is_floating_point() and not values.isfinite().all():
            row = (
                int((~values.isfinite()).flatten(1).any(1).nonzero()[0])
                if values.ndim > 1
                else int((~values.isfinite()).nonzero()[0])
            )
            raise DataError(
                f"{name} of row {row} holds NaN or infinity: every loss and statistic after it would be NaN; impute or drop it"
            )


def check_metadata(metadata: Any, length: int) -> None:
    """Refuse what is no mapping of columns to one text an example.

    Raises:
        DataError: it names the column.
    """
    if metadata is None:
        return
    if not isinstance(metadata, Mapping):
        raise DataError(
            f"metadata is a {type(metadata).__name__}, expected a mapping of column names to lists of texts"
        )
    for column, values in metadata.items():
        if column == BY_CLASS:
            raise DataError(
                f"metadata has a column {BY_CLASS!r}: results are cut by class as it is, under that name, and one of the two would "
                "replace the other; leave it out or rename it"
            )
        if not isinstance(values, Sequence) or isinstance(values, str):
            raise DataError(
                f"metadata {column!r} is a {type(values).__name__}, expected a list of texts; convert it with .tolist()"
            )
        if len(values) != length:
            raise DataError(
                f"metadata {column!r} has {len(values):,} values for {length:,} examples: an example would be counted in another "
                "one's slice; give one for each"
            )
        wrong = next((row for row, value in enumerate(values) if not isinstance(value, str)), None)
        if wrong is not None:
            raise DataError(
                f"metadata {column!r} holds a {type(values[wrong]).__name__} in row {wrong}, expected texts: equal values of two "
                "kinds would be two slices; convert them with str"
            )


def check_views(views: Any) -> None:
    """Refuse what is no number of views.

    Raises:
        DataError: it is none.
    """
    if views is not None and (not isinstance(views, int) or isinstance(views, bool) or views < 1):
        raise DataError(f"views is {views!r}, expected at least 1, or None for a new view in each epoch")


def checked_labels(labels: Tensor | None, length: int, class_names: Sequence[str] | None) -> Tensor:
    """Labels as int64 ``[B]`` or ``[B, T]``, ``NO_LABEL`` throughout where there are none.

    Raises:
        DataError: other lengths or shapes, a type that counts no classes, a label that is no class.
    """
    if labels is None:
        return torch.full((length,), NO_LABEL, dtype=torch.int64)
    if not isinstance(labels, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance] - a list or an array is a likely slip
        raise DataError(
            f"labels are a {type(labels).__name__}, expected an integer tensor [B] or [B, T]; convert with torch.as_tensor"
        )
    if labels.ndim not in (1, 2) or len(labels) != length or (labels.ndim == 2 and labels.shape[1] < 2):
        raise DataError(
            f"labels have shape {tuple(labels.shape)}, expected one for each of {length} examples [B], or one a token [B, T] with T of "
            "at least 2 (a column is made labels of examples by squeeze(1))"
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype is torch.bool:
        raise DataError(
            f"labels are {labels.dtype}, expected integer class indices; a soft label is a teacher's signal, not a label"
        )
    labels = labels.to(torch.int64)
    known = labels[labels != NO_LABEL]
    if len(known) and int(known.min()) < 0:
        raise DataError(f"label {int(known.min())} is negative; mark a missing label with {NO_LABEL}")
    if class_names is not None and len(known) and int(known.max()) >= len(class_names):
        wrong = (labels >= len(class_names)).nonzero()[0]
        raise DataError(
            f"label {int(labels[tuple(wrong)])} of row {int(wrong[0])} has no name among {len(class_names)} class names"
        )
    return labels
