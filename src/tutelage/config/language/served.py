"""A remote teacher that is asked to write, and which of some answers it finds likelier."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tutelage.data import Completions, Ragged, TransferSet
from tutelage.errors import TeacherError
from tutelage.models.sampling import Sampling
from tutelage.models.writing import Written
from tutelage.signals import SparseTargets
from tutelage.studies.language.speaking import choice_tokens, texts_of
from tutelage.teachers.remote import RemoteTeacher
from tutelage.teachers.remote_writing import write_remotely

logger = logging.getLogger(__name__)

#: Prompts whose choices are asked about in one call.
_PROMPTS = 16


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

        A token that is not among the k most probable of its place is known only to be less probable than these: it counts as the least
        of them, which is said once where it decides which choice is the likeliest.

        Raises:
            ConfigError: a choice without a token; one whose tokens begin another one.
            TeacherError: as the teacher's signals.
        """
        tokens = choice_tokens(self.tokenizer, choices)
        found, certain = zip(
            *(self._asked(prompts.take(rows), tokens) for rows in torch.arange(len(prompts)).split(_PROMPTS)),
            strict=True,
        )
        scores, known = torch.cat(found), torch.cat(certain)
        best = scores.argmax(dim=1, keepdim=True)
        open_to_doubt = int((~known.gather(1, best)).sum())
        if open_to_doubt:
            logger.warning(
                "the likeliest of %d choices is not among the teacher's %d most probable tokens for %d of %d prompts, so that its "
                "score is a guess there; raise teacher.remote.k",
                len(choices),
                self.teacher.k,
                open_to_doubt,
                len(prompts),
            )
        return scores

    def _asked(self, prompts: Ragged, choices: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Scores ``[B, K]``, and whether all tokens of each were among the most probable ones."""
        each = torch.arange(len(prompts)).repeat_interleave(len(choices))
        behind = Ragged.of([choice for _ in range(len(prompts)) for choice in choices])
        batch = TransferSet.of_completions(Completions(prompts.take(each), behind)).batch(torch.arange(len(each)))
        said = self.teacher.signals(batch).logits
        if not isinstance(said, SparseTargets):
            raise TeacherError(f"the teacher gave {type(said).__name__}, expected its most probable tokens")
        at = said.ids == behind.values[:, None]
        there = at.any(dim=1)
        least = said.probs.amin(dim=1).clamp_min(math.exp(-100.0)).log()
        logs = torch.where(there, (said.probs * at).sum(dim=1).clamp_min(math.exp(-100.0)).log(), least)
        rows = torch.arange(len(each)).repeat_interleave(behind.lengths)
        scores = torch.zeros(len(each)).index_add_(0, rows, logs)
        unknown = torch.zeros(len(each)).index_add_(0, rows, (~there).float())
        shape = (len(prompts), len(choices))
        return scores.reshape(shape), (unknown == 0).reshape(shape)
