"""What the models read: a noun's gloss; what they tell: in which of WordNet's 26 lexicographer files it stands."""

import random
import sys
from pathlib import Path

import torch

from tutelage import TransferSet

sys.path.insert(0, str(Path(__file__).parents[1]))

from wordnet import CATEGORIES, FIRST_CATEGORY, nouns

LEARNT, TESTED = 8_000, 4_000


def glosses() -> tuple[TransferSet, TransferSet]:
    """8,000 glosses to learn from and 4,000 to be tested on, in WordNet's own proportions."""
    rows = nouns()
    random.Random(0).shuffle(rows)
    return labelled(rows[TESTED : TESTED + LEARNT]), labelled(rows[:TESTED])


def labelled(rows: list[dict[str, str | int]]) -> TransferSet:
    """The glosses with their categories."""
    labels = torch.tensor([int(row["file"]) - FIRST_CATEGORY for row in rows])
    return TransferSet([str(row["gloss"]) for row in rows], labels, CATEGORIES)
