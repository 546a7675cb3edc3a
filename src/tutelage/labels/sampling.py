"""Sparse targets from dense ones: n draws a row from a teacher's distribution, or its k most probable classes.

Random sampling KD (Anshumann et al. 2025, "Sparse Logit Sampling") draws n classes a row and keeps how often each came. What
is drawn depends on the seed, the example's content id, the view and the row within the example alone: not on the batch, on
global state or on how often labelling was cut off.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tutelage.counters import counted_bits, mix, name_word
from tutelage.errors import ConfigError, TeacherError
from tutelage.rows import for_slices, row_count, some_rows
from tutelage.signals import ClassScores, SparseForm, SparseTargets

#: How n points fall on a row's cumulative distribution: evenly from one random start, or each by itself.
Scheme = Literal["systematic", "independent"]
SCHEMES: tuple[Scheme, ...] = ("systematic", "independent")

#: The view of an example that has one view only.
NO_VIEW = -1

#: Classes are summed in blocks of so many: a point is found among the blocks first, then inside its own.
_BLOCK = 64
#: Numbers of a slice of rows whose softmax and sums are made while they are in a core's cache.
_IN_CACHE = 1 << 19
#: Numbers of a slice of rows that are made dense at once; small operations on it are shared by so many rows.
_AT_ONCE = 1 << 22


def row_keys(ids: Tensor, rows: Tensor | None = None, *, seed: int, view: Tensor | int | None = None) -> Tensor:
    """What the draws of each row depend on, as one 64-bit word.

    Args:
        ids: int64 ``[B]`` content ids of the examples.
        rows: int64 ``[B]``, how many rows each has; None for one.
        seed: of the labels; another one gives independent draws.
        view: the view that the examples are seen in, one for all or int64 ``[B]``; None where there is one view only.

    Returns:
        int64 ``[N]`` with N the sum of ``rows``, all rows of an example together.
    """
    views = torch.as_tensor(NO_VIEW if view is None else view, dtype=torch.int64).expand(ids.shape)
    words = mix(_words(ids) ^ name_word(f"{seed}|label draws"))
    words = mix(words ^ mix(_words(views) + name_word("view")))
    if rows is None:
        rows = torch.ones_like(ids)
    counts = rows.cpu()
    starts = counts.cumsum(0) - counts
    within = torch.arange(int(counts.sum())) - starts.repeat_interleave(counts)
    keys = mix(np.repeat(words, counts.numpy()) ^ mix(_words(within) + name_word("row")))
    return torch.from_numpy(keys.view(np.int64))


def _words(numbers: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.uint64]]:
    return numbers.cpu().contiguous().numpy().view(np.uint64)


@torch.no_grad()
def sample(
    scores: ClassScores,
    keys: Tensor,
    *,
    temperature: float = 1.0,
    draws: int = 50,
    scheme: Scheme = "systematic",
    drawn_at: float | None = None,
) -> SparseTargets:
    """Draws of each row's distribution at ``temperature``: sampled targets, unbiased for the forward KL's gradient.

    Both schemes draw each class n · q times on average. *systematic* sets n points 1/n apart from one random start on the
    cumulative distribution, so that no class comes more than once more or less often than that; *independent* draws vary
    like counts of n throws. The first is never worse, class by class.

    Args:
        scores: the teacher's, N rows; made dense a slice of rows at a time.
        keys: int64 ``[N]``, see :func:`row_keys`.
        temperature: T > 0 of the targets.
        draws: n ≥ 1 a row.
        scheme: how the points fall.
        drawn_at: draw from the distribution at another temperature (a higher one visits the tail more often), each draw weighed
            by the ratio of the two; the weights of a row then sum to 1 on average only.

    Returns:
        Targets of at most n places, ids rising, with the entropy of each row at T. Without ``drawn_at``, ``probs · n`` are the
        counts.

    Raises:
        ConfigError: a number of draws, a temperature or a scheme that is none.
        TeacherError: keys of other rows; a row that is no distribution (NaN, +inf, or masked throughout).
    """
    _check_draws(temperature, draws, scheme, drawn_at)
    rows = row_count(scores)
    if keys.shape != (rows,):
        raise TeacherError(
            f"{tuple(keys.shape)} keys for {rows:,} rows: a row's draws would be those of another; make them with row_keys from the number "
            "of rows of each example"
        )
    softmax, drawn_from = _Softmax(), _Softmax()
    other = drawn_at is not None and drawn_at != temperature
    parts: list[_Part] = []
    for of, block in row_slices(scores):
        points_Nn = _points(keys[of], draws, scheme)
        softmax.fill(block.at(temperature), temperature, of.start)
        if drawn_at is not None and other:
            drawn_from.fill(block.at(drawn_at), drawn_at, of.start)
            ids_NK, probs_NK = _counts_over_n(drawn_from, points_Nn)
            probs_NK = probs_NK * _weights(softmax, drawn_from, ids_NK)
        else:
            ids_NK, probs_NK = _counts_over_n(softmax, points_Nn)
        parts.append(_Part(ids_NK, probs_NK.float(), softmax.entropy_N))
    return _joined(parts, scores.classes, temperature, "sampled")


@torch.no_grad()
def drawn_apart(
    kept: SparseTargets,
    scores: ClassScores,
    keys: Tensor,
    *,
    draws: int,
    scheme: Scheme = "systematic",
    drawn_at: float | None = None,
) -> Tensor:
    """How far the classes that were drawn are from those that would be drawn now: ``[N]``, shares of a row's probability.

    It is the furthest that a point of the row lies outside the stretch of the cumulative distribution that belongs to its class, 0 where
    all would fall as they did. How many draws would fall otherwise says little: where a thousand classes share the tail, rounding
    alone moves a point past several of their edges.

    Args:
        kept: what :func:`sample` gave with these keys, draws, scheme and temperatures.
        scores: of the teacher as it is now, the same rows; made dense a slice of rows at a time.
        keys, draws, scheme, drawn_at: as they were for :func:`sample`.

    Returns:
        float64; infinite where what is kept are no such draws.
    """
    points_at = kept.temperature if drawn_at is None else drawn_at
    apart: list[Tensor] = []
    for of, block in row_slices(scores):
        points_Nn = _points(keys[of], draws, scheme)
        p_NC = _scaled(block.at(points_at), points_at).double().softmax(-1).cpu()
        ids_NK, order = kept.ids[of].cpu().sort(dim=-1)
        places_NK = ids_NK.clamp(min=0)
        counts_NK = kept.probs[of].cpu().double().gather(1, order) * draws
        if points_at != kept.temperature:
            target_NC = _scaled(block.at(kept.temperature), kept.temperature).double().softmax(-1).cpu()
            counts_NK = counts_NK * p_NC.gather(1, places_NK) / target_NC.gather(1, places_NK)
        counts_NK = counts_NK.nan_to_num(nan=0.0, posinf=0.0).masked_fill(ids_NK < 0, 0.0).round().long()
        # a row's classes rise as its points do: the place of each draw is the first whose running count is above it
        last_NK = counts_NK.cumsum(-1)
        draws_Nn = torch.arange(draws).expand(len(points_Nn), -1).contiguous()
        place_Nn = torch.searchsorted(last_NK, draws_Nn, right=True).clamp(max=last_NK.shape[1] - 1)
        ends_NK = p_NC.cumsum(-1).gather(1, places_NK)
        ends_Nn, starts_Nn = (side.gather(1, place_Nn) for side in (ends_NK, ends_NK - p_NC.gather(1, places_NK)))
        apart_N = torch.maximum(starts_Nn - points_Nn, points_Nn - ends_Nn).amax(-1).clamp(min=0.0)
        apart.append(apart_N.masked_fill(last_NK[:, -1] != draws, math.inf))
    return torch.cat(apart) if apart else torch.zeros(0, dtype=torch.float64)


@torch.no_grad()
def top_k(scores: ClassScores, k: int, temperature: float = 1.0) -> SparseTargets:
    """The k most probable classes of each row with their probabilities at ``temperature``, most probable first; and the entropies.

    Args:
        scores: the teacher's, N rows; made dense a slice of rows at a time.
        k: classes to keep; all of them where there are fewer. Which of equally probable ones is kept is not defined.
        temperature: T > 0.

    Raises:
        ConfigError: k or a temperature that is none.
        TeacherError: a row that is no distribution (NaN, +inf, or masked throughout).
    """
    if k < 1:
        raise ConfigError(f"k is {k}: expected at least one class to keep")
    _check_temperature(temperature)
    softmax = _Softmax()
    parts: list[_Part] = []
    for of, block in row_slices(scores):
        softmax.fill(block.at(temperature), temperature, of.start)
        probs_NK, ids_NK = softmax.p_NC[:, : scores.classes].topk(min(k, scores.classes), dim=-1)
        parts.append(_Part(ids_NK, probs_NK.float(), softmax.entropy_N))
    return _joined(parts, scores.classes, temperature, "top_k")


def row_slices(scores: ClassScores) -> Iterator[tuple[slice, ClassScores]]:
    """Rows of class scores, so few at a time that ``at`` of each part is small: never ``[N, C]`` at once."""
    rows = row_count(scores)
    step = max(1, _AT_ONCE // scores.classes)
    if rows > step:
        scores = for_slices(scores)
    for start in range(0, rows, step):
        of = slice(start, min(start + step, rows))
        yield of, some_rows(scores, of)


class _Part(NamedTuple):
    """A slice of rows: ids ``[N, K]`` with −1 where not used, probs ``[N, K]``, entropies ``[N]``."""

    ids_NK: Tensor
    probs_NK: Tensor
    entropy_N: Tensor


class _Softmax:
    """The distributions of a slice of rows, in memory that the next slice uses again: new memory would cost as much as they do.

    ``p_NC`` comes in whole blocks, 0 beyond C; ``sums_NS`` are its sums by block; ``entropy_N`` is in nats.
    """

    p_NC: Tensor
    sums_NS: Tensor
    entropy_N: Tensor

    def __init__(self) -> None:
        self._p_NC = self._scaled_NC = torch.empty(0, 0)

    def fill(self, logits_NC: Tensor, temperature: float, start: int) -> None:
        """Those of other rows. Raises TeacherError for a row that is none, counted from ``start``."""
        rows, classes = logits_NC.shape
        step = rows if logits_NC.device.type != "cpu" else min(rows, max(1, _IN_CACHE // classes))
        self._make_room(logits_NC, _inside(logits_NC, temperature), step)
        self.p_NC = p_NC = self._p_NC[:rows]
        self.sums_NS = sums_NS = p_NC.new_empty(rows, p_NC.shape[1] // _BLOCK)
        mean_N = p_NC.new_empty(rows)
        for first in range(0, rows, step):
            of = slice(first, min(first + step, rows))
            scaled_NC = logits_NC[of]
            room_NC = self._scaled_NC[: scaled_NC.shape[0]]
            if temperature != 1.0 or scaled_NC.dtype != room_NC.dtype:
                scaled_NC = room_NC.copy_(scaled_NC).div_(temperature)
            torch.softmax(scaled_NC, dim=-1, out=p_NC[of, :classes])
            torch.sum(p_NC[of].view(-1, sums_NS.shape[1], _BLOCK), dim=-1, out=sums_NS[of])
            torch.sum(torch.mul(p_NC[of, :classes], scaled_NC, out=room_NC), dim=-1, out=mean_N[of])
        _refuse_rows(sums_NS.sum(-1).isfinite(), start)
        self.entropy_N = _entropy(logits_NC, temperature, p_NC, sums_NS, mean_N)

    def _make_room(self, logits_NC: Tensor, dtype: torch.dtype, step: int) -> None:
        rows, classes = logits_NC.shape
        if self._p_NC.shape[0] < rows or self._p_NC.dtype != dtype:
            whole = -(-classes // _BLOCK) * _BLOCK
            self._p_NC = torch.zeros(rows, whole, dtype=dtype, device=logits_NC.device)
            self._scaled_NC = torch.empty(step, classes, dtype=dtype, device=logits_NC.device)


def _entropy(logits_NC: Tensor, temperature: float, p_NC: Tensor, sums_NS: Tensor, mean_N: Tensor) -> Tensor:
    """−Σ p log p = log Z − Σ p z, with log Z = z − log p of one probable class: no logarithm of every class is taken."""
    masked_N = ~mean_N.isfinite()
    if masked_N.any():
        # a masked class made 0 · −inf of its part
        scaled_NC, of_NC = _scaled(logits_NC[masked_N], temperature), p_NC[masked_N, : logits_NC.shape[1]]
        mean_N[masked_N] = (of_NC * torch.where(of_NC == 0, 0.0, scaled_NC)).sum(-1)
    block_N11 = sums_NS.argmax(-1)[:, None, None].expand(-1, 1, _BLOCK)
    among_NB = p_NC.view(*sums_NS.shape, _BLOCK).gather(1, block_N11)[:, 0]
    log_p_N, place_N = among_NB.log().max(-1)
    some_N1 = (block_N11[:, 0, 0] * _BLOCK + place_N)[:, None]
    log_z_N = _scaled(logits_NC.gather(1, some_N1), temperature)[:, 0] - log_p_N
    return (log_z_N - mean_N).clamp(min=0.0).float()


def _points(keys: Tensor, draws: int, scheme: Scheme) -> Tensor:
    """n numbers in [0, 1) a row, rising, float64 ``[N, n]``."""
    bits = counted_bits(_words(keys), 1 if scheme == "systematic" else draws)
    uniform_Nn = torch.from_numpy((bits >> np.uint64(11)).astype(np.float64) * 2.0**-53)
    if scheme == "independent":
        return uniform_Nn.sort(dim=-1).values
    return (uniform_Nn + torch.arange(draws, dtype=torch.float64)) / draws


def _counts_over_n(softmax: _Softmax, points_Nn: Tensor) -> tuple[Tensor, Tensor]:
    ids_NK, counts_NK = _counted(_find(softmax.p_NC, softmax.sums_NS, points_Nn.to(softmax.p_NC.device)))
    return ids_NK, counts_NK / points_Nn.shape[1]


def _weights(softmax: _Softmax, drawn_from: _Softmax, ids_NK: Tensor) -> Tensor:
    """How much more probable each class is in the one than in the other it was drawn from, 0 where not used."""
    places_NK = ids_NK.clamp(min=0)
    ratio_NK = softmax.p_NC.gather(1, places_NK) / drawn_from.p_NC.gather(1, places_NK)
    return ratio_NK.masked_fill(ids_NK < 0, 0.0)


def _inside(logits_NC: Tensor, temperature: float) -> torch.dtype:
    """float64 where a softmax at T is all rounding in float32, as in the divergences."""
    least = torch.float32 if 1.0 <= temperature <= 16.0 else torch.float64
    return torch.promote_types(logits_NC.dtype, least)


def _scaled(logits_NC: Tensor, temperature: float) -> Tensor:
    logits_NC = logits_NC.to(_inside(logits_NC, temperature))
    return logits_NC if temperature == 1.0 else logits_NC / temperature


def _refuse_rows(good_N: Tensor, start: int) -> None:
    if not good_N.all():
        bad = (~good_N).nonzero()[:, 0]
        raise TeacherError(
            f"{len(bad):,} of {len(good_N):,} rows of the teacher's logits are no distribution (NaN, +inf, or −inf throughout), first row "
            f"{start + int(bad[0]):,}: nothing can be drawn from them, and what was would be stored as the teacher's answer; look at "
            "the teacher's outputs and its precision"
        )


def _find(p_NC: Tensor, sums_NS: Tensor, points_Nn: Tensor) -> Tensor:
    """The class in which each point falls, int64 ``[N, n]``: among the blocks' sums first, then inside the block.

    A point takes the first class whose cumulative sum is above it, so that a class of no probability is never drawn.
    """
    rows, blocks = sums_NS.shape
    edges_NS = sums_NS.double().cumsum(-1)
    whole_N1 = edges_NS[:, -1:]
    points_Nn = torch.minimum(points_Nn * whole_N1, _just_below(whole_N1))
    block_Nn = torch.searchsorted(edges_NS, points_Nn, right=True)
    before_Nn = torch.where(block_Nn > 0, edges_NS.gather(1, (block_Nn - 1).clamp(min=0)), 0.0)
    flat_Nn = block_Nn + torch.arange(rows, device=block_Nn.device)[:, None] * blocks
    inside_NnB = p_NC.view(-1, _BLOCK)[flat_Nn].cumsum(-1)
    # a block's sum is rounded otherwise than the sum of its classes: a point beyond the last belongs to the last
    ends_Nn = inside_NnB[..., -1]
    rest_Nn = torch.minimum((points_Nn - before_Nn).to(p_NC.dtype), _just_below(ends_Nn))
    return block_Nn * _BLOCK + (inside_NnB <= rest_Nn[..., None]).sum(-1)


def _just_below(ends: Tensor) -> Tensor:
    return torch.nextafter(ends, torch.zeros_like(ends))


def _counted(drawn_Nn: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct classes ``[N, K]`` of rising draws and how often each came, −1 and 0 where a row has fewer than K."""
    new_Nn = torch.ones_like(drawn_Nn)
    new_Nn[:, 1:] = drawn_Nn[:, 1:] != drawn_Nn[:, :-1]
    place_Nn = new_Nn.cumsum(-1) - 1
    kept = int(place_Nn[:, -1].max()) + 1
    ids_NK = torch.full_like(drawn_Nn, -1).scatter_(1, place_Nn, drawn_Nn)[:, :kept]
    counts_NK = torch.zeros_like(drawn_Nn).scatter_add_(1, place_Nn, torch.ones_like(drawn_Nn))[:, :kept]
    return ids_NK, counts_NK


