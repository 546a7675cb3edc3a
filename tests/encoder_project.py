"""A folder with a tiny BERT classifier, its tokenizer and labelled texts, and configs whose students are cut from it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from masked_tiny import SYLLABLES, classifier, tokenizer
from tutelage.config import load_config
from tutelage.config.building import build_study
from tutelage.studies import Study

LAYERS = 4
#: Texts use these syllables alone, so that there is something to cut from the vocabulary.
USED = SYLLABLES[:24]

MODELS = """\
import torch
from transformers import BertConfig, BertForSequenceClassification

import tutelage

TEXTS = {texts!r}

def data():
    return tutelage.TransferSet(TEXTS, torch.tensor([ord(text[0]) % 3 for text in TEXTS]))

def bert(layers=4, classes=3):
    sizes = dict(hidden_size=16, intermediate_size=24, num_attention_heads=2, max_position_embeddings=64)
    return BertForSequenceClassification(
        BertConfig(vocab_size={vocabulary}, num_hidden_layers=layers, num_labels=classes, initializer_range=0.2, **sizes)
    )

def small():
    return Bag()

class Bag(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.head = torch.nn.EmbeddingBag({vocabulary}, 8), torch.nn.Linear(8, 3)

    def forward(self, input_ids):
        return self.head(self.words(input_ids))
"""

CONFIG = """\
title: cut
data:
  source: python
  python: models.py:data
  splits: {validation: 0.2, test: 0.3}
  views: {student: [{tokenise: {tokenizer: tokens, max_length: 16}}]}
teacher: {model: {hub: teacher}}
student: {from: teacher, layers: every_other}
objective: [{term: kl, weight: 0.9}, {term: cross_entropy, weight: 0.1}]
training: {max_steps: 3, learning_rate: 1e-3, per_device_train_batch_size: 16}
study: {seeds: 1, arms: [kd, scratch]}
"""

TRAINED = 'teacher={model: {python: "models.py:bert"}, training: {max_steps: 3, learning_rate: 0.01}}'


def project(folder: Path, config: str = CONFIG, count: int = 90) -> Path:
    """Write the folder; its config's path."""
    own = tokenizer()
    own.save_pretrained(folder / "tokens")
    classifier("bert", LAYERS).save_pretrained(folder / "teacher")
    (folder / "models.py").write_text(MODELS.format(texts=_texts(count), vocabulary=len(own)))
    (folder / "config.yaml").write_text(config)
    return folder / "config.yaml"


def built(path: Path, *overrides: str) -> Study:
    """The study of a config."""
    return build_study(load_config(path, overrides), path.parent, "tutelage run")


def state_of(module: Any) -> dict[str, Any]:
    """A module's weights by name."""
    return {name: values.detach().clone() for name, values in module.state_dict().items()}


def _texts(count: int) -> list[str]:
    """Different ones, of two to four words of one or two syllables."""
    draw = random.Random(0)
    found: dict[str, None] = {}
    while len(found) < count:
        words = ["".join(draw.choices(USED, k=draw.randint(1, 2))) for _ in range(draw.randint(2, 4))]
        found[" ".join(words)] = None
    return list(found)
