"""A language model behind a server writes completions, and says how likely it holds given ones."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from tutelage.counters import mix, name_word
from tutelage.errors import DataError, TeacherError
from tutelage.models.sampling import Sampling
from tutelage.models.writing import Written, streams_of
from tutelage.ragged import Ragged
from tutelage.teachers.remote import RemoteTeacher
from tutelage.teachers.remote_answers import choices_of


def write_remotely(
    teacher: RemoteTeacher,
    prompts: Ragged,
    sampling: Sampling,
    *,
    eos: Sequence[int],
    batch_size: int = 16,
    streams: Tensor | None = None,
) -> Written:
    """Let a served model complete prompts; see :func:`tutelage.models.writing.write`, whose arguments these are.

    One request a prompt, each with a seed of its own (of ``sampling.seed`` and its stream), so that what is drawn for one depends on no
    other as far as the server keeps its word: most promise the same draws for the same seed on the same machine alone. Tokens come back
    as numbers (``return_token_ids``, as vLLM gives them), never cut anew from a text.

    Args:
        teacher: whose server.
        prompts: B token sequences, at least one token each.
        sampling: how tokens are chosen.
        eos: the tokens that end a completion.
        batch_size: requests under way at a time.
        streams: int64 ``[B]``, the random stream of each prompt; None for their numbers, 0 to B − 1.

    Raises:
        ConfigError: another number of streams than prompts; a batch size below 1.
        TeacherError: as :meth:`tutelage.teachers.remote.RemoteTeacher.ask`; a server that gives no token numbers, none at all, more than
            there may be, or that says it ended where no ending stands.
    """
    seeds = _seeds(sampling.seed, streams_of(prompts, streams, batch_size))
    started = time.perf_counter()

    def written(row: int) -> tuple[list[int], bool]:
        asked = _question(teacher, prompts[row].tolist(), sampling, seeds[row], eos)
        choice = choices_of(teacher.ask(asked).value(), 1)[0]
        return _tokens(cast(dict[str, Any], choice), sampling, eos, f"prompt {row}")

    # the model is looked up before several threads would do it at once
    _ = teacher.identity
    with ThreadPoolExecutor(batch_size) as pool:
        futures = [pool.submit(written, row) for row in range(len(prompts))]
        try:
            found = [future.result() for future in futures]
        except BaseException:
            # after one error the others would only repeat it, each after all its retries
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    completions = Ragged.of([tokens for tokens, _ in found]).to(prompts.values.device)
    finished = torch.tensor([ended for _, ended in found], dtype=torch.bool, device=prompts.values.device)
    return Written(completions, finished, time.perf_counter() - started)


def score_remotely(teacher: RemoteTeacher, prompts: Ragged, choices: Sequence[Sequence[int]]) -> Tensor:
    """The served model's log-probability of each choice behind each prompt; see :func:`tutelage.models.scoring.choice_scores`.

    Args:
        teacher: whose server.
        prompts: B token sequences, at least one token each.
        choices: K token sequences, at least one token each.

    Returns:
        float32 ``[B, K]``, nats, summed over a choice's tokens, on the prompts' device.

    Raises:
        DataError: no choice, or an empty one.
        TeacherError: as :meth:`tutelage.teachers.remote.RemoteTeacher.own_log_probs`.
    """
    if not choices or not all(choices):
        raise DataError(
            f"{len(choices)} choices, some without a token: expected one at least, of one token each at least"
        )
    pairs = [(row, prompt, list(choice)) for row, prompt in enumerate(prompts.lists()) for choice in choices]
    texts, firsts = [prompt + choice for _, prompt, choice in pairs], [len(prompt) for _, prompt, _ in pairs]
    found = teacher.own_log_probs(texts, firsts, [f"prompt {row}" for row, _, _ in pairs])
    sums = torch.tensor([sum(each) for each in found], dtype=torch.float32, device=prompts.values.device)
    return sums.view(len(prompts), len(choices))


def _question(
    teacher: RemoteTeacher, prompt: list[int], sampling: Sampling, seed: int, eos: Sequence[int]
) -> dict[str, Any]:
    """All that decides what is written is said: a server's own defaults are its model's, with penalties and cut-offs."""
    return {
        "model": teacher.model,
        "prompt": prompt,
        "max_tokens": sampling.max_new_tokens,
        "temperature": 0.0 if sampling.greedy else sampling.temperature,
        "top_p": 1.0 if sampling.greedy else sampling.top_p,
        "top_k": -1 if sampling.greedy or sampling.top_k == 0 else sampling.top_k,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "seed": seed,
        "stop_token_ids": list(eos),
        "return_token_ids": True,
    }


def _tokens(choice: dict[str, Any], sampling: Sampling, eos: Sequence[int], who: str) -> tuple[list[int], bool]:
    """What was written, and whether it ended by itself."""
    tokens = choice.get("token_ids")
    if not isinstance(tokens, list) or not all(isinstance(token, int) for token in cast(list[Any], tokens)):
        raise TeacherError(
            f"{who}: the server's answer has no token_ids: its text cut into tokens anew may be other tokens than were written, and loses "
            "the one that ended it; use a server that gives them (a vLLM that knows return_token_ids)"
        )
    written = cast(list[int], tokens)
    ended, says = bool(written) and written[-1] in eos, choice.get("finish_reason")
    if not 1 <= len(written) <= sampling.max_new_tokens or (says == "stop") != ended:
        raise TeacherError(
            f"{who}: the server wrote {len(written):,} tokens, the last {written[-1] if written else 'none'}, and says it ended by "
            f"{says!r}: expected 1 to {sampling.max_new_tokens:,} tokens, the last one of {sorted(eos)} where it ended by 'stop'; the "
            "student would learn to stop elsewhere. Give the tokens that end the served model's texts, and a server that hands them out"
        )
    return written, ended


def _seeds(seed: int, streams: Tensor) -> list[int]:
    """31 bits each, which every server takes."""
    words = mix(streams.numpy().astype(np.int64).view(np.uint64) ^ name_word(f"{seed}|written remotely"))
    return [int(word) for word in words >> np.uint64(33)]
