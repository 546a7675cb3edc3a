"""What the encoders read: WordNet's noun definitions and the sentences that show a noun in use; a sentence must find its own definition."""

import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from wordnet import CATEGORIES, FIRST_CATEGORY, synsets

#: Synsets to learn from and to be tested on: those that are shown in use, and those that only have a definition.
LEARNT, TESTED = (3_000, 12_000), (1_200, 1_200)

Rows = list[dict[str, str | None]]


def texts() -> tuple[Rows, Rows]:
    """About 18,600 texts to learn from and 3,800 to be tested on; a definition alone has no group: it is searched through."""
    known = synsets()
    random.Random(0).shuffle(known)
    shown = [entry for entry in known if entry["examples"]]
    plain = [entry for entry in known if not entry["examples"]]
    learnt = shown[TESTED[0] : TESTED[0] + LEARNT[0]] + plain[TESTED[1] : TESTED[1] + LEARNT[1]]
    tested = shown[: TESTED[0]] + plain[: TESTED[1]]
    test = _rows(tested, set())
    return _rows(learnt, {str(row["text"]) for row in test}), test


def _rows(entries: list[dict[str, str | int | list[str]]], seen: set[str]) -> Rows:
    """A row a text that was not seen yet; a synset of which one text is left has no group."""
    rows: Rows = []
    for entry in entries:
        examples = entry["examples"]
        assert isinstance(examples, list)
        own = [text for text in dict.fromkeys([str(entry["definition"]), *examples]) if text not in seen]
        seen |= set(own)
        group = str(entry["synset"]) if len(own) > 1 else None
        rows += [
            {"text": text, "synset": group, "file": CATEGORIES[int(str(entry["file"])) - FIRST_CATEGORY]}
            for text in own
        ]
    return rows
