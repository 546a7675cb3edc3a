"""From a language model's config to its study."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from tutelage.config.building import labels_of
from tutelage.config.language.checking import arms_of
from tutelage.config.language.models import bare_student, build_language_teacher, student_maker
from tutelage.config.language.schema import (
    FiltersSection,
    GenerateSection,
    LanguageArmSection,
    LanguageConfig,
    OnPolicySection,
    ScoreSection,
)
from tutelage.config.language.texts import Tokenizers, read_data, read_tokenizers
from tutelage.config.models import facts_of, naming, user_function
from tutelage.data.language import eos_ids
from tutelage.errors import ConfigError
from tutelage.evaluation.task_score import ChoiceScore, ExactMatch, PythonScore, TaskScore
from tutelage.files import sha256_of
from tutelage.models.sampling import Sampling
from tutelage.objectives import Objective, objective_from_config
from tutelage.studies.arm import build_seeded, weights_digest
from tutelage.studies.language import Filters, Generation, LanguageArm, LanguageGates, LanguageStudy
from tutelage.training.on_policy import OnPolicy

#: Of a remote teacher's keys, those that say how it is reached and not what it answers: a resumed run may come by another way.
_ROUTE = ("url", "key_env", "timeout", "retries")


def build_language_study(config: LanguageConfig, folder: Path, command: str) -> LanguageStudy:
    """Read the data, prepare the models and put the study together.

    Args:
        config: the checked config.
        folder: where it lies; relative paths in it are relative to this.
        command: how the run was started, for the record.

    Raises:
        TutelageError: something the config names is not there, or does not fit.
    """
    objective = objective_from_config(config.objective)
    standard, own = arms_of(config)
    tokenizers = read_tokenizers(config, folder)
    score = _score(config.score, folder)
    generation = _generation(config.generate, folder)
    data, crossing = read_data(config, folder, tokenizers)
    student = _untouched(config, folder)
    ends = eos_ids(tokenizers.student, getattr(student, "generation_config", None))
    arms = {name: _arm(name, arm, objective, ends, folder) for name, arm in own.items()}
    teacher = build_language_teacher(config, folder, tokenizers, crossing, student)
    return LanguageStudy(
        data=data,
        student=student_maker(config, folder),
        teacher=teacher.heard,
        tokenizer=tokenizers.student,
        objective=objective,
        training=config.training,
        seeds=config.study.seeds,
        arms=standard,
        extra_arms=arms,
        on_policy=_on_policy(config.on_policy, ends),
        completions=config.data.completions,
        generation=generation,
        seconds=config.study.seconds,
        score=score,
        samples=config.samples.count,
        sample_tokens=config.samples.max_new_tokens,
        gates=LanguageGates(**config.gates.model_dump()),
        labels=labels_of(config.labels, folder),
        # of one vocabulary, the teacher's has another chat template at most, in which its prompts are written already
        teacher_tokenizer=tokenizers.teacher if tokenizers.alignment != "same" else None,
        teacher_speaker=teacher.speaker,
        alignment=tokenizers.alignment,
        eos=ends,
        title=config.title or folder.resolve().name,
        config=config.resolved(),
        fingerprint=_fingerprint(config, folder, tokenizers),
        command=command,
        config_folder=folder,
    )


def _untouched(config: LanguageConfig, folder: Path) -> nn.Module:
    """The first seed's student before any training, without adapters: the same one in each process.

    Raises:
        ConfigError: it is to be its own teacher, and was never trained.
    """
    seeds = config.study.seeds
    first = 0 if isinstance(seeds, int) else seeds[0]
    student = build_seeded(lambda: bare_student(config, folder), first)
    given = config.student.model
    if config.teacher.itself and given is not None and given.python is not None and given.checkpoint is None:
        another = build_seeded(lambda: bare_student(config, folder), first + 1)
        if weights_digest(another) != weights_digest(student):
            raise ConfigError(
                f"teacher.self: {given.python!r} makes other weights from another seed, so they are not trained ones: the student would be "
                "taught noise, and by another teacher than itself under every seed but the first; give student.model a 'checkpoint: "
                "file.safetensors', or load trained weights in that function"
            )
    return student


def _arm(name: str, section: LanguageArmSection, judged: Objective, ends: Sequence[int], folder: Path) -> LanguageArm:
    objective = judged
    if section.objective is not None:
        with naming(f"study.arms, {name!r}"):
            objective = objective_from_config(section.objective)
    return LanguageArm(
        objective=objective,
        on_policy=_on_policy(section.on_policy, ends),
        completions=section.completions,
        labels=labels_of(section.labels, folder),
        shows=section.shows,
    )


def _on_policy(section: OnPolicySection | None, ends: Sequence[int]) -> OnPolicy | None:
    if section is None:
        return None
    sampling = Sampling(**section.model_dump(exclude={"share"}))
    return OnPolicy(section.share, sampling, list(ends))


def _generation(section: GenerateSection | None, folder: Path) -> Generation | None:
    if section is None:
        return None
    with naming("generate"):
        names = ("max_new_tokens", "temperature", "top_p", "top_k", "greedy", "seed")
        sampling = Sampling(**{name: getattr(section, name) for name in names})
        return Generation(
            sampling=sampling,
            n=section.n,
            filters=_filters(section.filters, folder),
            deduplicate=section.deduplicate,
            batch_size=section.batch_size,
        )


def _filters(section: FiltersSection, folder: Path) -> Filters:
    function = None
    if section.python is not None:
        function = user_function(section.python, folder, "generate.filters.python", 2, "(text, row)")
    return Filters(
        finished=section.finished,
        min_tokens=section.min_tokens,
        max_tokens=section.max_tokens,
        python=function,
        python_name=section.python,
        python_digest=_file_digest(section.python, folder),
    )


def _score(section: ScoreSection | None, folder: Path) -> TaskScore | None:
    if section is None:
        return None
    if section.choices is not None and section.column is not None:
        return ChoiceScore(section.choices, section.column)
    if section.exact_match is not None:
        return ExactMatch(section.exact_match, section.max_new_tokens)
    assert section.python is not None  # check_score found one of the three
    function = user_function(section.python, folder, "score.python", 2, "(text, row)")
    name = section.python.rpartition(":")[2].replace("_", " ")
    return PythonScore(
        function,
        name=name,
        max_new_tokens=section.max_new_tokens,
        fraction=section.fraction,
        digest=_file_digest(section.python, folder),
    )


def _file_digest(reference: str | None, folder: Path) -> str | None:
    """Of the whole file of a ``file.py:function``: what the function calls there decides as much as its own lines."""
    return None if reference is None else sha256_of(folder / reference.rpartition(":")[0])[:16]


def _fingerprint(config: LanguageConfig, folder: Path, tokenizers: Tokenizers) -> dict[str, Any]:
    """What decides weights: not what is asked of finished students, nor by which way a server is reached."""
    resolved = config.resolved()
    sections: dict[str, Any] = {name: resolved[name] for name in ("data", "views", "teacher", "student")}
    if config.teacher.remote is not None:
        reached = {name: value for name, value in resolved["teacher"]["remote"].items() if name not in _ROUTE}
        sections["teacher"] = {**resolved["teacher"], "remote": reached}
    return facts_of(sections, folder) | {
        f"tokenizer of the {name}": digest for name, digest in tokenizers.digests.items()
    }
