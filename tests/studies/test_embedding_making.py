"""What an embedding study makes its students of, and whether they fit, beyond the tiniest sizes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from embedding_tiny import data, encoder, split, study, terms

from tutelage.errors import ObjectiveError
from tutelage.studies.arm import Silent
from tutelage.studies.embedding import EmbeddingArm, EmbeddingStudy, Pupil
from tutelage.studies.embedding.models import CutTo, Making
from tutelage.studies.embedding.work import begin


def _along_axes(**changes: Any) -> EmbeddingStudy:
    """A table 24 wide that learns from a teacher 48 wide, along that one's axes."""
    wide, given = encoder(width=48), changes.get("data", data())
    making = Making(wide, given.train.texts, 16)
    table = Pupil(making.static(24, "outputs"), "a static one")
    arm = EmbeddingArm(terms({"term": "embedding_cosine", "projection": "pca"}), table)
    student = Pupil(making.cut(CutTo(layers=1)), "a cut one", cut=True)
    return study(teacher=wide, student=student, extra_arms={"table": arm}, **changes)


def test_axes_are_not_those_of_the_few_texts_that_are_tried(tmp_path: Path) -> None:
    """A dozen texts have a dozen axes: every student of a useful width would be refused for them, before the whole set has
    given its own."""
    begin(_along_axes(), tmp_path, Silent())


def test_more_axes_than_texts_are_refused_at_once(tmp_path: Path) -> None:
    """Found only when the teacher has embedded every text, its hours would be lost."""
    few = replace(data(), train=split(range(11)))
    with pytest.raises(ObjectiveError, match=r"the arm 'table': .*nothing along its axis number 24"):
        begin(_along_axes(data=few), tmp_path, Silent())
