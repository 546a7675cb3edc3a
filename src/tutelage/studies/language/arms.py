"""The arms of a language study: what each minimises, and what it learns from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tutelage.objectives import Objective, Term
from tutelage.studies.stored_labels import Labels

if TYPE_CHECKING:
    from tutelage.training.on_policy import OnPolicy

#: Who wrote the completions that are learnt from.
Author = Literal["data", "teacher"]
#: Whose prompts the student is trained on.
Shown = Literal["student", "teacher"]

#: The arm that no training touches, and the control without a teacher.
UNTOUCHED, SFT = "untouched", "sft"


@dataclass(frozen=True)
class LanguageArm:
    """Another way to teach the same student.

    Args:
        objective: what it minimises.
        on_policy: where the student itself writes completions that the teacher marks.
        completions: who wrote those that are given; None for whoever wrote the study's.
        labels: how the teacher's answers are kept for this arm; None for the study's own labels.
        shows: whose prompts the student is trained on. It is always *asked* with its own.
    """

    objective: Objective | Term
    on_policy: OnPolicy | None = None
    completions: Author | None = None
    labels: Labels | None = None
    shows: Shown = "student"
