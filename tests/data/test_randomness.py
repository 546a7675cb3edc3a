"""Draws: augmentation randomness as a function of (seed, epoch, id)."""

from __future__ import annotations

import numpy as np
import torch
from scipy import stats

from tutelage.data import Draws

IDS = torch.arange(20_000) * 7919 - 50_000


def _splitmix_finaliser(z: int) -> int:
    mask = 2**64 - 1
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def test_bits_against_whole_numbers():
    """NumPy's 64-bit arithmetic wraps silently: one wrong dtype would make the draws platform-dependent."""
    from hashlib import blake2b

    draws = Draws(seed=3, epoch=5, ids=torch.tensor([-17, 4]))
    name = int.from_bytes(blake2b(b"3|5|crop", digest_size=8).digest(), "little")
    for row, content_id in enumerate((-17, 4)):
        key = _splitmix_finaliser((content_id % 2**64) ^ name)
        for column in range(3):
            counter = (column + 1) * 0x9E3779B97F4A7C15
            expected = _splitmix_finaliser(_splitmix_finaliser((key + counter) % 2**64) ^ key)
            assert int(draws.bits("crop", 3)[row, column]) == expected


def test_same_in_any_batch_and_order():
    """Draws that depended on the batch would differ between a teacher's pass and a student's, and between workers."""
    whole = Draws(1, 2, IDS[:100]).uniform("s", 4)
    rows = torch.randperm(100, generator=torch.Generator().manual_seed(0))[:31]
    assert torch.equal(Draws(1, 2, IDS[rows]).uniform("s", 4), whole[rows])


def test_seed_epoch_stream_and_id_each_matter():
    """An epoch that drew as the last one did would be no augmentation at all, and nothing would show it."""
    base = Draws(1, 2, IDS[:50]).uniform("s", 2)
    for other in (Draws(2, 2, IDS[:50]), Draws(1, 3, IDS[:50]), Draws(1, 2, IDS[50:100]), Draws(12, 0, IDS[:50])):
        assert not torch.isclose(other.uniform("s", 2), base).any()
    assert not torch.equal(Draws(1, 2, IDS[:50]).uniform("t", 2), base)


def test_the_global_generators_are_not_touched():
    """A view that drew from the global state would make a resumed run another run."""
    torch.manual_seed(0)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    Draws(0, 0, IDS).normal("s", 3)
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()  # noqa: NPY002


def test_uniform_is_uniform():
    """A biased generator would shift every crop the same way; p-values are of fixed seeds, so this cannot flicker."""
    values = Draws(0, 0, IDS).uniform("s", 3).numpy()
    assert values.min() >= 0
    assert values.max() < 1
    for column in values.T:
        counts = np.bincount((column * 64).astype(int), minlength=64)
        assert stats.chisquare(counts).pvalue > 1e-3


def test_draws_are_independent_of_each_other_of_epochs_and_of_neighbouring_ids():
    """Correlated draws would tie, say, a flip to a shift: the student would see a quarter of the views it should."""
    ids = torch.arange(20_000)  # consecutive ids are the hardest for a counter-based generator
    here, later = Draws(0, 0, ids).uniform("s", 2).numpy(), Draws(0, 1, ids).uniform("s", 2).numpy()
    pairs = [
        (here[:, 0], here[:, 1]),
        (here[:, 0], later[:, 0]),
        (here[:-1, 0], here[1:, 0]),
        (here[:, 0], Draws(0, 0, ids).uniform("t")[:, 0].numpy()),
        (here[:, 0], Draws(1, 0, ids).uniform("s")[:, 0].numpy()),
    ]
    for a, b in pairs:
        table = np.histogram2d(a, b, bins=8, range=[[0, 1], [0, 1]])[0]
        assert stats.chisquare(table.ravel()).pvalue > 1e-3
        assert stats.pearsonr(a, b).pvalue > 1e-3


def test_integers_reach_both_ends_evenly():
    """An end left out would make a shift of ±2 one of −2…1: an image that drifts up and to the left."""
    values = Draws(0, 0, IDS).integers("s", -2, 2).flatten()
    counts = torch.stack([(values == k).sum() for k in range(-2, 3)]).numpy()
    assert values.dtype is torch.int64
    assert counts.sum() == len(IDS)
    assert stats.chisquare(counts).pvalue > 1e-3
    assert (Draws(0, 0, IDS).integers("s", 4, 4) == 4).all()


def test_normal_moments_and_shape():
    """Box–Muller with one of its two uniforms reused keeps the variance and loses the shape."""
    values = Draws(0, 0, IDS).normal("s", 2).numpy().astype(np.float64)
    assert np.isfinite(values).all()
    for column in values.T:
        assert stats.kstest(column, "norm").pvalue > 1e-3
        assert abs(column.mean()) < 4 / np.sqrt(len(column))
        assert abs(column.var() - 1) < 4 * np.sqrt(2 / len(column))
        assert abs(stats.kurtosis(column)) < 4 * np.sqrt(24 / len(column))
    assert stats.pearsonr(values[:, 0], values[:, 1]).pvalue > 1e-3
