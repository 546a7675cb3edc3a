"""What every teacher is, and one model as a teacher."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from tutelage.data import Batch, hex_id
from tutelage.errors import TeacherError
from tutelage.models import check_layers, logits_and_features, on_device
from tutelage.signals import ClassScores, Logits, Signals, whole


@runtime_checkable
class Teacher(Protocol):
    """Anything that gives signals for a batch, without gradient and always the same for the same view."""

    def signals(self, batch: Batch) -> Signals:
        """What the teacher says about the batch's teacher view."""
        ...


@runtime_checkable
class ShowsLayers(Protocol):
    """A teacher that can be asked for what its inner layers give."""

    def with_features(self, layers: Sequence[str]) -> Teacher:
        """The same teacher, whose signals have these layers' features and no others.

        Raises:
            TeacherError, ModelError: a layer that it cannot show.
        """
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
        self.layers: tuple[str, ...] = ()

    def with_features(self, layers: Sequence[str]) -> ModuleTeacher:
        """The same model as a teacher that also shows these layers, by name (:func:`tutelage.models.check_layers`).

        Raises:
            ModelError: a layer that the model does not have; the message has the nearest names.
        """
        if tuple(layers) == self.layers:
            return self
        check_layers(self.model, layers)
        showing = ModuleTeacher(self.model, allow_masked_classes=self.allow_masked_classes)
        showing.layers = tuple(dict.fromkeys(layers))
        return showing

    def signals(self, batch: Batch) -> Signals:
        """The model's logits ``[B, C]`` on the teacher view, on the batch's device, and the layers' features ``[B, ...]``.

        Raises:
            TeacherError: NaN or infinity in the logits or features, and the message names the example; another number of
                rows than the batch has examples.
            ModelError: the model returned no logits, or a layer gave no features.
        """
        device = batch["ids"].device
        with _answering(self.model):
            values, found = logits_and_features(self.model, _teacher_view(batch, self.model), self.layers)
        values = values.to(device)
        if len(values) != len(batch["ids"]):
            raise TeacherError(
                f"teacher {type(self.model).__name__} gave {len(values)} rows for {len(batch['ids'])} examples: rows would meet other "
                "examples' rows, or one be broadcast to all; return one row an example"
            )
        refuse_non_finite(values, batch["ids"], self.allow_masked_classes, type(self.model).__name__)
        features = {layer: given.to(device) for layer, given in found.items()}
        for layer, given in features.items():
            rows = given.reshape(len(given), -1)
            refuse_non_finite(rows, batch["ids"], False, f"{type(self.model).__name__}, layer {layer!r},")
        return Signals(Logits(values), features)


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


def scores_in(said: Signals, teacher: Teacher) -> ClassScores:
    """The class scores in what a teacher said; raises TeacherError where there are none."""
    if said.logits is None:
        raise TeacherError(
            f"{type(teacher).__name__} gives no logits: there is nothing to mix or to keep; use a teacher that classifies"
        )
    return whole(said.logits, "mixing or keeping answers")


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


def refuse_non_finite(values: Tensor, ids: Tensor, allow_masked: bool, who: str) -> None:
    """Raise TeacherError for rows ``[N, C]`` with NaN or infinity; the message names the first example."""
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
