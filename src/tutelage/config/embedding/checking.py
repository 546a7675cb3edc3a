"""A sentence encoder's config checked before torch is loaded: keys, types and ranges, and combinations that could not be meant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from tutelage.config.cut_keys import check_layers
from tutelage.config.embedding.schema import (
    EmbeddingArmSection,
    EmbeddingConfig,
    EmbeddingDataSection,
    EmbeddingStudentSection,
)
from tutelage.config.explaining import EXAMPLES, explain, nearest, together
from tutelage.config.source_keys import SOURCE_KEYS, check_source
from tutelage.config.training import check_training
from tutelage.errors import ConfigError

#: The arms that have a name of their own.
STANDARD = ("untouched", "kd")

#: Of a student, the keys that cut a model, and those that say how it begins.
_CUTS = ("layers", "hidden", "heads", "feed_forward", "vocabulary")

#: What missing sections and keys look like when they are there, where a classifier's look otherwise.
_EXAMPLES: Mapping[str, str] = {
    **EXAMPLES,
    "data": "data: {source: jsonl, path: texts.jsonl, groups: topic, splits: {validation: 0.1, test: 0.2}}",
    "data.source": "source: jsonl",
    "teacher": "teacher: {model: {hub: folder-or-id}}",
    "teacher.model": "model: {hub: folder-or-id}",
    "student": "student: {from: teacher, layers: 3}, or {from: teacher, static: {width: 256}}",
    "training": "training: {num_train_epochs: 3, per_device_train_batch_size: 64, learning_rate: 1e-4}",
}

#: Sections of other tasks that somebody may look for here, and what to say of them.
_ELSEWHERE = {
    "stage": "stage is for task: classification: a masked-language stage before a sentence encoder's training is not offered; leave it "
    "out, or give such a model, trained beforehand, as the student (student: {model: {hub: …}})"
}

#: The keys that each source reads.
_SOURCE_KEYS = {"csv": SOURCE_KEYS["jsonl"], **SOURCE_KEYS}


def check_embedding_config(data: Mapping[str, Any], where: str) -> EmbeddingConfig:
    """Check a sentence encoder's config.

    Args:
        data: the config, as plain data.
        where: the file it came from, for the message.

    Raises:
        ConfigError: lists every mistake, with the nearest known key for an unknown one.
    """
    elsewhere = [said for key, said in _ELSEWHERE.items() if key in data]
    own = {key: said for key, said in data.items() if key not in _ELSEWHERE}
    try:
        config = EmbeddingConfig.model_validate(own)
    except ValidationError as error:
        raise ConfigError(together(where, [*elsewhere, *explain(error.errors(), EmbeddingConfig, _EXAMPLES)])) from None
    problems = [
        *elsewhere,
        *_check_data(config.data),
        *_check_student(config.student, "student"),
        *check_training(config.training, "training"),
        *_check_arms(config),
        *_check_answers(config),
    ]
    if problems:
        raise ConfigError(together(where, problems))
    return _with_gates_that_can_be_asked(config)


def _with_gates_that_can_be_asked(config: EmbeddingConfig) -> EmbeddingConfig:
    """The config without such default gates as its data and arms cannot answer; one that was named is refused before."""
    idle = {
        "recall_drop": config.data.groups is None,
        "gain_over_untouched": "untouched" not in config.study.arms,
    }
    gates = config.gates.model_copy(update={name: None for name, never in idle.items() if never})
    return config.model_copy(update={"gates": gates})


def arms_of(config: EmbeddingConfig) -> tuple[list[str], dict[str, EmbeddingArmSection]]:
    """The standard arms that are asked for, and the user's own by their names, of a config that was checked."""
    standard = [arm for arm in config.study.arms if isinstance(arm, str)]
    own = [item for arm in config.study.arms if not isinstance(arm, str) for item in arm.items()]
    return standard, {name: EmbeddingArmSection.model_validate(_spelt_out(said)) for name, said in own}


def _spelt_out(said: Any) -> Any:
    """``{name: [terms]}`` is short for an arm that differs in its objective alone."""
    return {"objective": said} if isinstance(said, list) else said


def _check_data(data: EmbeddingDataSection) -> list[str]:
    problems = check_source(data, _SOURCE_KEYS)
    if data.source not in _SOURCE_KEYS:
        return problems
    named = [name for name in ("groups", "tasks") if getattr(data, name) == data.text]
    problems += [
        f"data.{name} is {data.text!r}, the column of the texts: each text would be a {name[:-1]} of its own; name another column"
        for name in named
    ]
    return problems


