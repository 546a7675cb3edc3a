"""Terms on sentence embeddings against loops written from their formulas, and the axes of a PCA."""

import json
import math

import numpy as np
import pytest
import torch
from feature_helpers import draw, rows_of

from tutelage.errors import ObjectiveError
from tutelage.objectives import (
    KL,
    PCA,
    EmbeddingCosine,
    EmbeddingMSE,
    MarginMSE,
    SimilarityMatrix,
    objective_from_config,
    wants_pca,
    with_pca,
)
from tutelage.signals import Signals

PLAIN = (EmbeddingCosine(), EmbeddingMSE(), SimilarityMatrix(), MarginMSE(), MarginMSE(score="cosine"))


def sides(student, teacher, mask=None):
    return Signals(features={"embedding": student}, mask=mask), Signals(features={"embedding": teacher}, mask=mask)


def evaluate(term, student, teacher):
    total, count = term(*sides(student, teacher), rows_of(len(student)))
    assert int(count) == len(student)
    return total


def gradient_of(term, student, teacher):
    student = student.detach().clone().requires_grad_()
    return torch.autograd.grad(evaluate(term, student, teacher), student)[0]


def fit(term, student, teacher):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return term.fitted(*sides(student, teacher))


def shape_for(term, examples=5):
    return (examples, 4, 6) if isinstance(term, MarginMSE) else (examples, 6)


def cosine(a, b):
    return float(np.dot(a, b) / math.sqrt(np.dot(a, a) * np.dot(b, b)))


def test_the_formulas():
    student, teacher = draw(5, 6), draw(5, 6, seed=1)
    s, t = student.numpy(), teacher.numpy()
    expected = sum(1 - cosine(a, b) for a, b in zip(s, t, strict=True))
    assert evaluate(EmbeddingCosine(), student, teacher).item() == pytest.approx(expected)
    expected = sum(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / 6 for a, b in zip(s, t, strict=True))
    assert evaluate(EmbeddingMSE(), student, teacher).item() == pytest.approx(expected)


@pytest.mark.parametrize("width", [3, 6, 9])
def test_the_similarity_matrix_is_a_mean_over_pairs(width):
    """With the diagonal, whose difference is 0, the value would fall by 1/B and the weight mean something else at each batch size."""
    student, teacher = draw(5, width), draw(5, 6, seed=1)
    s, t = student.numpy(), teacher.numpy()
    pairs = [(i, j) for i in range(5) for j in range(5) if i != j]
    expected = np.mean([(cosine(s[i], s[j]) - cosine(t[i], t[j])) ** 2 for i, j in pairs])
    assert evaluate(SimilarityMatrix(), student, teacher).item() / 5 == pytest.approx(expected)
    scaled = student * torch.linspace(0.5, 2, 5, dtype=torch.float64)[:, None]
    torch.testing.assert_close(
        evaluate(SimilarityMatrix(), scaled, teacher), evaluate(SimilarityMatrix(), student, teacher)
    )


@pytest.mark.parametrize("score", ["dot", "cosine"])
@pytest.mark.parametrize("negatives", [1, 3])
def test_margins_of_queries_positives_and_negatives(score, negatives):
    """With positive and negative exchanged in one side alone, the student would learn to rank backwards."""
    student, teacher = draw(4, 2 + negatives, 6), draw(4, 2 + negatives, 9, seed=1)
    of = cosine if score == "cosine" else np.dot
    expected = 0.0
    for s, t in zip(student.numpy(), teacher.numpy(), strict=True):
        margins = [[of(x[0], x[1]) - of(x[0], x[2 + k]) for k in range(negatives)] for x in (s, t)]
        expected += np.mean([(a - b) ** 2 for a, b in zip(*margins, strict=True)])
    assert evaluate(MarginMSE(score=score), student, teacher).item() == pytest.approx(expected)


def test_a_reranker_teaches_an_encoder():
    """A reranker has scores and no embeddings: its margins are those of what it gives."""
    student, scores = draw(4, 3, 6), draw(4, 2, 1, seed=1)
    expected = 0.0
    for s, t in zip(student.numpy(), scores[..., 0].numpy(), strict=True):
        expected += ((np.dot(s[0], s[1]) - np.dot(s[0], s[2])) - (t[0] - t[1])) ** 2
    assert evaluate(MarginMSE(), student, scores).item() == pytest.approx(expected)
    assert evaluate(MarginMSE(), draw(4, 2, 1), scores).item() > 0
    # rows of a batch of triples, one after another
    torch.testing.assert_close(
        evaluate(MarginMSE(), student.flatten(0, 1).unflatten(0, (-1, 3)), scores),
        evaluate(MarginMSE(), student, scores),
    )


