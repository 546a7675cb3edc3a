"""How students begin: fresh ones, or made of their teacher's module, who may have to be trained first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from tutelage.data import Splits, TransferSet, View
from tutelage.errors import ConfigError
from tutelage.objectives import Objective, Term
from tutelage.teachers import ModuleTeacher, Teacher


@dataclass(frozen=True)
class FromTeacher:
    """A student that is made of its teacher's module: some of its layers, say.

    Where a run trains its teacher, students are made of the trained one, and what can be known before is found out on one of
    the same shape.

    Args:
        make: makes a fresh student of the module, which it leaves as it is; whoever calls it has seeded torch.
    """

    make: Callable[[nn.Module], nn.Module]


#: What makes students; called once a seed, seeded.
Maker = Callable[[], nn.Module] | FromTeacher


@dataclass(frozen=True)
class Start:
    """How students begin, for the record.

    Args:
        words: in a clause.
        whole: gives the model that they are cut from, where that is not the teacher.
        cut: whether they are made of another model at all, to be put beside it.
    """

    words: str
    whole: Callable[[], nn.Module] | None = None
    cut: bool = True


@dataclass(frozen=True)
class Uncut:
    """A student as it passes the study's stage, whose teacher has the whole vocabulary, where its own is cut after that.

    Args:
        student: makes a fresh one, its vocabulary whole.
        cut: makes the task's student of it, once the stage has taught it.
    """

    student: Maker
    cut: Callable[[nn.Module], nn.Module]


@dataclass(frozen=True)
class Arm:
    """An arm of one's own: what it says differs from the judged one.

    Args:
        objective: what it minimises; the study's own where None.
        student: makes its fresh student; the study's own where None.
        view: what its student sees of an example, where it is not what the others see; the teacher's view stays.
        processing: saved beside its student; the study's own where None.
        start: how its student begins, for the record.
        stage: whether its students pass the study's stage; None for as the others do.
        fingerprint: facts that must not change between a run and its resumption, in the study's place; the study's where None.
        uncut: its student as it passes the stage, where that is not as it begins the task.
    """

    objective: Objective | Term | None = None
    student: Maker | None = None
    view: View | None = None
    processing: Any = None
    start: Start | None = None
    stage: bool | None = None
    fingerprint: Mapping[str, Any] | None = None
    uncut: Uncut | None = None


def bound(maker: Maker, teacher: Callable[[], nn.Module | Teacher]) -> Callable[[], nn.Module]:
    """A function that makes fresh students.

    Args:
        maker: it, or how they are made of their teacher.
        teacher: gives the teacher when the first student is made; not asked where none is made of it.

    Raises:
        ConfigError: when it is called, and the teacher is no single module.
    """
    if not isinstance(maker, FromTeacher):
        return maker
    known: list[nn.Module] = []

    def make() -> nn.Module:
        if not known:
            known.append(module_of(teacher()))
        return maker.make(known[0])

    return make


def module_of(teacher: nn.Module | Teacher) -> nn.Module:
    """The module that students are made of.

    Raises:
        ConfigError: there is no single one.
    """
    module = teacher.model if isinstance(teacher, ModuleTeacher) else teacher
    if not isinstance(module, nn.Module):
        raise ConfigError(
            f"the student is made of its teacher's module, and the teacher is a {type(teacher).__name__}, which is no single module; give "
            "one model as the teacher, or a student of its own"
        )
    return module


def splits_with(splits: Splits, view: View) -> Splits:
    """The data with another view for the student; what the teacher sees stays as it is."""
    return replace(
        splits,
        train=splits.train.with_student_view(view),
        validation=splits.validation.with_student_view(view),
        test=splits.test.with_student_view(view),
    )


def as_student_sees(train: TransferSet) -> TransferSet:
    """The set with nothing of its own for the teacher to see: who learnt from the student's view can answer on no other."""
    return train if train.teacher_view is None else replace(train, teacher_view=None)


def as_heard(train: TransferSet, view: View | None) -> TransferSet:
    """The set on which someone is heard who learnt from this view; from the student's where None."""
    return as_student_sees(train) if view is None else replace(train, teacher_view=view)
