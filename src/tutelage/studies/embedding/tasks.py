"""Task by task, the worst first: a student may keep the average and lose the small tasks behind it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.evaluation.embeddings import correlation, pair_similarities
from tutelage.evaluation.significance import paired_comparison
from tutelage.studies.embedding.measuring import LEAST_TEXTS, ArmMeasures, Exam, some_pairs

Json = dict[str, Any]
Numbers = NDArray[np.int64]

#: Of a task with fewer texts than these (texts that have answers, where answers are looked for) nothing is said: the noise of a
#: handful of texts would lead the list.
LEAST_A_TASK = 20
#: Groups of answers below which a drop has no interval, and nothing is said either.
_LEAST_GROUPS = 2


def task_table(
    exam: Exam,
    embeddings: Mapping[str, list[NDArray[np.float32]]],
    measured: Mapping[str, ArmMeasures],
    judged: str,
    teacher: str,
) -> list[Json]:
    """Each task's numbers in every arm, most lost first: by recall where there are answers, else by the correlation of similarities.

    A task's queries search through all test texts, as everywhere. The intervals of what is lost are simultaneous (Bonferroni): the worst
    of many tasks is looked at because it is the worst. Tasks that are too small to say anything of come last, whatever they lost, and have
    no interval.

    Args:
        exam: what was asked.
        embeddings: of each arm ``[N, D]``, one a seed.
        measured: what was found of each arm.
        judged: the arm whose loss ranks the tasks.
        teacher: the arm it is held against.

    Returns:
        By task ``task``, ``texts``, ``queries``, ``few`` (whether it is too small), ``arms`` (of each its ``spearman`` with the teacher and
        the judged recall, None where not known), ``drop`` (of recall: the teacher's less the judged arm's) and its interval ``ci``. Empty
        where texts have no tasks.
    """
    names = exam.test.tasks
    if names is None:
        return []
    kinds = sorted(set(names))
    of = {kind: np.array([row for row, name in enumerate(names) if name == kind], dtype=np.int64) for kind in kinds}
    places = {kind: np.flatnonzero(np.isin(exam.queries, rows)) for kind, rows in of.items()}
    few = {kind: _too_few(exam, of[kind], places[kind]) for kind in kinds}
    each = 1.0 - 0.05 / max(sum(not small for small in few.values()), 1)
    rows: list[Json] = []
    for kind in kinds:
        drop, interval = _lost(exam, measured[judged], measured[teacher], places[kind], None if few[kind] else each)
        agreement = _agreements(exam, embeddings, of[kind], teacher)
        arms = {
            arm: {"spearman": agreement.get(arm), exam.judged: _recall(exam, found, places[kind])}
            for arm, found in measured.items()
        }
        rows.append(
            {
                "task": kind,
                "texts": len(of[kind]),
                "queries": len(places[kind]),
                "few": few[kind],
                "arms": arms,
                "drop": drop,
                "ci": interval,
            }
        )
    return sorted(rows, key=lambda row: (row["few"], _rank(row, judged), row["texts"], row["task"]))


def _rank(row: Json, judged: str) -> float:
    """Least for the task that loses most; a task of which nothing is known comes last."""
    if row["drop"] is not None:
        return -row["drop"]
    agreement = row["arms"][judged]["spearman"]
    return math.inf if agreement is None else agreement


def _too_few(exam: Exam, rows: Numbers, places: Numbers) -> bool:
    """Whether a task's texts prove nothing."""
    if not exam.retrieves:
        return len(rows) < LEAST_A_TASK
    groups = len(np.unique(exam.test.group_numbers[exam.queries[places]]))
    return len(places) < LEAST_A_TASK or groups < _LEAST_GROUPS


def _recall(exam: Exam, found: ArmMeasures, places: Numbers) -> float | None:
    return float(found.retrieval[exam.judged][:, places].mean()) if len(places) else None


def _lost(
    exam: Exam, judged: ArmMeasures, teacher: ArmMeasures, places: Numbers, confidence: float | None
) -> tuple[float | None, list[float | None]]:
    """The teacher's recall less the judged arm's, with its interval of that confidence, if one is asked for."""
    if not len(places):
        return None, [None, None]
    values = [each.retrieval[exam.judged] for each in (teacher, judged)]
    drop = float(values[0][:, places].mean() - values[1][:, places].mean())
    if confidence is None:
        return drop, [None, None]
    theirs, own = (exam.by_group(each, places) for each in values)
    compared = paired_comparison(theirs, own, exam.judged, higher_is_better=True, confidence=confidence)
    return drop, [end if math.isfinite(end) else None for end in (compared.low, compared.high)]


def _agreements(
    exam: Exam, embeddings: Mapping[str, list[NDArray[np.float32]]], rows: Numbers, teacher: str
) -> dict[str, float]:
    """Each arm's correlation with the teacher on pairs of this task's texts, the mean over seeds."""
    if len(rows) < LEAST_TEXTS:
        return {}
    own = exam.teacher[rows]
    pairs = some_pairs(own, exam.pairs)
    theirs = pair_similarities(own, pairs)
    if np.ptp(theirs) <= 0:
        return {}
    found: dict[str, float] = {}
    for arm, seeds in embeddings.items():
        if arm != teacher:
            values = np.stack([pair_similarities(each[rows], pairs) for each in seeds])
            found[arm] = float(np.mean(correlation(theirs, values)))
    return found