@pytest.mark.parametrize("term", PLAIN, ids=repr)
def test_gradients_zero_at_the_teacher_and_nan(term):
    shape = shape_for(term)
    student, teacher = draw(*shape), draw(*shape, seed=1)
    assert torch.autograd.gradcheck(lambda s: evaluate(term, s, teacher), (student.clone().requires_grad_(),))
    for dtype in (torch.float64, torch.float32):
        same = student.to(dtype)
        assert evaluate(term, same, same.clone()).item() == pytest.approx(0.0, abs=1e-12)
        assert gradient_of(term, same, same.clone()).abs().max() < 1e-6
        assert evaluate(term, same, teacher.to(dtype)).dtype == dtype
    assert evaluate(term, student, teacher).item() > 0
    student[1, 0] = math.nan
    assert evaluate(term, student, teacher).isnan()


@pytest.mark.parametrize("term", PLAIN, ids=repr)
def test_half_precision_batches_and_the_teacher(term):
    """Each is how a loss goes wrong unnoticed: rounded products, batches that do not add up, a teacher that learns."""
    shape = shape_for(term, 6)
    student, teacher = draw(*shape).bfloat16(), draw(*shape, seed=1).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        inside = evaluate(term, student, teacher)
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, evaluate(term, student.float(), teacher.float()), rtol=0, atol=0)
    whole = evaluate(term, student.double(), teacher.double())
    halves = sum(evaluate(term, student[at].double(), teacher[at].double()) for at in (slice(2), slice(2, 6)))
    assert term.additive == torch.allclose(whole, halves)
    for examples in (0, 1):
        assert evaluate(term, student[:examples], teacher[:examples]).isfinite()
        assert gradient_of(term, student[:examples], teacher[:examples]).isfinite().all()
    teacher.requires_grad_()
    evaluate(term, student.requires_grad_(), teacher).backward()
    assert teacher.grad is None


@pytest.mark.parametrize("term", [EmbeddingCosine(), SimilarityMatrix(), MarginMSE(score="cosine")], ids=repr)
def test_a_vector_of_zeros_has_no_direction(term):
    """An encoder that is silent for one text would be a division by 0, and NaN in every weight."""
    student, teacher = draw(*shape_for(term)), draw(*shape_for(term), seed=1)
    student[2] = 0.0
    assert evaluate(term, student, teacher).isfinite()
    gradient = gradient_of(term, student, teacher)
    assert gradient.isfinite().all()
    assert gradient[2].abs().max() == 0.0


@pytest.mark.parametrize("make", [EmbeddingCosine, EmbeddingMSE])
def test_a_linear_projection_where_the_widths_differ(make):
    student, teacher = draw(5, 4), draw(5, 6, seed=1)
    fitted = fit(make(), student, teacher)
    assert "4 → 6 wide" in fitted.adjustments()
    torch.testing.assert_close(
        evaluate(fitted, student, teacher), evaluate(make(), fitted.weights(student).detach(), teacher)
    )
    assert fit(make(), teacher, teacher).weights is None
    assert fit(make(projection="linear"), teacher, teacher).weights.weight.shape == (6, 6)
    with pytest.raises(ObjectiveError, match="was not fitted"):
        evaluate(make(), student, teacher)


@pytest.mark.parametrize("make", [EmbeddingCosine, EmbeddingMSE])
def test_a_pca_of_the_teachers_embeddings(make):
    """Axes of the first batch would be another batch's noise: they are given, and nothing of them is learnt."""
    student, teacher = draw(5, 4), draw(5, 6, seed=1)
    many = draw(200, 6, seed=2) * torch.tensor([5.0, 0.1, 3.0, 0.2, 2.0, 1.0], dtype=torch.float64) + 0.5
    pca = PCA.of(many)
    objective = objective_from_config([{"term": make.name, "projection": "pca"}, {"term": "kl"}])
    assert wants_pca(objective)
    assert not wants_pca(1.0 * make() + KL())
    given = with_pca(objective, pca)
    assert given == objective
    assert given.describe() == objective.describe()
    fitted = given.components[0].term.fitted(*sides(student, teacher))
    assert fitted.weights is None
    kept = pca.kept(4)
    assert fitted.adjustments() == (
        f"embedding → embedding: the teacher's 6 axes along the first 4 of its own, {kept:.1%} of its squared length"
    )
    moment = many.numpy().T @ many.numpy()
    values, vectors = np.linalg.eigh(moment)
    order = np.argsort(values)[::-1][:4]
    assert kept == pytest.approx(values[order].sum() / values.sum())
    found = evaluate(fitted, student, teacher)
    signs = np.sign([vectors[np.abs(vectors[:, k]).argmax(), k] for k in order])
    target = torch.from_numpy(teacher.numpy() @ (vectors[:, order] * signs))
    torch.testing.assert_close(found, evaluate(make(), student, target))
    assert evaluate(fitted, student.float(), teacher.float()).dtype == torch.float32
    with pytest.raises(ObjectiveError, match=r"was given no axes.*with_pca"):
        objective.components[0].term.fitted(*sides(student, teacher))


