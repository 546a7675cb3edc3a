"""Tokenizers of every kind, learnt in memory from a few sentences."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertTokenizer, GPT2Tokenizer, PreTrainedTokenizerFast, RobertaTokenizer

SENTENCES = (
    "a small rodent that lives in the fields and gnaws grain",
    "the flightless bird of the southern islands, extinct since 1681",
    "an animal with feathers; it sings, and it builds nests",
    "international organisations are institutionalised internationally",
    "grain that is ground into flour, and flour that is baked into bread",
    "naïve café owners unhappily rewrote their unreadable menus",
    "the 1234567890 things that a reader reads and rereads at 10:30",
    "reading, writing and arithmetic; readings, writings, arithmetics",
)
WORDS = sorted({word for sentence in SENTENCES for word in sentence.split()})
#: In no sentence, and not in one alphabet.
FOREIGN = "Zyxwv ☃ 雪だるま ÅÄÖ!"
_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
_BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def _bert() -> Any:
    made = Tokenizer(models.WordPiece({}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    # enough of unused pieces before the special ones, as in the published vocabularies
    marks = [_BERT[0], *(f"[unused{number}]" for number in range(9)), *_BERT[1:]]
    made.train_from_iterator(
        SENTENCES, trainers.WordPieceTrainer(show_progress=False, vocab_size=220, special_tokens=marks)
    )
    return BertTokenizer(vocab=json.loads(made.to_str())["model"]["vocab"])


def _byte_level(special: list[str]) -> tuple[dict[str, int], Any]:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        SENTENCES,
        trainers.BpeTrainer(show_progress=False, vocab_size=480, special_tokens=special, initial_alphabet=alphabet),
    )
    learnt = json.loads(made.to_str())["model"]
    return learnt["vocab"], [(left, right) for left, right in learnt["merges"]]


def _roberta() -> Any:
    vocabulary, merges = _byte_level(_SPECIAL)
    return RobertaTokenizer(vocab=vocabulary, merges=merges)


def _gpt2() -> Any:
    vocabulary, merges = _byte_level([])
    made = GPT2Tokenizer(vocab=vocabulary, merges=merges)  # its end of text is added behind the others
    added: Any = ["<tool>", AddedToken("<|im_end|>", special=True)]
    made.add_tokens(added)
    return made


def _llama3() -> Any:
    """Byte level; whole words are taken without a merge, and two things are done after the split."""
    vocabulary, merges = _byte_level([])
    # a whole word that no merges lead to
    vocabulary = {**vocabulary, "institutionalised": len(vocabulary)}
    made = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=True))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<|begin|>", "<|end|>", "<|reserved|>"])
    begin = made.token_to_id("<|begin|>")
    made.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(
                single="<|begin|> $A", pair="<|begin|> $A $B", special_tokens=[("<|begin|>", begin)]
            ),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<|begin|>", eos_token="<|end|>")


def _llama2() -> Any:
    """Bytes for unknown letters, no split into words, and a merge for each way to make a piece, as converted from sentencepiece."""
    learnt = Tokenizer(models.BPE())
    learnt.pre_tokenizer = pre_tokenizers.Metaspace()
    learnt.train_from_iterator(SENTENCES, trainers.BpeTrainer(show_progress=False, vocab_size=260))
    pieces = sorted(learnt.get_vocab(), key=learnt.get_vocab().__getitem__)
    unwritten = [f"<0x{byte:02X}>" for byte in range(256)]
    letters, longer = [piece for piece in pieces if len(piece) == 1], [piece for piece in pieces if len(piece) > 1]
    vocabulary = {piece: number for number, piece in enumerate(["<unk>", "<s>", "</s>", *unwritten, *longer, *letters])}
    merges = [
        (piece[:at], piece[at:])
        for piece in longer
        for at in range(1, len(piece))
        if piece[:at] in vocabulary and piece[at:] in vocabulary
    ]
    made = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def _with_word_ends() -> Any:
    """Merges of letters with an end of word, as CLIP has them, but without bytes."""
    made = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        show_progress=False, vocab_size=260, special_tokens=["<unk>", "<pad>"], end_of_word_suffix="</w>"
    )
    made.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", pad_token="<pad>")


def _with_prefixes() -> Any:
    """Merges of letters, those inside a word marked."""
    made = Tokenizer(models.BPE(unk_token="<unk>", continuing_subword_prefix="##"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        show_progress=False, vocab_size=260, special_tokens=["<unk>", "<pad>"], continuing_subword_prefix="##"
    )
    made.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", pad_token="<pad>")


def _unigram() -> Any:
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(show_progress=False, vocab_size=200, special_tokens=_SPECIAL, unk_token="<unk>")
    made.train_from_iterator(SENTENCES, trainer)
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    names = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "mask_token": "<mask>",
    }
    return PreTrainedTokenizerFast(tokenizer_object=made, cls_token="<s>", sep_token="</s>", **names)


def _words() -> Any:
    made = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate([*WORDS, "<unk>", "<pad>"])}, "<unk>")
    )
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", pad_token="<pad>")


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "bert": _bert,
    "roberta": _roberta,
    "gpt2": _gpt2,
    "llama3": _llama3,
    "llama2": _llama2,
    "word ends": _with_word_ends,
    "prefixes": _with_prefixes,
    "unigram": _unigram,
    "words": _words,
}


@functools.cache
def tokenizer_of(kind: str) -> Any:
    """One that nobody may change."""
    return TOKENIZERS[kind]()
