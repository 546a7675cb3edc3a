"""What is read from a store is what was written, in every form; what could not be is refused."""

import math

import pytest
import torch
from store_helpers import (
    CLASSES,
    as_rows,
    content_ids,
    dense_store,
    drawn,
    logits,
    most_probable,
    ones,
    peaked,
    reopened,
    same_scores,
    write,
)

from tutelage.errors import TeacherError
from tutelage.labels import Form, LabelStore, LabelWriter
from tutelage.signals import HeadLogits, Logits, MixtureLogits, SparseTargets

TOKENS = torch.tensor([3, 0, 5, 1, 4, 2, 40])  # rows of each of seven token-level examples


@pytest.mark.parametrize("memory", [0, 500, 2**20], ids=["nothing kept", "some", "everything in memory"])
def test_dense_rows_in_any_order(tmp_path, memory):
    """Joined by position, every example of a shuffled epoch would learn another's answer."""
    store, ids, values = dense_store(tmp_path)
    store = reopened(store, memory_bytes=memory)
    assert len(store.manifest.shards) == 3
    for seed in range(3):
        order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))[: 17 * (seed + 1)]
        assert torch.equal(store[ids[order]].values, values[order])
    repeated = torch.tensor([5, 5, 59, 0, 5])
    assert torch.equal(store[ids[repeated]].values, values[repeated])
    assert torch.equal(store[int(ids[7])].values, values[7:8])


@pytest.mark.parametrize("memory", [0, 2**20])
def test_all_rows_of_an_example_together(tmp_path, memory):
    """Rows cut at the wrong place would teach each token its neighbour's answer."""
    ids = content_ids(len(TOKENS))
    targets = drawn(peaked(int(TOKENS.sum()), 300), draws=20, temperature=2.0)
    form = Form("sampled", 300, temperature=2.0, draws=20)
    write(tmp_path, form, ids, targets, rows=TOKENS, shard_examples=2, group_bytes=100)
    store = LabelStore.open(tmp_path, memory_bytes=memory)
    whole = as_rows(targets)
    starts = TOKENS.cumsum(0) - TOKENS
    asked = torch.tensor([6, 1, 0, 0, 4])
    expected = [row for example in asked for row in whole[starts[example] : starts[example] + TOKENS[example]]]
    assert as_rows(store[ids[asked]]) == expected
    assert store.rows(ids[asked]).tolist() == TOKENS[asked].tolist()
    assert len(store[ids[1:2]].ids) == 0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_dense_dtypes_and_masked_classes(tmp_path, dtype):
    """Read back as another 16-bit type, every logit would be another number; −inf must stay a masked class."""
    ids, values = content_ids(9), logits(9)
    values[:, 2] = -torch.inf
    store = write(tmp_path, Form("dense", CLASSES, dtype=dtype), ids, Logits(values))
    got = reopened(store)[ids].values
    assert torch.equal(got, values.to(getattr(torch, dtype)))


def test_an_ensemble_keeps_its_members(tmp_path):
    """Stored as one mixture, an ensemble would be right at one temperature alone."""
    ids = content_ids(30)
    mixture = MixtureLogits(
        torch.stack([logits(30, seed=s) for s in range(3)]), torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    )
    store = write(tmp_path, Form("dense", CLASSES, dtype="float32"), ids, mixture, group_bytes=300)
    got = reopened(store)[ids]
    assert same_scores(got, mixture)
    torch.testing.assert_close(got.at(4.0), mixture.at(4.0))
    with (
        LabelWriter(tmp_path, Form("dense", CLASSES, dtype="float32"), {}) as writer,
        pytest.raises(TeacherError, match="members with weights None"),
    ):
        writer.add(content_ids(1, 5), None, torch.tensor([1]), Logits(logits(1)))


def test_a_head_is_multiplied_out(tmp_path):
    """A teacher of many classes may give its head instead of logits."""
    ids = content_ids(4)
    head = HeadLogits(torch.randn(4, 3), torch.randn(CLASSES, 3))
    store = write(tmp_path, Form("dense", CLASSES, dtype="float32"), ids, head)
    assert torch.equal(store[ids].values, head.at(1.0))


