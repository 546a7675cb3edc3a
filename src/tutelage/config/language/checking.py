"""A language model's config checked before torch is loaded: keys, types and ranges, and combinations that could not be meant."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from tutelage.config.explaining import EXAMPLES, explain, nearest, together
from tutelage.config.gate_keys import askable, check_gates, language_lacking
from tutelage.config.labels import check_labels
from tutelage.config.language.schema import (
    LanguageArmSection,
    LanguageConfig,
    LanguageDataSection,
    LanguageStudentSection,
    LanguageTeacherSection,
    PromptSection,
    ScoreSection,
)
from tutelage.config.source_keys import SOURCE_KEYS, check_source
from tutelage.config.training import check_training
from tutelage.errors import ConfigError

#: The arms that have a name of their own.
STANDARD = ("untouched", "sft", "kd")

#: What missing sections and keys look like when they are there, where a classifier's look otherwise.
_EXAMPLES: Mapping[str, str] = {
    **EXAMPLES,
    "data": "data: {source: jsonl, path: train.jsonl, splits: {validation: 0.1, test: 0.2}}",
    "data.source": "source: jsonl",
    "teacher": "teacher: {model: {hub: folder-or-id}}, or {self: true} for the untouched student with the teacher's view",
    "student": "student: {model: {hub: folder-or-id}}, or {from: teacher, layers: 6}",
    "objective": "objective: [{term: kl}]",
    "training": "training: {num_train_epochs: 1, per_device_train_batch_size: 8, learning_rate: 2e-5}",
}


def check_language_config(data: Mapping[str, Any], where: str) -> LanguageConfig:
    """Check a language model's config.

    Args:
        data: the config, as plain data.
        where: the file it came from, for the message.

    Raises:
        ConfigError: lists every mistake, with the nearest known key for an unknown one.
    """
    try:
        config = LanguageConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigError(together(where, explain(error.errors(), LanguageConfig, _EXAMPLES))) from None
    missing = language_lacking(config)
    problems = [
        *_check_data(config.data),
        *_check_views(config),
        *_check_teacher(config.teacher, config.student),
        *_check_student(config.student, config.teacher),
        *_check_alignment(config),
        *check_labels(config.labels, mixture=config.teacher.ensemble is not None),
        *check_training(config.training, "training"),
        *_check_time(config),
        *_check_arms(config),
        *_check_score(config.score),
        *check_gates(config.gates, missing),
    ]
    if problems:
        raise ConfigError(together(where, problems))
    return config.model_copy(update={"gates": askable(config.gates, missing)})


def arms_of(config: LanguageConfig) -> tuple[list[str], dict[str, LanguageArmSection]]:
    """The standard arms that are asked for, and the user's own by their names, of a config that was checked."""
    standard = [arm for arm in config.study.arms if isinstance(arm, str)]
    own = {name: said for arm in config.study.arms if isinstance(arm, Mapping) for name, said in arm.items()}
    return standard, {name: LanguageArmSection.model_validate(_spelt_out(said)) for name, said in own.items()}


def _spelt_out(said: Any) -> Any:
    """``{name: [terms]}`` is short for an arm that differs in its objective alone."""
    return {"objective": said} if isinstance(said, list) else said


def _check_data(data: LanguageDataSection) -> list[str]:
    problems = check_source(data, SOURCE_KEYS)
    if data.source not in SOURCE_KEYS:
        return problems
    if data.completions == "teacher" and data.turns == "all":
        problems.append(
            "data.turns is 'all' with completions: teacher, and a teacher writes the last answer alone: leave turns out"
        )
    return problems


def _check_views(config: LanguageConfig) -> list[str]:
    views = {"views.student": config.views.student, "views.teacher": config.views.teacher}
    return [line for where, view in views.items() if view is not None for line in _check_view(view, where)]


def _check_view(view: PromptSection, where: str) -> list[str]:
    chat = [name for name in ("user", "system", "shots", "tools", "template_options") if getattr(view, name)]
    if view.text is not None and chat:
        return [
            f"{where} has text beside {' and '.join(chat)}: text is a prompt without a chat template, which would leave the others out; "
            "keep one kind"
        ]
    if view.text is not None and view.chat:
        return [f"{where}.chat is true beside text, which goes through no chat template: leave one of the two out"]
    if view.chat is False and chat:
        return [
            f"{where}.chat is false beside {' and '.join(chat)}, which are parts of a chat: write the prompt as text, or drop chat"
        ]
    return []


