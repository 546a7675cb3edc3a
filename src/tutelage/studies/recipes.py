"""An arm that is more than an objective: how several trainings, or several models, make one student a seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from tutelage.objectives import Objective, Term, as_objective
from tutelage.studies.arm import ArmRun
from tutelage.studies.setting import Setting
from tutelage.studies.starting import Arm

Json = dict[str, Any]

#: Lies between the seeds of one student's relatives (its peer, its earlier generations): far beyond any list of seeds.
STRIDE = 1_000_003


@dataclass(frozen=True)
class Outcome:
    """What an arm left.

    Args:
        runs: one a seed, in the seeds' order, of the students that are judged.
        record: more for its entry in ``result.json``.
    """

    runs: Sequence[ArmRun]
    record: Mapping[str, Any] = field(default_factory=dict[str, Any])


@runtime_checkable
class Recipe(Protocol):
    """How an arm is made where it is not by an objective alone."""

    @property
    def trainings(self) -> int:
        """How many trainings a seed takes."""
        ...

    def minimises(self, objective: Objective) -> Objective:
        """What its students minimise.

        Args:
            objective: the study's own.

        Raises:
            ConfigError: an objective that this recipe can do nothing with.
        """
        ...

    def describe(self) -> Json:
        """Its options, as a config has them."""
        ...

    def words(self) -> str:
        """What the arm is, in words."""
        ...

    def prerequisites(self, arm: str) -> Mapping[str, Objective]:
        """What is trained besides, to find out beforehand that there are labels for it."""
        ...

    def run(self, arm: str, setting: Setting, objective: Objective) -> Outcome:
        """Train what is not trained yet.

        Args:
            arm: its name, and its folder's.
            setting: what all trainings share.
            objective: that of :meth:`minimises`.
        """
        ...


def relative_seed(seed: int, distance: int) -> int:
    """The seed of a student's relative: another initialisation and data order, and no seed that anybody would list."""
    return (seed + STRIDE * distance) % 2**32


#: What another arm is: an objective, that with a student of its own, or a recipe.
ExtraArm = Objective | Term | Arm | Recipe


def objective_of(extra: ExtraArm, own: Objective) -> Objective:
    """What another arm minimises; the study's own objective where it has none.

    Raises:
        ConfigError: as :meth:`Recipe.minimises`.
    """
    if isinstance(extra, Recipe):
        return extra.minimises(own)
    if isinstance(extra, Arm):
        return own if extra.objective is None else as_objective(extra.objective)
    return as_objective(extra)
