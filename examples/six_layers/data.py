"""What the models read: a word, and WordNet's gloss of it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from wordnet import glosses


def words() -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """2,400 to learn from, 400 to be tested on."""
    return glosses(2_400, 400)
