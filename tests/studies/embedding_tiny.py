"""An embedding study that takes seconds: a tiny random BERT, a WordPiece tokenizer made in memory, groups of texts that share words."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from tutelage.models.sentence import Normalise, SentenceEncoder
from tutelage.objectives import objective_from_config
from tutelage.studies.embedding import EmbeddingData, EmbeddingStudy, Pupil, TextSplit
from tutelage.studies.embedding.models import CutTo, Making

MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
KINDS = ("animal", "food", "place")
FILLERS = ["old", "new", "big", "small", "warm", "cold", "red", "blue"]
WORDS = [f"{kind[0]}{letter}" for kind in KINDS for letter in "abcdefghij"]
VOCABULARY = [*MARKS, *FILLERS, *WORDS, "never", "said"]
TRAINING: dict[str, Any] = {
    "num_train_epochs": 3,
    "per_device_train_batch_size": 16,
    "learning_rate": 0.005,
    "lr_scheduler_type": "constant",
    "logging_steps": 5,
    "eval_strategy": "epoch",
    "save_strategy": "no",
}


def tokenizer() -> PreTrainedTokenizerFast:
    numbers = {word: number for number, word in enumerate(VOCABULARY)}
    made = Tokenizer(WordPiece(numbers, unk_token="[UNK]"))
    made.pre_tokenizer = Whitespace()
    made.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", numbers["[CLS]"]), ("[SEP]", numbers["[SEP]"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def bert(seed: int = 3, *, layers: int = 2, width: int = 16) -> BertModel:
    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=32,
        initializer_range=0.15,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = BertModel(config).eval()
        # words must show in a text's embedding: of layers alone it would be noise, which nobody learns from a few texts
        made.embeddings.word_embeddings.weight.data.normal_()
    return made


def encoder(seed: int = 3, **sizes: int) -> SentenceEncoder:
    return SentenceEncoder(bert(seed, **sizes), after=[Normalise()], tokenizer=tokenizer(), max_length=16).eval()


@cache
def teacher() -> SentenceEncoder:
    return encoder()


def split(groups: Sequence[int], texts_a_group: int = 2) -> TextSplit:
    """Texts of a group have two words in common, and another word each."""
    texts: list[str] = []
    names: list[str] = []
    tasks: list[str] = []
    for group in groups:
        kind = KINDS[group % 3]
        own = [f"{kind[0]}{'abcdefghij'[(group // 3 + step) % 10]}" for step in (0, 1 + group // 30)]
        for number in range(texts_a_group):
            texts.append(f"{FILLERS[(group // 8 + 3 * number) % 8]} {own[0]} {own[1]} {FILLERS[(group + number) % 8]}")
            names.append(f"g{group}")
            tasks.append(kind)
    return TextSplit(texts, names, tasks)


def data() -> EmbeddingData:
    return EmbeddingData(split(range(40)), split(range(40, 52)), split(range(52, 76)))


def making(texts: Sequence[str] | None = None) -> Making:
    return Making(teacher(), texts if texts is not None else data().train.texts, 16)


def cut(**keys: Any) -> Pupil:
    to = CutTo(**keys)
    return Pupil(making().cut(to), to.words("the teacher"), {"student": repr(keys)}, cut=True)


def static(width: int | None = 8) -> Pupil:
    return Pupil(making().static(width, "outputs"), "a static one", {"static": width})


def terms(*items: Any) -> Any:
    """An objective of a config's words, such as ``"similarity_matrix"`` or ``{"term": …}``."""
    return objective_from_config([{"term": item} if isinstance(item, str) else item for item in items])


def study(**changes: Any) -> EmbeddingStudy:
    settings: dict[str, Any] = {
        "data": data(),
        "teacher": teacher(),
        "student": cut(layers=1),
        "objective": terms("embedding_cosine"),
        "training": TRAINING,
        "seeds": 2,
        "max_length": 16,
        "pairs": 300,
        "ks": (1, 5),
    }
    return EmbeddingStudy(**{**settings, **changes})
