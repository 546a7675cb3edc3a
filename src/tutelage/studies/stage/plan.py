"""``StagePlan``: everything that decides a stage, and what can be known of it before anything is trained."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from tutelage.errors import ConfigError, ModelError, TutelageError
from tutelage.models.masked_language import carry_over, masked_language_student
from tutelage.objectives import CrossEntropy, Objective, Term, as_objective
from tutelage.studies.arm import build_seeded
from tutelage.studies.preflight import check_training
from tutelage.studies.stage.job import StageJob, stage_trainer
from tutelage.studies.stage.texts import StageTexts
from tutelage.studies.teaching import listens
from tutelage.teachers import ModuleTeacher

#: The folder of a run in which its stage lies.
STAGE = "stage"
TEACHER = "teacher"

#: Gives the objective of a student and a teacher, both masked language models.
Meeting = Callable[[nn.Module, nn.Module], Objective]


@dataclass(frozen=True)
class StageTeacherTraining:
    """How a run trains its stage's own teacher, on the hidden words alone.

    Args:
        training: arguments of :class:`DistillationArguments`, by name.
        seed: of initialisation and data order.
    """

    training: Mapping[str, Any]
    seed: int = 0


@dataclass(frozen=True)
class StagePlan:
    """A stage that is the same for every task: a masked language model taught by another (Sanh et al. 2019, "DistilBERT", section 3).

    Both models see the same text with some tokens hidden. Scores are those of the tokens asked for alone: DistilBERT's own training
    compared those of all tokens, at seven times the cost of the vocabulary. Layers that a term listens to are of whole texts, as theirs
    are, so that relations and attentions may be learnt too. What a stage teaches is the student's encoder: the head on it is the stage's
    own, and the task's comes back after it.

    Args:
        texts: what is learnt from, and what is measured on.
        teacher: a masked language model; with ``teacher_training``, a function that makes it.
        objective: what the students minimise; or a function of the student's and the teacher's masked language model that gives it,
            where it names their layers.
        training: arguments of :class:`DistillationArguments`, by name.
        tokenizer: saved beside every model.
        teacher_training: given where this run trains the teacher.

    Raises:
        ConfigError: a module that is to be trained, or a function that is not.
    """

    texts: StageTexts
    teacher: nn.Module | Callable[[], nn.Module]
    objective: Objective | Term | Meeting
    training: Mapping[str, Any]
    tokenizer: Any
    teacher_training: StageTeacherTraining | None = None
    #: The teacher of each run's folder, once it can teach.
    ready: dict[Path, nn.Module] = field(default_factory=dict[Path, nn.Module], repr=False, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.teacher, nn.Module) == (self.teacher_training is not None):
            got = "a module beside teacher_training" if self.teacher_training is not None else "no module"
            raise ConfigError(
                f"stage: teacher is {got}, expected a trained masked language model, or with teacher_training a function that makes one: "
                "otherwise what teaches would be random, or the given weights be lost"
            )

    @property
    def teacher_trainings(self) -> int:
        """How many trainings there are before the students'."""
        return int(self.teacher_training is not None)

    def teacher_job(self, folder: Path) -> StageJob:
        """The training of the teacher."""
        recipe = self.teacher_training
        assert recipe is not None
        return StageJob(
            name="the stage's teacher",
            seed=recipe.seed,
            folder=folder,
            build=self.fresh_teacher,
            objective=as_objective(CrossEntropy()),
            training=recipe.training,
            texts=self.texts,
            tokenizer=self.tokenizer,
        )

    def fresh_teacher(self) -> nn.Module:
        """The teacher as it is before this run trains it."""
        assert not isinstance(self.teacher, nn.Module)
        made: Any = self.teacher()
        if not isinstance(made, nn.Module):
            raise ConfigError(f"stage: teacher() returned a {type(made).__name__}, expected a fresh nn.Module")
        return made

    def student_job(
        self, folder: Path, seed: int, student: Callable[[], nn.Module], teacher: nn.Module, of: str | None = None
    ) -> StageJob:
        """The training of a seed's student by a teacher that can teach.

        Args:
            folder: where it is left.
            seed: of initialisation and data order.
            student: makes a fresh student of the task.
            teacher: the stage's.
            of: the arm whose own student it is; None for the study's.
        """

        def build() -> nn.Module:
            return masked_language_student(student(), teacher)

        return StageJob(
            name="the stage" if of is None else f"the stage of {of}",
            seed=seed,
            folder=folder,
            build=build,
            objective=self._minimised(build, seed, teacher),
            training=self.training,
            texts=self.texts,
            tokenizer=self.tokenizer,
            teacher=ModuleTeacher(teacher),
        )

    def _minimised(self, build: Callable[[], nn.Module], seed: int, teacher: nn.Module) -> Objective:
        if isinstance(self.objective, Objective | Term):
            return as_objective(self.objective)
        return self.objective(build_seeded(build, seed), teacher)


