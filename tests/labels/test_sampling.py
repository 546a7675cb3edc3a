"""Draws and top-k of a teacher's distribution: what they estimate, and what they depend on."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.errors import ConfigError, TeacherError
from tutelage.labels import sampling
from tutelage.labels.sampling import drawn_apart, row_keys, row_slices, sample, top_k
from tutelage.labels.sparse_check import check_sparse
from tutelage.rows import row_count, some_rows
from tutelage.signals import HeadLogits, Logits, MixtureLogits, SparseTargets

#: Of examples 1 and 2 with two rows and one, seed 3, view 4: noted when the first stores were written.
KEYS = [7264697644592782577, -7580456215737315124, -1096377195928958864]
SCHEMES = pytest.mark.parametrize("scheme", ["systematic", "independent"])


def logits(rows, classes, spread=2.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, classes, generator=generator) * spread


def keys_of(rows, seed=0):
    return row_keys(torch.arange(rows), seed=seed)


def dense(targets):
    """``[N, C]`` of what is kept, 0 elsewhere."""
    whole = torch.zeros(targets.ids.shape[0], targets.classes, dtype=torch.float64)
    return whole.scatter_add_(1, targets.ids.clamp(min=0), targets.probs.double())


def softmax(z, temperature=1.0):
    z = np.asarray(z, np.float64) / temperature
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def stores(z, count, **options):
    """The same row drawn ``count`` times: float64 ``[count, C]``."""
    return dense(sample(Logits(z.expand(count, -1)), keys_of(count, seed=7), **options)).numpy()


@SCHEMES
@pytest.mark.parametrize(
    "options", [{}, {"temperature": 3.0}, {"temperature": 1.0, "drawn_at": 2.0}, {"temperature": 2.0, "drawn_at": 1.4}]
)
def test_the_forward_kl_gradient_is_unbiased(scheme, options):
    """The promise of random sampling KD: the mean over many stores is the exact gradient, within three standard errors of it.

    The gradient p·Σw − w is linear in w, here with a student's p of its own; a wrong weight or block would show in the mean.
    """
    z, p = logits(1, 150), softmax(logits(1, 150, seed=1))[0]
    w = stores(z, 4000, draws=12, scheme=scheme, **options)
    q = softmax(z, options.get("temperature", 1.0))[0]
    drawn_from = softmax(z, options.get("drawn_at", options.get("temperature", 1.0)))[0]
    # classes that come too seldom for a normal error are looked at together
    common = 4000 * 12 * drawn_from > 30
    joined = np.concatenate([np.eye(150)[common], ~common[None]])
    gradients, exact = (p * w.sum(-1, keepdims=True) - w) @ joined.T, (p - q) @ joined.T
    error = gradients.std(0, ddof=1) / math.sqrt(len(gradients))
    off = np.abs(gradients.mean(0) - exact) / (error + 1e-7)
    assert common.sum() > 70
    # three standard errors, but for the one in 370 that leaves them by chance; and their mean square is that of noise
    assert (off > 3).sum() <= 2
    assert off.max() < 4
    assert (off**2).mean() < 1.4
    along = gradients @ exact
    assert abs(along.mean() - exact @ exact) < 3 * along.std(ddof=1) / math.sqrt(len(along)) + 1e-6


def test_systematic_draws_vary_less_than_independent_ones():
    """Systematic counts are the two integers about n · q: in no class do they vary more than those of independent throws."""
    z = logits(1, 150)
    q = softmax(z)[0]
    even, thrown = (stores(z, 4000, draws=12, scheme=scheme) for scheme in ("systematic", "independent"))
    share = 12 * q - np.floor(12 * q)
    np.testing.assert_allclose(even.var(0), share * (1 - share) / 144, atol=4e-4)
    np.testing.assert_allclose(thrown.var(0), q * (1 - q) / 12, atol=4e-4)
    assert even.var(0).sum() < thrown.var(0).sum()
    assert (np.abs(even - q) <= (1 + 1e-5) / 12).all()


@SCHEMES
@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 9),
    classes=st.integers(1, 300),
    draws=st.integers(1, 60),
    spread=st.floats(0, 30),
    temperature=st.sampled_from([0.3, 1.0, 40.0]),
    seed=st.integers(0, 2**31),
)
def test_counts_are_whole_numbers_that_sum_to_the_draws(scheme, rows, classes, draws, spread, temperature, seed):
    z = logits(rows, classes, spread, seed)
    targets = sample(Logits(z), keys_of(rows, seed), temperature=temperature, draws=draws, scheme=scheme)
    counts = targets.probs.double() * draws
    torch.testing.assert_close(counts, counts.round(), rtol=0, atol=1e-4)
    assert (counts.round().sum(-1) == draws).all()
    assert ((counts.round() > 0) == (targets.ids >= 0)).all()
    assert (dense(targets).numpy()[softmax(z, temperature) < 1e-60] == 0).all()
    check_sparse(targets)


@SCHEMES
def test_draws_do_not_depend_on_the_batch(scheme, monkeypatch):
    """A label stored after a restart, in another batch or by another process, must be the one the first run would have stored."""
    z, keys = logits(37, 130), keys_of(37)
    whole = sample(Logits(z), keys, draws=9, scheme=scheme)
    order = torch.randperm(37, generator=torch.Generator().manual_seed(0))
    moved = sample(Logits(z[order]), keys[order], draws=9, scheme=scheme)
    torch.testing.assert_close(dense(moved), dense(whole)[order], rtol=0, atol=0)
    torch.manual_seed(123)
    alone = torch.cat([dense(sample(Logits(z[i : i + 1]), keys[i : i + 1], draws=9, scheme=scheme)) for i in range(37)])
    torch.testing.assert_close(alone, dense(whole), rtol=0, atol=0)
    for name in ("_AT_ONCE", "_IN_CACHE"):
        monkeypatch.setattr(sampling, name, 130 * 5)
        torch.testing.assert_close(dense(sample(Logits(z), keys, draws=9, scheme=scheme)), dense(whole), rtol=0, atol=0)
    # with two processes' worth of slices the small remainder comes last, in the same memory
    entropy = sample(Logits(z), keys, draws=9, scheme=scheme).entropy
    torch.testing.assert_close(entropy, whole.entropy)


def test_keys_tell_seed_example_view_and_row_apart():
    """Two rows with one key would get the same points: in a whole store of them the noise would no longer average away."""
    ids = torch.tensor([5, -9, 2**62])
    rows = torch.tensor([3, 1, 2])
    base = row_keys(ids, rows, seed=0)
    assert base.shape == (6,)
    others = [row_keys(ids, rows, seed=1), row_keys(ids, rows, seed=0, view=0), row_keys(ids, rows, seed=0, view=1)]
    assert len(torch.cat([base, *others]).unique()) == 24
    torch.testing.assert_close(row_keys(ids[1:], rows[1:], seed=0), base[3:])
    torch.testing.assert_close(row_keys(ids, seed=0), base[[0, 3, 4]])
    per_example = row_keys(ids, rows, seed=0, view=torch.tensor([0, 1, 0]))
    torch.testing.assert_close(per_example[3], row_keys(ids, rows, seed=0, view=1)[3])
    torch.testing.assert_close(per_example[:3], row_keys(ids, rows, seed=0, view=0)[:3])


def test_keys_stay_what_they_are():
    """A store is resumed by later versions of this code: other keys would mix two sets of draws in one store, unnoticed."""
    keys = row_keys(torch.tensor([1, 2]), torch.tensor([2, 1]), seed=3, view=4)
    assert keys.tolist() == KEYS


def test_points_are_uniform():
    """A start that avoids an end of the unit interval would bias the classes there."""
    systematic = sampling._points(keys_of(20000), 1, "systematic")[:, 0]
    independent = sampling._points(keys_of(400), 50, "independent").flatten()
    for points in (systematic, independent):
        assert (points >= 0).all()
        assert (points < 1).all()
        counts = torch.histc(points, 20, 0, 1)
        # 19 degrees of freedom: 43.8 is exceeded once in a thousand
        assert float((counts - 1000).square().sum() / 1000) < 43.8


@pytest.mark.parametrize("temperature", [0.2, 1.0, 3.0, 50.0])
def test_the_entropy_is_that_of_the_whole_row(temperature):
    """It makes a KL of a cross-entropy: wrong by a constant, a good student would seem bad, or better than its teacher."""
    z = logits(7, 200)
    z[2, 5:] = -math.inf
    z[3, 0] = 80.0
    q = softmax(z, temperature)
    expected = -(q * np.log(np.where(q > 0, q, 1))).sum(-1)
    for targets in (
        sample(Logits(z), keys_of(7), temperature=temperature),
        sample(Logits(z), keys_of(7), temperature=temperature, drawn_at=2.5),
        top_k(Logits(z), 5, temperature),
    ):
        np.testing.assert_allclose(targets.entropy, expected, rtol=1e-5, atol=1e-5)


def test_a_class_of_no_probability_is_never_drawn():
    """A padded vocabulary's classes, at the ends and between: a point that falls on their edge belongs to a neighbour."""
    z = torch.full((64, 200), -math.inf)
    z[:, 63:66] = 0.0
    z[:, 130] = -120.0
    targets = sample(Logits(z), keys_of(64), draws=300)
    assert set(targets.ids.unique().tolist()) <= {-1, 63, 64, 65}


