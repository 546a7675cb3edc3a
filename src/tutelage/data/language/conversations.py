"""Rows read as examples: what stands before the answer, and the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, cast

from tutelage.data.language.templates import Row, columns_near
from tutelage.errors import DataError

#: A turn of a chat, as chat templates take it.
Message = dict[str, Any]
#: A completion that a model has written: its tokens, or a text.
Written = Sequence[int] | str
#: Which of the assistant's turns are learnt: the last alone, or each after the turns before it.
Turns = Literal["last", "all"]


@dataclass(frozen=True)
class Columns:
    """The names of the columns that are read, the first that is there and not null: ``messages``, else ``prompt`` with
    ``completion``, else ``text``."""

    messages: str = "messages"
    prompt: str = "prompt"
    completion: str = "completion"
    text: str = "text"


@dataclass(frozen=True)
class Example:
    """One answer and what stands before it.

    ``prompt``: turns, or a text (empty where the row has none) · ``answer``: a turn, a text, or None where it is not
    needed · ``whole``: the answer is the row's plain ``text`` · ``tokens`` or ``written``: what a model has written in place of the
    answer, in tokens or as a text.
    """

    row: Row
    index: int
    prompt: list[Message] | str
    answer: Message | str | None
    whole: bool = False
    tokens: Sequence[int] | None = None
    written: str | None = None

    @property
    def said(self) -> Message | str | None:
        """What is to be learnt, where it is not in tokens already."""
        return self.answer if self.written is None else self.written

    @property
    def blank(self) -> bool:
        """Whether there is an answer with nothing in it."""
        if self.tokens is not None:
            return not self.tokens
        said = self.said
        if isinstance(said, str):
            return not said.strip()
        return said is not None and not (said["content"].strip() or said.get("tool_calls"))

    @property
    def reference(self) -> str | None:
        """The row's own answer as a text, if it is one."""
        content = self.answer.get("content") if isinstance(self.answer, dict) else self.answer
        return content if isinstance(content, str) else None


def examples_of(
    row: Row,
    index: int,
    columns: Columns,
    *,
    turns: Turns = "last",
    needs_answer: bool = True,
    needs_prompt: bool = True,
) -> list[Example]:
    """The examples of a row: one, or with ``turns="all"`` one for each turn of the assistant's.

    Args:
        row: the columns by name.
        index: which row, for messages.
        columns: the names to look for.
        turns: which of the assistant's turns are answers.
        needs_answer: refuse a row without an answer; else it is left out where there is none.
        needs_prompt: read the row's prompt; without it, and without a need of an answer, a row may be of any columns.

    Raises:
        DataError: a missing column, another kind of value, turns in no order.
    """
    if row.get(columns.messages) is not None:
        return _of_messages(row, index, columns, turns, needs_answer)
    prompt = row.get(columns.prompt) if needs_prompt else None
    if row.get(columns.completion) is not None or prompt is not None:
        before = _prompt(prompt, index, columns.prompt)
        answer = _answer(row.get(columns.completion), index, columns.completion)
        if answer is None and needs_answer:
            raise _missing(row, index, columns.completion, "a prompt without its completion")
        return [Example(row, index, before, answer)]
    if row.get(columns.text) is not None and (needs_answer or needs_prompt):
        return [Example(row, index, "", _text(row[columns.text], index, columns.text), whole=True)]
    if needs_answer:
        raise _missing(row, index, columns.completion, f"neither {columns.messages!r} nor {columns.text!r} either")
    if needs_prompt:
        raise _missing(row, index, columns.prompt, f"no {columns.messages!r} either, and the view gives no prompt")
    return [Example(row, index, "", None)]


def _of_messages(row: Row, index: int, columns: Columns, turns: Turns, needs_answer: bool) -> list[Example]:
    messages = read_turns(row[columns.messages], index, columns.messages)
    answers = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    if turns == "all" and needs_answer and answers:
        return [Example(row, index, messages[:place], messages[place]) for place in answers]
    if messages and messages[-1]["role"] == "assistant":
        return [Example(row, index, messages[:-1], messages[-1])]
    if needs_answer:
        what = "ends with a turn of " + repr(messages[-1]["role"]) if answers else "has no turn of the assistant's"
        raise DataError(
            f"column {columns.messages!r}, row {index}: the chat {what}: there is no answer to learn; end it with the assistant's "
            "turn, drop the row, or let the teacher write the completions (completions: teacher)"
        )
    return [Example(row, index, messages, None)]


