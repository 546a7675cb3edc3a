"""From the arms' embeddings of the test texts to the numbers of ``result.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.evaluation.embeddings import agreement_difference, correlation, similarity_agreement
from tutelage.evaluation.significance import Estimate, crossed_interval, paired_comparison
from tutelage.studies.embedding.arms import UNTOUCHED
from tutelage.studies.embedding.data import EmbeddingData
from tutelage.studies.embedding.gates import EmbeddingGates
from tutelage.studies.embedding.judging import Evidence, judge_embedding
from tutelage.studies.embedding.measuring import ArmMeasures, Exam
from tutelage.studies.embedding.tasks import LEAST_A_TASK, task_table
from tutelage.studies.embedding.training import EmbeddingRun
from tutelage.studies.gates import JUDGED

TEACHER = "teacher"

Json = dict[str, Any]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Findings:
    """What an embedding study left.

    Args:
        runs: of each arm, the teacher's among them.
        descriptions: of each arm, in words.
        data: the splits.
        exam: what the test texts were asked.
        gates: the limits.
        cost: of teacher and students.
        transfer: what is known of the training texts.
        surgery: of each student that was cut, what was kept; by arm.
    """

    runs: Mapping[str, Sequence[EmbeddingRun]]
    descriptions: Mapping[str, str]
    data: EmbeddingData
    exam: Exam
    gates: EmbeddingGates
    cost: Mapping[str, Any]
    transfer: Mapping[str, Any]
    surgery: Mapping[str, Any]


def assemble_embedding(found: Findings) -> Json:
    """The part of ``result.json`` that says what was found."""
    exam = found.exam
    embeddings = {arm: [run.test for run in runs] for arm, runs in found.runs.items()}
    measured = {arm: exam.of(each) for arm, each in embeddings.items()}
    arms = {arm: _arm(arm, found, measured[arm]) for arm in found.runs}
    compared = _comparisons(exam, measured)
    tasks = task_table(exam, embeddings, measured, JUDGED, TEACHER)
    retrieval = {
        "queries": len(exam.queries),
        "texts": len(exam.test),
        "k": list(exam.ks),
        "metrics": exam.metrics,
        "judged": exam.judged,
    }
    trained = {arm: runs for arm, runs in found.runs.items() if any(run.log for run in runs)}
    return {
        "splits": {name: len(split) for name, split in found.data.splits.items()},
        "transfer": dict(found.transfer),
        "similarity": {"pairs": len(exam.of_teacher), "method": exam.drawn.method},
        "retrieval": retrieval if exam.retrieves else None,
        "arms": arms,
        "comparisons": compared,
        "tasks": tasks,
        "least_a_task": LEAST_A_TASK,
        "cost": dict(found.cost),
        "surgery": dict(found.surgery),
        "evidence": {"curves": {arm: [_curves(run) for run in runs] for arm, runs in trained.items()}},
        "verdict": judge_embedding(found.gates, _evidence(found, arms, compared, tasks, measured)),
    }


def _evidence(
    found: Findings, arms: Json, compared: Sequence[Json], tasks: Sequence[Json], measured: Mapping[str, ArmMeasures]
) -> Evidence:
    exam = found.exam
    values = {arm: exam.by_group(each.retrieval[exam.judged]) for arm, each in measured.items() if exam.retrieves}
    return Evidence(
        arms=arms,
        comparisons=compared,
        cost=found.cost,
        tasks=tasks,
        recall=exam.judged if exam.retrieves else None,
        values=values,
        untouched=UNTOUCHED in arms,
    )


def _arm(arm: str, found: Findings, measured: ArmMeasures) -> Json:
    exam, runs = found.exam, found.runs[arm]
    estimates: dict[str, Estimate] = {}
    if arm != TEACHER:
        estimates["spearman"] = similarity_agreement(exam.of_teacher, measured.similarities, exam.drawn)
        if measured.cosines is not None:
            estimates["cosine"] = crossed_interval(measured.cosines)
    for name in exam.metrics:
        estimates[name] = crossed_interval(exam.by_group(measured.retrieval[name]))
    seeds = [_seed(arm, run, index, exam, measured) for index, run in enumerate(runs)]
    shapes = {name: float(np.mean([one[name] for one in measured.shapes])) for name in measured.shapes[0]}
    if arm == TEACHER:
        shapes = {"uniformity": shapes["uniformity"]}
    return {
        "description": found.descriptions[arm],
        "width": int(runs[0].test.shape[1]),
        "seeds": seeds,
        "mean": {name: estimate.mean for name, estimate in estimates.items()} | shapes,
        "ci95": {name: _ends(name, estimate) for name, estimate in estimates.items()},
        "ci_method": {name: estimate.method for name, estimate in estimates.items()},
    }


def _seed(arm: str, run: EmbeddingRun, index: int, exam: Exam, measured: ArmMeasures) -> Json:
    fidelity: Json = {}
    if arm != TEACHER:
        fidelity["spearman"] = float(correlation(exam.of_teacher, measured.similarities[index : index + 1])[0])
        if measured.cosines is not None:
            fidelity["cosine"] = float(measured.cosines[index].mean())
        fidelity |= {name: value for name, value in measured.shapes[index].items() if name != "uniformity"}
    return {
        "seed": run.seed,
        "seconds": run.seconds,
        "steps": run.steps,
        "metrics": {
            **{name: float(measured.retrieval[name][index].mean()) for name in exam.metrics},
            "uniformity": measured.shapes[index]["uniformity"],
        },
        "fidelity": fidelity,
    }


def _ends(name: str, estimate: Estimate) -> list[float | None]:
    """An interval, cut where the metric ends."""
    least = -1.0 if name in ("spearman", "cosine") else 0.0
    return [None if not np.isfinite(end) else float(min(max(end, least), 1.0)) for end in (estimate.low, estimate.high)]


def _comparisons(exam: Exam, measured: Mapping[str, ArmMeasures]) -> list[Json]:
    """The judged arm against every other, paired by seed, and by pair of texts or by group of answers."""
    rows: list[Json] = []
    own = measured[JUDGED]
    for other, theirs in measured.items():
        if other == JUDGED:
            continue
        if other != TEACHER:
            compared = agreement_difference(exam.of_teacher, own.similarities, theirs.similarities, exam.drawn)
            rows.append({"a": JUDGED, "b": other, **compared.to_json()})
        for name in exam.metrics:
            a, b = (exam.by_group(each.retrieval[name]) for each in (own, theirs))
            rows.append({"a": JUDGED, "b": other, **paired_comparison(a, b, name, higher_is_better=True).to_json()})
    return rows


def _curves(run: EmbeddingRun) -> Json:
    """A training's loss with its parts, and what was watched on the validation split, step by step."""
    train: list[Json] = []
    validation: list[Json] = []
    for line in run.log:
        place = {"step": line["step"], "epoch": line.get("epoch")}
        if "loss" in line:
            parts = {key.removeprefix("loss/"): value for key, value in line.items() if key.startswith("loss/")}
            train.append({**place, "loss": line["loss"], "components": parts})
        elif "eval_spearman" in line:
            validation.append({**place, "spearman": line["eval_spearman"]})
    return {"seed": run.seed, "train": train, "validation": validation}
