"""What a view shows a model, and what it refuses to show it wrongly."""

from typing import Any

import pytest
from talkers import CHATML, talker

from tutelage.data.language import Encoded, PromptView, encode
from tutelage.errors import ConfigError, DataError

USER = {"role": "user", "content": "x"}
ANSWER = {"role": "assistant", "content": "y"}


def encoded(
    row: dict[str, Any], view: PromptView | None = None, template: str | None = CHATML, **given: Any
) -> Encoded:
    return encode(
        [{"text": "fine"}, row] if given.pop("second", False) else [row],
        student=view or PromptView(),
        student_tokenizer=talker(template),
        max_length=512,
        **given,
    )


def prompt(view: PromptView, template: str | None = CHATML, **row: Any) -> str:
    found = encoded({"completion": "y", **row}, view, template)
    return str(talker(template).decode(found.prompts[0], clean_up_tokenization_spaces=False))


def test_templates_write_columns_as_they_are() -> None:
    """Escaped for a web page, stripped, or with a line end lost, a prompt is another than was written."""
    view = PromptView(text="{{ a }} & <{{ row['the b'] }}>\n{% for c in cs %}\n- {{ c }}\n{% endfor %}\nanswer: \n")
    row: dict[str, Any] = {"the b": False}
    found = prompt(view, a=" 'é' ", cs=["one", 2, 0.5], **row)
    assert found == " 'é'  & <False>\n- one\n- 2\n- 0.5\nanswer: \n"


def test_a_column_called_row_hides_the_row() -> None:
    """The name of the whole row may not take a column's place."""
    assert prompt(PromptView(text="{{ row }}:"), row="a column") == "a column:"


@pytest.mark.parametrize(
    ("template", "row", "message"),
    [
        ("{{ glos }}", {"gloss": "a"}, r"views.student.text, row 0: 'glos' is undefined; did you mean 'gloss'\?"),
        ("{{ gloss }}", {"gloss": None}, r"row 0: a column that the template writes is null, and the model would read"),
        ("{{ gloss }}", {"gloss": float("nan")}, "row 0: a column that the template writes is NaN"),
        ("{{ gloss.a.b }}", {"gloss": {}}, r"row 0: 'dict object' has no attribute 'a'"),
        ("{{ 1 // n }}", {"n": 0}, "row 0: the template cannot be filled in: ZeroDivisionError"),
        ("{{ gloss.__class__.__mro__ }}", {"gloss": "a"}, "row 0"),
        ("{{ ids.append(3) }}", {"ids": [1]}, "row 0: the template cannot be filled in: SecurityError"),
    ],
)
def test_a_template_that_cannot_be_filled_in_names_the_row(template: str, row: dict[str, Any], message: str) -> None:
    """An empty place in a prompt, or the word None, is seen by the model alone; and a config may not run code."""
    with pytest.raises(DataError, match=message):
        prompt(PromptView(text=template), **row)


@pytest.mark.parametrize(
    ("view", "message"),
    [
        ({"text": "a", "user": "b"}, "both text and user"),
        ({"text": "a", "system": ""}, "both text and system"),
        ({"text": "a", "chat": True}, "both text and chat: true"),
        ({"chat": False, "tools": [{"name": "f"}]}, "chat: false and tools"),
        ({"chat": False, "shots": [{"user": "a", "assistant": "b"}]}, "chat: false and shots"),
        ({"shots": [{"user": "a", "answer": "b"}]}, r"shots\[0\] has the keys user, answer"),
        ({"user": "{{ gloss }"}, "user, line 1: .*braces"),
        ({"user": "a\n{% if %}"}, "user, line 2"),
        ({"system": 3}, "system is a int, expected a text"),
        ({"shots": [{"user": "a", "assistant": "{% %}"}]}, r"shots\[0\].assistant, line 1"),
    ],
)
def test_views_that_contradict_themselves_are_refused(view: dict[str, Any], message: str) -> None:
    """One of two contradicting keys would be left out in silence."""
    with pytest.raises(ConfigError, match=message):
        PromptView(**view)


def test_a_chat_needs_a_template() -> None:
    """Turns joined somehow are a chat that the model has never seen."""
    with pytest.raises(
        ConfigError, match=r"student's tokenizer has no chat template: .*views.student.text .*chat_template"
    ):
        encoded({"messages": [USER, ANSWER]}, template=None)
    assert encoded({"prompt": "x", "completion": "y"}, template=None).counts.examples == 1


