"""Pairs of texts to compare two encoders' similarities on, drawn over the range of the teacher's similarity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import ConfigError, DataError
from tutelage.evaluation.inputs import Floats, Ints

#: Up to so many pairs all are candidates; of more texts, each text's nearest and a random sample.
ALL_PAIRS = 2_000_000
NEAREST = 16
SAMPLED = 1_000_000

_CHUNK = 1 << 22


@dataclass(frozen=True)
class Pairs:
    """Pairs of different texts, each at most once.

    Args:
        first: ``[P]``, the row of each pair's one text.
        second: ``[P]``, the row of its other text, above the first.
        texts: N, the rows that they were drawn from.
        method: how they were drawn, in words.
    """

    first: Ints
    second: Ints
    texts: int
    method: str

    def __len__(self) -> int:
        return len(self.first)


def pairs_of(teacher: NDArray[Any], count: int, seed: int = 0, *, strata: int = 10) -> Pairs:
    """Draw ``count`` pairs evenly over the range of the teacher's similarity.

    Of texts taken at random nearly every pair is unrelated, and a correlation over such pairs is about the order of
    similarities that mean nothing. So the range from the least to the greatest similarity is cut into ``strata`` of
    equal width, and each gives equally many pairs; what a stratum lacks, the others give. A correlation over these
    pairs is therefore not one over random pairs (it is mostly higher): compare it with none but the same pairs'.

    Args:
        teacher: embeddings ``[N, D]`` of held-out texts.
        count: P.
        seed: of the draws.
        strata: 1 draws plain random pairs.

    Raises:
        DataError: embeddings that are not finite ``[N, D]``; fewer pairs of N texts than ``count``.
        ConfigError: ``count`` or ``strata`` below 1.
    """
    if count < 1 or strata < 1:
        raise ConfigError(
            f"{count:,} pairs in {strata:,} strata, expected 1 or more of each: there is nothing to compare"
        )
    unit_ND = unit_rows(teacher, "the teacher's embeddings")
    texts = len(unit_ND)
    total = texts * (texts - 1) // 2
    if count > total:
        raise DataError(
            f"{count:,} pairs are asked for and {texts:,} texts have {total:,}: some would count twice; hold out more "
            "texts, or ask for fewer pairs"
        )
    draws = np.random.default_rng(seed)
    if strata == 1:
        first, second = _decoded(np.sort(draws.choice(total, count, replace=False)), texts)
        return Pairs(first, second, texts, f"{count:,} random pairs of {texts:,} texts")
    candidates = np.arange(total) if total <= ALL_PAIRS else _candidates(unit_ND, draws)
    if count > len(candidates):
        raise ConfigError(
            f"{count:,} pairs are asked for, expected at most {len(candidates):,}: of so many texts only each one's "
            "nearest and a sample are looked at; ask for fewer pairs (some thousands serve well)"
        )
    similarity = similarities(unit_ND, *_decoded(candidates, texts))
    low, high = float(similarity.min()), float(similarity.max())
    stratum = np.minimum((similarity - low) * (strata / max(high - low, 1e-300)), strata - 1).astype(np.int64)
    chosen = _even(stratum, count, strata, draws)
    first, second = _decoded(np.sort(candidates[chosen]), texts)
    among = "" if total <= ALL_PAIRS else f" among each text's {NEAREST} nearest and {SAMPLED:,} random pairs"
    over = f"evenly over {strata} strata of the teacher's cosine, {low:.2f} to {high:.2f}"
    return Pairs(first, second, texts, f"{count:,} pairs of {texts:,} texts, {over}{among}")


def unit_rows(embeddings: NDArray[Any], name: str) -> Floats:
    """``embeddings[N, D]`` in float64 with rows of length 1; a row of zeros stays one, and is unlike every other.

    Raises:
        DataError: not ``[N, D]``, empty, NaN or infinite.
    """
    rows_ND = np.asarray(embeddings, dtype=np.float64)
    if rows_ND.ndim != 2 or rows_ND.size == 0:
        raise DataError(
            f"{name} have shape {list(rows_ND.shape)}, expected [texts, width]: other axes would be taken for texts; "
            "give one row a text"
        )
    if not np.isfinite(rows_ND).all():
        broken = int((~np.isfinite(rows_ND)).any(axis=1).sum())
        raise DataError(
            f"{name}: {broken:,} of {len(rows_ND):,} rows hold NaN or infinite values: every similarity to them would "
            "be NaN and sort anywhere; find out where the encoder overflows"
        )
    lengths_N1 = np.sqrt(np.square(rows_ND).sum(axis=1, keepdims=True))
    return rows_ND / np.where(lengths_N1 > 0.0, lengths_N1, 1.0)


def similarities(unit_ND: Floats, first: Ints, second: Ints) -> Floats:
    """Cosines ``[P]`` of pairs of rows of length 1, a few at a time."""
    step = max(1, _CHUNK // unit_ND.shape[1])
    parts = [
        np.einsum("pd,pd->p", unit_ND[first[start : start + step]], unit_ND[second[start : start + step]])
        for start in range(0, len(first), step)
    ]
    return np.clip(np.concatenate(parts), -1.0, 1.0)


def _decoded(numbers: Ints, texts: int) -> tuple[Ints, Ints]:
    """The pairs ``(i, j)``, i < j, of their numbers in the order (0, 1), (0, 2) … (1, 2) …"""
    row = np.arange(texts, dtype=np.int64)
    starts = row * (2 * texts - row - 1) // 2
    first = np.searchsorted(starts, numbers, side="right") - 1
    return first, numbers - starts[first] + first + 1


def _candidates(unit_ND: Floats, draws: np.random.Generator) -> Ints:
    """Numbers of pairs among which the similar ones are: each text's nearest, and a random sample."""
    texts = len(unit_ND)
    near: list[Ints] = []
    step = max(1, _CHUNK // texts)
    for start in range(0, texts, step):
        cosine = unit_ND[start : start + step] @ unit_ND.T
        rows = np.arange(start, start + len(cosine))
        cosine[np.arange(len(cosine)), rows] = -np.inf
        others = np.argpartition(-cosine, NEAREST, axis=1)[:, :NEAREST]
        low, high = np.minimum(rows[:, None], others), np.maximum(rows[:, None], others)
        near.append((low * (2 * texts - low - 1) // 2 + high - low - 1).ravel())
    total = texts * (texts - 1) // 2
    return np.unique(np.concatenate([*near, draws.choice(total, SAMPLED, replace=False)]))


def _even(stratum: Ints, count: int, strata: int, draws: np.random.Generator) -> Ints:
    """Positions of ``count`` candidates, equally many a stratum as far as each has them."""
    members = sorted((np.flatnonzero(stratum == index) for index in range(strata)), key=len)
    chosen: list[Ints] = []
    missing = count
    for done, positions in enumerate(members):
        take = min(len(positions), missing // (strata - done))
        chosen.append(draws.choice(positions, take, replace=False) if take else positions[:0])
        missing -= take
    return np.concatenate(chosen)
