"""A smaller vocabulary: the tokens that some texts never use leave the tokenizer and the model."""

from __future__ import annotations

import copy
import difflib
import itertools
import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tutelage.errors import ModelError
from tutelage.models.calling import unwrapped
from tutelage.models.vocabulary_cut_pieces import (
    Json,
    expect_known,
    narrowed,
    processor_pieces,
    staying,
    taken_before_giving_up,
)
from tutelage.models.vocabulary_cut_rows import named_tokens, padding_row, row_count, with_rows

#: So many texts are split at once.
_AT_ONCE = 1024


@dataclass(frozen=True)
class VocabularyCut:
    """What is left of a model and its tokenizer, and which tokens these are.

    Args:
        model: the smaller model, or None where none was given.
        tokenizer: the smaller tokenizer.
        kept: the old number of each row of the model, by its new one: the tokenizer's tokens, then such rows as the model's config
            names and no token has.
    """

    model: Any
    tokenizer: Any
    kept: list[int]


def cut_vocabulary(model: Any, tokenizer: Any, texts: Sequence[str], *, keep: Iterable[str] = ()) -> VocabularyCut:
    """Remove the tokens that no text uses: each of the texts is split into the same pieces as before, and has the same hidden states.

    These stay beside the used ones: added and special tokens, those that the config or the generation config names, what the merges of
    a used token make on the way, and what any *other* text falls back on. That is all 256 bytes for byte-level BPE and where there is
    byte fallback; else each piece of one character (of WordPiece, its ``##`` form too). Other texts may thus be split finer than
    before, but a word becomes unknown only where no pieces of one character make it, as in a vocabulary of whole words.

    A head over tokens (masked or causal) can only give those that are left: its softmax runs over them alone. Name in ``keep`` what it must
    be able to write beyond the texts, or add texts that hold it.

    Args:
        model: a model of transformers with one table of tokens, its head tied or not, or None for the tokenizer alone.
        tokenizer: a fast tokenizer: WordPiece, BPE, Unigram or whole words.
        texts: what the smaller model will read: the whole transfer set, with any prompt around it.
        keep: tokens to keep as well, written as the tokenizer's vocabulary has them (``"Ġyes"``, ``"##ly"``).

    Returns:
        Both, smaller, and the old numbers of what is left; what was given is as before. Both can be saved and read again.

    Raises:
        ModelError: no fast tokenizer, or a way of splitting that is not known; no texts; a token to keep that there is not; a token without
            a row in the model; a model whose rows cannot be told apart; a text that would be split otherwise, also once the
            tokenizer is saved and read again.
    """
    _expect_texts(texts)
    before = _own_copy(tokenizer)
    description: Json = json.loads(before.backend_tokenizer.to_str())
    expect_known(description["model"])
    model = None if model is None else unwrapped(model)
    by_model = set[int]() if model is None else named_tokens(model)
    numbers = _numbers(tokenizer)
    names = {number: piece for piece, number in numbers.items()}
    needed = _kept_anyway(before, description, numbers, keep) | _used(before, description["model"], names, texts)
    needed |= {names[number] for number in by_model if number in names}

    padding = None if model is None else padding_row(model)
    unmoved = names.get(before.pad_token_id if padding is None else padding)
    smaller, order = narrowed(description, staying(description["model"], needed), unmoved)
    kept = [*(numbers[piece] for piece in order), *sorted(by_model - names.keys())]
    _expect_rows(model, kept, names)
    cut = _with_backend(before, smaller, order)
    _expect_same(before, {"": cut, ", once it is saved and read again": _read_again(cut)}, texts, kept)
    return VocabularyCut(None if model is None else with_rows(model, kept), cut, kept)


def _expect_texts(texts: Sequence[Any]) -> None:
    """Refuse none, or one text in place of many, whose letters would be taken for texts."""
    if isinstance(texts, str):
        got = "the letters of one text"
    elif not len(texts):
        got = "no texts at all"
    elif not isinstance(texts[0], str):
        got = f"a {type(texts).__name__} of {type(texts[0]).__name__}"
    else:
        return
    raise ModelError(
        f"a vocabulary is to be cut to {got}, expected a sequence of texts: all but single characters would be lost; give those that "
        "the model will read"
    )


