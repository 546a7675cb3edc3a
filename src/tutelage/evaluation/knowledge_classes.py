"""Which classes a teacher thinks alike, and the examples that show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.evaluation.inputs import Floats
from tutelage.evaluation.knowledge import entropy

Json = dict[str, Any]

#: The share of ``ln C`` that a typical target's entropy has where likeness can be read: neither one-hot nor uniform.
TELLING = 0.4


def telling_temperature(table: Sequence[Json], classes: int) -> float:
    """The temperature of a table (see `look_at`) at which the mean entropy is nearest to `TELLING` of its largest, ``ln C``."""
    wanted = TELLING * float(np.log(classes))
    return min(table, key=lambda row: abs(row["entropy"]["mean"] - wanted))["temperature"]


def class_similarity(targets: NDArray[Any]) -> Floats:
    """``S[C, C]``: of the probability that the teacher keeps off its answer i, the mean share that class j gets.

    ``S[i, j] = mean over examples whose likeliest class is i of q_j / (1 − q_i)``; rows sum to 1 without the diagonal, which
    is 0. A class that is no example's likeliest has a row of NaN. The shares say which classes are alike, whatever
    the temperature leaves for all of them together.

    Args:
        targets: ``q[N, C]`` at one temperature.
    """
    q_NC = np.asarray(targets, dtype=np.float64)
    answers_N = q_NC.argmax(axis=1)
    rows = np.arange(len(q_NC))
    others_NC = q_NC.copy()
    others_NC[rows, answers_N] = 0.0
    rest_N = others_NC.sum(axis=1)
    # a target that is one-hot to the last bit says nothing of the other classes
    said_N = rest_N > 0.0
    similarity_CC = np.full((q_NC.shape[1], q_NC.shape[1]), np.nan)
    for answer in np.unique(answers_N[said_N]):
        mine_N = said_N & (answers_N == answer)
        similarity_CC[answer] = (others_NC[mine_N] / rest_N[mine_N, None]).mean(axis=0)
    return similarity_CC


def cluster_order(similarity: NDArray[Any]) -> list[int]:
    """The classes so ordered that those thought alike stand together: average linkage, leaves ordered optimally.

    Likeness of a pair is the mean of its two shares, or the one that is known. Bar-Joseph, Gifford & Jaakkola 2001.
    """
    # SciPy's import takes longer than everything else here
    from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
    from scipy.spatial.distance import squareform

    classes = len(similarity)
    if classes < 3:
        return list(range(classes))
    alike_CC = both_ways(similarity)
    distance_CC = float(alike_CC.max()) - alike_CC
    np.fill_diagonal(distance_CC, 0.0)
    condensed: Any = squareform(distance_CC, checks=False)
    tree: Any = linkage(condensed, method="average")
    return [int(leaf) for leaf in leaves_list(optimal_leaf_ordering(tree, condensed))]


def both_ways(similarity: NDArray[Any]) -> Floats:
    """The mean of ``S[i, j]`` and ``S[j, i]``, or the one that is known; 0 where neither is, and on the diagonal."""
    known_CC = np.isfinite(similarity)
    values_CC = np.where(known_CC, similarity, 0.0)
    counted_CC = known_CC.astype(np.float64) + known_CC.T
    alike_CC = (values_CC + values_CC.T) / np.maximum(counted_CC, 1.0)
    np.fill_diagonal(alike_CC, 0.0)
    return alike_CC


def most_alike(similarity: NDArray[Any], most: int = 12) -> list[tuple[int, int, float]]:
    """The pairs thought most alike: ``(i, j, likeness)``, i < j, the likeness as in `both_ways`, most alike first."""
    alike_CC = both_ways(similarity)
    first, second = np.triu_indices(len(alike_CC), k=1)
    order = np.argsort(-alike_CC[first, second], kind="stable")[:most]
    pairs = ((int(first[at]), int(second[at])) for at in order)
    return [(i, j, float(alike_CC[i, j])) for i, j in pairs if alike_CC[i, j] > 0.0]


@dataclass(frozen=True)
class Telling:
    """An example that shows what a soft target says.

    Args:
        row: which.
        answer: the likeliest class, which is the label.
        second: the next.
        probabilities: of the two at T = 1.
    """

    row: int
    answer: int
    second: int
    probabilities: tuple[float, float]


def telling_examples(targets: NDArray[Any], labels: NDArray[Any], most: int = 12, a_pair: int = 1) -> list[Telling]:
    """Rightly answered examples with a large second probability, at most ``a_pair`` for each ordered pair of classes, largest first.

    Rightly answered, because there the second class is what the teacher knows beyond the label, and not its mistake.

    Args:
        targets: ``q[N, C]`` at T = 1.
        labels: ``[N]``; an example without one is left out.
        most: how many at most.
        a_pair: of the same answer and second class.
    """
    q_NC, labels_N = np.asarray(targets, dtype=np.float64), np.asarray(labels)
    answers_N = q_NC.argmax(axis=1)
    others_NC = q_NC.copy()
    others_NC[np.arange(len(q_NC)), answers_N] = -1.0
    second_N = others_NC.argmax(axis=1)
    likelihood_N = others_NC.max(axis=1)
    chosen: list[Telling] = []
    shown: dict[tuple[int, int], int] = {}
    # of equal seconds, the clearer one: the rest of its target is the smaller
    order = np.lexsort((entropy(q_NC), -likelihood_N))
    for row in order[answers_N[order] == labels_N[order]].tolist():
        pair = (int(answers_N[row]), int(second_N[row]))
        if len(chosen) == most or likelihood_N[row] <= 0.0:
            break
        if shown.get(pair, 0) < a_pair:
            shown[pair] = shown.get(pair, 0) + 1
            chosen.append(Telling(row, *pair, (float(q_NC[row, pair[0]]), float(likelihood_N[row]))))
    return chosen
