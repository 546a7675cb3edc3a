"""How well a student keeps the order of its teacher's similarities.

Two encoders need not have one width or one set of axes, and what embeddings are used for is their order: which of two
texts is nearer to a third. So the first number is the rank correlation between the teacher's and the student's cosines
on given pairs of held-out texts. The pairs share texts, so P pairs are not P draws; another test set has other texts,
and these are what is resampled.

References: Spearman, Am. J. Psychol. 15 (1904); Snijders & Borgatti, "Non-parametric standard errors and tests for
network statistics", Connections 22 (1999), and Owen, "The pigeonhole bootstrap", Ann. Appl. Stat. 1 (2007), for
resampling what pairs share.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import ConfigError, DataError
from tutelage.evaluation.embeddings_pairs import Pairs, similarities, unit_rows
from tutelage.evaluation.inputs import Floats
from tutelage.evaluation.significance import (
    EXAMPLES_ONLY,
    Comparison,
    Estimate,
    Spread,
    crossed_spreads,
    t_interval,
)

TEXTS_BOOTSTRAP = "texts bootstrapped (pairs share them), crossed with seeds, Satterthwaite t"

Kind = Literal["spearman", "pearson"]


def pair_similarities(embeddings: NDArray[Any], pairs: Pairs) -> Floats:
    """Cosines ``[P]`` of the pairs' texts; a text whose embedding is all zeros is unlike every other (0).

    Args:
        embeddings: ``[N, D]``, one row for each text that the pairs were drawn from.
        pairs: of `pairs_of`.

    Raises:
        DataError: another number of rows than the pairs have texts, NaN or infinite values.
    """
    unit_ND = unit_rows(embeddings, "the embeddings")
    if len(unit_ND) != pairs.texts:
        raise DataError(
            f"{len(unit_ND):,} embeddings for pairs of {pairs.texts:,} texts: other texts would be compared; embed the "
            "texts that the pairs were drawn from, in their order"
        )
    return similarities(unit_ND, pairs.first, pairs.second)


def correlation(teacher: NDArray[Any], students: NDArray[Any], kind: Kind = "spearman") -> Floats:
    """Correlation ``[S]`` of each seed's similarities ``[S, P]`` with the teacher's ``[P]``, ties at middle ranks.

    A student that gives every pair one similarity orders nothing, and gets 0.

    Raises:
        DataError: other shapes, values that are not finite, or a teacher that gives every pair one similarity.
    """
    teacher_P, students_SP = _checked(teacher, students, "students")
    return _Correlation(teacher_P, students_SP, kind)(np.ones(len(teacher_P)))


def similarity_agreement(
    teacher: NDArray[Any],
    students: NDArray[Any],
    pairs: Pairs,
    *,
    kind: Kind = "spearman",
    confidence: float = 0.95,
    resamples: int = 500,
    seed: int = 0,
) -> Estimate:
    """The mean over seeds of :func:`correlation`, with its interval over other seeds and other texts.

    The *texts* are drawn again with replacement, alike for every seed, and a pair counts as often as its two texts'
    draws multiply to. Such a weight has three times the variance of a pair's own draw (Owen 2007), while a text that
    pairs share is counted rightly; so twice the variance of a bootstrap over pairs is taken off, and no less than
    that of a bootstrap over pairs is left. Variance between seeds joins as in `bootstrap_interval`, with N − 1 degrees
    of freedom for the N texts that stand in a pair. A bootstrap over pairs alone is too narrow where texts stand in
    many pairs; the tests show it. With few texts this one is too narrow as well: with all pairs of 30 to 60 texts, 95%
    covered 84% to 92% in simulations; hold out some hundreds.

    Args:
        teacher: cosines ``[P]``, of `pair_similarities`.
        students: ``[S, P]``, one row a seed.
        pairs: that they are of.
        kind: by ranks, or of the values themselves (Pearson).
        confidence: nominal coverage, 0 … 1.
        resamples: bootstrap draws; 500 leave about 3% of noise in the width.
        seed: of the draws.

    Returns:
        ``examples`` is the number of texts; the interval is cut at −1 and 1.

    Raises:
        DataError: as :func:`correlation`; too few pairs for a resample to have two different ones.
        ConfigError: fewer than two resamples, or ``confidence`` out of range.
    """
    teacher_P, students_SP = _checked(teacher, students, "students", pairs)
    compute = _Correlation(teacher_P, students_SP, kind)
    value_S = compute(np.ones(len(teacher_P)))
    texts = _texts(pairs)
    spreads = _spreads(value_S, *_resampled([compute], pairs, resamples, seed), texts)
    method = f"{EXAMPLES_ONLY}, texts bootstrapped" if len(value_S) == 1 else TEXTS_BOOTSTRAP
    mean = float(value_S.mean())
    interval = t_interval(mean, spreads, confidence, method)
    low, high = max(-1.0, interval.low), min(1.0, interval.high)
    return Estimate(mean, low, high, interval.df, interval.method, len(value_S), texts, confidence)


def agreement_difference(
    teacher: NDArray[Any],
    a: NDArray[Any],
    b: NDArray[Any],
    pairs: Pairs,
    *,
    kind: Kind = "spearman",
    confidence: float = 0.95,
    resamples: int = 500,
    seed: int = 0,
) -> Comparison:
    """Arm a's agreement with the teacher minus arm b's, on the same seeds, texts and pairs.

    Args:
        teacher, pairs, kind, confidence, resamples, seed: as for :func:`similarity_agreement`.
        a: similarities ``[S, P]``, or ``[1, P]`` of an arm with one model.
        b: likewise; seed s of both arms shares initialisation and data order.

    Raises:
        DataError, ConfigError: as :func:`similarity_agreement`; other seeds in a than in b.
    """
    teacher_P, a_SP = _checked(teacher, a, "a", pairs)
    _, b_SP = _checked(teacher, b, "b", pairs)
    if len(a_SP) != len(b_SP) and 1 not in (len(a_SP), len(b_SP)):
        raise DataError(
            f"cannot pair {len(a_SP)} seeds with {len(b_SP)}: differences would be taken between other seeds; give the "
            "same seeds of both arms, or one model"
        )
    both = [_Correlation(teacher_P, a_SP, kind), _Correlation(teacher_P, b_SP, kind)]
    everything = np.ones(len(teacher_P))
    value_S = both[0](everything) - both[1](everything)
    texts = _texts(pairs)
    spreads = _spreads(value_S, *_resampled(both, pairs, resamples, seed), texts)
    method = f"{EXAMPLES_ONLY}, texts bootstrapped" if len(value_S) == 1 else TEXTS_BOOTSTRAP
    difference = float(value_S.mean())
    interval = t_interval(difference, spreads, confidence, "paired: " + method)
    return Comparison(
        metric=kind,
        higher_is_better=True,
        difference=difference,
        low=max(-2.0, interval.low),
        high=min(2.0, interval.high),
        p_value=interval.p_value,
        method=interval.method,
        seeds=len(value_S),
        examples=texts,
        confidence=confidence,
    )


class _Correlation:
    """Correlations ``[S]`` with the teacher under weights of the pairs, which do not change the order of values."""

    def __init__(self, teacher_P: Floats, students_SP: Floats, kind: Kind) -> None:
        if kind not in ("spearman", "pearson"):
            raise ConfigError(f"a correlation of kind {kind!r}, expected 'spearman' or 'pearson': there is no other")
        if float(np.ptp(teacher_P)) == 0.0:
            raise DataError(
                "the teacher gives every pair one similarity, expected at least two different ones: no correlation "
                "with it has a value; draw pairs over its range (pairs_of), and check that its embeddings differ"
            )
        self.kind = kind
        self.rows = [teacher_P, *students_SP]
        self.places = [np.unique(row, return_inverse=True)[1] for row in self.rows] if kind == "spearman" else []

    def __call__(self, weight_P: Floats) -> Floats:
        rows = [_weighted_ranks(places, weight_P) for places in self.places] if self.places else self.rows
        values_RP = np.stack(rows)
        total = max(float(weight_P.sum()), 1.0)
        centred_RP = values_RP - (values_RP @ weight_P / total)[:, None]
        square_R = np.square(centred_RP) @ weight_P
        together_S = (centred_RP[1:] * weight_P) @ centred_RP[0]
        # rounding leaves a constant row a variance of 1e-32 that would pass for an order
        varies_R = square_R > 1e-24 * total * np.square(values_RP).max(axis=1)
        if not varies_R[0]:
            raise DataError(
                f"a resample of {len(weight_P):,} pairs has no two different similarities: there are too few pairs or "
                "texts for an interval; draw more"
            )
        scale_S = np.sqrt(square_R[0] * square_R[1:])
        return np.divide(together_S, scale_S, out=np.zeros_like(scale_S), where=varies_R[1:])


def _weighted_ranks(places: NDArray[np.int64], weight_P: Floats) -> Floats:
    """Middle ranks, up to a constant, in the data where pair p stands ``weight[p]`` times."""
    weight_G = np.bincount(places, weights=weight_P)
    return (np.cumsum(weight_G) - 0.5 * weight_G)[places]


def _checked(
    teacher: NDArray[Any], students: NDArray[Any], name: str, pairs: Pairs | None = None
) -> tuple[Floats, Floats]:
    teacher_P, students_SP = np.asarray(teacher, dtype=np.float64), np.asarray(students, dtype=np.float64)
    count = teacher_P.size if pairs is None else len(pairs)
    if teacher_P.shape != (count,) or students_SP.ndim != 2 or students_SP.shape[1] != count or not students_SP.size:
        raise DataError(
            f"similarities of shapes {list(teacher_P.shape)} (teacher) and {list(students_SP.shape)} ({name}), "
            f"expected [P] and [S, P] with P = {count:,} pairs: other pairs would be compared; give pair_similarities, "
            "one row a seed"
        )
    if not (np.isfinite(teacher_P).all() and np.isfinite(students_SP).all()):
        raise DataError(
            f"similarities of the teacher or of {name} are NaN or infinite: they would be ranked anywhere; find out "
            "which embeddings overflow"
        )
    return teacher_P, students_SP


def _texts(pairs: Pairs) -> int:
    return len(np.unique(np.concatenate([pairs.first, pairs.second])))


def _resampled(
    computed: list[_Correlation], pairs: Pairs, resamples: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """``[R, S]`` of the first correlation, less any second, over drawn texts and over drawn pairs."""
    if resamples < 2:
        raise ConfigError(f"{resamples} resamples, expected 2 or more (500 serve well): their spread is the interval")
    drawn = np.random.default_rng(seed)
    present, places = np.unique(np.concatenate([pairs.first, pairs.second]), return_inverse=True)
    one, other = places[: len(pairs)], places[len(pairs) :]

    def values(weight_P: Floats) -> Floats:
        found = [compute(weight_P) for compute in computed]
        return found[0] - found[1] if len(found) == 2 else found[0]

    def counts(size: int) -> Floats:
        return np.bincount(drawn.integers(size, size=size), minlength=size).astype(np.float64)

    over_texts: list[Floats] = []
    over_pairs: list[Floats] = []
    for _ in range(resamples):
        count_N = counts(len(present))
        over_texts.append(values(count_N[one] * count_N[other]))
        over_pairs.append(values(counts(len(pairs))))
    return np.stack(over_texts), np.stack(over_pairs)


def _spreads(value_S: Floats, texts_RS: Floats, pairs_RS: Floats, texts: int) -> list[Spread]:
    if float(np.ptp(texts_RS)) <= 1e-12:
        return []
    seeds = len(value_S)
    mean_texts_R, mean_pairs_R = texts_RS.mean(axis=1), pairs_RS.mean(axis=1)
    texts_part = _without_thrice(mean_texts_R.var(ddof=1), mean_pairs_R.var(ddof=1))
    if seeds == 1:
        return [Spread(texts_part, texts - 1.0)]
    rest_S = _without_thrice(
        (texts_RS - mean_texts_R[:, None]).var(axis=0, ddof=1), (pairs_RS - mean_pairs_R[:, None]).var(axis=0, ddof=1)
    )
    residual_part = float(np.sum(rest_S)) / (seeds * (seeds - 1))
    return crossed_spreads(float(value_S.var(ddof=1)) / seeds, float(texts_part), residual_part, seeds, texts)


def _without_thrice(over_texts: Any, over_pairs: Any) -> Any:
    """The variance over texts with a pair's own part counted once; products of draws count it three times."""
    return np.maximum(over_texts - 2.0 * over_pairs, over_pairs)
