"""Which axis of which parameter counts what, family by family: the table that a width cut follows.

A table is keyed by the end of a parameter's name, or of its module's: a module's weight has the axes given, its bias the first of them. A
parameter that no entry names is refused, and so is one whose axes have other sizes; what the table leads to is then compared with the
model that the smaller config builds (:func:`tutelage.models.shrinking.building.built`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tutelage.errors import ModelError

Unit = Literal["hidden", "heads", "key_values", "feed_forward"]


@dataclass(frozen=True)
class Axis:
    """What is counted along an axis.

    Args:
        unit: ``hidden``: units of the residual stream; ``heads``: query heads, each as many places as it is wide; ``key_values``: key and
            value heads, which groups of query heads share; ``feed_forward``: inner units of the feed-forward part.
        times: how often all of them stand behind one another, in a weight that several projections are fused into.
    """

    unit: Unit
    times: int = 1


#: For each axis of a parameter, what it counts; None for what no cut touches.
Axes = tuple[Axis | None, ...]

HIDDEN, HEADS, KEY_VALUES, FEED_FORWARD = Axis("hidden"), Axis("heads"), Axis("key_values"), Axis("feed_forward")
_TABLE: Axes = (None, HIDDEN)
_SQUARE: Axes = (HIDDEN, HIDDEN)
_NORM: Axes = (HIDDEN,)
_HEAD: Axes = (None, HIDDEN)


@dataclass(frozen=True)
class Family:
    """Models whose parameters are named alike.

    Args:
        axes: by the end of a name.
        tied: the residual stream is as wide as all heads together, as long as the config has no ``head_dim`` of its own.
        feed_forward: what the config calls the width of the feed-forward part.
    """

    axes: Mapping[str, Axes]
    tied: bool = True
    feed_forward: str = "intermediate_size"

    def axes_of(self, name: str) -> Axes | None:
        """Those of a parameter; None where no entry names it."""
        owner, _, leaf = name.rpartition(".")
        if (own := self._longest(name)) is not None:
            return own
        if leaf not in ("weight", "bias") or (found := self._longest(owner)) is None:
            return None
        return found if leaf == "weight" else found[:1]

    def _longest(self, name: str) -> Axes | None:
        parts = name.split(".")
        ends = (".".join(parts[start:]) for start in range(len(parts)))
        return next((self.axes[end] for end in ends if end in self.axes), None)


_BERT: dict[str, Axes] = {
    "word_embeddings": _TABLE,
    "position_embeddings": _TABLE,
    "token_type_embeddings": _TABLE,
    "LayerNorm": _NORM,
    "attention.self.query": (HEADS, HIDDEN),
    "attention.self.key": (HEADS, HIDDEN),
    "attention.self.value": (HEADS, HIDDEN),
    "attention.output.dense": (HIDDEN, HEADS),
    "intermediate.dense": (FEED_FORWARD, HIDDEN),
    "output.dense": (HIDDEN, FEED_FORWARD),
    "pooler.dense": _SQUARE,
    "predictions.transform.dense": _SQUARE,
    "predictions.decoder": _HEAD,
    "predictions.bias": (None,),
    "seq_relationship": _HEAD,
    "classifier": _HEAD,
    "qa_outputs": _HEAD,
}

_ROBERTA: dict[str, Axes] = {
    **_BERT,
    "lm_head.dense": _SQUARE,
    "lm_head.layer_norm": _NORM,
    "lm_head.decoder": _HEAD,
    "lm_head.bias": (None,),
    "classifier.dense": _SQUARE,
    "classifier.out_proj": _HEAD,
}

_DISTILBERT: dict[str, Axes] = {
    "word_embeddings": _TABLE,
    "position_embeddings": _TABLE,
    "LayerNorm": _NORM,
    "attention.q_lin": (HEADS, HIDDEN),
    "attention.k_lin": (HEADS, HIDDEN),
    "attention.v_lin": (HEADS, HIDDEN),
    "attention.out_lin": (HIDDEN, HEADS),
    "sa_layer_norm": _NORM,
    "ffn.lin1": (FEED_FORWARD, HIDDEN),
    "ffn.lin2": (HIDDEN, FEED_FORWARD),
    "output_layer_norm": _NORM,
    "vocab_transform": _SQUARE,
    "vocab_layer_norm": _NORM,
    "vocab_projector": _HEAD,
    "pre_classifier": _SQUARE,
    "classifier": _HEAD,
    "qa_outputs": _HEAD,
}

_MODERNBERT: dict[str, Axes] = {
    "tok_embeddings": _TABLE,
    "embeddings.norm": _NORM,
    "attn_norm": _NORM,
    "attn.Wqkv": (Axis("heads", 3), HIDDEN),
    "attn.Wo": (HIDDEN, HEADS),
    "mlp_norm": _NORM,
    "mlp.Wi": (Axis("feed_forward", 2), HIDDEN),
    "mlp.Wo": (HIDDEN, FEED_FORWARD),
    "final_norm": _NORM,
    "head.dense": _SQUARE,
    "head.norm": _NORM,
    "decoder": _HEAD,
    "classifier": _HEAD,
}

_VIT: dict[str, Axes] = {
    "cls_token": (None, None, HIDDEN),
    "mask_token": (None, None, HIDDEN),
    "position_embeddings": (None, None, HIDDEN),
    "patch_embeddings.projection": (HIDDEN, None, None, None),
    "layernorm_before": _NORM,
    "attention.q_proj": (HEADS, HIDDEN),
    "attention.k_proj": (HEADS, HIDDEN),
    "attention.v_proj": (HEADS, HIDDEN),
    "attention.o_proj": (HIDDEN, HEADS),
    "layernorm_after": _NORM,
    "mlp.fc1": (FEED_FORWARD, HIDDEN),
    "mlp.fc2": (HIDDEN, FEED_FORWARD),
    "layernorm": _NORM,
    "pooler.dense": _HEAD,
    "classifier": _HEAD,
    "decoder.0": (None, HIDDEN, None, None),
}

_LLAMA: dict[str, Axes] = {
    "embed_tokens": _TABLE,
    "input_layernorm": _NORM,
    "self_attn.q_proj": (HEADS, HIDDEN),
    "self_attn.k_proj": (KEY_VALUES, HIDDEN),
    "self_attn.v_proj": (KEY_VALUES, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HEADS),
    "self_attn.q_norm": (None,),
    "self_attn.k_norm": (None,),
    "post_attention_layernorm": _NORM,
    "mlp.gate_proj": (FEED_FORWARD, HIDDEN),
    "mlp.up_proj": (FEED_FORWARD, HIDDEN),
    "mlp.down_proj": (HIDDEN, FEED_FORWARD),
    "norm": _NORM,
    "lm_head": _HEAD,
    "score": _HEAD,
    "qa_outputs": _HEAD,
}

#: By ``config.model_type``.
FAMILIES: dict[str, Family] = {
    "bert": Family(_BERT),
    **dict.fromkeys(("camembert", "roberta", "xlm-roberta"), Family(_ROBERTA)),
    "distilbert": Family(_DISTILBERT, feed_forward="hidden_dim"),
    "modernbert": Family(_MODERNBERT),
    "vit": Family(_VIT),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "smollm3"), Family(_LLAMA, tied=False)),
}


def family_of(model: Any) -> Family | None:
    """The one that a model of transformers belongs to; None where its widths are not known."""
    return FAMILIES.get(str(getattr(model.config, "model_type", None)))


def expected_family(model: Any) -> Family:
    """The one that a model belongs to.

    Raises:
        ModelError: none whose widths are known.
    """
    family = family_of(model)
    if family is None:
        raise ModelError(
            f"{type(model).__name__} ({model.config.model_type}) is of no family whose widths are known "
            f"({', '.join(sorted(FAMILIES))}), and what the axes of its parameters count is not to be guessed: cut its layers alone, or "
            "build the narrower model in a function of your own"
        )
    return family
