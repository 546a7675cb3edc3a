"""Teachers: views in, signals out. An objective cannot tell which kind it hears."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from tutelage.data import Batch, TransferSet, hex_id
from tutelage.errors import TeacherError
from tutelage.models import class_logits, on_device
from tutelage.signals import ClassScores, Logits, MixtureLogits, Signals


@runtime_checkable
class Teacher(Protocol):
    """Anything that gives signals for a batch, without gradient and always the same for the same view."""

    def signals(self, batch: Batch) -> Signals:
        """What the teacher says about the batch's teacher view."""
        ...


class ModuleTeacher:
    """One model as a teacher.

    Whatever its caller did to it, the model answers in eval mode, without gradient, and its buffers (BatchNorm's running
    statistics) are as before afterwards, as are its train/eval flags: a student may share its layers.

    Args:
        model: any module that :func:`tutelage.models.class_logits` can call.
        allow_masked_classes: take −inf as "this class is impossible"; otherwise −inf is an error like NaN and +inf.
    """

    def __init__(self, model: nn.Module, *, allow_masked_classes: bool = False) -> None:
        self.model = model
        self.allow_masked_classes = allow_masked_classes

    def signals(self, batch: Batch) -> Signals:
        """The model's logits ``[B, C]`` on the teacher view, on the batch's device.

        Raises:
            TeacherError: NaN or infinity in the logits, and the message names the example; another number of rows than
                the batch has examples.
            ModelError: the model returned no logits.
        """
        with _answering(self.model):
            values = class_logits(self.model, _teacher_view(batch, self.model)).to(batch["ids"].device)
        if len(values) != len(batch["ids"]):
            raise TeacherError(
                f"teacher {type(self.model).__name__} gave {len(values)} rows for {len(batch['ids'])} examples: rows would meet other "
                "examples' rows, or one be broadcast to all; return one row an example"
            )
        _refuse_non_finite(values, batch["ids"], self.allow_masked_classes, type(self.model).__name__)
        return Signals(Logits(values))


def as_teacher(teacher: Any) -> Teacher:
    """A teacher as it is, a module as a :class:`ModuleTeacher`.

    Raises:
        TeacherError: it is neither.
    """
    if isinstance(teacher, nn.Module):
        return ModuleTeacher(teacher)
    if not isinstance(teacher, Teacher):
        raise TeacherError(
            f"teacher is a {type(teacher).__name__}, expected a module or an object with signals(batch), such as ModuleTeacher, "
            "EnsembleTeacher or MemoryTeacher"
        )
    return teacher


class EnsembleTeacher:
    """Several teachers as one: the weighted mean of the members' *probabilities* at the temperature asked for.

    It hands on the members' logits, not the mean of them: ``mean_m softmax(z_m / T)`` follows from no single set of
    logits at every T, and the mean of logits is the geometric mean of the probabilities instead, which one member's
    near-zero vetoes. Mixing happens in the objective, at its temperature (:class:`tutelage.signals.MixtureLogits`).

    Args:
        members: modules or teachers that give dense logits over the same classes, in the same order.
        weights: non-negative, one each; scaled to sum to 1. None for equal ones.

    Raises:
        TeacherError: no members, or weights that are negative, all zero or too few.
    """

    def __init__(self, members: Sequence[nn.Module | Teacher], weights: Sequence[float] | None = None) -> None:
        if not members:
            raise TeacherError("an ensemble needs at least one member")
        given = torch.tensor(weights if weights is not None else [1.0] * len(members), dtype=torch.float64)
        if len(given) != len(members) or not given.isfinite().all() or (given < 0).any() or given.sum() == 0:
            raise TeacherError(
                f"weights {given.tolist()} for {len(members)} members: expected one for each, none negative, not all zero"
            )
        if isinstance(members, nn.Module):
            raise TeacherError(
                f"members is one {type(members).__name__}, expected a list of teachers: its layers would be taken for members; give [it]"
            )
        self.members: list[Teacher] = [as_teacher(member) for member in members]
        self.weights = given / given.sum()

    def signals(self, batch: Batch) -> Signals:
        """Every member's logits, ``[M, B, C]``, to be mixed at the temperature the objective asks for.

        Raises:
            TeacherError: a member's class count differs from the first's, or a member gives no logits or fails.
        """
        values: list[Tensor] = []
        weights: list[Tensor] = []
        for weight, member in zip(self.weights, self.members, strict=True):
            scores = _scores(member, batch)
            if isinstance(scores, MixtureLogits):  # an ensemble of ensembles is one of all their members
                values.extend(scores.members)
                weights.extend(weight * scores.weights)
            else:
                values.append(scores.at(1.0))
                weights.append(weight)
        shapes = {tuple(value.shape) for value in values}
        if len(shapes) != 1:
            raise TeacherError(
                f"members gave logits of shapes {sorted(shapes)}: their classes cannot be compared; give every member the same "
                "class list"
            )
        return Signals(MixtureLogits(torch.stack(values), torch.stack(weights)))


