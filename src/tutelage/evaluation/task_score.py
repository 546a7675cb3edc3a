"""A task's own score of a language model: one number an example, from what it writes or from what it finds likelier."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from tutelage.data import Ragged
from tutelage.data.language import Row
from tutelage.errors import ConfigError, DataError
from tutelage.evaluation.inputs import Floats
from tutelage.files import digest_of_lines


class Speaker(Protocol):
    """A language model that can be asked: it writes, and says how likely an answer is."""

    def texts(self, prompts: Ragged, max_new_tokens: int) -> list[str]:
        """The likeliest continuation of each of B prompts, greedily, without the token that ends it."""
        ...

    def choice_scores(self, prompts: Ragged, choices: Sequence[str]) -> Tensor:
        """Log-probability ``[B, K]``, nats, of each choice's tokens together after each prompt."""
        ...


class TaskScore(Protocol):
    """One number for each example, more being better."""

    @property
    def name(self) -> str:
        """In words, such as ``accuracy over 6 choices``."""
        ...

    @property
    def fraction(self) -> bool:
        """Whether it is a share, from 0 to 1."""
        ...

    def describe(self) -> dict[str, Any]:
        """What decides it, in plain values."""
        ...

    def __call__(self, speaker: Speaker, prompts: Ragged, rows: Sequence[Row]) -> Floats:
        """The scores ``[N]`` of a model on N prompts.

        Raises:
            DataError: a row lacks what the score reads.
        """
        ...


@dataclass(frozen=True)
class ChoiceScore:
    """Label accuracy by constrained scoring: 1 where the likeliest of the choices is the row's, else 0.

    A choice's likelihood is that of all its tokens after the prompt; nothing is generated, and an answer outside of the choices
    cannot be given. It misleads where choices differ much in length: a longer one has more tokens to be improbable.

    Args:
        choices: the K answers, as they are written behind the prompt: in plain text mostly with a space in front.
        column: of the row, which holds the right one; spaces around it do not matter.

    Raises:
        ConfigError: fewer than two different choices.
    """

    choices: Sequence[str]
    column: str

    def __post_init__(self) -> None:
        if isinstance(self.choices, str) or len({choice.strip() for choice in self.choices}) < max(
            2, len(self.choices)
        ):
            raise ConfigError(
                f"choices are {self.choices!r}, expected at least two different texts: nothing could be wrong"
            )

    @property
    def name(self) -> str:
        """In words."""
        return f"accuracy over {len(self.choices)} choices"

    @property
    def fraction(self) -> bool:
        """A share."""
        return True

    def describe(self) -> dict[str, Any]:
        """What decides it."""
        return {"choices": list(self.choices), "column": self.column}

    def expected(self, rows: Sequence[Row]) -> list[str]:
        """The right choice of each row.

        Raises:
            DataError: a row lacks one, or has one that is no choice.
        """
        right = [_cell(row, self.column, index).strip() for index, row in enumerate(rows)]
        known = [choice.strip() for choice in self.choices]
        unknown = next((index for index, answer in enumerate(right) if answer not in known), None)
        if unknown is not None:
            raise DataError(
                f"row {unknown} has {right[unknown]!r} in the column {self.column!r}, which is none of the choices "
                f"({', '.join(map(repr, self.choices))}): no answer to it could be right; name it among them, or drop the row"
            )
        return right

    def __call__(self, speaker: Speaker, prompts: Ragged, rows: Sequence[Row]) -> Floats:
        """0 or 1 for each example ``[N]``."""
        right = self.expected(rows)
        known = [choice.strip() for choice in self.choices]
        likeliest = speaker.choice_scores(prompts, self.choices).argmax(dim=1).tolist()
        return np.array([known[best] == answer for best, answer in zip(likeliest, right, strict=True)], np.float64)


