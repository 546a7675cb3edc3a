"""What the models read: a noun, and what it means."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from wordnet import glosses


def nouns() -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """400 to learn from, 40 to validate on, 120 to be tested on, of all kinds."""
    learnt, tested = glosses(440, 120)
    return [completed(row) for row in learnt], [completed(row) for row in tested]


def completed(row: dict[str, str]) -> dict[str, str]:
    """The word as the prompt, its meaning as the completion."""
    return {"prompt": f"{row['word']}:", "completion": f" {row['gloss']}"}