def _check_teacher(teacher: LanguageTeacherSection, student: LanguageStudentSection) -> list[str]:
    kinds = {
        "model": teacher.model,
        "remote": teacher.remote,
        "ensemble": teacher.ensemble,
        "self": teacher.itself or None,
    }
    said = [name for name, value in kinds.items() if value is not None]
    if not said:
        return [
            "teacher has none of model, remote, ensemble and self; write for example  teacher: {model: {hub: folder-or-id}}, or "
            "{self: true} for the untouched student with the teacher's view"
        ]
    problems = []
    if len(said) > 1:
        problems.append(f"teacher has {' and '.join(said)}: one of them would silently win; keep one")
    if teacher.itself and student.origin is not None:
        problems.append("teacher.self and student.from point at each other: give the one of the two a model")
    if teacher.itself and (teacher.tokenizer or teacher.alignment):
        problems.append(
            "teacher.self is the student, with the student's tokenizer: leave teacher.tokenizer and teacher.alignment out"
        )
    if teacher.remote is not None:
        problems += _check_remote(teacher)
    for number, member in enumerate(teacher.ensemble or ()):
        known = [other for other in (teacher.ensemble or ())[:number] if other.model == member.model]
        if known:
            problems.append(
                f"teacher.ensemble.{number} is the same model as another member: it would be one model counted twice; give it a weight"
            )
    return problems


def _check_remote(teacher: LanguageTeacherSection) -> list[str]:
    remote = teacher.remote
    assert remote is not None
    problems = []
    if "@" in remote.url.rpartition("://")[2].partition("/")[0]:
        # the URL itself stays out of the message: it holds a secret
        problems.append(
            "teacher.remote.url holds a user's name or a password, which would go into config.yaml and records: name an environment "
            "variable with teacher.remote.key_env instead"
        )
    elif not re.match(r"https?://[^/\s]+", remote.url):
        shown = repr(remote.url.partition("?")[0])
        problems.append(f"teacher.remote.url is {shown}, expected http:// or https:// and a host")
    if remote.key_env is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", remote.key_env):
        problems.append(
            "teacher.remote.key_env is no name of an environment variable: it says where the key is, never the key itself; write for "
            "example  key_env: TEACHER_KEY"
        )
    if teacher.alignment in ("crossing", "uld"):
        problems.append(
            f"teacher.alignment is {teacher.alignment!r}, and a remote teacher gives its likeliest tokens alone: other "
            "vocabularies cannot be aligned with them; use alignment: text with completions: teacher"
        )
    return problems


def _check_student(student: LanguageStudentSection, teacher: LanguageTeacherSection) -> list[str]:
    if student.model is None and student.origin is None:
        return ["student has neither model nor from; write for example  student: {from: teacher, layers: 6}"]
    if student.model is not None and student.origin is not None:
        return ["student has model beside from: teacher: one of them would silently win; keep one"]
    problems = []
    if student.origin is not None and teacher.model is None and not teacher.itself:
        problems.append(
            "student.from is 'teacher', and the teacher is no single local model whose layers could be taken: give student.model"
        )
    if student.origin is not None and student.tokenizer is not None:
        problems.append(
            "student.tokenizer beside from: teacher: its embeddings are the teacher's, and so is its tokenizer; leave it out"
        )
    if isinstance(student.layers, list) and len(set(student.layers)) < len(student.layers):
        problems.append(f"student.layers is {student.layers}, expected each layer once")
    return problems


def _check_alignment(config: LanguageConfig) -> list[str]:
    alignment, terms = config.teacher.alignment, [item.get("term") for item in config.objective]
    if alignment == "uld" and "uld" not in terms:
        return [
            "teacher.alignment is 'uld', and no term of the objective compares sorted probabilities: write  {term: uld}"
        ]
    if "uld" in terms and alignment not in (None, "uld"):
        return [
            f"the objective has the term uld, and teacher.alignment is {alignment!r}: say alignment: uld, or take another term"
        ]
    if alignment is not None and config.on_policy is not None and config.on_policy.share > 0:
        return [
            f"on_policy with teacher.alignment: {alignment}: what the student writes is in its own vocabulary alone, which this "
            "teacher does not read; leave on_policy out, or take a teacher with the same tokenizer"
        ]
    return []


