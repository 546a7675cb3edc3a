"""What arms learn from: whose completions, after whose prompt, in whose vocabulary."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from language_tiny import VOCABULARY, data, split, tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tutelage.data import Completions, Ragged, TransferSet
from tutelage.data.language import PromptView, encode
from tutelage.data.language.crossing import Crossing
from tutelage.errors import DataError
from tutelage.studies.language import Split
from tutelage.studies.language.generating import Generated
from tutelage.studies.language.lessons import Lessons, Vocabularies, probe_of
from tutelage.studies.language.speaking import texts_of

sys.path.append(str(Path(__file__).parents[1] / "data" / "language"))

from vocabularies import byte_level

OTHER = [*VOCABULARY[:2], *reversed(VOCABULARY[2:])]


def wrote(*texts: str, sources: list[int]) -> Generated:
    encode = tokenizer().encode
    ended = torch.tensor([text.endswith("<eos>") for text in texts])
    return Generated(torch.tensor(sources), Ragged.of([encode(text) for text in texts]), ended, {})


def read(tokens: list[int], words: list[str] = OTHER) -> str:
    return " ".join(words[token] for token in tokens)


def test_what_the_teacher_wrote_stands_after_the_prompt_it_was_written_for() -> None:
    """With several completions a prompt and some dropped, a place too far would answer another question."""
    part = split(["b0", "m1", "t2"])
    found = Vocabularies(tokenizer()).completions(part, wrote("meal <eos>", "meal", "town <eos>", sources=[1, 1, 2]))
    assert [read(prompt, VOCABULARY) for prompt in found.prompts.lists()] == ["m1", "m1", "t2"]
    assert [read(prompt, VOCABULARY) for prompt in found.prompts_of("teacher").lists()] == [
        "sort : m1",
        "sort : m1",
        "sort : t2",
    ]
    assert [read(tokens, VOCABULARY) for tokens in found.completions.lists()] == ["meal <eos>", "meal", "town <eos>"]


def test_a_text_is_written_anew_in_the_students_tokens() -> None:
    """Without its own end the student would never stop; with one where the teacher was cut off, it would stop in mid-sentence."""
    part = split(["b0", "m1"])
    both = Vocabularies(tokenizer(OTHER), tokenizer())
    found = both.completions(part, wrote("beast town <eos>", "meal b1", sources=[0, 1]))
    assert [read(tokens) for tokens in found.completions.lists()] == ["beast town <eos>", "meal b1"]
    assert found.teacher_completions is None
    assert found.teacher_prompts is None
    with pytest.raises(DataError, match=r"completion '' of example 1 has no token"):
        both.completions(part, wrote("beast <eos>", "", sources=[0, 1]))


def spaced(clean_up: bool = False) -> PreTrainedTokenizerFast:
    """A vocabulary of SentencePiece's kind, which puts a space before a text that stands alone; turns are ended by a token of their own."""
    pieces = ["<unk>", "<s>", "</s>", "<end>", "▁", "u", "\n", ".", "▁cat", "▁dog", "▁the", "cat", "dog", "the", "▁."]
    made = Tokenizer(models.Unigram([(piece, -float(10 - len(piece))) for piece in pieces], 0, False))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>", additional_special_tokens=["<end>"]
    )
    fast.clean_up_tokenization_spaces = clean_up
    fast.chat_template = (
        "{% for m in messages %}u\n{{ m.content }}<end>{% endfor %}{% if add_generation_prompt %}u\n{% endif %}"
    )
    return fast


def test_what_the_teacher_wrote_is_cut_and_ended_as_given_completions_are() -> None:
    """Learnt with another first token and another end than is tested on, sequence-level students would lose to SFT for that alone."""
    own = spaced()
    row = {"prompt": [{"role": "user", "content": "the"}], "completion": "cat dog"}
    given = encode([row], student=PromptView(), student_tokenizer=own, max_length=64)
    assert given.completions is not None
    answer = given.completions.completions[0].tolist()
    theirs = tokenizer(["<pad>", "<eos>", "cat", "dog"])
    wrote = written_in(theirs, [2, 3, 1], ended=[True])
    part = Split(set=None, rows=[row], prompts=given.prompts)
    found = Vocabularies(own, theirs, end=answer[-1]).completions(part, wrote)
    assert (
        own.convert_ids_to_tokens(found.completions[0].tolist())
        == own.convert_ids_to_tokens(answer)
        == ["cat", "▁dog", "<end>"]
    )


def test_spaces_that_were_written_stay() -> None:
    """Tidied up by the tokenizer, what is learnt and compared would be no text that the model wrote."""
    tidy = spaced(clean_up=True)
    tokens = Ragged.of([tidy.encode("dog . cat", add_special_tokens=False)])
    assert texts_of(tidy, tokens) == ["dog . cat"]


def written_in(teacher: PreTrainedTokenizerFast, *tokens: list[int], ended: list[bool]) -> Generated:
    return Generated(torch.arange(len(tokens)), Ragged.of(tokens), torch.tensor(ended), {})


