"""The ``chain`` of ``result.json``: every link, what each road would have cost, and whether the detour paid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tutelage.data import TransferSet
from tutelage.errors import TeacherError
from tutelage.evaluation import classification_metrics
from tutelage.evaluation.cost import count_flops
from tutelage.models import count_parameters
from tutelage.studies.arm import ArmRun
from tutelage.studies.chain import DIRECT, Link, Walked, metrics_on, validation_metrics_of
from tutelage.studies.faculty import TEACHER, Faculty
from tutelage.studies.gates import JUDGED
from tutelage.studies.setting import Setting
from tutelage.studies.teaching import on_cpu, teacher_predictions
from tutelage.studies.typical import typical_example
from tutelage.teachers import Teacher

Json = dict[str, Any]

STUDENT = "student"

_ONE_EACH = (
    "Each assistant was trained once, with a seed of its own: the interval speaks of students of this assistant, not of another training "
    "of it."
)
_CHOSEN = (
    "The road was chosen by the validation accuracy of one trial student with the first seed; the judged student of that seed is trained "
    "the same way again."
)


def chain_record(
    walked: Walked,
    setting: Setting,
    faculty: Faculty,
    runs: Mapping[str, Sequence[ArmRun]],
    record: Mapping[str, Any],
) -> Json:
    """The ``chain`` of ``result.json``.

    Args:
        walked: the road.
        setting: what all trainings shared.
        faculty: who stands at its beginning.
        runs: of each arm, ``kd`` and ``direct`` among them.
        record: the rest of ``result.json``, with ``arms``, ``cost`` and ``comparisons``.
    """
    names = [link.name for link in walked.links]
    last = names[-1]
    return {
        "path": [TEACHER, *names, STUDENT],
        "how": walked.how,
        "links": [
            _teacher_link(setting, faculty, record),
            *(_assistant_link(link) for link in walked.links),
            _student_link(last, setting, runs[JUDGED], record),
        ],
        "candidates": _candidates(walked, setting, runs[DIRECT]) if walked.candidates is not None else None,
        "detour": detour(walked, record["comparisons"]),
        "note": " ".join([_ONE_EACH, *([_CHOSEN] if walked.candidates is not None else [])]),
    }


def _teacher_link(setting: Setting, faculty: Faculty, record: Mapping[str, Any]) -> Json:
    cost = record["cost"].get("teacher", {})
    seconds, steps = faculty.spent if faculty.spent is not None else (None, None)
    return {
        "name": TEACHER,
        "taught_by": None,
        "parameters": cost.get("parameters"),
        "flops_per_example": cost.get("flops_per_example"),
        "seconds": seconds,
        "steps": steps,
        "validation": _answers_on(faculty.teacher, setting.splits.validation),
        "test": record["arms"][TEACHER]["mean"],
    }


def _assistant_link(link: Link) -> Json:
    alone = typical_example(link.splits.test)["student"]
    with on_cpu(link.module.eval()) as module:
        flops = count_flops(module, alone)
    return {
        "name": link.name,
        "taught_by": link.taught_by,
        "parameters": count_parameters(link.module),
        "flops_per_example": flops,
        "seconds": link.run.seconds,
        "steps": link.run.steps,
        "seed": link.run.seed,
        "validation": metrics_on(link.module, link.splits.validation),
        "test": metrics_on(link.module, link.splits.test),
    }


def _student_link(taught_by: str, setting: Setting, runs: Sequence[ArmRun], record: Mapping[str, Any]) -> Json:
    cost = record["cost"]["student"]
    return {
        "name": STUDENT,
        "taught_by": taught_by,
        "parameters": cost["parameters"],
        "flops_per_example": cost["flops_per_example"],
        "seconds": float(np.mean([run.seconds for run in runs])),
        "steps": runs[0].steps,
        "validation": _mean([validation_metrics_of(run, setting) for run in runs]),
        "test": record["arms"][JUDGED]["mean"],
    }


def _candidates(walked: Walked, setting: Setting, direct: Sequence[ArmRun]) -> list[Json]:
    """Every road with what it would have cost; the direct one is there to be seen, not to be chosen."""
    rows: list[Json] = [
        {
            "path": [TEACHER, *(link.name for link in tried.links), STUDENT],
            "validation_accuracy": tried.metrics["accuracy"],
            "seconds": tried.seconds,
            "chosen": list(tried.links) == list(walked.links),
        }
        for tried in walked.candidates or ()
    ]
    plain = {
        "path": [TEACHER, STUDENT],
        "validation_accuracy": validation_metrics_of(direct[0], setting)["accuracy"],
        "seconds": direct[0].seconds,
        "chosen": False,
    }
    return [plain, *rows]


def detour(walked: Walked, comparisons: Sequence[Mapping[str, Any]]) -> Json:
    """What going by way of the assistants gained over the direct road, and what it took.

    Args:
        walked: the road.
        comparisons: of ``result.json``, that of ``kd`` with ``direct`` among them.
    """
    wanted = (JUDGED, DIRECT, "accuracy")
    row = next(row for row in comparisons if (row["a"], row["b"], row["metric"]) == wanted)
    extra = sum(link.run.seconds for link in walked.links) + walked.search_seconds
    points = 100 * row["difference"]
    paid, why = _whether_it_paid(row, extra, walked.search_seconds)
    return {
        "difference": row["difference"],
        "ci95": row["ci95"],
        "p_value": row["p_value"],
        "extra_seconds": extra,
        "search_seconds": walked.search_seconds,
        "points_per_minute": points / (extra / 60) if extra > 0 else None,
        "paid": paid,
        "why": why,
    }


def _whether_it_paid(row: Mapping[str, Any], extra: float, search: float) -> tuple[bool | None, str]:
    low, high = row["ci95"]
    points = 100 * row["difference"]
    moved = f"{abs(points):.1f} points of accuracy {'below' if points < 0 else 'above'} the direct road"
    searched = f", {_duration(search)} of it for choosing the road" if search > 0 else ""
    said = f"By way of the assistants the student is {moved}, for {_duration(extra)} of training more{searched}"
    if row["seeds"] < 2:
        return None, f"{said}; one seed cannot tell luck in training from merit: run at least 2 seeds, better 5."
    if low is None or high is None:
        return None, f"{said}; no interval could be computed: nothing varies between seeds or examples."
    span = f"95% interval: {100 * low:+.1f} to {100 * high:+.1f} points"
    if low > 0:
        return True, f"{said} ({span}): the detour paid, {points / (extra / 60):.2g} points a minute."
    if high <= 0:
        return False, f"{said} ({span}): the detour did not pay."
    return None, f"{said} ({span}): the interval holds 0, so whether the detour paid cannot be told."


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} minutes"


def _answers_on(teacher: Teacher, validation: TransferSet) -> dict[str, float] | None:
    """The teacher's metrics on the validation split; None where its kept answers do not reach it."""
    try:
        return classification_metrics(teacher_predictions(teacher, validation), validation.known_labels.numpy())
    except TeacherError:
        return None


def _mean(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
