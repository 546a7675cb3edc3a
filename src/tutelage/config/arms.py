"""The arms and the assistants of a config: what each minimises, and how its students begin."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import nn

from tutelage.config.company import RECIPES
from tutelage.config.cut_keys import arm_section, is_plain, student_of
from tutelage.config.cutting import Made, Starts
from tutelage.config.mapping import with_layers
from tutelage.config.models import build_recipe, facts_of, naming, own_facts
from tutelage.config.schema import ArmSection, AssistantSection, StudentSection, StudyConfig
from tutelage.data import View
from tutelage.errors import ConfigError
from tutelage.objectives import Objective, needs_layer_map, objective_from_config
from tutelage.studies import Assistant, Chain
from tutelage.studies.recipes import Recipe
from tutelage.studies.starting import Arm, bound
from tutelage.teachers import Teacher


def check_objectives(config: StudyConfig) -> None:
    """Find what is wrong with arms' names and with objectives, as far as they tell by themselves: before any data is read.

    Raises:
        ConfigError: the message names the arm.
    """
    for name, said in _said(config):
        items = arm_section(said).objective if name not in RECIPES else None
        with naming(f"study.arms, {name!r}"):
            if items is not None and not needs_layer_map(items):
                objective_from_config(items)
    if not needs_layer_map(config.objective):
        objective_from_config(config.objective)


@dataclass(frozen=True)
class Company:
    """Who takes part beside the teacher.

    Args:
        config: the config.
        folder: where it lies.
        starts: makes what sections say.
        student: what the study's own section makes.
        teacher: gives the teacher as far as it can be seen before it is trained.
    """

    config: StudyConfig
    folder: Path
    starts: Starts
    student: Made
    teacher: Callable[[], nn.Module | Teacher]

    def objective(self) -> Objective:
        """What the arm ``kd`` minimises."""
        where = "student.model" if is_plain(self.config.student) else "student"
        return self._objective(self.config.objective, self.student, where)

    def arms(self) -> dict[str, Objective | Arm | Recipe]:
        """The arms of the user's own, by their names."""
        found: dict[str, Objective | Arm | Recipe] = {}
        for name, said in _said(self.config):
            with naming(f"study.arms, {name!r}"):
                found[name] = build_recipe(name, said) if name in RECIPES else self._arm(arm_section(said))
        return found

    def chain(self) -> Chain | None:
        """A study's ``chain``; None where the config names no assistants."""
        if self.config.assistants is None:
            return None
        assistants = [self._assistant(section, number) for number, section in enumerate(self.config.assistants)]
        with naming("assistants"):
            return Chain(assistants, self.config.study.path or "all")

    def fingerprint(self, student: StudentSection, made: Made) -> dict[str, Any]:
        """The facts that decide the weights of a study's students, or of an arm's own."""
        resolved = self.config.resolved()
        sections = {"data": resolved["data"], "teacher": resolved["teacher"], "student": student.resolved()}
        return facts_of(sections, self.folder) | {f"student, {name}": value for name, value in made.facts.items()}

    def _arm(self, section: ArmSection) -> Objective | Arm:
        if section.student is None:
            own = None if section.objective is None else self._objective(section.objective, self.student, "student")
            return own if own is not None and section.stage is None else Arm(own, stage=section.stage)
        student = student_of(self.config, section.student)
        made = self.starts.of(student, "student")
        items = section.objective if section.objective is not None else self.config.objective
        # by name, the study's own layers are paired anew: this student may have others
        anew = section.objective is not None or needs_layer_map(items)
        return Arm(
            objective=self._objective(items, made, "student") if anew else None,
            student=made.maker,
            view=self._view_beside(made),
            processing=made.tokenizer,
            start=made.start,
            stage=section.stage,
            fingerprint=self.fingerprint(student, made),
            uncut=made.uncut,
        )

    def _assistant(self, section: AssistantSection, number: int) -> Assistant:
        where = f"assistants.{number}"
        with naming(where):
            objective = objective_from_config(section.objective) if section.objective is not None else None
        made = self.starts.of(section, where)
        own = section.model if is_plain(section) else None
        facts = self._facts_of(section, made) if own is None else own_facts(own, self.config, self.folder)
        with naming(where):
            return Assistant(
                section.name,
                made.maker,
                section.training,
                objective,
                section.seed,
                facts,
                self._view_beside(made),
                made.start if own is None else None,
            )

    def _facts_of(self, section: AssistantSection, made: Made) -> dict[str, Any]:
        """What decides the weights of an assistant that is cut from a model."""
        resolved = self.config.resolved()
        begun = {
            name: value for name, value in section.resolved().items() if name not in ("name", "training", "objective")
        }
        sections = {"data": resolved["data"], "assistant": {**begun, **made.facts}}
        return facts_of(sections | ({"teacher": resolved["teacher"]} if section.model is None else {}), self.folder)

    def _view_beside(self, made: Made) -> View | None:
        """What a model sees, where that is not what the study's own student sees."""
        if made.view is self.student.view:
            return None
        return made.view if made.view is not None else self.starts.view

    def _objective(self, items: Sequence[Mapping[str, Any]], made: Made, where: str) -> Objective:
        student = bound(made.maker, self.teacher)
        return objective_from_config(with_layers(items, self.config, self.folder, student, where))


def _said(config: StudyConfig) -> Generator[tuple[str, Any]]:
    """The arms that are more than a name of the standard ones, with what is said of each."""
    seen: list[str] = []
    for said in config.study.arms:
        if isinstance(said, str) and said not in RECIPES:
            continue
        arm = cast("Mapping[str, Any]", {said: {}} if isinstance(said, str) else said)
        if len(arm) != 1:
            raise ConfigError(f"study.arms: {arm} has {len(arm)} names, expected one name with its list of terms")
        ((name, options),) = arm.items()
        if name in seen:
            raise ConfigError(
                f"study.arms: {name!r} is there twice: one of the two would silently win; give each its own name"
            )
        seen.append(name)
        yield name, options