@pytest.mark.parametrize(("point", "expected"), [(0.0, 70), (0.5, 130), (0.75, 191), (1.0, 191)])
def test_a_point_on_an_edge_falls_on_a_class_that_has_mass(point, expected):
    """Before 70, between the blocks and after 191 there is nothing to draw; 1 stands for a point that rounding moved to the end."""
    p = torch.zeros(1, 256)
    p[0, [70, 130, 191]] = torch.tensor([0.5, 0.25, 0.25])
    found = sampling._find(p, p.view(1, 4, 64).sum(-1), torch.tensor([[point]], dtype=torch.float64))
    assert found.item() == expected


@SCHEMES
def test_a_certain_row_keeps_one_class(scheme):
    z = torch.zeros(3, 100)
    z[:, 41] = 200.0
    targets = sample(Logits(z), keys_of(3), draws=50, scheme=scheme)
    assert targets.ids.tolist() == [[41]] * 3
    assert targets.probs.tolist() == [[1.0]] * 3


@pytest.mark.parametrize("k", [1, 5, 130, 500])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_top_k_keeps_the_most_probable(k, temperature):
    """Probabilities renormalised over the kept would tell the student that nothing else can happen."""
    z = logits(6, 130)
    targets = top_k(Logits(z), k, temperature)
    q = softmax(z, temperature)
    order = np.argsort(-q, axis=-1)[:, :k]
    np.testing.assert_array_equal(targets.ids, order)
    np.testing.assert_allclose(targets.probs, np.take_along_axis(q, order, -1), rtol=1e-5, atol=1e-9)
    check_sparse(targets)


