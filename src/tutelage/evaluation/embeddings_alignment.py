"""Where two encoders' embeddings lie: alignment with the teacher, and how evenly they fill the sphere.

References: Song et al., "Feature selection via dependence maximization", JMLR 13 (2012), and Kornblith et al.,
"Similarity of Neural Network Representations Revisited" (ICML 2019), for CKA; Schönemann, Psychometrika 31 (1966); Wang
& Isola, "Understanding Contrastive Representation Learning through Alignment and Uniformity" (ICML 2020).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import DataError
from tutelage.evaluation.embeddings_pairs import unit_rows
from tutelage.evaluation.inputs import Floats

_ROWS_AT_ONCE = 1024


def cosine_to_teacher(teacher: NDArray[Any], student: NDArray[Any]) -> Floats:
    """Each text's cosine ``[N]`` between the teacher's embedding and the student's.

    It is 1 only where the axes are the same too: a student that was taught similarities alone may keep every one of
    them and have 0 here.

    Args:
        teacher, student: ``[N, D]`` each, of the same texts.

    Raises:
        DataError: other shapes, NaN or infinite values.
    """
    teacher_ND = unit_rows(teacher, "the teacher's embeddings")
    student_ND = unit_rows(student, "the student's embeddings")
    if teacher_ND.shape != student_ND.shape:
        raise DataError(
            f"embeddings of shapes {list(teacher_ND.shape)} and {list(student_ND.shape)}, expected one shape: there is "
            "no cosine between them; use linear_cka or procrustes_residual, which need no common width"
        )
    return np.clip(np.einsum("nd,nd->n", teacher_ND, student_ND), -1.0, 1.0)


def linear_cka(teacher: NDArray[Any], student: NDArray[Any]) -> float:
    """Centred kernel alignment, linear, of unit rows: 1 for one structure up to rotation, near 0 for none.

    From the unbiased estimator of HSIC: the plain one is far above 0 for unrelated embeddings whose width is not small
    beside the number of texts. It may be slightly negative. A student whose embeddings do not vary gets 0.

    Args:
        teacher, student: ``[N, D]`` and ``[N, E]`` of the same texts, N ≥ 4.

    Raises:
        DataError: other shapes, fewer texts, or a teacher whose embeddings do not vary.
    """
    teacher_ND, student_NE = _centred(teacher, student, least=4)
    own_teacher, own_student = _unbiased_hsic(teacher_ND, teacher_ND), _unbiased_hsic(student_NE, student_NE)
    if own_student <= 0.0 or own_teacher <= 0.0:
        return 0.0
    return _unbiased_hsic(teacher_ND, student_NE) / float(np.sqrt(own_teacher * own_student))


def procrustes_residual(teacher: NDArray[Any], student: NDArray[Any]) -> float:
    """What of the teacher's embeddings no rotation, reflection and scaling of the student's explains: 0 all, 1 none.

    Both are scaled to unit rows and centred; the narrower is padded with zeros. In the number of texts it is biased
    towards 0: with fewer texts than axes anything can be turned into anything.

    Args:
        teacher, student: ``[N, D]`` and ``[N, E]`` of the same texts.

    Raises:
        DataError: other shapes, or a teacher whose embeddings do not vary.
    """
    teacher_ND, student_NE = _centred(teacher, student, least=2)
    sizes = float(np.linalg.norm(teacher_ND)) * float(np.linalg.norm(student_NE))
    if sizes == 0.0:
        return 1.0
    explained = float(np.linalg.svd(student_NE.T @ teacher_ND, compute_uv=False).sum()) / sizes
    return max(0.0, 1.0 - explained**2)


def alignment(teacher: NDArray[Any], student: NDArray[Any]) -> dict[str, float | None]:
    """``cosine``: mean of :func:`cosine_to_teacher`, None where widths differ · ``cka`` · ``procrustes``, the residual.

    Raises:
        DataError: as the three.
    """
    same = np.shape(teacher) == np.shape(student)
    return {
        "cosine": float(cosine_to_teacher(teacher, student).mean()) if same else None,
        "cka": linear_cka(teacher, student),
        "procrustes": procrustes_residual(teacher, student),
    }


def uniformity(embeddings: NDArray[Any]) -> float:
    """log of the mean of exp(−2 ‖x − y‖²) over pairs of texts: 0 where all embeddings are one, lower is more even.

    Args:
        embeddings: ``[N, D]``, N ≥ 2; scaled to unit rows.

    Raises:
        DataError: other shapes, fewer texts, NaN or infinite values.
    """
    unit_ND = unit_rows(embeddings, "the embeddings")
    texts = len(unit_ND)
    if texts < 2:
        raise DataError("uniformity of one text, expected two or more: there is no pair; give more texts")
    square_N = np.square(unit_ND).sum(axis=1)
    total = 0.0
    for start in range(0, texts, _ROWS_AT_ONCE):
        rows_KD = unit_ND[start : start + _ROWS_AT_ONCE]
        distance_KN = square_N[start : start + _ROWS_AT_ONCE, None] + square_N - 2.0 * rows_KD @ unit_ND.T
        total += float(np.exp(-2.0 * np.maximum(distance_KN, 0.0)).sum())
    # each text's pair with itself has distance 0 and counted 1
    return float(np.log((total - texts) / (texts * (texts - 1))))


def _centred(teacher: NDArray[Any], student: NDArray[Any], least: int) -> tuple[Floats, Floats]:
    teacher_ND = unit_rows(teacher, "the teacher's embeddings")
    student_NE = unit_rows(student, "the student's embeddings")
    if len(teacher_ND) != len(student_NE) or len(teacher_ND) < least:
        raise DataError(
            f"{len(teacher_ND):,} embeddings of the teacher and {len(student_NE):,} of the student, expected as many "
            f"of both and at least {least}: other texts would be compared; embed the same texts"
        )
    if _collapsed(teacher_ND):
        raise DataError(
            "the teacher gives every text one embedding: there is nothing to be aligned with; check how it is loaded "
            "and pooled"
        )
    centred_NE = np.zeros_like(student_NE) if _collapsed(student_NE) else student_NE - student_NE.mean(axis=0)
    return teacher_ND - teacher_ND.mean(axis=0), centred_NE


def _collapsed(unit_ND: Floats) -> bool:
    """Whether all rows are one, but for rounding."""
    return float(np.ptp(unit_ND, axis=0).max()) <= 1e-12


def _unbiased_hsic(x_ND: Floats, y_NE: Floats) -> float:
    """Song et al. (2012), equation 5, for linear kernels whose diagonals are taken out; no kernel matrix is made."""
    texts = len(x_ND)
    diagonals = [np.square(rows).sum(axis=1) for rows in (x_ND, y_NE)]
    sums_x, sums_y = (rows @ rows.sum(axis=0) - own for rows, own in zip((x_ND, y_NE), diagonals, strict=True))
    trace = float(np.square(x_ND.T @ y_NE).sum()) - float(diagonals[0] @ diagonals[1])
    both = float(sums_x.sum()) * float(sums_y.sum()) / ((texts - 1) * (texts - 2))
    return (trace + both - 2.0 * float(sums_x @ sums_y) / (texts - 2)) / (texts * (texts - 3))
