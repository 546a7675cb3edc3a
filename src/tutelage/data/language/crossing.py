"""Two vocabularies over the same text: where their tokens meet, and which of the student's tokens each of the teacher's begins with."""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from hashlib import sha256
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tutelage.data.language.token_bytes import END, NO_TEXT, token_bytes
from tutelage.errors import ConfigError, DataError

#: How many sets of choices are kept: those after a few letters come again and again.
_KEPT = 1 << 14
#: A number that is no token, as one that is no text.
_UNKNOWN = NO_TEXT + b"?"


class Choices(NamedTuple):
    """Which of the student's tokens follows for some of the teacher's.

    ``tokens[J]`` the teacher's, int64 · ``pieces[J]`` the student's for each of them, −1 for none · ``other``: the student's for all of
    the teacher's that are not among them; None where those cannot be.
    """

    tokens: Tensor
    pieces: Tensor
    other: int | None


class Step(NamedTuple):
    """What one of the teacher's rows says about one of the student's.

    ``row``: the student's · ``said``: the teacher's · ``choices``: None for the whole vocabulary, each token by its first piece ·
    ``token``: the one that the teacher's row met · ``label``: the student's token that its mass goes to; None where a token of the
    student's goes on, and the mass is the next step's to divide.
    """

    row: int
    said: int
    choices: Choices | None
    token: int
    label: int | None


