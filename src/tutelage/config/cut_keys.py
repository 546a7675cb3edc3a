"""How students begin, as far as their keys tell: checked before torch is loaded, and put in words for the page."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from tutelage.config.explaining import explain
from tutelage.config.schema import ArmSection, AssistantSection, StudentSection, StudyConfig, ViewStep

#: The keys that make a model smaller, but for its vocabulary.
SIZES = ("layers", "hidden", "heads", "feed_forward")
#: Which layers, in a word.
LAYER_WORDS = ("every_other", "first", "last", "important")

_WORD = re.compile(r"every_other|(first|last)(:[1-9]\d*)?|important:[1-9]\d*")

#: What a section says of a size, in words.
_SAID = {"hidden": "{} wide", "heads": "{} heads", "feed_forward": "{} wide in the feed-forward"}


def arm_section(said: Any) -> ArmSection:
    """An arm of the user's own as a config has it; ``{name: [terms]}`` is short for one that differs in its objective alone."""
    return ArmSection.model_validate({"objective": said} if isinstance(said, list) else said)


def student_of(config: StudyConfig, own: StudentSection | None) -> StudentSection:
    """The student of an arm: the study's own where it says nothing of it.

    One that names ``model`` or ``from`` stands for itself; of another, the keys that it has take the place of the study's.

    Args:
        config: the config.
        own: what the arm says.
    """
    if own is None:
        return config.student
    if own.model is not None or own.origin is not None:
        return own
    said = {name: value for name in type(own).model_fields if (value := getattr(own, name)) is not None}
    return config.student.model_copy(update=said)


def is_plain(section: StudentSection | AssistantSection) -> bool:
    """Whether it is a model of its own as that is, nothing cut and nothing drawn anew."""
    return section.model is not None and section.vocabulary is None and section.initial is None and not is_cut(section)


def is_cut(section: StudentSection | AssistantSection) -> bool:
    """Whether some layers or widths are taken away."""
    return any(getattr(section, name) is not None for name in SIZES)


def measures(section: StudentSection | AssistantSection) -> bool:
    """Whether what is kept is chosen by what data shows of its importance."""
    by_layers = isinstance(section.layers, str) and section.layers.startswith("important")
    return by_layers or any(getattr(section, name) is not None for name in SIZES[1:])


def start_words(section: StudentSection | AssistantSection) -> str:
    """How its students begin, in a clause: ``cut from the teacher (layers every_other)``."""
    parts = [f"layers {_shown(section.layers)}"] if section.layers is not None else []
    parts += [words.format(f"{getattr(section, name):,}") for name, words in _SAID.items() if getattr(section, name)]
    parts += ["the vocabulary of the training texts"] if section.vocabulary is not None else []
    cut = f" ({', '.join(parts)})" if parts else ""
    if section.model is not None:
        words = f"{section.model.hub or section.model.python}{f', cut{cut}' if parts else ''}"
    elif section.initial == "random":
        words = f"of the teacher’s shape{f', cut{cut}' if parts else ''}"
    else:
        words = f"cut from the teacher{cut}" if parts else "a copy of the teacher"
    return f"{words}, its weights drawn at random" if section.initial == "random" else words


def check_starts(config: StudyConfig) -> list[str]:
    """What is wrong with how the student, the assistants and the students of arms of the user's own begin."""
    problems = _check(config.student, "student", config)
    for number, assistant in enumerate(config.assistants or ()):
        problems += _check(assistant, f"assistants.{number}", config)
    for arm in config.study.arms:
        for name, said in arm.items() if isinstance(arm, Mapping) else ():
            own = _own_student(said)
            if own is not None:
                problems += _check(student_of(config, own), f"study.arms, {name!r}, student", config)
            if config.stage is None and isinstance(said, Mapping) and said.get("stage") is not None:
                problems.append(
                    f"study.arms, {name!r}: stage is {said['stage']!r}, and the config has no section stage that the arm could pass: "
                    "leave it out"
                )
    return problems


