"""Tokenizers: loaded, compared, and asked which tokens end a text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tutelage.data.language.cutting import Cutter
from tutelage.data.language.templates import some
from tutelage.errors import ConfigError

#: Texts by which two tokenizers of one vocabulary show other merges, another normaliser or another splitter.
PROBES = (
    "The quick brown fox jumps over the lazy dog.",
    " leading and trailing spaces  ",
    "UPPER lower MiXeD naïve café coöperate cafe\u0301",
    "1234567890 3.14159 -2e-5 1,000,000",
    "tabs\tand\nnew lines\r\n\n\n    four spaces",
    "don't can't it's we'll",
    "https://example.org/a_b?c=d&e=%20f#g",
    "def f(x):\n    return {'a': [x**2, x//2]}  # comment",
    "Привет, мир! こんにちは世界 你好，世界 안녕하세요 مرحبا",
    "emoji 🙂👩‍👩‍👧 ﬁ ligature ½ Ⅳ",
    "unbelievably antidisestablishmentarianism internationalisation",
)


@dataclass(frozen=True)
class Comparison:
    """Two tokenizers side by side.

    ``differing``: ``(id, student's token, teacher's token)`` of each id that means something else, None where one has no such id ·
    ``probes``: texts that they cut in different places · ``sizes``: how many tokens the student's and the teacher's have · ``merges``
    that only one of them makes, or makes later.
    """

    differing: list[tuple[int, str | None, str | None]]
    probes: list[str]
    sizes: tuple[int, int]
    merges: int = 0

    @property
    def same(self) -> bool:
        """Whether one's tokens can be read by the other."""
        return not (self.differing or self.probes or self.merges)


def load_tokenizer(name_or_path: str | Path, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a hub id or a folder.

    Raises:
        ConfigError: there is none, or it cannot be read.
    """
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(str(name_or_path), revision=revision or "main")
    except Exception as error:
        raise ConfigError(
            f"no tokenizer could be loaded from {str(name_or_path)!r}: {error}. Expected a model's id (reachable, or already in the "
            "cache when offline) or a folder with its tokenizer's files; name another one with the key tokenizer"
        ) from error
    return tokenizer


def compare_tokenizers(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> Comparison:
    """Whether the same number means the same token to both, and whether both cut a text alike.

    The vocabularies are compared entry by entry, merges one by one; normalisers and splitters by what becomes of texts in several
    scripts and of the vocabulary's own entries.
    """
    ours, theirs = _tokens(student), _tokens(teacher)
    differing = [
        (token, ours.get(token), theirs.get(token))
        for token in sorted(ours.keys() | theirs.keys())
        if ours.get(token) != theirs.get(token)
    ]
    entries = [ours[token] for token in sorted(ours)]
    sample = entries[:: max(1, len(entries) // 500)]
    texts = [*PROBES, " ".join(sample), *(student.convert_tokens_to_string([entry]) for entry in sample)]
    cuts = [] if differing else zip(texts, Cutter(student).many(texts), Cutter(teacher).many(texts), strict=True)
    cut = [text for text, one, other in cuts if one != other]
    pairs = [] if differing else zip_longest(_merges(student), _merges(teacher))
    return Comparison(differing, cut, (len(ours), len(theirs)), sum(one != other for one, other in pairs))


def refuse_other_tokenizer(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> None:
    """Refuse a teacher that reads other tokens than the student writes.

    Raises:
        ConfigError: names up to five tokens that differ, what would go wrong and the ways out.
    """
    found = compare_tokenizers(student, teacher)
    if found.same:
        return
    ways = (
        "Let the teacher write the completions and the student learn the texts (completions: teacher, teacher.alignment: text), or carry "
        "its distributions over (teacher.alignment: crossing or uld), or take a teacher with the student's tokenizer"
    )
    if found.differing:
        pairs = [f"{token} ({_name(own)} / {_name(other)})" for token, own, other in found.differing]
        count = "1 number means" if len(pairs) == 1 else f"{len(pairs):,} numbers mean"
        raise ConfigError(
            f"student and teacher have different tokenizers, of {found.sizes[0]:,} and {found.sizes[1]:,} tokens: {count} different "
            f"tokens (student's / teacher's): {some(pairs)}. The teacher would read other words than the student, and its probability "
            f"of one token would be taught as that of another. {ways}"
        )
    why = f"other merges, {found.merges:,} of them" if found.merges else "another normaliser, or splitter"
    shown = f", {found.probes[0]!r:.60} among them" if found.probes else ""
    raise ConfigError(
        f"student and teacher have the same {found.sizes[0]:,} tokens but cut texts in different places{shown}: {why}. The "
        f"teacher would be asked about pieces that it never writes. {ways}"
    )


def eos_ids(tokenizer: PreTrainedTokenizerBase, model_generation_config: Any = None) -> list[int]:
    """The tokens that end a text: the tokenizer's own, the one that ends a turn of its chat template, and the model's.

    Args:
        tokenizer: of the model that writes.
        model_generation_config: its ``generation_config``; None for the tokenizer's alone.

    Raises:
        ConfigError: there is none: whatever is written would go on to the last token that is allowed.
    """
    own = getattr(model_generation_config, "eos_token_id", None)
    found: list[Any] = [*(own if isinstance(own, Sequence) else [own]), tokenizer.eos_token_id, end_of_turn(tokenizer)]
    ids = sorted({int(token) for token in found if token is not None})
    if not ids:
        raise ConfigError(
            "neither the tokenizer nor the model's generation config names a token that ends a text: every completion would run on to "
            "its last allowed token; set the tokenizer's eos_token"
        )
    return ids


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The special token by which the chat template ends the assistant's turn; None without a template, or where it has none."""
    if not tokenizer.chat_template:
        return None
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        text: Any = tokenizer.apply_chat_template(talk, tokenize=False)
    except Exception:  # the template wants turns that this talk does not have; those that have them will say
        return None
    cutter = Cutter(tokenizer)
    tokens = cutter.one(text)
    place = cutter.ending(tokens)
    return None if place is None else tokens[place]


def _tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    return {number: token for token, number in tokenizer.get_vocab().items()}


def _merges(tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    return [] if backend is None else json.loads(backend.to_str())["model"].get("merges", [])


def _name(token: str | None) -> str:
    return "none" if token is None else json.dumps(token, ensure_ascii=False)
