"""``result.json``, put together from what the trainings of a study left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tutelage.data import Splits, TransferSet
from tutelage.evaluation import measure_cost
from tutelage.models import count_parameters
from tutelage.studies.arm import build_seeded
from tutelage.studies.chain import Walked
from tutelage.studies.chain_record import chain_record
from tutelage.studies.evidence import collect_evidence, correctness, slice_tables
from tutelage.studies.faculty import TEACHER, Faculty
from tutelage.studies.gates import JUDGED, Gates
from tutelage.studies.judging import Beside, judge
from tutelage.studies.priors import prior_correction
from tutelage.studies.recipes import Outcome
from tutelage.studies.records import arm_record, comparisons
from tutelage.studies.setting import Setting
from tutelage.studies.starting import Start
from tutelage.studies.stored_labels import Kept
from tutelage.studies.surgery import surgery_record
from tutelage.studies.teaching import deployed_module, on_cpu
from tutelage.studies.typical import tokens_in, typical_example
from tutelage.teachers import Teacher

Json = dict[str, Any]


@dataclass(frozen=True)
class Findings:
    """What a study's trainings left.

    Args:
        setting: what they shared.
        faculty: who taught.
        outcomes: of each arm.
        descriptions: of each arm, in words.
        gates: the limits.
        walked: the road by way of assistants, where there are some.
        kept: the stored labels that the students were taught from, where they were.
        settings: of each arm.
        starts: how students begin, of the arms that it is told of; the others' begin as those of the judged one.
    """

    setting: Setting
    faculty: Faculty
    outcomes: Mapping[str, Outcome]
    descriptions: Mapping[str, str]
    gates: Gates
    walked: Walked | None
    kept: Kept | None
    settings: Mapping[str, Setting]
    starts: Mapping[str, Start]


def assemble(found: Findings) -> Json:
    """The part of ``result.json`` that says what was found."""
    splits, faculty = found.setting.splits, found.faculty
    runs = {arm: outcome.runs for arm, outcome in found.outcomes.items()}
    teacher_logits, members_logits = faculty.test_logits(splits.test)
    logits = {TEACHER: teacher_logits[None]}
    logits |= {arm: np.stack([run.test_logits for run in arm_runs]) for arm, arm_runs in runs.items()}
    labels = splits.test.known_labels.numpy()
    arms = {TEACHER: _teacher_record(faculty, teacher_logits, labels)}
    for arm, arm_runs in runs.items():
        record = arm_record(found.descriptions[arm], arm_runs, logits[arm], teacher_logits, labels)
        begun = {"start": found.starts[arm].words} if arm in found.starts else {}
        arms[arm] = {**record, **begun, **found.outcomes[arm].record}
    compared = comparisons(JUDGED, logits, labels)
    names = _class_names(splits, teacher_logits.shape[1])
    correct = {arm: correctness(values, labels) for arm, values in logits.items()}
    slices = slice_tables(correct[JUDGED], correct[TEACHER], splits.test, names)
    cost = _measure_cost(found.setting, faculty.teacher)
    curves = {**({TEACHER: faculty.runs} if faculty.runs else {}), **runs}
    record = {
        "splits": {name: len(getattr(splits, name)) for name in ("train", "validation", "test")},
        "transfer": _transfer_counts(splits.train),
        "classes": names,
        "arms": arms,
        "comparisons": compared,
        "cost": cost,
        "verdict": judge(found.gates, arms, compared, cost, Beside(correct=correct, slices=slices)),
        "slices": slices,
        "evidence": collect_evidence(curves, logits, splits.test, names, JUDGED),
    }
    if found.kept is not None:
        record["labels"] = found.kept.to_json(found.setting.folder)
    if faculty.members:
        record["members"] = _members(faculty, members_logits, labels)
    if found.walked is not None:
        record["chain"] = chain_record(found.walked, found.setting, faculty, runs, record)
    if cuts := surgery_record(found.faculty.teacher, found.settings, found.starts, found.walked):
        record["surgery"] = cuts
    corrected = prior_correction(splits, runs, logits, found.settings, names)
    if corrected is not None:
        record["prior_correction"] = corrected
    return record


def _teacher_record(faculty: Faculty, logits: NDArray[np.float32], labels: NDArray[np.int64]) -> Json:
    runs = [faculty.run] if faculty.run is not None else []
    count = len(faculty.members)
    what = f"the teacher: {count} models whose probabilities are averaged" if count else "the teacher"
    record = arm_record(what, runs, logits[None], None, labels)
    if count and faculty.spent is not None:
        record["seeds"][0] |= {"seconds": faculty.spent[0], "steps": faculty.spent[1]}
    return record


def _members(faculty: Faculty, logits: Sequence[NDArray[np.float32]], labels: NDArray[np.int64]) -> list[Json]:
    rows: list[Json] = []
    for member, values in zip(faculty.members, logits, strict=True):
        run = member.run
        module = deployed_module(member.teacher)
        said = f"trained by this run with seed {run.seed}" if run is not None else "given"
        rows.append(
            {
                "name": member.name,
                "weight": member.share,
                "parameters": count_parameters(module) if module is not None else None,
                **arm_record(said, [run] if run is not None else [], values[None], None, labels),
                "seconds": run.seconds if run is not None else None,
            }
        )
    return rows


def _measure_cost(setting: Setting, teacher: Teacher) -> Json:
    """Of both models; FLOPs and the latency of one are of the test split's typical example, those of many of its first."""
    test = setting.splits.test.for_evaluation()
    first: Any = test.batch(torch.arange(min(32, len(test))))
    given = {"teacher": first.get("teacher", first["student"]), "student": first["student"]}
    alone = typical_example(test)
    models: dict[str, nn.Module] = {"student": build_seeded(setting.student, setting.seeds[0])}
    with ExitStack() as stack:
        if (module := deployed_module(teacher)) is not None:
            models = {"teacher": stack.enter_context(on_cpu(module)), **models}
        names = list(models)
        costs = measure_cost(models, {name: given[name] for name in names}, alone={name: alone[name] for name in names})
    tokens = {name: tokens_in(alone[name]) for name in names}
    return {
        name: {**cost.to_json(), **({"example_tokens": tokens[name]} if tokens[name] is not None else {})}
        for name, cost in costs.items()
    }


def _class_names(splits: Splits, count: int) -> list[str]:
    """A name for each of the models' classes, of which the data may not show the last."""
    named = splits.class_labels()
    return named + [str(index) for index in range(len(named), count)]


def _transfer_counts(train: TransferSet) -> Json:
    return {"examples": len(train), "labelled": train.labelled, "unlabelled": len(train) - train.labelled}
