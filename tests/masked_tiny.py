"""Tiny encoders, a WordPiece tokenizer of made-up syllables, and texts in it."""

from __future__ import annotations

import random
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForMaskedLM,
    DistilBertForSequenceClassification,
    ModernBertConfig,
    ModernBertForMaskedLM,
    ModernBertForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
)

SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprst" for vowel in "aeiou"]
MARKS = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
WIDTH = 16


def tokenizer(syllables: list[str] = SYLLABLES, **changes: Any) -> Any:
    """A WordPiece tokenizer: each syllable begins a word or goes on with one."""
    entries = [*MARKS.values(), *syllables, *(f"##{syllable}" for syllable in syllables)]
    vocabulary = {entry: number for number, entry in enumerate(entries)}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, **{**MARKS, **changes})


VOCABULARY = len(MARKS) + 2 * len(SYLLABLES)


def texts(count: int, seed: int = 0, words: int = 8) -> list[str]:
    """Different texts of up to so many words, each of one to three syllables; a word is followed by one that depends on it."""
    draw = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        at, said = draw.randrange(len(SYLLABLES)), []
        for _ in range(draw.randint(2, words)):
            pieces = [SYLLABLES[(at + step) % len(SYLLABLES)] for step in range(1 + at % 3)]
            said.append("".join(pieces))
            at = (at * 7 + draw.randrange(2)) % len(SYLLABLES)
        found[" ".join(said)] = None
    return list(found)


_BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
_DISTILBERT = {
    "vocab_size": VOCABULARY,
    "dim": WIDTH,
    "hidden_dim": 24,
    "n_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
_MODERN = {
    **_BERT,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "cls_token_id": 2,
    "sep_token_id": 3,
    "global_attn_every_n_layers": 1,
}

#: By family: the config of so many layers, the masked language model and the classifier.
FAMILIES: dict[str, tuple[Any, Any, Any]] = {
    "bert": (lambda n: BertConfig(**_BERT, num_hidden_layers=n), BertForMaskedLM, BertForSequenceClassification),
    "roberta": (
        lambda n: RobertaConfig(**_BERT, num_hidden_layers=n, pad_token_id=0),
        RobertaForMaskedLM,
        RobertaForSequenceClassification,
    ),
    "distilbert": (
        lambda n: DistilBertConfig(**_DISTILBERT, n_layers=n),
        DistilBertForMaskedLM,
        DistilBertForSequenceClassification,
    ),
    "modernbert": (
        lambda n: ModernBertConfig(**_MODERN, num_hidden_layers=n),
        ModernBertForMaskedLM,
        ModernBertForSequenceClassification,
    ),
}


def masked(family: str = "bert", layers: int = 2, seed: int = 1) -> Any:
    """A masked language model with random weights."""
    config, kind, _ = FAMILIES[family]
    return _seeded(lambda: kind(config(layers)), seed)


def classifier(family: str = "bert", layers: int = 2, seed: int = 2, classes: int = 3) -> Any:
    """A sequence classifier with random weights."""
    config, _, kind = FAMILIES[family]
    made = config(layers)
    made.num_labels = classes
    return _seeded(lambda: kind(made), seed)


def encoder(layers: int = 2, seed: int = 1) -> Any:
    """A bare BERT, as a sentence encoder's folder holds it."""
    return _seeded(lambda: BertModel(FAMILIES["bert"][0](layers)), seed)


def _seeded(make: Any, seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()
