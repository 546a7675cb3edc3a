"""Pairs of held-out texts: each at most once, over the range of similarity, and the same every time."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from tutelage.errors import ConfigError, DataError
from tutelage.evaluation import embeddings_pairs
from tutelage.evaluation.embeddings import pair_similarities
from tutelage.evaluation.embeddings_pairs import _decoded, pairs_of


def topics(texts=120, groups=30, width=64, seed=0):
    """Texts of a few to a topic: nearly every pair is unrelated."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(groups, width))
    return centres[np.arange(texts) % groups] + rng.uniform(0.1, 1.5, size=(texts, 1)) * rng.normal(size=(texts, width))


@pytest.mark.parametrize("texts", [2, 3, 7])
def test_numbers_stand_for_all_pairs_in_order(texts):
    """A slip by one pairs a text with itself, whose similarity is 1 to every encoder."""
    pairs = list(combinations(range(texts), 2))
    first, second = _decoded(np.arange(len(pairs)), texts)
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == pairs


def test_pairs_are_over_the_range_where_random_ones_are_unrelated():
    """On random pairs a correlation is about the order of similarities that mean nothing."""
    embeddings = topics()
    even, random = pairs_of(embeddings, 300, strata=10), pairs_of(embeddings, 300, strata=1)
    everything = pairs_of(embeddings, 7140, strata=1)
    cosine = pair_similarities(embeddings, everything)
    edges = np.linspace(cosine.min(), cosine.max(), 11)
    there = np.histogram(cosine, edges)[0]
    counts = np.histogram(pair_similarities(embeddings, even), edges)[0]
    assert counts.sum() == 300
    # each stratum gives its share or all that it has, and the rest is made up by the others alike
    full = counts[there > counts]
    assert full.max() - full.min() <= 1
    assert (counts <= there).all()
    high = np.histogram(pair_similarities(embeddings, random), edges)[0][5:].sum()
    assert counts[5:].sum() > 5 * max(high, 1)
    assert "evenly over 10 strata" in even.method
    assert "random pairs" in random.method


@pytest.mark.parametrize("strata", [1, 10])
def test_each_pair_is_drawn_once_and_by_the_seed_alone(strata):
    """A pair twice counts twice; another draw at each report moves the number."""
    embeddings = topics(40)
    pairs = pairs_of(embeddings, 200, seed=3, strata=strata)
    both = set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))
    assert len(both) == len(pairs) == 200
    assert (pairs.first < pairs.second).all()
    assert pairs.first.min() >= 0
    assert pairs.second.max() < 40 == pairs.texts
    again, other = pairs_of(embeddings, 200, seed=3, strata=strata), pairs_of(embeddings, 200, seed=4, strata=strata)
    np.testing.assert_array_equal(pairs.first, again.first)
    np.testing.assert_array_equal(pairs.second, again.second)
    assert not (np.array_equal(pairs.first, other.first) and np.array_equal(pairs.second, other.second))


def test_of_many_texts_the_similar_pairs_are_still_found(monkeypatch):
    """In a sample of millions of pairs the few similar ones are missing, and the upper strata would be empty."""
    monkeypatch.setattr(embeddings_pairs, "ALL_PAIRS", 1000)
    monkeypatch.setattr(embeddings_pairs, "SAMPLED", 500)
    monkeypatch.setattr(embeddings_pairs, "NEAREST", 3)
    monkeypatch.setattr(embeddings_pairs, "_CHUNK", 1000)
    embeddings = topics()
    pairs = pairs_of(embeddings, 200)
    assert len(set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))) == 200
    cosine = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    cosine = cosine @ cosine.T
    np.fill_diagonal(cosine, -1.0)
    drawn = pair_similarities(embeddings, pairs)
    assert drawn.max() > 0.9 * cosine.max()
    assert (drawn > 0.6).sum() >= 30
    assert "3 nearest and 500 random pairs" in pairs.method
    with pytest.raises(ConfigError, match="expected at most"):
        pairs_of(embeddings, 5000)


def test_texts_that_are_all_alike_still_have_pairs():
    """A collapsed teacher leaves a range of no width."""
    pairs = pairs_of(np.ones((6, 3)), 10)
    assert len(pairs) == 10


def test_more_pairs_than_there_are_is_refused():
    """Pairs would be drawn twice to make up the number."""
    with pytest.raises(DataError, match="11 pairs are asked for and 5 texts have 10"):
        pairs_of(topics(5), 11)
    for count, strata in ((0, 10), (5, 0)):
        with pytest.raises(ConfigError, match="1 or more of each"):
            pairs_of(topics(5), count, strata=strata)
