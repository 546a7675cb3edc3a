"""Teacher → assistants → student: where the gap is large, models of sizes in between pass the knowledge on.

Mirzadeh et al., "Improved Knowledge Distillation via Teacher Assistant" (AAAI 2020): a student taught by a much larger teacher
may learn less than one taught by a smaller, worse one. The price is the assistants' training, so the direct road is always
walked as well, with the student's same budget.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from torch import nn

from tutelage.data import Splits, TransferSet, View
from tutelage.errors import ConfigError
from tutelage.evaluation import classification_metrics
from tutelage.models.saving import load_student
from tutelage.objectives import Objective, Term, as_objective
from tutelage.studies.arm import ArmRun, build_seeded, predict
from tutelage.studies.gates import JUDGED
from tutelage.studies.setting import Setting, held_out_identity
from tutelage.studies.starting import FromTeacher, Maker, Start, as_heard
from tutelage.studies.teaching import Heard
from tutelage.teachers import ModuleTeacher

#: The arm of the student that the teacher teaches itself, where a chain leads to the judged one.
DIRECT = "direct"

#: With so many candidates there are 15 roads, and with one more 31.
MOST_CANDIDATES = 4

ASSISTANTS = "assistants"
CANDIDATES = "candidates"

Json = dict[str, Any]


@dataclass(frozen=True)
class Assistant:
    """A model between teacher and student: taught by the one before it, it teaches the one after it.

    It sees what the student sees, also where the teacher has a view of its own, unless it is given another one.

    Args:
        name: of its folder and in the record.
        model: makes the fresh module; or :class:`FromTeacher`, how it is made of the teacher's.
        training: arguments of :class:`DistillationArguments`, by name; the student's where None.
        objective: what it minimises; the student's where None.
        seed: of initialisation and data order. There is one assistant for all of the students' seeds.
        fingerprint: facts that must not change between its training and a resumption; the study's where None.
        view: what it sees of an example, where that is not what the student sees: a model of another vocabulary needs its own.
        start: how it begins, for the record.

    Raises:
        ConfigError: a name that names no folder or is taken, or a model that is no function.
    """

    name: str
    model: Maker
    training: Mapping[str, Any] | None = None
    objective: Objective | Term | None = None
    seed: int = 0
    fingerprint: Mapping[str, Any] | None = None
    view: View | None = None
    start: Start | None = None

    def __post_init__(self) -> None:
        if re.fullmatch(r"[\w-]+", self.name) is None:
            raise ConfigError(
                f"an assistant is called {self.name!r}: it names a folder too, so use letters, digits, '_' and '-' alone"
            )
        if self.name in ("teacher", "student"):
            raise ConfigError(
                f"an assistant is called {self.name!r}, the name of an end of the chain: the record could not tell the two; call it by "
                "its size, such as 'middle'"
            )
        if isinstance(self.model, nn.Module) or not (isinstance(self.model, FromTeacher) or callable(self.model)):
            raise ConfigError(
                f"the model of the assistant {self.name!r} is a {type(self.model).__name__}, expected a function that makes a fresh one; "
                "a model that is trained already needs no chain: make it the teacher"
            )


@dataclass(frozen=True)
class Chain:
    """The road from the teacher to the student.

    Args:
        assistants: in order, from the teacher to the student.
        path: ``"all"`` takes every assistant in turn; ``"best"`` tries every choice of them that keeps their order, each with
            a student of the first seed, and takes the one whose student is best on the validation split.

    Raises:
        ConfigError: no assistants, two of one name, an unknown path, or too many candidates.
    """

    assistants: Sequence[Assistant]
    path: Literal["all", "best"] = "all"

    def __post_init__(self) -> None:
        names = [assistant.name for assistant in self.assistants]
        if not names:
            raise ConfigError(
                "a chain without assistants is the direct road: name at least one, or leave the chain out"
            )
        if len(set(names)) < len(names):
            raise ConfigError(
                f"assistants are called {', '.join(names)}: two of one name would share a folder; give each its own"
            )
        if self.path not in ("all", "best"):
            raise ConfigError(f"path is {self.path!r}, expected 'all' or 'best'")
        if self.path == "best" and len(names) > MOST_CANDIDATES:
            raise ConfigError(
                f"path is 'best' with {len(names)} assistants: {2 ** len(names) - 1} roads would be trained to their end; name at most "
                f"{MOST_CANDIDATES}, or take them all in turn (path 'all')"
            )

    @property
    def paths(self) -> list[tuple[Assistant, ...]]:
        """The roads that are tried, shortest first."""
        if self.path == "all":
            return [tuple(self.assistants)]
        lengths = range(1, len(self.assistants) + 1)
        return [path for length in lengths for path in combinations(self.assistants, length)]

    @property
    def trainings(self) -> int:
        """How many trainings come before the judged arm's: each assistant by whom it is taught, and the trial students."""
        named = [tuple(assistant.name for assistant in path) for path in self.paths]
        taught = {names[:end] for names in named for end in range(1, len(names) + 1)}
        return len(taught) + (len(self.paths) if self.path == "best" else 0)

    def objectives(self, student: Objective) -> dict[str, Objective]:
        """What each assistant minimises, by its name."""
        return {
            assistant.name: as_objective(assistant.objective) if assistant.objective is not None else student
            for assistant in self.assistants
        }

    def describe(self) -> list[Json]:
        """The assistants as a config lists them, as far as they can be told without their code."""
        return [
            {
                "name": assistant.name,
                **({"training": assistant.training} if assistant.training is not None else {}),
                **(
                    {"objective": as_objective(assistant.objective).describe()}
                    if assistant.objective is not None
                    else {}
                ),
                "seed": assistant.seed,
            }
            for assistant in self.assistants
        ]