class Crossing:
    """A student's and a teacher's vocabulary over the same bytes.

    Args:
        student_tokenizer: a fast tokenizer of transformers.
        teacher_tokenizer: the same.
        student_ends: the student's tokens that end a completion, the one it shall learn first; None for its ``eos_token_id``.
        teacher_ends: the teacher's; None for its ``eos_token_id``.

    Raises:
        ConfigError: a tokenizer whose tokens do not keep the text, or one without an end.
    """

    def __init__(
        self,
        student_tokenizer: Any,
        teacher_tokenizer: Any,
        *,
        student_ends: Sequence[int] | None = None,
        teacher_ends: Sequence[int] | None = None,
    ) -> None:
        ends, their_ends = (
            _ends(student_tokenizer, student_ends, "student"),
            _ends(teacher_tokenizer, teacher_ends, "teacher"),
        )
        #: What a completion ends with, in the student's vocabulary and in the teacher's.
        self.student_end, self.teacher_end = ends[0], their_ends[0]
        self.student_bytes = token_bytes(student_tokenizer, ends)
        self.teacher_bytes = token_bytes(teacher_tokenizer, their_ends)
        self._student, self._teacher = _Sorted(self.student_bytes), _Sorted(self.teacher_bytes)
        self._number = dict(reversed(self._student.tokens)) | {END: self.student_end}
        self._known = frozenset(text for text, _ in self._teacher.tokens)
        self._longest = max(map(len, self._number))
        self._backend = student_tokenizer.backend_tokenizer
        # some tokenizers put a space before a text; a line's end takes it, and is taken away again
        self._lead = b" \n" if self._encoded(["a"])[0][1] != b"a" else b""
        alone: list[int] = teacher_tokenizer.encode("a", add_special_tokens=False)
        self._said_lead = " " if self._said(alone) != b"a" else ""
        known = [(number, text) for number, text in enumerate(self.teacher_bytes) if text is not None]
        found = dict(zip((number for number, _ in known), self.pieces([text for _, text in known]), strict=True))
        self._of_token = [found.get(number, ()) for number in range(len(self.teacher_bytes))]
        if self.student_bytes == self.teacher_bytes:
            self._of_token = [(number,) if number in found else () for number in range(len(self.teacher_bytes))]
        #: ``[C of the teacher]`` int64: the student's token that each of the teacher's begins with, −1 for none.
        self.first = torch.tensor([pieces[0] if pieces else -1 for pieces in self._of_token])
        self._choices: OrderedDict[tuple[Any, ...], Choices] = OrderedDict()

    def pieces(self, texts: Sequence[bytes]) -> list[tuple[int, ...]]:
        """The student's tokens of each text, as its tokenizer cuts it standing alone; of bytes that are no text, the longest first."""
        found: list[tuple[int, ...]] = [()] * len(texts)
        plain: list[int] = []
        words: list[str] = []
        for place, text in enumerate(texts):
            if text.startswith(NO_TEXT) and len(text) > 1:
                found[place] = (self._number[text],) if text in self._number else ()
                continue
            try:
                words.append((self._lead[1:] + text).decode())
                plain.append(place)
            except UnicodeDecodeError:
                found[place] = self._greedy(text)
        for place, (tokens, whole) in zip(plain, self._encoded(words), strict=True):
            found[place] = self._without_lead(tokens, whole, texts[place])
        return found

    def steps(self, student: Tensor, teacher: Tensor) -> list[Step]:
        """What the teacher's rows say about each of the student's, for one completion.

        Args:
            student: int64 ``[n]``, the completion's tokens in the student's vocabulary.
            teacher: int64 ``[m]``, in the teacher's.

        Raises:
            DataError: they are not the same text.
        """
        return _Walk(self, student.tolist(), teacher.tolist()).steps()

    def text_of(self, teacher: Sequence[int]) -> tuple[str, bool]:
        """What a completion in the teacher's vocabulary says, as far as it is a text, and whether that is all of it and it ends.

        A model writes what is no text where it is cut off inside a letter of several bytes, or where it writes a chat's marker.

        Args:
            teacher: the completion's tokens.
        """
        said = self._said(teacher)
        text = said.removesuffix(END)
        try:
            return text.decode().removeprefix(self._said_lead), len(text) < len(said)
        except UnicodeDecodeError as error:
            return text[: error.start].decode().removeprefix(self._said_lead), False

    @cached_property
    def digest(self) -> str:
        """A short hash of both vocabularies, of what ends a completion, and of how the student's tokenizer cuts a text."""
        rules = json.loads(self._backend.to_str())
        # set anew by every call, after what that call asks for
        rules.pop("truncation", None)
        rules.pop("padding", None)
        found = sha256(json.dumps(rules, sort_keys=True).encode())
        for texts in (self.student_bytes, self.teacher_bytes):
            found.update(repr(texts).encode())
        found.update(repr((self.student_end, self.teacher_end)).encode())
        return found.hexdigest()[:16]

    def after(self, before: bytes) -> Choices:
        """What follows once the teacher has written ``before``: the student's first token of that and the teacher's next."""
        return self._kept(("after", before), lambda: self._after(before, frozenset()))

    def beyond(self, before: bytes) -> Choices | None:
        """What the teacher's next token can still make of the student's first one; None where nothing.

        Of tokens that the teacher does not have itself: those that it has it would have written at once.
        """
        found = self._kept(("beyond", before), lambda: self._after(before, self._known))
        return found if len(found.tokens) else None

    def inside(self, head: bytes, so_far: tuple[int, ...], seen: bytes, skip: int = 0) -> Choices:
        """What follows inside a token of the teacher's of which ``seen`` is written.

        Args:
            head: text between the last place where both vocabularies' tokens met and the teacher's token.
            so_far: the student's tokens since then.
            seen: the bytes with which the teacher's token begins.
            skip: bytes that the teacher has put before the text.
        """
        return self._kept(("inside", head, so_far, seen, skip), lambda: self._inside(head, so_far, seen, skip))

    def _kept(self, key: tuple[Any, ...], make: Callable[[], Choices]) -> Choices:
        if key not in self._choices:
            self._choices[key] = make()
            if len(self._choices) > _KEPT:
                self._choices.popitem(last=False)
        self._choices.move_to_end(key)
        return self._choices[key]

    def _after(self, before: bytes, known: frozenset[bytes]) -> Choices:
        # only where a longer token of the student's begins with what is written can the next one change its first
        longer = {text for text, _ in self._student.beginning(before) if len(text) > len(before)}
        rest = {text[len(before) :] for text in longer - known}
        tokens = sorted({number for text in rest for _, number in self._teacher.beginning(text)})
        pieces = self.pieces([before + (self.teacher_bytes[number] or b"") for number in tokens])
        other = self.pieces([before])[0]
        return _choices(tokens, (each[0] if each else -1 for each in pieces), other[0] if other else None)

    def _inside(self, head: bytes, so_far: tuple[int, ...], seen: bytes, skip: int) -> Choices:
        tokens = [number for text, number in self._teacher.beginning(seen) if len(text) > len(seen)]
        if head or skip:
            pieces = self.pieces([head + (self.teacher_bytes[number] or b"")[skip:] for number in tokens])
        else:
            pieces = [self._of_token[number] for number in tokens]
        met = len(so_far)
        fits = [(n, each[met]) for n, each in zip(tokens, pieces, strict=True) if each[:met] == so_far and each[met:]]
        return _choices([number for number, _ in fits], (piece for _, piece in fits), None)

    def _said(self, teacher: Sequence[int]) -> bytes:
        known = len(self.teacher_bytes)
        return b"".join((self.teacher_bytes[number] if number < known else None) or _UNKNOWN for number in teacher)

    def _encoded(self, words: Sequence[str]) -> list[tuple[list[int], bytes]]:
        """Tokens of each text, and the bytes that they stand for."""
        cut = self._backend.encode_batch(list(words), add_special_tokens=False)
        return [(each.ids, b"".join(self.student_bytes[number] or b"" for number in each.ids)) for each in cut]

    def _without_lead(self, tokens: list[int], whole: bytes, text: bytes) -> tuple[int, ...]:
        if whole != self._lead + text:
            return self._greedy(text)
        taken = place = 0
        while taken < len(self._lead):
            taken += len(self.student_bytes[tokens[place]] or b"")
            place += 1
        return tuple(tokens[place:]) if taken == len(self._lead) else self._greedy(text)

    def _greedy(self, text: bytes) -> tuple[int, ...]:
        found: list[int] = []
        while text:
            longest = range(min(self._longest, len(text)), 0, -1)
            length = next((length for length in longest if text[:length] in self._number), 0)
            if length == 0:
                break
            found.append(self._number[text[:length]])
            text = text[length:]
        return tuple(found)


