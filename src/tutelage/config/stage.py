"""From a config's section ``stage`` to its plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tutelage.config.models import naming, user_function
from tutelage.config.stage_section import StageDataSection, StageSection, StageTeacherSection
from tutelage.data import Chain, DataSource, Masking, Splits, Tokenise, View, load_source
from tutelage.data.ids import RawInputs
from tutelage.data.language import compare_tokenizers, load_tokenizer
from tutelage.errors import ConfigError
from tutelage.models import ModelSource, block_names
from tutelage.models.hub import expect_hub
from tutelage.models.layers import attention_names
from tutelage.models.masked_language import load_masked_language_model
from tutelage.objectives import Objective, needs_layer_map, objective_from_config, resolve_layers
from tutelage.studies.arm import weights_digest
from tutelage.studies.stage import Meeting, StagePlan, StageTeacherTraining, StageTexts

#: How long texts are, in tokens, where neither the stage nor the task says.
_MAX_LENGTH = 128


def build_stage(section: StageSection | None, folder: Path, *, splits: Splits, tokenizer: Any) -> StagePlan | None:
    """A study's ``stage``; None where the config has no such section.

    Args:
        section: the section.
        folder: where the config lies.
        splits: of the task, whose validation and test texts no stage learns from.
        tokenizer: of the task's texts, for student and teacher alike; None where the task has none.

    Raises:
        ConfigError: the task is not of texts; teacher and student read different tokens; as the parts' own.
    """
    if section is None:
        return None
    if tokenizer is None:
        raise ConfigError(
            "stage: the task's student view does not tokenise, and a stage hides words of texts; give the task texts with views: {student: "
            "[{tokenise: {tokenizer: ...}}]}, or leave the stage out"
        )
    with naming("stage.teacher"):
        make_teacher = _teacher_maker(section.teacher, folder, tokenizer)
    recipe = None
    if section.teacher.training is not None:
        recipe = StageTeacherTraining(section.teacher.training, section.teacher.seed)
    with naming("stage"):
        objective = _objective(section.objective)
    with naming("stage.data"):
        texts = StageTexts.of(
            _texts(section.data, folder, splits),
            tokenizer,
            Masking(**section.masking.model_dump()),
            max_length=section.max_length or _longest(splits.train.student_view),
            validation=section.validation,
            seed=section.seed,
            apart_from=torch.cat([splits.validation.ids, splits.test.ids]),
        )
    return StagePlan(
        texts=texts,
        teacher=make_teacher if recipe is not None else make_teacher(),
        objective=objective,
        training=section.training,
        tokenizer=tokenizer,
        teacher_training=recipe,
    )


def _teacher_maker(section: StageTeacherSection, folder: Path, tokenizer: Any) -> Callable[[], nn.Module]:
    source = ModelSource(**section.model.model_dump(), folder=folder)
    if source.hub is not None:
        expect_hub(source.hub, folder)
        local = folder / source.hub
        _expect_same_tokenizer(tokenizer, str(local) if local.is_dir() else source.hub, source.revision)
    if section.training is not None:
        return lambda: load_masked_language_model(source, seed=torch.initial_seed())
    given = load_masked_language_model(source, trained=True, seed=section.seed)
    if source.python is not None and source.checkpoint is None:
        another = load_masked_language_model(source, trained=True, seed=section.seed + 1)
        if weights_digest(given) != weights_digest(another):
            raise ConfigError(
                f"{source.python!r} makes other weights from another seed, so they are not trained ones, and the students would be taught "
                "noise; give 'checkpoint: file.safetensors', or 'training' for this run to train it"
            )
    return lambda: given


def _expect_same_tokenizer(own: Any, name: str, revision: str | None) -> None:
    try:
        theirs = load_tokenizer(name, revision)
    except ConfigError as error:
        reason = next(iter(str(error.__cause__ or error).splitlines()), "it is damaged").rstrip(".")
        raise ConfigError(
            f"no tokenizer could be read beside the teacher's weights in {name!r}, so that nobody knows which words it hides: {reason}; "
            "copy the files of the tokenizer that it was trained with there"
        ) from error
    found = compare_tokenizers(own, theirs)
    if found.same:
        return
    how = (
        f"{len(found.differing):,} numbers mean different tokens"
        if found.differing
        else "the same text is cut in other places"
    )
    raise ConfigError(
        f"the student's tokenizer has {found.sizes[0]:,} tokens and the teacher's {found.sizes[1]:,}, and {how}: the probability of one "
        "word would be taught as that of another; give a teacher with the student's tokenizer (one that differs can still teach the task)"
    )


def _objective(items: Sequence[Mapping[str, Any]]) -> Objective | Meeting:
    """What a stage minimises; where it names layers by a map, as soon as the two models are there."""
    if not needs_layer_map(items):
        return objective_from_config(items)

    def meeting(student: nn.Module, teacher: nn.Module) -> Objective:
        with naming("stage"):
            named = resolve_layers(
                items,
                block_names(student),
                block_names(teacher),
                student_attention=partial(attention_names, student),
                teacher_attention=partial(attention_names, teacher),
            )
            return objective_from_config(named)

    return meeting


def _texts(section: StageDataSection | None, folder: Path, splits: Splits) -> Sequence[str]:
    if section is None:
        return _as_texts(splits.train.inputs, "the task's transfer set has")
    make = user_function(section.python, folder, "stage.data.python", 0) if section.python is not None else None
    pool, _ = load_source(
        DataSource(
            source=section.source,
            path=section.path,
            inputs=section.inputs,
            name=section.name,
            revision=section.revision,
            split=section.split or "train",
            folder=folder,
            make=make,
        )
    )
    return _as_texts(pool.inputs, "the source gives")


def _as_texts(inputs: RawInputs, whose: str) -> Sequence[str]:
    if isinstance(inputs, Sequence):
        return inputs
    raise ConfigError(
        f"{whose} a {type(inputs).__name__}, expected texts: there are no words to hide in anything else; name one column of texts"
    )


def _longest(view: View | None) -> int:
    steps = view.views if isinstance(view, Chain) else [view]
    return next((step.max_length for step in steps if isinstance(step, Tokenise)), None) or _MAX_LENGTH