def test_scores_are_made_dense_a_slice_of_rows_at_a_time(monkeypatch):
    """Whole, a head's logits are the very tensor that sparse targets exist to avoid."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(23, 4, generator=generator), torch.randn(70, 4, generator=generator)
    members = torch.randn(2, 23, 70, generator=generator)
    head, mixture = HeadLogits(hidden, weight), MixtureLogits(members, torch.tensor([0.3, 0.7]))
    heights = []
    monkeypatch.setattr(sampling, "_AT_ONCE", 70 * 4)
    for kind in (HeadLogits, MixtureLogits):
        plain = kind.at
        monkeypatch.setattr(kind, "at", lambda self, t, plain=plain: heights.append(row_count(self)) or plain(self, t))
    for scores in (head, mixture):
        targets = sample(scores, keys_of(23), temperature=2.0, draws=7)
        same = sample(Logits(scores.at(2.0)), keys_of(23), temperature=2.0, draws=7)
        torch.testing.assert_close(dense(targets), dense(same))
        torch.testing.assert_close(top_k(scores, 3, 2.0).probs, top_k(Logits(scores.at(2.0)), 3, 2.0).probs)
    assert sorted(set(heights)) == [3, 4, 23]
    assert heights.count(23) == 4  # the dense ones, made here


def test_scores_of_another_kind_are_sliced_too():
    class Doubled:
        classes = 5

        def at(self, temperature):
            return torch.arange(20.0).view(4, 5) * temperature

    scores = Doubled()
    assert row_count(scores) == 4
    torch.testing.assert_close(some_rows(scores, slice(1, 3)).at(2.0), scores.at(2.0)[1:3])
    assert some_rows(scores, slice(1, 3)).classes == 5
    assert [of for of, _ in row_slices(scores)] == [slice(0, 4)]


@pytest.mark.parametrize("kept", [None, 40, torch.arange(49, 9, -1)])
def test_what_slices_share_is_made_once(monkeypatch, kept):
    """A head converted, or a user's own scores made whole, for every slice: labelling time grows with the square of the rows."""
    weights, made = [], []

    class Counted:
        classes = 50

        def at(self, temperature):
            made.append(temperature)
            return values * temperature

    values = logits(30, 50)
    sampling_of = {"temperature": 2.0, "draws": 4, "drawn_at": 3.0}
    monkeypatch.setattr(sampling, "_AT_ONCE", 100)  # two rows
    sample(Counted(), keys_of(30), **sampling_of)
    assert made.count(2.0) == made.count(3.0) == 1
    head = HeadLogits(logits(30, 8), logits(50, 8, seed=1).bfloat16(), logits(1, 50)[0].bfloat16(), 1.5, 6.0, kept)
    plain = HeadLogits.at
    monkeypatch.setattr(HeadLogits, "at", lambda self, t: weights.append(self.weight) or plain(self, t))
    parts = [(part.at(1.0), plain(some_rows(head, of), 1.0)) for of, part in row_slices(head)]
    assert all(torch.equal(part, expected) for part, expected in parts)
    assert len(weights) >= 15
    assert len({weight.data_ptr() for weight in weights}) == 1
    assert weights[0].dtype == torch.float32


