"""Retrieval with embeddings, query by query: recall@k, nDCG@k and reciprocal rank, exact and fair to ties.

A student that has collapsed gives every text one score, and a sort would leave the corpus in its own order: where the
answers
come first there, it would look perfect. Ties are therefore scored by what a random order of them gives on average,
which is
exact and draws nothing.

References: Järvelin & Kekäläinen, ACM TOIS 20 (2002), for nDCG; McSherry & Najork, "Computing Information Retrieval
    Performance
Measures Efficiently in the Presence of Tied Scores" (ECIR 2008).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import ConfigError, DataError
from tutelage.evaluation.embeddings_pairs import unit_rows
from tutelage.evaluation.inputs import Floats, Ints
from tutelage.evaluation.significance import Comparison, Estimate, crossed_interval, paired_comparison

#: Scores nearer than this are one: equal embeddings differ by float64 rounding, unequal float32 ones by far more.
_TIE = 1e-12


def retrieval_scores(
    queries: NDArray[Any],
    corpus: NDArray[Any],
    relevant: Sequence[Collection[int]],
    *,
    ks: Sequence[int] = (1, 5, 10),
    own: Sequence[int] | NDArray[Any] | None = None,
    chunk: int = 256,
) -> dict[str, Floats]:
    """Score the ranking of the corpus by cosine for each query.

    Args:
        queries: embeddings ``[Q, D]``.
        corpus: embeddings ``[M, D]``.
        relevant: the rows of the corpus that answer each query; all count alike.
        ks: ranks at which recall and nDCG are cut.
        own: the row of the corpus that is each query itself, which is not retrieved; −1 for none. None: no query is in
            the corpus.
        chunk: queries that are multiplied at a time.

    Returns:
        ``recall@k`` (share of a query's answers among the first k), ``ndcg@k`` for each k, and ``mrr`` (1 / rank of the
        first answer), one value a query ``[Q]``, 0 … 1. The score of a collapsed encoder is that of guessing.

    Raises:
        DataError: other shapes, NaN, a query without answers, answers that are not in the corpus, twice the same, or
            the query itself.
        ConfigError: a k below 1, or none.
    """
    queries_QD, corpus_MD = unit_rows(queries, "the queries"), unit_rows(corpus, "the corpus")
    if queries_QD.shape[1] != corpus_MD.shape[1]:
        raise DataError(
            f"queries of width {queries_QD.shape[1]:,} and a corpus of width {corpus_MD.shape[1]:,}: there is no "
            "cosine between them; embed both with one encoder"
        )
    if not ks or min(ks) < 1:
        raise ConfigError(f"ks = {list(ks)}, expected ranks of 1 or more: there is no rank 0; give (1, 5, 10), say")
    own_Q = np.full(len(queries_QD), -1) if own is None else np.asarray(own)
    answers = _checked_answers(relevant, own_Q, len(queries_QD), len(corpus_MD))
    discounts = np.concatenate([[0.0], np.cumsum(1.0 / np.log2(np.arange(2, max(ks) + 2)))])
    values: dict[str, list[float]] = {name: [] for name in _names(ks)}
    for start in range(0, len(queries_QD), chunk):
        score_KM = queries_QD[start : start + chunk] @ corpus_MD.T
        for offset, score_M in enumerate(score_KM):
            query = start + offset
            if own_Q[query] >= 0:
                score_M[own_Q[query]] = -np.inf
            levels = _levels(score_M, answers[query])
            for k in ks:
                values[f"recall@{k}"].append(_recall(levels, len(answers[query]), k))
                values[f"ndcg@{k}"].append(_ndcg(levels, len(answers[query]), k, discounts))
            values["mrr"].append(_reciprocal_rank(levels[0]))
    return {name: np.array(column) for name, column in values.items()}


def retrieval_estimates(scores: Sequence[Mapping[str, NDArray[Any]]], confidence: float = 0.95) -> dict[str, Estimate]:
    """Each measure's mean with its interval over other seeds and other queries; the corpus is taken as it is.

    Queries count as independent draws: where several are of one source (two glosses of a synset, say), the intervals
    are too narrow; keep one of each.

    Args:
        scores: of :func:`retrieval_scores`, one mapping a seed, on the same queries.
        confidence: nominal coverage, 0 … 1.

    Raises:
        DataError: no seed, or other measures or queries in one than in another.
    """
    return {name: crossed_interval(scores_SQ, confidence) for name, scores_SQ in _stacked(scores).items()}


def retrieval_differences(
    a: Sequence[Mapping[str, NDArray[Any]]], b: Sequence[Mapping[str, NDArray[Any]]], confidence: float = 0.95
) -> dict[str, Comparison]:
    """Each measure of encoder a minus encoder b, query by query (`paired_comparison`).

    Args:
        a: of :func:`retrieval_scores`, one mapping a seed, or one for an encoder with one model (the teacher).
        b: likewise, on the same queries.
        confidence: nominal coverage, 0 … 1.

    Raises:
        DataError: as :func:`retrieval_estimates`; other seeds in a than in b.
    """
    a_by_name, b_by_name = _stacked(a), _stacked(b)
    if a_by_name.keys() != b_by_name.keys():
        raise DataError(
            f"measures {', '.join(a_by_name)} of a and {', '.join(b_by_name)} of b, expected the same: some would be "
            "left out; score both with the same ks"
        )
    return {
        name: paired_comparison(a_by_name[name], b_by_name[name], name, higher_is_better=True, confidence=confidence)
        for name in a_by_name
    }


class _Level(NamedTuple):
    """Scores that are one: ``above`` it, ``tied`` in it, and how many of these are ``answers``."""

    above: int
    tied: int
    answers: int


def _names(ks: Sequence[int]) -> list[str]:
    return [f"recall@{k}" for k in ks] + [f"ndcg@{k}" for k in ks] + ["mrr"]


def _checked_answers(relevant: Sequence[Collection[int]], own_Q: NDArray[Any], queries: int, rows: int) -> list[Ints]:
    if len(relevant) != queries or own_Q.shape != (queries,) or own_Q.max() >= rows:
        raise DataError(
            f"{len(relevant):,} sets of answers and own rows {list(own_Q.shape)} for {queries:,} queries in a corpus "
            f"of {rows:,}: other queries' answers would count; give one set (and one row of the corpus, or −1) a query"
        )
    answers: list[Ints] = []
    for query, wanted in enumerate(relevant):
        found = np.array(sorted(wanted), dtype=np.int64)
        if not len(found) or found[0] < 0 or found[-1] >= rows or len(np.unique(found)) < len(found):
            raise DataError(
                f"query {query} has the answers {found[:8].tolist()}, expected one or more different rows of the "
                f"corpus, 0 to {rows - 1:,}: its recall has no value; leave out queries without answers"
            )
        if own_Q[query] in found:
            raise DataError(
                f"query {query} is its own answer (row {own_Q[query]} of the corpus), which is not retrieved: it could "
                "never be found; take it out of its answers"
            )
        answers.append(found)
    return answers


def _levels(score_M: Floats, answers: Ints) -> list[_Level]:
    """The levels of the answers' scores, highest first."""
    wanted = np.sort(score_M[answers])[::-1]
    breaks = np.flatnonzero(wanted[:-1] - wanted[1:] > _TIE) + 1
    levels: list[_Level] = []
    for level in np.split(wanted, breaks):
        above = int((score_M > level[0] + _TIE).sum())
        tied = int((score_M >= level[-1] - _TIE).sum()) - above
        levels.append(_Level(above, tied, len(level)))
    return levels


