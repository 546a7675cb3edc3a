"""A chain looked at before anything is trained: whether every link can be made, and has what the next one reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from tutelage.data import View
from tutelage.errors import ConfigError, TutelageError
from tutelage.objectives import Objective
from tutelage.studies.chain import Chain, budget_of
from tutelage.studies.gates import JUDGED
from tutelage.studies.preflight import check_classes, check_features, check_labels, check_student, check_training
from tutelage.studies.setting import Setting
from tutelage.studies.starting import as_heard
from tutelage.studies.teaching import listens
from tutelage.teachers import Teacher


def check_chain(
    chain: Chain, setting: Setting, student: nn.Module, teacher: nn.Module | Teacher, objective: Objective
) -> None:
    """Find out before anything is trained that every link can be made.

    Args:
        chain: the chain.
        setting: what all trainings share.
        student: a fresh one.
        teacher: it, or what it will be.
        objective: the student's.

    Raises:
        ConfigError: what does not fit, with the assistant's name.
    """
    if not listens(objective):
        raise ConfigError(
            "the objective listens to no teacher, so an assistant would change nothing: give it a soft term such as kl, or leave the "
            "assistants out"
        )
    objectives = chain.objectives(objective)
    check_labels({f"assistant {name}": each for name, each in objectives.items()}, setting.splits.train)
    earlier: dict[str, nn.Module | Teacher] = {"teacher": teacher}
    for assistant in chain.assistants:
        try:
            own = objectives[assistant.name]
            own.validate()
            if not listens(own):
                raise ConfigError(
                    "its objective listens to no teacher: the chain would be cut there; give it a soft term such as kl"
                )
            made = check_student(setting.made(assistant.model), assistant.seed)
            splits = replace(setting.splits, train=as_heard(setting.splits.train, assistant.view))
            check_classes(student, made, splits, splits.train.class_names)
            sees = setting.seeing(assistant.view).splits
            check_training(budget_of(assistant, setting), "training", made, own, sees.train, sees.validation)
            _check_shown(chain, earlier, made, own, setting, assistant.view)
        except TutelageError as error:
            raise type(error)(f"assistant {assistant.name!r}: {error}") from error
        earlier[assistant.name] = made
    assistants = {name: module for name, module in earlier.items() if name != "teacher"}
    _check_shown(chain, assistants, student, objective, setting, None)


def _check_shown(
    chain: Chain,
    earlier: Mapping[str, nn.Module | Teacher],
    pupil: nn.Module,
    objective: Objective,
    setting: Setting,
    view: View | None,
) -> None:
    """Find out that whoever may teach this one by this objective has the layers that it reads.

    Args:
        chain: the chain.
        earlier: the teacher and the assistants before this one.
        pupil: a fresh one.
        objective: what it minimises.
        setting: what all trainings share.
        view: what the pupil sees, where that is not what the student sees.
    """
    views = {assistant.name: assistant.view for assistant in chain.assistants}
    for name, module in list(earlier.items()) if chain.path == "best" else list(earlier.items())[-1:]:
        train = setting.splits.train if name == "teacher" else as_heard(setting.splits.train, views[name])
        shown = replace(setting.splits, train=train if view is None else train.with_student_view(view))
        try:
            check_features({JUDGED: objective}, pupil, module, shown)
        except TutelageError as error:
            raise type(error)(
                f"taught by {name!r}: {error}; terms on layers need names that both ends of a link have: give each assistant an "
                "objective of its own, or leave those terms out"
            ) from error
