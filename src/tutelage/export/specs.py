"""What an artefact takes and gives: names, types, and which axes are free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tutelage.models import class_logits
from tutelage.models.calling import Inputs

#: The name of an input that is no mapping.
LONE_INPUT = "input"

#: The free axes.
BATCH, LENGTH = "batch", "length"

#: What a free axis is called that an artefact has no name for.
UNNAMED = "unnamed"


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of an exported model.

    Args:
        name: its name in the artefact.
        dtype: of the elements, as NumPy writes it: ``float32``, ``int64``, ``bool``.
        shape: a number for an axis that is fixed, a name (``batch``, ``length``) for one that is free.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def to_json(self) -> dict[str, Any]:
        """As in an artefact's manifest."""
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}

    @staticmethod
    def from_json(fields: Mapping[str, Any]) -> TensorSpec:
        """From an artefact's manifest."""
        return TensorSpec(fields["name"], fields["dtype"], tuple(fields["shape"]))


class Runner(Protocol):
    """An exported model, ready to answer."""

    def __call__(self, inputs: Inputs) -> NDArray[np.float32]:
        """Logits ``[B, C]``, as the artefact computes them.

        Raises:
            ExportError: it does not take these inputs, or gave no logits.
        """
        ...


def named(inputs: Inputs) -> dict[str, Tensor]:
    """The inputs by name; a lone tensor is called ``input``."""
    return {LONE_INPUT: inputs} if isinstance(inputs, Tensor) else dict(inputs)


def input_specs(sample: Inputs) -> list[TensorSpec]:
    """What a model that takes ``sample`` takes in general.

    Axis 0 is the batch and free. Whole numbers and masks with two axes or more are tokens ``[B, T]``, whose length is free
    too; the other axes of floating-point tensors (pixels, channels, features) belong to the model and are fixed.
    """
    specs: list[TensorSpec] = []
    for name, values in named(sample).items():
        shape: list[int | str] = [BATCH, *values.shape[1:]]
        if values.ndim >= 2 and not values.is_floating_point():
            shape[1] = LENGTH
        specs.append(TensorSpec(name, str(values.dtype).removeprefix("torch."), tuple(shape)))
    return specs


def taken_inputs(model: nn.Module, sample: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of a view's tensors that the model's ``forward`` is given; the others are dropped for it, as `class_logits` does."""
    names: list[str] = []

    def note(_: nn.Module, __: object, keywords: dict[str, Tensor]) -> None:
        names.extend(keywords)

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        with torch.no_grad():
            class_logits(model, sample)
    finally:
        handle.remove()
    return {name: sample[name] for name in names}
