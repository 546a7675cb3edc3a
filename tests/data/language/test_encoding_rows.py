"""Prompts and completions in tokens: what is supervised, after what, and nothing else."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from talkers import BRACKETS, CHATML, WITH_DEFAULT, pieces, talker
from transformers import PreTrainedTokenizerBase

from tutelage import TransferSet
from tutelage.data import rows_of
from tutelage.data.language import Columns, Encoded, PromptView, encode
from tutelage.errors import ConfigError, DataError
from tutelage.ragged import Ragged

BARE = PromptView()
ASKED = {"prompt": "which animal is it?", "completion": "a dog"}
CHAT = {
    "messages": [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
        {"role": "assistant", "content": "the cat"},
    ]
}


def encoded(rows: list[dict[str, Any]], student: PromptView = BARE, **given: Any) -> Encoded:
    tokenizer = given.pop("tokenizer", None) or talker()
    options: dict[str, Any] = {"max_length": 512, **given}
    return encode(rows, student=student, student_tokenizer=tokenizer, **options)


def texts(tokenizer: PreTrainedTokenizerBase, tokens: Ragged | None) -> list[str]:
    assert tokens is not None
    return [str(tokenizer.decode(sequence, clean_up_tokenization_spaces=False)) for sequence in tokens]


def said(found: Encoded, tokenizer: PreTrainedTokenizerBase | None = None) -> list[tuple[str, str]]:
    """Each prompt and completion as texts."""
    assert found.completions is not None
    tokenizer = tokenizer or talker()
    return list(zip(texts(tokenizer, found.prompts), texts(tokenizer, found.completions.completions), strict=True))


def test_a_plain_prompt_and_its_completion_with_the_end() -> None:
    """Without the end the student never learns to stop; with more than the completion it learns its prompts."""
    assert said(encoded([ASKED])) == [("which animal is it?", "a dog<|im_end|>")]
    assert said(encoded([{**ASKED, "completion": "a dog<|im_end|>"}]))[0][1] == "a dog<|im_end|>"


def test_the_end_is_supervised_though_it_is_also_the_padding() -> None:
    """Masked by its number, as pad, the end would never be learnt (pad = eos)."""
    tokenizer = talker()
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    found = encoded([ASKED, {**ASKED, "completion": "a small round fruit"}])
    assert found.completions is not None
    rows = rows_of(TransferSet.of_completions(found.completions).batch(torch.arange(2)))
    assert rows["labels"].tolist().count(tokenizer.eos_token_id) == 2
    assert len(rows["labels"]) == found.counts.tokens == len(found.completions.completions.values)


def test_a_chats_prompt_and_answer_are_the_templates_own() -> None:
    """A chat joined in another way is one the model has never seen; what follows the end of the turn is the template's to write."""
    start = "<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\ntwo<|im_end|>\n<|im_start|>user\nthree<|im_end|>\n"
    assert said(encoded([CHAT])) == [(start + "<|im_start|>assistant\n", "the cat<|im_end|>")]


def test_each_of_the_assistants_turns_where_all_are_wanted() -> None:
    """Three quarters of a chat's answers would otherwise teach nothing."""
    found = encoded([CHAT, ASKED | {"prompt": [{"role": "user", "content": "x"}]}], turns="all")
    start = "<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\n"
    assert said(found)[0] == (start, "two<|im_end|>")
    assert [answer for _, answer in said(found)] == ["two<|im_end|>", "the cat<|im_end|>", "a dog<|im_end|>"]
    assert found.sources == [0, 0, 1]
    assert found.references == ["two", "the cat", "a dog"]


def test_two_views_of_one_completion() -> None:
    """The heart of context distillation: one completion, the teacher's prompt with all that the student shall do without."""
    teacher = PromptView(
        user="{{ gloss }}",
        system="answer in {{ words }} word",
        shots=[{"user": "a pear", "assistant": "fruit"}],
    )
    row = {"gloss": "a fox", "words": "one", "completion": "animal"}
    found = encoded([row], PromptView(user="{{ gloss }}"), teacher=teacher)
    assert said(found) == [
        ("<|im_start|>user\na fox<|im_end|>\n<|im_start|>assistant\n", "animal<|im_end|>"),
    ]
    assert texts(talker(), found.teacher_prompts) == [
        "<|im_start|>system\nanswer in one word<|im_end|>\n<|im_start|>user\na pear<|im_end|>\n<|im_start|>assistant\nfruit<|im_end|>\n"
        "<|im_start|>user\na fox<|im_end|>\n<|im_start|>assistant\n"
    ]
    assert found.completions is not None
    assert found.completions.teacher_completions is None
    assert found.counts.teacher_prompt_tokens > found.counts.prompt_tokens == len(found.prompts.values)


