"""The teacher and the students that a sentence encoder's config names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from tutelage.config.embedding.schema import EmbeddingStudentSection, EmbeddingTeacherSection
from tutelage.config.models import facts_of, model_source, naming, user_function
from tutelage.config.schema import ModelSection
from tutelage.data.language import load_tokenizer
from tutelage.errors import ConfigError
from tutelage.models.hub import expect_hub
from tutelage.models.sentence_folders import load_sentence_encoder
from tutelage.studies.arm import weights_digest
from tutelage.studies.embedding import Pupil
from tutelage.studies.embedding.models import CutTo, Making


def load_teacher(section: EmbeddingTeacherSection, folder: Path) -> nn.Module:
    """The teacher with its tokenizer.

    Raises:
        TutelageError: it is not there, is damaged, or was never trained.
    """
    teacher = _load(section.model, section.tokenizer, folder, "teacher", seed=0)
    if section.model.python is not None and section.model.checkpoint is None:
        another = _load(section.model, section.tokenizer, folder, "teacher", seed=1)
        if weights_digest(teacher) != weights_digest(another):
            raise ConfigError(
                f"teacher.model: {section.model.python!r} makes other weights from another seed, so they are not trained ones, and the "
                "student would be taught noise; give 'checkpoint: file.safetensors', or load trained weights in that function"
            )
    return teacher.eval()


def pupil_of(section: EmbeddingStudentSection, making: Making, folder: Path, where: str) -> Pupil:
    """A kind of student; it is made when it is first asked for.

    Args:
        section: what the config says.
        making: the teacher, and what students are made of.
        folder: where the config lies.
        where: the config's key, for messages.
    """
    facts = facts_of({"data": {}, "student": section.resolved()}, folder)
    if section.static is not None:
        width, tokens = section.static.width, section.static.tokens
        wide = f", {width:,} wide" if width is not None else ""
        words = f"a static one: the mean of a vector a token of the whole text{wide}"
        make = making.static(width, tokens)
        return Pupil(lambda: _named(make, where), words, facts)
    cut = CutTo(
        layers=section.layers,
        hidden=section.hidden,
        heads=section.heads,
        feed_forward=section.feed_forward,
        vocabulary=section.vocabulary is not None,
        at_random=section.initial == "random",
    )
    if section.model is None:
        make = making.cut(cut)
        return Pupil(lambda: _named(make, where), cut.words("the teacher"), facts, cut=True)
    model = section.model

    def load() -> Any:
        return _load(model, section.tokenizer, folder, where, seed=torch.initial_seed() % 2**32)

    named = model.hub or model.python or ""
    if cut.whole:
        return Pupil(load, named, facts)
    make = making.cut(cut, load)
    return Pupil(lambda: _named(make, where), cut.words(named), facts)


def _named(make: Any, where: str) -> Any:
    with naming(where):
        return make()


def _load(model: ModelSection, tokenizer: str | None, folder: Path, where: str, *, seed: int) -> Any:
    with naming(f"{where}.model"):
        encoder: Any = load_sentence_encoder(model_source(model, folder), seed=seed)
    if tokenizer is not None:
        encoder.tokenizer = _tokenizer(tokenizer, folder, f"{where}.tokenizer")
    elif getattr(encoder, "tokenizer", None) is None:
        raise ConfigError(
            f"{where}.tokenizer is missing, and {model.python or model.hub!r} gives an encoder without one: no text could be given to it; "
            "name an id or a folder with a tokenizer's files, or 'file.py:function'"
        )
    return encoder


def _tokenizer(name: str, folder: Path, where: str) -> PreTrainedTokenizerBase:
    if name.rpartition(":")[0].endswith(".py"):
        made = user_function(name, folder, where, 0)()
        if not isinstance(made, PreTrainedTokenizerBase):
            raise ConfigError(f"{where}: {name!r} returned a {type(made).__name__}, expected a transformers tokenizer")
        return made
    with naming(where):
        expect_hub(name, folder)
        return load_tokenizer(folder / name if (folder / name).is_dir() else name)
