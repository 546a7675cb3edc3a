"""Terms on sentence embeddings: the vectors themselves, how they lie to each other, and how a pair of texts scores.

Each reads one vector a text from the feature named ``embedding`` of either side, ``[B, D]``, unless told otherwise.
Texts are met whole, so that student and teacher may have other tokenizers.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, Self, TypeGuard

import torch
from torch import Tensor

from tutelage.errors import ObjectiveError
from tutelage.objectives.features.layers import AbstractLayerTerm, Adapter, Pair, check_choice, check_layers
from tutelage.objectives.features.meeting import Met, projected, projector_for
from tutelage.objectives.features.vectors import directions, flat, nothing
from tutelage.objectives.objective import Objective, Term
from tutelage.objectives.pca import PCA
from tutelage.signals import Rows, Side, Signals

#: What an encoder's output is called among its features.
EMBEDDING = "embedding"

Projection = Literal["auto", "linear", "pca"]
_PROJECTIONS = ("auto", "linear", "pca")


class AbstractEmbeddingTerm(AbstractLayerTerm):
    """A term that compares two embeddings of a text axis by axis, which wants both to have as many.

    Three ways to that, by ``projection``: ``"auto"``, none where the widths agree, else linear; ``"linear"``, a trained
    linear map on the student's side, dropped from what is exported, so that only what it maps to resembles the teacher;
    ``"pca"``, the teacher's embeddings along their first axes, as many as the student is wide: nothing is learnt, and
    the exported student's own embedding is what resembles the teacher. The axes are given (:func:`with_pca`), never
    fitted to a batch.
    """

    projection: Projection

    # as what was fitted: neither compared nor described
    _pca: PCA | None = None

    additive: ClassVar[bool] = True
    by_position: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_layers(self)
        check_choice(self, "projection", _PROJECTIONS)

    def given(self, pca: PCA) -> Self:
        """The same term with the axes that ``projection: pca`` takes the teacher's embeddings along."""
        term = copy.copy(self)
        object.__setattr__(term, "_pca", pca)
        return term

    def _adapter(self, pair: Pair) -> Adapter:
        met = self._met(pair)
        if self.projection != "pca":
            return Adapter(projector_for(met, self.projection == "linear", met.notes), met.notes)
        wide, to, pca = pair.teacher.shape[1], pair.student.shape[1], self._axes()
        note = (
            f"the teacher's {wide:,} axes along the first {to:,} of its own, {pca.kept(to):.1%} of its squared length"
        )
        return Adapter(None, [note])

    def _sum(self, pair: Pair, rows: Rows) -> Tensor:  # noqa: ARG002 - the base's signature
        met = self._met(pair)
        return self._apart(projected(met, self.weights, self), met.teacher)

    @abstractmethod
    def _apart(self, student_BD: Tensor, teacher_BD: Tensor) -> Tensor:
        """The sum over examples, 0-dim, of two embeddings of one width."""

    def _met(self, pair: Pair) -> Met:
        _check_vectors(self, pair)
        if self.projection != "pca":
            return Met(pair.student, pair.teacher, [])
        return Met(pair.student, self._axes().project(pair.teacher, pair.student.shape[1]), [])

    def _axes(self) -> PCA:
        if self._pca is None:
            raise ObjectiveError(
                f"{self.name} has projection: pca, and was given no axes: those of one batch would be another batch's noise; give "
                "with_pca(objective, PCA.of(embeddings)) the teacher's embeddings of the transfer set, or say projection: linear"
            )
        return self._pca


@dataclass(frozen=True)
class EmbeddingCosine(AbstractEmbeddingTerm):
    """1 − cos(r(s), t) of a text's two embeddings, per example.

    A number without unit in [0, 2], 0 where the directions agree: the loss of most distilled sentence encoders, whose
    embeddings are compared by their angles. A vector of zeros has no direction: it counts 1 beside another, else 0, without gradient.

    *Misleads*: embeddings of many encoders lie in a narrow cone, where any two have a cosine of 0.7: a value of 0.1 may
    then be a student that says the same of every text. Look at the correlation of similarities
    (:class:`SimilarityMatrix` trains it), and at retrieval. With a linear projection the student's own embeddings may
    have other neighbours than the teacher's.

    Neighbours: :class:`EmbeddingMSE` compares lengths too; :class:`SimilarityMatrix` needs no common axes;
    :class:`tutelage.objectives.CosineHidden` compares token by token.

    Example::

        EmbeddingCosine() + 10.0 * SimilarityMatrix()

    Args:
        student: name of the student's layer, ``[B, D]``.
        teacher: name of the teacher's.
        projection: what brings two widths together, see :class:`AbstractEmbeddingTerm`.
    """

    student: str = EMBEDDING
    teacher: str = EMBEDDING
    projection: Projection = "auto"

    name = "embedding_cosine"

    def _apart(self, student_BD: Tensor, teacher_BD: Tensor) -> Tensor:
        mine, none_here = directions(student_BD)
        theirs, none_there = directions(teacher_BD)
        # half the squared distance of unit vectors is the same, without the cancellation of 1 − cos near cos = 1
        distance_B = (mine - theirs).square().sum(-1) / 2
        alone_B = (none_here ^ none_there).to(distance_B.dtype)
        return torch.where(none_here | none_there, alone_B, distance_B).sum()


