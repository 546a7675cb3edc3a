"""A tokenizer as examples are made with it: texts to tokens and nothing around them, and which tokens end a turn."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase


class Cutter:
    """Cuts texts into tokens.

    Args:
        tokenizer: as it is; what is remembered of it holds while it does not change.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._spaces: dict[int, bool] = {}

    def many(self, texts: list[str]) -> list[list[int]]:
        """The tokens of each text, without any that the tokenizer would put around it."""
        if not texts:
            return []
        found: Any = self.tokenizer(texts, add_special_tokens=False, verbose=False)
        return [list(tokens) for tokens in found["input_ids"]]

    def one(self, text: str) -> list[int]:
        """The tokens of a text, without any that the tokenizer would put around it."""
        return self.many([text])[0]

    def text(self, tokens: Sequence[int]) -> str:
        """What tokens write, special ones as they are called."""
        found: Any = self.tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False)
        return found

    @cached_property
    def front(self) -> tuple[int, ...]:
        """The tokens that the tokenizer itself puts before a text: a BOS, mostly, or none."""
        bare = self.one("a")
        found: Any = self.tokenizer(["a"], verbose=False)
        dressed = list(found["input_ids"][0])
        starts = range(len(dressed) - len(bare) + 1)
        return next((tuple(dressed[:start]) for start in starts if dressed[start : start + len(bare)] == bare), ())

    @cached_property
    def specials(self) -> frozenset[int]:
        """The tokens that are marks and no text."""
        added = {token for token, entry in self.tokenizer.added_tokens_decoder.items() if entry.special}
        return frozenset(added | set(self.tokenizer.all_special_ids))

    def is_space(self, token: int) -> bool:
        """Whether a token writes white space alone."""
        if token not in self._spaces:
            self._spaces[token] = token not in self.specials and not self.text([token]).strip()
        return self._spaces[token]

    def ending(self, tokens: Sequence[int], usual: int | None = None) -> int | None:
        """Where the token stands that ends a rendered turn; None without one.

        Args:
            tokens: of the turn, with whatever the template writes behind it.
            usual: the token that ends other turns. Behind it a template may write an end of the text, and before it the end of a
                call, special tokens both; without it, the first special token that has nothing but such and white space behind it.
        """
        places: list[int] = []
        for place in range(len(tokens) - 1, -1, -1):
            if tokens[place] in self.specials:
                places.insert(0, place)
            elif not self.is_space(tokens[place]):
                break
        return next((place for place in places if tokens[place] == usual), places[0] if places else None)

    def after(self, before: Sequence[int], whole: Sequence[int], text: str) -> list[int]:
        """The tokens of ``text`` as they follow others.

        Args:
            before: the tokens that stand before it.
            whole: the tokens of both texts as one.
            text: what follows.

        Cut as one, a text may share a token with what stands before it, which a model that goes on from ``before`` cannot write; cut
        alone, some tokenizers put a space before it. So the cut of the whole holds where it has a border there, else the cut behind a
        token that joins with nothing.
        """
        if list(whole[: len(before)]) == list(before):
            return list(whole[len(before) :])
        for anchor in self._anchors:
            joined = self.one(self.text(anchor) + text)
            if joined[: len(anchor)] == anchor and self.text(joined) == self.text(anchor) + text:
                return joined[len(anchor) :]
        return self.one(text)

    @cached_property
    def _anchors(self) -> list[list[int]]:
        texts = [mark for mark in (self.tokenizer.eos_token, self.tokenizer.bos_token) if isinstance(mark, str)]
        return [tokens for tokens in self.many([*texts, "\n", ".", "a"]) if tokens]
