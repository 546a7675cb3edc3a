"""Two vocabularies in one study: what must fit for them to meet, which terms they can meet in, and what students are measured against."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from tutelage.data import TransferSet
from tutelage.data.language.crossing import Crossing
from tutelage.data.language.same_text import same_text
from tutelage.errors import ConfigError
from tutelage.objectives import DIST, DKD, KL, Divergence, LogitMSE, Objective, Term, as_objective
from tutelage.studies.teaching import listens
from tutelage.teachers import Teacher
from tutelage.teachers.crossing import CrossTokenizerTeacher, SortedTeacher
from tutelage.training.listening import first_signals

if TYPE_CHECKING:
    from tutelage.studies.language.study import LanguageStudy

_TEACHERS = {"crossing": CrossTokenizerTeacher, "uld": SortedTeacher}
#: Divergences that are means over the teacher's distribution: a token that it gives nothing adds nothing.
_OF_THE_TEACHERS = ("forward_kl", "skew_forward_kl")


def crossing_of(teacher: Teacher) -> Crossing | None:
    """Where a teacher's vocabulary meets the student's token by token; None where it does not."""
    return teacher.crossing if isinstance(teacher, CrossTokenizerTeacher | SortedTeacher) else None


def check_meeting(study: LanguageStudy) -> None:
    """Find out that teacher, data and arms are such as the study's alignment needs.

    Raises:
        ConfigError: a teacher of another alignment, no tokenizer of its own, an arm that cannot learn in this way, or given
            completions that are not the same text in both vocabularies.
        DataError: completions of which no text is the same.
    """
    wanted, crossing = _TEACHERS.get(study.alignment), crossing_of(study.teacher)
    if wanted is None and crossing is None:
        return
    if wanted is None or not isinstance(study.teacher, wanted) or crossing is None:
        needs = f"a {wanted.__name__}" if wanted is not None else "another one"
        raise ConfigError(
            f"alignment is {study.alignment!r}, and the teacher is a {type(study.teacher).__name__}: it would be asked about tokens of the "
            f"other vocabulary; give {needs}, or the alignment that it is for"
        )
    if study.teacher_tokenizer is None:
        raise ConfigError(
            f"alignment is {study.alignment!r}, and no teacher_tokenizer is given: what the teacher writes would be read in the student's "
            "vocabulary; give its own"
        )
    for arm, lesson in study.lessons.items():
        _check_arm(study, arm, as_objective(lesson.objective))
        if lesson.on_policy is not None and lesson.on_policy.share > 0:
            raise ConfigError(
                f"the arm {arm!r} is on-policy, and the teacher reads another vocabulary: its tokens of what the student writes are not "
                "known; leave on_policy out, or take a teacher with the student's tokenizer"
            )
    for name, split in study.data.splits.items():
        given = split.completions
        if given is not None and len(same_text(given, crossing).completions.values) != len(given.completions.values):
            raise ConfigError(
                f"completions of the {name} split do not begin and end at the same text in both vocabularies: rows would have no answer; "
                "bring them together, tutelage.data.language.same_text.same_text(completions, crossing)"
            )


def compared_with(study: LanguageStudy, teacher: Teacher, student: nn.Module, probe: TransferSet) -> Teacher | None:
    """Whom students are compared with token by token: the teacher, or where it shows sorted probabilities alone, the same model's
    distributions carried over; None where the two meet in text alone.

    Args:
        study: what is asked for.
        teacher: as the arms hear it.
        student: a fresh one.
        probe: a few examples.
    """
    if study.alignment == "text":
        return None
    if not isinstance(teacher, SortedTeacher):
        return teacher
    own = first_signals(student, probe.batch(torch.arange(1)), ()).logits
    assert own is not None
    return CrossTokenizerTeacher(teacher.teacher, teacher.crossing, classes=own.classes)


def _check_arm(study: LanguageStudy, arm: str, objective: Objective) -> None:
    if study.alignment == "uld":
        if study.labels_of(arm) is not None:
            raise ConfigError(
                f"the arm {arm!r} is to learn from labels, which are of the teacher's classes, and with alignment 'uld' it shows sorted "
                "probabilities alone: leave labels out, or use alignment 'crossing'"
            )
        return
    if not listens(objective):
        return
    for component in objective.components:
        why = _asks_the_impossible(component.term)
        if why is not None:
            raise ConfigError(
                f"the arm {arm!r} learns by {component.name}, which {why}. Carried over from another vocabulary, a token that none of the "
                "teacher's begins with has probability 0: the loss would be infinite or NaN, or the student trained away from what "
                "the teacher merely spells otherwise. Learn by forward KL ({term: kl}), or compare sorted probabilities "
                "(alignment: uld with {term: uld})"
            )


def _asks_the_impossible(term: Term) -> str | None:
    """Why a term of this library's cannot do with probabilities that are 0 for no reason of the language's; None where it can."""
    if isinstance(term, KL | Divergence):
        name = f"{term.direction}_kl" if isinstance(term, KL) else term.name
        if term.standardise:
            return "standardises logits, of which some are −inf"
        return (
            None if name in _OF_THE_TEACHERS else f"is {name} and weighs the teacher's probabilities by the student's"
        )
    if isinstance(term, LogitMSE):
        return "compares logits, of which some are −inf"
    if isinstance(term, DKD | DIST):
        return "compares the classes that are unlikely too"
    return None
