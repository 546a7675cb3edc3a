"""What a server says of given tokens, made into the k most probable of each place; whatever cannot be one is refused.

Two dialects of ``POST /v1/completions``, both with the tokens' numbers in the prompt and none of their texts in the answer, of
which two tokens may have the same:

- ``vllm``: ``prompt_logprobs: k`` answers one mapping a token of the prompt, ``{"number": {"logprob": …, "rank": …}}``: the k most
  probable and the token itself (vLLM's own parameter).
- ``echo``: ``echo: true, logprobs: k`` answers them as ``top_logprobs``, ``{"token_id:number": logprob}`` (OpenAI's first completions
  API; the numbers by vLLM's ``return_tokens_as_token_ids``, which servers that follow it share).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from tutelage.errors import TeacherError

Dialect = Literal["vllm", "echo"]
DIALECTS: tuple[Dialect, ...] = ("vllm", "echo")

#: No softmax gives a class among the most probable ones less than e^-100: what says so stands for "impossible" or "cut off" (vLLM writes
#: −9999 for −∞, others −1000 or −100).
_CLAMPED = -100.0
#: How far above 1 the rounding of a few decimals can bring a row's sum, and a log-probability above 0.
_ROUNDING = 1e-4
_TOKEN = "token_id:"

Json = Mapping[str, Any]


def question(dialect: Dialect, model: str, texts: Sequence[Sequence[int]], k: int) -> dict[str, Any]:
    """The body that asks for the k most probable tokens at every place of some texts of token numbers."""
    body: dict[str, Any] = {
        "model": model,
        "prompt": [list(text) for text in texts],
        "max_tokens": 1,
        "temperature": 1.0,
        "top_p": 1.0,
        "return_tokens_as_token_ids": True,
    }
    if dialect == "echo":
        return {**body, "echo": True, "logprobs": k}
    # top_k says so because a server's own default would mask all other tokens first
    return {**body, "prompt_logprobs": k, "return_token_ids": True, "top_k": -1}


def choices_of(body: Any, count: int) -> list[Json]:
    """The answers to each text, in the order of the texts.

    Raises:
        TeacherError: another number of them, or not one for each.
    """
    found = cast(Any, body).get("choices") if isinstance(body, dict) else None
    if not isinstance(found, list):
        raise TeacherError("the server's answer has no list of choices: it does not speak the completions API")
    choices = [cast(Json, choice) for choice in cast(list[Any], found) if isinstance(choice, dict)]
    numbers = [choice.get("index", place) for place, choice in enumerate(choices)]
    if sorted(numbers, key=str) != sorted(range(count), key=str):
        raise TeacherError(
            f"the server gave choices {numbers} for {count} texts: one would be given another's probabilities; expected one each"
        )
    return [choice for _, choice in sorted(zip(numbers, choices, strict=True), key=lambda pair: pair[0])]


def speaks(dialect: Dialect, choice: Json) -> bool:
    """Whether an answer has what this dialect puts there."""
    if dialect == "vllm":
        return isinstance(choice.get("prompt_logprobs"), list)
    return isinstance(_echoed(choice).get("top_logprobs"), list)


def words_of(dialect: Dialect, choice: Json, text: Sequence[int]) -> dict[int, str]:
    """What the server says that tokens are called, by number, as far as it says so of a text's own tokens and those beside them."""
    if dialect == "echo":
        tokens = _echoed(choice).get("tokens")
        named = list(zip(text, cast(list[Any], tokens), strict=False)) if isinstance(tokens, list) else []
    else:
        places = choice.get("prompt_logprobs")
        named = [
            (int(token), _mapping(entry).get("decoded_token"))
            for place in (cast(list[Any], places) if isinstance(places, list) else ())
            for token, entry in _mapping(place).items()
            if token.isdecimal()
        ]
    return {token: word for token, word in named if isinstance(word, str) and not word.startswith(_TOKEN)}


