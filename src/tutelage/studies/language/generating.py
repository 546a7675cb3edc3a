"""Completions that the teacher writes: asked for once, filtered, and kept with where they came from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tutelage.errors import ConfigError
from tutelage.studies.language.data import Row

if TYPE_CHECKING:
    from tutelage.models.writing import Sampling


@dataclass(frozen=True)
class Filters:
    """Which completions are kept.

    Args:
        finished: only those that the writer ended itself.
        min_tokens: at least so many tokens, the one that ends them included.
        max_tokens: at most so many; None for any number.
        python: a function of the text and the example's row that says whether it is kept; None for none.
        python_name: that function in words, for the record.
    """

    finished: bool = True
    min_tokens: int = 1
    max_tokens: int | None = None
    python: Callable[[str, Row], bool] | None = None
    python_name: str | None = None

    def __post_init__(self) -> None:
        if self.min_tokens < 1 or (self.max_tokens is not None and self.max_tokens < self.min_tokens):
            raise ConfigError(
                f"completions of {self.min_tokens} to {self.max_tokens} tokens are to be kept: none could be; expected at least 1, and no "
                "more than the most"
            )


@dataclass(frozen=True)
class Generation:
    """How the teacher writes the completions of the train split.

    Args:
        sampling: how each token is drawn.
        n: completions for each prompt.
        filters: which are kept.
        deduplicate: keep one of equal completions of one prompt.
        batch_size: prompts that are continued at once.
    """

    sampling: Sampling
    n: int = 1
    filters: Filters = field(default_factory=Filters)
    deduplicate: bool = True
    batch_size: int = 16

    def __post_init__(self) -> None:
        if self.n < 1 or self.batch_size < 1:
            raise ConfigError(
                f"generate: n is {self.n} and batch_size {self.batch_size}, expected at least 1 of each: nothing would be written"
            )