@pytest.mark.parametrize("classes", [300, 65_536, 65_537])
def test_sampled_counts_are_exact(tmp_path, classes):
    """Ids in too few bits wrap around to other classes; rounded probabilities would bias the gradient."""
    ids = content_ids(40)
    targets = drawn(peaked(40, classes), draws=50)
    targets.ids[0, 0], targets.ids[0, 1] = classes - 1, 0
    write(tmp_path, Form("sampled", classes, temperature=1.0, draws=50), ids, targets)
    got = LabelStore.open(tmp_path)[ids]
    assert same_scores(got, targets)
    assert float((got.entropy - targets.entropy).abs().max()) < math.log(classes) / 65_534


@pytest.mark.parametrize("draws", [200, 300, 70_000])
def test_counts_of_many_draws(tmp_path, draws):
    """A count of 300 in one byte would be 44."""
    ids = content_ids(3)
    targets = drawn(torch.tensor([[0.998, 0.002], [0.5, 0.5], [1.0, 0.0]]), draws)
    write(tmp_path, Form("sampled", 2, temperature=1.0, draws=draws), ids, targets)
    assert same_scores(LabelStore.open(tmp_path)[ids], targets)


def test_a_count_of_nothing_is_not_kept(tmp_path):
    """A class that was not drawn takes space and says nothing."""
    targets = SparseTargets(torch.tensor([[4, 2, -1]]), torch.tensor([[0.0, 1.0, 0.0]]), 9, 1.0, "sampled")
    store = write(tmp_path, Form("sampled", 9, temperature=1.0, draws=4), content_ids(1), targets)
    assert as_rows(store[content_ids(1)]) == [[(2, 1.0)]]
    assert store[content_ids(1)].entropy is None


def test_importance_weights(tmp_path):
    """Drawn at another temperature, a class's probability is no whole number of draws: rounded to one, the estimate is biased."""
    plain = drawn(peaked(40, 300), draws=20)
    weights = torch.exp(torch.linspace(-9, 4, plain.probs.numel())).reshape(plain.probs.shape)
    targets = SparseTargets(plain.ids, plain.probs * weights, 300, 2.0, "sampled", plain.entropy)
    ids = content_ids(40)
    for dtype, tolerance in (("float16", 3.1e-4), ("float32", 0.0)):
        form = Form("sampled", 300, dtype=dtype, temperature=2.0, draws=20, drawn_at=1.0)
        got = write(tmp_path / dtype, form, ids, targets)[ids]
        torch.testing.assert_close(got.probs, targets.probs, rtol=tolerance, atol=0.0)
        assert torch.equal(got.ids, targets.ids)
    form = Form("sampled", 300, temperature=2.0, draws=20, drawn_at=1.0)
    too_great = SparseTargets(torch.tensor([[1]]), torch.tensor([[3e3]]), 300, 2.0, "sampled")
    with pytest.raises(TeacherError, match=r"3000.*float32"):
        write(tmp_path / "great", form, content_ids(1), too_great)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_tails_mass_of_top_k(tmp_path, dtype):
    """The rest is 1 − Σ probs: rounding the kept ones would move mass to classes that the teacher excludes."""
    probs = torch.softmax(torch.arange(40.0)[None] * torch.linspace(0.05, 3, 200)[:, None], dim=1)
    targets = most_probable(probs, 8)
    ids = content_ids(200)
    write(tmp_path, Form("top_k", 40, dtype=dtype, temperature=1.0, k=8), ids, targets)
    got = LabelStore.open(tmp_path)[ids]
    assert torch.equal(got.ids, targets.ids)
    torch.testing.assert_close(got.probs, targets.probs, rtol=6.5e-4, atol=0.0)
    rest = 1 - targets.probs.double().sum(1)
    torch.testing.assert_close(1 - got.probs.double().sum(1), rest.clamp(min=0.0), rtol=3.1e-4, atol=2e-7)
    assert bool((got.probs > 0).all()), "a kept class of probability 0 makes a reverse divergence infinite"


def test_top_k_of_a_row_with_masked_classes(tmp_path):
    """Where fewer than k classes are possible, impossible ones stay at 0, and nothing is divided by 0."""
    targets = SparseTargets(torch.tensor([[3, 1], [2, -1]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]]), 9, 1.0, "top_k")
    got = write(tmp_path, Form("top_k", 9, temperature=1.0, k=2), content_ids(2), targets)[content_ids(2)]
    assert same_scores(got, targets)