def test_a_text_in_a_chat_is_the_users_turn() -> None:
    """A prompt written as a text is asked as one where the view wants a chat."""
    expected = "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n"
    assert prompt(PromptView(chat=True), prompt="x") == expected
    assert prompt(PromptView(system="s"), prompt="x") == "<|im_start|>system\ns<|im_end|>\n" + expected
    assert prompt(PromptView(chat=True), prompt=[USER]) == expected


@pytest.mark.parametrize(
    ("row", "view", "message"),
    [
        ({"messages": [USER, ANSWER]}, {"chat": False}, "row holds messages, and chat: false"),
        ({"text": "a"}, {"system": "s"}, "row holds no question, only a text"),
        ({"text": "the fox"}, {"user": "say {{ text }}"}, "row 0: the prompt already holds the row's text"),
    ],
)
def test_a_row_that_does_not_fit_its_view_is_refused(row: dict[str, Any], view: dict[str, Any], message: str) -> None:
    """Turns would run together; a chat would begin with an answer; a question would be learnt as its own answer."""
    with pytest.raises(DataError, match=message):
        encoded(row, PromptView(**view))


TOOLS = [{"type": "function", "function": {"name": "weather", "description": "of a place", "parameters": {}}}]
WITH_TOOLS = "{% if tools %}{{ 'tools: ' + tools[0].function.name + '\n' }}{% endif %}" + CHATML


def test_tools_go_to_the_chat_template() -> None:
    """A teacher without its tools answers another question."""
    assert prompt(PromptView(tools=TOOLS), WITH_TOOLS, prompt="x").startswith("tools: weather\n<|im_start|>user")


@pytest.mark.parametrize(
    ("view", "template", "message"),
    [
        ({"tools": TOOLS}, CHATML, "does not write tools"),
        (
            {"system": "s"},
            CHATML.replace("{{ '<|im_s", "{% if message['role'] != 'system' %}{{ '<|im_s", 1).replace(
                "{% endfor", "{% endif %}{% endfor", 1
            ),
            "does not write a system turn",
        ),
        ({"chat": True, "template_options": {"enable_thinkin": False}}, CHATML, "knows no enable_thinkin"),
    ],
)
def test_what_a_chat_template_leaves_out_in_silence_is_refused(
    view: dict[str, Any], template: str, message: str
) -> None:
    """The instruction that shall be folded into the weights would never have been seen by the teacher."""
    with pytest.raises(ConfigError, match=message):
        prompt(PromptView(**view), template, prompt="x")


def test_a_system_turn_left_out_is_seen_in_whichever_row_has_one() -> None:
    """Looked for in the first row alone, the others' instructions would be lost."""
    template = "{% for m in messages if m.role != 'system' %}{{ m.role + ':' + m.content + '<|im_end|>' }}{% endfor %}"
    rows = [{"messages": [USER, ANSWER]}, {"messages": [{"role": "system", "content": "s"}, USER, ANSWER]}]
    with pytest.raises(ConfigError, match=r"row 1: .* does not write a system turn"):
        encode(rows, student=PromptView(), student_tokenizer=talker(template), max_length=99)


def test_options_reach_the_chat_template() -> None:
    """A model that thinks aloud would be taught to, or not to, against the user's word."""
    template = CHATML.replace("assistant\n' }}{% endif %}", "assistant\n' + ('' if think else '(no)') }}{% endif %}")
    view = PromptView(chat=True, template_options={"think": True})
    assert prompt(view, template, prompt="x").endswith("assistant\n")


def test_a_template_that_raises_names_the_row_and_its_words() -> None:
    """What a template does not take ends in a traceback out of it."""
    template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(
        DataError, match=r"row 0: .* refuses the turns system, user: System role not supported\. Put what"
    ):
        prompt(PromptView(system="s"), template, prompt="x")


