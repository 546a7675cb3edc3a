"""Words for the command, and what is asked of how it ended."""

from typing import Any


def sets(*overrides: str) -> list[str]:
    """The words that change a config by these dotted keys."""
    return [word for override in overrides for word in ("--set", override)]


def is_one_message(left: Any) -> bool:
    """A mistake of the user's is told once, and no traceback with it."""
    return left.code == 2 and "Traceback" not in left.err and left.err.count("error: ") == 1
