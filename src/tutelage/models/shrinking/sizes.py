"""How wide a model is, and how wide it may become."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tutelage.errors import ModelError
from tutelage.models.shrinking.families import Family, Unit


@dataclass(frozen=True)
class Sizes:
    """Numbers of units: of the residual stream, of query heads, of key and value heads (as many where none are shared), of the inner
    units of a feed-forward part; and how wide a head is, which no cut changes."""

    hidden: int
    heads: int
    key_values: int
    feed_forward: int
    head_width: int

    def count(self, unit: Unit) -> int:
        """Of a kind."""
        return int(getattr(self, unit))

    def width(self, unit: Unit) -> int:
        """Places along an axis that one of a kind takes."""
        return self.head_width if unit in ("heads", "key_values") else 1

    def places(self, unit: Unit) -> int:
        """Along an axis that counts a kind once."""
        return self.count(unit) * self.width(unit)


def sizes_of(config: Any, family: Family) -> Sizes:
    """Those that a config of a family says."""
    heads = config.num_attention_heads
    return Sizes(
        hidden=config.hidden_size,
        heads=heads,
        key_values=getattr(config, "num_key_value_heads", None) or heads,
        feed_forward=getattr(config, family.feed_forward),
        head_width=_own_width(config) or config.hidden_size // heads,
    )


def smaller_sizes(
    config: Any, family: Family, *, hidden: int | None, heads: int | None, feed_forward: int | None
) -> Sizes:
    """Those after a cut.

    Raises:
        ModelError: a size that is not from 1 to what there is; a hidden size that its family makes of whole heads and that is not so
            many; query heads that do not share the key and value heads evenly.
    """
    now = sizes_of(config, family)
    for name, wanted in {"hidden": hidden, "heads": heads, "feed_forward": feed_forward}.items():
        most = getattr(now, name)
        if wanted is not None and not 1 <= wanted <= most:
            raise ModelError(f"{name} is to be {wanted:,}, expected 1 to {most:,}, which the model has")
    if family.tied and _own_width(config) is None:
        heads = _tied_heads(now, hidden, heads)
    then = replace(now, hidden=hidden or now.hidden, feed_forward=feed_forward or now.feed_forward)
    return then if heads is None else replace(then, heads=heads, key_values=_shared(now, heads))


def write_sizes(config: Any, family: Family, sizes: Sizes) -> None:
    """Say in a config of a family how wide its model is."""
    own = _own_width(config) is not None
    config.hidden_size = sizes.hidden
    config.num_attention_heads = sizes.heads
    setattr(config, family.feed_forward, sizes.feed_forward)
    if getattr(config, "num_key_value_heads", None) is not None:
        config.num_key_value_heads = sizes.key_values
    if own or sizes.hidden != sizes.heads * sizes.head_width:
        config.head_dim = sizes.head_width


def _own_width(config: Any) -> int | None:
    return getattr(config, "head_dim", None)


def _tied_heads(now: Sizes, hidden: int | None, heads: int | None) -> int | None:
    """The heads that a hidden size is made of."""
    width = now.head_width
    if hidden is None:
        if heads is None or heads == now.heads:
            return heads
        raise ModelError(
            f"{heads} heads of {width} units in a model whose hidden size is all heads together ({now.heads} × {width} = "
            f"{now.hidden:,}): it would have to be {heads * width:,}; give hidden={heads * width} as well, or leave the heads"
        )
    if hidden % width:
        near = sorted({max(hidden // width, 1) * width, min(hidden // width + 1, now.heads) * width})
        raise ModelError(
            f"hidden is to be {hidden:,} in a model whose hidden size is all heads together, of {width} units each, which they "
            f"keep: expected a multiple of {width}, as {' or '.join(f'{size:,}' for size in near)}"
        )
    if heads is not None and heads * width != hidden:
        raise ModelError(
            f"hidden is to be {hidden:,} with {heads} heads, in a model whose hidden size is all heads together, of {width} units "
            f"each, which they keep: give heads={hidden // width}, or hidden={heads * width}"
        )
    return hidden // width


def _shared(now: Sizes, heads: int) -> int:
    """The key and value heads of so many query heads: whole groups go where that is possible, else each group gets smaller."""
    group = now.heads // now.key_values
    if heads % group == 0:
        return heads // group
    if heads % now.key_values == 0:
        return now.key_values
    raise ModelError(
        f"heads is to be {heads} of {now.heads}, of which each {group} share one of {now.key_values} key and value heads: what is left "
        f"would share them unevenly; give a multiple of {group} (whole groups go) or of {now.key_values} (each group keeps its best)"
    )
