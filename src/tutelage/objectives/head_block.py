"""The losses of one block of a head's rows: values, and the gradient at the head's products, a few rows at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tutelage.objectives.definitions import DEFINITIONS, pair_of
from tutelage.objectives.head_products import HeadProducts
from tutelage.objectives.row_loss import RowLoss
from tutelage.objectives.sparse import sparse_gradient
from tutelage.rows import some_rows
from tutelage.signals import NO_LABEL, AnyScores, SparseTargets, whole

#: Numbers of which the dozen elementwise passes are made at a time: few enough for a CPU's caches.
_CPU_SLICE, _DEVICE_SLICE = 1 << 19, 1 << 25

#: A slice's log-probabilities and probabilities, by temperature and dtype: two losses may share them.
_Shared = dict[tuple[float, torch.dtype], tuple[Tensor, Tensor]]


class BlockLosses:
    """What several losses say of a block of rows; the block's logits live in buffers that are used again.

    Args:
        losses: K of them.
        factors: ``[K]``, of the gradient.
        student: the student's head.
        teacher: the teacher's, where it gives one.
        rows: the most rows of a block.
        learns: whether a gradient is wanted.
    """

    def __init__(
        self,
        losses: Sequence[RowLoss],
        factors: Sequence[float],
        student: HeadProducts,
        teacher: HeadProducts | None,
        rows: int,
        learns: bool,
    ) -> None:
        self._losses = losses
        self._factors = factors
        self._student = student
        self._teacher = teacher
        self._learns = learns and any(factor != 0.0 for factor in factors)
        like = student.head.hidden
        shape = (rows, student.classes)
        self._mine = like.new_empty(shape, dtype=student.dtype)
        self._theirs = like.new_empty(shape, dtype=student.dtype) if teacher is not None else None
        self._step = max(1, (_CPU_SLICE if like.device.type == "cpu" else _DEVICE_SLICE) // student.classes)

    def add(
        self,
        hidden_ND: Tensor,
        said: AnyScores | Tensor | None,
        labels_N: Tensor | None,
        weights_N: Tensor | None,
        sums_K: Tensor,
    ) -> Tensor | None:
        """Add the block's values to ``sums_K``; the gradient ``[N, C]`` at the student's products, in a buffer, if wanted.

        Args:
            hidden_ND: the student's, in the working dtype.
            said: the teacher's hidden states ``[N, D]`` where its head was given, else its scores of these rows.
            labels_N: hard labels, or None.
            weights_N: of the rows, or None.
            sums_K: ``[K]`` float64, added to.
        """
        logits_NC = self._mine[: hidden_ND.shape[0]]
        self._student.logits_into(logits_NC, hidden_ND)
        if self._teacher is not None:
            assert self._theirs is not None
            assert isinstance(said, Tensor)
            theirs_NC = self._theirs[: hidden_ND.shape[0]]
            self._teacher.logits_into(theirs_NC, said)
            said = theirs_NC
        for start in range(0, len(logits_NC), self._step):
            of = slice(start, start + self._step)
            gradient_NC = self._slice(
                logits_NC[of],
                rows_said(said, of),
                labels_N[of] if labels_N is not None else None,
                weights_N[of] if weights_N is not None else None,
                sums_K,
            )
            if gradient_NC is not None:
                logits_NC[of] = self._student.undo(gradient_NC, logits_NC[of])
        return logits_NC if self._learns else None

    def _slice(
        self,
        logits_NC: Tensor,
        said: AnyScores | Tensor | None,
        labels_N: Tensor | None,
        weights_N: Tensor | None,
        sums_K: Tensor,
    ) -> Tensor | None:
        shared: _Shared = {}
        total_NC: Tensor | None = None
        for k, (loss, factor) in enumerate(zip(self._losses, self._factors, strict=True)):
            if loss.divergence is None:
                assert labels_N is not None
                value_N, gradient_NC = _cross_entropy(loss, logits_NC, labels_N, shared)
            elif isinstance(said, SparseTargets):
                value_N, gradient_NC = _sparse(loss, logits_NC, said, shared)
            else:
                theirs_NC = said if isinstance(said, Tensor) else whole(said, loss.divergence).at(loss.temperature)  # pyright: ignore[reportArgumentType]
                value_N, gradient_NC = _dense(loss, logits_NC, theirs_NC, shared)
            sums_K[k] += value_N.double().sum() if weights_N is None else value_N.double() @ weights_N.double()
            if not self._learns or factor == 0.0:
                continue
            if factor != 1.0:
                gradient_NC *= factor
            total_NC = gradient_NC if total_NC is None else total_NC.add_(gradient_NC)
        if total_NC is not None and weights_N is not None:
            total_NC *= weights_N.unsqueeze(1)
        return total_NC.to(logits_NC.dtype) if total_NC is not None else None


def rows_said(said: AnyScores | Tensor | None, of: slice | Tensor) -> AnyScores | Tensor | None:
    """Some rows of what a teacher said: of its scores, or of logits that were multiplied out."""
    if isinstance(said, Tensor):
        return said[of]
    return None if said is None else some_rows(said, of)


def _inside(loss: RowLoss, logits_NC: Tensor) -> torch.dtype:
    return torch.float64 if loss.needs_double else logits_NC.dtype


def _log_probs(loss: RowLoss, logits_NC: Tensor, shared: _Shared) -> tuple[Tensor, Tensor]:
    key = (loss.temperature, _inside(loss, logits_NC))
    if key not in shared:
        scaled_NC = logits_NC.to(key[1])
        log_p_NC = torch.log_softmax(scaled_NC if loss.temperature == 1.0 else scaled_NC / loss.temperature, dim=-1)
        shared[key] = log_p_NC, log_p_NC.exp()
    return shared[key]


def _dense(loss: RowLoss, logits_NC: Tensor, theirs_NC: Tensor, shared: _Shared) -> tuple[Tensor, Tensor]:
    assert loss.divergence is not None
    definition, inside = DEFINITIONS[loss.divergence], _inside(loss, logits_NC)
    pair = pair_of(logits_NC, theirs_NC, loss.temperature, inside)
    shared.setdefault((loss.temperature, inside), (pair.log_p_NC, pair.p_NC))
    value_N, gradient_NC = definition.value_and_gradient(pair, loss.parameters)
    return _scaled(loss, value_N.relu_(), gradient_NC)


def _sparse(loss: RowLoss, logits_NC: Tensor, said: SparseTargets, shared: _Shared) -> tuple[Tensor, Tensor]:
    assert loss.divergence is not None
    log_p_NC, p_NC = _log_probs(loss, logits_NC, shared)
    return _scaled(loss, *sparse_gradient(loss.divergence, log_p_NC, p_NC, said, loss.parameters))


def _cross_entropy(loss: RowLoss, logits_NC: Tensor, labels_N: Tensor, shared: _Shared) -> tuple[Tensor, Tensor]:
    log_p_NC, p_NC = _log_probs(loss, logits_NC, shared)
    labelled_N = labels_N != NO_LABEL
    places_N1 = labels_N.clamp_min(0).unsqueeze(1)
    hard = 1.0 - loss.label_smoothing
    # a divergence at the same temperature leaves a masked class at a finite log-probability; here it is impossible
    impossible_N1 = logits_NC.gather(1, places_N1) == -torch.inf
    value_N = -hard * log_p_NC.gather(1, places_N1).masked_fill_(impossible_N1, -torch.inf).squeeze(1)
    gradient_NC = p_NC.scatter_add(1, places_N1, p_NC.new_full((1, 1), -hard).expand(places_N1.shape))
    if loss.label_smoothing > 0.0:
        masked_NC = logits_NC == -torch.inf
        share_N = loss.label_smoothing / (masked_NC.shape[1] - masked_NC.sum(-1)).to(log_p_NC)
        value_N -= share_N * log_p_NC.masked_fill(masked_NC, 0.0).sum(-1)
        gradient_NC -= share_N.unsqueeze(1) * ~masked_NC
    return value_N.masked_fill_(~labelled_N, 0.0), gradient_NC.mul_(labelled_N.unsqueeze(1))


def _scaled(loss: RowLoss, value_N: Tensor, gradient_NC: Tensor) -> tuple[Tensor, Tensor]:
    if loss.scale != loss.temperature:
        gradient_NC = gradient_NC.mul_(loss.scale / loss.temperature)
    return (value_N if loss.scale == 1.0 else value_N.mul_(loss.scale)), gradient_NC
