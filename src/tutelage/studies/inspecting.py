"""``inspect.json``: what a study's teacher knows, found out before a student is taught. The test split is never asked."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tutelage import __version__
from tutelage.data import Completions, TransferSet, hex_id
from tutelage.errors import CheckpointError, ModelError
from tutelage.evaluation import paired_comparison
from tutelage.evaluation.knowledge import (
    best_renumbering,
    look_at,
    quality,
    soft_targets,
)
from tutelage.evaluation.knowledge_advice import Findings, advice, warnings_of
from tutelage.evaluation.knowledge_baseline import BaselineInputs, cheap_baselines
from tutelage.evaluation.knowledge_classes import (
    Telling,
    class_similarity,
    cluster_order,
    most_alike,
    telling_examples,
    telling_temperature,
)
from tutelage.files import write_atomically
from tutelage.models.saving import load_student
from tutelage.signals import NO_LABEL, ClassScores, Logits, MixtureLogits
from tutelage.studies.arm import RECORD, Progress, Silent, build_seeded, predict
from tutelage.studies.evidence import shown_image, shown_text
from tutelage.studies.faculty import TeacherTraining
from tutelage.studies.gates import JUDGED
from tutelage.studies.study import Study
from tutelage.studies.teaching import logits_of
from tutelage.teachers import Teacher

INSPECTION = "inspect.json"

#: Training examples whose soft targets are looked at, where there are more.
MOST_EXAMPLES = 10_000
#: Of those, how many are augmented, in each of `AUGMENTED_EPOCHS` epochs.
MOST_AUGMENTED = 2_000
AUGMENTED_EPOCHS = 2
#: Classes up to which the whole matrix of likeness is kept; beyond, the pairs most alike.
MATRIX_CLASSES = 30
EXAMPLES_SHOWN = 12
_BATCH = 512

Json = dict[str, Any]


def inspect_teacher(study: Study, out: str | Path, progress: Progress | None = None, command: str = "") -> Json:
    """Look at what the teacher's answers contain, and write it into ``inspect.json`` in ``out``.

    The teacher is the given one, or the one that a run trained in ``out``, or is trained there as a run would train it (a later
    run finds it done). Soft targets are looked at on the transfer set, which is what a student hears; quality is judged on the
    validation split. The test split is not asked, nor is what a finished arm once said of it.

    Args:
        study: whose teacher, data and student.
        out: the folder of its run, there or to be.
        progress: who watches a training.
        command: how the inspection was started, for the record.

    Returns:
        What ``inspect.json`` holds.

    Raises:
        TutelageError: the study does not fit together, or ``out`` holds another one's teacher or student.
    """
    started, clock = datetime.now(UTC), time.perf_counter()
    folder = Path(out)
    teacher = study.prepare_teacher(folder, _Sealed(progress if progress is not None else Silent()))
    seen = _look(study, teacher, folder)
    findings = seen.findings
    result: Json = {
        "tutelage": __version__,
        "started": started.isoformat(timespec="seconds"),
        "seconds": time.perf_counter() - clock,
        "title": study.title,
        "command": command,
        "classes": list(findings.classes),
        "teacher": {"given": findings.given, "members": seen.members},
        "asked": {
            "train": len(seen.train),
            "of": len(study.splits.train),
            "labelled": int((seen.train.known_labels != NO_LABEL).sum()),
            "validation": len(study.splits.validation),
        },
        "quality": {"validation": findings.validation, "train": findings.train},
        "rivals": list(findings.rivals),
        "renumbering": {"accuracy": findings.renumbering.accuracy, "renumbered": findings.renumbering.renumbered},
        "augmentation": findings.augmentation,
        "temperatures": list(findings.table),
        "student": seen.student,
        "similarity": _similarity(seen.scores, findings),
        "examples": _examples(seen, study.splits.validation),
        "advice": advice(findings),
        "warnings": warnings_of(findings),
    }
    write_atomically(folder / INSPECTION, json.dumps(result, indent=1, allow_nan=False))
    return result


class _Sealed:
    """Passes a training's progress on, but not what its arm scored on the test split."""

    def __init__(self, watched: Progress) -> None:
        self._watched = watched

    def started(self, what: str, total_steps: int, steps_done: int) -> None:
        self._watched.started(what, total_steps, steps_done)

    def advanced(self, steps_done: int) -> None:
        self._watched.advanced(steps_done)

    def finished(self, what: str, outcome: str) -> None:
        self._watched.finished(what, "ready" if "accuracy" in outcome else outcome)


@dataclass(frozen=True)
class _Seen:
    """What was asked and answered.

    Args:
        findings: what the sentences are made of.
        train: the training examples asked about, with every label that is known.
        scores: the teacher's, on them.
        validation_scores: on the validation split.
        student: which trained student the pull was compared at, or None.
        members: of an ensemble, or None.
    """

    findings: Findings
    train: TransferSet
    scores: ClassScores
    validation_scores: ClassScores
    student: str | None
    members: int | None


