"""Two tokenizers side by side, and the tokens that end a text."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from talkers import CHATML, lowered, pieces, renamed, talker
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from tutelage.data.language import compare_tokenizers, eos_ids, load_tokenizer, refuse_other_tokenizer
from tutelage.errors import ConfigError


def test_equal_tokenizers_are_the_same_whatever_their_templates() -> None:
    """Refused for another template, base and chat models of one family could not teach one another."""
    assert compare_tokenizers(talker(), talker(None, pad_token=None)).same
    refuse_other_tokenizer(talker(), talker(None))


def test_a_tokenizer_that_differs_in_three_tokens_is_refused_with_their_names() -> None:
    """Three of fifty thousand: every text looks right until one of them comes up."""
    found = compare_tokenizers(talker(), renamed(3))
    assert [other for _, _, other in found.differing] == ["<extra_0>", "<extra_1>", "<extra_2>"]
    assert [own for _, own, _ in found.differing] == [None] * 3
    message = (
        r'3 numbers mean different tokens .*: \d+ \(none / "<extra_0>"\), .*<extra_1>.*<extra_2>.*\. The teacher would read other words'
        r".*completions: teacher.*crossing"
    )
    with pytest.raises(ConfigError, match=message):
        refuse_other_tokenizer(talker(), renamed(3))


def test_a_wholly_different_tokenizer_names_five_tokens() -> None:
    """A message of fifty thousand tokens says nothing."""
    with pytest.raises(ConfigError, match=r"(\d+ \([^)]*\), ){4}\d+ \(.*\) and \d+ more\. The teacher"):
        refuse_other_tokenizer(talker(), pieces())


def test_one_vocabulary_behind_another_normaliser_is_another_tokenizer() -> None:
    """Each number means the same to both, and yet the teacher would be asked about pieces that it never writes."""
    found = compare_tokenizers(talker(), lowered())
    assert not found.differing
    assert any(text != text.lower() for text in found.probes)
    with pytest.raises(ConfigError, match=r"the same \d+ tokens but cut texts in different places"):
        refuse_other_tokenizer(talker(), lowered())


def test_other_merges_of_one_vocabulary_are_seen() -> None:
    """Merges are in no vocabulary: compared by that alone, such tokenizers are equal."""
    vocabulary = {token: number for number, token in enumerate(["a", "b", "c", "ab", "bc", "</s>"])}
    orders = [[("a", "b"), ("b", "c")], [("b", "c"), ("a", "b")]]
    made = [
        PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.BPE(vocab=vocabulary, merges=merges)), eos_token="</s>"
        )
        for merges in orders
    ]
    assert [one.tokenize("abc") for one in made] == [["ab", "c"], ["a", "bc"]]
    assert not compare_tokenizers(made[0], made[1]).differing
    with pytest.raises(ConfigError, match="other merges, 2 of them"):
        refuse_other_tokenizer(made[0], made[1])
    assert compare_tokenizers(made[0], made[0]).same


def test_the_tokens_that_end_a_text_come_from_all_who_know_one() -> None:
    """A base model's own end is not the end of a chat's turn: it would run on through the next question."""
    tokenizer = talker(eos_token="<|endoftext|>")
    ids = tokenizer.get_vocab()
    end, turn = ids["<|endoftext|>"], ids["<|im_end|>"]
    assert eos_ids(talker(None, eos_token="<|endoftext|>")) == [end]
    assert eos_ids(tokenizer) == sorted([end, turn])
    assert eos_ids(tokenizer, SimpleNamespace(eos_token_id=[turn, 7])) == sorted({7, end, turn})
    assert eos_ids(tokenizer, SimpleNamespace(eos_token_id=7)) == sorted([7, end, turn])
    assert eos_ids(talker("{{ raise_exception('no') }}")) == [turn]
    assert eos_ids(talker(CHATML, eos_token=None, pad_token=None)) == [turn]
    with pytest.raises(ConfigError, match="names a token that ends a text"):
        eos_ids(talker(None, eos_token=None, pad_token=None), SimpleNamespace(eos_token_id=None))


def test_a_saved_tokenizer_is_loaded_and_one_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its template is what decides what a model is asked, so it has to come along."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    talker().save_pretrained(tmp_path / "model")
    loaded = load_tokenizer(tmp_path / "model")
    assert loaded.chat_template == CHATML
    assert compare_tokenizers(loaded, talker()).same
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"no tokenizer could be loaded from .*empty"):
        load_tokenizer(tmp_path / "empty")
