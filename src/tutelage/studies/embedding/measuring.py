"""What is asked about every arm's embeddings of the test texts: whether they are as the teacher's, and whether answers are found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import ConfigError, DataError
from tutelage.evaluation.embeddings import pair_similarities
from tutelage.evaluation.embeddings_alignment import alignment, cosine_to_teacher, uniformity
from tutelage.evaluation.embeddings_pairs import Pairs, pairs_of
from tutelage.evaluation.embeddings_retrieval import retrieval_scores
from tutelage.evaluation.language import per_token
from tutelage.studies.embedding.data import TextSplit

Floats = NDArray[np.float64]
Numbers = NDArray[np.int64]
Values = NDArray[np.float32]

#: Below so many texts no correlation of similarities is told.
LEAST_TEXTS = 4


@dataclass(frozen=True, eq=False)
class Exam:
    """The test texts, with what is asked about their embeddings.

    Args:
        test: N texts.
        teacher: the teacher's embeddings ``[N, D]`` of them.
        pairs: how many pairs of texts similarities are compared on.
        ks: after how many texts an answer must have been found, each once, rising; of no use where no answers are known.

    Raises:
        DataError: too few texts for the pairs, or for the largest k.
        ConfigError: ks that do not rise from 1.
    """

    test: TextSplit
    teacher: Values
    pairs: int
    ks: Sequence[int]

    def __post_init__(self) -> None:
        if len(self.test) < LEAST_TEXTS:
            raise DataError(
                f"the test split has {len(self.test):,} texts, expected at least {LEAST_TEXTS}: a correlation of fewer similarities is a "
                "number without meaning; give more texts, or a larger splits.test"
            )
        if not self.ks or min(self.ks) < 1 or list(self.ks) != sorted(set(self.ks)):
            raise ConfigError(
                f"retrieval.k is {list(self.ks)}, expected rising whole numbers of at least 1, such as [1, 10]"
            )
        if self.retrieves and max(self.ks) >= len(self.test):
            raise DataError(
                f"retrieval.k goes up to {max(self.ks):,}, and each of the {len(self.test):,} test texts is searched for among the other "
                f"{len(self.test) - 1:,}: all of them would be found by any model; ask a smaller k, or give more test texts"
            )

    @property
    def retrieves(self) -> bool:
        """Whether some text has an answer to be found."""
        return bool(len(self.queries))

    @cached_property
    def queries(self) -> Numbers:
        """Rows ``[Q]`` of the texts that have answers."""
        groups = self.test.groups
        return np.array([row for row, group in enumerate(groups or ()) if group is not None], dtype=np.int64)

    @property
    def metrics(self) -> list[str]:
        """What retrieval is measured by; the first is what is judged: recall at the largest k."""
        if not self.retrieves:
            return []
        rest = [f"recall@{k}" for k in reversed(self.ks[:-1])]
        return [self.judged, *rest, *(f"ndcg@{k}" for k in self.ks if k > 1), "mrr"]

    @property
    def judged(self) -> str:
        """Recall at the largest k."""
        return f"recall@{max(self.ks)}"

    @cached_property
    def drawn(self) -> Pairs:
        """The pairs of test texts, the same for every arm."""
        return some_pairs(self.teacher, self.pairs)

    @cached_property
    def of_teacher(self) -> Floats:
        """Its similarities ``[P]`` on those pairs."""
        return pair_similarities(self.teacher, self.drawn)

    def of(self, embeddings: Sequence[Values]) -> ArmMeasures:
        """What is found of an arm.

        Args:
            embeddings: ``[N, D]`` of each seed.
        """
        retrieved = [self._retrieved(each) for each in embeddings] if self.retrieves else []
        alike = all(each.shape[1] == self.teacher.shape[1] for each in embeddings)
        return ArmMeasures(
            similarities=np.stack([pair_similarities(each, self.drawn) for each in embeddings]),
            cosines=np.stack([cosine_to_teacher(self.teacher, each) for each in embeddings]) if alike else None,
            retrieval={name: np.stack([one[name] for one in retrieved]) for name in self.metrics},
            shapes=[
                {"uniformity": float(uniformity(each)), **_numbers(alignment(self.teacher, each))}
                for each in embeddings
            ],
        )

    def _retrieved(self, embeddings: Values) -> dict[str, Floats]:
        """Each query's scores ``[Q]``: every other test text is searched through, and those of its group are its answers."""
        numbers = self.test.group_numbers
        members: dict[int, list[int]] = {}
        for row in self.queries.tolist():
            members.setdefault(int(numbers[row]), []).append(row)
        answers = [[other for other in members[int(numbers[row])] if other != row] for row in self.queries.tolist()]
        queries = embeddings[self.queries]
        return retrieval_scores(queries, embeddings, answers, ks=tuple(self.ks), own=self.queries.tolist())

    def by_group(self, values: Floats, some: Numbers | None = None) -> Floats:
        """Scores ``[S, G]`` of groups, whose means and spread are those of the queries: answers to one another are no several proofs.

        Args:
            values: ``[S, Q]``.
            some: places among the queries; None for all.
        """
        places = np.arange(len(self.queries)) if some is None else some
        numbers = self.test.group_numbers[self.queries[places]]
        known, group = np.unique(numbers, return_inverse=True)
        sums = np.zeros((len(known), len(values)))
        np.add.at(sums, group, values[:, places].T)
        return per_token(sums.T, np.bincount(group, minlength=len(known)))


@dataclass(frozen=True, eq=False)
class ArmMeasures:
    """What was found of one arm with S seeds.

    Args:
        similarities: ``[S, P]`` of the pairs.
        cosines: ``[S, N]`` of each text's embedding with the teacher's; None where widths differ.
        retrieval: by metric ``[S, Q]``.
        shapes: of each seed, numbers of the whole cloud of embeddings that are no means over texts.
    """

    similarities: Floats
    cosines: Floats | None
    retrieval: dict[str, Floats]
    shapes: list[dict[str, float]]


def some_pairs(teacher: Values, count: int) -> Pairs:
    """So many pairs of texts, evenly over the range of the teacher's similarity, or all there are where these are fewer.

    Args:
        teacher: its embeddings ``[N, D]``.
        count: of pairs.
    """
    return pairs_of(teacher, min(count, len(teacher) * (len(teacher) - 1) // 2))


def _numbers(found: dict[str, float | None]) -> dict[str, float]:
    """Those that are there, without the mean cosine, which has an interval of its own."""
    return {name: float(value) for name, value in found.items() if value is not None and name != "cosine"}
