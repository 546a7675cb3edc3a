"""Answers to keep, and an independent account of them, for the tests of the store."""

import torch

from tutelage.labels import Form, LabelStore, LabelWriter
from tutelage.signals import Logits, MixtureLogits, SparseTargets

CLASSES = 7


def content_ids(count, seed=0):
    """Random 64-bit ids, as content ids are."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-(2**63), 2**63 - 1, (count,), generator=generator)


def logits(rows, classes=CLASSES, seed=0):
    return 5 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed))


def ones(ids):
    return torch.ones(len(ids), dtype=torch.int64)


def write(path, form, ids, scores, *, rows=None, view=None, binds=None, features=None, **options):
    """Everything in one call; the store, finished."""
    with LabelWriter(path, form, binds or {}, **options) as writer:
        writer.add(ids, view, ones(ids) if rows is None else rows, scores, features)
        return writer.finish()


def dense_store(path, count=60, **options):
    """A float32 store of several shards and row groups, with its ids and logits."""
    ids, values = content_ids(count), logits(count)
    form = Form("dense", CLASSES, dtype="float32")
    options = {"shard_examples": 20, "group_bytes": 200} | options
    return write(path, form, ids, Logits(values), **options), ids, values


def same_scores(got, expected):
    """Whether two answers are the same bits, places that are not used aside."""
    if isinstance(expected, SparseTargets):
        return (
            isinstance(got, SparseTargets)
            and (got.classes, got.temperature, got.form) == (expected.classes, expected.temperature, expected.form)
            and as_rows(got) == as_rows(expected)
        )
    if isinstance(expected, MixtureLogits):
        return torch.equal(got.members, expected.members) and torch.equal(got.weights, expected.weights)
    return isinstance(got, Logits) and torch.equal(got.values, expected.values)


def as_rows(targets):
    """Each row's classes and probabilities in order."""
    return [
        [(i, p) for i, p in zip(ids, probs, strict=True) if i >= 0]
        for ids, probs in zip(targets.ids.tolist(), targets.probs.tolist(), strict=True)
    ]


def peaked(rows, classes, seed=0):
    """Distributions ``[rows, C]`` as a language model's: a Zipf prior, a topic for each 32 rows, sharpness that differs widely."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    prior = -torch.log(torch.arange(classes) + 2.7)
    topics = normal(rows // 32 + 1, classes)[torch.arange(rows) // 32]
    sharpness = 0.75 + 0.5 * torch.stack([-torch.rand(rows, generator=generator).log() for _ in range(3)]).sum(0)
    return torch.softmax(sharpness[:, None] * (prior + topics + 1.8 * normal(rows, classes)), dim=1)


def drawn(probs, draws, temperature=1.0, seed=0):
    """Counts of independent draws over ``draws``, as sampled targets with each row's entropy."""
    generator = torch.Generator().manual_seed(seed)
    rows, classes = probs.shape
    picked = torch.multinomial(probs, draws, replacement=True, generator=generator)
    found = [torch.unique(row, return_counts=True) for row in picked]
    width = max(len(classes_of_row) for classes_of_row, _ in found)
    ids = torch.full((rows, width), -1)
    kept = torch.zeros(rows, width)
    for row, (classes_of_row, counts) in enumerate(found):
        ids[row, : len(counts)], kept[row, : len(counts)] = classes_of_row, counts / draws
    entropy = -torch.xlogy(probs, probs).sum(1)
    return SparseTargets(ids, kept, classes, temperature, "sampled", entropy)


def most_probable(probs, k, temperature=1.0):
    """The k most probable classes, with their probabilities."""
    kept, ids = probs.topk(k, dim=1)
    return SparseTargets(ids, kept, probs.shape[1], temperature, "top_k", -torch.xlogy(probs, probs).sum(1))


def reopened(store, **options):
    return LabelStore.open(store.place.url, **options)
