"""How the next token is chosen from a language model's scores."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.errors import ConfigError

#: So many of the likeliest tokens are looked at before all of them are sorted for ``top_p``.
_FEW = 256


@dataclass(frozen=True)
class Sampling:
    """How completions are written.

    Args:
        max_new_tokens: the most tokens of a completion, its ending one included.
        temperature: by which scores are divided; 1 is the model's own distribution.
        top_p: only the likeliest tokens that together have at least this probability (Holtzman et al. 2020); 1 for all.
        top_k: only the k likeliest tokens; 0 for all. With ``top_p``, that is taken of these.
        greedy: the likeliest token, always.
        seed: the chance.

    Raises:
        ConfigError: a value out of range; ``greedy`` beside something that only drawing reads.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    greedy: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens is {self.max_new_tokens}, expected at least 1: nothing would be written")
        if not 0.0 < self.temperature < float("inf"):
            remedy = "; for the likeliest token always, say greedy" if self.temperature == 0 else ""
            raise ConfigError(f"temperature is {self.temperature:g}, expected a positive number{remedy}")
        if not 0.0 < self.top_p <= 1.0:
            raise ConfigError(f"top_p is {self.top_p:g}, expected a share above 0 and at most 1 (1 keeps all tokens)")
        if self.top_k < 0:
            raise ConfigError(f"top_k is {self.top_k}, expected a number of tokens, or 0 for all")
        if self.greedy and (self.temperature, self.top_p, self.top_k) != (1.0, 1.0, 0):
            raise ConfigError(
                f"greedy takes the likeliest token, and temperature {self.temperature:g}, top_p {self.top_p:g} and top_k {self.top_k} "
                "would be ignored: leave them out, or greedy"
            )


def choose(scores: Tensor, sampling: Sampling, chance: Tensor) -> tuple[Tensor, Tensor]:
    """A token for each of B texts, int64 ``[B]``, and whether its scores were NaN or +inf, bool ``[B]``.

    Args:
        scores: float32 ``[B, C]``; −inf for a token that cannot come.
        sampling: how.
        chance: float64 ``[B]`` in [0, 1): the share of the distribution below the token that is drawn.
    """
    if sampling.greedy:
        top = scores.max(dim=-1)
        return top.indices, ~top.values.isfinite()
    weights, ids = _weights(scores / sampling.temperature, sampling)
    below = weights.cumsum(-1)
    total = below[:, -1:]
    # right: a token of no weight has the same sum below it as the one before, and is passed over
    place = torch.searchsorted(below, chance[:, None] * total, right=True).clamp_(max=below.shape[-1] - 1)
    chosen = place if ids is None else ids.gather(-1, place)
    return chosen[:, 0], ~total[:, 0].isfinite()


def _weights(scores: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor | None]:
    """Weights float64 ``[B, K]`` in proportion to probabilities, of the tokens ``[B, K]``, or of all in order."""
    if sampling.top_k == 0 and sampling.top_p == 1.0:
        return (scores - scores.amax(-1, keepdim=True)).double().exp(), None
    kept, ids = scores.topk(min(sampling.top_k or _FEW, scores.shape[-1]), dim=-1)
    whole = (kept if sampling.top_k else scores).logsumexp(-1, keepdim=True)
    shares = (kept - whole).double().exp()
    if sampling.top_p == 1.0:
        return shares, ids
    if not sampling.top_k and bool((shares.sum(-1) < sampling.top_p).any()):
        kept, ids = scores.sort(dim=-1, descending=True)
        shares = (kept - whole).double().exp()
    # the likeliest is always kept: nothing is before it
    return shares.masked_fill(shares.cumsum(-1) - shares >= sampling.top_p, 0.0), ids
