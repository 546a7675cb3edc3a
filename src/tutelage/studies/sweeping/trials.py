"""What one trial of a sweep trains, and what is put down of it: validation alone is looked at."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from tutelage.errors import ConfigError
from tutelage.evaluation import classification_metrics, crossed_interval, per_example
from tutelage.objectives import CrossEntropy, Objective, as_objective
from tutelage.studies.arm import RECORD, ArmPlan, Progress, Silent, read_arm
from tutelage.studies.chain import walk
from tutelage.studies.setting import Setting, bytes_of
from tutelage.studies.starting import FromTeacher
from tutelage.studies.study import Study
from tutelage.studies.sweeping.space import Params, short_hash
from tutelage.studies.teaching import Heard

Json = dict[str, Any]

TRIALS, TEACHERS, SCRATCH = "trials", "teachers", "scratch"


@dataclass(frozen=True)
class Candidate:
    """One configuration of a sweep, as a study.

    Args:
        study: its arm ``kd`` is the trial; the winner's is run whole.
        decides: what decides the student's weights; the trial's folder is named by its hash and the study's fingerprint.
        taught_by: what decides the teacher; candidates that agree in it share one.
    """

    study: Study
    decides: Mapping[str, Any]
    taught_by: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def identity(self) -> Json:
        """What decides the student's weights, with the study's own fingerprint: the contents of the user's files among it."""
        return {"decides": dict(self.decides), "fingerprint": dict(self.study.fingerprint)}

    @property
    def folder(self) -> str:
        """Where its seeds lie in the sweep's folder."""
        return f"{TRIALS}/{short_hash(self.identity)}"

    @property
    def teacher_folder(self) -> str:
        """Where its teacher lies in the sweep's folder."""
        return f"{TEACHERS}/{short_hash(self.taught_by)}"

    @property
    def validation(self) -> str:
        """What it is judged on, by a hash of ids and labels."""
        return sha256(bytes_of(self.study.splits.validation)).hexdigest()[:16]


#: Makes the candidate of a point.
Make = Callable[[Params], Candidate]


class Teachers:
    """The teachers of a sweep's candidates: each is trained once for all workers, and asked once by each of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._heard: dict[str, Heard] = {}

    def heard_by(self, candidate: Candidate, progress: Progress) -> Heard:
        """The candidate's teacher, trained first where no worker has trained it yet."""
        name = candidate.teacher_folder
        if name not in self._heard:
            home = self._folder / name
            home.mkdir(parents=True, exist_ok=True)
            with FileLock(home.with_suffix(".lock")):
                self._heard[name] = _prepare(candidate.study, home, _News(progress))
        return self._heard[name]

    def home_of(self, candidate: Candidate) -> Path:
        """Where the candidate's teacher is trained."""
        return self._folder / candidate.teacher_folder

    def hand_over(self, candidate: Candidate, folder: Path) -> None:
        """Leave the candidate's teacher, as it was trained for the sweep, where a whole run in ``folder`` finds it done."""
        home = self._folder / candidate.teacher_folder
        folder.mkdir(parents=True, exist_ok=True)
        for part in sorted(path for path in home.iterdir() if path.is_dir()):
            if not (folder / part.name).exists():
                aside = folder / f".{part.name}.part"
                shutil.rmtree(aside, ignore_errors=True)
                shutil.copytree(part, aside)
                aside.rename(folder / part.name)


class _News:
    """Passes progress on, but not what was done before: a teacher trained by another worker was told of by that one."""

    def __init__(self, watched: Progress) -> None:
        self._watched = watched

    def started(self, what: str, total_steps: int, steps_done: int) -> None:
        self._watched.started(what, total_steps, steps_done)

    def advanced(self, steps_done: int) -> None:
        self._watched.advanced(steps_done)

    def finished(self, what: str, outcome: str) -> None:
        if outcome != "done in an earlier run":
            self._watched.finished(what, outcome)


