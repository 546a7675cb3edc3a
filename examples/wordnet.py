"""WordNet's noun glosses: short definitions, each in a category by the file it stands in.

On Debian and Ubuntu: ``apt install wordnet-base``. Elsewhere: name the folder that holds ``data.noun`` in ``WORDNET``.
"""

import os
import random
import re
from pathlib import Path

#: Lexicographer files of WordNet 3.0 and what the examples call them.
KINDS = {5: "animal", 13: "food", 18: "person", 17: "object", 15: "place", 28: "time"}
#: All of its categories of nouns by their own names: lexicographer files 3 to 28.
CATEGORIES = [
    "Tops",
    "act",
    "animal",
    "artifact",
    "attribute",
    "body",
    "cognition",
    "communication",
    "event",
    "feeling",
    "food",
    "group",
    "location",
    "motive",
    "object",
    "person",
    "phenomenon",
    "plant",
    "possession",
    "process",
    "quantity",
    "relation",
    "shape",
    "state",
    "substance",
    "time",
]
FIRST_CATEGORY = 3
FOLDERS = ("/usr/share/wordnet", "/usr/share/WordNet-3.0/dict", "/usr/local/WordNet-3.0/dict")


def nouns() -> list[dict[str, str | int]]:
    """Every noun's first word, its gloss without the sentences that quote it, and the number of its file."""
    rows: list[dict[str, str | int]] = []
    known: set[str] = set()
    for line in _file().read_text(encoding="utf-8").splitlines():
        if line.startswith("  ") or "|" not in line:
            continue  # the licence
        fields, gloss = line.split("|", 1)
        gloss = gloss.split('; "')[0].strip()
        if gloss in known or gloss.startswith('"') or len(gloss) < 8:
            continue
        known.add(gloss)
        parts = fields.split(" ")
        rows.append({"word": parts[4].replace("_", " "), "gloss": gloss, "file": int(parts[1])})
    return rows


def synsets() -> list[dict[str, str | int | list[str]]]:
    """Every noun synset: its number, the number of its file, its definition, and the sentences that show it in use."""
    rows: list[dict[str, str | int | list[str]]] = []
    for line in _file().read_text(encoding="utf-8").splitlines():
        if line.startswith("  ") or "|" not in line:
            continue  # the licence
        fields, gloss = line.split("|", 1)
        definition, *quoted = re.split(r';?\s*"', gloss.strip())
        shown = [sentence.strip() for sentence in quoted[::2] if len(sentence.strip()) >= 8]
        if len(definition) >= 8:
            number, file = fields.split(" ")[:2]
            rows.append({"synset": number, "file": int(file), "definition": definition, "examples": shown})
    return rows


def kinds(per_kind: int, test_per_kind: int) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Glosses of six kinds, as many of each: to learn from, and to be tested on."""
    rows = [
        {"gloss": str(row["gloss"]), "kind": KINDS[int(row["file"])]} for row in nouns() if int(row["file"]) in KINDS
    ]
    random.Random(0).shuffle(rows)
    learnt: list[dict[str, str]] = []
    tested: list[dict[str, str]] = []
    for kind in KINDS.values():
        own = [row for row in rows if row["kind"] == kind]
        tested += own[:test_per_kind]
        learnt += own[test_per_kind : test_per_kind + per_kind]
    random.Random(1).shuffle(learnt)
    return learnt, tested


def glosses(count: int, test_count: int) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Words with their glosses, from all nouns: to learn from, and to be tested on."""
    rows = [{"word": str(row["word"]), "gloss": str(row["gloss"])} for row in nouns()]
    random.Random(0).shuffle(rows)
    return rows[test_count : test_count + count], rows[:test_count]


def _file() -> Path:
    for folder in (os.environ.get("WORDNET"), *FOLDERS):
        if folder and (Path(folder) / "data.noun").is_file():
            return Path(folder) / "data.noun"
    raise FileNotFoundError(
        "WordNet's data.noun was not found: apt install wordnet-base, or name its folder in the environment variable WORDNET"
    )