def test_a_pca_keeps_products_best_and_is_one_thing():
    """Along axes about the mean, the mean itself may be lost, and with it the angles that embeddings are compared by."""
    many = draw(300, 5) + torch.tensor([0.0, 4.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    pca = PCA.of(many)
    assert pca.width == 5
    torch.testing.assert_close(pca.axes @ pca.axes.T, torch.eye(5, dtype=torch.float64))
    assert pca.shares.sum().item() == pytest.approx(1.0)
    assert (pca.shares.diff() <= 0).all()
    assert pca.axes[0, 1] > 0.99
    projected = pca.project(many, 3)
    best = torch.linalg.svd(many @ many.T).S[3:].square().sum().sqrt()
    torch.testing.assert_close((many @ many.T - projected @ projected.T).norm(), best)
    # the order of texts, and which of an axis's two signs comes out, change nothing
    torch.testing.assert_close(PCA.of(many.flip(0)).axes, pca.axes)
    assert (pca.axes.gather(1, pca.axes.abs().argmax(1, keepdim=True)) > 0).all()


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: PCA.of(draw(3, 4, 5)), r"expected the teacher's embeddings \[N, D\]"),
        (lambda: PCA.of(torch.ones(3, 4, dtype=torch.int64)), "int64"),
        (lambda: PCA.of(torch.full((3, 4), math.nan)), "not finite"),
        (lambda: PCA.of(draw(9, 4)).project(draw(2, 5), 3), "4 wide was to bring embeddings 5 wide"),
        (lambda: PCA.of(draw(9, 4)).project(draw(2, 4), 5), "wants projection: linear"),
        (lambda: PCA.of(draw(2, 4)).project(draw(2, 4), 3), "nothing along its axis number 3"),
    ],
)
def test_what_a_pca_refuses(run, message):
    with pytest.raises(ObjectiveError, match=message):
        run()


@pytest.mark.parametrize(
    ("term", "student", "teacher", "message"),
    [
        (EmbeddingCosine(), (3, 4, 6), (3, 6), r"student's 'embedding' shows \[3, 4, 6\].*one vector a text \[B, D\]"),
        (EmbeddingMSE(), (3, 6), (3, 4, 6), "teacher's 'embedding' shows"),
        (SimilarityMatrix(), (3, 4, 6), (3, 6), "one vector a text"),
        (MarginMSE(), (3, 6), (3, 6), r"shows \[3, 6\].*unflatten\(0, \(-1, 3\)\)"),
        (MarginMSE(), (3, 2, 6), (3, 3, 6), "embeddings"),
        (MarginMSE(), (3, 3, 6), (3, 1, 1), "scores"),
        (MarginMSE(), (3, 4, 6), (3, 2, 1), "2 negatives a query from the student and 1 from the teacher"),
    ],
)
def test_layers_that_cannot_meet(term, student, teacher, message):
    """A batch of plain embeddings read as scores would be a loss, and nonsense."""
    with pytest.raises(ObjectiveError, match=message):
        fit(term, draw(*student), draw(*teacher, seed=1))


def test_triples_are_no_tokens():
    """A mask of tokens that happens to be three wide would cross out the negative of every query."""
    student, teacher = draw(4, 3, 6), draw(4, 3, 6, seed=1)
    mask = torch.tensor([[True, True, False]] * 4)
    total, _ = MarginMSE()(*sides(student, teacher, mask), rows_of(4))
    torch.testing.assert_close(total, evaluate(MarginMSE(), student, teacher))
    assert MarginMSE().fitted(*sides(student, teacher, torch.ones(4, 7, dtype=torch.bool))).adjustments() is None


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: EmbeddingMSE(projection="PCA"), "expected one of auto, linear, pca"),
        (lambda: EmbeddingCosine(student=""), "student is ''"),
        (lambda: MarginMSE(score="dott"), "did you mean 'dot'"),
        (lambda: SimilarityMatrix(3), "student is 3"),
    ],
)
def test_what_a_term_refuses_when_made(build, message):
    with pytest.raises(ObjectiveError, match=message):
        build()


def test_a_config_need_not_name_the_embedding():
    items = [
        {"term": "embedding_cosine"},
        {"term": "embedding_mse", "projection": "linear", "weight": 100},
        {"term": "similarity_matrix", "teacher": "pooled"},
        {"term": "margin_mse", "layers": [["a", "b"], ["c", "d"]], "weight": 2},
    ]
    objective = objective_from_config(items)
    expected = (
        1.0 * EmbeddingCosine()
        + 100.0 * EmbeddingMSE(projection="linear")
        + SimilarityMatrix(teacher="pooled")
        + 1.0 * MarginMSE("a", "b")
        + 1.0 * MarginMSE("c", "d")
    )
    assert objective == expected
    assert objective_from_config(json.loads(json.dumps(objective.describe()))) == objective
