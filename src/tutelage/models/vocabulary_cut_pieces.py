"""Which pieces of a fast tokenizer stay when others go, and its description with those alone, numbered anew.

A description is what ``tokenizers.Tokenizer.to_str`` writes. Each way of splitting has its own reason for a piece to stay:

- WordPiece takes the longest piece that fits: with fewer pieces it takes the same ones wherever they are left. A word that it knew no
  piece for must stay unknown, so what it took of it before it gave up stays as well.
- BPE merges the pair of the lowest rank: each piece stays that a merge makes on the way to one that is used.
- Unigram takes the likeliest split, which stays the likeliest. Its least likely piece stays, since what an unknown letter costs
  is reckoned from it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from tutelage.errors import ModelError

#: A tokenizer, or its model, as JSON.
Json = dict[str, Any]

_KINDS = ("BPE", "Unigram", "WordLevel", "WordPiece")


def pieces_of(model: Json) -> dict[str, int]:
    """The numbers of a model's own pieces, added ones apart."""
    vocabulary = model["vocab"]
    return (
        {piece: number for number, (piece, _) in enumerate(vocabulary)} if isinstance(vocabulary, list) else vocabulary
    )


def expect_known(model: Json) -> None:
    """Refuse a way of splitting that is not known here, or one that draws lots.

    Raises:
        ModelError: neither WordPiece, BPE, Unigram nor whole words; dropout of merges.
    """
    if model["type"] not in _KINDS:
        raise ModelError(
            f"the tokenizer splits by {model['type']}, expected one of {', '.join(_KINDS)}: which pieces a text needs is "
            "not known for others; leave the vocabulary as it is"
        )
    if model.get("dropout"):
        raise ModelError(
            f"the tokenizer leaves out {model['dropout']:.0%} of its merges at random: which pieces a text needs would be left to "
            "chance; set backend_tokenizer.model.dropout to None"
        )


def staying(model: Json, used: Iterable[str]) -> set[str]:
    """Pieces of a tokenizer's model that stay, so that each text that was split into used ones is split as before.

    Beside these, what other texts fall back on: the 256 bytes where it has them, else its pieces of one character.
    """
    own = pieces_of(model)
    stay = {piece for piece in used if piece in own}
    if (unknown := _unknown(model)) is not None:
        stay.add(unknown)
    if model["type"] != "WordLevel":
        stay |= _fallback(model)
    if model["type"] == "Unigram":
        stay.add(min(model["vocab"], key=lambda scored: scored[1])[0])
    return _with_their_parts(model, stay) if model["type"] == "BPE" else stay


def taken_before_giving_up(model: Json, word: str) -> Iterator[str]:
    """The pieces that WordPiece takes of a word, whether or not it can take all of it."""
    own, prefix = pieces_of(model), _prefix(model)
    start = 0
    while start < len(word):
        ends = range(len(word), start, -1)
        candidates = ((end, (prefix if start else "") + word[start:end]) for end in ends)
        taken = next(((end, piece) for end, piece in candidates if piece in own), None)
        if taken is None:
            return
        start = taken[0]
        yield taken[1]


def narrowed(description: Json, stay: set[str], unmoved: str | None) -> tuple[Json, list[str]]:
    """The tokenizer with some of its model's pieces and all added ones, and all these in the order of their new numbers.

    That is the old order, but for ``unmoved``, which keeps its number if it can: some models count positions from the padding's.
    """
    model = description["model"]
    own = pieces_of(model)
    order = sorted(stay, key=own.__getitem__)
    if unmoved in stay:
        order.remove(unmoved)
        order.insert(min(own[unmoved], len(order)), unmoved)
    added = sorted(description["added_tokens"], key=lambda token: token["id"])
    numbers = {piece: number for number, piece in enumerate([*order, *_others(added, own)])}
    return {
        **description,
        "added_tokens": sorted(
            ({**token, "id": numbers[token["content"]]} for token in added), key=lambda token: token["id"]
        ),
        "model": _narrowed_model(model, order, numbers),
        "padding": _renumbered_padding(description["padding"], numbers),
        "post_processor": _renumbered_processor(description["post_processor"], numbers),
    }, list(numbers)


def processor_pieces(processor: Json | None) -> Iterator[str]:
    """The pieces that a post-processor puts around a text."""
    if processor is None:
        return
    for inner in processor.get("processors", ()):
        yield from processor_pieces(inner)
    for token in (processor.get("special_tokens") or {}).values():
        yield from token["tokens"]
    for key in ("cls", "sep"):
        if key in processor:
            yield processor[key][0]