def check_own_arm(name: str, said: Any) -> list[str]:
    """What is wrong with the keys of an arm of the user's own."""
    try:
        arm_section(said)
    except ValidationError as error:
        return explain(error.errors(), ArmSection, {}, within=f"study.arms.{name}")
    return []


def _own_student(said: Any) -> StudentSection | None:
    if not isinstance(said, Mapping) or "student" not in said:
        return None
    try:
        return arm_section(said).student
    except ValidationError:
        return None  # told of as the arm's own mistake


def _check(section: StudentSection | AssistantSection, where: str, config: StudyConfig) -> list[str]:
    if section.model is None and section.origin is None:
        return [
            f"{where} has neither model nor from; write for example  "
            'model: {python: "models.py:student"}, or  from: teacher, layers: 3'
        ]
    if section.model is not None and section.origin is not None:
        return [f"{where} has model beside from: teacher: one of them would silently win; keep one"]
    problems = _check_origin(section, where, config) if section.origin is not None else []
    if section.model is not None and section.initial == "teacher":
        problems.append(
            f"{where}.initial is 'teacher' beside a model of its own, whose weights are not the teacher's: leave it out, or say "
            "from: teacher in the model's place"
        )
    problems += check_layers(section.layers, where)
    return problems + (_check_vocabulary(where, config) if section.vocabulary is not None else [])


def _check_origin(section: StudentSection | AssistantSection, where: str, config: StudyConfig) -> list[str]:
    teacher = config.teacher
    if teacher.model is None or teacher.members is not None:
        return [
            f"{where}.from is 'teacher', and the teacher is an ensemble: which of its members should be cut is not said; give {where}.model"
        ]
    if teacher.classes is not None:
        return [
            f"{where}.from is 'teacher' beside teacher.classes: its head has all of the teacher's classes, and the study some; give "
            f"{where}.model, or a teacher with the study's own classes"
        ]
    alone = isinstance(section, AssistantSection) and section.initial != "random" and section.vocabulary is None
    if alone and not is_cut(section):
        return [
            f"{where} is a copy of the teacher, whole: an assistant of its size would pass on what it heard; say how it is cut, such "
            "as layers: 4"
        ]
    return []


def check_layers(layers: Any, where: str) -> list[str]:
    """What is wrong with the key ``layers`` of the section ``where``, in words; nothing where it says what layers to keep."""
    if isinstance(layers, str) and _WORD.fullmatch(layers) is None:
        word = layers.partition(":")[0]
        near = [] if word in LAYER_WORDS else difflib.get_close_matches(word, LAYER_WORDS, n=1)
        return [
            f"{where}.layers is {layers!r}, expected how many, a list of their numbers from 0, every_other, first, last, first:3, "
            f"last:3 or important:3{f'; did you mean {near[0]!r}?' if near else ''}"
        ]
    if isinstance(layers, list) and layers != sorted(set(layers)):
        return [f"{where}.layers is {layers}, expected rising numbers, each once: their order is that of the layers"]
    return []


def _check_vocabulary(where: str, config: StudyConfig) -> list[str]:
    if not any(_is_tokenise(step) for step in config.data.views.student):
        return [
            f"{where}.vocabulary is 'used', and data.views.student has no step tokenise whose vocabulary could be cut: add it, or leave "
            "vocabulary out"
        ]
    if config.data.augment:
        return [
            f"{where}.vocabulary is 'used' beside data.augment: a changed text may hold words that no training text has, and they would be "
            "unknown to the student; leave one of the two out"
        ]
    return []


def _is_tokenise(step: ViewStep) -> bool:
    return step == "tokenise" or (isinstance(step, Mapping) and "tokenise" in step)


def _shown(layers: int | str | Sequence[int] | None) -> str:
    return ", ".join(map(str, layers)) if isinstance(layers, list) else str(layers)
