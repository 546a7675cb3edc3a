"""Which layer of the student listens to which of the teacher."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tutelage.errors import ConfigError
from tutelage.objectives.named import expand, expand_recipes
from tutelage.objectives.schedules import nearest

#: The maps of blocks that have a name.
BLOCK_MAPS = ("uniform", "last")
#: The map of one layer's queries, keys and values to another's.
QUERIES_KEYS_VALUES = "queries_keys_values"
#: The maps that have a name.
LAYER_MAPS = (*BLOCK_MAPS, QUERIES_KEYS_VALUES)

#: Given a layer's number, −1 for the last: the names of what shows its ``query``, ``key`` and ``value``.
AttentionNames = Callable[[int], Mapping[str, str]]

_CHOSEN = ("student_layer", "teacher_layer")


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
    if how not in BLOCK_MAPS:
        raise _unknown(how, BLOCK_MAPS)
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
    items: Sequence[Mapping[str, Any]],
    student_blocks: Sequence[str],
    teacher_blocks: Sequence[str],
    *,
    student_attention: AttentionNames | None = None,
    teacher_attention: AttentionNames | None = None,
) -> list[Mapping[str, Any]]:
    """A config's objective with recipes as their terms, and each map by name replaced by pairs of these models' layers.

    ``layers: uniform`` and ``layers: last`` pair blocks (for ``attention_map``, the attentions of the Hugging Face
    models that have those hidden states). ``layers: queries_keys_values`` pairs the queries, keys and values of
    ``student_layer`` with those of ``teacher_layer``, both the last (−1) where the item does not say. All else stays as
    it is, also what :func:`tutelage.objectives.objective_from_config` will refuse.

    Args:
        items: the list of a config's ``objective:``.
        student_blocks: names of the student's repeated blocks, in order.
        teacher_blocks: names of the teacher's.
        student_attention: what names the queries, keys and values of one of the student's layers, such as
            ``partial(attention_names, student)``; needed for that map alone.
        teacher_attention: the same of the teacher's.

    Raises:
        ConfigError: an unknown word or recipe, or blocks that the map cannot pair; the message names the item.
        ModelError: a model whose queries, keys and values have no names.
    """
    resolved: list[Any] = []
    for number, item in enumerate(items):
        try:
            for part in expand(item):
                resolved.append(
                    _resolved(part, (student_blocks, teacher_blocks), (student_attention, teacher_attention))
                )
        except ConfigError as error:
            raise ConfigError(f"objective.{number}: {error}") from error
    return resolved


def needs_layer_map(items: Sequence[Mapping[str, Any]]) -> bool:
    """Whether some item, or what its recipe stands for, names a map, so that both models must be known before it is an
    objective.

    Raises:
        ConfigError: an unknown recipe; the message names the item.
    """
    return any(_named_map(item) is not None for item in expand_recipes(items))


def listed_pairs(layers: Any) -> list[tuple[str, str]]:
    """The pairs of an item's ``layers:``, which by now must be a list of them.

    Raises:
        ConfigError: anything else; for a map by name, who resolves it.
    """
    if isinstance(layers, str):
        if layers not in LAYER_MAPS:
            raise _unknown(layers, LAYER_MAPS)
        raise ConfigError(
            f"layers: {layers} stands for pairs of two models' layers, which an objective does not know: a study's config "
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
            f"layers is {layers!r}: expected {_either(LAYER_MAPS)}, or a list of [student layer, teacher layer] pairs, "
            "such as [[blocks.0, layers.1], [blocks.1, layers.3]]"
        )
    twice = sorted({f"{mine} → {theirs}" for mine, theirs in pairs if pairs.count((mine, theirs)) > 1})
    if twice:
        raise ConfigError(f"layers has {', '.join(twice)} more than once: it would weigh double; list each pair once")
    return pairs


def _resolved(
    item: Any,
    blocks: tuple[Sequence[str], Sequence[str]],
    attention: tuple[AttentionNames | None, AttentionNames | None],
) -> Any:
    how = _named_map(item)
    chosen = [key for key in _CHOSEN if isinstance(item, Mapping) and key in item]
    if chosen and how != QUERIES_KEYS_VALUES:
        raise ConfigError(
            f"{' and '.join(chosen)} beside layers: {item.get('layers')!r}: a layer's number goes with layers: {QUERIES_KEYS_VALUES}, and "
            "would be read by nobody here; leave it out, or name the layer itself"
        )
    if how is None:
        return item
    if how not in LAYER_MAPS:
        raise _unknown(how, LAYER_MAPS)
    if how == QUERIES_KEYS_VALUES:
        pairs = _queries_keys_values(item, *attention)
    else:
        pairs = layer_map(how, *blocks)
        if item.get("term") == "attention_map":
            pairs = [(_attentions(mine, how), _attentions(theirs, how)) for mine, theirs in pairs]
    kept = {key: value for key, value in item.items() if key not in _CHOSEN}
    return {**kept, "layers": [list(pair) for pair in pairs]}


def _queries_keys_values(
    item: Mapping[str, Any], student: AttentionNames | None, teacher: AttentionNames | None
) -> list[tuple[str, str]]:
    names: list[Mapping[str, str]] = []
    for key, whose, of in zip(_CHOSEN, ("student", "teacher"), (student, teacher), strict=True):
        layer = item.get(key, -1)
        if isinstance(layer, bool) or not isinstance(layer, int):
            raise ConfigError(
                f"{key} is {layer!r}: expected the number of one of the {whose}'s layers, from 0, or -1 for the last"
            )
        if of is None:
            raise ConfigError(
                f"layers: {QUERIES_KEYS_VALUES} wants the names of what shows the {whose}'s queries, keys and values, and nothing gives "
                f"them: call resolve_layers with {whose}_attention=partial(attention_names, {whose}), or list the pairs by name"
            )
        names.append(of(layer))
    return [(names[0][part], names[1][part]) for part in ("query", "key", "value")]


def _attentions(block: str, how: str) -> str:
    """The attentions of the layer that a hidden state leaves."""
    match = re.fullmatch(r"hidden_states\.([1-9]\d*)", block)
    if match is None:
        raise ConfigError(
            f"layers: {how} of attention_map pairs the attentions of Hugging Face models, and {block!r} is a block of another kind of "
            "model: list the pairs of layers that show attentions by name"
        )
    return f"attentions.{int(match[1]) - 1}"


def _named_map(item: Any) -> str | None:
    how = item.get("layers") if isinstance(item, Mapping) else None
    return how if isinstance(how, str) else None


def _either(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"


def _unknown(how: str, known: Sequence[str]) -> ConfigError:
    return ConfigError(
        f"unknown layer map {how!r}{nearest(how, list(known))}: expected {_either(known)}, or a list of "
        "[student layer, teacher layer] pairs"
    )