def student_folder(run: Path, seed: int, of: str | None = None) -> Path:
    """Where a run keeps the stage's student of a seed.

    Args:
        run: the run's folder.
        seed: its seed.
        of: the arm whose own student it is; None for the study's.
    """
    own = run / STAGE if of is None else run / STAGE / f"of-{of}"
    return own / f"seed-{seed}"


def teacher_folder(run: Path) -> Path:
    """Where a run keeps the stage's teacher, where it trains it."""
    return run / STAGE / TEACHER


def check_stage(plan: StagePlan, student: Callable[[], nn.Module]) -> None:
    """Find out before anything is trained that teacher, student, texts and objective of a stage fit together.

    Args:
        plan: the stage.
        student: makes a fresh student of the task, or one of the same shape.

    Raises:
        TutelageError: what does not fit; the message begins with "stage".
    """
    try:
        _check(plan, student)
    except TutelageError as error:
        said = str(error)
        raise type(error)(said if said.startswith("stage") else f"stage: {said}") from error


def _check(plan: StagePlan, student: Callable[[], nn.Module]) -> None:
    recipe = plan.teacher_training
    seed = recipe.seed if recipe is not None else 0
    teacher = plan.teacher if isinstance(plan.teacher, nn.Module) else build_seeded(plan.fresh_teacher, seed)
    with tempfile.TemporaryDirectory() as aside:
        jobs = [("stage.training", plan.student_job(Path(aside), 0, student, teacher))]
        if recipe is not None:
            jobs.append(("stage.teacher.training", plan.teacher_job(Path(aside))))
        for where, job in jobs:
            model = build_seeded(job.build, job.seed) if job.teacher is not None else teacher
            check_training(job.training, where, model, job.objective, job.texts.train, job.texts.validation)
            if job.teacher is not None:
                _expect_vocabulary(model, teacher, plan)
                carry_over(model, build_seeded(student, 0))
                if not listens(job.objective) and recipe is not None:
                    raise ConfigError(
                        "stage.teacher.training trains a teacher that no term of stage.objective listens to: leave it out, or add a term "
                        "such as {term: kl}"
                    )
            stage_trainer(job, model).identify()


def _expect_vocabulary(student: nn.Module, teacher: nn.Module, plan: StagePlan) -> None:
    """Refuse vocabularies of which one is another's part: a token's number would mean another token."""
    tokens = len(plan.tokenizer)
    sizes = {who: _rows(model) for who, model in (("student", student), ("teacher", teacher))}
    short = {who: rows for who, rows in sizes.items() if rows is not None and rows < tokens}
    known = {rows for rows in sizes.values() if rows is not None}
    if short or len(known) > 1:
        said = " and ".join(f"the {who} {rows:,}" for who, rows in sizes.items() if rows is not None)
        raise ModelError(
            f"the tokenizer has {tokens:,} tokens, {said}: a word that one hides is no word, or another one, to the other; let both models "
            "be of one vocabulary; a student's is cut after the stage (in a config: vocabulary: used; in Python: Study(uncut=Uncut(...)))"
        )


def _rows(model: Any) -> int | None:
    embeddings = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    weight = getattr(embeddings, "weight", None)
    return None if weight is None else int(weight.shape[0])
