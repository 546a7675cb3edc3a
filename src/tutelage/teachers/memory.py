"""A teacher's answers, kept in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from hashlib import sha256

import torch
from torch import Tensor, nn

from tutelage.data import Batch, TransferSet, hex_id, shortest_first
from tutelage.errors import TeacherError
from tutelage.signals import Logits, MixtureLogits, Signals
from tutelage.teachers.module import ShowsLayers, Teacher, as_teacher, real_tokens_of, refuse_non_finite, scores_in

GIB = 1024**3

#: Bytes that kept features may take.
FEATURE_BUDGET = 2 * GIB

_PROBED = 8


class MemoryTeacher:
    """A teacher's logits, computed once and looked up by content id: one pass serves every epoch, arm and seed.

    Args:
        ids: int64 ``[B]`` content ids, each once.
        logits: ``[B, C]``, or ``[M, B, C]`` for an ensemble's members.
        weights: the members' weights ``[M]`` where there are members.
        features: what inner layers gave, ``[B, ...]`` by the layer's name; kept where they lie, and moved to the batch's
            device a batch at a time.

    Raises:
        TeacherError: shapes do not fit together, an id is there twice, or a logit is NaN or +inf, or a whole row −inf.
    """

    def __init__(
        self,
        ids: Tensor,
        logits: Tensor,
        weights: Tensor | None = None,
        features: Mapping[str, Tensor] | None = None,
    ) -> None:
        leading = () if weights is None else (len(weights),)
        if logits.ndim != len(leading) + 2 or logits.shape[:-1] != (*leading, len(ids)) or len(ids) == 0:
            raise TeacherError(
                f"{len(ids)} ids and {'no' if weights is None else len(weights)} weights for logits of shape {tuple(logits.shape)}: "
                "expected at least one id and [ids, classes], or [members, ids, classes] with the members' weights"
            )
        logits = logits.detach()
        members = logits.numel() // max(logits.shape[-1] * len(ids), 1)
        refuse_non_finite(logits.flatten(0, -2), ids.repeat(members), allow_masked=True, who="in memory")
        self._sorted_ids, order = torch.sort(ids)
        if bool((self._sorted_ids[1:] == self._sorted_ids[:-1]).any()):
            raise TeacherError(
                "an id is there twice: one of its two rows would never be used; keep one row for each id"
            )
        self._logits = logits.index_select(logits.ndim - 2, order)
        self._weights = weights
        for layer, values in (features or {}).items():
            if values.ndim == 0 or len(values) != len(ids):
                raise TeacherError(
                    f"{len(ids)} ids for features of {layer!r} of shape {tuple(values.shape)}: expected one row for each id"
                )
        # as they are where they are in order already: they may be most of the memory there is
        sorted_already = torch.equal(order, torch.arange(len(ids), device=order.device))
        self._features = {
            layer: values.detach() if sorted_already else values.detach()[order.to(values.device)]
            for layer, values in (features or {}).items()
        }

    @classmethod
    def of(
        cls,
        teacher: Teacher | nn.Module,
        transfer_set: TransferSet,
        batch_size: int = 512,
        *,
        layers: Sequence[str] = (),
        budget_bytes: int = FEATURE_BUDGET,
    ) -> MemoryTeacher:
        """Ask ``teacher`` once about every example of ``transfer_set``.

        Args:
            teacher: whom to ask.
            transfer_set: the examples.
            batch_size: examples in a call.
            layers: inner layers whose features are kept as well.
            budget_bytes: what these may take.

        Raises:
            TeacherError: what the teacher sees changes from epoch to epoch, so that no one answer stands for it; rows are
                tokens; it gives no logits; or its features cannot be kept (:func:`why_not_kept`).
        """
        if transfer_set.teacher_varies:
            raise TeacherError(
                "the teacher's view is random: an answer kept from one epoch would be given for other inputs; ask the teacher itself, "
                "or make its view deterministic (random = False)"
            )
        if transfer_set.token_level:
            raise TeacherError(
                f"labels are {tuple(transfer_set.known_labels.shape)}, one a token: an example has many rows, and the memory keeps one "
                "for each id; write a label store (tutelage label), or ask the teacher itself"
            )
        teacher = as_teacher(teacher)
        if layers:
            reason = why_not_kept(teacher, transfer_set, layers, budget_bytes)
            if reason is not None:
                raise TeacherError(reason)
            teacher = _showing(teacher, layers)
        _, first = _first_of_each(transfer_set.ids)
        place = torch.full((len(transfer_set),), -1)
        place[first] = torch.arange(len(first))
        kept: dict[str, Tensor] = {}
        parts: list[Tensor] = []
        weights: Tensor | None = None
        order = shortest_first(transfer_set.inputs)
        for rows in order.split(batch_size):
            said = teacher.signals(transfer_set.batch(rows))
            scores = scores_in(said, teacher)
            for layer in layers:
                values = said.features[layer].cpu()
                if layer not in kept:
                    kept[layer] = values.new_empty(len(first), *values.shape[1:])
                once = place[rows] >= 0
                kept[layer][place[rows][once]] = values[once]
            if isinstance(scores, MixtureLogits):
                weights = scores.weights
                parts.append(scores.members.cpu())
            else:
                parts.append(scores.at(1.0).cpu())
        logits = torch.cat(parts, dim=-2)
        return cls(transfer_set.ids[first], logits.index_select(logits.ndim - 2, order.argsort()[first]), weights, kept)

    def with_features(self, layers: Sequence[str]) -> MemoryTeacher:
        """The same answers with the features of these layers alone.

        Raises:
            TeacherError: a layer that was not kept.
        """
        if list(layers) == list(self._features):
            return self
        missing = [layer for layer in layers if layer not in self._features]
        if missing:
            raise TeacherError(
                f"the features of {', '.join(map(repr, missing))} are not among the teacher's kept answers (there are: "
                f"{', '.join(map(repr, self._features)) or 'none'}): keep them too, MemoryTeacher.of(teacher, data, layers={missing}), or "
                "give the teacher itself"
            )
        chosen = copy(self)
        chosen._features = {layer: self._features[layer] for layer in layers}
        return chosen

    @property
    def classes(self) -> int:
        """Number of classes C."""
        return self._logits.shape[-1]

    @property
    def digest(self) -> str:
        """A short hash of every id, answer, weight and feature."""
        found = sha256()
        kept = [self._sorted_ids, self._logits, *(() if self._weights is None else (self._weights,))]
        for layer, features in sorted(self._features.items()):
            found.update(layer.encode())
            kept.append(features)
        for values in kept:
            found.update(values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return found.hexdigest()[:16]

    def signals(self, batch: Batch) -> Signals:
        """The kept logits and features of the batch's ids, on their device, and which of the batch's tokens are real.

        Raises:
            TeacherError: an id that was never asked about.
        """
        ids = batch["ids"]
        if self._sorted_ids.device != ids.device:
            self._sorted_ids, self._logits = self._sorted_ids.to(ids.device), self._logits.to(ids.device)
        rows = torch.searchsorted(self._sorted_ids, ids).clamp_(max=len(self._sorted_ids) - 1)
        if not torch.equal(self._sorted_ids.index_select(0, rows), ids):
            unknown = ids[self._sorted_ids[rows] != ids]
            raise TeacherError(
                f"{len(unknown)} examples of the batch were never shown to the teacher, the first with id {hex_id(int(unknown[0]))}: "
                "the wrong answers would be learnt; compute the teacher's logits for this very transfer set"
            )
        features = {
            layer: values.index_select(0, rows.to(values.device)).to(ids.device)
            for layer, values in self._features.items()
        }
        mask = real_tokens_of(batch) if features else None
        if self._weights is not None:
            return Signals(MixtureLogits(self._logits.index_select(1, rows), self._weights), features, mask)
        return Signals(Logits(self._logits.index_select(0, rows)), features, mask)


def why_not_kept(
    teacher: Teacher, transfer_set: TransferSet, layers: Sequence[str], budget_bytes: int = FEATURE_BUDGET
) -> str | None:
    """Why a teacher's features of these layers cannot be kept in memory, after asking about a few examples; None if they can.

    Raises:
        TeacherError, ModelError: a layer that the teacher cannot show.
    """
    showing = _showing(teacher, layers)
    count = len(transfer_set)
    several = torch.arange(min(_PROBED, count))
    alone = torch.linspace(0, count - 1, len(several)).long()
    looks = [several, *alone.split(1)]
    features = [showing.signals(transfer_set.batch(rows)).features for rows in looks]
    for layer in layers:
        shapes = sorted({tuple(found[layer].shape[1:]) for found in features})
        if len(shapes) > 1:
            return (
                f"the features of {layer!r} have other shapes in other batches ({shapes[0]} and {shapes[-1]} an example): texts are padded "
                "to the longest of their batch, and what was kept would not meet what the student sees; ask the teacher itself"
            )
    each = sum(found.nbytes for found in features[0].values()) // len(several)
    if each * count > budget_bytes:
        return (
            f"the features of {', '.join(map(repr, layers))} take {each:,} bytes an example, {each * count / GIB:,.2f} GiB for all "
            f"{count:,}, and {budget_bytes / GIB:,.2f} GiB are allowed: ask the teacher itself, keep smaller layers, or raise "
            "budget_bytes"
        )
    return None


def _showing(teacher: Teacher, layers: Sequence[str]) -> Teacher:
    if not isinstance(teacher, ShowsLayers):
        raise TeacherError(
            f"a {type(teacher).__name__} cannot be asked for the layers {', '.join(map(repr, layers))}: it has no with_features(layers); "
            "give a module, a ModuleTeacher, or a teacher that has it"
        )
    return teacher.with_features(layers)


def _first_of_each(ids: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct ids, and the first row of each."""
    unique, inverse = torch.unique(ids, return_inverse=True)
    first = torch.full((len(unique),), len(ids), dtype=torch.int64)
    first.scatter_reduce_(0, inverse, torch.arange(len(ids)), reduce="amin")
    return unique, first
