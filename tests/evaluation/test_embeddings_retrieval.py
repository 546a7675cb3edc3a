"""Retrieval: loops over sorted lists, all orders of ties, scikit-learn's nDCG, and a collapsed encoder's chance."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from tutelage.errors import ConfigError, DataError
from tutelage.evaluation import crossed_interval, paired_comparison
from tutelage.evaluation.embeddings_retrieval import retrieval_differences, retrieval_estimates, retrieval_scores

KS = (1, 3, 5)


def of_a_ranking(ranking, answers):
    """The measures of one ranked list of rows, counted along it."""
    gains = [1.0 if row in answers else 0.0 for row in ranking]
    scores = {}
    for k in KS:
        scores[f"recall@{k}"] = sum(gains[:k]) / len(answers)
        best = sum(1 / np.log2(rank + 2) for rank in range(min(k, len(answers))))
        scores[f"ndcg@{k}"] = sum(gain / np.log2(rank + 2) for rank, gain in enumerate(gains[:k])) / best
    scores["mrr"] = 1 / (1 + gains.index(1.0))
    return scores


def over_all_orders(scores, answers):
    """The mean over every order of the corpus that the scores allow."""
    orders = [p for p in permutations(range(len(scores))) if all(np.diff([scores[row] for row in p]) <= 0)]
    found = [of_a_ranking(order, answers) for order in orders]
    return {name: np.mean([one[name] for one in found]) for name in found[0]}


def test_without_ties_it_is_what_a_sorted_list_gives():
    """An index off by one is a rank off by one in every query."""
    rng = np.random.default_rng(0)
    queries, corpus = rng.normal(size=(20, 5)), rng.normal(size=(30, 5))
    relevant = [rng.choice(30, size=rng.integers(1, 8), replace=False).tolist() for _ in range(20)]
    got = retrieval_scores(queries, corpus, relevant, ks=KS, chunk=7)
    for query in range(20):
        cosine = corpus @ queries[query] / np.linalg.norm(corpus, axis=1)
        expected = of_a_ranking(np.argsort(-cosine), relevant[query])
        for name, value in expected.items():
            assert got[name][query] == pytest.approx(value), name
    assert list(got) == ["recall@1", "recall@3", "recall@5", "ndcg@1", "ndcg@3", "ndcg@5", "mrr"]


def test_ties_are_scored_by_every_order_of_them():
    """Broken by the corpus's own order, a tie is won by whoever stands first in the file."""
    # cosines with the query: two at 1, three at 0, one at −1
    corpus = np.array([[1, 0], [0, 1], [2, 0], [0, -1], [-1, 0], [0, 3]], dtype=float)
    query = np.array([[1.0, 0.0]])
    cosine = corpus[:, 0] / np.linalg.norm(corpus, axis=1)
    for answers in ([0], [1], [1, 5], [0, 3, 4], [4], [1, 3, 5], [0, 1, 2, 3, 4, 5]):
        got = retrieval_scores(query, corpus, [answers], ks=KS)
        for name, value in over_all_orders(cosine, answers).items():
            assert got[name][0] == pytest.approx(value), (name, answers)


def test_ndcg_is_scikit_learns_ties_included():
    """An implementation of its own, whose ties are averaged too."""
    rng = np.random.default_rng(1)
    corpus = rng.integers(-1, 2, size=(25, 2)) + np.array([[0.0, 1.5]])
    query = np.array([[0.3, 1.0]])
    answers = [1, 4, 9, 16]
    cosine = corpus @ query[0] / np.linalg.norm(corpus, axis=1)
    truth = np.isin(np.arange(25), answers).astype(float)
    got = retrieval_scores(query, corpus, [answers], ks=(5, 10))
    for k in (5, 10):
        assert got[f"ndcg@{k}"][0] == pytest.approx(ndcg_score(truth[None], cosine.round(12)[None], k=k))


def test_a_collapsed_encoder_has_the_score_of_guessing():
    """Sorted, equal scores leave the corpus in its order, and answers that come first there would all be found."""
    got = retrieval_scores(np.ones((2, 3)), np.ones((50, 3)), [[0], [0, 1]], ks=(1, 10))
    np.testing.assert_allclose(got["recall@1"], [0.02, 0.02])
    np.testing.assert_allclose(got["recall@10"], [0.2, 0.2])
    assert got["mrr"][0] == pytest.approx(np.mean(1 / np.arange(1, 51)))
    zeros = retrieval_scores(np.zeros((1, 3)), np.ones((50, 3)), [[0]], ks=(10,))
    assert zeros["recall@10"][0] == pytest.approx(0.2)


