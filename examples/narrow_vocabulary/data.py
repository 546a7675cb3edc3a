"""What the models read: the gloss of a living thing, of a part of one, or of what is eaten of it; what they tell: which it is."""

import random
import sys
from pathlib import Path

import torch

from tutelage import TransferSet

sys.path.insert(0, str(Path(__file__).parents[1]))

from wordnet import nouns

#: Lexicographer files of WordNet 3.0, and what they hold.
KINDS = {5: "animal", 8: "body", 13: "food", 20: "plant"}
LEARNT, TESTED = 6_000, 3_000


def glosses() -> tuple[TransferSet, TransferSet]:
    """6,000 glosses to learn from and 3,000 to be tested on, in WordNet's own proportions."""
    rows = [row for row in nouns() if row["file"] in KINDS]
    random.Random(0).shuffle(rows)
    return labelled(rows[TESTED : TESTED + LEARNT]), labelled(rows[:TESTED])


def labelled(rows: list[dict[str, str | int]]) -> TransferSet:
    """The glosses with their kinds."""
    places = {file: place for place, file in enumerate(KINDS)}
    labels = torch.tensor([places[int(row["file"])] for row in rows])
    return TransferSet([str(row["gloss"]) for row in rows], labels, list(KINDS.values()))