def _recall(levels: list[_Level], answers: int, k: int) -> float:
    return sum(level.answers * min(max(k - level.above, 0), level.tied) / level.tied for level in levels) / answers


def _ndcg(levels: list[_Level], answers: int, k: int, discounts: Floats) -> float:
    gain = sum(
        level.answers / level.tied * (discounts[min(level.above + level.tied, k)] - discounts[min(level.above, k)])
        for level in levels
    )
    return float(gain / discounts[min(answers, k)])


def _reciprocal_rank(level: _Level) -> float:
    """The mean of 1 / rank of the first of r answers in a random order of t ties, below those above it.

    The first is at place j with probability r/t · ∏ᵢ₌₁ʲ⁻¹ (t − i − r + 1) / (t − i).
    """
    above, tied, answers = level
    passed = np.arange(1, tied - answers + 1)
    chance = answers / tied * np.cumprod(np.concatenate([[1.0], (tied - passed - answers + 1) / (tied - passed)]))
    return float((chance / (above + np.arange(1, len(chance) + 1))).sum())


def _stacked(scores: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, Floats]:
    if not scores or any(
        seed.keys() != scores[0].keys() or any(seed[name].shape != scores[0][name].shape for name in seed)
        for seed in scores
    ):
        raise DataError(
            f"scores of {len(scores)} seeds with unlike measures or numbers of queries, expected one mapping of "
            "retrieval_scores for each seed, all of the same queries: other queries would be compared"
        )
    return {name: np.stack([np.asarray(seed[name], dtype=np.float64) for seed in scores]) for name in scores[0]}