@pytest.mark.parametrize("feature_dtype", ["float16", "bfloat16", "float32"])
def test_features_by_layer(tmp_path, feature_dtype):
    """Features joined to other rows would compare one example's inside with another's."""
    ids, rows = content_ids(4), torch.tensor([2, 1, 0, 3])
    given = {"h": torch.randn(6, 3, 2), "h.0": torch.randn(6, 5)}
    form = Form("dense", CLASSES, features=("h", "h.0"), feature_dtype=feature_dtype)
    write(tmp_path, form, ids, Logits(logits(6)), rows=rows, features=given | {"more": torch.zeros(6)}, group_bytes=40)
    for memory in (0, 2**20):
        store = LabelStore.open(tmp_path, memory_bytes=memory)
        asked = torch.tensor([3, 0, 2])
        picked = torch.tensor([3, 4, 5, 0, 1])
        for layer, values in given.items():
            assert torch.equal(store.features(ids[asked], layer), values[picked].to(getattr(torch, feature_dtype)))
    with pytest.raises(TeacherError, match=r"'more' \(it keeps: 'h', 'h.0'\)"):
        store.features(ids, "more")


def test_views_are_kept_apart(tmp_path):
    """An example's answer to one augmented view is the wrong one for another."""
    ids, form = content_ids(6), Form("dense", CLASSES, dtype="float32")
    with LabelWriter(tmp_path, form, {}, group_bytes=100) as writer:
        for view in (2, 0):
            writer.add(ids, view, ones(ids), Logits(logits(6, seed=view)))
        store = writer.finish()
    assert store.views == (0, 2) == store.manifest.views
    asked = torch.tensor([2, 0, 0, 2, 0, 2])
    expected = torch.where((asked == 2)[:, None], logits(6, seed=2), logits(6, seed=0))
    assert torch.equal(store.lookup(ids, asked).values, expected)
    assert store.has(ids[:2], torch.tensor([1, 2])).tolist() == [False, True]
    with pytest.raises(TeacherError, match=r"view 1 \(it is there with other views: 0, 2\)"):
        store.lookup(ids, 1)
    with pytest.raises(TeacherError, match="it is there with other views"):
        store[ids]


def test_an_unknown_example_is_named(tmp_path):
    """The nearest id's answer would be a wrong row, silently."""
    store, ids, _ = dense_store(tmp_path)
    stranger = torch.tensor([int(ids[0]) + 1])
    expected = f"1 of 3 examples .* {int(stranger) & (2**64 - 1):016x}: the wrong"
    with pytest.raises(TeacherError, match=expected):
        store[torch.cat([ids[:2], stranger])]
    for beyond in (-(2**63), 2**63 - 1):
        with pytest.raises(TeacherError, match="not in the label store"):
            store[beyond]
    with pytest.raises(TeacherError, match="expected int64 content ids"):
        store.lookup(ids.float())


def refused(form, scores, match, **options) -> int:
    """How many examples a writer at ``memory://`` kept of an answer that it refused."""
    count = len(scores.ids) if isinstance(scores, SparseTargets) else len(scores.at(1.0))
    ids = content_ids(count)
    with pytest.raises(TeacherError, match=match):
        write(f"memory://refused-{abs(hash(match))}", form, ids, scores, **options)
    return sum(shard.examples for shard in LabelStore.open(f"memory://refused-{abs(hash(match))}").manifest.shards)


def test_values_that_cannot_be_kept_are_refused():
    """Stored, a NaN or an overflow to infinity would be found in the student, epochs later."""
    for bad in (torch.nan, torch.inf):
        values = logits(5)
        values[3, 1] = bad
        assert (
            refused(Form("dense", CLASSES), Logits(values), f"{int(content_ids(5)[3]) & (2**64 - 1):016x} is {bad}")
            == 0
        )
    values = logits(5)
    values[2] = -torch.inf
    assert refused(Form("dense", CLASSES), Logits(values), "is -inf") == 0
    values = logits(5)
    values[4, 0] = -70_000.0
    assert (
        refused(
            Form("dense", CLASSES), Logits(values), "is -70000: float16 holds at most 65,504 .* bfloat16 or float32"
        )
        == 0
    )
    assert refused(Form("dense", CLASSES), Logits(logits(5, 8)), "has 8 classes, the label store 7") == 0
    bad_features = {"h": torch.full((5, 2), 1e6)}
    form = Form("dense", CLASSES, features=("h",), feature_dtype="float16")
    assert refused(form, Logits(logits(5)), "feature_dtype bfloat16", features=bad_features) == 0
    assert (
        refused(form, Logits(logits(5)), "feature of 'h' .* is nan", features={"h": torch.full((5, 2), torch.nan)}) == 0
    )
    assert refused(form, Logits(logits(5)), "was not given 'h'") == 0
    assert refused(form, Logits(logits(5)), "for 5 rows", features={"h": torch.zeros(4, 2)}) == 0


