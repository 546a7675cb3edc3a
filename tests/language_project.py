"""A project of a language model for the terminal's tests: a tiny Llama and a tokenizer, made by a models.py, over rows in a JSONL."""

from __future__ import annotations

import json
from pathlib import Path

MODELS = '''\
import os, signal
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = "a small large old thing that eats grows walks is cut cooked sort this into animal food place answer with one word".split()
MARKS = ["<pad>", "<s>", "<end>", "<user>", "<bot>", "<sys>"]
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'user' %}<user>{% elif m.role == 'system' %}<sys>{% else %}<bot>{% endif %}"
    "{{ m.content }}<end>{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
)


def tokenizer(template=TEMPLATE, swap=(), pad="<pad>"):
    names = MARKS + ["<unk>"] + WORDS
    vocabulary = {word: number for number, word in enumerate(names)}
    for one, other in zip(swap[::2], swap[1::2]):
        vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<end>", pad_token=pad, unk_token="<unk>", additional_special_tokens=MARKS[3:]
    )
    fast.chat_template = template
    return fast


def pad_is_eos():
    return tokenizer(pad="<end>")


def without_template():
    return tokenizer(template=None)


def three_others():
    return tokenizer(swap=("eats", "walks", "cut", "cooked"))


def _bytes(merges):
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=256 + len(MARKS) + merges, special_tokens=MARKS, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", pad_token="<pad>", additional_special_tokens=MARKS[3:])
    fast.chat_template = TEMPLATE
    return fast


def short_pieces():
    return _bytes(2)


def long_pieces():
    return _bytes(12)


class Model(LlamaForCausalLM):
    """Stops the whole process, as a power cut would, at the training step that DIE_AT names."""

    steps = 0

    def forward(self, *args, **kwargs):
        Model.steps += self.training
        if self.training and str(Model.steps) == os.environ.get("DIE_AT"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(*args, **kwargs)


def _model(layers, tokens=40):
    sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=layers, num_attention_heads=2, num_key_value_heads=2)
    config = LlamaConfig(vocab_size=tokens, max_position_embeddings=128, **sizes)
    config.bos_token_id, config.eos_token_id, config.pad_token_id = None, 2, 0
    return Model(config)


def student():
    return _model(1)


def teacher():
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return _model(2)


def wide_student():
    return _model(1, 280)


def wide_teacher():
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return _model(2, 274)


def untrained_teacher():
    return _model(2)
'''

CONFIG = """\
task: language_model
title: "three sorts [v1]"
data: {source: jsonl, path: rows.jsonl, max_length: 64, splits: {validation: 0.15, test: 0.25}}
views:
  student: {user: "{{ gloss }}"}
  teacher: {system: "sort this into animal food place", user: "{{ gloss }}"}
teacher: {model: {python: "models.py:teacher"}, tokenizer: "models.py:tokenizer"}
student: {model: {python: "models.py:student"}, tokenizer: "models.py:tokenizer"}
objective: [{term: kl}]
training: {num_train_epochs: 2, per_device_train_batch_size: 8, learning_rate: 0.01}
study: {seeds: 1, arms: [untouched, sft, kd]}
score: {choices: [animal, food, place], column: sort}
samples: {count: 2, max_new_tokens: 4}
gates: {size_ratio: 9, latency_ratio: 90}
"""

_GLOSSES = {"animal": "that walks", "food": "that is cooked", "place": "that is cut"}


def rows(count: int = 48) -> list[dict[str, str]]:
    """Rows of a gloss, its sort, and that as its completion."""
    sorts, sizes = list(_GLOSSES), ["small", "large", "old", "a"]
    made: list[dict[str, str]] = []
    for number in range(count):
        sort, words = sorts[number % 3], [sizes[number // 3 % 4], sizes[number // 12 % 4], sizes[number // 48 % 4]]
        made.append({"gloss": f"{' '.join(words)} thing {_GLOSSES[sort]}", "sort": sort, "completion": sort})
    return made


def write_project(folder: Path, given: list[dict[str, str]] | None = None) -> Path:
    """``models.py``, ``rows.jsonl`` and ``config.yaml`` in a folder."""
    folder.mkdir()
    (folder / "models.py").write_text(MODELS)
    (folder / "config.yaml").write_text(CONFIG)
    write_rows(folder, given if given is not None else rows())
    return folder


def write_rows(folder: Path, given: list[dict[str, str]]) -> None:
    """The rows, one JSON object a line."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