@dataclass(frozen=True)
class EmbeddingMSE(AbstractEmbeddingTerm):
    """‖r(s) − t‖² / D of a text's two embeddings, per example, D the teacher's width (the student's with ``pca``).

    Reimers & Gurevych 2020, §2, who teach a student of another language so. In squared units of the teacher's
    embedding; 0 where they agree.

    *Misleads*: of embeddings of length 1 it is 2 (1 − cos) / D: 1e-3 at D = 384 for a cosine of 0.8, so it wants a
    weight of hundreds, and a small value says nothing. A student that normalises its output cannot meet a teacher that
    does not; and along a PCA's first axes a unit vector is shorter than 1: there :class:`EmbeddingCosine` asks for what
    can be had.

    Neighbours: :class:`EmbeddingCosine` sees directions alone; :class:`tutelage.objectives.Hint` is ½ D times this, on
    any layer.

    Example::

        100.0 * EmbeddingMSE(projection="linear")

    Args:
        student: name of the student's layer, ``[B, D]``.
        teacher: name of the teacher's.
        projection: what brings two widths together, see :class:`AbstractEmbeddingTerm`.
    """

    student: str = EMBEDDING
    teacher: str = EMBEDDING
    projection: Projection = "auto"

    name = "embedding_mse"

    def _apart(self, student_BD: Tensor, teacher_BD: Tensor) -> Tensor:
        return (student_BD - teacher_BD).square().mean(-1).sum()


@dataclass(frozen=True)
class SimilarityMatrix(AbstractLayerTerm):
    """Mean over a batch's pairs of texts i ≠ j of (cos(s_i, s_j) − cos(t_i, t_j))².

    A number without unit in [0, 4], 0 where all similarities agree: what a sentence encoder is used for, asked for
    itself. No scale of a text, rotation or width of either side matters, and nothing is learnt. A vector of zeros is
    orthogonal to all others, without gradient.

    A property of the batch: the value counts once for each of its rows, so that the mean over rows is the value.
    Accumulated small batches give the mean of theirs, *not* that of the one big batch. One text alone has no pair and
    gives 0.

    *Misleads*: nearly all pairs of a random batch are strangers, whose cosines are alike, and the few that matter for
    retrieval are lost among their squares: batches that hold texts and their near neighbours teach more. The squares of
    small differences are small: it wants a weight of tens.

    Neighbours: :class:`tutelage.objectives.SimilarityPreserving` compares the same products with each row at length 1,
    diagonal included; :class:`tutelage.objectives.PKT` as distributions; :class:`EmbeddingCosine` compares texts with
    themselves.

    Example::

        EmbeddingCosine() + 10.0 * SimilarityMatrix()

    Args:
        student: name of the student's layer, ``[B, D]``.
        teacher: name of the teacher's, of any width.
    """

    student: str = EMBEDDING
    teacher: str = EMBEDDING

    name = "similarity_matrix"
    by_position = False

    def __post_init__(self) -> None:
        check_layers(self)

    def _adapter(self, pair: Pair) -> Adapter:
        _check_vectors(self, pair)
        return Adapter(None, ())

    def _sum(self, pair: Pair, rows: Rows) -> Tensor:  # noqa: ARG002 - the base's signature
        _check_vectors(self, pair)
        student_BD, teacher_BD = flat(pair.student), flat(pair.teacher)
        examples = student_BD.shape[0]
        if examples < 2:
            return nothing(student_BD) + nothing(teacher_BD)
        (mine, _), (theirs, _) = directions(student_BD), directions(teacher_BD)
        itself_BB = torch.eye(examples, dtype=torch.bool, device=student_BD.device)
        apart_BB = (mine @ mine.T - theirs @ theirs.T).masked_fill(itself_BB, 0.0)
        # rows × batch value: B · Σ / (B (B − 1))
        return apart_BB.square().sum() / (examples - 1)


