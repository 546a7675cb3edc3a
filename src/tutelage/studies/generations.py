"""Self-distillation and born-again generations: a student that is taught by an earlier one of its own kind.

Furlanello et al., "Born-Again Neural Networks" (ICML 2018). Each generation starts from weights of its own: started from those
that its teacher started from, a student would only follow it (Allen-Zhu & Li 2020 take the gain for that of an ensemble of
two initialisations).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.errors import ConfigError
from tutelage.evaluation import crossed_interval
from tutelage.models.saving import load_student
from tutelage.objectives import CrossEntropy, Objective, Term, as_objective
from tutelage.studies.arm import ArmPlan, ArmRun, build_seeded
from tutelage.studies.evidence import correctness
from tutelage.studies.recipes import Outcome, relative_seed
from tutelage.studies.setting import Setting
from tutelage.studies.starting import as_student_sees
from tutelage.studies.teaching import Heard, listens
from tutelage.teachers import ModuleTeacher

Json = dict[str, Any]


@dataclass(frozen=True)
class BornAgain:
    """An arm whose student is taught by its own kind, over generations of equal budgets.

    Generation 0 learns from the labels alone; generation g is taught by g − 1; the last one is the arm. It starts, seed by seed,
    from the weights that every other arm starts from, and the generations before it from others: so generation 0 is not
    the arm ``scratch``, though it is made in the same way.

    Args:
        generations: how many are taught; 1 is self-distillation.
        objective: what they minimise; the study's own where None.

    Raises:
        ConfigError: no generation.
    """

    generations: int = 3
    objective: Objective | Term | None = None

    def __post_init__(self) -> None:
        if isinstance(self.generations, bool) or not isinstance(self.generations, int) or self.generations < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(
                f"born_again has {self.generations!r} generations, expected a whole number of at least 1, which is self-distillation"
            )

    @property
    def trainings(self) -> int:
        """Every generation, and the one that they begin with."""
        return self.generations + 1

    def minimises(self, objective: Objective) -> Objective:
        """The arm's own objective, or the study's.

        Raises:
            ConfigError: it listens to no teacher.
        """
        own = as_objective(self.objective) if self.objective is not None else objective
        if not listens(own):
            raise ConfigError(
                "the objective of born_again listens to no teacher, so no generation would learn from the one before: give it a soft "
                "term such as kl"
            )
        return own

    def describe(self) -> Json:
        """``{"generations": …}``, with the objective where it has one of its own."""
        own = {"objective": as_objective(self.objective).describe()} if self.objective is not None else {}
        return {"generations": self.generations, **own}

    def words(self) -> str:
        """What the arm is."""
        if self.generations == 1:
            return "the same student, taught by one of its own kind that was trained on the labels alone"
        return (
            f"the same student, taught by one of its own kind, {self.generations} generations after one that was trained on the labels "
            "alone"
        )

    def prerequisites(self, arm: str) -> Mapping[str, Objective]:
        """The generation that is taught by nobody."""
        return {f"{arm}, generation 0": as_objective(CrossEntropy())}

    def run(self, arm: str, setting: Setting, objective: Objective) -> Outcome:
        """Train every generation that is not trained yet, all seeds of one before the next."""
        runs: list[ArmRun] = []
        rows: list[Json] = []
        for generation in range(self.generations + 1):
            plans = [
                self._plan(arm, setting, objective, generation, number, runs[number] if runs else None)
                for number in range(len(setting.seeds))
            ]
            runs = setting.run(plans)
            rows.append(_row(generation, runs, setting))
        return Outcome(runs, {"generations": rows})

    def _plan(
        self, arm: str, setting: Setting, objective: Objective, generation: int, number: int, before: ArmRun | None
    ) -> ArmPlan:
        seed = setting.seeds[number]
        last = generation == self.generations
        own_seed = seed if last else relative_seed(seed, generation + 1)
        folder: Path = setting.folder / arm
        if not last:
            folder /= f"generation-{generation}"
        name = arm if last else f"{arm}, generation {generation}"
        folder /= f"seed-{seed}"
        if before is None:
            return setting.plan(name, own_seed, folder, as_objective(CrossEntropy()), None)
        teacher = load_student(build_seeded(setting.student, before.seed), before.folder)
        heard = Heard(ModuleTeacher(teacher), as_student_sees(setting.splits.train))
        return setting.plan(name, own_seed, folder, objective, heard)


def _row(generation: int, runs: Sequence[ArmRun], setting: Setting) -> Json:
    labels = setting.splits.test.known_labels.numpy()
    estimate = crossed_interval(correctness(np.stack([run.test_logits for run in runs]), labels))
    return {
        "generation": generation,
        "accuracy": estimate.mean,
        "ci95": estimate.to_json()["ci95"],
        "seconds": float(np.mean([run.seconds for run in runs])),
    }
