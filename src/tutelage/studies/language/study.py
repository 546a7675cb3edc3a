"""``LanguageStudy``: a language model distilled beside its controls, from prompts and completions to ``result.json`` and a verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from tutelage.evaluation.task_score import Speaker, TaskScore
from tutelage.objectives import Objective, Term
from tutelage.studies.arm import Progress
from tutelage.studies.gates import JUDGED
from tutelage.studies.language.arms import SFT, UNTOUCHED, Author, LanguageArm
from tutelage.studies.language.data import LanguageData
from tutelage.studies.language.gates import LanguageGates
from tutelage.studies.language.generating import Generation
from tutelage.studies.stored_labels import Labels
from tutelage.teachers import Teacher

if TYPE_CHECKING:
    from tutelage.training.on_policy import OnPolicy

Json = dict[str, Any]


@dataclass(frozen=True)
class LanguageStudy:
    """The distilled language model beside its controls, over several seeds, and what that proves.

    The arms share the student's initialisation, data order and budget in each seed: ``untouched`` is the student before any
    training, ``sft`` is fine-tuned on the same completions without a teacher, ``kd`` is judged.

    Args:
        data: the three splits.
        student: makes a fresh student; called once a seed, seeded.
        teacher: its signals, in the student's vocabulary (or for ``alignment="uld"`` in its own).
        tokenizer: of the student; saved beside every one.
        objective: what the ``kd`` arm minimises.
        training: arguments of :class:`DistillationArguments`, by name, for every arm.
        seeds: how many seeds, or which.
        arms: which of ``untouched``, ``sft``, ``kd``.
        extra_arms: more ways to teach the same student, by name.
        on_policy: of the arm ``kd``: where the student itself writes completions that the teacher marks.
        completions: who wrote those that are learnt from, where an arm does not say otherwise: the data, or the teacher.
        generation: how the teacher writes them; needed where some arm learns from them, or a split has none.
        seconds: of training for each arm and seed; None where ``training`` alone sets the budget.
        score: the task's own; None for the per-token KL to the teacher.
        samples: how many test prompts are shown on the page with what each model writes.
        sample_tokens: how much each of these is at most.
        gates: what the student must meet to be shipped.
        labels: how the teacher's answers are kept, from which all arms that listen to it then learn; None for asking it at each step.
        teacher_tokenizer: where it is another one than the student's.
        teacher_speaker: who writes and scores in the teacher's place; None for its own model.
        alignment: how the teacher's vocabulary meets the student's: ``same``; ``crossing``, where ``teacher`` gives distributions in
            the student's; ``uld``; or ``text``, where they meet in text alone and no per-token KL can be told.
        eos: tokens that end what the student writes; None for what its tokenizer and model say.
        batch_size: examples in a call when models are measured.
        title: of the page.
        config: the resolved config to write beside the results.
        fingerprint: more facts that must not change between a run and its resumption.
        command: how the run was started, for the record.
        config_folder: where the config lies; None without one.

    Raises:
        ConfigError: arms, seeds or settings that contradict one another.
    """

    data: LanguageData
    student: Callable[[], nn.Module]
    teacher: Teacher
    tokenizer: Any
    objective: Objective | Term
    training: Mapping[str, Any]
    seeds: int | Sequence[int] = 3
    arms: Sequence[str] = (UNTOUCHED, SFT, JUDGED)
    extra_arms: Mapping[str, LanguageArm] = field(default_factory=dict[str, LanguageArm])
    on_policy: OnPolicy | None = None
    completions: Author = "data"
    generation: Generation | None = None
    seconds: float | None = None
    score: TaskScore | None = None
    samples: int = 6
    sample_tokens: int = 64
    gates: LanguageGates = field(default_factory=LanguageGates)
    labels: Labels | None = None
    teacher_tokenizer: Any = None
    teacher_speaker: Speaker | None = None
    alignment: Literal["same", "crossing", "uld", "text"] = "same"
    eos: Sequence[int] | None = None
    batch_size: int = 8
    title: str = "distillation of a language model"
    config: Mapping[str, Any] | None = None
    fingerprint: Mapping[str, Any] = field(default_factory=dict[str, Any])
    command: str = "tutelage.LanguageStudy(...).run(...)"
    config_folder: Path | None = None

    def run(self, out: str | Path, progress: Progress | None = None) -> Json:
        """Run what is not done yet, and write ``config.yaml`` and ``result.json`` into ``out``.

        The same call goes on with a study that was cut off; finished arms are not run again, and more seeds or arms may be
        asked for later.

        Returns:
            What ``result.json`` holds.

        Raises:
            ConfigError: something does not fit together; nothing has been trained yet.
            CheckpointError: ``out`` holds a study with other settings; the message shows the difference.
        """
        raise NotImplementedError

    def label(self, out: str | Path, progress: Progress | None = None) -> Json:
        """The teacher's labels alone, kept where a later :meth:`run` finds them; returns what a run's record would say of them."""
        raise NotImplementedError

    def generate(self, out: str | Path, progress: Progress | None = None) -> Json:
        """The teacher's completions alone, kept in ``out/generated``, where a later :meth:`run` finds them; returns their manifest."""
        raise NotImplementedError
