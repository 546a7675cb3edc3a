"""How likely a language model holds each of a few given answers: a label's score without letting it write."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tutelage.errors import DataError, ModelError
from tutelage.models.decoding import Decoder, answering, check_prompts, decoder_of, device_of, readable
from tutelage.ragged import Ragged


def choice_scores(
    model: nn.Module, prompts: Ragged, choices: Sequence[Sequence[int]], *, batch_size: int = 32
) -> Tensor:
    """The log-probability of each choice behind each prompt, in nats, summed over its tokens.

    Each prompt is read once; of a choice of one token that is all, of a longer one its tokens but the last are read behind it.
    Sums favour short choices; compare choices that all end the same way, or divide by the number of tokens.

    Args:
        model: a causal language model, as for :func:`tutelage.models.write`.
        prompts: B token sequences, at least one token each.
        choices: K token sequences, at least one token each.
        batch_size: how many prompts are read at a time; those of similar length meet.

    Returns:
        float32 ``[B, K]`` on the prompts' device.

    Raises:
        DataError: no choice, an empty one, or one with a token that the model lacks; prompts that the model cannot read.
        ModelError: scores that are NaN; an encoder-decoder; weights spread over processes.
    """
    if not choices or any(len(choice) == 0 for choice in choices):
        empty = sum(len(choice) == 0 for choice in choices)
        raise DataError(
            f"{len(choices)} choices, of which {empty} hold no token; expected at least one choice, of at least one token each: an "
            "empty one would always be certain"
        )
    inner = readable(model)
    check_prompts(inner, prompts, max(map(len, choices)))
    check_prompts(inner, Ragged.of(choices), 0)
    given, device = prompts.values.device, device_of(inner)
    prompts = prompts.to(device)
    found = torch.zeros(len(prompts), len(choices))
    order = prompts.lengths.cpu().argsort(descending=True, stable=True)
    with answering(inner):
        for rows in order.split(batch_size) if len(order) else ():
            decoder = decoder_of(inner, max(map(len, choices)))
            found[rows] = _batch_scores(decoder, prompts.take(rows.to(device)), choices).cpu()
    bad = found.isnan().any(1)
    if bool(bad.any()):
        raise ModelError(
            f"{type(inner).__name__} gave NaN or +inf as scores behind {int(bad.sum())} of {len(bad)} prompts, the first of them number "
            f"{int(bad.nonzero()[0])}: whichever choice comes first would win; its weights are likely not finite (training diverged), or "
            "it needs float32"
        )
    return found.to(given)


def _batch_scores(decoder: Decoder, prompts: Ragged, choices: Sequence[Sequence[int]]) -> Tensor:
    first = decoder.start(prompts).float()
    scores = first[:, [choice[0] for choice in choices]] - first.logsumexp(-1, keepdim=True)
    for column, choice in enumerate(choices):
        if len(choice) > 1:
            tokens = torch.tensor(choice, device=first.device).expand(len(prompts), -1)
            after = decoder.ahead(tokens[:, :-1]).float()
            own = after.gather(-1, tokens[:, 1:, None])[..., 0] - after.logsumexp(-1)
            scores[:, column] += own.sum(-1)
    return scores
