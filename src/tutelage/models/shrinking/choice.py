"""Which layers stay."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tutelage.errors import ModelError

_WORDS = "'every_other', 'first', 'first:N', 'last', 'last:N' or 'important:N'"


def layer_numbers(layers: int | Sequence[int] | str | None, of: int, importance: Tensor | None = None) -> list[int]:
    """The numbers of the layers that stay, from 0 and rising.

    Args:
        layers: how many, evenly apart (:func:`even_layers`); their numbers; None for all; or in words: ``"every_other"`` (0, 2, 4, …: one
            of two, as Sanh et al. 2019, section 3), ``"first:N"`` and ``"last:N"`` (half of them, rounded up, without ``:N``), or
            ``"important:N"``.
        of: how many there are.
        importance: ``[L]``, which ``"important:N"`` needs; of two alike, the earlier stays.

    Raises:
        ModelError: other words or numbers, or fewer than one layer, or more than there are.
    """
    if layers is None:
        return list(range(of))
    if isinstance(layers, bool) or not isinstance(layers, int | str | Sequence):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ModelError(
            f"layers is {layers!r}, expected how many, their numbers, or words such as 'every_other' and 'first:3'"
        )
    if isinstance(layers, int):
        return even_layers(layers, of)
    if not isinstance(layers, str):
        return rising(layers, of)
    if layers == "every_other":
        return list(range(0, of, 2))
    word, count = _read(layers, of)
    if word == "first":
        return list(range(count))
    if word == "last":
        return list(range(of - count, of))
    if importance is None:
        raise ModelError(
            f"layers {layers!r} of a model whose layers' importance is not known: measure it on data (importance_of) and give it as "
            "'importance', or choose 'every_other', 'first:N' or 'last:N'"
        )
    return sorted(importance.argsort(descending=True, stable=True)[:count].tolist())


def even_layers(layers: int, of: int) -> list[int]:
    """So many layers' numbers of those of a model, evenly apart, the first and the last among them; of one, the first.

    Raises:
        ModelError: fewer than one, or more than there are.
    """
    _expect_count(layers, of)
    apart = max(layers - 1, 1)
    return [(2 * place * (of - 1) + apart) // (2 * apart) for place in range(layers)]


def rising(layers: Sequence[int], of: int) -> list[int]:
    """Those numbers, if they are layers in their order.

    Raises:
        ModelError: they are not.
    """
    kept = list(layers)
    if not kept or kept != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= of:
        raise ModelError(
            f"layers to keep are {kept}, expected numbers from 0 to {of - 1}, rising and each once: in another order or twice, a layer "
            "would be given what it never saw"
        )
    return kept


def _read(words: str, of: int) -> tuple[str, int]:
    word, _, number = words.partition(":")
    if word in ("first", "last") and words == word:
        return word, (of + 1) // 2
    if word not in ("first", "last", "important") or not (number.isascii() and number.isdigit()):
        raise ModelError(f"layers to keep are {words!r}, expected a count, a list of numbers, {_WORDS}")
    _expect_count(int(number), of)
    return word, int(number)


def _expect_count(layers: int, of: int) -> None:
    if not 1 <= layers <= of:
        raise ModelError(f"{layers} layers are to be kept of {of}, expected 1 to {of}")
