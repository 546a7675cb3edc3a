"""A model and its export side by side, at sizes that the export was not made with."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tutelage.errors import ExportError, ModelError
from tutelage.export.refusals import first_line
from tutelage.export.specs import BATCH, LENGTH, Runner, input_specs, named, taken_inputs
from tutelage.models import class_logits
from tutelage.models.calling import Inputs

#: Up to which size it is tried whether something changes there.
LARGEST_TRIED = 512

#: How far logits may be apart, in parts of the largest: far more than rounding does, far less than another branch.
SAME_LOGITS = 1e-3


class Trial:
    """What the model answers, at a few batch sizes and lengths.

    Args:
        model: in eval mode.
        sample: at least one example; repeated and cropped to the sizes that are tried.

    Raises:
        ExportError: the tensors disagree about batch or length; the model does not take another batch size or length, answers at
            random, or gives another number of rows than there are examples.
    """

    def __init__(self, model: nn.Module, sample: Inputs) -> None:
        self._model = model
        self._kind = type(model).__name__
        self._lone = isinstance(sample, Tensor)
        _check_batch(named(sample))
        sample = sample if isinstance(sample, Tensor) else taken_inputs(model, sample)
        self._sample = named(sample)
        self.specs = input_specs(sample)
        given = self._common_length()
        taken = {size for tensor in [*model.parameters(), *model.buffers()] for size in tensor.shape}
        self._length = None if given is None else _length_near(given, taken)
        self._batch = next(size for size in count(3, 2) if size not in {*taken, self._length})
        self._answers: dict[tuple[int, int | None], NDArray[np.float32]] = {}
        self._try_first(given)
        if given is not None:
            self._try_lengths(given)
        for batch in (self._batch, 1, self._batch + 1):
            self._try_batch(batch, self._length)

    @property
    def inputs(self) -> dict[str, Tensor]:
        """To export with: at least 3 examples of a length of at least 3, neither a size that the weights have where that can
        be. An exporter takes 1 for a broadcast, and two equal sizes for one.
        """
        return self._resized(self._batch, self._length)

    def compare(self, runner: Runner, decisive: Mapping[str, set[int]]) -> None:
        """Ask the exported model what the model has answered; and both of them around the sizes that may be decisive.

        Args:
            runner: the exported model.
            decisive: sizes of ``batch`` and ``length`` on whose other side the model may do something else.

        Raises:
            ExportError: an answer differs; the axis is named.
        """
        for batch in _around(decisive[BATCH]):
            self._try_batch(batch, self._length)
        for length in _around(decisive[LENGTH]) if self._length is not None else ():
            self._try_length(length)
        for (batch, length), expected in self._answers.items():
            self._compare_at(runner, batch, length, expected)

    def _compare_at(self, runner: Runner, batch: int, length: int | None, expected: NDArray[np.float32]) -> None:
        axis = BATCH if batch != self._batch else LENGTH if length != self._length else None
        if axis is None:
            where = "the very size it was exported with"
            remedy = "it is the exporter that errs; write the model in plainer operators, or export to safetensors"
        else:
            where = f"{axis} {batch if axis == BATCH else length}"
            remedy = f"its axis {axis!r} is fixed, or a branch on it was settled for good; use tensor operators instead of ifs on sizes"
        inputs = self._resized(batch, length)
        try:
            got = runner(inputs["input"] if self._lone else inputs)
        except ExportError as error:
            raise ExportError(
                f"{self._kind}, exported, fails at {where}, where the model itself answers: {remedy}"
            ) from error
        # two implementations need not agree about an example that is masked throughout
        masks = [values for name, values in inputs.items() if "mask" in name and values.ndim == 2]
        rows = [row for row in range(batch) if all(bool(mask[row].any()) for mask in masks)]
        scale = float(np.max(np.abs(np.nan_to_num(expected)), initial=1.0))
        if got.shape != expected.shape or not np.allclose(
            got[rows], expected[rows], rtol=0, atol=SAME_LOGITS * scale, equal_nan=True
        ):
            raise ExportError(
                f"{self._kind}, exported, gives other logits than the model at {where}, by more than {SAME_LOGITS * scale:.0e}: {remedy}"
            )

    def _try_first(self, length: int | None) -> None:
        """At the sample's own length, so that what fails is the batch; twice, to see chance."""
        first = self._try_batch(self._batch, length)
        again = self._attempt(self._batch, length)
        if isinstance(again, Exception) or not np.array_equal(first, again, equal_nan=True):
            raise ExportError(
                f"{self._kind} answers the same inputs differently in eval mode: its artefact would too, and could be compared with "
                "nothing; give functional dropout training=self.training, and draw no random numbers in forward"
            )

    def _try_batch(self, batch: int, length: int | None) -> NDArray[np.float32]:
        answer = self._attempt(batch, length)
        if isinstance(answer, Exception):
            raise ExportError(
                f"{self._kind} does not take a batch of {batch:,} (axis 0, {BATCH!r}): {type(answer).__name__}: {first_line(answer)} Its "
                "artefact must take any number of examples; take that number from the tensor's shape, or write -1 for it in a "
                "view or reshape"
            ) from answer
        self._answers[batch, length] = answer
        return answer

    def _try_length(self, length: int) -> Exception | None:
        answer = self._attempt(self._batch, length)
        if isinstance(answer, Exception):
            return answer
        self._answers[self._batch, length] = answer
        return None

    def _try_lengths(self, given: int) -> None:
        assert self._length is not None
        failed = self._try_length(self._length)
        others = {1, self._length - 1, self._length + 1, 2 * self._length, given} - {self._length}
        # a model may need a least length, or have a greatest; but one that takes a single length has that axis fixed
        failures = {length: self._try_length(length) for length in sorted(others)}
        failed = failed or next((error for error in failures.values() if all(failures.values())), None)
        if failed is not None:
            names = ", ".join(repr(spec.name) for spec in self.specs if LENGTH in spec.shape)
            raise ExportError(
                f"{self._kind} takes {names} of length {given:,} but not of others (axis 1, {LENGTH!r}): {type(failed).__name__}: "
                f"{first_line(failed)} Its artefact must take any length, as texts have; take the length from the tensor's shape. "
                "Whole numbers that are a fixed number of columns can be given as floats and cast in the model"
            ) from failed

    def _attempt(self, batch: int, length: int | None) -> NDArray[np.float32] | Exception:
        inputs = self._resized(batch, length)
        try:
            with torch.no_grad():
                logits = class_logits(self._model, inputs["input"] if self._lone else inputs)
        except Exception as error:  # whatever the model's own code raises
            return error
        classes = next(iter(self._answers.values())).shape[1] if self._answers else logits.shape[1]
        if logits.shape != (batch, classes):
            return ModelError(f"logits of shape {list(logits.shape)}, expected [{batch}, {classes}].")
        return logits.numpy()

    def _resized(self, batch: int, length: int | None) -> dict[str, Tensor]:
        """The sample with its rows and columns repeated or cut."""
        resized: dict[str, Tensor] = {}
        for spec in self.specs:
            values = self._sample[spec.name]
            values = values[torch.arange(batch) % values.shape[0]]
            if length is not None and LENGTH in spec.shape:
                values = values[:, torch.arange(length) % values.shape[1]]
            resized[spec.name] = values.detach().contiguous()
        return resized

    def _common_length(self) -> int | None:
        lengths = {spec.name: self._sample[spec.name].shape[1] for spec in self.specs if LENGTH in spec.shape}
        if len(set(lengths.values())) > 1 or 0 in lengths.values():
            given = ", ".join(f"{name!r} {length:,}" for name, length in lengths.items())
            raise ExportError(
                f"the sample's tokens have different lengths: {given}; expected one length, which the artefact leaves free for all of "
                "them. Whole numbers that are no tokens but columns can be given as floats and cast in the model"
            )
        return next(iter(lengths.values()), None)


def _check_batch(sample: Mapping[str, Tensor]) -> None:
    sizes = {name: tuple(values.shape) for name, values in sample.items()}
    if (
        not sizes
        or () in sizes.values()
        or len({shape[0] for shape in sizes.values()}) != 1
        or any(shape[0] == 0 for shape in sizes.values())
    ):
        given = ", ".join(f"{name!r} {list(shape)}" for name, shape in sizes.items()) or "no tensors"
        raise ExportError(
            f"the sample has {given}, expected at least one example, and as many in every tensor: the first axis is the batch, which "
            "the artefact leaves free"
        )


def _length_near(given: int, taken: set[int]) -> int:
    """The largest odd length up to ``given``, one that no weight has where there is one; 3 at least."""
    odd = [length for length in range(given, 2, -1) if length % 2] or [3]
    return next((length for length in odd if length not in taken), odd[0])


def _around(sizes: set[int]) -> list[int]:
    return sorted({near for size in sizes for near in (size - 1, size, size + 1) if 1 <= near <= LARGEST_TRIED})
