"""The transfer set: what the teacher labels and the student learns from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

import torch
from torch import Tensor
from torch.utils.data import Dataset

from tutelage.data.completions import Completions, CompletionView, Layout, Seen
from tutelage.data.ids import RawInputs, content_ids
from tutelage.data.masking import Asked
from tutelage.data.randomness import Draws
from tutelage.data.set_checks import check_inputs, check_metadata, check_views, checked_labels, length_of
from tutelage.data.views import Chain, View, is_random, take
from tutelage.errors import DataError
from tutelage.ragged import Ragged
from tutelage.signals import NO_LABEL

if TYPE_CHECKING:
    import datasets


class Batch(TypedDict):
    """One batch. ``teacher`` is there only where the teacher sees something else than the student.

    ``ids[B]`` int64 content ids · ``labels[B]``, or ``[B, T]`` where rows are tokens, int64, ``NO_LABEL`` where absent ·
    ``view[B]`` int64, which of its views each example is seen in, only where what the teacher sees varies · ``student`` and
    ``teacher``: a tensor ``[B, ...]`` or a mapping of tensors · ``student_rows`` and ``teacher_rows`` ``[N]`` int64: where each
    supervised row is in that model's outputs, flattened over examples and tokens; without them, where ``labels`` are ·
    ``completions``: what the batch was made of, where that are prompts and completions.
    """

    ids: Tensor
    labels: Tensor
    view: NotRequired[Tensor]
    student: Any
    teacher: NotRequired[Any]
    student_rows: NotRequired[Tensor]
    teacher_rows: NotRequired[Tensor]
    completions: NotRequired[Completions]


@dataclass(frozen=True, eq=False)
class TransferSet(Dataset[Batch]):
    """Examples with a stable content id, a student view, a teacher view and an optional label.

    Held in memory and fetched a batch at a time. ``augment`` is applied to the raw inputs of training batches, so both
    models see the same augmented example; ``student_view`` and ``teacher_view`` then make what each model takes, in
    training and in evaluation alike. All randomness is a function of (``seed``, view, id), and an epoch shows one view.

    Rows are examples, or tokens where ``labels`` are ``[B, T]``: ``labels[b, t]`` is the class that position t has to predict
    (:func:`tutelage.data.next_token_labels`), and a position without a label is no row.

    Args:
        inputs: a tensor ``[B, ...]``, a mapping of tensors ``[B, ...]``, B texts, or B prompts and completions
            (:meth:`of_completions`).
        labels: integer ``[B]`` or ``[B, T]``, ``NO_LABEL`` (−100) where there is none; None for no labels at all. A student view may
            give others to a batch (:class:`tutelage.data.masking.Asked`).
        class_names: one name a class; by default the numbers.
        student_view: None for the inputs as they are.
        teacher_view: None for the student's view.
        augment: None for none.
        seed: of the augmentation.
        metadata: by column, one text an example (a hospital, a device): what results are cut into slices by. No model sees it,
            and it is no part of the ids.
        views: how many augmented views an example has: epoch e shows view e mod ``views``, so that a teacher's answers to them
            all can be stored. None for a new view in each epoch.

    Raises:
        DataError: lengths differ, labels are not class indices, metadata is not texts, the set is empty, an input is NaN or
            infinite, ``views`` is below 1.
    """

    inputs: RawInputs
    labels: Tensor | None = None
    class_names: Sequence[str] | None = None
    student_view: View | None = None
    teacher_view: View | None = None
    augment: View | None = None
    seed: int = 0
    metadata: Mapping[str, Sequence[str]] | None = None
    views: int | None = None

    def __post_init__(self) -> None:
        check_inputs(self.inputs)
        check_metadata(self.metadata, len(self))
        check_views(self.views)
        object.__setattr__(self, "labels", checked_labels(self.labels, len(self), self.class_names))

    @classmethod
    def from_dataset(
        cls,
        dataset: datasets.Dataset,
        inputs: str | Sequence[str],
        label: str | None = None,
        metadata: Sequence[str] | None = None,
        **views: Any,
    ) -> TransferSet:
        """Read columns of a Hugging Face ``datasets.Dataset`` into memory.

        Args:
            dataset: the rows.
            inputs: a column of texts, images or number lists; or several columns: of numbers, stacked to features
                ``[B, F]``, or of equally long lists, passed to the models by name.
            label: a column of class indices or class names; null and −1 mean no label.
            metadata: columns of texts, class names, numbers or truth values, kept as texts to cut results into slices by.
            views: ``student_view``, ``teacher_view``, ``augment``, ``seed`` and ``views``, as for the class.
        """
        from tutelage.data.columns import read_columns, read_metadata

        raw, labels, class_names = read_columns(dataset, inputs, label)
        kept = read_metadata(dataset, metadata) if metadata else None
        return cls(raw, labels, class_names, metadata=kept, **views)

    @classmethod
    def of_completions(cls, completions: Completions, *, layout: Layout = "padded", seed: int = 0) -> TransferSet:
        """A language model's: rows are the completions' tokens, and each model is given its own prompt before them.

        Args:
            completions: B prompts and completions.
            layout: how a batch is laid out; the loss does not depend on it.
            seed: as for the class.
        """
        own_view = completions.teacher_prompts is not None or completions.teacher_completions is not None
        return cls(
            completions,
            completions.labels(),
            student_view=CompletionView("student", layout),
            teacher_view=CompletionView("teacher", layout) if own_view else None,
            seed=seed,
        )

    def __len__(self) -> int:
        return length_of(self.inputs)

    @cached_property
    def ids(self) -> Tensor:
        """Content ids, int64 ``[B]``."""
        return content_ids(self.inputs)

    @property
    def classes(self) -> int | None:
        """Number of classes: that of the names, else the largest label + 1; None where there is neither."""
        if self.class_names is not None:
            return len(self.class_names)
        labelled = self.known_labels[self.known_labels != NO_LABEL]
        return int(labelled.max()) + 1 if len(labelled) else None

    @property
    def known_labels(self) -> Tensor:
        """Labels int64 ``[B]`` or ``[B, T]``, ``NO_LABEL`` where absent."""
        assert self.labels is not None
        return self.labels

    @property
    def labelled(self) -> int:
        """How many examples have a label; where rows are tokens, at least one."""
        known = self.known_labels != NO_LABEL
        return int((known.any(dim=1) if self.token_level else known).sum())

    @property
    def token_level(self) -> bool:
        """Whether rows are tokens and not examples."""
        return self.known_labels.ndim == 2

    @property
    def teacher_varies(self) -> bool:
        """Whether what the teacher sees of an example changes from epoch to epoch."""
        return is_random(self.augment) or is_random(self._seen_by_teacher)

    @property
    def _seen_by_teacher(self) -> View | None:
        return self.student_view if self.teacher_view is None else self.teacher_view

    def select(self, rows: Tensor) -> TransferSet:
        """The set of these rows, int64 ``[B']``, in that order."""
        kept = self.metadata
        if kept is not None:
            kept = {column: [values[row] for row in rows.tolist()] for column, values in kept.items()}
        chosen = replace(self, inputs=take(self.inputs, rows), labels=self.known_labels[rows], metadata=kept)
        if "ids" in self.__dict__:
            chosen.__dict__["ids"] = self.ids[rows]
        return chosen

    def with_labels(self, labels: Tensor | None) -> TransferSet:
        """The same examples with other labels."""
        return self._sharing_ids(replace(self, labels=labels))

    def for_evaluation(self) -> TransferSet:
        """The same examples as they are, without augmentation."""
        return self if self.augment is None else self._sharing_ids(replace(self, augment=None))

    def for_teacher_training(self) -> TransferSet:
        """The set a teacher is trained on: what the teacher sees becomes the student view."""
        return self._sharing_ids(replace(self, student_view=self._seen_by_teacher, teacher_view=None))

    def with_student_view(self, view: View) -> TransferSet:
        """The same examples with another view for the student; what the teacher sees stays as it is."""
        seen = self._seen_by_teacher
        return self._sharing_ids(replace(self, student_view=view, teacher_view=Chain([]) if seen is None else seen))

    def _sharing_ids(self, other: TransferSet) -> TransferSet:
        other.__dict__["ids"] = self.ids
        return other

    def batch(self, rows: Tensor, epoch: int = 0) -> Batch:
        """The batch of these examples, int64 ``[B']``, as epoch ``epoch`` shows them.

        Raises:
            DataError: a view changed its inputs in place, so that the other model would not see them as they are.
        """
        inputs = take(self.inputs, rows)
        ids = self.ids.index_select(0, rows)
        labels = self.known_labels.index_select(0, rows)
        if self.augment is None and self.student_view is None and self.teacher_view is None:
            return {"ids": ids, "labels": labels, "student": inputs}
        view = epoch if self.views is None else epoch % self.views
        draws = Draws(self.seed, view, ids)
        if self.augment is not None:
            inputs = self.augment(inputs, draws)
        before = _versions(inputs)
        student = inputs if self.student_view is None else self.student_view(inputs, draws)
        batch: Batch = {"ids": ids, "labels": labels, "student": student}
        if isinstance(inputs, Completions):
            batch["completions"] = inputs
        if isinstance(student, Seen):
            batch["student"], batch["student_rows"] = student
        if isinstance(student, Asked):
            batch["student"], batch["labels"] = student
        if self.teacher_varies:
            batch["view"] = torch.full_like(ids, view)
        if self.teacher_view is not None:
            taught = self.teacher_view(inputs, draws)
            batch["teacher"] = taught
            if isinstance(taught, Seen):
                batch["teacher"], batch["teacher_rows"] = taught
            if _versions(inputs) != before:
                raise DataError(
                    "a view changed its inputs in place: the other model would see what this view made of them; "
                    "return a new tensor, or clone the inputs first"
                )
        return batch

    def rewritten(self, batch: Batch, completions: Ragged) -> Batch:
        """A batch of prompts and completions with other completions, on the CPU as :meth:`batch` gives it; ids stay the examples' own.

        Args:
            batch: of this set.
            completions: B of them, in the vocabulary that both models share.

        Raises:
            DataError: a batch of something else; models of two vocabularies; an empty completion.
        """
        if "completions" not in batch:
            raise DataError("the batch holds no prompts and completions: there is nothing to put others in place of")
        new = TransferSet.of_completions(batch["completions"].with_completions(completions))
        views = {"student_view": self.student_view, "teacher_view": self.teacher_view}
        rows = torch.arange(len(new))
        return {**replace(new, **views).batch(rows), "ids": batch["ids"]}

    def key(self, row: int, epoch: int) -> int:
        """The key of a row in an epoch: what a sampler yields, so that a loader's workers know the epoch too."""
        return epoch * len(self) + row

    def __getitems__(self, keys: Sequence[int]) -> Batch:
        """The batch of these keys, all of one epoch (see :meth:`key`); plain row numbers are those of epoch 0."""
        epoch = keys[0] // len(self)
        return self.batch(torch.tensor(keys, dtype=torch.int64) - epoch * len(self), epoch)

    def __getitem__(self, key: int) -> Batch:
        """The batch of one key."""
        return self.__getitems__([key])

    def __iter__(self) -> Iterator[Batch]:
        """Each example of epoch 0 as a batch of one (by keys alone, iteration would run on into the next epochs)."""
        return (self[row] for row in range(len(self)))


def _versions(inputs: RawInputs) -> list[int]:
    """Of each tensor, how often it was changed in place (under ``inference_mode`` torch does not count)."""
    if isinstance(inputs, Tensor):
        inputs = {"": inputs}
    return [0 if t.is_inference() else t._version for t in inputs.values()] if isinstance(inputs, Mapping) else []
