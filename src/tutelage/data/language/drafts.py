"""Examples in the making: both models' prompts and completions in tokens, made to fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tutelage.data.language.conversations import Example, Written
from tutelage.data.language.sides import Prompt, Side
from tutelage.data.language.tokenizers import compare_tokenizers
from tutelage.errors import ConfigError, DataError


@dataclass(frozen=True)
class Draft:
    """An example in the making.

    ``prompt``, ``teacher_prompt``: tokens, None where there is one view · ``completion`` in the student's tokens, and
    ``teacher_completion`` in the teacher's where those are others · ``moved``: the completion's first token stands as the prompt's
    last · ``lost`` tokens were cut off.
    """

    example: Example
    prompt: list[int]
    teacher_prompt: list[int] | None
    completion: list[int]
    teacher_completion: list[int] | None = None
    moved: bool = False
    lost: int = 0

    @property
    def longest(self) -> int:
        """Of the two prompts."""
        return max(len(self.prompt), len(self.teacher_prompt or ()))


def with_answers(examples: list[Example], drop_empty: bool) -> list[Example]:
    """The examples whose answers hold something.

    Raises:
        DataError: some do not and may not be left out.
    """
    blank = [example for example in examples if example.blank]
    if blank and not drop_empty:
        raise DataError(
            f"{len(blank):,} of {len(examples):,} completions are empty, the first in row {blank[0].index}: the student would be taught "
            "to answer nothing; fill them in, or leave them out with drop_empty: true"
        )
    return [example for example in examples if not example.blank]


def written_over(example: Example, written: Written) -> Example:
    """The example with what a model has written in place of its answer."""
    if isinstance(written, str):
        return replace(example, written=written, whole=False)
    return replace(example, tokens=list(written), whole=False)


def drafts_of(own: Side, other: Side | None, examples: list[Example], needs_completion: bool) -> list[Draft]:
    """The examples in tokens, as long as they are.

    Raises:
        ConfigError, DataError: see :func:`tutelage.data.language.encode`.
    """
    prompts = own.prompts(examples)
    taught = None if other is None else other.prompts(examples)
    before = [None] * len(examples) if taught is None else [prompt.tokens for prompt in taught]
    drafts = [
        Draft(example, prompt.tokens, teacher, [])
        for example, prompt, teacher in zip(examples, prompts, before, strict=True)
    ]
    if not (needs_completion and examples):
        return drafts
    for said in (prompts, taught or prompts):
        _refuse_told(examples, said)
    answers = _answers(own, examples, prompts)
    theirs: Sequence[list[int] | None] = [None] * len(examples)
    if other is not None and taught is not None:
        if not _read_alike(own, other):
            _refuse_tokens(examples)
            theirs = _answers(other, examples, taught)
        elif texts := [place for place, example in enumerate(examples) if example.tokens is None]:
            _refuse_other_ends(own, other, examples[texts[0]], prompts[texts[0]], taught[texts[0]])
    return [
        replace(draft, completion=answer, teacher_completion=their)
        for draft, answer, their in zip(drafts, answers, theirs, strict=True)
    ]


def _read_alike(own: Side, other: Side) -> bool:
    return other.tokenizer is own.tokenizer or compare_tokenizers(own.tokenizer, other.tokenizer).same


def _answers(side: Side, examples: list[Example], prompts: list[Prompt]) -> list[list[int]]:
    found = [list(example.tokens or ()) for example in examples]
    texts = [place for place, example in enumerate(examples) if example.tokens is None]
    if texts:
        cut = side.completions([examples[place] for place in texts], [prompts[place] for place in texts])
        for place, tokens in zip(texts, cut, strict=True):
            found[place] = tokens
    return found


def _refuse_told(examples: list[Example], prompts: Sequence[Prompt]) -> None:
    """Plain texts that their prompts already hold are questions taken for their own answers."""
    whole = [(example.answer, prompt.text) for example, prompt in zip(examples, prompts, strict=True) if example.whole]
    if whole and all(isinstance(text, str) and text.strip() in prompt for text, prompt in whole):
        first = next(example.index for example in examples if example.whole)
        raise DataError(
            f"row {first}: the prompt already holds the row's text, which is also what shall be learnt, and so with every such row: the "
            "student would be taught to say the question again; name the column of the answers with completion, or let the teacher "
            "write them (completions: teacher)"
        )


def _refuse_tokens(examples: list[Example]) -> None:
    if any(example.tokens is not None for example in examples):
        raise DataError(
            "completions are given in the student's tokens, and the teacher reads others: what it would read is not known; give them as "
            "texts"
        )


def _refuse_other_ends(own: Side, other: Side, example: Example, prompt: Prompt, taught: Prompt) -> None:
    """The teacher says how likely it is to stop by the token that ends *its* turns."""
    ends = [own.end(example, prompt), other.end(example, taught)]
    if ends[0] != ends[1]:
        names = own.tokenizer.convert_ids_to_tokens(ends)
        raise ConfigError(
            f"a completion ends with {names[0]!r} in the student's view and with {names[1]!r} in the teacher's: the teacher hardly ever "
            "writes the student's, and would teach it never to stop. Let both views go through the chat template (chat: true), or "
            "neither, or make it the eos_token of the student's tokenizer"
        )


def with_prompts(draft: Draft) -> Draft:
    """Where nothing stands before a text, its first token does: no row asks for it, as no model could be asked.

    Raises:
        DataError: a completion of one token with nothing before it.
    """
    bare, theirs_bare = not draft.prompt, draft.teacher_prompt == []
    own, theirs = draft.completion, draft.teacher_completion
    if theirs is None and (bare or theirs_bare):
        taught = None if draft.teacher_prompt is None else draft.teacher_prompt + own[:1]
        draft = replace(draft, prompt=draft.prompt + own[:1], teacher_prompt=taught, completion=own[1:], moved=True)
    elif theirs is not None and bare:
        draft = replace(draft, prompt=own[:1], completion=own[1:], moved=True)
    if theirs is not None and theirs_bare:
        draft = replace(draft, teacher_prompt=theirs[:1], teacher_completion=theirs[1:])
    if not draft.completion or draft.teacher_completion == []:
        raise DataError(
            f"row {draft.example.index}: nothing stands before its completion of one token, and nothing could predict it; give a prompt, "
            "or leave the row out"
        )
    return draft


def stand_in(draft: Draft, own: Side, other: Side | None) -> None:
    """An empty prompt becomes a BOS, which a model can go on from.

    Raises:
        DataError: the tokenizer has none.
    """
    for side, tokens in ((own, draft.prompt), (other, draft.teacher_prompt)):
        if side is None or tokens is None or tokens:
            continue
        bos = side.tokenizer.bos_token_id
        if not isinstance(bos, int):
            raise DataError(
                f"row {draft.example.index}: the {side.name}'s prompt is empty and its tokenizer has no BOS token: nothing to go on "
                f"from; give views.{side.name}"
            )
        tokens.append(bos)


def with_room(drafts: list[Draft], max_length: int, drop_long: bool) -> tuple[list[Draft], int]:
    """The examples whose prompts leave room for a token, and how many do not.

    Raises:
        DataError: some do not and may not be left out, or none does.
    """
    full = [draft for draft in drafts if draft.longest >= max_length]
    if full and (not drop_long or len(full) == len(drafts)):
        worst = max(full, key=lambda draft: draft.longest)
        whose = "student" if len(worst.prompt) == worst.longest else "teacher"
        raise DataError(
            f"{len(full):,} of {len(drafts):,} prompts leave no room for a token to learn in max_length {max_length:,}: the first is row "
            f"{full[0].example.index} with {full[0].longest:,} tokens, the longest row {worst.example.index} with {worst.longest:,} (the "
            f"{whose}'s view). A prompt cut off would ask something else: raise max_length, or shorten the view"
            + ("" if drop_long else ", or leave them out with drop_long: true")
        )
    return [draft for draft in drafts if draft.longest < max_length], len(full)


def pieces_of(draft: Draft, max_length: int, pack_text: bool) -> list[Draft]:
    """The example with its completion cut to what there is room for; of a plain text, all pieces of it where that is wished.

    Raises:
        DataError: a prompt that leaves no room for a further piece.
    """
    theirs = draft.teacher_completion
    if theirs is not None:
        room, their_room = max_length - len(draft.prompt), max_length - len(draft.teacher_prompt or ())
        lost = max(0, len(draft.completion) - room) or max(0, len(theirs) - their_room)
        return [replace(draft, completion=draft.completion[:room], teacher_completion=theirs[:their_room], lost=lost)]
    room = max_length - draft.longest
    rest = draft.completion[room:]
    first = replace(draft, completion=draft.completion[:room], lost=len(rest))
    if not rest or not (pack_text and draft.example.whole):
        return [first]
    # a later piece follows the last token of the one before it, so that each token is asked for once
    kept = slice(None, -1 if draft.moved else None)
    before, taught = draft.prompt[kept], None if draft.teacher_prompt is None else draft.teacher_prompt[kept]
    room = max_length - max(len(before), len(taught or ())) - 1
    if room < 1:
        raise DataError(
            f"row {draft.example.index}: a text cut into pieces leaves no room for them in max_length {max_length:,} behind a prompt of "
            f"{draft.longest:,} tokens; raise max_length"
        )
    pieces, last = [replace(first, lost=0)], first.completion[-1:]
    for start in range(0, len(rest), room):
        piece = rest[start : start + room]
        view = None if taught is None else taught + last
        pieces.append(replace(draft, prompt=before + last, teacher_prompt=view, completion=piece))
        last = piece[-1:]
    return pieces