@dataclass(frozen=True)
class Reading:
    """How answers are read.

    Args:
        dialect: whose.
        k: classes a row.
        classes: C, of the student.
    """

    dialect: Dialect
    k: int
    classes: int

    def rows(
        self, choice: Json, text: Sequence[int], first: int, who: str
    ) -> tuple[list[list[int]], list[list[float]]]:
        """Classes and probabilities, most probable first, for the places ``first``, ``first + 1``, … of a text.

        Args:
            choice: the answer to the text.
            text: its tokens.
            first: the first place that is asked about, at least 1: before the first token there is nothing.
            who: the example, for errors.

        Returns:
            Two lists of K = min(k, C) numbers each, one a place.

        Raises:
            TeacherError: an answer about other tokens or another number of them; a number that is missing, NaN, infinite, above 0 or
                clamped; too few of them; a class that the student does not have; probabilities that sum to more than 1.
        """
        places = self._places(choice, text, who)
        ids: list[list[int]] = []
        probs: list[list[float]] = []
        for place in range(first, len(text)):
            kept = self._kept(places[place], text[place], f"{who}, token {place} ({text[place]})")
            ids.append([token for token, _ in kept])
            probs.append([probability for _, probability in kept])
        return ids, probs

    def own(self, choice: Json, text: Sequence[int], first: int, who: str) -> list[float]:
        """The log-probability, nats, of the text's own token at the places ``first``, ``first + 1``, …

        Args:
            choice, text, first, who: as for :meth:`rows`.

        Raises:
            TeacherError: as :meth:`rows`, of these numbers alone.
        """
        places = self._places(choice, text, who)
        told = _echoed(choice).get("token_logprobs") if self.dialect == "echo" else None
        echoed = cast(list[Any], told) if isinstance(told, list) else []
        found: list[float] = []
        for place in range(first, len(text)):
            here = echoed[place] if place < len(echoed) else places[place].get(str(text[place]))
            found.append(_log_p(here, f"{who}, token {place} ({text[place]})"))
        return found

    def _places(self, choice: Json, text: Sequence[int], who: str) -> list[Json]:
        """One mapping of token numbers to log-probabilities a place, of this very text."""
        tokens, found = _vllm(choice, text, who) if self.dialect == "vllm" else _echo(choice, len(text), who)
        if len(found) != len(text) or (tokens is not None and tokens != list(text)):
            at = next((n for n, (a, b) in enumerate(zip(tokens or (), text, strict=False)) if a != b), None)
            where = (
                "" if at is None or tokens is None else f"; token {at} is {text[at]} and the server read {tokens[at]}"
            )
            raise TeacherError(
                f"{who}: the server answered about {len(found):,} tokens, {len(text):,} were asked about{where}: probabilities would be "
                "given to other tokens; look for a server that cuts prompts off, adds tokens of its own or has another tokenizer"
            )
        return found

    def _kept(self, place: Json, own: int, who: str) -> list[tuple[int, float]]:
        wanted = min(self.k, self.classes)
        found = [(_number(token, who), _log_p(log_p, who)) for token, log_p in place.items()]
        found.sort(key=lambda pair: -pair[1])
        kept = found[:wanted]
        if len(kept) < wanted:
            raise TeacherError(
                f"{who}: the server gave {len(kept)} log-probabilities of {wanted}: what it left out would count as the improbable rest; "
                "ask for fewer (teacher.k), or let the server give more (vLLM: --max-logprobs)"
            )
        # the text's own token may be beside the most probable ones, and impossible for the teacher
        behind = [pair for pair in found[wanted:] if pair[0] != own]
        token, least = (kept + behind)[-1]
        if least <= _CLAMPED:
            raise TeacherError(
                f"{who}: the log-probability of token {token} is {least:g}, which stands for one that was masked or clamped: it would be "
                "taught as a probability; let the server give raw ones (vLLM: --logprobs-mode raw_logprobs, no top_k of its own), or ask "
                "for fewer (teacher.k)"
            )
        strange = next((token for token, _ in kept if not 0 <= token < self.classes), None)
        if strange is not None:
            raise TeacherError(
                f"{who}: the server's token {strange:,} is none of the student's {self.classes:,}: the two have other vocabularies, and "
                "every number would mean another token; serve a model with the student's tokenizer"
            )
        return _as_probabilities(kept, who)


