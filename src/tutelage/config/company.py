"""Who takes part, checked before torch is loaded: the teacher or its ensemble, assistants, and arms that are recipes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tutelage.config.cut_keys import check_own_arm, check_starts
from tutelage.config.explaining import nearest
from tutelage.config.schema import MemberSection, StudyConfig, TeacherSection
from tutelage.config.training import check_training

#: Arms that are more than a list of terms, with their options.
RECIPES: Mapping[str, tuple[str, ...]] = {"born_again": ("generations", "objective"), "mutual": ("objective",)}


def check_company(config: StudyConfig) -> list[str]:
    """What is wrong with the teacher, the assistants or the arms, as far as their keys tell."""
    problems = _check_teacher(config.teacher) + check_starts(config)
    for number, assistant in enumerate(config.assistants or ()):
        if assistant.training is not None:
            problems += check_training(assistant.training, f"assistants.{number}.training")
    if config.stage is not None:
        problems += check_training(config.stage.training, "stage.training")
        problems += check_training(config.stage.teacher.training or {}, "stage.teacher.training")
    if config.study.path is not None and config.assistants is None:
        problems.append(
            "study.path says which assistants to go by, and there are none: leave it out, or name assistants"
        )
    for arm in config.study.arms:
        if isinstance(arm, Mapping):
            for name, said in arm.items():
                problems += _check_arm(name, said)
    return problems


def _check_teacher(teacher: TeacherSection) -> list[str]:
    if teacher.ensemble is not None:
        beside = {name: getattr(teacher, name) for name in ("model", "training", "members")}
        said = [name for name, value in beside.items() if value is not None]
        said += ["allow_masked_classes"] if teacher.allow_masked_classes else []
        problems = [
            f"teacher.{name} stands beside teacher.ensemble, whose members have their own: say it of each member"
            for name in said
        ]
        for number, member in enumerate(teacher.ensemble):
            problems += _check_trained(member.training, member.allow_masked_classes, f"teacher.ensemble.{number}")
        return problems + _check_alike(teacher.ensemble, teacher.seed)
    if teacher.model is None:
        return [
            "the key 'teacher.model' is missing; write for example  model: {python: \"models.py:teacher\"}, or 'ensemble' with a list of "
            "members"
        ]
    if teacher.members is not None and teacher.training is None:
        return [
            f"teacher.members is {teacher.members} without teacher.training: {teacher.members} times the same given model would be one; "
            "say how to train them, or list different ones under teacher.ensemble"
        ]
    return _check_trained(teacher.training, teacher.allow_masked_classes, "teacher")


def _check_alike(members: Sequence[MemberSection], first_seed: int) -> list[str]:
    """Members that would be one model twice, which mixing gains nothing by."""
    known: dict[str, int] = {}
    problems: list[str] = []
    for number, member in enumerate(members):
        seed = member_seed(member, number, first_seed) if member.training is not None else None
        facts = repr([member.model.resolved(), member.training, seed])
        if facts in known:
            same = "model" if seed is None else f"model, training and seed ({seed})"
            problems.append(
                f"teacher.ensemble.{number} has the same {same} as teacher.ensemble.{known[facts]}: they would be one model counted twice; "
                "give it another seed or model, or the one of the two a weight"
            )
        known.setdefault(facts, number)
    return problems


def member_seed(member: MemberSection, number: int, first_seed: int) -> int:
    """The seed of an ensemble's member: its own, or the teacher's moved on by its number."""
    return member.seed if member.seed is not None else (first_seed + number) % 2**32


def _check_trained(training: Mapping[str, Any] | None, allow_masked_classes: bool, where: str) -> list[str]:
    if training is None:
        return []
    problems = check_training(training, f"{where}.training")
    if allow_masked_classes:
        problems.append(
            f"{where}.allow_masked_classes is for a given teacher; leave it out of one that this run trains"
        )
    return problems


def _check_arm(name: str, said: Any) -> list[str]:
    where = f"study.arms, {name!r}"
    if name not in RECIPES:
        return check_own_arm(name, said)
    if not isinstance(said, Mapping):
        return [f"{where} is a list of terms; it is a recipe, so write {{{name}: {{objective: [...]}}}}"]
    unknown = [key for key in said if key not in RECIPES[name]]
    problems = [f"{where}: unknown option {str(key)!r}{nearest(str(key), RECIPES[name])}" for key in unknown]
    generations = said.get("generations", 1)
    if isinstance(generations, bool) or not isinstance(generations, int) or generations < 1:
        problems.append(f"{where}: generations is {generations!r}, expected a whole number of at least 1")
    objective = said.get("objective")
    if "objective" in said and not (isinstance(objective, list) and objective):
        problems.append(f"{where}: objective is {objective!r}, expected a list of terms")
    return problems