def _own_copy(tokenizer: Any) -> Any:
    """The tokenizer, to be called without a trace in the given one."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not callable(getattr(backend, "to_str", None)):
        raise ModelError(
            f"{type(tokenizer).__name__} is no fast tokenizer, expected one of transformers that the tokenizers library splits for: how a "
            "slow one splits is code, from which no piece can be taken; load it with AutoTokenizer from a folder with a tokenizer.json"
        )
    return copy.deepcopy(tokenizer)


def _numbers(tokenizer: Any) -> dict[str, int]:
    numbers: dict[str, int] = tokenizer.get_vocab()
    double = [number for number, times in Counter(numbers.values()).items() if times > 1]
    if double:
        both = ", ".join(repr(piece) for piece, number in numbers.items() if number == double[0])
        raise ModelError(
            f"the tokenizer has token {double[0]} more than once ({both}), expected a number for each: which of them a text uses cannot be "
            "told; mend its vocabulary, or leave it as it is"
        )
    return numbers


def _kept_anyway(tokenizer: Any, description: Json, numbers: dict[str, int], keep: Iterable[str]) -> set[str]:
    asked = [keep] if isinstance(keep, str) else list(keep)
    for token in asked:
        if token not in numbers:
            near = difflib.get_close_matches(token, numbers, n=1)
            raise ModelError(
                f"token {token!r} is to be kept, and the tokenizer has none"
                + (f"; did you mean {near[0]!r}?" if near else "")
                + ": a word of several pieces, or with a space before it, belongs into the texts"
            )
    special = {*tokenizer.all_special_tokens, *processor_pieces(description["post_processor"])}
    return {*asked, *(token["content"] for token in description["added_tokens"]), *(special & numbers.keys())}


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    remaining = iter(texts)
    while batch := list(itertools.islice(remaining, _AT_ONCE)):
        yield batch


def _split(tokenizer: Any, batch: list[str]) -> list[list[int]]:
    options = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
    return tokenizer(batch, padding=False, truncation=False, **options)["input_ids"]


def _used(tokenizer: Any, model: Json, names: dict[int, str], texts: Sequence[str]) -> set[str]:
    """All pieces in the texts, and those that WordPiece took of a word before it gave up on it."""
    numbers: set[int] = set()
    tried: set[str] = set()
    for batch in _batches(texts):
        for text, ids in zip(batch, _split(tokenizer, batch), strict=True):
            numbers.update(ids)
            if model["type"] == "WordPiece" and any(names[number] == model["unk_token"] for number in ids):
                tried |= _tried(tokenizer, model, text)
    return tried.union(names[number] for number in numbers)


def _tried(tokenizer: Any, model: Json, text: str) -> set[str]:
    """What WordPiece takes of a text's words: without it, it might not give up on one."""
    backend = tokenizer.backend_tokenizer
    if backend.normalizer is not None:
        text = backend.normalizer.normalize_str(text)
    words = [(text, None)] if backend.pre_tokenizer is None else backend.pre_tokenizer.pre_tokenize_str(text)
    return {piece for word, _ in words for piece in taken_before_giving_up(model, word)}


def _with_backend(tokenizer: Any, description: Json, order: list[str]) -> Any:
    """The tokenizer's shell around another description."""
    from tokenizers import Tokenizer

    cut = copy.copy(tokenizer)
    cut._tokenizer = Tokenizer.from_str(json.dumps(description))
    # what it was built from would be saved beside what it is
    stale = ("vocab", "merges", "added_tokens_decoder")
    told = {key: value for key, value in tokenizer.init_kwargs.items() if key not in stale}
    cut.init_kwargs = {**told, "name_or_path": ""}
    cut.name_or_path = ""
    if cut.get_vocab() != {piece: number for number, piece in enumerate(order)}:
        raise ModelError(
            f"the tokenizer with {len(order):,} of its tokens numbers them otherwise than it was told to: each would meet another's row; "
            "leave its vocabulary as it is"
        )
    return cut


def _read_again(tokenizer: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return type(tokenizer).from_pretrained(folder)


def _expect_rows(model: Any, kept: list[int], names: dict[int, str]) -> None:
    if model is None or max(kept) < row_count(model):
        return
    without = [number for number in kept if number >= row_count(model)]
    raise ModelError(
        f"the tokenizer has token {without[0]} ({names[without[0]]!r}) and {len(without) - 1} more for which {type(model).__name__} has no "
        f"row among its {row_count(model):,}: it would fail on them; call model.resize_token_embeddings(len(tokenizer)) first"
    )


def _expect_same(before: Any, smaller: Mapping[str, Any], texts: Sequence[str], kept: list[int]) -> None:
    """Refuse a tokenizer, each under the words that say when it is used, that splits a text otherwise than into the same pieces."""
    new_numbers = {old: new for new, old in enumerate(kept)}
    for batch in _batches(texts):
        expected = _split(before, batch)
        for when, after in smaller.items():
            for text, old, new in zip(batch, expected, _split(after, batch), strict=True):
                if [new_numbers.get(number) for number in old] != new:
                    shown = text if len(text) <= 80 else f"{text[:80]}…"
                    raise ModelError(
                        f"the smaller tokenizer splits {shown!r} into {after.convert_ids_to_tokens(new)[:12]}{when}, expected "
                        f"{before.convert_ids_to_tokens(old)[:12]} as before: the model would read something else; leave it whole"
                    )
