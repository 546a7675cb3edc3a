"""MiniLMv2's relation distillation: which token resembles which, in a layer's queries, keys or values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tutelage.errors import ObjectiveError
from tutelage.objectives.features.layers import AbstractLayerTerm, Adapter, Pair, check_layers, check_whole
from tutelage.signals import Rows

#: Relations are formed at some heads at a time, about this many numbers in all: on a CPU so that the half-dozen passes
#: over them stay in its caches, on an accelerator so that heads × T² of a whole batch are never in memory together.
_CPU_SLICE, _DEVICE_SLICE = 1 << 18, 1 << 25


@dataclass(frozen=True)
class Relation(AbstractLayerTerm):
    """KL(R_T ‖ R_S) with R = softmax(X Xᵀ / √d), averaged over relation heads and real tokens, per example, in nats.

    Wang et al. 2021 (MiniLMv2), §3.1–3.2. X ``[T, d]`` is one of A equal parts of a layer's queries, keys or values,
    all heads joined and split anew, so that neither the models' numbers of attention heads nor their widths need
    agree: d is each side's width over A. Row i of R says which tokens resemble token i; padded tokens are neither
    rows nor columns. 0 where the relations agree; rotations within a part do not matter, and nothing is learnt.

    The paper adds three of them with weight 1: queries with queries, keys with keys, values with values, of the
    student's last layer and one layer of the teacher. ``layers: queries_keys_values`` finds the three in a config, and
    shares the weight among them: the paper's sum is ``weight: 3``. Of a teacher of 24 layers the paper takes an upper
    middle one (``teacher_layer``), of 12 the last.

    *Misleads*: alone it trains nothing above the layer it looks at: a classifier's head stays random, give it a term
    on logits. A token resembles itself most, so that much of each row is one large number on the diagonal and the KL
    is small from the start. Where positions are rotary (LLaMA) the layers show queries and keys before the rotation.
    Tokens are compared place by place: both models must have read the same tokens.

    Neighbours: :class:`AttentionMap` compares queries with *keys*, and wants as many heads;
    :class:`SimilarityPreserving` relates examples, not tokens; :class:`CosineHidden` compares what stands at each
    token.

    Example::

        KL(2.0) + sum(Relation(f"layer.2.{x}", f"layer.11.{x}") for x in ("query", "key", "value"))

    Args:
        student: name of the student's layer, ``[B, T, D]``.
        teacher: name of the teacher's, of the same T tokens.
        relation_heads: A, of which both widths are multiples; 48 for a base-sized teacher in the paper, where more
            did better.
    """

    student: str
    teacher: str
    relation_heads: int = 12

    name = "relation"
    additive = True

    def __post_init__(self) -> None:
        check_layers(self)
        check_whole(self, "relation_heads", 1, "a layer has no fewer parts")

    def _adapter(self, pair: Pair) -> Adapter:
        self._check(pair)
        if pair.student.shape[1] == 1:
            raise ObjectiveError(
                f"{self.student!r} and {self.teacher!r} show one token: its relation to itself is always 1, so that relation would "
                "teach nothing; name layers of queries, keys or values [B, T, D] with more"
            )
        return Adapter(None, ())

    def _sum(self, pair: Pair, rows: Rows) -> Tensor:  # noqa: ARG002 - the base's signature
        self._check(pair)
        examples, tokens = pair.student.shape[:2]
        real_BT = pair.mask
        if real_BT is None:
            real_BT = torch.ones(examples, tokens, dtype=torch.bool, device=pair.student.device)
        # an example without a real token has no mean: it counts 0
        rows_B1 = self.relation_heads * real_BT.sum(-1, keepdim=True).clamp_min(1)
        share_B1 = 1.0 / rows_B1.to(pair.student.dtype)
        sides = (self._parts(values) for values in pair[:2])
        each = self.relation_heads
        found: Any = _Apart.apply(*sides, real_BT.repeat_interleave(each, 0), share_B1.repeat_interleave(each, 0))
        return found

    def _parts(self, values_BTD: Tensor) -> Tensor:
        """``[B · A, T, d]``."""
        return values_BTD.unflatten(-1, (self.relation_heads, -1)).transpose(1, 2).flatten(0, 1)

    def _check(self, pair: Pair) -> None:
        shapes = (
            f"the student's {self.student!r} shows {list(pair.student.shape)} and the teacher's {self.teacher!r} "
            f"{list(pair.teacher.shape)}"
        )
        if pair.student.ndim != 3 or pair.teacher.ndim != 3:
            raise ObjectiveError(
                f"{shapes}: relation compares tokens with tokens and takes queries, keys or values [B, T, D] of whole "
                "texts, which are not shown of prompts and completions, where each row is one token; name such layers, or use a term "
                "that takes what is there (hint, cosine_hidden)"
            )
        if pair.student.shape[1] != pair.teacher.shape[1]:
            raise ObjectiveError(
                f"{shapes}: of tokens of two lengths, one's relations would be compared with another's; give both models the same "
                "tokens, or use a term that compares whole texts (patient, embedding_cosine)"
            )
        widths = pair.student.shape[2], pair.teacher.shape[2]
        common = math.gcd(*widths)
        if common % self.relation_heads:
            possible = [str(count) for count in range(1, common + 1) if common % count == 0]
            raise ObjectiveError(
                f"{shapes}, and relation_heads is {self.relation_heads}: expected a number of which both widths, {widths[0]:,} and "
                f"{widths[1]:,}, are multiples, or their parts would not be equal; give one of {', '.join(possible)}"
            )


class _Apart(torch.autograd.Function):
    """Σ over real rows of KL(R_T ‖ R_S) times their share, given parts ``[Z, T, d]``, real tokens ``[Z, T]``, shares
    ``[Z, 1]``.

    Value and gradient are formed together, some parts at a time: autograd would keep half a dozen tensors of Z·T².
    """

    @staticmethod
    def forward(ctx: Any, student_ZTd: Tensor, teacher_ZTd: Tensor, real_ZT: Tensor, share_Z1: Tensor) -> Tensor:
        parts, tokens = real_ZT.shape
        step = max(1, (_CPU_SLICE if student_ZTd.device.type == "cpu" else _DEVICE_SLICE) // max(1, tokens**2))
        total = student_ZTd.new_zeros(())
        gradient_ZTd = torch.empty_like(student_ZTd)
        root = math.sqrt(student_ZTd.shape[-1])
        itself_TT = torch.eye(tokens, dtype=torch.bool, device=real_ZT.device)
        all_real = bool(real_ZT.all())
        for start in range(0, parts, step):
            at = slice(start, start + step)
            # a padded token relates to itself alone, for the softmax to have something; its row counts for nothing
            blocked = None if all_real else ~(real_ZT[at, None, :] | itself_TT)
            log_q, log_p = (_log_relations(side[at], blocked) for side in (student_ZTd, teacher_ZTd))
            p, q = log_p.exp(), log_q.exp()
            apart = log_p.sub_(log_q)
            if blocked is not None:
                apart.masked_fill_(blocked, 0.0)
            share = real_ZT[at] * share_Z1[at]
            total += (apart.mul_(p).sum(-1) * share).sum()
            # at the student's scores the gradient of a row's KL is q − p, and its tokens are both factors of them
            slope = q.sub_(p).mul_(share[..., None] / root)
            own = student_ZTd[at]
            torch.baddbmm(slope @ own, slope.mT, own, out=gradient_ZTd[at])
        ctx.save_for_backward(gradient_ZTd)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient_ZTd,) = ctx.saved_tensors
        return grad * gradient_ZTd, None, None, None


def _log_relations(parts_ZTd: Tensor, blocked_ZTT: Tensor | None) -> Tensor:
    scores_ZTT = (parts_ZTd / math.sqrt(parts_ZTd.shape[-1])) @ parts_ZTd.mT
    if blocked_ZTT is not None:
        scores_ZTT.masked_fill_(blocked_ZTT, -torch.inf)
    return scores_ZTT.log_softmax(-1)
