"""What each model is asked about an example: its own prompt, filled in from the row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tutelage.data.language.conversations import Example, Message
from tutelage.data.language.templates import check_template, fill
from tutelage.errors import ConfigError, DataError


@dataclass(frozen=True)
class PromptView:
    """What one model sees of an example before it answers.

    Templates are jinja2 over the row's columns, ``"{{ gloss }}"``. What a view leaves out comes from the row: its messages but for
    the answer, or its prompt.

    Args:
        user: template of the user's turn, in place of all that the row holds before the answer.
        system: template of the system turn, in place of the row's own. Without one, many chat templates write one of their own.
        text: template of a plain text that the model goes on with; no chat template.
        shots: worked examples between the system turn and the question, each ``{"user": …, "assistant": …}``, templates too.
        tools: what the model may call, JSON schemas as the chat template takes them.
        chat: whether the prompt goes through the tokenizer's chat template. None: messages and what is made of ``user``, ``system``,
            ``shots`` or ``tools`` do; a plain text does not.
        template_options: what the chat template is told besides, e.g. ``{"enable_thinking": False}``.

    Raises:
        ConfigError: keys that contradict one another, or a template that cannot be read.
    """

    user: str | None = None
    system: str | None = None
    text: str | None = None
    shots: Sequence[Mapping[str, str]] = ()
    tools: Sequence[Mapping[str, Any]] | None = None
    chat: bool | None = None
    template_options: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        turns = self.turns
        if self.text is not None and (turns or self.chat):
            with_it = ", ".join(turns or ["chat: true"])
            raise ConfigError(
                f"a view has both text and {with_it}: text is a plain prompt without turns, and they would be left out; put all into "
                "text, or the question into user"
            )
        if self.chat is False and turns:
            raise ConfigError(
                f"a view has chat: false and {', '.join(turns)}, which only a chat template can show; write the prompt out as text"
            )
        for index, shot in enumerate(self.shots):
            if set(shot) != {"user", "assistant"}:
                raise ConfigError(
                    f"shots[{index}] has the keys {', '.join(map(str, shot)) or 'none'}, expected user and assistant: a question and its "
                    "answer"
                )
        for name, template in self._templates():
            check_template(template, name)

    @property
    def turns(self) -> list[str]:
        """Which of its keys only a chat can show."""
        return [name for name in ("user", "system", "shots", "tools") if getattr(self, name) not in (None, (), [])]

    def _templates(self) -> list[tuple[str, str]]:
        own = [("user", self.user), ("system", self.system), ("text", self.text)]
        shots = [(f"shots[{index}].{key}", text) for index, shot in enumerate(self.shots) for key, text in shot.items()]
        return [(name, text) for name, text in [*own, *shots] if text is not None]


@dataclass(frozen=True)
class Asked:
    """A prompt as it goes to the tokenizer: turns for the chat template, or a plain text."""

    messages: list[Message] | None
    text: str = ""

    @property
    def chat(self) -> bool:
        """Whether it goes through the chat template."""
        return self.messages is not None


def ask(view: PromptView, example: Example, name: str) -> Asked:
    """What a model is asked about an example.

    Args:
        view: of the model.
        example: the row, read.
        name: whose view, for messages: ``student`` or ``teacher``.

    Raises:
        DataError: the view's templates cannot be filled in; neither they nor the row say what is asked.
    """

    def filled(template: str, key: str) -> str:
        return fill(template, example.row, example.index, f"views.{name}.{key}")

    if view.text is not None:
        return Asked(None, filled(view.text, "text"))
    if view.user is not None:
        turns: list[Message] = [{"role": "user", "content": filled(view.user, "user")}]
    elif isinstance(example.prompt, str) and not (view.turns or view.chat):
        return Asked(None, example.prompt)
    else:
        turns = _own_turns(view, example, name)
    system: list[Message] = turns[:1] if turns[0]["role"] == "system" else []
    turns = turns[len(system) :]
    if view.system is not None:
        system = [{"role": "system", "content": filled(view.system, "system")}]
    shots: list[Message] = [
        {"role": role, "content": filled(shot[role], f"shots[{index}].{role}")}
        for index, shot in enumerate(view.shots)
        for role in ("user", "assistant")
    ]
    return Asked([*system, *shots, *turns])


def _own_turns(view: PromptView, example: Example, name: str) -> list[Message]:
    """The turns that the row itself brings."""
    given = example.prompt
    if isinstance(given, str):
        if not given:
            raise DataError(
                f"views.{name}, row {example.index}: the row holds no question, only a text, and a chat needs one; give "
                f"views.{name}.user, or text for a plain prompt before it"
            )
        return [{"role": "user", "content": given}]
    if view.chat is False:
        raise DataError(
            f"views.{name}, row {example.index}: the row holds messages, and chat: false leaves nothing to say where one turn ends "
            f"and the next begins; write the prompt out in views.{name}.text"
        )
    return given
