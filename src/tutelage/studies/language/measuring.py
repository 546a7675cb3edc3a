"""What every arm is asked once its training is over: the test split, opened once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

from tutelage.errors import CheckpointError, UnansweredError
from tutelage.evaluation.inputs import Floats
from tutelage.evaluation.language import TokenSums, teacher_sums, token_fidelity
from tutelage.evaluation.task_score import Speaker, TaskScore
from tutelage.signals import ClassMap
from tutelage.studies.language.data import Split
from tutelage.studies.language.speaking import ModuleSpeaker
from tutelage.teachers import Teacher

#: The numbers' file; of which score they are stands in its name, so that those of another one never lie under it.
MEASURED = "measured"

Json = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Measured:
    """What was found of one model on the test split.

    Args:
        sums: of each example's tokens; None where the model could not be asked about them.
        scores: ``[N]`` of the task; None where there is none, or the model could not be asked.
        answers: what it writes after the prompts that are shown.
    """

    sums: TokenSums | None
    scores: Floats | None
    answers: Sequence[str]

    @property
    def metrics(self) -> dict[str, float]:
        """Means over the test split of what is known."""
        found = dict(self.sums.means) if self.sums is not None else {}
        return {**found, "score": float(self.scores.mean())} if self.scores is not None else found

    def save(self, path: Path, ids: torch.Tensor) -> None:
        """Keep the numbers in a file, with the test examples they are of."""
        arrays = self.sums.arrays if self.sums is not None else {}
        scores = {"score": self.scores} if self.scores is not None else {}
        save_file({"ids": ids.numpy(), **arrays, **scores}, str(path))

    @staticmethod
    def load(path: Path, answers: Sequence[str], ids: torch.Tensor) -> Measured:
        """What :meth:`save` left.

        Raises:
            CheckpointError: the numbers are of other test examples.
        """
        found = load_file(str(path))
        if not np.array_equal(found.pop("ids"), ids.numpy()):
            raise CheckpointError(
                f"{path.parent} was tested on other examples than the test split holds now: its numbers would be paired with other "
                "examples'; bring back the data of the run, or run the study again"
            )
        scores = found.pop("score", None)
        return Measured(TokenSums(**found) if found else None, scores, answers)


@dataclass(frozen=True, eq=False)
class Exam:
    """The test split with what is asked about it.

    Args:
        test: the split, with completions.
        teacher: who the students are compared with; None where the two cannot be.
        score: the task's; None for none.
        samples: how many of the first prompts are answered in full.
        sample_tokens: the most tokens of these answers.
        batch_size: examples in a call.
        class_map: which classes student and teacher share; None for all.
    """

    test: Split
    teacher: Teacher | None
    score: TaskScore | None
    samples: int
    sample_tokens: int
    batch_size: int
    class_map: ClassMap | None = None

    @property
    def ids(self) -> torch.Tensor:
        """Of the test examples."""
        assert self.test.set is not None
        return self.test.set.ids

    def describe(self) -> Json:
        """What decides the answers, besides model and test split."""
        return {
            "score": self.score.describe() if self.score is not None else None,
            "samples": f"{min(self.samples, len(self.test))} of at most {self.sample_tokens} tokens",
        }

    @property
    def file(self) -> str:
        """What its numbers are called in the folder of whoever was asked."""
        asked = sha256(json.dumps(self.describe(), sort_keys=True).encode()).hexdigest()
        return f"{MEASURED}-{asked[:8]}.safetensors"

    def of_student(self, student: nn.Module, speaker: ModuleSpeaker) -> Measured:
        """Ask a student, with its own prompts."""
        assert self.test.set is not None
        sums = token_fidelity(student, self.teacher, self.test.set, self.batch_size, self.class_map)
        return Measured(sums, *self._spoken(speaker, teacher=False))

    def of_teacher(self, teacher: Teacher | None, speaker: Speaker | None) -> Measured:
        """Ask the teacher, with its prompts; what it finds of the tokens only where it reads the student's."""
        assert self.test.set is not None
        sums = teacher_sums(teacher, self.test.set, self.batch_size) if teacher is not None else None
        if speaker is None:
            return Measured(sums, None, [])
        return Measured(sums, *self._spoken(speaker, teacher=True))

    def _spoken(self, speaker: Speaker, *, teacher: bool) -> tuple[Floats | None, list[str]]:
        prompts = self.test.taught_prompts if teacher else self.test.prompts
        scores: Floats | None = None
        answers: list[str] = []
        with suppress(UnansweredError):
            scores = self.score(speaker, prompts, self.test.rows) if self.score is not None else None
        shown = prompts.take(torch.arange(min(self.samples, len(prompts))))
        with suppress(UnansweredError):
            answers = speaker.texts(shown, self.sample_tokens) if len(shown) else []
        return scores, answers
