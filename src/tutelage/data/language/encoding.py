"""From rows to prompts and completions in tokens: the completion once, before it what each model sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tutelage.data.completions import Completions
from tutelage.data.language.conversations import Columns, Example, Turns, examples_of
from tutelage.data.language.prompts import PromptView
from tutelage.data.language.sides import Prompt, Side
from tutelage.data.language.templates import Row
from tutelage.data.language.tokenizers import compare_tokenizers
from tutelage.errors import ConfigError, DataError
from tutelage.ragged import Ragged


@dataclass(frozen=True)
class Counts:
    """What became of the rows.

    ``examples`` · ``tokens`` that are supervised · ``prompt_tokens`` and ``teacher_prompt_tokens`` before them, all together ·
    ``cut`` completions that did not fit, so that nothing ends them, and ``cut_tokens`` that they lost · ``dropped_prompts`` that left
    no room · ``dropped_empty`` completions.
    """

    examples: int = 0
    tokens: int = 0
    prompt_tokens: int = 0
    teacher_prompt_tokens: int = 0
    cut: int = 0
    cut_tokens: int = 0
    dropped_prompts: int = 0
    dropped_empty: int = 0


@dataclass(frozen=True, eq=False)
class Encoded:
    """Examples in tokens, one a place in each of these.

    Args:
        completions: None where prompts alone were encoded.
        prompts: what the student reads first.
        teacher_prompts: what the teacher reads first; None for the same.
        rows: the row of each example.
        sources: its number among the given rows.
        references: its answer as a text, empty where it has none; None where no example has one.
        counts: what became of the rows.
    """

    completions: Completions | None
    prompts: Ragged
    teacher_prompts: Ragged | None
    rows: list[Row] = field(repr=False)
    sources: list[int] = field(repr=False)
    references: list[str] | None = field(repr=False)
    counts: Counts

    def with_written(self, completions: Ragged, examples: Tensor | None = None) -> Completions:
        """The prompts with completions that a model has written in the vocabulary that both share, whole.

        Args:
            completions: as written.
            examples: int64 ``[B']``, which prompt each stands after; None for one a prompt, in order.

        Raises:
            DataError: another number of completions than of prompts; an empty one.
        """
        prompts, teacher = self.prompts, self.teacher_prompts
        if examples is not None:
            prompts, teacher = prompts.take(examples), None if teacher is None else teacher.take(examples)
        return Completions(prompts, completions, teacher)


def encode(
    rows: Sequence[Row],
    *,
    student: PromptView,
    student_tokenizer: PreTrainedTokenizerBase,
    teacher: PromptView | None = None,
    teacher_tokenizer: PreTrainedTokenizerBase | None = None,
    columns: Columns | None = None,
    max_length: int,
    completions: Sequence[Sequence[int]] | None = None,
    turns: Turns = "last",
    needs_completion: bool = True,
    drop_long: bool = False,
    drop_empty: bool = False,
    pack_text: bool = False,
) -> Encoded:
    """Rows as prompts and completions in tokens.

    The completion is cut into tokens once, as it follows the student's prompt, and both models are asked about those: the rest of the
    chat template's rendering up to the token that ends the turn, or the plain text and EOS.

    Args:
        rows: mappings from column to value.
        student: what the student sees.
        student_tokenizer: its tokenizer.
        teacher: what the teacher sees; None for the student's view.
        teacher_tokenizer: None for the student's. One of another vocabulary has completions of its own.
        columns: the names to read; None for the usual ones.
        max_length: the most tokens of prompt and completion together, in the longer of the two views.
        completions: written already, one a row, in the student's vocabulary; None for the rows' own.
        turns: ``last``, or ``all`` of the assistant's turns, each an example after the turns before it.
        needs_completion: False for prompts alone, to be answered by a model.
        drop_long: leave out what has a prompt that leaves no room for a token, instead of refusing it.
        drop_empty: leave out what has an empty completion, instead of refusing it.
        pack_text: cut a plain ``text`` that is too long into several examples, each token supervised once, instead of cutting it off.

    Raises:
        ConfigError: a missing chat template, or EOS; views that end a turn differently; arguments that contradict one another.
        DataError: a column that is missing, an empty completion, a prompt that is too long, with the row's number.
    """
    _check(max_length, turns, student, teacher, needs_completion, completions, len(rows))
    needs_answer = needs_completion and completions is None
    given = [student] if teacher is None else [student, teacher]
    needs_prompt = not all(view.user is not None or view.text is not None for view in given)
    examples: list[Example] = []
    for index, row in enumerate(rows):
        examples += examples_of(
            row, index, columns or Columns(), turns=turns, needs_answer=needs_answer, needs_prompt=needs_prompt
        )
    kept = examples if not needs_answer else _with_answers(examples, drop_empty)
    own = Side("student", student, student_tokenizer)
    other = None
    if teacher is not None or teacher_tokenizer is not None:
        other = Side("teacher", teacher or student, teacher_tokenizer or student_tokenizer)
    drafts = _drafts(own, other, kept, completions, needs_answer)
    if not drafts:
        raise DataError(f"of {len(rows):,} rows no example is left: there is nothing to learn from")
    if needs_completion:
        drafts = [_with_prompts(draft) for draft in drafts]
    else:
        for draft in drafts:
            _stand_in(draft, own, other)
    fitting, dropped = _with_room(drafts, max_length, drop_long)
    pieces = [piece for draft in fitting for piece in _pieces(draft, max_length, pack_text)]
    return _encoded(pieces, needs_completion, Counts(dropped_prompts=dropped, dropped_empty=len(examples) - len(kept)))


@dataclass
class _Draft:
    """An example in the making: tokens of both models' prompts and completions, ``None`` for those that are the student's."""

    example: Example
    prompt: list[int]
    teacher_prompt: list[int] | None
    completion: list[int]
    teacher_completion: list[int] | None = None
    lost: int = 0

    @property
    def longest(self) -> int:
        """Of the two prompts."""
        return max(len(self.prompt), len(self.teacher_prompt or ()))


def _check(
    max_length: int,
    turns: Turns,
    student: PromptView,
    teacher: PromptView | None,
    needs_completion: bool,
    completions: Sequence[Sequence[int]] | None,
    rows: int,
) -> None:
    if max_length < 2:
        raise ConfigError(f"max_length is {max_length}, expected at least 2: a token before, and one to be learnt")
    if turns not in ("last", "all"):
        raise ConfigError(f"turns is {turns!r}, expected 'last' or 'all'")
    fixed = [
        view for view in (student, teacher) if view is not None and (view.user is not None or view.text is not None)
    ]
    if turns == "all" and (fixed or not needs_completion or completions is not None):
        raise ConfigError(
            "turns: all makes an example of each of the assistant's turns after the turns before it, and here a view's user or text, or "
            "completions that are still to come, take the place of those turns: one prompt would have many answers; use turns: last"
        )
    if completions is not None and len(completions) != rows:
        raise DataError(
            f"{len(completions):,} written completions for {rows:,} rows: a completion would follow another row's prompt; give one a row"
        )


def _with_answers(examples: list[Example], drop_empty: bool) -> list[Example]:
    blank = [example for example in examples if example.blank]
    if blank and not drop_empty:
        raise DataError(
            f"{len(blank):,} of {len(examples):,} completions are empty, the first in row {blank[0].index}: the student would be taught "
            "to answer nothing; fill them in, or leave them out with drop_empty: true"
        )
    return [example for example in examples if not example.blank]


def _drafts(
    own: Side, other: Side | None, examples: list[Example], written: Sequence[Sequence[int]] | None, needs_answer: bool
) -> list[_Draft]:
    prompts = own.prompts(examples)
    taught = None if other is None else other.prompts(examples)
    shared = (
        other is None or other.tokenizer is own.tokenizer or compare_tokenizers(own.tokenizer, other.tokenizer).same
    )
    answers: Sequence[Sequence[int]] = [()] * len(examples)
    theirs: Sequence[list[int] | None] = [None] * len(examples)
    if written is not None:
        if not shared:
            raise DataError(
                "completions are given in the student's tokens, and the teacher reads others: give them as texts, in a column of the rows"
            )
        answers = [written[example.index] for example in examples]
    elif needs_answer:
        answers = own.completions(examples, prompts)
        if other is not None and taught is not None:
            if shared:
                _refuse_other_ends(own, other, examples, prompts, taught)
            else:
                theirs = other.completions(examples, taught)
    before = [None] * len(examples) if taught is None else [prompt.tokens for prompt in taught]
    rows = zip(examples, prompts, before, answers, theirs, strict=True)
    return [
        _Draft(example, list(prompt.tokens), teacher, list(answer), their)
        for example, prompt, teacher, answer, their in rows
    ]


def _refuse_other_ends(
    own: Side, other: Side, examples: list[Example], prompts: list[Prompt], taught: list[Prompt]
) -> None:
    """The teacher says how likely it is to stop by the token that ends *its* turns."""
    ends = [
        side.completions(examples[:1], said[:1])[0][-1:] for side, said in ((own, prompts), (other, taught)) if examples
    ]
    if ends and ends[0] != ends[1]:
        names = [own.tokenizer.convert_ids_to_tokens(end)[0] for end in ends]
        raise ConfigError(
            f"a completion ends with {names[0]!r} in the student's view and with {names[1]!r} in the teacher's: the teacher hardly ever "
            "writes the student's, and would teach it never to stop. Let both views go through the chat template (chat: true), or "
            "neither, or make it the eos_token of the student's tokenizer"
        )


def _with_prompts(draft: _Draft) -> _Draft:
    """Where nothing stands before a text, its first token does: no row asks for it, as no model could be asked."""
    if not draft.completion:
        raise DataError(f"row {draft.example.index}: the written completion holds no token; leave it out")
    if draft.teacher_completion is None:
        if not draft.prompt or draft.teacher_prompt == []:
            first, draft.completion = draft.completion[:1], draft.completion[1:]
            draft.prompt = draft.prompt + first
            draft.teacher_prompt = None if draft.teacher_prompt is None else draft.teacher_prompt + first
    else:
        if not draft.prompt:
            draft.prompt, draft.completion = draft.completion[:1], draft.completion[1:]
        if not draft.teacher_prompt:
            draft.teacher_prompt, draft.teacher_completion = draft.teacher_completion[:1], draft.teacher_completion[1:]
    if not draft.completion or draft.teacher_completion == []:
        raise DataError(
            f"row {draft.example.index}: nothing stands before its completion of one token, and nothing could predict it; give a prompt, "
            "or leave the row out"
        )
    return draft


def _stand_in(draft: _Draft, own: Side, other: Side | None) -> None:
    """An empty prompt becomes a BOS, which a model can go on from."""
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


def _with_room(drafts: list[_Draft], max_length: int, drop_long: bool) -> tuple[list[_Draft], int]:
    full = [draft for draft in drafts if draft.longest >= max_length]
    if full and (not drop_long or len(full) == len(drafts)):
        worst = max(full, key=lambda draft: draft.longest)
        whose = "student" if len(worst.prompt) == worst.longest else "teacher"
        raise DataError(
            f"{len(full):,} of {len(drafts):,} prompts leave no room for a token to learn in max_length {max_length:,}: the first is row "
            f"{full[0].example.index} with {full[0].longest:,} tokens, the longest row {worst.example.index} with {worst.longest:,} (the "
            f"{whose}'s view). A prompt cut off would ask something else: raise max_length, shorten the view, or leave them out with "
            "drop_long: true"
        )
    return [draft for draft in drafts if draft.longest < max_length], len(full)


def _pieces(draft: _Draft, max_length: int, pack_text: bool) -> list[_Draft]:
    """The example with its completion cut to what there is room for; of a plain text, all pieces of it where that is wished."""
    if draft.teacher_completion is not None:
        room, theirs = max_length - len(draft.prompt), max_length - len(draft.teacher_prompt or ())
        lost = max(0, len(draft.completion) - room)
        return [
            replace(
                draft,
                completion=draft.completion[:room],
                teacher_completion=draft.teacher_completion[:theirs],
                lost=lost or max(0, len(draft.teacher_completion) - theirs),
            )
        ]
    room = max_length - draft.longest
    rest = draft.completion[room:]
    first = replace(draft, completion=draft.completion[:room], lost=len(rest))
    if not rest or not (pack_text and draft.example.whole):
        return [first]
    # a later piece follows the last token of the one before it, so that each token is asked for once
    pieces, last = [replace(first, lost=0)], first.completion[-1:]
    room -= 1
    if room < 1:
        raise DataError(
            f"row {draft.example.index}: a text cut into pieces leaves no room for them in max_length {max_length:,} behind a prompt of "
            f"{draft.longest:,} tokens; raise max_length"
        )
    for start in range(0, len(rest), room):
        piece = rest[start : start + room]
        taught = None if draft.teacher_prompt is None else draft.teacher_prompt + last
        pieces.append(replace(draft, prompt=draft.prompt + last, teacher_prompt=taught, completion=piece))
        last = piece[-1:]
    return pieces


def _encoded(pieces: list[_Draft], needs_completion: bool, counts: Counts) -> Encoded:
    prompts = Ragged.of([piece.prompt for piece in pieces])
    taught = [piece.teacher_prompt for piece in pieces if piece.teacher_prompt is not None]
    same = len(taught) < len(pieces) or all(piece.prompt == piece.teacher_prompt for piece in pieces)
    theirs = [piece.teacher_completion for piece in pieces if piece.teacher_completion is not None]
    teacher_prompts = None if same and not theirs else Ragged.of(taught)
    completions = None
    if needs_completion:
        answers = Ragged.of([piece.completion for piece in pieces])
        completions = Completions(prompts, answers, teacher_prompts, Ragged.of(theirs) if theirs else None)
    texts = [piece.example.reference for piece in pieces]
    seen = prompts if teacher_prompts is None else teacher_prompts
    return Encoded(
        completions,
        prompts,
        teacher_prompts,
        rows=[piece.example.row for piece in pieces],
        sources=[piece.example.index for piece in pieces],
        references=None if all(text is None for text in texts) else [text or "" for text in texts],
        counts=replace(
            counts,
            examples=len(pieces),
            tokens=0 if completions is None else len(completions.completions.values),
            prompt_tokens=len(prompts.values),
            teacher_prompt_tokens=len(seen.values),
            cut=sum(piece.lost > 0 for piece in pieces),
            cut_tokens=sum(piece.lost for piece in pieces),
        ),
    )