def _prepare(study: Study, home: Path, progress: Progress) -> Heard:
    """Who teaches the arm ``kd``: the teacher, or the last of its assistants."""
    heard = study.hear_teacher(home, progress)
    if study.chain is None:
        return heard
    return walk(
        study.chain, _setting(study, home, study.seed_list, progress, home), heard, as_objective(study.objective)
    ).heard


def _setting(study: Study, folder: Path, seeds: Sequence[int], progress: Progress, home: Path) -> Setting:
    """What a candidate's trainings share, the teacher that was trained in ``home`` among it."""
    teacher = partial(study.trained_teacher, home)
    shared = study._setting(folder, progress, teacher)  # pyright: ignore[reportPrivateUsage]  # as its run would begin
    return replace(shared, seeds=seeds, together=study.together)


def trial_plans(
    candidate: Candidate, name: str, folder: Path, seeds: Sequence[int], teachers: Teachers, progress: Progress
) -> list[ArmPlan]:
    """The arm ``kd`` of a candidate over the sweep's seeds, judged on the validation split."""
    objective = as_objective(candidate.study.objective)
    heard = teachers.heard_by(candidate, progress)
    return _plans(candidate, name, folder, seeds, objective, heard, teachers.home_of(candidate))


def scratch_plans(
    candidate: Candidate, folder: Path, seeds: Sequence[int], teachers: Teachers, progress: Progress
) -> list[ArmPlan]:
    """The same student without a teacher, on the budget of ``candidate``, judged on the validation split."""
    if isinstance(candidate.study.student, FromTeacher):
        teachers.heard_by(candidate, progress)  # trains whom the students are made of
    return _plans(candidate, SCRATCH, folder, seeds, as_objective(CrossEntropy()), None, teachers.home_of(candidate))


def _plans(
    candidate: Candidate,
    name: str,
    folder: Path,
    seeds: Sequence[int],
    objective: Objective,
    heard: Heard | None,
    home: Path,
) -> list[ArmPlan]:
    setting = _setting(candidate.study, folder, seeds, Silent(), home)
    # the test split is the winner's alone
    held_out = candidate.study.splits.validation
    return [setting.plan(name, seed, folder / f"seed-{seed}", objective, heard, test=held_out) for seed in seeds]


def all_done(plans: Sequence[ArmPlan]) -> bool:
    """Whether every plan has left its record."""
    return all((plan.folder / RECORD).is_file() for plan in plans)


def record_of(plans: Sequence[ArmPlan]) -> Json:
    """``seeds``, ``mean`` and ``ci95`` of finished plans, on the validation split.

    The intervals are over other seeds and other examples (:func:`tutelage.evaluation.crossed_interval`), of the metrics that
    are means over examples; macro-F1 and ECE have their mean alone, a bootstrap for each trial would cost more than it tells.

    Raises:
        CheckpointError: what a plan left is damaged.
    """
    labels = plans[0].test.known_labels.numpy()
    seeds: list[Json] = []
    scores: list[dict[str, Any]] = []
    for plan in plans:
        found = read_arm(plan.folder)
        if found is None:
            raise ConfigError(f"{plan.folder} holds no finished training: its trial cannot be judged")
        run = found[0]
        metrics = classification_metrics(run.test_logits, labels)
        scores.append(per_example(run.test_logits, labels))
        seeds.append({"seed": plan.seed, "metrics": metrics, "seconds": run.seconds, "steps": run.steps})
    estimates = {name: crossed_interval(np.stack([row[name] for row in scores])) for name in scores[0]}
    mean = {name: float(np.mean([row["metrics"][name] for row in seeds])) for name in seeds[0]["metrics"]}
    return {
        "seeds": seeds,
        "mean": mean | {name: estimate.mean for name, estimate in estimates.items()},
        "ci95": {name: estimate.to_json()["ci95"] for name, estimate in estimates.items()},
    }