def test_a_views_system_turn_takes_the_place_of_the_rows_own() -> None:
    """Two system turns are one too many for most templates, and the row's would contradict the view's."""
    row = {"messages": [{"role": "system", "content": "old"}, *CHAT["messages"][2:]]}
    found = encoded([row], PromptView(system="new"), teacher=BARE)
    assert said(found)[0][0].startswith("<|im_start|>system\nnew<|im_end|>\n<|im_start|>user\nthree")
    assert texts(talker(), found.teacher_prompts)[0].startswith("<|im_start|>system\nold<|im_end|>\n<|im_start|>user")


def test_a_template_that_writes_a_system_turn_of_its_own() -> None:
    """The student is asked with it when it is deployed, so it has to be there when it is taught; an empty one takes its place."""
    row = {"prompt": [{"role": "user", "content": "x"}], "completion": "y"}
    tokenizer = talker(WITH_DEFAULT)
    assert said(encoded([row], tokenizer=tokenizer))[0][0].startswith("<|im_start|>system\nBe kind.<|im_end|>\n")
    empty = encoded([row], PromptView(system=""), tokenizer=tokenizer)
    assert said(empty)[0][0].startswith("<|im_start|>system\n<|im_end|>\n<|im_start|>user\nx")


@pytest.mark.parametrize("view", [BARE, PromptView(chat=True)])
def test_one_bos_whoever_writes_it(view: PromptView) -> None:
    """Doubled by template and tokenizer, it is a text that the model has never seen (and every number is a little worse)."""
    tokenizer = pieces()
    prompt = encoded([ASKED], view, tokenizer=tokenizer).prompts[0].tolist()
    assert prompt[0] == tokenizer.bos_token_id
    assert prompt.count(tokenizer.bos_token_id) == 1
    assert tokenizer.eos_token_id not in prompt
    written = encoded([ASKED], PromptView(text="<s>{{ prompt }}"), tokenizer=tokenizer).prompts[0].tolist()
    assert written.count(tokenizer.bos_token_id) == 1


def test_an_answer_that_begins_with_the_templates_space() -> None:
    """Cut alone, the answer would have another first token than the one that the model writes after its prompt."""
    tokenizer = pieces()
    found = encoded([ASKED], PromptView(chat=True), tokenizer=tokenizer)
    assert found.completions is not None
    whole = tokenizer("<s>[INST] which animal is it? [/INST] a dog</s>", add_special_tokens=False)["input_ids"]
    assert [*found.prompts[0].tolist(), *found.completions.completions[0].tolist()] == whole


@pytest.mark.parametrize("tokenizer", [talker(), pieces(), pieces(scheme="always")], ids=["bytes", "pieces", "always"])
@pytest.mark.parametrize(
    ("before", "after"), [("the do", "g sat"), ("the dog", " sat"), ("the\n", "cat"), ("x", "é🙂")]
)
def test_a_completion_that_goes_on_in_the_middle_of_a_word(
    tokenizer: PreTrainedTokenizerBase, before: str, after: str
) -> None:
    """A token across the border could not be written after the prompt's tokens, and a space put before the completion would be
    learnt as part of it."""
    found = encoded([{"prompt": before, "completion": after}], tokenizer=tokenizer)
    assert found.completions is not None
    alone = encoded([{"prompt": before, "completion": "x"}], tokenizer=tokenizer)
    assert found.prompts.lists() == alone.prompts.lists()
    both = [*found.prompts[0].tolist(), *found.completions.completions[0].tolist()]
    assert tokenizer.decode(both, skip_special_tokens=True, clean_up_tokenization_spaces=False) == before + after


