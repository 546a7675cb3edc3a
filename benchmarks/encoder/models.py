"""An encoder with random weights, larger as the teacher: what an artefact costs does not hang on what it was trained for."""

import itertools
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from tutelage import TransferSet

TOPICS = {
    "weather": "rain snow wind cloud storm sun fog frost",
    "kitchen": "oven knife bread salt plate stew flour spoon",
    "travel": "train ticket harbour map luggage border road bridge",
    "music": "violin drum chorus melody rhythm piano tune singer",
}
UNTOLD = "the a of and in on with near under before after some many old new small great last first every"
FILLERS = UNTOLD.split(" ")
WORDS = ["[PAD]", "[UNK]", *FILLERS, *itertools.chain.from_iterable(words.split() for words in TOPICS.values())]


def _encoder(layers: int, width: int) -> nn.Module:
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=len(WORDS),
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=width // 64,
            intermediate_size=4 * width,
            max_position_embeddings=128,
            num_labels=len(TOPICS),
            id2label=dict(enumerate(TOPICS)),
        )
    )


def teacher() -> nn.Module:
    """Six layers of width 384."""
    return _encoder(6, 384)


def student() -> nn.Module:
    """Two layers of width 128."""
    return _encoder(2, 128)


def texts() -> TransferSet:
    """A thousand sentences of 4 to 40 words; a few of them tell the topic."""
    generator = torch.Generator().manual_seed(0)

    def pick(count: int, of: list[str]) -> list[str]:
        return [of[index] for index in torch.randint(len(of), (count,), generator=generator).tolist()]

    labels = torch.arange(1000) % len(TOPICS)
    topics = [words.split() for words in TOPICS.values()]
    sentences: list[str] = []
    for label in labels.tolist():
        length = int(torch.randint(4, 41, (1,), generator=generator))
        words = pick(length - 2, FILLERS) + pick(2, topics[label])
        order = torch.randperm(length, generator=generator).tolist()
        sentences.append(" ".join(words[index] for index in order))
    return TransferSet(sentences, labels, list(TOPICS))


def write_tokenizer(folder: Path) -> None:
    """A tokenizer for these words, as a Hugging Face folder."""
    words = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
