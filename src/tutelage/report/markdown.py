"""Markdown as GitHub and the Hub read it, of which nothing that comes from data is taken for markup."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

#: A longer cell is cut: a class may be named by a sentence.
LONGEST_CELL = 160
#: Parts a word where a site would make a link or a call of it; drawn as nothing.
_BREAK = "\u200b"
_MARKUP = re.compile(r"([\\`*_\[\]~|#$!])")
_CALLS = re.compile(r"([@#])(?=\w)|(:)(?=//)|(\bwww)(?=\.)|(\bGH)(?=-\d)", re.IGNORECASE)


def plain(value: str, longest: int = LONGEST_CELL) -> str:
    """Data as text on one line: nothing in it is a table, a tag, a formula, a link, or calls anybody.

    A site looks for ``@names`` and ``#12`` after it has undone every escape, so those are parted by a space of no width.
    """
    # what steers the terminal or turns the reading direction is dropped, and so is half of a surrogate pair
    kept = "".join(
        " " if character.isspace() else character
        for character in value
        if character.isspace() or unicodedata.category(character) not in ("Cc", "Cf", "Cs")
    )
    words = " ".join(kept.split())
    words = words if len(words) <= longest else words[: longest - 1] + "…"
    words = _CALLS.sub(lambda found: found[0] + _BREAK, words)
    words = words.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKUP.sub(r"\\\1", words)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """A table of texts, made plain, as lines; the columns in ``right`` are numbers and stand at the right."""
    rule = ["---:" if column in right else "---" for column in range(len(head))]
    lines = [[plain(cell) for cell in head], rule, *([plain(cell) for cell in row] for row in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]
