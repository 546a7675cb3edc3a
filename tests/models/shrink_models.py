"""Tiny random models of the families that can be cut, with nothing in them that is zero or one by default."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import (
    BertConfig,
    CamembertConfig,
    DistilBertConfig,
    LlamaConfig,
    MistralConfig,
    ModernBertConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
    SmolLM3Config,
    ViTConfig,
    XLMRobertaConfig,
)

LAYERS, HIDDEN, HEADS, FEED_FORWARD, VOCABULARY, CLASSES = 4, 32, 4, 48, 40, 3

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": FEED_FORWARD,
    "num_labels": CLASSES,
}
_TOKENS: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
_BERT: dict[str, Any] = {**_SIZES, **_TOKENS, "max_position_embeddings": 24, "type_vocab_size": 2}
_LLAMA: dict[str, Any] = {
    **_SIZES,
    **_TOKENS,
    "max_position_embeddings": 32,
    "num_key_value_heads": 2,
    "use_cache": False,
}

CONFIGS: dict[str, PreTrainedConfig] = {
    "bert": BertConfig(**_BERT),
    "roberta": RobertaConfig(**_BERT),
    "xlm-roberta": XLMRobertaConfig(**_BERT),
    "camembert": CamembertConfig(**_BERT),
    "distilbert": DistilBertConfig(
        vocab_size=VOCABULARY,
        dim=HIDDEN,
        n_layers=LAYERS,
        n_heads=HEADS,
        hidden_dim=FEED_FORWARD,
        max_position_embeddings=24,
        num_labels=CLASSES,
        pad_token_id=1,
    ),
    "modernbert": ModernBertConfig(
        **_SIZES,
        **_TOKENS,
        cls_token_id=0,
        sep_token_id=2,
        max_position_embeddings=32,
        local_attention=4,
        global_attn_every_n_layers=3,
    ),
    "modernbert-biased": ModernBertConfig(
        **_SIZES,
        **_TOKENS,
        cls_token_id=0,
        sep_token_id=2,
        max_position_embeddings=32,
        local_attention=4,
        layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        norm_bias=True,
        attention_bias=True,
        mlp_bias=True,
        classifier_bias=True,
        classifier_pooling="mean",
    ),
    "vit": ViTConfig(
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=FEED_FORWARD,
        image_size=8,
        patch_size=4,
        num_channels=2,
        encoder_stride=4,
        num_labels=CLASSES,
    ),
    "llama": LlamaConfig(**_LLAMA, attention_bias=True, mlp_bias=True),
    "llama-tied": LlamaConfig(**_LLAMA, tie_word_embeddings=True),
    "mistral": MistralConfig(**_LLAMA, sliding_window=4),
    "qwen2": Qwen2Config(**_LLAMA),
    "qwen3": Qwen3Config(**_LLAMA, head_dim=8),
    "smollm3": SmolLM3Config(**_LLAMA, no_rope_layers=[1, 0, 1, 1]),
}

_NAMES = {
    "bert": "Bert",
    "roberta": "Roberta",
    "xlm-roberta": "XLMRoberta",
    "camembert": "Camembert",
    "distilbert": "DistilBert",
    "modernbert": "ModernBert",
    "modernbert-biased": "ModernBert",
    "vit": "ViT",
    "llama": "Llama",
    "llama-tied": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "smollm3": "SmolLM3",
}
DECODERS = ("llama", "llama-tied", "mistral", "qwen2", "qwen3", "smollm3")

_HEADS = {
    **dict.fromkeys(
        ("bert", "roberta", "distilbert", "modernbert"),
        ("MaskedLM", "SequenceClassification", "TokenClassification", "QuestionAnswering", "MultipleChoice"),
    ),
    **dict.fromkeys(("xlm-roberta", "camembert", "modernbert-biased"), ("MaskedLM", "SequenceClassification")),
    "vit": ("ImageClassification", "MaskedImageModeling"),
    "llama": ("CausalLM", "SequenceClassification", "TokenClassification", "QuestionAnswering"),
    **dict.fromkeys(("llama-tied", "mistral", "qwen2", "qwen3", "smollm3"), ("CausalLM",)),
}

#: (family, class): the classes that people fine-tune and distil.
MODELS = [
    *[(family, f"{_NAMES[family]}For{head}") for family, heads in _HEADS.items() for head in heads],
    *[(family, f"{_NAMES[family]}Model") for family in ("bert", "roberta", "distilbert", "modernbert", "vit", "llama")],
    ("bert", "BertForPreTraining"),
    ("bert", "BertForNextSentencePrediction"),
]

#: One of each family, with a head that reads everything.
ONE_EACH = [(family, f"{_NAMES[family]}For{heads[0]}") for family, heads in _HEADS.items()]


def make(family: str, kind: str, *, seed: int = 0, **changes: Any) -> Any:
    """A model in eval mode; every parameter is random, norms' and biases too, so that a wrong place shows."""
    config = type(CONFIGS[family]).from_dict({**CONFIGS[family].to_dict(), **changes})
    if "QuestionAnswering" in kind:
        config.num_labels = 2
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, kind)(copy.deepcopy(config))
    with torch.no_grad():
        for name, values in model.named_parameters():
            centre = 1.0 if values.ndim == 1 and name.endswith("weight") else 0.0
            values.copy_(centre + 0.3 * torch.randn(values.shape, generator=generator))
    return model.eval()


def inputs_of(model: Any) -> dict[str, Tensor]:
    """Two examples, the second with padding where there are tokens."""
    generator = torch.Generator().manual_seed(7)
    kind = type(model).__name__
    if kind.startswith("ViT"):
        given = {"pixel_values": torch.randn(2, 2, 8, 8, generator=generator)}
        if "Masked" in kind:
            given["bool_masked_pos"] = torch.tensor([[True, False, True, False]] * 2)
        return given
    ids = torch.randint(3, VOCABULARY, (2, 9), generator=generator)
    mask = torch.ones_like(ids)
    ids[1, 6:], mask[1, 6:] = 1, 0
    given = {"input_ids": ids, "attention_mask": mask}
    if kind.startswith("Bert"):
        given["token_type_ids"] = (torch.arange(9) > 4).long().expand(2, 9)
    if "MultipleChoice" in kind:
        given = {name: values[:, None].repeat(1, 2, 1) for name, values in given.items()}
        given["input_ids"][:, 1, 0] = 5
    return given


def outputs_of(model: Any) -> dict[str, Tensor]:
    """All that a model gives in eval mode, real tokens' alone."""
    given = inputs_of(model)
    was = model.training
    with torch.no_grad():
        output = model.eval()(**given)
    model.train(was)
    found = {name: values for name, values in output.items() if isinstance(values, Tensor)}
    mask = given.get("attention_mask")
    if mask is not None and mask.ndim == 2:
        for name, values in found.items():
            if values.shape[:2] == mask.shape:
                found[name] = values[mask.bool()]
    return found


def expect_equal(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float = 0.0) -> None:
    assert one.keys() == other.keys()
    assert one
    for name, values in one.items():
        torch.testing.assert_close(
            values, other[name], rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


def reloaded(model: Any, folder: Path) -> Any:
    """As plain ``from_pretrained`` reads what was saved, every weight of it."""
    model.save_pretrained(folder)
    again, told = type(model).from_pretrained(folder, output_loading_info=True)
    assert not any(told.values()), told
    return again.eval()
