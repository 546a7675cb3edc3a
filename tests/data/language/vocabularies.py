"""Small vocabularies, and texts to cut with them."""

import json

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = [
    "an interesting thing that the walker found interesting",
    "Walking along the wall, the walkers walked on and on.",
    "thinner things: the inner thing in the wind, 42 of them",
    "naïve café owners — über 100 of them\nsang to the moon 🌙 at midnight",
    "  spaced   out  words and (brackets) and interests",
]


def byte_level(size: int, texts: list[str] = TEXTS) -> PreTrainedTokenizerFast:
    """A byte-level vocabulary learnt from the texts."""
    cutter = Tokenizer(models.BPE())
    cutter.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    cutter.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<eos>", "<mark>"]
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    cutter.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=cutter, eos_token="<eos>")


def of_merges(merges: list[tuple[str, str]]) -> PreTrainedTokenizerFast:
    """A byte-level vocabulary: 0 ends a text, a, b and c are 1 to 3, then what the merges make of them, then all other bytes."""
    rest = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set("abc"))
    tokens = ["<eos>", *"abc", *("".join(merge) for merge in merges), *rest]
    cutter = Tokenizer(models.BPE(vocab={token: place for place, token in enumerate(tokens)}, merges=merges))
    cutter.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    cutter.decoder = decoders.ByteLevel()
    cutter.add_special_tokens(["<eos>"])
    return PreTrainedTokenizerFast(tokenizer_object=cutter, eos_token="<eos>")


def pieces_with_space(size: int = 420) -> PreTrainedTokenizerFast:
    """A vocabulary that writes a space as ▁ and puts one before each text, as SentencePiece does."""
    cutter = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    cutter.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    cutter.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always")])
    special = ["<unk>", "<eos>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    cutter.train_from_iterator(TEXTS, trainer)
    described = json.loads(cutter.to_str())
    # the bytes are special for the trainer alone
    described["added_tokens"] = described["added_tokens"][:2]
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(described)), eos_token="<eos>")


def ended(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """A text's tokens and the one that ends it."""
    return [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
