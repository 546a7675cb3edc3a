"""Prompts and completions: what a language model is taught on, in the layout of each model's own view.

The completion is one and the same for both models; before it, each reads its own prompt. The supervised rows of an example are the
tokens of its completion, in order, wherever the two layouts have put them: rows are gathered for each model by its own places.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from tutelage.errors import DataError
from tutelage.ragged import Ragged
from tutelage.signals import NO_LABEL

#: ``padded``: one line an example, padded behind; ``packed``: all examples end to end in one line, no padding.
Layout = Literal["padded", "packed"]
#: Whose view.
Reader = Literal["student", "teacher"]


class Seen(NamedTuple):
    """What a model is given of a batch, and where its supervised rows are.

    ``inputs``: its keyword arguments · ``rows[N]`` int64: their places in the outputs ``[B, T, ...]`` flattened to ``[B·T, ...]``.
    """

    inputs: dict[str, Tensor]
    rows: Tensor


@dataclass(frozen=True, eq=False)
class Completions:
    """The raw inputs of a language model's transfer set, in tokens.

    Args:
        prompts: what stands before the completion for the student, at least one token each.
        completions: what shall be learnt, at least one token each, in the student's vocabulary; with the token that ends it, where
            it does end.
        teacher_prompts: what stands before it for the teacher; None for what the student sees.
        teacher_completions: the same texts in the teacher's vocabulary, where that is another one; else None.

    Raises:
        DataError: another number of prompts than of completions; one that is empty.
    """

    prompts: Ragged
    completions: Ragged
    teacher_prompts: Ragged | None = None
    teacher_completions: Ragged | None = None

    def __post_init__(self) -> None:
        for name, part in self._parts.items():
            if len(part) != len(self.completions):
                raise DataError(
                    f"{len(part):,} {name} for {len(self.completions):,} completions: a completion would follow another example's prompt; "
                    "give one of each an example"
                )
            empty = (part.lengths == 0).nonzero()
            if len(empty):
                why = (
                    "nothing would be learnt from it"
                    if "completions" in name
                    else "nothing would predict its completion's first token"
                )
                raise DataError(f"{name} of example {int(empty[0])} hold no token: {why}; leave the example out")

    @property
    def _parts(self) -> dict[str, Ragged]:
        named = {
            name: getattr(self, name) for name in ("prompts", "completions", "teacher_prompts", "teacher_completions")
        }
        return {name: part for name, part in named.items() if part is not None}

    def __len__(self) -> int:
        return len(self.completions)

    def take(self, rows: Tensor) -> Completions:
        """Those examples, rows int64 ``[B']``, in that order."""
        return Completions(**{name: part.take(rows) for name, part in self._parts.items()})

    def to(self, device: torch.device | str) -> Completions:
        """The same on a device."""
        return Completions(**{name: part.to(device) for name, part in self._parts.items()})

    def with_completions(self, completions: Ragged) -> Completions:
        """The same prompts with other completions, in the vocabulary that both share.

        Raises:
            DataError: the teacher has a vocabulary of its own.
        """
        if self.teacher_completions is not None:
            raise DataError(
                "the teacher reads another vocabulary than the student writes: its tokens of the new completions are not known; give "
                "both texts anew"
            )
        return replace(self, completions=completions)

    def prompts_of(self, reader: Reader) -> Ragged:
        """The prompts that a model sees."""
        return self.teacher_prompts if reader == "teacher" and self.teacher_prompts is not None else self.prompts

    def completions_of(self, reader: Reader) -> Ragged:
        """The completions in a model's vocabulary."""
        other = self.teacher_completions
        return other if reader == "teacher" and other is not None else self.completions

    def lengths(self, reader: Reader) -> Tensor:
        """How many tokens a model reads of each example, int64 ``[B]``."""
        return self.prompts_of(reader).lengths + self.completions_of(reader).lengths - 1

    def ids(self) -> Tensor:
        """Content ids int64 ``[B]``, of what the teacher sees: examples that look alike to it have the same answers."""
        prompts, completions = self.prompts_of("teacher"), self.completions_of("teacher")
        found = [_digest(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        return torch.tensor(found, dtype=torch.int64)

    def labels(self) -> Tensor:
        """``[B, T]`` int64: the tokens of each completion, ``NO_LABEL`` behind them."""
        return self.completions.padded(NO_LABEL, at_least=2)[0]


@dataclass(frozen=True)
class CompletionView:
    """What a model is given of :class:`Completions`: its prompt and the completion but for the last token, which nothing follows.

    Where its rows are is known from the lengths, never from a token's number: a padding token that is also the end of a text, or a
    chat's marker, cannot be mistaken for anything.

    Args:
        reader: whose prompts.
        layout: with ``packed`` the inputs are ``input_ids`` and ``position_ids`` ``[1, ΣT]``, which transformers' models take as texts
            that do not see one another; with ``padded`` they are ``input_ids`` and ``attention_mask`` ``[B, T]``.
        pad: what stands in the gaps; nothing reads it.
    """

    reader: Reader = "student"
    layout: Layout = "padded"
    pad: int = 0
    random: ClassVar[bool] = False

    def __call__(self, inputs: Completions, draws: object, /) -> Seen:  # noqa: ARG002
        prompts, completions = inputs.prompts_of(self.reader), inputs.completions_of(self.reader)
        lengths = inputs.lengths(self.reader)
        starts = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        whole = _joined(prompts, completions)
        if self.layout == "padded":
            ids, mask = whole.padded(self.pad)
            given = {"input_ids": ids, "attention_mask": mask.long()}
            starts = torch.arange(len(lengths), device=ids.device) * ids.shape[1]
        else:
            within = torch.arange(int(starts[-1]), device=lengths.device) - starts[:-1].repeat_interleave(lengths)
            given = {"input_ids": whole.values[None], "position_ids": within[None]}
            starts = starts[:-1]
        return Seen(given, _places(starts + prompts.lengths - 1, completions.lengths))


def _joined(prompts: Ragged, completions: Ragged) -> Ragged:
    """Prompt and completion without its last token, one sequence an example."""
    lengths = prompts.lengths + completions.lengths - 1
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    values = prompts.values.new_empty(int(offsets[-1]))
    values[_places(offsets[:-1], prompts.lengths)] = prompts.values
    kept = _places(completions.offsets[:-1], completions.lengths - 1)
    values[_places(offsets[:-1] + prompts.lengths, completions.lengths - 1)] = completions.values[kept]
    return Ragged(values, offsets)


def _places(starts: Tensor, lengths: Tensor) -> Tensor:
    """``start, start + 1, …`` so many from each start, end to end."""
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    within = torch.arange(int(offsets[-1]), device=lengths.device) - offsets[:-1].repeat_interleave(lengths)
    return starts.repeat_interleave(lengths) + within


def _digest(prompt: Tensor, completion: Tensor) -> int:
    digest = blake2b(len(prompt).to_bytes(8, "little"), digest_size=8)
    digest.update(prompt.cpu().numpy().tobytes())
    digest.update(completion.cpu().numpy().tobytes())
    return int.from_bytes(digest.digest(), "little", signed=True)
