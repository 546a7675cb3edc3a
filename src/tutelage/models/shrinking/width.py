"""Narrower layers: the same units are taken out of everything that writes or reads them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.errors import ModelError
from tutelage.models.shrinking.building import blank, built
from tutelage.models.shrinking.families import Axis, Family
from tutelage.models.shrinking.scores import Scores, declared_axes, number_in
from tutelage.models.shrinking.sizes import Sizes, write_sizes


@dataclass(frozen=True)
class Units:
    """The numbers of the units that stay, rising: those of the residual stream, and for each layer its query heads, its key and value
    heads, and its inner units of the feed-forward part."""

    hidden: Tensor
    heads: list[Tensor]
    key_values: list[Tensor]
    feed_forward: list[Tensor]

    def places(self, axis: Axis, layer: int | None, sizes: Sizes) -> Tensor:
        """Where they stand along an axis of the model of those sizes; ``layer`` is None outside the layers."""
        kept: Tensor = self.hidden if axis.unit == "hidden" else getattr(self, axis.unit)[layer]
        width = sizes.width(axis.unit)
        once = (kept[:, None] * width + torch.arange(width)).flatten()
        return torch.cat([once + block * sizes.places(axis.unit) for block in range(axis.times)])


def best_units(scores: Scores, now: Sizes, then: Sizes) -> Units:
    """Those of the highest scores; of two alike, the first. Query heads stay with the key and value head that they share.

    Args:
        scores: of the model.
        now: its sizes.
        then: those after the cut.
    """
    group, left = now.heads // now.key_values, then.heads // then.key_values
    groups: list[Tensor] = []
    heads: list[Tensor] = []
    for of_heads, of_keys in zip(scores.heads, scores.key_values, strict=True):
        by_group = of_heads.reshape(now.key_values, group)
        kept = _best(by_group.sum(1) + of_keys, then.key_values)
        groups.append(kept)
        heads.append(torch.cat([number * group + _best(by_group[number], left) for number in kept]))
    return Units(
        hidden=_best(scores.hidden, then.hidden),
        heads=heads,
        key_values=groups,
        feed_forward=[_best(of_layer, then.feed_forward) for of_layer in scores.feed_forward],
    )


def cut_width(model: Any, family: Family, listed: str, units: Units, now: Sizes, then: Sizes) -> Any:
    """The model with those units alone.

    Args:
        model: of that family.
        family: where its units are.
        listed: where its layers are.
        units: that stay.
        now: the model's sizes.
        then: those after the cut.

    Raises:
        ModelError: a parameter that the family's table does not name, or of other sizes; or the smaller config builds another model than
            the one that is left. Nothing is cut then.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    state: dict[str, Tensor] = {}
    for name, values in model.state_dict().items():
        new = values.detach()
        if name in parameters:
            layer = number_in(name, listed) if name.startswith(f"{listed}.") else None
            for place, axis in enumerate(declared_axes(model, family, listed, name, values, now)):
                if axis is not None:
                    new = new.index_select(place, units.places(axis, layer, now).to(new.device))
        state[name] = new.clone()
    config = copy.deepcopy(model.config)
    write_sizes(config, family, then)
    _expect_same_settings(model, blank(model, config))
    return built(model, config, state)


def _best(scores: Tensor, count: int) -> Tensor:
    return scores.argsort(descending=True, stable=True)[:count].sort().values


def _expect_same_settings(model: nn.Module, smaller: nn.Module) -> None:
    """Refuse a model in which something follows from its width but the shapes, such as what its embeddings are multiplied by."""
    there, here = dict(model.named_modules()), dict(smaller.named_modules())
    for at in there.keys() & here.keys():
        for name, value in vars(there[at]).items():
            if name.startswith("_") or name == "training" or type(value) not in (bool, float, str):
                continue
            if (got := vars(here[at]).get(name)) != value:
                setting = f"{at}.{name}".lstrip(".")
                raise ModelError(
                    f"{type(model).__name__} would have {setting} {got!r} where it has {value!r}: it follows from the width, and what is "
                    "left would no longer be what the model was; nothing was cut; build the narrower model in a function of your own"
                )
