"""How much each unit of a model counts: measured on data, or else the size of its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tutelage.errors import ModelError
from tutelage.models.shrinking.families import Axes, Family
from tutelage.models.shrinking.sizes import Sizes


@dataclass(frozen=True)
class Importance:
    """How much each part of a model counts; what counts more is kept. Only the order matters, and only within one field and layer.

    Args:
        layers: ``[L]``.
        heads: ``[L, H]``, of query heads; None where the model's widths are not known, as for the next two.
        feed_forward: ``[L, F]``, of the inner units of the feed-forward parts.
        hidden: ``[D]``, of the units of the residual stream.
    """

    layers: Tensor
    heads: Tensor | None = None
    feed_forward: Tensor | None = None
    hidden: Tensor | None = None

    def __post_init__(self) -> None:
        for name, values in vars(self).items():
            if values is not None and not torch.isfinite(values).all():
                raise ModelError(
                    f"the importance of {name} holds NaN or infinite values, and units would be kept at random: is the loss that it "
                    "was measured with finite on these batches?"
                )


@dataclass(frozen=True)
class Scores:
    """What decides which units stay: ``hidden[D]``, ``heads[L, H]``, ``key_values[L, K]`` (beside those of their query heads), and
    ``feed_forward[L, F]``, over the layers that are left."""

    hidden: Tensor
    heads: Tensor
    key_values: Tensor
    feed_forward: Tensor


def scores_by_importance(importance: Importance, layers: list[int], sizes: Sizes, asked: set[str]) -> Scores:
    """The importance of the layers that are left; zeros for what is not to be cut.

    Args:
        importance: of the model before any cut.
        layers: the numbers of those that are left.
        sizes: of the model.
        asked: what is to be narrower: fields of ``importance``.

    Raises:
        ModelError: it has other shapes than the model, or does not have what is asked.
    """
    shapes = {
        "heads": (len(importance.layers), sizes.heads),
        "feed_forward": (len(importance.layers), sizes.feed_forward),
        "hidden": (sizes.hidden,),
    }
    found: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        values: Tensor | None = getattr(importance, name)
        if values is None or tuple(values.shape) != shape:
            if name in asked:
                got = "is not given" if values is None else f"has shape {tuple(values.shape)}"
                raise ModelError(
                    f"the importance of {name} {got}, expected {shape} of this model: other units than meant would be kept; measure it "
                    "on this model (importance_of), or leave 'importance' out to go by the size of the weights"
                )
            values = torch.zeros(shape)
        found[name] = values.detach().double().cpu()
    return Scores(
        hidden=found["hidden"],
        heads=found["heads"][layers],
        key_values=torch.zeros(len(layers), sizes.key_values, dtype=torch.float64),
        feed_forward=found["feed_forward"][layers],
    )


def scores_by_weights(model: Any, family: Family, listed: str, count: int, sizes: Sizes) -> Scores:
    """The squared Euclidean norm of all weights that write or read a unit.

    Args:
        model: of that family.
        family: where its units are.
        listed: where its layers are.
        count: how many layers it has.
        sizes: of the model.
    """
    found = {
        "hidden": torch.zeros(1, sizes.hidden, dtype=torch.float64),
        "heads": torch.zeros(count, sizes.heads, dtype=torch.float64),
        "key_values": torch.zeros(count, sizes.key_values, dtype=torch.float64),
        "feed_forward": torch.zeros(count, sizes.feed_forward, dtype=torch.float64),
    }
    for name, values in model.named_parameters():
        axes = declared_axes(model, family, listed, name, values, sizes)
        squares = values.detach().double().square().cpu()
        for place, axis in enumerate(axes):
            if axis is not None:
                along = squares.movedim(place, 0).reshape(axis.times, sizes.count(axis.unit), -1)
                row = 0 if axis.unit == "hidden" else number_in(name, listed)
                found[axis.unit][row] += along.sum(dim=(0, 2))
    return Scores(found["hidden"][0], found["heads"], found["key_values"], found["feed_forward"])


def declared_axes(model: Any, family: Family, listed: str, name: str, values: Tensor, sizes: Sizes) -> Axes:
    """What the axes of a parameter count.

    Raises:
        ModelError: its family's table does not name it, or it has other sizes than the table and the config say.
    """
    axes = family.axes_of(name)
    inside = name.startswith(f"{listed}.")
    if axes is None or len(axes) != values.ndim or any(not inside and axis and axis.unit != "hidden" for axis in axes):
        raise ModelError(
            f"{type(model).__name__} has a parameter {name} {tuple(values.shape)} that its family has not, and what its axes count is "
            "not known: nothing was cut; cut the layers alone, or build the narrower model in a function of your own"
        )
    for place, axis in enumerate(axes):
        if axis is not None and values.shape[place] != (expected := axis.times * sizes.places(axis.unit)):
            raise ModelError(
                f"{type(model).__name__}'s parameter {name} {tuple(values.shape)} has {values.shape[place]:,} along axis {place}, "
                f"expected {expected:,} by its config: the wrong places would be cut out; nothing was cut"
            )
    return axes


def number_in(name: str, listed: str) -> int:
    """The number of the layer that a parameter is in."""
    return int(name.removeprefix(f"{listed}.").split(".", 1)[0])
