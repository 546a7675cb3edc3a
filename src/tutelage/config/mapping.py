"""``layers: uniform`` and ``layers: last`` in a config's objective, resolved against the two models' blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tutelage.config.models import maker, naming
from tutelage.config.schema import ModelSection, StudyConfig
from tutelage.errors import ConfigError
from tutelage.models import block_names
from tutelage.objectives import needs_layer_map, resolve_layers


def with_layers(items: Sequence[Mapping[str, Any]], config: StudyConfig, folder: Path) -> Sequence[Mapping[str, Any]]:
    """An objective's items with every layer map by name replaced by pairs of the student's and the teacher's blocks.

    Args:
        items: the list of an ``objective:``.
        config: names the models, which are built to look at only where an item asks for it.
        folder: where the config lies.

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
    student = _blocks(config.student.model, folder, "student.model")
    return resolve_layers(items, student, _blocks(config.teacher.model, folder, "teacher.model"))


def _blocks(section: ModelSection, folder: Path, where: str) -> list[str]:
    with torch.random.fork_rng(devices=[]):
        model = maker(section, folder, where)()
    with naming(where):
        return block_names(model)