@pytest.mark.parametrize(
    "template", [CHATML, WITH_DEFAULT, CHATML.replace("<|im_end|>\n'", "<|im_end|>\n<|endoftext|>'")]
)
@given(
    prompt=st.text(max_size=30),
    system=st.text(max_size=20),
    answer=st.text(min_size=1, max_size=40).filter(lambda text: bool(text.strip())),
)
@settings(max_examples=60, deadline=None)
def test_whatever_is_asked_the_completion_is_the_answer_and_its_end(
    template: str, prompt: str, system: str, answer: str
) -> None:
    """A character lost, added, or taught that stands in the prompt: in any of a thousand texts, unseen."""
    tokenizer = talker(template)
    row = {"q": prompt, "s": system, "completion": answer}
    view = PromptView(user="{{ q }}")
    found = encoded([row], view, teacher=PromptView(user="{{ q }}", system="{{ s }}"), tokenizer=tokenizer)
    (asked, written) = said(found, tokenizer)[0]
    assert written == answer + "<|im_end|>"
    assert asked.endswith(f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n") or "endoftext" in template
    plain = encoded([{"prompt": prompt + ":", "completion": answer}], tokenizer=tokenizer)
    assert said(plain, tokenizer) == [(prompt + ":", answer + "<|im_end|>")]


@given(
    rows=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 40)), min_size=1, max_size=6), room=st.integers(32, 60)
)
@settings(max_examples=40, deadline=None)
def test_what_is_cut_off_is_counted_and_has_no_end(rows: list[tuple[int, int]], room: int) -> None:
    """A completion cut off that ended all the same would teach to stop in the middle; one not counted would be missed by no one."""
    tokenizer = talker()
    given = [{"prompt": "1" * asked, "completion": "2" * answered} for asked, answered in rows]
    found = encoded(given, max_length=room, teacher=PromptView(text="1{{ prompt }}"))
    assert found.completions is not None
    assert found.teacher_prompts is not None
    lost = 0
    for (asked, answered), seen, answer in zip(rows, found.teacher_prompts, found.completions.completions, strict=True):
        lost += max(0, asked + 1 + answered + 1 - room)
        assert len(seen) + len(answer) == min(asked + answered + 2, room)
        assert (int(answer[-1]) == tokenizer.eos_token_id) is (asked + answered + 2 <= room)
    assert found.counts.cut_tokens == lost
    assert found.counts.cut == sum(asked + answered + 2 > room for asked, answered in rows)
    assert found.counts.tokens == sum(answered + 1 for _, answered in rows) - lost


def test_a_prompt_that_leaves_no_room_is_refused_or_left_out() -> None:
    """Cut off at the front or the back, the prompt would ask something else, and nobody would see it."""
    rows = [ASKED, {"prompt": "1" * 40, "completion": "2"}, {"prompt": "1" * 60, "completion": "2"}]
    with pytest.raises(
        DataError, match=r"2 of 3 prompts .* max_length 30: the first is row 1 with 41 .* row 2 with 61 \(the teacher"
    ):
        encoded(rows, max_length=30, teacher=PromptView(text="1{{ prompt }}"))
    found = encoded(rows, max_length=30, teacher=PromptView(text="1{{ prompt }}"), drop_long=True)
    assert (found.sources, found.rows, found.counts.dropped_prompts) == ([0], [ASKED], 2)
    with pytest.raises(DataError, match=r"1 of 1 prompts .*shorten the view$"):
        encoded(rows[1:2], max_length=30, drop_long=True)


def test_empty_completions_are_refused_with_their_row_or_left_out_and_counted() -> None:
    """The student would be taught to say nothing."""
    rows = [ASKED, {**ASKED, "completion": " \n"}, {**ASKED, "completion": ""}]
    with pytest.raises(DataError, match=r"2 of 3 completions are empty, the first in row 1"):
        encoded(rows)
    found = encoded(rows, drop_empty=True)
    assert (found.sources, found.counts.dropped_empty) == ([0], 2)
    with pytest.raises(DataError, match="no example is left"):
        encoded(rows[1:], drop_empty=True)
    blank = {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": " "}]}
    with pytest.raises(DataError, match="row 0"):
        encoded([blank])


def test_a_plain_text_is_learnt_from_its_first_token_or_its_bos() -> None:
    """With nothing before it, no model can be asked for the first token; with a BOS that the tokenizer puts there, it can."""
    rows = [{"text": "the cat sat"}]
    without = encoded(rows)
    assert without.completions is not None
    assert len(without.prompts[0]) == 1
    assert "".join(said(without)[0]) == "the cat sat<|im_end|>"
    tokenizer = pieces()
    found = encoded(rows, tokenizer=tokenizer)
    assert found.prompts.lists() == [[tokenizer.bos_token_id]]
    assert said(found, tokenizer)[0][1].strip() == "the cat sat</s>"
    with pytest.raises(DataError, match=r"row 0: nothing stands before its completion of one token"):
        encoded([{"prompt": "", "completion": "a"}], completions=[[5]])


@pytest.mark.parametrize("make", [talker, pieces])
@pytest.mark.parametrize("teacher", [None, PromptView(text="one two: ")])
def test_a_long_text_in_pieces_teaches_each_token_once(make: Any, teacher: PromptView | None) -> None:
    """Most of a corpus of long documents would be thrown away, or be taught twice where pieces overlap."""
    tokenizer = make()
    text = "the quick brown fox jumps over the lazy dog and the cat sat on the mat with a small round fruit " * 3
    rows = [{"text": text}]
    whole = encoded(rows, tokenizer=tokenizer, teacher=teacher)
    cut = encoded(rows, tokenizer=tokenizer, teacher=teacher, max_length=16, pack_text=True)
    assert whole.completions is not None
    assert cut.completions is not None
    answers = cut.completions.completions
    assert answers.values.tolist() == whole.completions.completions.values.tolist()
    assert (cut.counts.cut, set(cut.sources)) == (0, {0})
    assert cut.counts.examples == len(cut.rows) == len(answers) > 4
    moved = -1 if make is talker else None  # nothing stands before the text: its first token does
    for reader in ("student", "teacher"):
        base = whole.completions.prompts_of(reader)[0].tolist()[:moved]
        prompts = cut.completions.prompts_of(reader).lists()
        assert prompts[1:] == [[*base, answer[-1]] for answer in answers.lists()[:-1]]
        assert max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True)) <= 16
    left = encoded(rows, tokenizer=tokenizer, teacher=teacher, max_length=16)
    assert left.counts.cut == left.counts.examples == 1
    with pytest.raises(DataError, match="leaves no room for them in max_length 4"):
        encoded([{"text": "1" * 9}], PromptView(text="123"), max_length=4, pack_text=True, tokenizer=talker())


