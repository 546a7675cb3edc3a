"""From rows to prompts and completions in tokens: the completion once, before it what each model sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tutelage.data.completions import Completions
from tutelage.data.language.conversations import Columns, Turns, Written, examples_of
from tutelage.data.language.crossing import Crossing
from tutelage.data.language.drafts import (
    Draft,
    drafts_of,
    pieces_of,
    stand_in,
    with_answers,
    with_prompts,
    with_room,
    written_over,
)
from tutelage.data.language.prompts import PromptView
from tutelage.data.language.same_text import same_text
from tutelage.data.language.sides import Side
from tutelage.data.language.templates import Row
from tutelage.data.language.token_bytes import END
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

    def in_same_text(self, crossing: Crossing) -> Encoded:
        """The same examples with both models' completions brought to the same text, see :func:`same_text`: what two vocabularies are to
        learn from one another token by token. Without completions there is nothing to bring together yet.

        Raises:
            DataError: a row of two texts, or without a token left.
        """
        if self.completions is None:
            return self
        found = same_text(self.completions, crossing, [f"row {source}" for source in self.sources])
        last = found.completions.values[found.completions.offsets[1:] - 1]
        counts = replace(
            self.counts,
            tokens=len(found.completions.values),
            prompt_tokens=len(found.prompts.values),
            teacher_prompt_tokens=len(found.prompts_of("teacher").values),
            cut=sum(crossing.student_bytes[token] != END for token in last.tolist()),
        )
        moved = replace(self, completions=found, prompts=found.prompts, counts=counts)
        return replace(moved, teacher_prompts=found.teacher_prompts)


def encode(
    rows: Sequence[Row],
    *,
    student: PromptView,
    student_tokenizer: PreTrainedTokenizerBase,
    teacher: PromptView | None = None,
    teacher_tokenizer: PreTrainedTokenizerBase | None = None,
    columns: Columns | None = None,
    max_length: int,
    completions: Sequence[Written] | None = None,
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
        completions: written already, one a row in place of its own: tokens of the student's vocabulary, taken as they are, or texts,
            which are ended as the rows' own are.
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
    columns = columns or Columns()
    examples = [
        example
        for index, row in enumerate(rows)
        for example in examples_of(
            row, index, columns, turns=turns, needs_answer=needs_answer, needs_prompt=needs_prompt
        )
    ]
    if completions is not None:
        examples = [written_over(example, completions[example.index]) for example in examples]
    kept = with_answers(examples, drop_empty) if needs_completion else examples
    own = Side("student", student, student_tokenizer)
    other = None
    if teacher is not None or teacher_tokenizer is not None:
        other = Side("teacher", teacher or student, teacher_tokenizer or student_tokenizer)
    drafts = drafts_of(own, other, kept, needs_completion)
    if not drafts:
        raise DataError(f"of {len(rows):,} rows no example is left: there is nothing to learn from")
    if needs_completion:
        drafts = [with_prompts(draft) for draft in drafts]
    else:
        for draft in drafts:
            stand_in(draft, own, other)
    fitting, dropped = with_room(drafts, max_length, drop_long)
    pieces = [piece for draft in fitting for piece in pieces_of(draft, max_length, pack_text)]
    return _encoded(pieces, needs_completion, Counts(dropped_prompts=dropped, dropped_empty=len(examples) - len(kept)))


def _check(
    max_length: int,
    turns: Turns,
    student: PromptView,
    teacher: PromptView | None,
    needs_completion: bool,
    completions: Sequence[Written] | None,
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


def _encoded(pieces: list[Draft], needs_completion: bool, counts: Counts) -> Encoded:
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
