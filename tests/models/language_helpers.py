"""Tiny random language models of many families, and their answers found the slow way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    Lfm2Config,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PhiConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from tutelage.ragged import Ragged

VOCABULARY = 64
LAYERS = 3

_ENDS: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
_PLAIN: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    **_ENDS,
}
_GROUPED: dict[str, Any] = {**_PLAIN, "intermediate_size": 48, "num_key_value_heads": 2}
#: Layers of both kinds, and windows shorter than the texts.
_WINDOWED: dict[str, Any] = {**_GROUPED, "head_dim": 8, "sliding_window": 4}

FAMILIES: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**_GROUPED),
    "llama-tied": LlamaConfig(**_GROUPED, tie_word_embeddings=True),
    "mistral": MistralConfig(**_GROUPED, sliding_window=4),
    "qwen2": Qwen2Config(**_GROUPED, use_sliding_window=True, sliding_window=4, max_window_layers=1),
    "qwen3": Qwen3Config(**_GROUPED, head_dim=8),
    "gemma2": Gemma2Config(**_WINDOWED, query_pre_attn_scalar=8),
    "gemma3": Gemma3TextConfig(**_WINDOWED, layer_types=["sliding_attention", "full_attention", "sliding_attention"]),
    "smollm3": SmolLM3Config(**_GROUPED, no_rope_layers=[1, 0, 1]),
    "gpt2": GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=LAYERS, n_head=4, n_positions=64, **_ENDS),
    "gpt_neox": GPTNeoXConfig(**_PLAIN, intermediate_size=48),
    "opt": OPTConfig(**_PLAIN, ffn_dim=48, word_embed_proj_dim=32),
    "phi": PhiConfig(**_PLAIN, intermediate_size=48),
    "lfm2": Lfm2Config(**_GROUPED, layer_types=["conv", "full_attention", "conv"]),
}


def language_model(family: str = "llama", *, seed: int = 1, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A random model whose next tokens hang on all that was read; in train mode, as a student is."""
    config = type(FAMILIES[family]).from_dict({**FAMILIES[family].to_dict(), **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).to(dtype)
    for values in model.parameters():
        if values.ndim > 1:
            values.data.mul_(3.0)
    return model.train()


def random_prompts(*lengths: int, seed: int = 0) -> Ragged:
    generator = torch.Generator().manual_seed(seed)
    return Ragged.of([torch.randint(3, VOCABULARY, (length,), generator=generator) for length in lengths])


def next_scores(model: Any, text: list[int]) -> Tensor:
    """Logits of the token after a text that is read alone, whole and without a cache."""
    was = model.training
    with torch.no_grad():
        scores = model.eval()(input_ids=torch.tensor([text]), use_cache=False).logits[0, -1]
    model.train(was)
    return scores


def greedy_by_hand(model: Any, prompt: list[int], most: int, eos: tuple[int, ...]) -> list[int]:
    """The likeliest token again and again."""
    written: list[int] = []
    while len(written) < most and not (written and written[-1] in eos):
        written.append(int(next_scores(model, prompt + written).argmax()))
    return written
