"""Language models that are asked: what they write, and which of some answers they find likelier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from tutelage.data import Completions, Ragged, TransferSet
from tutelage.errors import ConfigError, UnansweredError
from tutelage.evaluation.language import teacher_sums
from tutelage.models.scoring import choice_scores
from tutelage.models.writing import Sampling, Written, write
from tutelage.signals import SparseTargets
from tutelage.teachers import Teacher

_BATCH = 16


@runtime_checkable
class Writer(Protocol):
    """Who completes prompts."""

    def write(self, prompts: Ragged, sampling: Sampling, streams: Tensor) -> Written:
        """Complete B prompts.

        Args:
            prompts: B of them, in the writer's own vocabulary.
            sampling: how each token is drawn.
            streams: int64 ``[B]``; a completion is a function of the prompt, the sampling and this number.
        """
        ...


@dataclass(frozen=True, eq=False)
class ModuleSpeaker:
    """A local model.

    Args:
        model: it.
        tokenizer: its own.
        eos: tokens that end what it writes.
        batch_size: prompts at once.
    """

    model: nn.Module
    tokenizer: Any
    eos: Sequence[int]
    batch_size: int = _BATCH

    def write(self, prompts: Ragged, sampling: Sampling, streams: Tensor) -> Written:
        """Complete B prompts."""
        return write(self.model, prompts, sampling, eos=self.eos, batch_size=self.batch_size, streams=streams)

    def texts(self, prompts: Ragged, max_new_tokens: int) -> list[str]:
        """The likeliest continuation of each prompt, greedily."""
        sampling = Sampling(max_new_tokens=max_new_tokens, greedy=True)
        return texts_of(self.tokenizer, self.write(prompts, sampling, torch.arange(len(prompts))).completions)

    def choice_scores(self, prompts: Ragged, choices: Sequence[str]) -> Tensor:
        """Log-probability ``[B, K]``, nats, of each choice after each prompt.

        Raises:
            ConfigError: a choice without a token; one whose tokens begin another one.
        """
        return choice_scores(self.model, prompts, choice_tokens(self.tokenizer, choices))


@dataclass(frozen=True, eq=False)
class SignalSpeaker:
    """A teacher of which no more is known than its distribution at each token of a given text: an ensemble, or one of the user's own.

    Args:
        teacher: it.
        tokenizer: its own.
        batch_size: examples in a call.
    """

    teacher: Teacher
    tokenizer: Any
    batch_size: int = _BATCH

    def texts(self, prompts: Ragged, max_new_tokens: int) -> list[str]:  # noqa: ARG002
        """Nothing.

        Raises:
            UnansweredError: always.
        """
        raise UnansweredError(
            f"{type(self.teacher).__name__} says how likely the tokens of given texts are, and has no model of its own to write with: let "
            "one model write, or score by choices"
        )

    def choice_scores(self, prompts: Ragged, choices: Sequence[str]) -> Tensor:
        """Log-probability ``[B, K]``, nats, of each choice after each prompt, each read as a completion of its own.

        Raises:
            ConfigError: a choice without a token; one whose tokens begin another one.
            UnansweredError: the teacher does not tell the probability of every token.
        """
        columns: list[Tensor] = []
        for tokens in choice_tokens(self.tokenizer, choices):
            asked = TransferSet.of_completions(Completions(prompts, Ragged.of([tokens] * len(prompts))))
            self._expect_dense(asked)
            nll = teacher_sums(self.teacher, asked, self.batch_size).nll
            assert nll is not None  # all classes are told
            columns.append(torch.from_numpy(-nll))
        return torch.stack(columns, dim=1)

    def _expect_dense(self, asked: TransferSet) -> None:
        said = self.teacher.signals(asked.batch(torch.arange(1))).logits
        if said is None or isinstance(said, SparseTargets):
            raise UnansweredError(
                f"{type(self.teacher).__name__} tells of some tokens alone, and a choice may hold another one: its score would be a guess"
            )


def texts_of(tokenizer: Any, completions: Ragged) -> list[str]:
    """Completions as texts, without special tokens, and with every space that was written."""
    return [
        tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        for tokens in completions.lists()
    ]


def choice_tokens(tokenizer: Any, choices: Sequence[str]) -> list[list[int]]:
    """The tokens of each choice, as they stand after a prompt.

    Raises:
        ConfigError: a choice without a token; one whose tokens begin another one.
    """
    found: list[list[int]] = [tokenizer.encode(choice, add_special_tokens=False) for choice in choices]
    for choice, tokens in zip(choices, found, strict=True):
        if not tokens:
            raise ConfigError(f"the choice {choice!r} has no token: it would always be certain; leave it out")
        for other, longer in zip(choices, found, strict=True):
            if other != choice and longer[: len(tokens)] == tokens:
                raise ConfigError(
                    f"the tokens of the choice {choice!r} begin those of {other!r}, which could never be likelier: word one of them "
                    "otherwise, or end both with a full stop"
                )
    return found
