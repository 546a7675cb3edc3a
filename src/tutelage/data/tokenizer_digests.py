"""What tells a tokenizer from another: what it makes of a text, whatever was last asked of it."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

#: In a fast tokenizer's rules, what its last caller asked for.
_ASKED = ("padding", "truncation")


def tokenizer_digest(tokenizer: Any) -> str:
    """A short hash of what decides a text's tokens: its own rules where it shows them, else its vocabulary, and its marks.

    Args:
        tokenizer: of transformers, a fast one or not.
    """
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    rules: dict[str, Any] = {"vocabulary": sorted(tokenizer.get_vocab().items())}
    if backend is not None:
        rules = {name: rule for name, rule in json.loads(backend.to_str()).items() if name not in _ASKED}
    marks = sorted((name, str(mark)) for name, mark in tokenizer.special_tokens_map.items())
    return sha256(json.dumps([rules, marks], sort_keys=True).encode()).hexdigest()[:16]