def _look(study: Study, teacher: Teacher, folder: Path) -> _Seen:
    validation = study.splits.validation.for_evaluation()
    train = _with_all_labels(_some(study.splits.train, MOST_EXAMPLES), study)
    scores, validation_scores = _ask(teacher, train.for_evaluation()), _ask(teacher, validation)
    labels, validation_labels = train.known_labels.numpy(), validation.known_labels.numpy()
    names = study.splits.class_labels()
    names += [str(index) for index in range(len(names), scores.classes)]
    student = _trained_student(study, folder, JUDGED)
    fresh = study._setting(folder, None, lambda: teacher).student  # pyright: ignore[reportPrivateUsage]  # as its run makes them
    logits_N = validation_scores.at(1.0).float().cpu().numpy()
    known = np.flatnonzero(labels != NO_LABEL)
    findings = Findings(
        classes=names,
        table=look_at(scores, labels, _student_logits(fresh, student, train)),
        validation=quality(logits_N, validation_labels),
        train=quality(scores.at(1.0).float().cpu().numpy()[known], labels[known]) if len(known) else None,
        renumbering=best_renumbering(logits_N.argmax(axis=1), validation_labels, scores.classes),
        rivals=_rivals(study, fresh, folder, logits_N.argmax(axis=1) == validation_labels),
        augmentation=_augmentation(teacher, train),
        unlabelled=1.0 - study.splits.train.labelled / len(study.splits.train),
        given=not _recipes(study),
    )
    members = len(scores.weights) if isinstance(scores, MixtureLogits) else None
    return _Seen(findings, train, scores, validation_scores, _place(student, folder), members)


def _some(transfer_set: TransferSet, most: int) -> TransferSet:
    """The set, or so many of its examples, the same in every inspection."""
    if len(transfer_set) <= most:
        return transfer_set
    rows = np.sort(np.random.default_rng(0).permutation(len(transfer_set))[:most])
    return transfer_set.select(torch.from_numpy(rows))


def _recipes(study: Study) -> list[TeacherTraining]:
    """How this study trains its teacher, or the members of it; none for a given one."""
    if study.teacher_training is not None:
        return [study.teacher_training]
    members = study.teacher if isinstance(study.teacher, Sequence) else []
    return [member.training for member in members if member.training is not None]


def _with_all_labels(train: TransferSet, study: Study) -> TransferSet:
    """The training examples with the labels that the teacher was trained on, where the student's set has forgotten them."""
    known: dict[int, int] = {}
    for recipe in _recipes(study):
        pairs = zip(recipe.data.ids.tolist(), recipe.data.known_labels.tolist(), strict=True)
        known |= {example: label for example, label in pairs if label != NO_LABEL}
    found = zip(train.ids.tolist(), train.known_labels.tolist(), strict=True)
    return train.with_labels(
        torch.tensor([label if label != NO_LABEL else known.get(example, NO_LABEL) for example, label in found])
    )


def _ask(teacher: Teacher, transfer_set: TransferSet, epoch: int = 0) -> ClassScores:
    """What the teacher says of every example, as epoch ``epoch`` shows them."""
    values: list[Tensor] = []
    weights: Tensor | None = None
    for start in range(0, len(transfer_set), _BATCH):
        batch = transfer_set.batch(torch.arange(start, min(start + _BATCH, len(transfer_set))), epoch)
        scores = logits_of(teacher, batch, "the teacher")
        if isinstance(scores, MixtureLogits):
            weights = scores.weights
        values.append((scores.members if isinstance(scores, MixtureLogits) else scores.at(1.0)).cpu())
    together = torch.cat(values, dim=-2)
    return Logits(together) if weights is None else MixtureLogits(together, weights)


def _answers(scores: ClassScores) -> NDArray[np.int64]:
    return scores.at(1.0).argmax(dim=1).cpu().numpy()


def _augmentation(teacher: Teacher, train: TransferSet) -> Json | None:
    """How the teacher answers augmented training views beside plain ones; None where training does not augment."""
    if train.augment is None:
        return None
    few = _some(train, MOST_AUGMENTED)
    plain = _answers(_ask(teacher, few.for_evaluation()))
    views = np.stack([_answers(_ask(teacher, few, epoch)) for epoch in range(AUGMENTED_EPOCHS)])
    labels = few.known_labels.numpy()
    known = labels != NO_LABEL

    def right(answers: NDArray[np.int64]) -> float | None:
        return float((answers[..., known] == labels[known]).mean()) if known.any() else None

    return {
        "examples": len(few),
        "epochs": AUGMENTED_EPOCHS,
        "plain": {"accuracy": right(plain)},
        "augmented": {"accuracy": right(views)},
        "agreement": float((views == plain).mean()),
    }


def _trained_student(study: Study, folder: Path, arm: str) -> Path | None:
    """Where a finished student of the arm lies, that of the first seed that has one."""
    places = [folder / arm / f"seed-{seed}" for seed in study.seed_list]
    return next((place for place in places if (place / RECORD).is_file()), None)


def _place(student: Path | None, folder: Path) -> str | None:
    return student.relative_to(folder).as_posix() if student is not None else None


