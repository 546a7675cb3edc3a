"""What the models read: glosses of six kinds. The kind is what they are tested by; nothing learns from it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from wordnet import kinds


def glosses() -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """1,056 to learn from, 1,020 to be tested on, a sixth of each kind."""
    return kinds(per_kind=176, test_per_kind=170)