def test_equal_texts_are_ties_wherever_they_stand():
    """Float32 products of equal rows differ by where they stand in a matrix, and one would seem nearer."""
    rng = np.random.default_rng(2)
    corpus = rng.normal(size=(301, 33)).astype(np.float32)
    corpus[300] = corpus[7]
    query = (corpus[7:8] + 0.01 * rng.normal(size=(1, 33))).astype(np.float32)
    for answer in (7, 300):
        assert retrieval_scores(query, corpus, [[answer]], ks=(1,))["recall@1"][0] == 0.5


def test_a_query_in_the_corpus_does_not_find_itself():
    """Itself is always nearest: every other answer would be a rank too low."""
    rng = np.random.default_rng(3)
    corpus = rng.normal(size=(12, 4))
    relevant = [[(row + 1) % 12] for row in range(12)]
    got = retrieval_scores(corpus, corpus, relevant, ks=KS, own=np.arange(12))
    for row in range(12):
        rest = [other for other in range(12) if other != row]
        without = retrieval_scores(corpus[row : row + 1], corpus[rest], [[rest.index((row + 1) % 12)]], ks=KS)
        for name in got:
            assert got[name][row] == pytest.approx(without[name][0])
    loose = retrieval_scores(corpus[:1], corpus, [[1]], own=[-1])
    assert loose["mrr"][0] <= 0.5


def test_estimates_and_differences_are_by_query_and_seed():
    """Means of means would lose the queries, and a gain on twelve of them would look as sure as on twelve thousand."""
    rng = np.random.default_rng(4)
    corpus = rng.normal(size=(40, 6))
    relevant = [[row] for row in range(25)]

    def scores(noise):
        return retrieval_scores(corpus[:25] + noise * rng.normal(size=(25, 6)), corpus, relevant, ks=(1,))

    good, bad = [scores(0.3) for _ in range(3)], [scores(1.5) for _ in range(3)]
    estimates = retrieval_estimates(good)
    assert estimates["mrr"] == crossed_interval(np.stack([seed["mrr"] for seed in good]))
    gains = retrieval_differences(good, bad)
    expected = paired_comparison(
        np.stack([seed["recall@1"] for seed in good]),
        np.stack([seed["recall@1"] for seed in bad]),
        "recall@1",
        higher_is_better=True,
    )
    assert gains["recall@1"] == expected
    assert gains["ndcg@1"].gain[0] > 0.0
    assert retrieval_differences(good[:1], bad)["mrr"].seeds == 3
    with pytest.raises(DataError, match="unlike measures"):
        retrieval_estimates([good[0], {name: values[:3] for name, values in good[1].items()}])
    with pytest.raises(DataError, match="expected the same"):
        retrieval_differences(good, [{"mrr": good[0]["mrr"]}])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"relevant": [[0], []]}, "query 1 has the answers"),
        ({"relevant": [[0], [9]]}, "query 1 has the answers"),
        ({"relevant": [[0], [1, 1]]}, "query 1 has the answers"),
        ({"relevant": [[0]]}, "1 sets of answers"),
        ({"own": [2, 1]}, "query 1 is its own answer"),
        ({"own": [2]}, "own rows"),
        ({"own": [2, 9]}, "own rows"),
        ({"queries": np.ones((2, 3))}, "no cosine between them"),
        ({"queries": np.full((2, 4), np.nan)}, "2 of 2 rows hold NaN"),
    ],
)
def test_what_has_no_score_is_refused(change, words):
    """Each of these would be a number all the same, of other answers or of none."""
    given = {"queries": np.ones((2, 4)), "corpus": np.eye(4), "relevant": [[0], [1]], **change}
    with pytest.raises(DataError, match=words):
        retrieval_scores(**given)
    with pytest.raises(ConfigError, match="ranks of 1 or more"):
        retrieval_scores(np.ones((2, 4)), np.eye(4), [[0], [1]], ks=(0, 5))
