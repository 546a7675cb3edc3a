"""A served model as one that is asked in texts: what a study wants of whoever writes and scores in its teacher's place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tutelage.models.sampling import Sampling
from tutelage.models.writing import Written
from tutelage.ragged import Ragged
from tutelage.teachers.remote import RemoteTeacher
from tutelage.teachers.remote_writing import score_remotely, write_remotely


@dataclass(frozen=True, eq=False)
class RemoteSpeaker:
    """A served model.

    Args:
        teacher: whose server.
        tokenizer: its own.
        eos: tokens that end what it writes.
        batch_size: requests under way at a time.
    """

    teacher: RemoteTeacher
    tokenizer: Any
    eos: Sequence[int]
    batch_size: int = 16

    def write(self, prompts: Ragged, sampling: Sampling, streams: Tensor) -> Written:
        """Complete B prompts, each by its stream int64 ``[B]``; see :func:`tutelage.teachers.remote_writing.write_remotely`."""
        return write_remotely(
            self.teacher, prompts, sampling, eos=self.eos, batch_size=self.batch_size, streams=streams
        )

    def texts(self, prompts: Ragged, max_new_tokens: int) -> list[str]:
        """The likeliest continuation of each prompt, greedily, without special tokens."""
        sampling = Sampling(max_new_tokens=max_new_tokens, greedy=True)
        written = self.write(prompts, sampling, torch.arange(len(prompts)))
        return [self.tokenizer.decode(tokens, skip_special_tokens=True) for tokens in written.completions.lists()]

    def choice_scores(self, prompts: Ragged, choices: Sequence[str]) -> Tensor:
        """Log-probability float32 ``[B, K]``, nats, of each choice after each prompt.

        Raises:
            DataError: a choice without a token.
        """
        tokens = [self.tokenizer.encode(choice, add_special_tokens=False) for choice in choices]
        return score_remotely(self.teacher, prompts, tokens)
