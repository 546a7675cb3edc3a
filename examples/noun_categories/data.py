"""What the models read: a noun's gloss; what they tell: in which of WordNet's 26 lexicographer files it stands."""

import random
import sys
from pathlib import Path

import torch

from tutelage import TransferSet

sys.path.insert(0, str(Path(__file__).parents[1]))

from wordnet import nouns

#: Lexicographer files 3 to 28 of WordNet 3.0, by their own names.
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
FIRST = 3
LEARNT, TESTED = 12_000, 4_000


def glosses() -> tuple[TransferSet, TransferSet]:
    """12,000 glosses to learn from and 4,000 to be tested on, in WordNet's own proportions."""
    rows = nouns()
    random.Random(0).shuffle(rows)
    return labelled(rows[TESTED : TESTED + LEARNT]), labelled(rows[:TESTED])


def labelled(rows: list[dict[str, str | int]]) -> TransferSet:
    """The glosses with their categories."""
    labels = torch.tensor([int(row["file"]) - FIRST for row in rows])
    return TransferSet([str(row["gloss"]) for row in rows], labels, CATEGORIES)
