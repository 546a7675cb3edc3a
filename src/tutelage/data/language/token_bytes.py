"""The bytes of a text that each token of a vocabulary stands for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from tutelage.errors import ConfigError

#: No UTF-8 text holds this byte: what it begins stands for a token that is no text.
NO_TEXT = b"\xff"
#: What ends a completion, in either vocabulary.
END = NO_TEXT + b"end"

_PROBE = "The quick Fox, twice: 42 words"


def token_bytes(tokenizer: Any, ends: Sequence[int]) -> list[bytes | None]:
    """By token number the bytes that it stands for: joined, those of a text's tokens are the text.

    A token that is no text (a chat's marker) has ``NO_TEXT`` and its name, one that ends a completion has ``END``, a number without a
    token None.

    Args:
        tokenizer: a fast tokenizer of transformers.
        ends: tokens that end a completion.

    Raises:
        ConfigError: tokens that do not keep the text (lower case, word pieces), or a tokenizer without a fast one behind it.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not hasattr(backend, "to_str"):
        raise ConfigError(
            f"{type(tokenizer).__name__} has no fast tokenizer behind it: the bytes of its tokens are not known, and rows of two "
            "vocabularies could not be aligned; load it with AutoTokenizer, or distil at the level of texts (alignment: text)"
        )
    described = json.loads(backend.to_str())
    spelt = _spelling(tokenizer, _kinds(described.get("decoder")))
    special = {added["id"]: added["special"] for added in described.get("added_tokens") or ()}
    found: list[bytes | None] = [None] * len(tokenizer)
    for token, number in tokenizer.get_vocab().items():
        if number in special:
            found[number] = NO_TEXT + token.encode() if special[number] else token.encode()
        else:
            found[number] = spelt(token)
    for number in ends:
        found[number] = END
    kept = b"".join(found[number] or b"" for number in tokenizer.encode(_PROBE, add_special_tokens=False))
    if kept.removeprefix(b" ") != _PROBE.encode():
        raise ConfigError(
            f"{type(tokenizer).__name__} makes {kept.decode(errors='replace')!r} of {_PROBE!r}: its tokens do not keep the text, and "
            "rows of two vocabularies could not be aligned; distil at the level of texts (alignment: text)"
        )
    return found


def _kinds(decoder: Any) -> set[str]:
    """The steps of a decoder, however they are nested."""
    if not isinstance(decoder, dict):
        return set()
    steps = decoder.get("decoders", ())  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return {str(decoder["type"])}.union(*(_kinds(step) for step in steps))  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]


def _spelling(tokenizer: Any, kinds: set[str]) -> Any:
    if "ByteLevel" in kinds:
        return _of_byte_letters
    if kinds & {"Metaspace", "Replace", "ByteFallback"}:
        return _of_pieces
    raise ConfigError(
        f"{type(tokenizer).__name__} (decoder: {', '.join(sorted(kinds)) or 'none'}) does not say what text its tokens stand for: "
        "rows of two vocabularies could not be aligned; use a byte-level or SentencePiece vocabulary, or distil at the level of texts "
        "(alignment: text)"
    )


def _of_byte_letters(token: str) -> bytes:
    letters = _byte_letters()
    return bytes(letters[each] for each in token) if all(each in letters for each in token) else token.encode()


def _of_pieces(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace("▁", " ").encode()


@lru_cache(maxsize=1)
def _byte_letters() -> dict[str, int]:
    """Which byte each letter of a byte-level vocabulary is: printable ones themselves, the others in order from 256 on (GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}
