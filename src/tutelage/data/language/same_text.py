"""Completions cut in two vocabularies, brought to where both hold the same text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

from torch import Tensor

from tutelage.data.completions import Completions
from tutelage.data.language.crossing import Crossing
from tutelage.errors import DataError
from tutelage.ragged import Ragged

#: More bytes than a first token that is taken for a prompt has.
_TOKEN = 64


def same_text(completions: Completions, crossing: Crossing, named: Sequence[str] | None = None) -> Completions:
    """The same examples, of which both models' completions are the same text and the teacher's reaches as far as the student's.

    A length in tokens ends two vocabularies' completions in two places, and a first token that is taken for a prompt begins them in two.
    What only one has of an end is cut off; of a beginning, it goes to the prompts, up to where a token of both begins.

    Args:
        completions: in both vocabularies.
        crossing: those.
        named: what each example is called in messages; None for its number.

    Raises:
        DataError: no completions of the teacher's own; an example of two texts, or without a token left.
    """
    theirs = completions.teacher_completions
    if theirs is None:
        raise DataError("the completions are in one vocabulary: there is nothing to bring together")
    cut: list[tuple[list[int], ...]] = []
    for example, (student, teacher) in enumerate(zip(completions.completions, theirs, strict=True)):
        whose = f"example {example}" if named is None else named[example]
        start, said_start, stop = _common(whose, student, teacher, crossing)
        cut.append(
            (
                [*completions.prompts[example].tolist(), *student[:start].tolist()],
                student[start:stop].tolist(),
                [*completions.prompts_of("teacher")[example].tolist(), *teacher[:said_start].tolist()],
                teacher[said_start:].tolist(),
            )
        )
    prompts, own, their_prompts, their_own = (Ragged.of(part) for part in zip(*cut, strict=True))
    moved = replace(completions, prompts=prompts, completions=own, teacher_completions=their_own)
    return replace(moved, teacher_prompts=their_prompts)


def _common(whose: str, student: Tensor, teacher: Tensor, crossing: Crossing) -> tuple[int, int, int]:
    """Where the common text begins in both vocabularies' tokens, and where the student's end."""
    mine, theirs = _texts(student, crossing.student_bytes), _texts(teacher, crossing.teacher_bytes)
    text, said = b"".join(mine), b"".join(theirs)
    ahead = _ahead(text, said)
    if ahead is None:
        raise DataError(
            f"{whose} is not the same text in both vocabularies, {text[:40].decode(errors='replace')!r} and "
            f"{said[:40].decode(errors='replace')!r}: rows would meet other text's rows; encode one text with both tokenizers, which "
            "neither of them normalises, or leave it out"
        )
    ends, said_ends = list(accumulate(map(len, mine), initial=0)), list(accumulate(map(len, theirs), initial=-ahead))
    stop = max(place for place, end in enumerate(ends) if end <= said_ends[-1])
    start = said_start = 0
    if ahead not in (0, _space(text, said)):
        said_at = {end: place for place, end in enumerate(said_ends)}
        start = next((place for place, end in enumerate(ends) if end in said_at), stop)
        said_start = said_at.get(ends[start], 0)
    if stop <= start:
        raise DataError(
            f"{whose} has no token left where both vocabularies hold the same text: nothing could be learnt from it; raise "
            "max_length, or leave it out"
        )
    return start, said_start, stop


def _texts(tokens: Tensor, texts: list[bytes | None]) -> list[bytes]:
    return [texts[number] or b"" for number in tokens.tolist()]


def _ahead(text: bytes, said: bytes) -> int | None:
    """How many bytes the teacher's text begins before the student's; None where they are not one text."""
    for ahead in sorted(range(-_TOKEN, _TOKEN + 1), key=abs):
        mine, theirs = text[max(-ahead, 0) :], said[max(ahead, 0) :]
        if mine and theirs and _begin_alike(mine, theirs):
            return ahead
    return None


def _space(text: bytes, said: bytes) -> int:
    """1 where the teacher's tokenizer has put a space before the text, −1 where the student's has, else 0."""
    return int(_begin_alike(said, b" " + text)) - int(_begin_alike(text, b" " + said))


def _begin_alike(one: bytes, other: bytes) -> bool:
    return one.startswith(other) or other.startswith(one)
