"""Masked language modelling: which tokens of a text are hidden in which epoch, and what stands in their place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tutelage.data.randomness import Draws
from tutelage.data.tokenizer_digests import tokenizer_digest
from tutelage.errors import ConfigError, DataError
from tutelage.signals import NO_LABEL

#: Of the tokens that are asked for, those that the mask token replaces, and those that another token does; the rest stay as they are.
_HIDDEN, _EXCHANGED = 0.8, 0.1

#: A draw that is above every probability.
_NEVER = 2.0


class Asked(NamedTuple):
    """What both models are given of a batch, where the view decides what is asked of them.

    ``inputs``: their keyword arguments · ``labels[B, T]`` int64: what each position has to tell, ``NO_LABEL`` where it is not asked.
    """

    inputs: dict[str, Tensor]
    labels: Tensor


@dataclass(frozen=True)
class Masking:
    """How much of a text is hidden (Devlin et al. 2019, "BERT", §3.1 and appendix A.1).

    A token is asked for with probability ``probability``, independently of the others; of a text in which none would be, the one whose
    draw is the smallest is, so that a text of W tokens gives ``1 − (1 − p)^W`` parts in W more than p. Of those asked for, 80% are
    replaced by the mask token, 10% by a token drawn from the vocabulary, and 10% stay.

    Args:
        probability: p, above 0 and below 1.
        whole_words: ask for all tokens of a word or for none; each token's replacement is still drawn for itself, as in BERT.

    Raises:
        ConfigError: a probability outside.
    """

    probability: float = 0.15
    whole_words: bool = False

    def __post_init__(self) -> None:
        if not 0.0 < self.probability < 1.0:
            raise ConfigError(
                f"masking: probability is {self.probability}, expected a number above 0 and below 1: of a text in which nothing is hidden "
                "nothing is to be learnt, and one that is hidden whole says nothing"
            )

    def describe(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"probability": self.probability, "whole_words": self.whole_words}

    def asked(self, maskable: Tensor, words: Tensor | None, drawn: Tensor) -> Tensor:
        """Which tokens are asked for, bool ``[B, T]``; at least one of each text that has any that may be.

        Args:
            maskable: bool ``[B, T]``, those that may be.
            words: int64 ``[B, T]``, each token's word, rising along the text; read only where whole words are asked for.
            drawn: ``[B, T]``, uniform in [0, 1).
        """
        if self.whole_words:
            assert words is not None
            first = torch.ones_like(maskable)
            first[:, 1:] = words[:, 1:] != words[:, :-1]
            places = torch.arange(words.shape[1]).expand_as(words)
            drawn = drawn.gather(1, torch.where(first, places, 0).cummax(dim=1).values)
        drawn = torch.where(maskable, drawn, _NEVER)
        least = drawn.min(dim=1, keepdim=True).values
        return ((drawn < self.probability) | (drawn == least)) & maskable


@dataclass(frozen=True, repr=False)
class MaskedTokens:
    """Texts as a masked language model sees them, padded to the longest of the batch: a view that says what is asked besides.

    What is hidden of a text, and what stands in its place, is a function of (seed, epoch, id) alone: the same in any batch, worker or
    run, and for both models. Special tokens, padding and unknown words are never asked for.

    Args:
        tokenizer: a Hugging Face tokenizer with a mask token.
        masking: how much is hidden.
        max_length: longer texts are cut.
        fixed: hide in every epoch what the first hides: for what is measured.

    Raises:
        ConfigError: a tokenizer without a mask or a padding token, or, for whole words, without words.
    """

    tokenizer: Any
    masking: Masking = field(default_factory=Masking)
    max_length: int = 128
    fixed: bool = False

    def __post_init__(self) -> None:
        for what in ("mask_token", "pad_token"):
            if getattr(self.tokenizer, what, None) is None:
                raise ConfigError(
                    f"the tokenizer has no {what.replace('_', ' ')}, which masked language modelling needs: it is one of a model that was "
                    f"trained otherwise; give a masked language model's tokenizer, or set tokenizer.{what}"
                )
        if self.max_length < 4:
            raise ConfigError(f"MaskedTokens: max_length is {self.max_length}, expected at least 4 tokens of a text")
        if self.masking.whole_words and not self._tells_words():
            raise ConfigError(
                "masking: whole_words asks for all tokens of a word, and this tokenizer does not say which these are (it is a slow one, or "
                "takes a whole text for one word): each text would be hidden as a whole; leave whole_words out"
            )

    def __repr__(self) -> str:
        return (
            f"MaskedTokens(tokenizer {self.digest}, {self.masking}, max_length={self.max_length}, fixed={self.fixed})"
        )

    @property
    def random(self) -> bool:
        """Whether other tokens are hidden in another epoch."""
        return not self.fixed

    @cached_property
    def digest(self) -> str:
        """What tells this tokenizer from another."""
        return tokenizer_digest(self.tokenizer)

    def __call__(self, inputs: Any, draws: Draws, /) -> Asked:
        given, maskable, words = self._read(inputs)
        draws = replace(draws, epoch=0) if self.fixed else draws
        ids = given["input_ids"]
        tokens = ids.shape[1]
        # counted in the text: where padding stands before it, its column is one of the batch
        places = (given["attention_mask"].cumsum(dim=1) - 1).clamp_min(0)
        asked = self.masking.asked(maskable, words, draws.uniform("masking", tokens).gather(1, places))
        how = draws.uniform("masking, how", tokens).gather(1, places)
        others = self._others[draws.integers("masking, other", 0, len(self._others) - 1, tokens).gather(1, places)]
        shown = torch.where(how < _HIDDEN, self.tokenizer.mask_token_id, ids)
        shown = torch.where((how >= _HIDDEN) & (how < _HIDDEN + _EXCHANGED), others, shown)
        labels = torch.where(asked, ids, NO_LABEL)
        return Asked({**given, "input_ids": torch.where(asked, shown, ids)}, labels)

    def candidates(self, inputs: Any) -> Tensor:
        """The tokens of texts that may be asked for, int64 ``[B, T]``, ``NO_LABEL`` elsewhere."""
        given, maskable, _ = self._read(inputs)
        return torch.where(maskable, given["input_ids"], NO_LABEL)

    def _read(self, inputs: Any) -> tuple[dict[str, Tensor], Tensor, Tensor | None]:
        """Inputs without anything hidden, which tokens may be, and, where it matters, whose word each is."""
        if isinstance(inputs, Tensor | Mapping):
            raise DataError(f"MaskedTokens takes texts, got a {type(inputs).__name__}")
        encoded = self.tokenizer(
            list(inputs),
            padding=True,
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
            return_attention_mask=True,
            return_special_tokens_mask=True,
        )
        given = {name: values for name, values in encoded.items() if name != "special_tokens_mask"}
        maskable = (given["attention_mask"] != 0) & (encoded["special_tokens_mask"] == 0)
        maskable &= ~torch.isin(given["input_ids"], self._special)
        words = None
        if self.masking.whole_words:
            numbers = [encoded.word_ids(row) for row in range(len(maskable))]
            words = torch.tensor([[-1 if word is None else word for word in row] for row in numbers])
        return given, maskable, words

    def _tells_words(self) -> bool:
        if not getattr(self.tokenizer, "is_fast", False):
            return False
        numbers = self.tokenizer("two words").word_ids(0)
        return len({number for number in numbers if number is not None}) > 1

    @cached_property
    def _special(self) -> Tensor:
        return torch.tensor(sorted(set(self.tokenizer.all_special_ids)))

    @cached_property
    def _others(self) -> Tensor:
        """The tokens that may stand in another one's place: all but special ones."""
        special = set(self.tokenizer.all_special_ids)
        return torch.tensor(sorted(set(self.tokenizer.get_vocab().values()) - special))