def test_what_was_written_is_the_same_text_in_both_vocabularies() -> None:
    """Completions of the teacher's that are cut inside a letter, or ended by a token that only its model knows as an end: the student
    would be taught a letter that nobody wrote, never to stop, or be met by rows of other text."""
    mine, theirs = byte_level(300), byte_level(420)
    crossing = Crossing(mine, theirs)
    part = split(["b0", "m1", "t2"])
    moon, mark = theirs.encode("the moon ☃"), theirs.convert_tokens_to_ids("<mark>")
    word = theirs.encode("the walker")
    found = Vocabularies(mine, theirs, crossing).completions(
        part, written_in(theirs, moon[:-1], [*word, 0], [*word, mark], ended=[False, True, True])
    )
    assert [mine.decode(tokens) for tokens in found.completions] == [
        "the moon ",
        "the walker<eos>",
        "the walker<eos>",
    ]
    own = found.completions_of("teacher")
    assert [tokens.tolist() for tokens in own] == [moon[:-1], [*word, 0], [*word, 0]]
    for student, teacher in zip(found.completions, own, strict=True):
        assert crossing.steps(student, teacher)
    assert found.teacher_prompts is not None
    plain = Vocabularies(mine, theirs).completions(part.first(1), written_in(theirs, moon[:-1], ended=[False]))
    assert mine.decode(plain.completions[0]) == "the moon "


def test_a_text_that_the_student_would_change_is_refused() -> None:
    """A tokenizer that composes accents passes every other look, and from the first accent on rows would meet other text's rows."""
    composing = byte_level(300)
    composing.backend_tokenizer.normalizer = normalizers.NFC()
    theirs = byte_level(420)
    both = Vocabularies(composing, theirs, Crossing(composing, theirs))
    written = written_in(theirs, [*theirs.encode("cafe\u0301"), 0], ended=[True])
    with pytest.raises(DataError, match="the completion of example 0 is not the same text"):
        both.completions(split(["b0"]), written)


def test_a_digest_is_of_both_vocabularies_and_their_ends() -> None:
    """One that left the teacher's out would let two readings of its numbers share a store."""
    mine, theirs = byte_level(300), byte_level(420)
    known = [
        Crossing(mine, theirs),
        Crossing(mine, mine),
        Crossing(theirs, theirs),
        Crossing(mine, theirs, student_ends=[1]),
        Crossing(mine, theirs, teacher_ends=[1]),
    ]
    assert len({crossing.digest for crossing in known}) == len(known)
    assert Crossing(byte_level(300), byte_level(420)).digest == known[0].digest


def test_a_probe_of_two_vocabularies_ends_in_both() -> None:
    """The student's number of its end is another token of the teacher's: the first look would fail where the study would not."""
    mine, theirs = byte_level(300), byte_level(420)
    crossing = Crossing(mine, theirs, teacher_ends=[1])
    probe = probe_of(split(["b0", "m1"], completed=False), 7, Vocabularies(mine, theirs, crossing))
    assert isinstance(probe.inputs, Completions)
    assert probe.inputs.completions.lists() == [[0], [0]]
    assert probe.inputs.completions_of("teacher").lists() == [[1], [1]]


def test_an_arm_is_shown_the_prompt_that_it_asks_for() -> None:
    """The student that is shown the teacher's prompt must see just that, and be told by the same ids, under which labels are kept."""
    given = data()
    assert given.train.set is not None
    lessons = Lessons(given, {"data": given.train.set})
    own, full = lessons.shown("data", "student"), lessons.shown("data", "teacher")
    assert own is given.train.set
    assert torch.equal(full.ids, own.ids)
    first: Any = full.batch(torch.arange(1))
    assert read(first["student"]["input_ids"][0].tolist(), VOCABULARY) == "sort : b0 a beast"
    assert "teacher" not in first
    assert read(own.batch(torch.arange(1))["student"]["input_ids"][0].tolist(), VOCABULARY) == "b0 a beast"


def test_models_are_tried_before_anything_is_written() -> None:
    """Prompts alone make no rows: what does not fit would show after the teacher has written for hours."""
    probe = probe_of(split(["b0", "m1", "t2", "b3", "b4"], completed=False), 1, Vocabularies(tokenizer()))
    assert len(probe) == 4
    assert probe.known_labels[:, 0].tolist() == [1] * 4
    whole = split(["b0", "m1"])
    assert torch.equal(probe_of(whole, 1, Vocabularies(tokenizer())).ids, whole.set.ids)  # pyright: ignore[reportOptionalMemberAccess]


def test_a_split_holds_one_of_each_an_example() -> None:
    """A row too few would score every later example by its neighbour's answer."""
    part = split(["b0", "m1"])
    with pytest.raises(DataError, match=r"1 rows, 2 prompts"):
        Split(part.set, part.rows[:1], part.prompts)
    with pytest.raises(DataError, match="prompts and completions"):
        Split(TransferSet(torch.zeros(2, 3)), part.rows, part.prompts)
    first = part.first(1)
    assert (len(first), len(first.rows), first.references) == (1, 1, ["beast"])
    assert isinstance(first.completions, Completions)
