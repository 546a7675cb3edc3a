"""What tells a tokenizer from another, for a run that goes on only with the one that it began with."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from tutelage.data import tokenizer_digest


class _Slow:
    """What there is to see of a tokenizer that shows no rules."""

    def __init__(self, **numbers: int) -> None:
        self._numbers, self.special_tokens_map = numbers, {"pad_token": "[PAD]"}

    def get_vocab(self) -> dict[str, int]:
        return self._numbers


def _fast(*words: str, **marks: str) -> Any:
    made = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token=words[0]))
    return PreTrainedTokenizerFast(tokenizer_object=made, **marks)


def test_every_word_of_a_slow_tokenizer_counts() -> None:
    """Words that are called as a fast one's settings are would fall out, and a run go on with other numbers for them."""
    one, other = _Slow(padding=1, truncation=2, a=3), _Slow(padding=2, truncation=1, a=3)
    assert tokenizer_digest(one) == tokenizer_digest(_Slow(a=3, truncation=2, padding=1))
    assert tokenizer_digest(one) != tokenizer_digest(other)


def test_a_fast_tokenizer_is_its_rules_whatever_was_asked_last() -> None:
    """It keeps how its last texts were padded and cut: a resumed run would be refused for a call that changes nothing."""
    tokenizer = _fast("[UNK]", "a", "b", pad_token="[UNK]")
    before = tokenizer_digest(tokenizer)
    tokenizer(["a", "a b"], padding="max_length", truncation=True, max_length=3)
    assert tokenizer_digest(tokenizer) == before
    assert tokenizer_digest(_fast("[UNK]", "b", "a", pad_token="[UNK]")) != before
    assert tokenizer_digest(_fast("[UNK]", "a", "b", pad_token="a")) != before