def _check_student(student: EmbeddingStudentSection, where: str) -> list[str]:
    if student.model is None and student.origin is None:
        return [
            f"{where} has neither model nor from; write for example  {{from: teacher, layers: 3}}, or {{from: teacher, static: "
            "{width: 256}}"
        ]
    if student.model is not None and student.origin is not None:
        return [f"{where} has model beside from: teacher: one of them would silently win; keep one"]
    problems: list[str] = []
    if student.origin is not None and student.tokenizer is not None:
        problems.append(
            f"{where}.tokenizer beside from: teacher: its embeddings are the teacher's, and so is its tokenizer; leave it out"
        )
    problems += _check_static(student, where) if student.static is not None else []
    problems += check_layers(student.layers, where)
    if student.model is not None and student.initial is not None:
        problems.append(
            f"{where}.initial says how a student made of the teacher begins, and this one is a model: leave it out"
        )
    return problems


def _check_static(student: EmbeddingStudentSection, where: str) -> list[str]:
    if student.origin is None:
        return [f"{where}.static makes a table of the teacher's tokens: say from: teacher in the place of model"]
    cut = [name for name in (*_CUTS, "initial") if getattr(student, name) is not None]
    if cut:
        return [
            f"{where}.static beside {' and '.join(cut)}: a table of tokens has no layers to be cut, and begins from the teacher; leave "
            f"{'it' if len(cut) == 1 else 'them'} out"
        ]
    return []


def _check_arms(config: EmbeddingConfig) -> list[str]:
    problems: list[str] = []
    seen: list[str] = []
    for arm in config.study.arms:
        named: Mapping[str, Any] = {arm: None} if isinstance(arm, str) else arm
        if len(named) != 1:
            problems.append(f"study.arms: {dict(named)} has {len(named)} names, expected one name with what it does")
            continue
        ((name, said),) = named.items()
        if name in seen:
            problems.append(
                f"study.arms: {name!r} is there twice: one of the two would silently win; give each its own name"
            )
        seen.append(name)
        problems += _check_standard(name) if isinstance(arm, str) else _check_own(name, said)
    if "kd" not in seen:
        problems.append(f"study.arms is {seen}: 'kd', which the verdict is about, is missing")
    if isinstance(config.study.seeds, list) and len(set(config.study.seeds)) < len(config.study.seeds):
        problems.append(f"study.seeds is {config.study.seeds}, expected different seeds")
    return problems


def _check_standard(name: str) -> list[str]:
    if name in STANDARD:
        return []
    return [
        f"study.arms: there is no arm {name!r}{nearest(name, STANDARD)}; another of your own is {{{name}: {{objective: [...]}}}} or "
        f"{{{name}: {{student: {{...}}}}}}"
    ]


def _check_own(name: str, said: Any) -> list[str]:
    where = f"study.arms, {name!r}"
    if name in STANDARD:
        return [f"{where} is an arm of its own kind and takes no options: give yours another name"]
    try:
        arm = EmbeddingArmSection.model_validate(_spelt_out(said))
    except ValidationError as error:
        return explain(error.errors(), EmbeddingArmSection, {}, within=f"study.arms.{name}")
    if arm.objective is None and arm.student is None:
        return [f"{where} says nothing that differs from kd: give it an objective or a student, or leave it out"]
    return _check_student(arm.student, f"{where}, student") if arm.student is not None else []


def _check_answers(config: EmbeddingConfig) -> list[str]:
    """What cannot be asked where no texts answer one another, or belong to no tasks."""
    problems: list[str] = []
    if config.retrieval is not None:
        k = config.retrieval.k
        if k != sorted(set(k)):
            problems.append(f"retrieval.k is {k}, expected rising numbers, each once")
        if config.data.groups is None:
            problems.append(
                "retrieval is there, and data.groups is not: which texts answer one another is not known; name the column whose equal "
                "values belong together, or leave retrieval out"
            )
    asked = config.gates.model_fields_set
    for gate, columns in (("recall_drop", ("groups",)), ("worst_task_drop", ("groups", "tasks"))):
        lacking = [f"data.{name}" for name in columns if getattr(config.data, name) is None]
        if gate in asked and getattr(config.gates, gate) is not None and lacking:
            problems.append(
                f"gates.{gate} asks what is found of the answers, and {' and '.join(lacking)} "
                f"{'is' if len(lacking) == 1 else 'are'} not there: the gate could never be decided; name the columns, or leave it out"
            )
    if "gain_over_untouched" in asked and config.gates.gain_over_untouched is not None:
        standard = [arm for arm in config.study.arms if isinstance(arm, str)]
        if "untouched" not in standard:
            problems.append(
                "gates.gain_over_untouched is there, and the arm untouched is not: the gate could never be decided; add the arm, or leave "
                "the gate out"
            )
    return problems
