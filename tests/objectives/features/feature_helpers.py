"""Two layers' features, and a term's value and gradient on them."""

import torch

from tutelage.objectives import CRD, PKT, RKD, VID, AttentionTransfer, CosineHidden, Hint, SimilarityPreserving
from tutelage.signals import Signals

TERMS = (Hint, AttentionTransfer, CosineHidden, SimilarityPreserving, RKD, PKT, CRD, VID)
RELATIONS = (SimilarityPreserving, RKD, PKT)
LEARNING = (CRD, VID)


def draw(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def sides(student, teacher):
    return Signals(features={"s": student}), Signals(features={"t": teacher})


def rows_of(labels):
    labels = torch.arange(labels) % 3 if isinstance(labels, int) else labels
    return {"labels": labels, "ids": torch.arange(len(labels))}


def fit(term, student, teacher, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return term.fitted(*sides(student, teacher))


def evaluate(term, student, teacher, labels=None):
    rows = rows_of(len(student) if labels is None else labels)
    total, count = term(*sides(student, teacher), rows)
    assert total.ndim == count.ndim == 0
    assert count.dtype == torch.int64
    assert int(count) == int(term.count(rows)) == len(student)
    return total


def gradient_of(term, student, teacher, labels=None):
    student = student.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(evaluate(term, student, teacher, labels), student)
    return gradient


def mean_of(term, student, teacher, labels=None):
    return evaluate(term, student, teacher, labels).item() / len(student)