def test_prompts_alone_for_what_a_model_shall_write() -> None:
    """Rows without answers are what a teacher is asked about; an answer that is there may not stand in the prompt."""
    rows = [{"gloss": "a fox"}, {"gloss": "a pear", "completion": "food"}]
    view, taught = PromptView(text="{{ gloss }}:"), PromptView(text="which animal? {{ gloss }}:")
    found = encoded(rows, view, teacher=taught, needs_completion=False)
    assert found.completions is None
    assert texts(talker(), found.prompts) == ["a fox:", "a pear:"]
    assert found.references == ["", "food"]
    written = found.with_written(Ragged.of([[7, 1], [8, 1], [9, 1]]), torch.tensor([1, 1, 0]))
    assert texts(talker(), written.prompts_of("teacher")) == [
        "which animal? a pear:",
        "which animal? a pear:",
        "which animal? a fox:",
    ]
    chats = encoded([CHAT, {"messages": CHAT["messages"][:3]}], needs_completion=False)
    assert chats.prompts.lists()[0] == chats.prompts.lists()[1]


def test_written_completions_in_tokens_stay_as_they_are_and_texts_are_ended() -> None:
    """Ended once more, or cut anew into other tokens, they are no longer what the teacher has written and marked."""
    rows = [ASKED, CHAT]
    tokens = [[300, 301], [302, 1]]
    found = encoded(rows, completions=tokens)
    assert found.completions is not None
    assert found.completions.completions.lists() == tokens
    cut = encoded(rows[:1], completions=[[9] * 600], max_length=100)
    assert (cut.counts.cut, len(cut.prompts[0]) + cut.counts.tokens) == (1, 100)
    assert [answer for _, answer in said(encoded(rows, completions=["a fox", "a pear"]))] == [
        "a fox<|im_end|>",
        "a pear<|im_end|>",
    ]
    mixed = encoded([ASKED, CHAT], completions=[tokens[0], "a pear"])
    assert mixed.completions is not None
    assert mixed.completions.completions.lists()[0] == tokens[0], (
        "the row's own answer would be taken for the written one"
    )
    assert said(mixed)[1][1] == "a pear<|im_end|>"
    assert mixed.references == encoded(rows).references, "what is right does not change with what was written"
    with pytest.raises(DataError, match="1 written completions for 2 rows"):
        encoded(rows, completions=[[1]])
    with pytest.raises(DataError, match="empty, the first in row 1"):
        encoded(rows, completions=[[1], []])


def test_another_vocabulary_has_completions_of_its_own() -> None:
    """The student's numbers would be read as other words."""
    theirs = pieces(BRACKETS)
    found = encoded([ASKED], PromptView(chat=True), teacher_tokenizer=theirs)
    assert found.completions is not None
    assert found.completions.teacher_completions is not None
    assert said(found)[0][1] == "a dog<|im_end|>"
    assert texts(theirs, found.completions.prompts_of("teacher")) == ["<s>[INST] which animal is it? [/INST]"]
    assert texts(theirs, found.completions.completions_of("teacher")) == ["a dog</s>"]
    with pytest.raises(DataError, match="given in the student's tokens"):
        encoded([ASKED], teacher_tokenizer=theirs, completions=[[5, 6]])


