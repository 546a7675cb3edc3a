"""What every teacher is, and one model as a teacher."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from tutelage.data import Batch, hex_id, rows_of
from tutelage.errors import TeacherError
from tutelage.models import check_layers, on_device, scores_and_features
from tutelage.models.decoding import unchanged
from tutelage.padding import real_tokens, without_padding
from tutelage.rows import row_count, scores_on
from tutelage.signals import (
    Chosen,
    ClassScores,
    HeadLogits,
    Logits,
    Signals,
    check_chosen,
    chosen_classes,
    whole,
)


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
        classes: which of its classes it is asked about, and in what order: ``n`` for its first n, int64 ``[C]`` numbers, or
            None for all; the others have no part in its distribution (a vocabulary that is padded for the hardware).

    Raises:
        ConfigError: ``classes`` that name none.
    """

    def __init__(self, model: nn.Module, *, allow_masked_classes: bool = False, classes: Chosen = None) -> None:
        check_chosen(classes, "classes")
        self.model = model
        self.allow_masked_classes = allow_masked_classes
        self.classes = classes
        self.layers: tuple[str, ...] = ()

    def with_features(self, layers: Sequence[str]) -> ModuleTeacher:
        """The same model as a teacher that also shows these layers, by name (:func:`tutelage.models.check_layers`).

        Raises:
            ModelError: a layer that the model does not have; the message has the nearest names.
        """
        if tuple(layers) == self.layers:
            return self
        check_layers(self.model, layers)
        showing = ModuleTeacher(self.model, allow_masked_classes=self.allow_masked_classes, classes=self.classes)
        showing.layers = tuple(dict.fromkeys(layers))
        return showing

    def signals(self, batch: Batch) -> Signals:
        """The model's scores of the batch's rows on the teacher view, on the batch's device, and the layers' features ``[B, ...]``.

        Rows are examples, or tokens where labels are ``[B, T]``: those positions of the *teacher's* view that have a label. Features
        are of whole examples, but for prompts and completions, a row a token (:func:`tutelage.models.scores_and_features`). What
        a layer gave at padded tokens is replaced by zeros: nothing was asked there, and it may be anything.

        Raises:
            TeacherError: NaN or infinity in the logits or features, or in what its head is given, and the message names the
                example; another number of rows than the batch has.
            ConfigError: ``classes`` that the model does not have.
            ModelError: the model returned no logits, or a layer gave no features.
        """
        device, ids, name = batch["ids"].device, rows_of(batch)["ids"], type(self.model).__name__
        with unchanged(self.model):
            given, found = scores_and_features(
                self.model, _teacher_view(batch, self.model), batch["labels"], self.layers, _teacher_rows(batch)
            )
        if row_count(given) != len(ids):
            raise TeacherError(
                f"teacher {name} gave {row_count(given)} rows for {len(ids)} examples: rows would meet other "
                "examples' rows, or one be broadcast to all; return one row an example"
            )
        mask = real_tokens_of(batch) if found else None
        features = {layer: without_padding(values.to(device), mask) for layer, values in found.items()}
        scores = scores_on(_detached(given), device)
        if isinstance(scores, Logits):
            refuse_non_finite(scores.values, ids, self.allow_masked_classes, name)
        else:
            refuse_non_finite(scores.hidden, ids, False, f"{name}, before its head,")
        shown = ids if _teacher_rows(batch) is not None else batch["ids"]
        for layer, values in features.items():
            refuse_non_finite(
                values.flatten(1) if values.ndim > 1 else values[:, None], shown, False, f"{name}, layer {layer!r},"
            )
        return Signals(chosen_classes(scores, self.classes, f"teacher {name}"), features, mask)


def real_tokens_of(batch: Batch) -> Tensor | None:
    """``[B, T]`` truth values, on the batch's device: the teacher's tokens that are no padding (:func:`tutelage.padding.real_tokens`)."""
    mask = real_tokens(batch.get("teacher", batch["student"]), _teacher_rows(batch))
    return mask if mask is None else mask.to(batch["ids"].device)


def _detached(scores: Logits | HeadLogits) -> Logits | HeadLogits:
    """Without the head's parameters, of which no gradient shall come."""
    if isinstance(scores, Logits):
        return scores
    return replace(
        scores, weight=scores.weight.detach(), bias=scores.bias.detach() if scores.bias is not None else None
    )


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


def _teacher_rows(batch: Batch) -> Tensor | None:
    """Where the batch's rows are in what the teacher gives; None for where labels are."""
    return batch.get("teacher_rows") if "teacher" in batch else batch.get("student_rows")


def _teacher_view(batch: Batch, model: nn.Module) -> Any:
    parameter = next(model.parameters(), None)
    return on_device(batch.get("teacher", batch["student"]), parameter.device if parameter is not None else None)


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
