"""A language model writes completions: the student's own for on-policy training, the teacher's for sequence-level distillation."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from tutelage.counters import counted_bits, mix, name_word
from tutelage.errors import ConfigError, ModelError
from tutelage.models.decoding import answering, check_prompts, decoder_of, device_of, readable
from tutelage.models.sampling import Sampling, choose
from tutelage.ragged import Ragged

#: Rows that are finished are taken out once they are this share of a batch: it costs a copy of what the others keep.
FINISHED_SHARE = 0.25


@dataclass(frozen=True, eq=False)
class Written:
    """What a model wrote after B prompts.

    Args:
        completions: at least one token each, with the token that ended it where one did; never padding.
        finished: bool ``[B]``, whether it ended by itself; else it was cut at ``max_new_tokens``.
        seconds: how long that took.
    """

    completions: Ragged
    finished: Tensor
    seconds: float

    @property
    def tokens(self) -> int:
        """Tokens written, the ending ones included."""
        return len(self.completions.values)

    @property
    def new_tokens_per_second(self) -> float:
        """Tokens written a second, the reading of the prompts included in the time."""
        return self.tokens / self.seconds if self.seconds else 0.0


class _Draft(NamedTuple):
    """What was written of one batch: ``tokens[B, T]``, of which the first ``lengths[B]`` count, and whether it ``ended[B]``."""

    tokens: Tensor
    lengths: Tensor
    ended: Tensor


def write(
    model: nn.Module,
    prompts: Ragged,
    sampling: Sampling,
    *,
    eos: Sequence[int],
    batch_size: int = 16,
    streams: Tensor | None = None,
) -> Written:
    """Let a causal language model complete prompts, in eval mode and without gradient; the model and all generators stay as they were.

    Tokens are drawn from the model's distribution as ``sampling`` says and from nothing else: the penalties and cut-offs of the model's
    own ``generation_config`` have no part in it. Which token is drawn is a function of (seed, stream, place in the completion) and the
    distribution, so a prompt's completion does not depend on which others are written with it, nor on ``batch_size``, as far as
    the model's rounding does not.

    Args:
        model: a causal language model, also one with adapters or inside DDP's wrapper. One of transformers' keeps its keys and values; any
            other module is read anew for each token.
        prompts: B token sequences, at least one token each.
        sampling: how tokens are chosen.
        eos: the tokens that end a completion; none for as many tokens as there may be.
        batch_size: how many are written at a time; prompts of similar length meet.
        streams: int64 ``[B]``, the random stream of each prompt; None for their numbers, 0 to B − 1.

    Raises:
        DataError: an empty prompt, tokens that the model lacks, more tokens than it has positions for.
        ModelError: scores that are NaN or +inf; an encoder-decoder; weights spread over processes.
        ConfigError: another number of streams than prompts; a batch size below 1.
    """
    streams = streams_of(prompts, streams, batch_size)
    started = time.perf_counter()
    inner = readable(model)
    check_prompts(inner, prompts, sampling.max_new_tokens)
    given, device = prompts.values.device, device_of(inner)
    prompts = prompts.to(device)
    endings = torch.tensor(list(eos), dtype=torch.int64, device=device)
    written: list[Tensor] = [prompts.values[:0]] * len(prompts)
    finished = torch.zeros(len(prompts), dtype=torch.bool)
    order = prompts.lengths.cpu().argsort(descending=True, stable=True)
    with answering(inner):
        for rows in order.split(batch_size) if len(order) else ():
            chance = _chance(sampling, streams[rows]).to(device)
            draft = _write_batch(inner, prompts.take(rows.to(device)), sampling, endings, chance)
            finished[rows] = draft.ended.cpu()
            for row, tokens, length in zip(rows.tolist(), draft.tokens, draft.lengths.tolist(), strict=True):
                written[row] = tokens[:length]
    completions = Ragged.of(written).to(given)
    return Written(completions, finished.to(given), time.perf_counter() - started)


def streams_of(prompts: Ragged, streams: Tensor | None, batch_size: int) -> Tensor:
    """The random stream of each prompt, int64 ``[B]`` on the CPU: as given, or the prompts' numbers.

    Raises:
        ConfigError: another number of streams than prompts; a batch size below 1.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}, expected at least 1")
    if streams is not None and streams.shape != (len(prompts),):
        raise ConfigError(
            f"streams have shape {tuple(streams.shape)} for {len(prompts):,} prompts, expected one each: prompts would share their chance"
        )
    return torch.arange(len(prompts)) if streams is None else streams.cpu()


def _write_batch(model: nn.Module, prompts: Ragged, sampling: Sampling, endings: Tensor, chance: Tensor) -> _Draft:
    """One batch; ``chance[B, T]`` in [0, 1) decides each token."""
    decoder = decoder_of(model, sampling.max_new_tokens)
    device = prompts.values.device
    tokens = torch.zeros(len(prompts), sampling.max_new_tokens, dtype=torch.int64, device=device)
    lengths = torch.zeros(len(prompts), dtype=torch.int64, device=device)
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    rows = torch.arange(len(prompts), device=device)  # those that the decoder still has
    scores, step = decoder.start(prompts), 0
    while True:
        chosen, bad = choose(scores.float(), sampling, chance[rows, step])
        _expect_scores(model, bad & ~ended[rows])
        tokens[rows, step] = chosen
        lengths[rows] += (~ended[rows]).long()
        ended[rows] |= torch.isin(chosen, endings)
        step += 1
        going = (~ended[rows]).nonzero()[:, 0]
        if step == sampling.max_new_tokens or len(going) == 0:
            return _Draft(tokens, lengths, ended)
        if len(going) <= (1 - FINISHED_SHARE) * len(rows):
            decoder.keep(going)
            rows, chosen = rows[going], chosen[going]
        scores = decoder.add(chosen)


def _expect_scores(model: nn.Module, bad: Tensor) -> None:
    if bool(bad.any()):
        raise ModelError(
            f"{type(model).__name__} gave NaN or +inf as scores of the next token of {int(bad.sum())} of {len(bad)} texts: what it writes "
            "would be arbitrary; its weights are likely not finite (training diverged), or it needs float32"
        )


def _chance(sampling: Sampling, streams: Tensor) -> Tensor:
    """Uniform in [0, 1), float64 ``[B, T]``, as a function of seed and stream."""
    keys = mix(streams.numpy().astype(np.int64).view(np.uint64) ^ name_word(f"{sampling.seed}|written"))
    # 52 bits: times any total, what comes out is below the total also when rounded
    words = counted_bits(keys, sampling.max_new_tokens) >> np.uint64(12)
    return torch.from_numpy(words.astype(np.float64) * 2.0**-52)