def test_the_teachers_own_template_is_used_for_its_prompt() -> None:
    """The student's template around the teacher's prompt would ask it in a way that it was not taught."""
    theirs = talker(
        CHATML.replace("message['role'] + '\n'", "message['role'] + ': '").replace("assistant\n", "assistant: ")
    )
    found = encoded([ASKED], PromptView(chat=True), teacher_tokenizer=theirs)
    assert texts(theirs, found.teacher_prompts)[0].startswith("<|im_start|>user: which animal is it?<|im_end|>")
    assert found.completions is not None
    assert found.completions.teacher_completions is None


def test_a_teacher_that_sees_the_same_needs_no_prompts_of_its_own() -> None:
    """Two equal passes where one would do."""
    assert encoded([ASKED], teacher=BARE).teacher_prompts is None


def test_columns_of_other_names_and_nulls_among_them() -> None:
    """A table made of two has nulls where the other's columns are, and a null is no prompt."""
    rows = [
        {"q": "one", "a": "two", "messages": None, "text": None},
        {"q": None, "a": None, "messages": CHAT["messages"], "text": None},
        {"q": None, "a": None, "messages": None, "text": "the cat sat"},
    ]
    found = encoded(rows, columns=Columns(prompt="q", completion="a"))
    assert [answer for _, answer in said(found)] == ["two<|im_end|>", "the cat<|im_end|>", said(found)[2][1]]


def test_equal_rows_stay_two_examples_with_one_id() -> None:
    """Left out in silence, a row that stands ten times for its weight would count once."""
    found = encoded([ASKED, ASKED])
    assert found.completions is not None
    assert len(set(found.completions.ids().tolist())) == 1
    assert found.counts.examples == 2


def test_a_template_that_ends_the_text_behind_the_turn() -> None:
    """The model stops at the end of its turn; what is taught behind it is never asked for."""
    template = CHATML + "{% if not add_generation_prompt %}{{ '<|endoftext|>' }}{% endif %}"
    assert said(encoded([CHAT], tokenizer=talker(template)))[0][1] == "the cat<|im_end|>"


def test_a_call_that_ends_with_a_mark_of_its_own_is_ended_as_a_turn_is() -> None:
    """Cut at the first mark, a call would end without the end of its turn, and the model would go on writing."""
    template = CHATML.replace(
        "message['content'] +", "message['content'] + ('CALL<|endoftext|>' if message.tool_calls else '') +"
    )
    turn = {"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}
    row = {"messages": [{"role": "user", "content": "x"}, turn]}
    assert said(encoded([CHAT, row], tokenizer=talker(template)))[1][1] == "CALL<|endoftext|><|im_end|>"


def test_plain_rows_among_chats_do_not_decide_how_a_chat_ends() -> None:
    """The first row's end would be looked for in the others' turns, and what stands behind a turn be taught."""
    template = CHATML + "{% if not add_generation_prompt %}{{ '<|endoftext|>' }}{% endif %}"
    tokenizer = talker(template, eos_token="<|endoftext|>")
    assert [answer for _, answer in said(encoded([ASKED, CHAT], tokenizer=tokenizer))] == [
        "a dog<|endoftext|>",
        "the cat<|im_end|>",
    ]


def test_a_template_without_a_mark_at_the_end_is_given_the_eos() -> None:
    """The student would never learn to stop."""
    turns = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    template = turns + "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    assert said(encoded([CHAT], tokenizer=talker(template)))[0][1] == " the cat<|im_end|>"


def test_views_that_end_a_turn_differently_are_refused() -> None:
    """The teacher's belief that the text ends would be about another token, and the student be taught never to stop."""
    tokenizer = talker(eos_token="<|endoftext|>")
    with pytest.raises(
        ConfigError, match=r"'<\|endoftext\|>' in the student's view and with '<\|im_end\|>' in the teacher's"
    ):
        encoded([ASKED], teacher=PromptView(chat=True), tokenizer=tokenizer)


def test_a_tokenizer_without_an_end_is_refused() -> None:
    """Every completion would run on."""
    with pytest.raises(ConfigError, match="student's tokenizer has no EOS token"):
        encoded([ASKED], tokenizer=talker(eos_token=None, pad_token=None))


def test_max_length_and_turns_that_mean_nothing_are_refused() -> None:
    """A length of one leaves nothing to learn, and one prompt for all of a chat's answers is a riddle."""
    with pytest.raises(ConfigError, match="max_length is 1"):
        encoded([ASKED], max_length=1)
    with pytest.raises(ConfigError, match="turns is 'first'"):
        encoded([CHAT], turns="first")
    with pytest.raises(ConfigError, match="turns: all"):
        encoded([CHAT], PromptView(user="{{ messages[0].content }}"), turns="all")
