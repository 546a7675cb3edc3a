"""A language model behind an HTTP server as a teacher: the k most probable tokens at every place of a completion."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch

from tutelage.data import Batch, hex_id
from tutelage.errors import ConfigError, TeacherError
from tutelage.labels.sparse_check import check_sparse
from tutelage.signals import Signals, SparseTargets
from tutelage.teachers.remote_answers import DIALECTS, Dialect, Reading, choices_of, question, speaks, words_of
from tutelage.teachers.remote_client import Answer, RemoteClient

logger = logging.getLogger(__name__)

#: Texts in one request: a server runs them side by side, and an answer stays in the tens of megabytes.
_TEXTS = 16
#: How far a model that was started again may be from what it said before: sums in another order, in 16 bits; another model is further.
_SAME = 0.1
#: What it is asked then is made of so many of the first tokens: a vocabulary that is padded has none at its end.
_PROBED = 1024

#: How many tokens' names are held against the tokenizer's, and the share that may be others: some spellings are a server's own.
_NAMED, _STRANGE = 64, 0.1

#: What is known of a model, and how an answer is asked for.
Identity = Mapping[str, Any]


class RemoteTeacher:
    """A language model served over the OpenAI-compatible API with log-probabilities of given tokens (vLLM and others).

    Prompt and completion are sent as token numbers, so that nothing is cut into tokens a second time; what comes back for the tokens
    of the completion are the k most probable ones of each place, as :class:`tutelage.signals.SparseTargets` at T = 1: exact for these, and
    ``1 − Σ`` for all others together. Nothing is taken for a probability that is none (:class:`tutelage.teachers.remote_answers.Reading`),
    and no retry hides a refusal (:class:`tutelage.teachers.remote_client.RemoteClient`).

    The server is first spoken to when it is first needed. Its model is then looked up by name, and what is found is held against every
    answer's ``model`` and ``system_fingerprint``; after an interruption it is looked up again, and asked again about a few tokens, since
    what was started in the meantime may be another model under the same name.

    Args:
        url: of the server, with or without ``/v1``.
        model: the model's name there.
        classes: C, the number of tokens that student and teacher share: the student's logits.
        k: how many of each place.
        key_env: the environment variable that holds the key; the key itself goes nowhere but into requests.
        timeout: seconds of one attempt.
        retries: attempts after the first.
        identity: what an earlier :attr:`identity` said; another model is then refused at first contact.
        dialect: how log-probabilities are asked for; ``"auto"`` finds out at first contact.
        tokenizer: what the numbers mean that it is asked about: what the server calls its tokens is held against it at first contact.
            None for no such look.

    Raises:
        ConfigError: a number, a URL or a dialect that is none; an environment variable that is not set.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        classes: int,
        k: int = 20,
        key_env: str | None = None,
        timeout: float = 60.0,
        retries: int = 5,
        identity: Identity | None = None,
        dialect: Literal["auto", "vllm", "echo"] = "auto",
        tokenizer: Any = None,
    ) -> None:
        if classes < 2 or k < 1:
            raise ConfigError(
                f"classes is {classes:,} and k {k:,}: expected at least 2 tokens in all, and at least 1 to be told"
            )
        if dialect != "auto" and dialect not in DIALECTS:
            raise ConfigError(f"dialect is {dialect!r}: expected auto, {' or '.join(DIALECTS)}")
        self.model, self.classes, self.k = model, classes, k
        self.client = RemoteClient(url, key_env=key_env, timeout=timeout, retries=retries)
        self._expected = dict(identity) if identity is not None else None
        self._dialects: tuple[Dialect, ...] = DIALECTS if dialect == "auto" else (dialect,)
        self._tokenizer = tokenizer
        self._known: _Known | None = None

    def __repr__(self) -> str:
        return f"RemoteTeacher({self.client.root!r}, {self.model!r}, k={self.k})"

    @property
    def identity(self) -> dict[str, Any]:
        """What the server says its model is, ``{"model", "root", "parent", "fingerprint"}``; asks it where that is not known yet.

        Raises:
            TeacherError: it cannot be reached, has no such model, or has another one than was expected.
        """
        return dict(self._contact().identity)

    @property
    def fact(self) -> str:
        """The identity in words, without the server's address: another server with the same model is the same teacher.

        Raises:
            TeacherError: as :attr:`identity`.
        """
        known = ", ".join(f"{name} {said}" for name, said in self.identity.items() if said is not None)
        return f"{type(self).__name__}, {known}"

    def signals(self, batch: Batch) -> Signals:
        """The k most probable tokens at each of the N places of the batch's completions, on the batch's device.

        Raises:
            TeacherError: a batch of something else than prompts and completions; a server that is away, refuses, has another model than
                before, or gives what is no answer (the message names the example and the token).
        """
        completions = batch.get("completions")
        if completions is None:
            raise TeacherError(
                "the batch holds no prompts and completions: a remote teacher is asked about tokens; use a transfer set of completions "
                "(TransferSet.of_completions)"
            )
        prompts, answers = completions.prompts_of("teacher").lists(), completions.completions_of("teacher").lists()
        texts = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
        ids: list[list[int]] = []
        probs: list[list[float]] = []
        names = [f"example {hex_id(example)}" for example in batch["ids"].tolist()]
        for start in range(0, len(texts), _TEXTS):
            of = slice(start, start + _TEXTS)
            firsts = [len(prompt) for prompt in prompts[of]]
            for found_ids, found_probs in self._answers(texts[of], firsts, names[of]):
                ids += found_ids
                probs += found_probs
        targets = SparseTargets(
            torch.tensor(ids, dtype=torch.int64), torch.tensor(probs, dtype=torch.float32), self.classes, 1.0, "top_k"
        )
        check_sparse(targets)
        device = batch["ids"].device
        return Signals(SparseTargets(targets.ids.to(device), targets.probs.to(device), self.classes, 1.0, "top_k"))

    def ask(self, body: Mapping[str, Any]) -> Answer:
        """An answer of the recorded model to a request at ``/completions``; what the server would not answer is left to the caller.

        Raises:
            TeacherError: as :attr:`identity`; the answer is another model's.
        """
        known = self._contact()
        answer = self.client.post("/completions", body)
        if self.client.interruptions != known.interruptions:
            self._contact_again(known)
        if not answer.refused:
            self._refuse_another(answer.body, known)
        return answer

    def own_log_probs(self, texts: list[list[int]], firsts: list[int], names: list[str]) -> list[list[float]]:
        """The log-probability, nats, that each text's own tokens have from a place on.

        Args:
            texts: token numbers.
            firsts: of each, the first place that is asked about, at least 1.
            names: of each, for errors.

        Raises:
            TeacherError: as :meth:`signals`.
        """
        known = self._contact()
        reading = Reading(known.dialect, 1, self.classes)
        found: list[list[float]] = []
        for start in range(0, len(texts), _TEXTS):
            of = slice(start, start + _TEXTS)
            body = self.ask(question(known.dialect, self.model, texts[of], 1)).value()
            choices = choices_of(body, len(texts[of]))
            found += [reading.own(*one) for one in zip(choices, texts[of], firsts[of], names[of], strict=True)]
        return found

    def _answers(self, texts: list[list[int]], firsts: list[int], names: list[str]) -> list[_Rows]:
        known = self._contact()
        reading = Reading(known.dialect, self.k, self.classes)
        body = self.ask(question(known.dialect, self.model, texts, self.k)).value()
        choices = choices_of(body, len(texts))
        return [reading.rows(*one) for one in zip(choices, texts, firsts, names, strict=True)]

    def _contact(self) -> _Known:
        if self._known is None:
            found = self._look()
            if self._expected is not None and found.identity != self._expected:
                raise TeacherError(_another(self._expected, found.identity))
            self._compare_words(found.dialect)
            self._known = found
        return self._known

    def _compare_words(self, dialect: Dialect) -> None:
        """Refuse a server whose tokens are others under the same numbers, as far as it says what they are."""
        if self._tokenizer is None:
            return
        count = min(self.classes, len(self._tokenizer))
        text = sorted({place * (count - 1) // (_NAMED - 1) for place in range(_NAMED)})
        body = question(dialect, self.model, [text], min(self.k, 5))
        if dialect == "echo":
            # here its words are wanted, in the place of numbers
            del body["return_tokens_as_token_ids"]
        answer = self.client.post("/completions", body)
        told = {} if answer.refused else words_of(dialect, choices_of(answer.body, 1)[0], text)
        named = [(token, _called(self._tokenizer, token), word) for token, word in sorted(told.items()) if word]
        clear = [(token, own, word) for token, own, word in named if "\ufffd" not in word + own[0]]
        other = [(token, own[0], word) for token, own, word in clear if _bare(word) not in map(_bare, own)]
        if len(clear) < _NAMED // 8:
            logger.warning(
                "the server does not say what its tokens are called, so nothing shows whether %r has the student's tokenizer: see to it "
                "that it does, or the student is taught other words than were meant",
                self.model,
            )
        elif len(other) > _STRANGE * len(clear):
            shown = ", ".join(f"{token} ({own!r} / {word!r})" for token, own, word in other[:5])
            raise TeacherError(
                f"{self.model!r} has another vocabulary: of {len(clear):,} tokens that it was asked about, {len(other):,} are called "
                f"otherwise (ours / the server's): {shown}. Its probability of one word would be taught as that of another; serve a model "
                "with the student's tokenizer, or name its own (teacher.tokenizer) and learn what it writes (teacher.alignment: text)"
            )

    def _contact_again(self, known: _Known) -> None:
        """After an interruption: the same name may be another model's now."""
        found = self._look()
        if found.identity != known.identity:
            raise TeacherError(_another(known.identity, found.identity))
        apart = max(_apart(a, b) for a, b in zip(known.probe, found.probe, strict=True))
        if not apart <= _SAME:
            raise TeacherError(
                f"{self.model!r} was away, and what answers under that name now gives other probabilities ({apart:.2f} of a place's mass "
                "lies elsewhere): another model, or other weights; two teachers would be mixed. Serve the first one again, or begin a "
                "new labelling"
            )
        known.interruptions = self.client.interruptions

    def _look(self) -> _Known:
        """The model by its name, and by what it says of a few tokens."""
        card = self._card()
        refusals: list[str] = []
        text = [place * (min(self.classes, _PROBED) - 1) // 7 for place in range(8)]
        for dialect in self._dialects:
            answer = self.client.post("/completions", question(dialect, self.model, [text], self.k))
            if answer.refused and answer.status not in (400, 422):
                answer.value()
            if answer.refused:
                refusals.append(f"{dialect}: refused with {answer.status}, {answer.body}")
                continue
            choice = choices_of(answer.body, 1)[0]
            if not speaks(dialect, choice):
                refusals.append(f"{dialect}: answered without them")
                continue
            identity = {**card, "fingerprint": answer.body.get("system_fingerprint")}
            rows = Reading(dialect, self.k, self.classes).rows(choice, text, 1, "the server's probe")
            known = _Known(identity, dialect, [dict(zip(*row, strict=True)) for row in zip(*rows, strict=True)])
            self._refuse_another(answer.body, known)
            known.interruptions = self.client.interruptions
            return known
        raise TeacherError(
            f"the server at {self.client.root} gives no log-probabilities of given tokens ({'; '.join(refusals)}): without them it can "
            "write completions and nothing more. Use one that does (vLLM: prompt_logprobs, with --max-logprobs of at least teacher.k), or "
            "distil from what it writes (completions: teacher)"
        )

    def _card(self) -> dict[str, Any]:
        """What ``/models`` says of the model."""
        body = self.client.get("/models").value()
        listed = cast(Any, body).get("data") if isinstance(body, dict) else None
        cards: list[Any] = (
            [card for card in cast(list[Any], listed) if isinstance(card, dict)] if isinstance(listed, list) else []
        )
        for card in cards:
            if card.get("id") == self.model:
                return {"model": self.model, "root": card.get("root"), "parent": card.get("parent")}
        names = ", ".join(repr(card.get("id")) for card in cards[:8]) or "none"
        raise TeacherError(
            f"the server at {self.client.root} has no model {self.model!r} (there are: {names}): another one would be the teacher; give "
            "one of these names, or serve that model"
        )

    def _refuse_another(self, body: Any, known: _Known) -> None:
        """Refuse an answer that says that it is another model's."""
        said = cast(Any, body).get("model") if isinstance(body, dict) else None
        if said not in (self.model, known.identity["root"]) or said is None:
            raise TeacherError(
                f"{self.model!r} was asked and {said!r} answered: the student would be taught by another model than the record says; ask "
                "for that one by its own name, or mend the server's routing"
            )
        found = {**known.identity, "fingerprint": cast(Any, body).get("system_fingerprint")}
        if found != known.identity:
            raise TeacherError(_another(known.identity, found))


def _called(tokenizer: Any, token: int) -> tuple[str, str]:
    """A token as text, and by its name in the vocabulary: servers say the one or the other."""
    return tokenizer.decode([token]), str(tokenizer.convert_ids_to_tokens(token))


def _bare(word: str) -> str:
    """Without the spaces around it, which are decoded otherwise in the middle of a text than alone."""
    return word.strip(" ▁Ġ")


_Rows = tuple[list[list[int]], list[list[float]]]


@dataclass
class _Known:
    """A model as it was found.

    Args:
        identity: what it is said to be.
        dialect: how it is asked.
        probe: what it says of a few tokens, by place.
        interruptions: of the client, at the time when it was last looked at.
    """

    identity: dict[str, Any]
    dialect: Dialect
    probe: Sequence[Mapping[int, float]]
    interruptions: int = 0


def _apart(one: Mapping[int, float], other: Mapping[int, float]) -> float:
    """The least total variation of two places' distributions: what is not kept of one has at most what its least kept token has."""
    return max(_beyond(one, other), _beyond(other, one))


def _beyond(one: Mapping[int, float], other: Mapping[int, float]) -> float:
    """How much more mass ``one`` has where it has more, at least."""
    least = min(other.values())
    return sum(max(0.0, probability - other.get(token, least)) for token, probability in one.items())


def _another(before: Identity, now: Identity) -> str:
    other = {name: (before.get(name), now.get(name)) for name in {**before, **now} if before.get(name) != now.get(name)}
    words = "; ".join(f"{name} was {then!r} and is {said!r}" for name, (then, said) in sorted(other.items()))
    return (
        f"the server has another model than was recorded: {words}. Answers of two teachers would be mixed; serve the first one again, or "
        "begin a new labelling into another folder"
    )