def test_a_prompt_that_is_no_beginning_of_the_chat_is_refused() -> None:
    """The student would be taught after one prompt and asked with another."""
    template = CHATML.replace("assistant\n' }}{% endif %}", "assistant\n<think>' }}{% endif %}")
    with pytest.raises(
        DataError, match=r"row 0: .* otherwise than the same prompt with its answer: from character \d+ on, .*think"
    ):
        prompt(PromptView(chat=True), template, prompt="x")


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([USER], r"row 0: the chat has no turn of the assistant's"),
        ([USER, ANSWER, USER], r"row 0: the chat ends with a turn of 'user'"),
        ([USER, USER, ANSWER], r"turns 0 and 1 are both of role 'user'"),
        ([{"role": "system", "content": "s"}, USER, ANSWER, ANSWER], r"turns 2 and 3 are both of role 'assistant'"),
        ([ANSWER, USER, ANSWER], "the first turn is of role 'assistant'"),
        ([USER, {"role": "system", "content": "s"}, ANSWER], "a system turn stands after another"),
        ([], "holds no turns"),
        ("user: x", "holds a str, expected a list of turns"),
        ([{"from": "human", "value": "x"}], r"turn 0 has from, value, expected the keys role and content"),
        ([{"role": "user"}], "turn 0, of role 'user', has no content"),
        ([{"role": "user", "content": 3}, ANSWER], "the content of turn 0 is a int"),
        ([{"role": "user", "content": [{"type": "image"}]}, ANSWER], "the content of turn 0 is a list"),
        ({"role": "user", "content": "x"}, "holds one turn"),
    ],
)
def test_turns_in_no_order_are_refused(messages: Any, message: str) -> None:
    """Many templates drop or join what they do not expect, and nobody reads what they write."""
    with pytest.raises(DataError, match=message):
        encoded({"messages": messages})


def test_turns_as_tables_keep_them() -> None:
    """Nulls where a turn has no such key, parts of texts, a structure of lists: all are the chat that was meant."""
    shapes: list[Any] = [
        [{**USER, "tool_calls": None}, {**ANSWER, "name": None}],
        [{"role": "user", "content": [{"type": "text", "text": "x"}]}, ANSWER],
        {"role": ["user", "assistant"], "content": ["x", "y"]},
    ]
    found = [encoded({"messages": shape}) for shape in shapes]
    assert len({str((one.prompts.lists(), one.references)) for one in found}) == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"prompt": "x"},
            r"row 1: column 'completion' is not there \(a prompt without its completion\); the columns are prompt",
        ),
        ({"prompt": "x", "completion": None}, r"row 1: column 'completion' is null \((?!.*did you mean).*drop_empty"),
        ({"prompt": "x", "completions": "y"}, "did you mean 'completion'|did you mean 'completions'"),
        ({"question": "x"}, r"row 1: column 'completion' is not there \(neither 'messages' nor 'text' either\)"),
        ({"prompt": "x", "completion": 3.0}, r"column 'completion', row 1 holds a float \(3.0\)"),
        ({"prompt": 3, "completion": "y"}, r"column 'prompt', row 1 holds a int \(3\)"),
        ({"text": ["a"]}, "column 'text', row 1 holds a list"),
        ({"prompt": "x", "completion": [USER, ANSWER]}, "not one turn of role 'assistant'"),
        ({"prompt": [USER, ANSWER], "completion": "y"}, "row 1: the prompt ends with a turn of the assistant's"),
        ({"prompt": "x", "completion": "\ud83d"}, "the completion, row 1: character 0 is half of a surrogate pair"),
        ({"prompt": "\ud83d", "completion": "x"}, "views.student, row 1: character 0 is half"),
    ],
)
def test_rows_without_what_is_needed_are_refused(row: dict[str, Any], message: str) -> None:
    """A number is not the text that was meant (3 or 3.0), and a missing column is not an empty one."""
    with pytest.raises(DataError, match=message):
        encoded(row, second=True)


def test_prompts_alone_need_a_prompt() -> None:
    """A model would be asked nothing, and what it says about nothing be kept."""
    with pytest.raises(
        DataError, match=r"row 0: column 'prompt' is not there \(no 'messages' either, and the view gives no prompt\)"
    ):
        encoded({"gloss": "x"}, needs_completion=False)
    found = encoded({"gloss": "x", "prompt": 3, "text": 4}, PromptView(text="{{ gloss }}"), needs_completion=False)
    assert found.references is None
    assert encoded({"text": "x"}, needs_completion=False).prompts.lists() == [[talker().bos_token_id]]


def test_an_answer_as_a_turn_of_its_own() -> None:
    """The conversational form of prompt and completion, as other libraries write it."""
    for answer in (ANSWER, [ANSWER], {**ANSWER, "content": [{"type": "text", "text": "y"}]}, "y"):
        assert encoded({"prompt": [USER], "completion": answer}).references == ["y"]


def test_a_call_can_only_be_written_by_a_chat_template() -> None:
    """Without one, the student would be taught an empty answer."""
    call = {"role": "assistant", "tool_calls": [{"name": "f"}]}
    with pytest.raises(DataError, match="row 0: the answer calls a tool"):
        encoded({"messages": [USER, call]}, PromptView(text="x:"))