@dataclass(frozen=True)
class Link:
    """An assistant that was taught and can teach.

    Args:
        name: its own.
        taught_by: ``"teacher"``, or another assistant's name.
        run: its training.
        module: it.
        heard: it, as the next one hears it.
        splits: the data as it sees it.
        start: how it began, for the record.
    """

    name: str
    taught_by: str
    run: ArmRun
    module: nn.Module
    heard: Heard
    splits: Splits
    start: Start | None = None


@dataclass(frozen=True)
class Candidate:
    """A road that was tried.

    Args:
        links: its assistants.
        student: the trial student at its end.
        metrics: the student's on the validation split.
    """

    links: Sequence[Link]
    student: ArmRun
    metrics: Mapping[str, float]

    @property
    def seconds(self) -> float:
        """What the road takes: its assistants and one student."""
        return sum(link.run.seconds for link in self.links) + self.student.seconds


@dataclass(frozen=True)
class Walked:
    """The road that was taken.

    Args:
        links: its assistants, from the teacher on.
        how: the chain's ``path``.
        candidates: every road that was tried, where there was a choice.
        search_seconds: spent on choosing: on assistants of roads that were not taken, and on every trial student.
    """

    links: Sequence[Link]
    how: str
    candidates: Sequence[Candidate] | None = None
    search_seconds: float = 0.0

    @property
    def heard(self) -> Heard:
        """Who teaches the student."""
        return self.links[-1].heard


def walk(chain: Chain, setting: Setting, teacher: Heard, objective: Objective) -> Walked:
    """Train the assistants that are not trained yet, and choose the road where there is a choice.

    A road's beginning is shared with every other that begins alike. With a choice, what decides is the accuracy on the
    validation split of one student of the study's first seed; then its NLL; then the shorter road. Assistants and these trial
    students never meet the test split while they may still be chosen; the judged arm trains all its seeds anew. The direct road is no
    choice: it is walked in any case, as the arm that shows on the test split whether the chosen detour paid.
    """
    taught: dict[tuple[str, ...], Link] = {}
    objectives = chain.objectives(objective)
    roads = [_follow(path, setting, teacher, objectives, taught) for path in chain.paths]
    if chain.path == "all":
        return Walked(roads[0], chain.path)
    seed = setting.seeds[0]
    plans = [
        setting.plan(
            f"{JUDGED} by way of {' → '.join(_names(links))}",
            seed,
            _trial(setting, links),
            objective,
            links[-1].heard,
            test=setting.splits.validation,
        )
        for links in roads
    ]
    candidates = [
        Candidate(links, run, validation_metrics_of(run, setting))
        for links, run in zip(roads, setting.run(plans), strict=True)
    ]
    best = min(candidates, key=lambda tried: (-tried.metrics["accuracy"], tried.metrics["nll"], len(tried.links)))
    on_the_way = {id(link) for link in best.links}
    others = sum(link.run.seconds for link in taught.values() if id(link) not in on_the_way)
    others += sum(tried.student.seconds for tried in candidates)
    return Walked(best.links, chain.path, candidates, others)


def validation_metrics_of(run: ArmRun, setting: Setting) -> dict[str, float]:
    """A finished student's metrics on the validation split."""
    student = load_student(build_seeded(setting.student, run.seed), run.folder)
    return metrics_on(student, setting.splits.validation)


def metrics_on(module: nn.Module, held_out: TransferSet) -> dict[str, float]:
    """A module's metrics on a labelled split, which it sees as the student does."""
    return classification_metrics(predict(module, held_out).numpy(), held_out.known_labels.numpy())


def _follow(
    path: Sequence[Assistant],
    setting: Setting,
    teacher: Heard,
    objectives: Mapping[str, Objective],
    taught: dict[tuple[str, ...], Link],
) -> list[Link]:
    """The links of one road, each trained unless another road has been there."""
    links: list[Link] = []
    for end, assistant in enumerate(path, start=1):
        names = tuple(each.name for each in path[:end])
        if names not in taught:
            heard = links[-1].heard if links else teacher
            taught_by = links[-1].name if links else "teacher"
            taught[names] = _teach(assistant, names, taught_by, setting, heard, objectives[assistant.name])
        links.append(taught[names])
    return links


def _teach(
    assistant: Assistant, names: Sequence[str], taught_by: str, setting: Setting, heard: Heard, objective: Objective
) -> Link:
    facts = setting.fingerprint if assistant.fingerprint is None else assistant.fingerprint
    seeing, build = setting.seeing(assistant.view), setting.made(assistant.model)
    plan = seeing.plan(
        f"assistant {' → '.join(names)}",
        assistant.seed,
        # a name has no dot, so no two roads share a folder
        setting.folder / ASSISTANTS / ".".join(names),
        objective,
        heard,
        build=build,
        training=budget_of(assistant, setting),
        test=seeing.splits.validation,
        processing=None,
        fingerprint={**facts, **held_out_identity(setting.splits), "teacher": heard.identity},
    )
    (run,) = setting.run([plan])
    module = load_student(build_seeded(build, assistant.seed), run.folder)
    heard = Heard(ModuleTeacher(module), as_heard(setting.splits.train, assistant.view))
    return Link(assistant.name, taught_by, run, module, heard, seeing.splits, assistant.start)


def budget_of(assistant: Assistant, setting: Setting) -> Mapping[str, Any]:
    """Its own training, or the student's."""
    return assistant.training if assistant.training is not None else setting.training


def _names(links: Sequence[Link]) -> list[str]:
    return [link.name for link in links]


def _trial(setting: Setting, links: Sequence[Link]) -> Path:
    return setting.folder / CANDIDATES / ".".join(_names(links)) / f"seed-{setting.seeds[0]}"