def _check_time(config: LanguageConfig) -> list[str]:
    from tutelage.studies.language.budgets import against_the_time

    if config.study.seconds is None:
        return []
    return [f"training.{problem}" for problem in against_the_time(config.training)]


def _check_arms(config: LanguageConfig) -> list[str]:
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
        problems += _check_standard(name) if isinstance(arm, str) else _check_own(name, said, config)
    if "kd" not in seen:
        problems.append(f"study.arms is {seen}: 'kd', which the verdict is about, is missing")
    if isinstance(config.study.seeds, list) and len(set(config.study.seeds)) < len(config.study.seeds):
        problems.append(f"study.seeds is {config.study.seeds}, expected different seeds")
    problems += _check_writing(config, "data.completions", config.data.completions)
    return problems + _check_marking(
        "on_policy", config.on_policy is not None and config.on_policy.share > 0, config.labels, config.objective
    )


def _check_standard(name: str) -> list[str]:
    if name in STANDARD:
        return []
    return [
        f"study.arms: there is no arm {name!r}{nearest(name, STANDARD)}; another of your own is {{{name}: {{objective: [...]}}}}"
    ]


def _check_own(name: str, said: Any, config: LanguageConfig) -> list[str]:
    where = f"study.arms, {name!r}"
    if name in STANDARD:
        return [f"{where} is an arm of its own kind and takes no options: give yours another name"]
    try:
        arm = LanguageArmSection.model_validate(_spelt_out(said))
    except ValidationError as error:
        return explain(error.errors(), LanguageArmSection, {}, within=f"study.arms.{name}")
    problems = check_labels(arm.labels, mixture=config.teacher.ensemble is not None)
    problems = [f"{where}: {line}" for line in problems]
    problems += _check_writing(config, f"{where}, completions", arm.completions)
    writes = arm.on_policy is not None and arm.on_policy.share > 0
    objective = arm.objective if arm.objective is not None else config.objective
    return problems + _check_marking(where, writes, arm.labels, objective)


def _check_writing(config: LanguageConfig, where: str, completions: str | None) -> list[str]:
    if completions != "teacher" or config.generate is not None:
        return []
    return [
        f"{where} is 'teacher', and it is not said how the teacher shall write: add a section  "
        "generate: {max_new_tokens: 128, greedy: true}"
    ]


def _check_marking(
    where: str, writes: bool, labels: BaseModel | None, objective: Sequence[Mapping[str, Any]]
) -> list[str]:
    """What cannot be where the student writes what the teacher marks."""
    if not writes:
        return []
    problems = []
    if labels is not None:
        problems.append(
            f"{where}: labels are of given completions, and the student writes new ones at every step, which no store holds answers to; "
            "leave labels or on_policy out"
        )
    if any(item.get("term") == "cross_entropy" for item in objective):
        problems.append(
            f"{where}: the objective has cross_entropy, and the student would be taught to repeat what it wrote itself; leave the "
            "term out, or on_policy"
        )
    return problems


def _check_score(score: ScoreSection | None) -> list[str]:
    if score is None:
        return []
    said = [name for name in ("choices", "exact_match", "python") if getattr(score, name) is not None]
    if len(said) != 1:
        what = " and ".join(said) or "none of choices, exact_match and python"
        return [f"score has {what}, expected one of them, such as  score: {{choices: [yes, no], column: answer}}"]
    if (score.choices is not None) != (score.column is not None):
        lacking, there = ("column", "choices") if score.choices is not None else ("choices", "column")
        return [
            f"score.{lacking} is missing beside score.{there}: the choices, and the column that holds the right one, go together"
        ]
    if score.choices is not None and len(set(score.choices)) < len(score.choices):
        return [f"score.choices is {score.choices}, expected each choice once"]
    return []