@dataclass(frozen=True)
class MarginMSE(AbstractLayerTerm):
    """(M_S − M_T)² with the margin M = score(q, p⁺) − score(q, p⁻), per example; the mean over several p⁻.

    Hofstätter et al. 2020 (Margin-MSE): a student ranks as its teacher does without having its scale, so that a
    reranker can teach an encoder. In squared units of the teacher's score; 0 where the margins agree.

    An example is a query with a text that answers it and one or more that do not, in this order. Either side shows

    - embeddings ``[B, 2 + K, D]``: query, positive, K negatives; their scores are formed here (``score``); or
    - scores ``[B, 1 + K, 1]``: positive, K negatives, each read with the query, as a reranker gives them.

    An encoder that embeds all texts of a batch in a row shows ``values.unflatten(0, (-1, 2 + K))``. A plain embedding
    of one text an example ``[B, D]`` is refused.

    *Misleads*: margins of cosines lie within ±2 and those of a reranker's logits within ±20: the student cannot reach
    them with ``score: cosine``, and the loss pulls at its limit; leave ``dot``, or scale the teacher's. Only
    differences are taught: all scores of a query may drift together, which a threshold on scores would feel. Negatives
    that any model tells apart teach little.

    Neighbours: :class:`SimilarityMatrix` takes all pairs of a batch; :class:`tutelage.objectives.KL` over scores ``[B,
    1 + K]`` as logits compares them as probabilities.

    Example::

        MarginMSE("embedding", "scores")

    Args:
        student: name of the student's layer.
        teacher: name of the teacher's.
        score: what two embeddings score: ``"dot"``, their product, or ``"cosine"``.
    """

    student: str = EMBEDDING
    teacher: str = EMBEDDING
    score: Literal["dot", "cosine"] = "dot"

    name = "margin_mse"
    additive = True
    by_position = False

    def __post_init__(self) -> None:
        check_layers(self)
        check_choice(self, "score", ("dot", "cosine"))

    def _adapter(self, pair: Pair) -> Adapter:
        self._margins(pair)
        return Adapter(None, ())

    def _sum(self, pair: Pair, rows: Rows) -> Tensor:  # noqa: ARG002 - the base's signature
        mine_BK, theirs_BK = self._margins(pair)
        return (mine_BK - theirs_BK).square().mean(1).sum()

    def _margins(self, pair: Pair) -> tuple[Tensor, Tensor]:
        mine = self._of_one(pair.student, f"the student's {self.student!r}")
        theirs = self._of_one(pair.teacher, f"the teacher's {self.teacher!r}")
        if mine.shape != theirs.shape:
            raise ObjectiveError(
                f"margin_mse got {mine.shape[1]} negatives a query from the student and {theirs.shape[1]} from the teacher: they are not "
                "the same texts; show query, positive and negatives of each example, in this order, by both"
            )
        return mine, theirs

    def _of_one(self, values: Tensor, what: str) -> Tensor:
        """``[B, K]``."""
        scores = values.ndim == 3 and values.shape[2] == 1
        if values.ndim != 3 or values.shape[1] < (2 if scores else 3):
            raise ObjectiveError(
                f"{what} shows {list(values.shape)}: margin_mse takes a query, a positive and negatives an example, embeddings "
                "[B, 2 + K, D] or scores [B, 1 + K, 1]; for rows of a batch of triples one after another, values.unflatten(0, (-1, 3)), or "
                "one text would be scored as another's"
            )
        if scores:
            return values[:, :1, 0] - values[:, 1:, 0]
        if self.score == "cosine":
            values, _ = directions(values)
        scores_BK = (values[:, 1:] @ values[:, 0, :, None])[..., 0]
        return scores_BK[:, :1] - scores_BK[:, 1:]

    def _mask(self, signals: Signals | None, values: Tensor, whose: Side) -> Tensor | None:  # noqa: ARG002 - the base's signature
        # the second axis is texts, none of which is padding
        return None

    def _of_no_token(self, signals: Signals | None, whose: Side) -> list[str]:  # noqa: ARG002 - the base's signature
        return []


def wants_pca(objective: Objective) -> bool:
    """Whether some term takes the teacher's embeddings along axes that :func:`with_pca` gives it."""
    return any(_wants(component.term) for component in objective.components)


def with_pca(objective: Objective, pca: PCA) -> Objective:
    """The objective with a PCA for each term that has ``projection: pca``; other terms as they are.

    The axes are no part of the objective's description, nor of a checkpoint: whoever resumes a training gives the same
    again.

    Args:
        objective: before :meth:`Objective.fitted`.
        pca: of the teacher's embeddings of the transfer set, :meth:`PCA.of`.
    """
    return Objective.of((weight, term.given(pca) if _wants(term) else term) for weight, term in objective.parts())


def _wants(term: Term) -> TypeGuard[AbstractEmbeddingTerm]:
    return isinstance(term, AbstractEmbeddingTerm) and term.projection == "pca"


def _check_vectors(term: AbstractLayerTerm, pair: Pair) -> None:
    for side, layer, values in (("student", term.student, pair.student), ("teacher", term.teacher, pair.teacher)):
        if values.ndim != 2:
            raise ObjectiveError(
                f"the {side}'s {layer!r} shows {list(values.shape)}: {term.name} takes one vector a text [B, D], as a sentence encoder "
                "gives it; pool the tokens first, or use patient, cosine_hidden or hint, which take tokens"
            )
