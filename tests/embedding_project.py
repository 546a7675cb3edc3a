"""A project of a sentence encoder for the terminal's tests: a tiny BERT with its tokenizer, made by a models.py, over texts in a JSONL."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MODELS = '''\
import os, signal
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
from tutelage.models.sentence import Normalise, SentenceEncoder

MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WORDS = "old new big small warm cold red blue".split() + [kind + letter for kind in "afp" for letter in "abcdefghij"]


def tokenizer():
    numbers = {word: number for number, word in enumerate(MARKS + WORDS)}
    made = Tokenizer(models.WordPiece(numbers, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")


def no_padding():
    made = tokenizer()
    made.pad_token = None
    return made


class Model(BertModel):
    """Stops the whole process, as a power cut would, at the training step that DIE_AT names."""

    steps = 0

    def forward(self, *args, **kwargs):
        Model.steps += self.training
        if self.training and str(Model.steps) == os.environ.get("DIE_AT"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(*args, **kwargs)


def _encoder(kind, layers):
    sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=layers, num_attention_heads=2)
    still = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.3)
    made = kind(BertConfig(vocab_size=len(MARKS + WORDS), max_position_embeddings=32, **sizes, **still))
    return SentenceEncoder(made, after=[Normalise()], tokenizer=tokenizer(), max_length=16)


def teacher():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return _encoder(BertModel, 2)


def student():
    return _encoder(Model, 1)


def untrained_teacher():
    return _encoder(BertModel, 2)


def without_tokenizer():
    made = student()
    made.tokenizer = None
    return made
'''

CONFIG = """\
task: embedding
title: "three kinds [v1]"
data: {source: jsonl, path: texts.jsonl, groups: group, tasks: kind, max_length: 16, splits: {validation: 0.15, test: 0.3}}
teacher: {model: {python: "models.py:teacher"}}
student: {from: teacher, layers: 1}
training: {num_train_epochs: 3, per_device_train_batch_size: 16, learning_rate: 0.01}
study: {seeds: 1, arms: [untouched, kd]}
similarity: {pairs: 200}
retrieval: {k: [1, 5]}
gates: {size_ratio: 0.99, throughput_ratio: 0.01}
"""

FILLERS = ["old", "new", "big", "small", "warm", "cold", "red", "blue"]


def rows(groups: int = 60) -> list[dict[str, Any]]:
    """Two texts a group, which have two words in common."""
    made: list[dict[str, Any]] = []
    for group in range(groups):
        kind, first = "afp"[group % 3], group // 3 % 10
        own = [f"{kind}{'abcdefghij'[place % 10]}" for place in (first, first + 1 + group // 30)]
        for number in range(2):
            words = [FILLERS[(group // 8 + 3 * number) % 8], *own, FILLERS[(group + number) % 8]]
            made.append(
                {"text": " ".join(words), "group": group, "kind": {"a": "animal", "f": "food", "p": "food"}[kind]}
            )
    return made


def write_project(folder: Path, given: list[dict[str, Any]] | None = None) -> Path:
    """``models.py``, ``texts.jsonl`` and ``config.yaml`` in a folder."""
    folder.mkdir()
    (folder / "models.py").write_text(MODELS)
    (folder / "config.yaml").write_text(CONFIG)
    write_rows(folder, given if given is not None else rows())
    return folder


def write_rows(folder: Path, given: list[dict[str, Any]]) -> None:
    """The rows, one JSON object a line."""
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
