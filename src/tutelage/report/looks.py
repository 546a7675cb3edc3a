"""How arms of the user's own are drawn: told apart by the colour-blind by their colours, on a grey print by markers and dashes."""

from __future__ import annotations

#: Each is drawn in one of the colours ``--own-1`` to ``--own-6`` of the page's style.
COLOURS = tuple(f"own-{number}" for number in range(1, 7))
#: As many as make pairs with the colours that come again late: the two counts have no factor in common.
_SHAPES = ("cross", "star", "hexagon", "hourglass", "right", "pentagon", "left")
_DASHES = ("4 2", "10 2 2 2", "1 4", "5 5", "12 3", "3 1 1 1", "8 2 2 2 2 2")


def own_look(place: int) -> tuple[str, str, str]:
    """Colour slot, marker and dashes of the arm that is so many places behind the first of its kind; 42 of them are unlike."""
    return COLOURS[place % len(COLOURS)], _SHAPES[place % len(_SHAPES)], _DASHES[place % len(_DASHES)]