def read_turns(value: Any, index: int, column: str = "prompt") -> list[Message]:
    """Turns of a chat, checked: roles and contents, the system's first, the user's and the assistant's in turn.

    Raises:
        DataError: no turns, other kinds of values, an order that a chat cannot have.
    """
    where = f"column {column!r}, row {index}"
    if isinstance(value, Mapping):  # `datasets` keeps a sequence of structures as a structure of sequences
        columns = cast("Mapping[str, Any]", value)
        if not all(isinstance(part, Sequence) and not isinstance(part, str) for part in columns.values()):
            raise DataError(f"{where} holds one turn, expected a list of turns")
        value = [dict(zip(columns, parts, strict=True)) for parts in zip(*columns.values(), strict=True)]
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise DataError(
            f"{where} holds a {type(value).__name__}, expected a list of turns such as "
            '[{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]'
        )
    turns: list[Message] = []
    for place, message in enumerate(cast("Sequence[Any]", value)):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            keys = ", ".join(map(str, message)) if isinstance(message, Mapping) else type(message).__name__
            raise DataError(
                f"{where}: turn {place} has {keys or 'nothing'}, expected the keys role and content: whose turn it is would not be known"
            )
        # nulls are what a table puts where a turn has no such key; a chat template would write them out
        turn = {str(key): part for key, part in message.items() if part is not None}
        if "content" not in turn and not turn.get("tool_calls"):
            raise DataError(
                f"{where}: turn {place}, of role {turn['role']!r}, has no content; fill it in, or drop the row"
            )
        turn["content"] = _content(turn.get("content", ""), where, place)
        turns.append(turn)
    _check_order(turns, where)
    return turns


def _content(content: Any, where: str, place: int) -> str:
    """A turn's text; parts of text are put together, as not every chat template does by itself."""
    if isinstance(content, str):
        return content
    parts: list[Any] = list(cast("Sequence[Any]", content)) if isinstance(content, Sequence) else [content]
    texts = [part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise DataError(
            f"{where}: the content of turn {place} is a {type(content).__name__} with something other than text in it: a chat template "
            "would leave it out, or write it as Python does; give texts"
        )
    return "".join(map(str, texts))


def _check_order(turns: list[Message], where: str) -> None:
    if not turns:
        raise DataError(f"{where} holds no turns; drop the row")
    roles = [turn["role"] for turn in turns]
    spoken = roles[1:] if roles[0] == "system" else roles
    if "system" in spoken:
        raise DataError(f"{where}: a system turn stands after another turn; chat templates take one, at the beginning")
    if spoken and spoken[0] != "user":
        raise DataError(
            f"{where}: the first turn is of role {spoken[0]!r}, expected 'user': nothing was asked before it"
        )
    for place, (role, after) in enumerate(pairwise(spoken), start=len(roles) - len(spoken)):
        if role == after and role in ("user", "assistant"):
            raise DataError(
                f"{where}: turns {place} and {place + 1} are both of role {role!r}: chat templates take them in turn, and many drop or "
                "refuse one of two; join them into one"
            )


def _prompt(value: Any, index: int, column: str) -> list[Message] | str:
    if value is None:
        return ""
    if isinstance(value, str) or not isinstance(value, Sequence | Mapping):
        return _text(value, index, column)
    turns = read_turns(value, index, column)
    if turns[-1]["role"] == "assistant":
        raise DataError(
            f"column {column!r}, row {index}: the prompt ends with a turn of the assistant's, and its answer would follow its own turn; "
            "put that turn in front of the completion, or give the whole chat as messages"
        )
    return turns


def _answer(value: Any, index: int, column: str) -> Message | str | None:
    """An answer is a text, or a turn of the assistant's, alone or in a list."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, Sequence) and len(cast("Sequence[Any]", value)) == 1:
        value = value[0]
    if isinstance(value, Mapping) and value.get("role") == "assistant":
        turn = {str(key): part for key, part in cast("Mapping[str, Any]", value).items() if part is not None}
        return {**turn, "content": _content(turn.get("content", ""), f"column {column!r}, row {index}", 0)}
    if isinstance(value, Sequence | Mapping):
        raise DataError(
            f"column {column!r}, row {index} holds a {type(value).__name__} that is not one turn of role 'assistant': give the answer "
            "as a text, or as that turn"
        )
    return _text(value, index, column)


def _text(value: Any, index: int, column: str) -> str:
    if not isinstance(value, str):
        raise DataError(
            f"column {column!r}, row {index} holds a {type(value).__name__} ({value!r:.40}), expected a text: written out, a number "
            "may be another text than is meant (3 or 3.0, a class or its name); make a text column of it"
        )
    return value


def _missing(row: Row, index: int, column: str, also: str) -> DataError:
    if column in row:
        return DataError(
            f"row {index}: column {column!r} is null ({also}); fill it in, or take the row out; of completions, an empty text ('') is left "
            f"out with drop_empty: true. The columns are {', '.join(row)}"
        )
    return DataError(
        f"row {index}: column {column!r} is not there ({also}); {columns_near(column, row)}. Name the columns of your data with messages, "
        "prompt, completion or text, or the view's templates"
    )
