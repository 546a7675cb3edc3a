"""A language study's examples: the rows they were made of, the prompts of both models, and the completions where there are some."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tutelage.data import Completions, Layout, Ragged, TransferSet
from tutelage.data.language import Row
from tutelage.errors import DataError


@dataclass(frozen=True, eq=False)
class Split:
    """N examples of one split.

    Args:
        set: the prompts with their completions; None where there are no completions yet, and the teacher is to write them.
        rows: N rows of the data, by column: what a task score reads.
        prompts: N prompts as the student is deployed with them.
        teacher_prompts: N prompts as the teacher sees them, in its own vocabulary; None for the student's.
        references: N given answers as texts, to be shown beside the models'; None where there are none.
        sources: int64 ``[N]``, of each example what it was made of: pieces of one text, turns of one chat, questions about one passage
            have the same number, and count as one in every interval; None where each stands for itself.

    Raises:
        DataError: another number of one than of the others.
    """

    set: TransferSet | None
    rows: Sequence[Row]
    prompts: Ragged
    teacher_prompts: Ragged | None = None
    references: Sequence[str | None] | None = None
    sources: Tensor | None = None

    def __post_init__(self) -> None:
        parts = {name: len(part) for name, part in vars(self).items() if part is not None}
        if len(set(parts.values())) > 1:
            said = ", ".join(f"{count:,} {name}" for name, count in parts.items())
            raise DataError(
                f"a split has {said}: an example's answer would be held against another one's; give one of each an example"
            )
        if self.set is not None and not isinstance(self.set.inputs, Completions):
            raise DataError(
                f"a split's set holds {type(self.set.inputs).__name__}, expected prompts and completions: make it with "
                "TransferSet.of_completions"
            )

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def completions(self) -> Completions | None:
        """What the set is made of."""
        found = None if self.set is None else self.set.inputs
        return found if isinstance(found, Completions) else None

    @property
    def taught_prompts(self) -> Ragged:
        """The prompts as the teacher sees them."""
        return self.prompts if self.teacher_prompts is None else self.teacher_prompts

    def first(self, count: int) -> Split:
        """The first so many examples, or all where there are fewer."""
        return self.take(torch.arange(min(count, len(self))))

    def take(self, rows: Tensor) -> Split:
        """Those examples, rows int64 ``[B']``, in that order."""
        chosen = rows.tolist()
        return replace(
            self,
            set=None if self.set is None else self.set.select(rows),
            rows=[self.rows[row] for row in chosen],
            prompts=self.prompts.take(rows),
            teacher_prompts=None if self.teacher_prompts is None else self.teacher_prompts.take(rows),
            references=None if self.references is None else [self.references[row] for row in chosen],
            sources=None if self.sources is None else self.sources[rows],
        )

    def shared(self, other: Split) -> Tensor:
        """Which of its examples, int64 ``[B']``, also stand in another split: alike to the teacher in prompt and completion, or in
        the prompt alone where one of the two splits has no completions yet."""
        if self.set is not None and other.set is not None:
            return torch.isin(self.set.ids, other.set.ids).nonzero()[:, 0]
        theirs = {tuple(tokens) for tokens in other.taught_prompts.lists()}
        own = self.taught_prompts.lists()
        return torch.tensor([row for row, tokens in enumerate(own) if tuple(tokens) in theirs], dtype=torch.int64)

    def without(self, *others: Split) -> Split:
        """The examples that stand in none of the others.

        Raises:
            DataError: no example is left.
        """
        known = torch.cat([self.shared(other) for other in others])
        rest = torch.arange(len(self))
        rest = rest[~torch.isin(rest, known)]
        if len(rest) == 0:
            raise DataError("every example of a split also stands in another one: nothing of it is left")
        return self.take(rest)


@dataclass(frozen=True, eq=False)
class LanguageData:
    """The three splits of a language study.

    Args:
        train: what is learnt from.
        validation: what is watched.
        test: what each arm is measured on, once.
        cut: examples whose completion was cut by the longest length.
        dropped: examples left out, for whatever reason.
        end: the student's token that ends an answer; None for its tokenizer's EOS.
        max_length: the most tokens of a prompt and its completion together, whoever writes it; None for any number.
        layout: of a batch; the sets' own have it already, those of completions that the teacher writes are made with it.

    Raises:
        DataError: an example of one split also stands in another one.
    """

    train: Split
    validation: Split
    test: Split
    cut: int = 0
    dropped: int = 0
    end: int | None = None
    max_length: int | None = None
    layout: Layout = "padded"

    def __post_init__(self) -> None:
        for name, part, other_name, held_out in (
            ("train", self.train, "test", self.test),
            ("validation", self.validation, "test", self.test),
            ("train", self.train, "validation", self.validation),
        ):
            shared = held_out.shared(part)
            if len(shared):
                some = ", ".join(map(str, shared[:3].tolist()))
                raise DataError(
                    f"{len(shared):,} of {len(held_out):,} {other_name} examples also stand in the {name} split (the first: {some}), the "
                    "same tokens: the student would be tested on what it was taught, and every number be too good; remove them from the "
                    f"{name} split (splits.drop_overlap: true)"
                )

    @property
    def splits(self) -> dict[str, Split]:
        """By name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}