def _joined(parts: list[_Part], classes: int, temperature: float, form: SparseForm) -> SparseTargets:
    if not parts:
        none = torch.zeros(0, 1)
        return SparseTargets(none.long(), none, classes, temperature, form, none[:, 0])
    kept = max(part.ids_NK.shape[1] for part in parts)
    pad = torch.nn.functional.pad
    ids_NK = torch.cat([pad(part.ids_NK, (0, kept - part.ids_NK.shape[1]), value=-1) for part in parts])
    probs_NK = torch.cat([pad(part.probs_NK, (0, kept - part.probs_NK.shape[1])) for part in parts])
    return SparseTargets(ids_NK, probs_NK, classes, temperature, form, torch.cat([part.entropy_N for part in parts]))


def _check_draws(temperature: float, draws: int, scheme: str, drawn_at: float | None) -> None:
    if draws < 1:
        raise ConfigError(f"draws is {draws}: expected at least one a row")
    if scheme not in SCHEMES:
        raise ConfigError(f"scheme is {scheme!r}: expected {' or '.join(map(repr, SCHEMES))}")
    _check_temperature(temperature)
    if drawn_at is not None:
        _check_temperature(drawn_at)


def _check_temperature(temperature: float) -> None:
    if not 0.0 < temperature < math.inf:
        raise ConfigError(
            f"temperature is {temperature}: expected a positive, finite number; the softmax at it is no distribution"
        )
