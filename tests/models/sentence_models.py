"""Tiny random sentence encoders, a tokenizer for them, and what they give found the slow way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from tutelage.models.sentence import Dense, Normalise, SentenceEncoder

WORDS = ("a", "dog", "cat", "bites", "man", "sleeps", "on", "the", "mat", "very", "old", "##s", "##er")
VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS)
TEXTS = ["a dog bites the man", "the cat sleeps", "very very old dogs on the mat", "a man", "The CAT sleeps on"]
WIDTH = 16


def tokenizer(padding_side: str = "right", lower: bool = True) -> Any:
    made = Tokenizer(models.WordPiece({word: number for number, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=lower)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        padding_side=padding_side,
        model_max_length=24,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def bert(seed: int = 0, **sizes: Any) -> BertModel:
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "vocab_size": len(VOCABULARY),
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 32,
    }
    model = BertModel(BertConfig(**{**settings, **sizes}))
    # the default weights are so small that texts hardly differ
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3) if parameter.ndim > 1 else None
    return model.eval()


def whole(**options: Any) -> SentenceEncoder:
    """An encoder with everything: two poolings, a dense layer, a normalisation, a length."""
    torch.manual_seed(1)
    given: dict[str, Any] = {
        "pooling": ("cls", "mean"),
        "after": [Dense(2 * WIDTH, 6), Normalise()],
        "tokenizer": tokenizer(),
        "max_length": 8,
    }
    return SentenceEncoder(bert(), **{**given, **options}).eval()


def by_hand(hidden: np.ndarray, mask: np.ndarray, mode: str) -> np.ndarray:
    """One pooling in loops, over the real tokens of each text alone."""
    rows: list[np.ndarray] = []
    for tokens, real in zip(hidden, mask, strict=True):
        kept = [token for token, is_real in zip(tokens, real, strict=True) if is_real]
        if mode == "cls":
            rows.append(kept[0])
        elif mode == "max":
            rows.append(np.array([max(token[d] for token in kept) for d in range(len(kept[0]))]))
        else:
            rows.append(sum(kept) / (len(kept) if mode == "mean" else len(kept) ** 0.5))
    return np.stack(rows)


def write(path: Path, contents: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(contents))


def change(path: Path, **values: Any) -> None:
    write(path, {**(json.loads(path.read_text()) if path.exists() else {}), **values})
