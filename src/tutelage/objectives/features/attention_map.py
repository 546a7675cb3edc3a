"""TinyBERT's attention loss: which token looks at which, head by head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from tutelage.errors import ObjectiveError
from tutelage.objectives.features.layers import AbstractLayerTerm, Adapter, Pair, check_choice, check_layers
from tutelage.objectives.features.meeting import meet, summed
from tutelage.signals import Rows


@dataclass(frozen=True)
class AttentionMap(AbstractLayerTerm):
    """Mean over heads and pairs of real tokens of (A_S − A_T)², per example.

    Jiao et al. 2020 (TinyBERT), §3.1, eq. 7: (1/h) Σ_heads MSE(A_S, A_T). Padded tokens are neither rows nor columns.
    0 where the maps agree; nothing is learnt.

    *Not quite the paper's*: TinyBERT compares attention *scores*, before the softmax, and found that to converge
    faster; ``attentions.I`` of a Hugging Face model are the *probabilities* after it, the student's with their dropout
    while it trains (set ``attention_probs_dropout_prob: 0``, or they are noise by that much). A layer of your own that
    shows scores ``[B, heads, T, T]`` gives the paper's loss.

    *Misleads*: probabilities are near 1/T, so the value falls as 1/T² and is 1e-3 or less from the start: it wants a
    weight of hundreds, and a small value says nothing. Heads have no order: head 3 of a student that began elsewhere
    has nothing to do with its teacher's. Much of the attention of many heads goes to the first token or a full stop,
    and following that well is most of the loss. It needs ``attn_implementation="eager"``, which is slower.

    Neighbours: :class:`Relation` needs neither as many heads nor eager attention; :class:`AttentionTransfer`, despite
    its name, compares where features are large.

    Example::

        KL(1.0) + 100.0 * AttentionMap("attentions.-1", "attentions.-1")

    Args:
        student: name of the student's layer, ``[B, heads, T, T]``; ``attentions.I``.
        teacher: name of the teacher's, of the same T tokens.
        heads: ``"each"``, head by head, of which there must be as many; ``"mean"``, the mean over each side's heads.
    """

    student: str
    teacher: str
    heads: Literal["each", "mean"] = "each"

    name = "attention_map"
    additive = True

    def __post_init__(self) -> None:
        check_layers(self)
        check_choice(self, "heads", ("each", "mean"))

    def _adapter(self, pair: Pair) -> Adapter:
        self._check(pair)
        return Adapter(None, ())

    def _sum(self, pair: Pair, rows: Rows) -> Tensor:  # noqa: ARG002 - the base's signature
        self._check(pair)
        if self.heads == "mean":
            mine, theirs = (side.mean(1, keepdim=True) for side in pair[:2])
            pair = pair._replace(student=mine, teacher=theirs)
        met = meet(pair, self)
        return summed((met.student - met.teacher).square(), met.mask, mean=True)

    def _check(self, pair: Pair) -> None:
        mine, theirs = tuple(pair.student.shape), tuple(pair.teacher.shape)
        shapes = f"the student's {self.student!r} shows {list(mine)} and the teacher's {self.teacher!r} {list(theirs)}"
        if len(mine) != 4 or len(theirs) != 4 or mine[2] != mine[3] or mine[2:] != theirs[2:]:
            raise ObjectiveError(
                f"{shapes}: attention_map compares token by token and takes attentions [B, heads, T, T] of the same tokens, or one "
                "pair of words would be compared with another; name attentions.I of both models, and give both the same tokens"
            )
        if self.heads == "each" and mine[1] != theirs[1]:
            raise ObjectiveError(
                f"{shapes}: {mine[1]} heads and {theirs[1]} have no pairs; say heads: mean to compare the means over heads, or use "
                "relation, for which their numbers need not agree"
            )