def test_answers_of_another_form_are_refused():
    """Read as another form, temperature or number of draws, the targets would be another distribution."""
    targets, form = drawn(peaked(3, 30), draws=10), Form("sampled", 30, temperature=1.0, draws=10)
    assert refused(form, Logits(logits(3, 30)), "was given Logits, which is dense") == 0
    assert refused(Form("dense", 30), targets, "sampled at T = 1, the label store keeps dense logits") == 0
    assert refused(Form("sampled", 30, temperature=2.0, draws=10), targets, "keeps sampled at T = 2") == 0
    assert refused(Form("top_k", 30, temperature=1.0, k=30), targets, "keeps top_k at T = 1") == 0
    assert refused(Form("sampled", 30, temperature=1.0, draws=15), targets, "counts of 15 draws") == 0
    assert (
        refused(
            Form("top_k", 30, temperature=1.0, k=2),
            most_probable(peaked(3, 30), 3),
            "keeps 3 classes, the form at most 2",
        )
        == 0
    )
    targets.probs[1, 0] = torch.nan
    assert refused(form, targets, "a probability .* is nan") == 0
    beyond = SparseTargets(torch.tensor([[30]]), torch.ones(1, 1), 30, 1.0, "sampled")
    assert refused(form, beyond, "a kept class is 30") == 0
    unknown = SparseTargets(torch.tensor([[3]]), torch.ones(1, 1), 30, 1.0, "sampled", torch.tensor([torch.nan]))
    assert refused(form, unknown, "an entropy .* is nan") == 0


def test_features_of_two_shapes_are_refused(tmp_path):
    """Texts padded to the longest of their batch have features that could not be one tensor again."""
    form = Form("dense", CLASSES, features=("h",))
    with LabelWriter(tmp_path, form, {}) as writer:
        writer.add(content_ids(2), None, torch.ones(2, dtype=torch.int64), Logits(logits(2)), {"h": torch.zeros(2, 4)})
        with pytest.raises(TeacherError, match=r"expected one of shape \(4,\) each"):
            writer.add(
                content_ids(2, 1), None, torch.ones(2, dtype=torch.int64), Logits(logits(2)), {"h": torch.zeros(2, 5)}
            )


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"kind": "sparse"}, "kind is 'sparse'"),
        ({"kind": "dense", "dtype": "float64"}, "dtype is 'float64' for dense"),
        ({"kind": "dense", "temperature": 2.0}, "temperature is 2.0 for dense labels, which have none"),
        ({"kind": "sampled", "draws": 50}, "say which the student will learn at"),
        ({"kind": "sampled", "temperature": 1.0}, "draws is None"),
        ({"kind": "sampled", "temperature": 1.0, "draws": 5, "k": 3}, "k is 3 for sampled"),
        ({"kind": "sampled", "temperature": 1.0, "draws": 5, "drawn_at": 0.0}, "drawn_at is 0.0"),
        ({"kind": "sampled", "temperature": 1.0, "draws": 5, "scheme": "stratified"}, "scheme is 'stratified'"),
        ({"kind": "top_k", "temperature": 1.0, "k": 8}, "k is 8 for top_k labels: expected 1 to 7"),
        ({"kind": "top_k", "temperature": 1.0, "k": 2, "dtype": "bfloat16"}, "dtype is 'bfloat16' for top_k"),
        ({"kind": "dense", "features": ("h", "h")}, "names a layer twice"),
        ({"kind": "dense", "feature_dtype": "int8"}, "feature_dtype is 'int8'"),
        ({"kind": "dense", "classes": 0}, "classes is 0"),
    ],
)
def test_forms_that_contradict_themselves(settings, match):
    """A setting that nothing reads would be taken for one that holds."""
    with pytest.raises(TeacherError, match=match):
        Form(**{"classes": CLASSES} | settings)


def test_a_form_is_what_was_written():
    """A form read back as another would decode every row wrongly."""
    for form in (
        Form("sampled", 9, temperature=2.0, draws=5, drawn_at=1.5, scheme="independent", features=("a", "b")),
        Form("top_k", 9, temperature=2.0, k=5, dtype="float32", feature_dtype="bfloat16"),
    ):
        assert Form.from_json(form.to_json()) == form
    with pytest.raises(TeacherError, match="tomorrow, which this version does not know"):
        Form.from_json({"kind": "dense", "classes": 3, "tomorrow": 1})
