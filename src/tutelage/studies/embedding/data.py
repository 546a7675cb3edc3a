"""An embedding study's texts: which of them answer one another, which task each belongs to, and the three splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tutelage.data import TransferSet, View, content_ids
from tutelage.errors import DataError

#: Characters of a text that a message shows.
_SHOWN = 60


@dataclass(frozen=True, eq=False)
class TextSplit:
    """N texts of one split.

    Args:
        texts: N of them, each once.
        groups: N names: texts of one group are each other's answers; None for a text that is searched through and has no answer. None
            in place of them where no answers are known.
        tasks: N names of what results are listed by; None for no such list.

    Raises:
        DataError: no texts, an empty one, one that stands twice, another number of names than of texts, a group of one text.
    """

    texts: Sequence[str]
    groups: Sequence[str | None] | None = None
    tasks: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if not len(self.texts):
            raise DataError(
                "a split has no texts: there is nothing to learn from or to be measured on; give more texts"
            )
        for name in ("groups", "tasks"):
            given = getattr(self, name)
            if given is not None and len(given) != len(self.texts):
                raise DataError(
                    f"a split has {len(self.texts):,} texts and {len(given):,} {name}: a text would answer another one's question; give "
                    "one of each a text"
                )
        _expect_texts(self.texts)
        self._expect_answers()

    def _expect_answers(self) -> None:
        alone = [group for group, count in self._sizes.items() if count < 2]
        if alone:
            raise DataError(
                f"{len(alone):,} of {len(self._sizes):,} groups have one text in their split, the first {alone[0]!r}: nothing answers it, "
                "and it would count as never found; give it a second text, or no group (null): it is then searched through alone"
            )

    @cached_property
    def _sizes(self) -> Counter[str]:
        return Counter(group for group in self.groups or () if group is not None)

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def ids(self) -> Tensor:
        """Content ids, int64 ``[N]``."""
        return content_ids(self.texts)

    @cached_property
    def group_numbers(self) -> NDArray[np.int64]:
        """int64 ``[N]``: texts of one group have the same number, one without has a number of its own."""
        numbers: dict[str, int] = {}
        found: list[int] = []
        for index, group in enumerate(self.groups if self.groups is not None else [None] * len(self)):
            found.append(index if group is None else numbers.setdefault(group, index))
        return np.array(found, dtype=np.int64)

    @property
    def digest(self) -> str:
        """How many texts there are, with a short hash of them; what is asked about them (groups, tasks) decides no weight."""
        return f"{len(self):,} texts, {sha256(self.ids.numpy().tobytes()).hexdigest()[:16]}"

    def seen(self, view: View) -> TransferSet:
        """The texts as a model's training takes them."""
        return TransferSet(list(self.texts), student_view=view)


@dataclass(frozen=True, eq=False)
class EmbeddingData:
    """The three splits of an embedding study.

    Args:
        train: what is learnt from.
        validation: what is watched.
        test: what each arm is measured on, once.
        repeated: texts left out because they stood there already.

    Raises:
        DataError: a text or a group of one split also stands in another one; answers or tasks are known of some splits alone.
    """

    train: TextSplit
    validation: TextSplit
    test: TextSplit
    repeated: int = 0

    def __post_init__(self) -> None:
        for name, part, other_name, held_out in (
            ("train", self.train, "test", self.test),
            ("validation", self.validation, "test", self.test),
            ("train", self.train, "validation", self.validation),
        ):
            _expect_apart(part, name, held_out, other_name)

    @property
    def splits(self) -> dict[str, TextSplit]:
        """By name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}


def shown(text: str) -> str:
    """A text as a message quotes it."""
    return repr(text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…")


def _expect_texts(texts: Sequence[str]) -> None:
    seen: dict[str, int] = {}
    for index, text in enumerate(texts):
        if not text.strip():
            raise DataError(
                f"text {index} of a split is empty: a model would be taught from padding alone; leave it out"
            )
        if text in seen:
            raise DataError(
                f"texts {seen[text]} and {index} of a split are the same, {shown(text)}: each would be found for the other; keep one"
            )
        seen[text] = index


def _expect_apart(part: TextSplit, name: str, held_out: TextSplit, other_name: str) -> None:
    known = set(part.texts)
    shared = [text for text in held_out.texts if text in known]
    if shared:
        raise DataError(
            f"{len(shared):,} of {len(held_out):,} {other_name} texts also stand in the {name} split, the first {shown(shared[0])}: the "
            "student would be tested on what it was taught, and every number be too good; take them out (splits.drop_overlap: true)"
        )
    groups = {group for group in part.groups or () if group is not None}
    astride = sorted({group for group in held_out.groups or () if group is not None} & groups)
    if astride:
        raise DataError(
            f"{len(astride):,} groups stand in the {name} and in the {other_name} split, the first {astride[0]!r}: the student would have "
            "learnt the answers' neighbours; keep a group on one side (splits.drop_overlap: true)"
        )