class _Sorted:
    """A vocabulary in the order of its bytes."""

    def __init__(self, texts: Sequence[bytes | None]) -> None:
        self.tokens = sorted((text, number) for number, text in enumerate(texts) if text)

    def beginning(self, text: bytes) -> list[tuple[bytes, int]]:
        """The tokens that begin with it."""
        length = len(text)
        low = bisect_left(self.tokens, text, key=lambda each: each[0])
        return self.tokens[low : bisect_right(self.tokens, text, lo=low, key=lambda each: each[0][:length])]


class _Walk:
    """One completion in both vocabularies, in bytes; where the teacher has put a space before it, its first token begins at −1."""

    def __init__(self, crossing: Crossing, student: list[int], teacher: list[int]) -> None:
        self.crossing, self.student, self.teacher = crossing, student, teacher
        mine = [_text_of(crossing.student_bytes, number, "student") for number in student]
        theirs = [_text_of(crossing.teacher_bytes, number, "teacher") for number in teacher]
        text, said = b"".join(mine), b"".join(theirs)
        lead = next((lead for lead in (0, 1, -1) if _covers(said, text, lead)), None)
        if lead is None:
            raise DataError(_not_the_same(text, said))
        self.text = said[lead:] if lead >= 0 else b" " + said
        self.starts = _starts(mine, 0)
        self.said_starts = _starts(theirs, -lead)

    def steps(self) -> list[Step]:
        """Row by row."""
        found: list[Step] = []
        said, met = -1, (0, 0)
        for row, (start, end) in enumerate(zip(self.starts[:-1], self.starts[1:], strict=True)):
            while said + 1 < len(self.teacher) and self.said_starts[said + 1] <= start:
                said += 1
            if said >= 0 and self.said_starts[said] == start:
                met = (start, row)
            found += self._row(row, max(said, 0), end, met)
        return found

    def _row(self, row: int, said: int, end: int, met: tuple[int, int]) -> Iterable[Step]:
        start, at, label = self.starts[row], self.said_starts[said], self.student[row]
        if at == start:
            choices = None
        elif at > start:
            choices = self.crossing.after(b" ")
        else:
            head, so_far = self.text[met[0] : max(at, 0)], tuple(self.student[met[1] : row])
            skip = max(-at, 0)
            choices = self.crossing.inside(head, so_far, b" " * skip + self.text[max(at, 0) : start], skip)
        while True:
            reached = self.said_starts[said + 1]
            further = (
                self._further(start, at, said) if reached >= end else self.crossing.after(self.text[start:reached])
            )
            yield Step(row, said, choices, self.teacher[said], label if further is None else None)
            if further is None:
                return
            said += 1
            choices = further._replace(other=label) if reached >= end else further

    def _further(self, start: int, at: int, said: int) -> Choices | None:
        """What the next token could have made of a label that is written, where the teacher began with the label."""
        if at != start or said + 1 == len(self.teacher):
            return None
        return self.crossing.beyond(self.text[start : self.said_starts[said + 1]])


