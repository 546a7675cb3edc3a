"""Which layer of the student listens to which of the teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tutelage.errors import ConfigError
from tutelage.objectives.schedules import nearest

#: The maps that have a name.
LAYER_MAPS = ("uniform", "last")


def layer_map(how: str, student_blocks: Sequence[str], teacher_blocks: Sequence[str]) -> list[tuple[str, str]]:
    """A (student layer, teacher layer) pair for each of the student's blocks.

    Args:
        how: ``"uniform"``, the student's block i of n meets the teacher's ⌈i·m/n⌉ of m (counted from 1), so that the
            last meets the last; ``"last"``, the student's blocks meet the teacher's last n, in order.
        student_blocks: names of the student's n repeated blocks, in order.
        teacher_blocks: names of the teacher's m.

    Raises:
        ConfigError: another word, a model without blocks, or ``"last"`` with a student deeper than its teacher.
    """
    _check_word(how)
    mine, theirs = len(student_blocks), len(teacher_blocks)
    for whose, count in (("student", mine), ("teacher", theirs)):
        if count == 0:
            raise ConfigError(
                f"layers: {how} pairs the two models' repeated blocks, and the {whose} has none that could be found: "
                "list the pairs by name, such as [[blocks.0, layers.1], [blocks.1, layers.3]]"
            )
    if how == "uniform":
        # in whole numbers: ⌈a/b⌉ = −⌊−a/b⌋
        return [(block, teacher_blocks[-(-(i + 1) * theirs // mine) - 1]) for i, block in enumerate(student_blocks)]
    if mine > theirs:
        raise ConfigError(
            f"layers: last pairs the student's {mine} blocks with the teacher's last {mine}, and it has {theirs}: "
            "use uniform, or list the pairs by name"
        )
    return list(zip(student_blocks, teacher_blocks[theirs - mine :], strict=True))


def resolve_layers(
    items: Sequence[Mapping[str, Any]], student_blocks: Sequence[str], teacher_blocks: Sequence[str]
) -> list[Mapping[str, Any]]:
    """A config's objective with ``layers: uniform`` and ``layers: last`` replaced by pairs of these models' blocks.

    All else stays as it is, also what :func:`tutelage.objectives.objective_from_config` will refuse.

    Args:
        items: the list of a config's ``objective:``.
        student_blocks: names of the student's repeated blocks, in order.
        teacher_blocks: names of the teacher's.

    Raises:
        ConfigError: an unknown word, or blocks that the map cannot pair; the message names the item.
    """
    resolved: list[Any] = []
    for number, item in enumerate(items):
        how = _named_map(item)
        if how is None:
            resolved.append(item)
            continue
        try:
            pairs = layer_map(how, student_blocks, teacher_blocks)
        except ConfigError as error:
            raise ConfigError(f"objective[{number}]: {error}") from error
        resolved.append({**item, "layers": [list(pair) for pair in pairs]})
    return resolved


def needs_layer_map(items: Sequence[Mapping[str, Any]]) -> bool:
    """Whether some item names a map, so that both models' blocks must be known before it is an objective."""
    return any(_named_map(item) is not None for item in items)


def listed_pairs(layers: Any) -> list[tuple[str, str]]:
    """The pairs of an item's ``layers:``, which by now must be a list of them.

    Raises:
        ConfigError: anything else; for a map by name, who resolves it.
    """
    if isinstance(layers, str):
        _check_word(layers)
        raise ConfigError(
            f"layers: {layers} stands for pairs of two models' blocks, which an objective does not know: a study's config "
            "resolves it when its models are built; in Python call resolve_layers(items, student_blocks, teacher_blocks) first"
        )
    pairs: list[tuple[str, str]] = []
    for pair in layers if isinstance(layers, Sequence) else ():
        match pair:
            case [str(student), str(teacher)]:
                pairs.append((student, teacher))
            case _:
                pairs.clear()
                break
    if not pairs:
        raise ConfigError(
            f"layers is {layers!r}: expected {' or '.join(LAYER_MAPS)}, or a list of [student layer, teacher layer] pairs, "
            "such as [[blocks.0, layers.1], [blocks.1, layers.3]]"
        )
    twice = sorted({f"{mine} → {theirs}" for mine, theirs in pairs if pairs.count((mine, theirs)) > 1})
    if twice:
        raise ConfigError(f"layers has {', '.join(twice)} more than once: it would weigh double; list each pair once")
    return pairs


def _named_map(item: Any) -> str | None:
    how = item.get("layers") if isinstance(item, Mapping) else None
    return how if isinstance(how, str) else None


def _check_word(how: str) -> None:
    if how not in LAYER_MAPS:
        raise ConfigError(
            f"unknown layer map {how!r}{nearest(how, list(LAYER_MAPS))}: expected {' or '.join(LAYER_MAPS)}, or a list of "
            "[student layer, teacher layer] pairs"
        )