@dataclass(frozen=True)
class ExactMatch:
    """1 where what the model writes is the row's text, else 0.

    Args:
        column: of the row, which holds the right text.
        max_new_tokens: how much is written at most.
        normalise: compare without case, and with every run of white space as one space.
    """

    column: str
    max_new_tokens: int = 64
    normalise: bool = True

    @property
    def name(self) -> str:
        """In words."""
        return "exact match"

    @property
    def fraction(self) -> bool:
        """A share."""
        return True

    def describe(self) -> dict[str, Any]:
        """What decides it."""
        return dict(vars(self))

    def expected(self, rows: Sequence[Row]) -> list[str]:
        """The right text of each row.

        Raises:
            DataError: a row lacks one.
        """
        return [_cell(row, self.column, index) for index, row in enumerate(rows)]

    def __call__(self, speaker: Speaker, prompts: Ragged, rows: Sequence[Row]) -> Floats:
        """0 or 1 for each example ``[N]``."""
        right = self.expected(rows)
        written = speaker.texts(prompts, self.max_new_tokens)
        return np.array(
            [self._as_compared(a) == self._as_compared(b) for a, b in zip(written, right, strict=True)], np.float64
        )

    def _as_compared(self, text: str) -> str:
        return re.sub(r"\s+", " ", text).strip().casefold() if self.normalise else text


@dataclass(frozen=True)
class PythonScore:
    """A user's own function of what the model writes.

    Args:
        function: of the written text and the row; a finite number, more being better.
        name: in words.
        max_new_tokens: how much is written at most.
        fraction: whether the numbers are shares, from 0 to 1.
        digest: of the code that the function is made of, such as its file; None for its own lines.
    """

    function: Callable[[str, Row], float]
    name: str = "score"
    max_new_tokens: int = 64
    fraction: bool = True
    digest: str | None = None

    def describe(self) -> dict[str, Any]:
        """What decides it; the function by its name and a hash of its code, where that can be read."""
        function = getattr(self.function, "__qualname__", type(self.function).__name__)
        said = {"name": self.name, "function": function, "max_new_tokens": self.max_new_tokens}
        digest = self.digest or digest_of_lines(self.function)
        return said if digest is None else {**said, "lines": digest}

    def __call__(self, speaker: Speaker, prompts: Ragged, rows: Sequence[Row]) -> Floats:
        """The function's number for each example ``[N]``.

        Raises:
            DataError: a number that is not finite, or no share where shares were promised.
        """
        written = speaker.texts(prompts, self.max_new_tokens)
        given = enumerate(zip(written, rows, strict=True))
        found = np.array([self._number(text, row, index) for index, (text, row) in given], np.float64)
        low, high = (0.0, 1.0) if self.fraction else (-np.inf, np.inf)
        wrong = ~(np.isfinite(found) & (found >= low) & (found <= high))
        if wrong.any():
            row = int(wrong.nonzero()[0][0])
            expected = "a number from 0 to 1 (or say fraction=False)" if self.fraction else "a finite number"
            raise DataError(
                f"the score {self.name!r} gave {found[row]} for the test example {row} ({written[row]!r}), expected {expected}: a mean "
                "over such numbers would say nothing; mend the function"
            )
        return found

    def _number(self, text: str, row: Row, index: int) -> float:
        try:
            found: Any = self.function(text, row)
        except Exception as error:
            raise DataError(
                f"the score {self.name!r} fails for the test example {index} ({text!r}): {type(error).__name__}: {error}; it is asked "
                "about whatever a model writes, also about nothing: mend the function"
            ) from error
        try:
            return float(found)
        except (TypeError, ValueError):
            raise DataError(
                f"the score {self.name!r} gave {found!r} for the test example {index} ({text!r}), expected a number: no mean could be "
                "taken; mend the function"
            ) from None


def _cell(row: Row, column: str, index: int) -> str:
    if column not in row or row[column] is None:
        near = [] if column in row else difflib.get_close_matches(column, list(row), n=1)
        raise DataError(
            f"row {index} has no {column!r}, which the task's score is read from"
            + (f"; did you mean {near[0]!r}?" if near else "")
            + f" (there are: {', '.join(map(repr, row))}): no answer to it could be right; name another column (score.column, or "
            "score.exact_match), or drop the rows that have none"
        )
    return str(row[column])