def _choices(tokens: Sequence[int], pieces: Iterable[int], other: int | None) -> Choices:
    return Choices(
        torch.tensor(tokens, dtype=torch.int64), torch.tensor(list(pieces), dtype=torch.int64).reshape(-1), other
    )


def _starts(texts: Sequence[bytes], first: int) -> list[int]:
    starts = [first]
    for text in texts:
        starts.append(starts[-1] + len(text))
    return starts


def _covers(said: bytes, text: bytes, lead: int) -> bool:
    if lead < 0:
        return text[:1] == b" " and said.startswith(text[1:])
    return said[:lead] == b" " * lead and said[lead:].startswith(text)


def _text_of(texts: Sequence[bytes | None], number: int, whose: str) -> bytes:
    text = texts[number] if 0 <= number < len(texts) else None
    if not text:
        raise DataError(
            f"token {number:,} of the completion stands for no text in the {whose}'s vocabulary of {len(texts):,}: where the two "
            f"vocabularies meet would be lost; encode the completion with the {whose}'s own tokenizer"
        )
    return text


def _not_the_same(text: bytes, said: bytes) -> str:
    pairs = zip(text, said, strict=False)
    place = next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(text), len(said)))
    shown = (each[place : place + 20].replace(END, b"<end>") for each in (text, said))
    mine, theirs = (each.decode(errors="replace") for each in shown)
    if place == len(said):
        return (
            f"the teacher's tokens of a completion end after {place:,} bytes, the student's go on with {mine!r}: rows would have no "
            "answer; cut the text for both where a token of both ends"
        )
    return (
        f"a completion is not the same text in both vocabularies: after {place:,} bytes the student's goes on with {mine!r}, the "
        f"teacher's with {theirs!r}, and rows would meet other text's rows; encode one text with both tokenizers, without normalising it"
    )


def _ends(tokenizer: Any, given: Sequence[int] | None, whose: str) -> list[int]:
    eos = getattr(tokenizer, "eos_token_id", None)
    ends = list(given) if given is not None else [] if eos is None else [int(eos)]
    if not ends or not all(0 <= end < len(tokenizer) for end in ends):
        raise ConfigError(
            f"the {whose}'s ends of a completion are {ends}: expected tokens from 0 to {len(tokenizer) - 1:,}, at least one, or where a "
            f"completion ends would be no answer; give {whose}_ends"
        )
    return ends
