"""Markdown as GitHub and the Hub read it, of which nothing that comes from data is taken for markup."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

#: A longer cell is cut: a class may be named by a sentence.
LONGEST_CELL = 160
#: A reason is a sentence or two, and one that is cut off loses its point.
LONGEST_REASON = 400
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


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = (), reasons: Sequence[int] = ()
) -> list[str]:
    """A table of texts, made plain, as lines.

    Args:
        head: the columns' names.
        rows: as many cells each.
        right: the columns of numbers, which stand at the right.
        reasons: the columns of sentences, which may be longer than others.
    """
    longest = [LONGEST_REASON if column in reasons else LONGEST_CELL for column in range(len(head))]
    rule = ["---:" if column in right else "---" for column in range(len(head))]
    written = [[plain(cell, most) for cell, most in zip(row, longest, strict=True)] for row in (head, *rows)]
    lines = [written[0], rule, *written[1:]]
    return [f"| {' | '.join(line)} |" for line in lines]