def _others(added: list[Json], own: dict[str, int]) -> list[str]:
    # one that its model has too has that number; the others are numbered behind the model's, in this order
    return [token["content"] for token in added if token["content"] not in own]


def _unknown(model: Json) -> str | None:
    if model["type"] == "Unigram":
        return None if model["unk_id"] is None else model["vocab"][model["unk_id"]][0]
    return model["unk_token"] if model["unk_token"] in model["vocab"] else None


def _prefix(model: Json) -> str:
    return model.get("continuing_subword_prefix") or ""


def _bare(piece: str, model: Json) -> str:
    return piece.removeprefix(_prefix(model)).removesuffix(model.get("end_of_word_suffix") or "")


def _fallback(model: Json) -> set[str]:
    own = pieces_of(model)
    if model.get("byte_fallback"):
        written = {f"<0x{byte:02X}>" for byte in range(256)}
        if written <= own.keys():
            return written
    return {piece for piece in own if len(_bare(piece, model)) == 1}


def _with_their_parts(model: Json, stay: set[str]) -> set[str]:
    """BPE's pieces, and each that a merge makes on the way to one of them."""
    merges = [(left, right) for left, right in model["merges"]]
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    makers: dict[str, list[tuple[str, str]]] = {}
    for left, right in merges:
        makers.setdefault(_merged(left, right, model), []).append((left, right))
    parts = (_made_on_the_way(piece, model, ranks, makers) for piece in stay)
    return stay.union(*parts) & model["vocab"].keys()


def _merged(left: str, right: str, model: Json) -> str:
    return left + right[len(_prefix(model)) :]


def _made_on_the_way(
    piece: str, model: Json, ranks: dict[tuple[str, str], int], makers: dict[str, list[tuple[str, str]]]
) -> set[str]:
    """All pieces that stand at some time where this one will, when its letters are merged (Sennrich et al. 2016, algorithm 1).

    Inside a longer word the merges are the same, since none of them crosses a border of a piece that is left in the end.
    """
    at = _letters(piece, model)
    seen = set(at)
    while known := [(ranks[pair], place) for place, pair in enumerate(itertools.pairwise(at)) if pair in ranks]:
        _, place = min(known)
        at[place : place + 2] = [_merged(at[place], at[place + 1], model)]
        seen.add(at[place])
    return seen if at == [piece] else _all_ways(piece, makers)


def _letters(piece: str, model: Json) -> list[str]:
    prefix, body = _prefix(model), _bare(piece, model)
    first = prefix if piece.startswith(prefix) else ""
    letters = [(prefix if place else first) + letter for place, letter in enumerate(body)]
    if letters:
        letters[-1] += piece.removeprefix(prefix)[len(body) :]
    return letters


def _all_ways(piece: str, makers: dict[str, list[tuple[str, str]]]) -> set[str]:
    """All that any merges make a piece from, for one that its letters do not lead to, as where bytes are written out."""
    found: set[str] = set()
    todo = [piece]
    while todo:
        if (at := todo.pop()) not in found:
            found.add(at)
            todo += itertools.chain.from_iterable(makers.get(at, ()))
    return found


def _narrowed_model(model: Json, order: list[str], numbers: dict[str, int]) -> Json:
    kept = set(order)
    if model["type"] == "Unigram":
        scores = dict(model["vocab"])
        unknown = _unknown(model)
        return {
            **model,
            "vocab": [[piece, scores[piece]] for piece in order],
            "unk_id": None if unknown is None else numbers[unknown],
        }
    smaller = {**model, "vocab": {piece: numbers[piece] for piece in order}}
    if model["type"] == "BPE":
        merges = [(left, right) for left, right in model["merges"]]
        smaller["merges"] = [pair for pair in merges if kept.issuperset([*pair, _merged(*pair, model)])]
    return smaller


def _renumbered_padding(padding: Json | None, numbers: dict[str, int]) -> Json | None:
    if padding is None or padding["pad_token"] not in numbers:
        return padding
    return {**padding, "pad_id": numbers[padding["pad_token"]]}


def _renumbered_processor(processor: Json | None, numbers: dict[str, int]) -> Json | None:
    if processor is None:
        return None
    new = dict(processor)
    if "processors" in new:
        new["processors"] = [_renumbered_processor(inner, numbers) for inner in new["processors"]]
    if "special_tokens" in new:
        new["special_tokens"] = {
            name: {**token, "ids": [numbers[piece] for piece in token["tokens"]]}
            for name, token in new["special_tokens"].items()
        }
    for key in ("cls", "sep"):
        if key in new:
            new[key] = [new[key][0], numbers[new[key][0]]]
    return new
