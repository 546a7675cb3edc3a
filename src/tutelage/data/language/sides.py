"""One model's side of the examples: its prompts and its completions in its own tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from tutelage.data.language.conversations import Example, Message
from tutelage.data.language.cutting import Cutter
from tutelage.data.language.prompts import Asked, PromptView, ask
from tutelage.errors import ConfigError, DataError


@dataclass(frozen=True)
class Prompt:
    """A prompt as a model reads it: ``text`` as rendered, ``bare`` its tokens, ``front`` what the tokenizer puts before them."""

    text: str
    bare: list[int]
    front: list[int]
    asked: Asked

    @property
    def tokens(self) -> list[int]:
        """All of them."""
        return self.front + self.bare


class Side:
    """One model's side.

    Args:
        name: ``student`` or ``teacher``, for messages.
        view: what it sees.
        tokenizer: its own.
    """

    def __init__(self, name: str, view: PromptView, tokenizer: PreTrainedTokenizerBase) -> None:
        self.name, self.view, self.cutter = name, view, Cutter(tokenizer)
        self.tokenizer = tokenizer
        self._seen: set[str] = set()
        self._end: int | None = None

    def prompts(self, examples: Sequence[Example]) -> list[Prompt]:
        """What the model reads before each answer.

        Raises:
            ConfigError: the tokenizer has no chat template, or one that does not show what the view has.
            DataError: a template that cannot be filled in or rendered.
        """
        asked = [ask(self.view, example, self.name) for example in examples]
        texts: list[str] = []
        for example, one in zip(examples, asked, strict=True):
            _refuse_half_characters(text := self._rendered(one, example), f"views.{self.name}", example)
            texts.append(text)
        front = list(self.cutter.front)
        prompts: list[Prompt] = []
        for one, text, tokens in zip(asked, texts, self.cutter.many(texts), strict=True):
            # a chat template writes its own BOS, and a plain template may
            own = one.chat or tokens[: len(front)] == front
            prompts.append(Prompt(text, tokens, [] if own else front, one))
        return prompts

    def completions(self, examples: Sequence[Example], prompts: Sequence[Prompt]) -> list[list[int]]:
        """The tokens of each answer as they follow its prompt, with the one that ends it.

        Raises:
            ConfigError: a tokenizer without EOS where one has to end the text.
            DataError: a chat template under which the answer does not follow the prompt.
        """
        texts = [self._answer(example, prompt) for example, prompt in zip(examples, prompts, strict=True)]
        for example, text in zip(examples, texts, strict=True):
            _refuse_half_characters(text, "the completion", example)
        wholes = self.cutter.many([prompt.text + text for prompt, text in zip(prompts, texts, strict=True)])
        # as it ends a chat, where there is one among them
        first = next((place for place, prompt in enumerate(prompts) if prompt.asked.chat), 0)
        end = self.end(examples[first], prompts[first]) if examples else None
        found: list[list[int]] = []
        for prompt, text, whole in zip(prompts, texts, wholes, strict=True):
            tokens = self.cutter.after(prompt.bare, whole, text)
            found.append(self._ended(tokens, end, prompt.asked.chat))
        return found

    def end(self, example: Example, prompt: Prompt) -> int:
        """The token that ends what this model answers, as it would end a plain answer to this example.

        Raises:
            ConfigError: neither the chat template nor the tokenizer has one.
        """
        if self._end is None:
            text = self._answer(replace(example, answer="b", written=None), prompt) if prompt.asked.chat else ""
            tokens = self.cutter.one(text)
            place = self.cutter.ending(tokens)
            self._end = self.eos if place is None else tokens[place]
        return self._end

    def _ended(self, tokens: list[int], end: int | None, chat: bool) -> list[int]:
        place = self.cutter.ending(tokens, end) if chat else None
        if place is not None:
            return tokens[: place + 1]
        while chat and tokens and self.cutter.is_space(tokens[-1]):
            tokens.pop()
        return tokens if tokens and tokens[-1] == self.eos else [*tokens, self.eos]

    @cached_property
    def eos(self) -> int:
        """The tokenizer's EOS.

        Raises:
            ConfigError: it has none.
        """
        eos: Any = self.tokenizer.eos_token_id
        if eos is None:
            raise ConfigError(
                f"the {self.name}'s tokenizer has no EOS token to end a completion with: the student would never learn to stop; set its "
                "eos_token"
            )
        return int(eos)

    def _rendered(self, asked: Asked, example: Example) -> str:
        if asked.messages is None:
            return asked.text
        text = self._render(asked.messages, example, generation=True)
        self._refuse_unseen(asked.messages, text, example)
        return text

    def _answer(self, example: Example, prompt: Prompt) -> str:
        answer = example.said
        assert answer is not None
        if prompt.asked.messages is None:
            if isinstance(answer, str):
                return answer
            if answer.get("tool_calls"):
                raise DataError(
                    f"row {example.index}: the answer calls a tool, which only a chat template can write; give the {self.name} "
                    "a chat view, or drop the row"
                )
            return answer["content"]
        turn: Message = {"role": "assistant", "content": answer} if isinstance(answer, str) else answer
        whole = self._render([*prompt.asked.messages, turn], example, generation=False)
        if not whole.startswith(prompt.text):
            raise DataError(
                f"row {example.index}: the chat template of the {self.name}'s tokenizer writes a prompt alone otherwise than the same "
                f"prompt with its answer: {_parting(prompt.text, whole)}. The student would be taught after another prompt than it is "
                f"asked with; give views.{self.name}.template_options that make them alike (enable_thinking, for one), another chat "
                f"template, or views.{self.name}.text"
            )
        return whole[len(prompt.text) :]

    def _render(self, messages: list[Message], example: Example, *, generation: bool, tools: bool = True) -> str:
        if not self.tokenizer.chat_template:
            raise ConfigError(
                f"views.{self.name}, row {example.index}: the prompt is a chat, and the {self.name}'s tokenizer has no chat template: "
                f"turns would be joined in a way that the model has never seen. Give views.{self.name}.text for a plain prompt (chat: "
                "false), or a tokenizer with a chat template (tokenizer.chat_template)"
            )
        self._refuse_unknown_options()
        given = [dict(tool) for tool in self.view.tools] if self.view.tools and tools else None
        try:
            text: Any = self.tokenizer.apply_chat_template(
                messages,
                tools=given,  # pyright: ignore[reportArgumentType]
                add_generation_prompt=generation,
                tokenize=False,
                **self.view.template_options,
            )
        except Exception as error:  # a template raises what it likes
            roles = ", ".join(message["role"] for message in messages)
            raise DataError(
                f"row {example.index}: the chat template of the {self.name}'s tokenizer refuses the turns {roles}: {error}. Put what it "
                f"does not take into views.{self.name}.user, or write the prompt out in views.{self.name}.text"
            ) from error
        return text

    def _refuse_unknown_options(self) -> None:
        template: Any = self.tokenizer.chat_template
        unknown = [name for name in self.view.template_options if name not in str(template)]
        if unknown:
            raise ConfigError(
                f"views.{self.name}.template_options: the chat template of the {self.name}'s tokenizer knows no {', '.join(unknown)}, and "
                "would be none the wiser; take it out, or spell it as the template does"
            )

    def _refuse_unseen(self, messages: list[Message], text: str, example: Example) -> None:
        """Some templates leave out in silence what they do not know: the model would never see it."""
        without: dict[str, tuple[list[Message], bool]] = {}
        if self.view.tools:
            without["tools"] = messages, False
        if messages[0]["role"] == "system" and len(messages) > 1:
            without["a system turn"] = messages[1:], True
        for what in without.keys() - self._seen:
            rest, tools = without[what]
            if self._render(rest, example, generation=True, tools=tools) == text:
                raise ConfigError(
                    f"views.{self.name}, row {example.index}: the chat template of the {self.name}'s tokenizer does not write {what}: the "
                    f"prompt is the same without, and the model would never see it; say it in views.{self.name}.user"
                )
            self._seen.add(what)


def _parting(prompt: str, whole: str) -> str:
    at = next((place for place, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(whole))
    start = max(0, at - 20)
    return f"from character {at:,} on, {prompt[start : at + 20]!r} became {whole[start : at + 20]!r}"


def _refuse_half_characters(text: str, where: str, example: Example) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}, row {example.index}: character {error.start} is half of a surrogate pair, no character by itself, and no "
            "tokenizer takes it; mend the file's encoding"
        ) from error
