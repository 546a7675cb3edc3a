"""The ``config.yaml`` that a run leaves: its resolved config, or what can be said of a study that was made in Python."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tutelage.objectives import as_objective
from tutelage.studies.faculty import describe_members
from tutelage.studies.recipes import ExtraArm, Recipe
from tutelage.studies.starting import Arm
from tutelage.studies.yaml_text import to_yaml

if TYPE_CHECKING:
    from tutelage.studies.study import Study


def config_text_of(study: Study) -> str:
    """A study's config as YAML."""
    if study.config is not None:
        return to_yaml(study.config)
    recipe = study.teacher_training
    extra = [{name: _described(arm)} for name, arm in study.extra_arms.items()]
    config: dict[str, Any] = {
        "title": study.title,
        **({"teacher": {"training": recipe.training, "seed": recipe.seed}} if recipe is not None else {}),
        **({"teacher": {"ensemble": describe_members(study.teacher)}} if isinstance(study.teacher, Sequence) else {}),
        **({"assistants": study.chain.describe()} if study.chain is not None else {}),
        **({"labels": study.labels.describe()} if study.labels is not None else {}),
        "objective": as_objective(study.objective).describe(),
        "training": study.training,
        "study": {
            "seeds": study.seed_list,
            "arms": [*study.arms, *extra],
            "label_smoothing": study.label_smoothing,
            **({"path": study.chain.path} if study.chain is not None else {}),
        },
        "gates": vars(study.gates),
    }
    return to_yaml(config)


def _described(arm: ExtraArm) -> Any:
    if isinstance(arm, Recipe):
        return arm.describe()
    if not isinstance(arm, Arm):
        return as_objective(arm).describe()
    objective = {"objective": as_objective(arm.objective).describe()} if arm.objective is not None else {}
    return {**objective, **({"student": arm.start.words} if arm.start is not None else {})}
