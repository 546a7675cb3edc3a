"""What the workers of a sweep tell of a teacher that is theirs in common."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sweeps import Listening, base
from tiny import TRAINING, splits, student

from tutelage.studies import Member, TeacherTraining
from tutelage.studies.sweeping.trials import Candidate, Teachers


def test_an_ensemble_is_told_of_by_who_trains_it(tmp_path: Path) -> None:
    """Each worker told of every member again, and the counter of trainings ran past its end."""
    members = [Member(student, TeacherTraining(splits().train, TRAINING, seed=seed)) for seed in (4, 5)]
    candidate = Candidate(replace(base(), teacher=members), {}, {"teacher": "two"})
    first, second = Listening(), Listening()
    Teachers(tmp_path).heard_by(candidate, first)
    Teachers(tmp_path).heard_by(candidate, second)
    assert sorted(what for what, _ in first.lines) == ["teacher member-1, seed 4", "teacher member-2, seed 5"]
    assert second.lines == []
