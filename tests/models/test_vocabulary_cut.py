"""A tokenizer without the pieces that some texts never use: the texts are split as before, and others still can be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, BertConfig, PreTrainedTokenizerFast
from vocabulary_cut_tokenizers import FOREIGN, SENTENCES, TOKENIZERS, WORDS, tokenizer_of

from tutelage.errors import ModelError
from tutelage.models.vocabulary_cut import VocabularyCut, cut_vocabulary

TEXTS = [SENTENCES[0], SENTENCES[4]]
#: That split any text into pieces that stand for all of it.
LOSSLESS = ("roberta", "gpt2", "llama3", "llama2")


def fast(model: Any, **names: str) -> Any:
    made = Tokenizer(model)
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, **names)


def cut(tokenizer: Any, texts: list[str], **options: Any) -> VocabularyCut:
    return cut_vocabulary(None, tokenizer, texts, **options)


def expect_same_pieces(before: Any, made: VocabularyCut, text: str) -> None:
    old, new = before(text), made.tokenizer(text)
    assert before.convert_ids_to_tokens(old["input_ids"]) == made.tokenizer.convert_ids_to_tokens(new["input_ids"])
    assert old["input_ids"] == [made.kept[number] for number in new["input_ids"]]
    assert {**old, "input_ids": None} == {**new, "input_ids": None}


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_any_part_of_a_corpus_is_split_as_before(kind: str, data: st.DataObject):
    """A piece that is missing on the way to another splits one text in a thousand otherwise, and its student is blamed for it."""
    before = tokenizer_of(kind)
    text = st.lists(st.sampled_from([*WORDS, FOREIGN, "rereading", "organist", "[MASK]<mask>"])).map(" ".join)
    texts = data.draw(st.lists(text | st.text(), min_size=1, max_size=4))
    made = cut(before, texts)
    for text in texts:
        expect_same_pieces(before, made, text)
    assert len(made.kept) == len(made.tokenizer) == len(set(made.kept)) <= len(before)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_it_is_smaller_and_reads_what_it_did_not_see(kind: str):
    """Without its letters or bytes, it would take all words that are new for one unknown one."""
    before = tokenizer_of(kind)
    made = cut(before, TEXTS)
    assert len(made.tokenizer) < len(before) * 0.95
    for text in (*SENTENCES, FOREIGN, "gnawing readers"):
        old, new = before(text)["input_ids"], made.tokenizer(text)["input_ids"]
        if kind != "words":
            assert old.count(before.unk_token_id) == new.count(made.tokenizer.unk_token_id)
        if kind in LOSSLESS:
            assert made.tokenizer.decode(new, skip_special_tokens=True) == before.decode(old, skip_special_tokens=True)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_saved_it_is_read_again_by_its_name(kind: str, tmp_path: Path):
    """A folder from which something else is read than what was trained on fails first in production."""
    before = tokenizer_of(kind)
    made = cut(before, TEXTS).tokenizer
    BertConfig().save_pretrained(tmp_path)
    made.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert type(made) is type(before)
    assert again.get_vocab() == made.get_vocab()
    assert [again(text)["input_ids"] for text in (*TEXTS, FOREIGN)] == [
        made(text)["input_ids"] for text in (*TEXTS, FOREIGN)
    ]
    names = ("pad", "bos", "eos", "cls", "sep", "mask", "unk")
    assert [getattr(again, f"{name}_token") for name in names] == [getattr(before, f"{name}_token") for name in names]
    pair = again(*TEXTS)["input_ids"]
    assert again.convert_ids_to_tokens(pair) == before.convert_ids_to_tokens(before(*TEXTS)["input_ids"])
    assert str(tmp_path.parent) not in "".join(path.read_text() for path in tmp_path.glob("tokenizer*"))


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_given_one_stays_as_it_was(kind: str):
    """The teacher goes on with the tokenizer given."""
    before = TOKENIZERS[kind]()
    before.padding_side = "left"
    before.backend_tokenizer.enable_truncation(6)
    description, vocabulary = before.backend_tokenizer.to_str(), before.get_vocab()
    made = cut(before, TEXTS)
    assert before.backend_tokenizer.to_str() == description
    assert before.get_vocab() == vocabulary
    assert made.tokenizer.padding_side == "left"
    assert made.tokenizer.name_or_path == ""
    words_beyond_six = made.tokenizer.convert_ids_to_tokens(made.tokenizer(TEXTS[0], truncation=False)["input_ids"])
    assert words_beyond_six == before.convert_ids_to_tokens(before(TEXTS[0], truncation=False)["input_ids"])


def test_what_merges_make_on_the_way_stays():
    """Without "ab", no merge leads to "abc": it would be split into its letters."""
    merges = [("a", "b"), ("b", "c"), ("ab", "c"), ("a", "bc"), ("c", "a")]
    vocabulary = {piece: number for number, piece in enumerate(["ca", "bc", "abc", "ab", "c", "b", "a"])}
    made = cut(fast(models.BPE(vocabulary, merges)), ["abc"])
    assert set(made.tokenizer.get_vocab()) == {"abc", "ab", "a", "b", "c"}
    model = json.loads(made.tokenizer.backend_tokenizer.to_str())["model"]
    assert model["merges"] == [["a", "b"], ["ab", "c"]]


def test_a_piece_that_its_letters_do_not_lead_to():
    """Bytes that are merged are written out in a piece's name, which are not the letters it is made of."""
    written = {f"<0x{byte:02X}>": byte for byte in range(256)}
    vocabulary = {"<unk>": 256, "x": 257, "<0xC3><0xA9>": 258, "<0xC3><0xA8>": 259, **written}
    merges = [("<0xC3>", "<0xA9>"), ("<0xC3>", "<0xA8>")]
    made = cut(fast(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True)), ["é"])
    assert "<0xC3><0xA9>" in made.tokenizer.get_vocab()
    assert "<0xC3><0xA8>" not in made.tokenizer.get_vocab()
    assert made.tokenizer.convert_ids_to_tokens(made.tokenizer("è")["input_ids"]) == ["<0xC3>", "<0xA8>"]


