"""The student and the teacher that a language model's config names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tutelage.config.language.schema import LanguageConfig, RemoteSection
from tutelage.config.language.served import ServedSpeaker
from tutelage.config.language.texts import Tokenizers
from tutelage.config.models import in_full_precision, model_source, naming
from tutelage.config.schema import ModelSection
from tutelage.data.language import eos_ids
from tutelage.data.language.crossing import Crossing
from tutelage.errors import ConfigError
from tutelage.evaluation.task_score import Speaker
from tutelage.models.adapters import with_lora
from tutelage.models.language import load_language_model
from tutelage.models.shrinking import keep_layers
from tutelage.studies.arm import weights_digest
from tutelage.teachers import EnsembleTeacher, ModuleTeacher, Teacher
from tutelage.teachers.crossing import CrossTokenizerTeacher, SortedTeacher
from tutelage.teachers.remote import RemoteTeacher


@dataclass(frozen=True)
class Taught:
    """A config's teacher.

    Args:
        heard: as students are taught by it.
        speaker: who writes and scores in its place; None for its own model.
    """

    heard: Teacher
    speaker: Speaker | None


def student_maker(config: LanguageConfig, folder: Path) -> Callable[[], nn.Module]:
    """Makes fresh students; whoever calls it has seeded torch."""
    lora = config.student.lora

    def make() -> nn.Module:
        model = bare_student(config, folder)
        if lora is None:
            return model
        seed = torch.initial_seed() % 2**32
        with naming("student.lora"):
            return with_lora(model, r=lora.r, alpha=lora.alpha, dropout=lora.dropout, targets=lora.targets, seed=seed)

    return make


def bare_student(config: LanguageConfig, folder: Path) -> nn.Module:
    """The student before any adapters."""
    section = config.student
    if section.origin is not None:
        assert config.teacher.model is not None  # the check found one
        source, where = in_full_precision(model_source(config.teacher.model, folder)), "teacher.model"
    else:
        assert section.model is not None
        source, where = model_source(section.model, folder), "student.model"
    with naming(where):
        model = load_language_model(source, seed=torch.initial_seed() % 2**32)
    if section.layers is None:
        return model
    with naming("student.layers"):
        return keep_layers(model, section.layers)


def build_language_teacher(
    config: LanguageConfig, folder: Path, tokenizers: Tokenizers, crossing: Crossing | None, student: nn.Module
) -> Taught:
    """The teacher, as far as it can be heard in the student's vocabulary.

    Args:
        config: the config.
        folder: where it lies.
        tokenizers: of both.
        crossing: where the two vocabularies meet token by token, else None.
        student: an untouched one, without adapters.

    Raises:
        TutelageError: what is wrong with it, behind the key it stands under.
    """
    section, width = config.teacher, score_count(student)
    if section.remote is not None:
        own = tokenizers.teacher or tokenizers.student
        served = _remote(section.remote, width, own)
        many = config.generate.batch_size if config.generate is not None else 16
        return Taught(served, ServedSpeaker(served, own, eos_ids(own), many))
    if section.itself:
        return Taught(ModuleTeacher(student), None)
    if section.ensemble is not None:
        members = [
            _given(member.model, folder, f"teacher.ensemble.{number}.model")
            for number, member in enumerate(section.ensemble)
        ]
        with naming("teacher.ensemble"):
            teacher: Teacher = EnsembleTeacher(members, [member.weight for member in section.ensemble])
    else:
        assert section.model is not None
        teacher = _given(section.model, folder, "teacher.model")
    return Taught(_aligned(teacher, tokenizers, crossing, width), None)


def score_count(model: nn.Module) -> int | None:
    """How many scores a model gives for each token; None where it does not say."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # pyright: ignore[reportCallIssue]
    weight = getattr(head, "weight", None)
    return len(weight) if weight is not None else None


def _given(section: ModelSection, folder: Path, where: str) -> ModuleTeacher:
    """One trained model."""
    source = model_source(section, folder)
    with naming(where):
        model = load_language_model(source, trained=True)
        if section.python is not None and section.checkpoint is None:
            another = load_language_model(source, trained=True, seed=1)
            if weights_digest(model) != weights_digest(another):
                raise ConfigError(
                    f"{section.python!r} makes other weights from another seed, so they are not trained ones, and the student would be "
                    "taught noise; give 'checkpoint: file.safetensors', or load trained weights in that function"
                )
        return ModuleTeacher(model)


def _aligned(teacher: Teacher, tokenizers: Tokenizers, crossing: Crossing | None, width: int | None) -> Teacher:
    if crossing is None:
        return teacher
    with naming("teacher.alignment"):
        if tokenizers.alignment == "uld":
            return SortedTeacher(teacher, crossing)
        return CrossTokenizerTeacher(teacher, crossing, classes=width)


def _remote(section: RemoteSection, width: int | None, tokenizer: Any) -> RemoteTeacher:
    classes = section.classes or width
    if classes is None:
        raise ConfigError(
            "teacher.remote.classes is missing, and the student does not say how many tokens it has: give the number that both share"
        )
    with naming("teacher.remote"):
        return RemoteTeacher(
            section.url,
            section.model,
            classes=classes,
            k=section.k,
            key_env=section.key_env,
            timeout=section.timeout,
            retries=section.retries,
            tokenizer=tokenizer,
        )