def _vllm(choice: Json, text: Sequence[int], who: str) -> tuple[list[int] | None, list[Json]]:
    found = choice.get("prompt_logprobs")
    if not isinstance(found, list):
        raise TeacherError(f"{who}: the answer has no prompt_logprobs, which earlier answers had: {_keys(choice)}")
    places = [_mapping(place) for place in cast(list[Any], found)]
    for place, token in zip(places[1:], text[1:], strict=False):
        # a place always has the token itself, probable or not: another place's has it by chance alone
        if place and str(token) not in place:
            raise TeacherError(
                f"{who}: the server's answer does not have the token {token} at its own place: its log-probabilities are of other tokens, "
                "or moved by one; expected that of each token of the prompt beside the most probable"
            )
    told = choice.get("prompt_token_ids")
    log_ps: list[Json] = [{token: _mapping(entry).get("logprob") for token, entry in place.items()} for place in places]
    return (cast(list[int], told) if isinstance(told, list) else None), log_ps


def _echo(choice: Json, length: int, who: str) -> tuple[list[int], list[Json]]:
    echoed = _echoed(choice)
    tokens, tops = echoed.get("tokens"), echoed.get("top_logprobs")
    if not isinstance(tokens, list) or not isinstance(tops, list):
        raise TeacherError(
            f"{who}: the answer has no tokens and top_logprobs, which earlier answers had: {_keys(choice)}"
        )
    # behind the prompt comes the one token that was generated
    return [_number(token, who) for token in cast(list[Any], tokens)[:length]], [
        _mapping(top) for top in cast(list[Any], tops)[:length]
    ]


def _echoed(choice: Json) -> Json:
    return _mapping(choice.get("logprobs"))


def _mapping(value: Any) -> Json:
    return cast(Json, value) if isinstance(value, dict) else {}


def _keys(choice: Json) -> str:
    return f"it has {', '.join(sorted(choice)) or 'nothing'}"


def _number(token: Any, who: str) -> int:
    digits = str(token).removeprefix(_TOKEN)
    if not digits.isascii() or not digits.isdigit():
        raise TeacherError(
            f"{who}: the server names the token {token!r} by its text: two tokens may have the same, and one's probability would be given "
            "to the other; use a server that gives numbers (return_tokens_as_token_ids, as vLLM does)"
        )
    return int(digits)


def _log_p(value: Any, who: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value > _ROUNDING:
        shown = "missing (null)" if value is None else repr(value)
        raise TeacherError(
            f"{who}: a log-probability is {shown}: expected a finite number of at most 0; it would be learnt or stored as a probability. "
            "Look at the server's precision (NaN in float16) and at what its log-probabilities are of (vLLM: --logprobs-mode raw_logprobs)"
        )
    return float(value)


def _as_probabilities(kept: list[tuple[int, float]], who: str) -> list[tuple[int, float]]:
    if len({token for token, _ in kept}) < len(kept):
        raise TeacherError(f"{who}: the server names a token twice: its probability would be counted twice")
    probs = [math.exp(log_p) for _, log_p in kept]
    total = math.fsum(probs)
    if total > 1.0 + _ROUNDING:
        raise TeacherError(
            f"{who}: the {len(kept)} probabilities sum to {total:.6g}, more than 1: they are of no distribution (logits, or scaled by a "
            "temperature or a penalty); let the server give raw log-probabilities"
        )
    return [(token, prob / max(total, 1.0)) for (token, _), prob in zip(kept, probs, strict=True)]