def test_a_word_that_wordpiece_gave_up_on_stays_unknown():
    """Without "ab", which it took before it gave up, "a" and "##bx" would be found in its place."""
    pieces = ["[UNK]", "a", "ab", "##b", "##bx", "ca", "never"]
    before = fast(models.WordPiece({piece: number for number, piece in enumerate(pieces)}, unk_token="[UNK]"))
    assert before.tokenize("abx") == ["[UNK]"]
    made = cut(before, ["abx", "cabx"])
    assert before.tokenize("cabx") == ["ca", "##bx"]
    assert made.tokenizer.tokenize("abx") == ["[UNK]"]
    assert "never" not in made.tokenizer.get_vocab()


def test_unknown_letters_cost_what_they_did():
    """Unigram reckons that from its least likely piece: without it, an unknown letter and a long piece would be likelier."""
    letters = [(letter, -9.5) for letter in "bcdef"]
    pairs = [("Xb", -9.0), ("cd", -9.0), ("ef", -9.0), ("bcdef", -1.0)]
    before = fast(models.Unigram([("<unk>", 0.0), ("unlikely", -40.0), *letters, *pairs, ("likely", -2.0)], 0, False))
    assert before.tokenize("Xbcdef") == ["Xb", "cd", "ef"]
    made = cut(before, ["Xbcdef", "bcdef"])
    assert made.tokenizer.tokenize("Xbcdef") == ["Xb", "cd", "ef"]
    assert "unlikely" in made.tokenizer.get_vocab()
    assert "likely" not in made.tokenizer.get_vocab()


def test_tokens_to_keep():
    """An answer that no text holds could never be given."""
    before = tokenizer_of("gpt2")
    spare = next(piece for piece in before.get_vocab() if piece not in cut(before, TEXTS).tokenizer.get_vocab())
    assert spare in cut(before, TEXTS, keep=[spare]).tokenizer.get_vocab()
    assert {"<|endoftext|>", "<tool>", "<|im_end|>"} <= cut(before, TEXTS).tokenizer.get_vocab().keys()
    with pytest.raises(ModelError, match=r"'Ġreadin' is to be kept, and the tokenizer has none; did you mean"):
        cut(before, TEXTS, keep=["Ġreadin"])


def test_padding_keeps_its_number():
    """Positions are counted from it in some models: each would be another."""
    made = fast(models.WordLevel({"a": 0, "b": 1, "<unk>": 2, "<pad>": 3, "c": 4}, "<unk>"), pad_token="<pad>")
    assert cut(made, ["a"]).kept == [0, 2, 3]
    assert cut(made, ["c a"]).kept == [0, 2, 4, 3]


def test_a_tokenizer_that_cannot_be_cut():
    """Cut all the same, texts would be split at random, or into the pieces of others."""

    class Slow:
        pass

    with pytest.raises(ModelError, match="no fast tokenizer"):
        cut(Slow(), TEXTS)
    with pytest.raises(ModelError, match="leaves out 10% of its merges"):
        cut(fast(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")], dropout=0.1)), ["ab"])
    # a number is left out, and the next added token is given the last one's
    double = fast(models.WordLevel({"a": 0, "<unk>": 1, "b": 3}, "<unk>"))
    double.add_tokens(["<x>"])
    with pytest.raises(ModelError, match=r"token 3 more than once \('(b', '<x>|<x>', 'b)'\)"):
        cut(double, ["a"])
    for texts, said in (("one", "the letters of one text"), ([], "no texts at all"), ([3], "a list of int")):
        with pytest.raises(ModelError, match=said):
            cut(tokenizer_of("words"), texts)  # pyright: ignore[reportArgumentType]


def test_what_is_split_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch):
    """A cut that loses a piece must not pass for one that did not."""
    from tutelage.models import vocabulary_cut

    def forgetful(model: Any, used: Any) -> set[str]:
        return {piece for piece in used if len(piece) < 4} | {"<unk>", "<pad>"}

    monkeypatch.setattr(vocabulary_cut, "staying", forgetful)
    with pytest.raises(ModelError, match=r"splits 'a small .*' into .* expected .* as before"):
        cut(tokenizer_of("words"), TEXTS)


def test_what_is_read_otherwise_once_saved_is_refused():
    """A class that splits by itself, whatever its file says, would be another tokenizer in production."""
    before = TOKENIZERS["bert"]()
    before.backend_tokenizer.normalizer = None
    with pytest.raises(ModelError, match="once it is saved and read again"):
        cut(before, ["A Small Rodent"])


def test_what_is_put_around_a_text_stays():
    """A template names its tokens by number too: it would put others around each text."""
    before = fast(models.WordLevel({"a": 0, "b": 1, "<unk>": 2, "[end]": 3}, "<unk>"))
    before.backend_tokenizer.post_processor = processors.BertProcessing(("[end]", 3), ("b", 1))
    made = cut(before, ["a"])
    assert made.tokenizer.convert_ids_to_tokens(made.tokenizer("a")["input_ids"]) == ["b", "a", "[end]"]
