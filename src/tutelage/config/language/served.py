"""A remote teacher that is asked to write, and which of some answers it finds likelier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tutelage.data import Ragged
from tutelage.models.sampling import Sampling
from tutelage.models.writing import Written
from tutelage.studies.language.speaking import choice_tokens, texts_of
from tutelage.teachers.remote import RemoteTeacher
from tutelage.teachers.remote_writing import score_remotely, write_remotely


@dataclass(frozen=True, eq=False)
class ServedSpeaker:
    """A language model behind a server.

    Args:
        teacher: it.
        tokenizer: its own.
        eos: tokens that end what it writes.
        batch_size: requests under way at a time.
    """

    teacher: RemoteTeacher
    tokenizer: Any
    eos: Sequence[int]
    batch_size: int = 16

    def write(self, prompts: Ragged, sampling: Sampling, streams: Tensor) -> Written:
        """Complete B prompts."""
        return write_remotely(
            self.teacher, prompts, sampling, eos=self.eos, batch_size=self.batch_size, streams=streams
        )

    def texts(self, prompts: Ragged, max_new_tokens: int) -> list[str]:
        """The likeliest continuation of each prompt, greedily."""
        sampling = Sampling(max_new_tokens=max_new_tokens, greedy=True)
        return texts_of(self.tokenizer, self.write(prompts, sampling, torch.arange(len(prompts))).completions)

    def choice_scores(self, prompts: Ragged, choices: Sequence[str]) -> Tensor:
        """Log-probability ``[B, K]``, nats, of each choice after each prompt.

        Raises:
            ConfigError: a choice without a token; one whose tokens begin another one.
            TeacherError: as the teacher's signals.
        """
        return score_remotely(self.teacher, prompts, choice_tokens(self.tokenizer, choices))
