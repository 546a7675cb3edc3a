"""Layer maps by name (``layers: uniform``) in a config's objective, resolved against the two models' layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tutelage.config.models import maker, naming
from tutelage.config.schema import StudyConfig
from tutelage.errors import ConfigError
from tutelage.models import block_names
from tutelage.models.layers import attention_names
from tutelage.objectives import needs_layer_map, resolve_layers


def with_layers(
    items: Sequence[Mapping[str, Any]],
    config: StudyConfig,
    folder: Path,
    student: Callable[[], nn.Module],
    where: str = "student.model",
) -> Sequence[Mapping[str, Any]]:
    """An objective's items with every layer map by name replaced by pairs of the student's and the teacher's layers.

    Args:
        items: the list of an ``objective:``.
        config: names the models, which are built to look at only where an item asks for it.
        folder: where the config lies.
        student: makes a fresh student that minimises it.
        where: the student's key, for messages.

    Raises:
        ConfigError, ModelError: no pairs can be made; the message names the item or the model.
    """
    if not needs_layer_map(items):
        return items
    if config.assistants:
        raise ConfigError(
            "layers: uniform and layers: last pair two models, and with assistants there are more, whose layers have other names: list "
            "the pairs by name, in each assistant's objective too"
        )
    if config.teacher.model is None or config.teacher.members is not None:
        raise ConfigError(
            "layers: uniform and layers: last need one teacher, and this one is an ensemble, whose mixture has no features; leave those "
            "terms out, or name one model as the teacher"
        )
    mine, my_blocks = _looked_at(student, where)
    theirs, their_blocks = _looked_at(maker(config.teacher.model, folder, "teacher.model"), "teacher.model")
    return resolve_layers(
        items,
        my_blocks,
        their_blocks,
        student_attention=partial(attention_names, mine),
        teacher_attention=partial(attention_names, theirs),
    )


def _looked_at(make: Callable[[], nn.Module], where: str) -> tuple[nn.Module, list[str]]:
    with torch.random.fork_rng(devices=[]):
        model = make()
    with naming(where):
        return model, block_names(model)