@pytest.mark.parametrize("bad", [[math.nan, 0.0, 0.0], [math.inf, 0.0, 0.0], [-math.inf] * 3])
def test_rows_that_are_no_distribution_are_refused(bad):
    """Drawn from all the same, a broken teacher's rows would be stored as good ones."""
    z = torch.zeros(9, 3)
    z[7] = torch.tensor(bad)
    for make in (lambda: sample(Logits(z), keys_of(9)), lambda: top_k(Logits(z), 2)):
        with pytest.raises(TeacherError, match=r"1 of 9 rows .* first row 7"):
            make()


def test_settings_are_checked():
    scores, keys = Logits(torch.zeros(2, 3)), keys_of(2)
    for options in ({"draws": 0}, {"scheme": "stratified"}, {"temperature": 0.0}, {"drawn_at": -1.0}):
        with pytest.raises(ConfigError, match=next(iter(options)) if "drawn_at" not in options else "temperature"):
            sample(scores, keys, **options)
    with pytest.raises(ConfigError, match="k is 0"):
        top_k(scores, 0)
    with pytest.raises(TeacherError, match="keys for 2 rows"):
        sample(scores, keys_of(3))


def test_no_rows_give_no_targets():
    none = sample(Logits(torch.zeros(0, 3)), keys_of(0))
    assert none.ids.shape[0] == none.probs.shape[0] == none.entropy.shape[0] == 0
    assert top_k(Logits(torch.zeros(0, 3)), 2).ids.shape[0] == 0


FAULTS = {
    "no class at all": ([[-1, -1]], [[0.0, 0.0]]),
    "outside 0 to 3": ([[4, 0]], [[0.4, 0.6]]),
    "the same class twice": ([[2, 2]], [[0.4, 0.4]]),
    "negative or not finite": ([[2, 1]], [[-0.1, 0.4]]),
    "in an unused place": ([[2, -1]], [[0.4, 0.4]]),
    "sum to more than 1": ([[2, 1]], [[0.9, 0.4]]),
    "more left over": ([[2, 1]], [[0.4, 0.1]]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_targets_from_elsewhere_are_looked_at(fault):
    """Each would train without an error: a class twice is taken from the rest twice, a renormalised row is no top-k at all."""
    ids, probs = (torch.tensor(one) for one in FAULTS[fault])
    targets = SparseTargets(
        torch.cat([torch.tensor([[0, 1]]), ids]), torch.cat([torch.tensor([[0.5, 0.4]]), probs]), 4, 1.0, "top_k"
    )
    with pytest.raises(TeacherError, match=f"1 of 2 rows .*{fault}.*first row 1"):
        check_sparse(targets)


@pytest.mark.parametrize("scheme", ["systematic", "independent"])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_draws_are_as_far_away_as_the_distribution_moved_under_them(scheme, temperature):
    """Too small, and another teacher passes for rounding; too large, and rounding passes for another teacher."""
    torch.manual_seed(0)
    logits, keys = torch.randn(6, 200) * 2, row_keys(torch.arange(6), seed=0)
    kept = sample(Logits(logits), keys, temperature=temperature, draws=16, scheme=scheme)
    assert drawn_apart(kept, Logits(logits), keys, draws=16, scheme=scheme).max() < 1e-6
    # without the most probable class all others move by what it had
    moved = logits.clone()
    moved[3, logits[3].argmax()] = -torch.inf
    found = drawn_apart(kept, Logits(moved), keys, draws=16, scheme=scheme)
    assert found[[0, 1, 2, 4, 5]].max() < 1e-6
    points = sampling._points(keys, 16, scheme)[3].tolist()
    drawn = sorted(
        one
        for one, share in zip(kept.ids[3].tolist(), kept.probs[3].tolist(), strict=True)
        for _ in range(round(share * 16))
    )
    now = (moved[3].double() / temperature).softmax(-1).tolist()
    furthest = 0.0
    for point, one in zip(points, drawn, strict=True):
        start = math.fsum(now[:one])
        furthest = max(furthest, start - point, point - start - now[one])
    assert float(found[3]) == pytest.approx(furthest, abs=1e-9)
    assert furthest > 0.01


def test_draws_made_at_another_temperature_are_known_again():
    """Their weights are no counts: divided by nothing they would never add up to the number of draws."""
    torch.manual_seed(0)
    logits, keys = torch.randn(6, 200) * 2, row_keys(torch.arange(6), seed=0)
    kept = sample(Logits(logits), keys, draws=16, drawn_at=2.0)
    assert drawn_apart(kept, Logits(logits), keys, draws=16, drawn_at=2.0).max() < 1e-6
    assert drawn_apart(kept, Logits(logits), keys, draws=16, drawn_at=1.0).isinf().any()
