"""A smaller model from a bigger one, in depth and in width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from tutelage.errors import ModelError
from tutelage.models.calling import unwrapped
from tutelage.models.shrinking.choice import layer_numbers
from tutelage.models.shrinking.depth import cut_depth, model_layers
from tutelage.models.shrinking.families import Family, expected_family
from tutelage.models.shrinking.scores import Importance, declared_axes, scores_by_importance, scores_by_weights
from tutelage.models.shrinking.sizes import Sizes, sizes_of, smaller_sizes
from tutelage.models.shrinking.width import best_units, cut_width


def shrink(
    model: nn.Module,
    *,
    layers: int | Sequence[int] | str | None = None,
    hidden: int | None = None,
    heads: int | None = None,
    feed_forward: int | None = None,
    importance: Importance | None = None,
    layer_path: str | None = None,
) -> Any:
    """A new model of the same class: some of the layers, and of these some of the units, with the weights that they have.

    Its config says so, tied weights stay tied, and ``from_pretrained`` reads what its ``save_pretrained`` writes. Where nothing is cut,
    it is a copy that gives the same bit for bit. All its weights are to be trained, whatever was frozen in the model; it is in the mode
    (train or eval) that the model is in. Which units stay is decided within each layer, by ``importance`` or else by the norm of all
    weights that write or read a unit; those of the residual stream are the same for all layers. A head stays as wide as it is.

    A cut in depth needs a model of transformers with one list of layers. A cut in width needs a family whose parameters are known: BERT,
    RoBERTa (XLM-RoBERTa, CamemBERT), DistilBERT, ModernBERT, ViT, and Llama (Mistral, Qwen2, Qwen3, SmolLM3). In all but the last, the
    residual stream is as wide as all heads together: a cut of ``hidden`` there takes as many heads, and heads cannot be cut without it.

    Args:
        model: a ``PreTrainedModel``, whole on one device.
        layers: how many, evenly apart with the first and the last; their numbers; or in words (:func:`layer_numbers`).
        hidden: units of the residual stream that stay, D.
        heads: query heads that stay in each layer, H. Where they share key and value heads, whole groups go if what is left is made of
            whole groups, else each group keeps its best.
        feed_forward: inner units that stay in each layer's feed-forward part, F.
        importance: of the layers and units of this model (:func:`importance_of`).
        layer_path: where the layers are, in a model with several lists of them or that is an encoder and a decoder.

    Returns:
        The smaller ``PreTrainedModel``; the given one is as before.

    Raises:
        ModelError: what cannot be cut as asked, which is then not cut at all: a family whose widths are not known, a parameter that its
            family has not, sizes that do not fit together, a layer that would be another one at its new place (ModernBERT's first has no
            norm), or importance of another model.
    """
    inner: Any = unwrapped(model)
    listed, there = model_layers(inner, layer_path)
    if importance is not None and tuple(importance.layers.shape) != (len(there),):
        raise ModelError(
            f"the importance of layers has shape {tuple(importance.layers.shape)}, expected ({len(there)},) of this model: it was "
            "measured on another one, and other layers than meant would be kept"
        )
    kept = layer_numbers(layers, len(there), None if importance is None else importance.layers)
    widths = {"hidden": hidden, "heads": heads, "feed_forward": feed_forward}
    if all(wanted is None for wanted in widths.values()):
        return cut_depth(inner, listed, kept, declared=layer_path is not None)
    family = expected_family(inner)
    now = sizes_of(inner.config, family)
    then = smaller_sizes(inner.config, family, hidden=hidden, heads=heads, feed_forward=feed_forward)
    if then != now:
        for name, values in inner.named_parameters():
            declared_axes(inner, family, listed, name, values, now)
    smaller = cut_depth(inner, listed, kept, declared=layer_path is not None)
    return smaller if then == now else _narrowed(smaller, family, listed, kept, importance, now, then)


def _narrowed(
    model: Any,
    family: Family,
    listed: str,
    kept: list[int],
    importance: Importance | None,
    now: Sizes,
    then: Sizes,
) -> Any:
    if importance is None:
        scores = scores_by_weights(model, family, listed, len(kept), now)
    else:
        asked = {name for name in ("hidden", "heads", "feed_forward") if getattr(now, name) != getattr(then, name)}
        scores = scores_by_importance(importance, kept, now, asked)
    return cut_width(model, family, listed, best_units(scores, now, then), now, then)
