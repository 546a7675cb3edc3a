"""The glosses of data.py, and 12,000 more whose category nobody has told: only a teacher can say something of those."""

import random

from data import LEARNT, TESTED, labelled, nouns
from tutelage import TransferSet
from tutelage.signals import NO_LABEL

UNLABELLED = 12_000


def glosses() -> tuple[TransferSet, TransferSet]:
    """8,000 glosses with their category and 12,000 without, to learn from; 4,000 to be tested on, as in data.py."""
    rows = nouns()
    random.Random(0).shuffle(rows)
    learnt = labelled(rows[TESTED : TESTED + LEARNT + UNLABELLED])
    labels = learnt.known_labels.clone()
    labels[LEARNT:] = NO_LABEL
    return learnt.with_labels(labels), labelled(rows[:TESTED])
