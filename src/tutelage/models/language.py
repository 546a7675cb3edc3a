"""Load a causal language model: as a teacher in any precision, as a student in float32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from tutelage.errors import ModelError
from tutelage.models.loading import ModelSource, load_model


def load_language_model(source: ModelSource | Mapping[str, Any], *, trained: bool = False, seed: int = 0) -> Any:
    """The causal language model that a source names; fresh weights are drawn under ``seed``, without touching the global generator.

    Args:
        source: a :class:`ModelSource`, or its fields as a mapping, as a config has them. Of a ``hub`` model, ``arguments`` override
            its config, but for ``dtype`` (float32 by default, whatever the files hold), ``attn_implementation`` and
            ``quantization_config``, which say how it is loaded. A ``python`` function returns a model of transformers, or any module
            that takes ``input_ids`` and ``attention_mask`` and gives logits ``[B, T, C]``.
        trained: refuse a hub model some of whose weights are not in its files: a teacher would teach noise.
        seed: seeds the initialisation.

    Returns:
        A ``PreTrainedModel``, or whatever module the function builds.

    Raises:
        ConfigError: the file, function or combination of keys is wrong.
        ModelError: the weights do not fit, are damaged, or are pickled without ``allow_pickle``; head and embeddings that its config
            ties are not one; an encoder-decoder.
    """
    model = load_model(source, seed=seed, trained=trained, task="language_model")
    _expect_causal(model)
    _expect_tied(model)
    return model


def _expect_causal(model: nn.Module) -> None:
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise ModelError(
            f"{type(model).__name__} is an encoder and a decoder, expected a causal language model: a completion stands right behind its "
            "prompt in the same text; use a model of AutoModelForCausalLM"
        )


def _expect_tied(model: Any) -> None:
    """Refuse a head that its config calls the embeddings, and that is not: saved and read again, one of the two would be lost."""
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "get_text_config") or not config.get_text_config(decoder=True).tie_word_embeddings:
        return
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if head is not None and embeddings is not None and head.weight is not embeddings.weight:
        raise ModelError(
            f"the config of {type(model).__name__} says that its head is its embeddings ('tie_word_embeddings'), and it has another head: "
            "one of the two would be lost when it is saved; load it with arguments: {tie_word_embeddings: false}"
        )