class MemoryTeacher:
    """A teacher's logits, computed once and looked up by content id: one pass serves every epoch, arm and seed.

    Args:
        ids: int64 ``[B]`` content ids, each once.
        logits: ``[B, C]``, or ``[M, B, C]`` for an ensemble's members.
        weights: the members' weights ``[M]`` where there are members.

    Raises:
        TeacherError: shapes do not fit together, an id is there twice, or a logit is NaN or +inf, or a whole row −inf.
    """

    def __init__(self, ids: Tensor, logits: Tensor, weights: Tensor | None = None) -> None:
        leading = () if weights is None else (len(weights),)
        if logits.ndim != len(leading) + 2 or logits.shape[:-1] != (*leading, len(ids)) or len(ids) == 0:
            raise TeacherError(
                f"{len(ids)} ids and {'no' if weights is None else len(weights)} weights for logits of shape {tuple(logits.shape)}: "
                "expected at least one id and [ids, classes], or [members, ids, classes] with the members' weights"
            )
        logits = logits.detach()
        members = logits.numel() // max(logits.shape[-1] * len(ids), 1)
        _refuse_non_finite(logits.flatten(0, -2), ids.repeat(members), allow_masked=True, who="in memory")
        self._sorted_ids, order = torch.sort(ids)
        if bool((self._sorted_ids[1:] == self._sorted_ids[:-1]).any()):
            raise TeacherError(
                "an id is there twice: one of its two rows would never be used; keep one row for each id"
            )
        self._logits = logits.index_select(logits.ndim - 2, order)
        self._weights = weights

    @classmethod
    def of(cls, teacher: Teacher | nn.Module, transfer_set: TransferSet, batch_size: int = 512) -> MemoryTeacher:
        """Ask ``teacher`` once about every example of ``transfer_set``.

        Raises:
            TeacherError: what the teacher sees changes from epoch to epoch, so that no one answer stands for it; or it
                gives no logits.
        """
        if transfer_set.teacher_varies:
            raise TeacherError(
                "the teacher's view is random: an answer kept from one epoch would be given for other inputs; ask the teacher itself, "
                "or make its view deterministic (random = False)"
            )
        teacher = as_teacher(teacher)
        parts: list[Tensor] = []
        weights: Tensor | None = None
        for start in range(0, len(transfer_set), batch_size):
            rows = torch.arange(start, min(start + batch_size, len(transfer_set)))
            scores = _scores(teacher, transfer_set.batch(rows))
            if isinstance(scores, MixtureLogits):
                weights = scores.weights
                parts.append(scores.members.cpu())
            else:
                parts.append(scores.at(1.0).cpu())
        logits = torch.cat(parts, dim=-2)
        _, first = _first_of_each(transfer_set.ids)
        return cls(transfer_set.ids[first], logits.index_select(logits.ndim - 2, first), weights)

    @property
    def classes(self) -> int:
        """Number of classes C."""
        return self._logits.shape[-1]

    @property
    def digest(self) -> str:
        """A short hash of every id, answer and weight."""
        kept = (self._sorted_ids, self._logits, *(() if self._weights is None else (self._weights,)))
        found = sha256()
        for values in kept:
            found.update(values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return found.hexdigest()[:16]

    def signals(self, batch: Batch) -> Signals:
        """The kept logits of the batch's ids.

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
        if self._weights is not None:
            return Signals(MixtureLogits(self._logits.index_select(1, rows), self._weights))
        return Signals(Logits(self._logits.index_select(0, rows)))


def _scores(teacher: Teacher, batch: Batch) -> ClassScores:
    scores = teacher.signals(batch).logits
    if scores is None:
        raise TeacherError(
            f"{type(teacher).__name__} gives no logits: there is nothing to mix or to keep; use a teacher that classifies"
        )
    return scores


def _teacher_view(batch: Batch, model: nn.Module) -> Any:
    parameter = next(model.parameters(), None)
    return on_device(batch.get("teacher", batch["student"]), parameter.device if parameter is not None else None)


@contextmanager
def _answering(model: nn.Module) -> Generator[None]:
    """Eval mode and no gradient inside; flags and buffers as before outside.

    The model answers on copies of its buffers. Undoing its changes instead would miss those made through ``.data``, and
    writing to a buffer that a student's backward pass still needs would break that pass.
    """
    modules = list(model.modules())
    training = [module for module in modules if module.training]
    buffers = [
        (module, name, buffer)
        for module in modules
        if module._buffers  # pyright: ignore[reportPrivateUsage]  # most have none, and asking each for its names takes longer than a small layer
        for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False)
    ]
    try:
        for module in training:
            module.training = False
        with torch.no_grad():
            copies = {id(buffer): buffer.clone() for _, _, buffer in buffers}
            for module, name, buffer in buffers:
                setattr(module, name, copies[id(buffer)])
            yield
    finally:
        for module in training:
            module.training = True
        for module, name, buffer in buffers:
            setattr(module, name, buffer)


def _refuse_non_finite(values: Tensor, ids: Tensor, allow_masked: bool, who: str) -> None:
    # One sum is much cheaper than isfinite over everything, and is finite only if every value is (or it overflows,
    # which the exact test below then clears).
    if math.isfinite(float(values.sum(dtype=torch.float64))):
        return
    bad = ~torch.isfinite(values)
    if allow_masked:
        bad &= values != -torch.inf
        bad |= (values == -torch.inf).all(dim=1, keepdim=True)
    rows = torch.nonzero(bad.any(dim=1))[:, 0]
    if len(rows) == 0:
        return
    row = int(rows[0])
    raise TeacherError(
        f"teacher {who} gave {values[row][bad[row]][0].item()} for the example with id {hex_id(int(ids[row]))} ({len(rows)} of "
        f"{len(values)} in this batch): the student would learn nothing or become NaN; check the example, or run the teacher in "
        "float32" + ("" if allow_masked else "; for classes masked with −inf on purpose, say allow_masked_classes=True")
    )


def _first_of_each(ids: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct ids, and the first row of each."""
    unique, inverse = torch.unique(ids, return_inverse=True)
    first = torch.full((len(unique),), len(ids), dtype=torch.int64)
    first.scatter_reduce_(0, inverse, torch.arange(len(ids)), reduce="amin")
    return unique, first