def _loaded(fresh: Callable[[], nn.Module], place: Path) -> Any:
    try:
        return load_student(build_seeded(fresh, 0), place).cpu().eval()
    except ModelError as error:
        raise CheckpointError(
            f"the weights in {place} do not fit the student that its code builds now: the teacher would be compared with another "
            "student than this study's; bring back the code of the run, or name another --out"
        ) from error


def _student_logits(
    fresh: Callable[[], nn.Module], place: Path | None, train: TransferSet
) -> NDArray[np.float32] | None:
    return predict(_loaded(fresh, place), train).numpy() if place is not None else None


def _rivals(study: Study, fresh: Callable[[], nn.Module], folder: Path, right_N: NDArray[np.bool_]) -> list[Json]:
    """Who else answered the validation split: the run's students without a teacher, or else a cheap baseline."""
    validation = study.splits.validation
    labels = validation.known_labels.numpy()
    places = [folder / "scratch" / f"seed-{seed}" for seed in study.seed_list]
    places = [place for place in places if (place / RECORD).is_file()]
    if places:
        answers = np.stack([predict(_loaded(fresh, place), validation).numpy().argmax(axis=1) for place in places])
        seeds = f"{len(places)} seed{'s' * (len(places) != 1)} of this run"
        return [_rival("the student without a teacher", "student", seeds, answers == labels, right_N)]
    train = study.splits.train
    known = torch.nonzero(train.known_labels != NO_LABEL)[:, 0]
    if not len(known):
        return []
    labelled = train.select(known)
    found = cheap_baselines(_readable(labelled), labelled.known_labels.numpy(), _readable(validation), len(validation))
    about = f"fitted in seconds to the {len(known):,} labels of the transfer set"
    names = {
        "majority": "always naming the commonest class",
        "logistic regression": "a logistic regression on the inputs",
    }
    return [_rival(names[name], "baseline", about, (said == labels)[None], right_N) for name, said in found.items()]


def _rival(name: str, kind: str, about: str, theirs_SN: NDArray[np.bool_], own_N: NDArray[np.bool_]) -> Json:
    compared = paired_comparison(
        theirs_SN.astype(np.float64), own_N.astype(np.float64)[None], "accuracy", higher_is_better=True
    ).to_json()
    accuracy = float(theirs_SN.mean())
    found = {"name": name, "kind": kind, "about": about, "accuracy": accuracy}
    return {**found, "difference": compared["difference"], "ci95": compared["ci95"]}


def _readable(transfer_set: TransferSet) -> BaselineInputs | None:
    """What a simple model could read of the raw inputs: numbers ``[N, F]`` or texts; None for indices, which mean nothing as numbers."""
    raw = transfer_set.inputs
    if isinstance(raw, Completions):
        return None
    columns: Sequence[Tensor] = (
        (raw,) if isinstance(raw, Tensor) else tuple(raw.values()) if isinstance(raw, Mapping) else ()
    )
    if not columns:
        return list(raw)  # pyright: ignore[reportReturnType]
    if any(values.dtype not in (torch.float32, torch.float64, torch.float16, torch.uint8) for values in columns):
        return None
    return torch.cat([values.reshape(len(values), -1).float() for values in columns], dim=1).numpy()


def _similarity(scores: ClassScores, findings: Findings) -> Json:
    """Which classes the teacher thinks alike, at a temperature at which it says something."""
    classes = len(findings.classes)
    temperature = telling_temperature(findings.table, classes)
    similarity_CC = class_similarity(soft_targets(scores, temperature))
    whole = classes <= MATRIX_CLASSES
    shares = [[None if np.isnan(share) else float(share) for share in row] for row in similarity_CC] if whole else None
    return {
        "temperature": temperature,
        "matrix": shares,
        "order": cluster_order(similarity_CC) if whole else None,
        "pairs": [[i, j, share] for i, j, share in most_alike(similarity_CC)],
    }


def _examples(seen: _Seen, validation: TransferSet) -> Json:
    """Examples that show what a soft target says: of the validation split first, then of the training examples."""
    findings = seen.findings
    temperature = telling_temperature(findings.table, len(findings.classes))
    shown: list[Json] = []
    pairs: set[tuple[int, int]] = set()
    for split, part, scores in (("validation", validation, seen.validation_scores), ("train", seen.train, seen.scores)):
        plain_NC = soft_targets(scores, 1.0)
        softened_NC = soft_targets(scores, temperature)
        for told in telling_examples(plain_NC, part.known_labels.numpy(), EXAMPLES_SHOWN):
            if len(shown) < EXAMPLES_SHOWN and (told.answer, told.second) not in pairs:
                pairs.add((told.answer, told.second))
                shown.append(_example(told, split, part, softened_NC[told.row], findings.classes))
    return {"temperature": temperature, "shown": shown}


def _example(
    told: Telling, split: str, part: TransferSet, softened_C: NDArray[np.float64], names: Sequence[str]
) -> Json:
    return {
        "id": hex_id(int(part.ids[told.row])),
        "split": split,
        "label": names[told.answer],
        "second": names[told.second],
        "probabilities": list(told.probabilities),
        "softened": [float(softened_C[told.answer]), float(softened_C[told.second])],
        "image": shown_image(part, told.row),
        "text": shown_text(part, told.row),
    }
