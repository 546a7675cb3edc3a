"""A teacher of another vocabulary than the student's, heard token by token."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tutelage.data import Batch, Completions, hex_id
from tutelage.data.language.crossing import Crossing, Step
from tutelage.errors import ConfigError, DataError, TeacherError
from tutelage.rows import for_slices, row_count, some_rows
from tutelage.signals import NO_LABEL, SORTED, ClassScores, Logits, Signals
from tutelage.teachers.module import Teacher, as_teacher, scores_in

#: Rows of a head are multiplied out so many at a time.
_ROWS = 128


class CrossTokenizerTeacher:
    """A teacher's distributions carried over into the student's vocabulary, a row for each of the student's tokens.

    Both read the same bytes. Where a token of both begins, each of the teacher's tokens gives its probability to the student's token
    that its text begins with. Where a token of the student's is longer than the teacher's that was written, the teacher's next rows
    divide that one's mass further, so that the label, and what could have stood in its place, has the product along the path. Where a
    token of the student's begins inside one of the teacher's, the row is the teacher's distribution over the tokens that begin with
    what is written. Rows sum to 1.

    Exact where the vocabularies are the same. Otherwise it is an approximation in three ways. What the teacher did not write is known one
    token deep: a token of the teacher's that the student would join with the next one is given to the student's shorter
    token, unless it was written. Inside a token of the teacher's, it is taken as known that the teacher's
    token goes on, which only the rest of the text says: right on average over texts that the teacher might have written, not in one of
    them. And the teacher is asked for its own way of cutting the text, not for all of them. Tokens that are no text and that the student
    does not have (a chat's markers) are left out, the others scaled to 1.

    Learn from it by forward KL: a student's token that none of the teacher's begins with has probability 0, which a
    divergence that looks from the student (reverse KL, Jensen–Shannon) takes for impossible. A temperature softens the distribution
    in the student's vocabulary.

    Args:
        teacher: a module or a teacher, of logits over its own vocabulary for each token of its completions.
        crossing: the two vocabularies.
        classes: the student's number of classes, its vocabulary with what it is padded by; None for its tokenizer's.

    Raises:
        ConfigError: fewer classes than the student's tokenizer has tokens.
    """

    def __init__(self, teacher: nn.Module | Teacher, crossing: Crossing, classes: int | None = None) -> None:
        tokens = len(crossing.student_bytes)
        if classes is not None and classes < tokens:
            raise ConfigError(
                f"the student has {classes:,} classes and its tokenizer {tokens:,} tokens: some would be taught to nobody; give the "
                "student's own tokenizer, or resize its embeddings"
            )
        self.teacher = as_teacher(teacher)
        self.crossing = crossing
        self.classes = classes or tokens

    def signals(self, batch: Batch) -> Signals:
        """Log-probabilities ``[N, C]`` in the student's vocabulary; −inf for a token that none of the teacher's begins with.

        Raises:
            TeacherError: a batch without the teacher's own tokens; completions that are not the same text in both vocabularies;
                a teacher of fewer classes than its tokenizer has tokens, or of other rows than its tokens. And as the teacher's own.
        """
        heard = _heard(self.teacher, self.crossing, batch)
        return Signals(Logits(_carried(heard, self.crossing, self.classes)))


class SortedTeacher:
    """A teacher of another vocabulary, of which only how its probabilities fall off is compared: for the term ``uld``.

    It gives no logits, which nothing could meet, but one feature: each row's probabilities at T = 1 from the largest to the smallest.
    Rows meet where a token of both begins; the student's other rows are 0 throughout, and the term leaves them out.

    Args:
        teacher: a module or a teacher, of logits over its own vocabulary for each token of its completions.
        crossing: the two vocabularies, which say where rows meet.
    """

    def __init__(self, teacher: nn.Module | Teacher, crossing: Crossing) -> None:
        self.teacher = as_teacher(teacher)
        self.crossing = crossing

    def with_features(self, layers: Sequence[str]) -> SortedTeacher:
        """Itself, which shows ``"sorted probabilities"`` and nothing else.

        Raises:
            TeacherError: any other layer.
        """
        others = [layer for layer in layers if layer != SORTED]
        if others:
            raise TeacherError(
                f"the layers {', '.join(map(repr, others))} are asked of a teacher of another vocabulary: its rows are other tokens' than "
                "the student's, and their features would meet by chance; leave those terms out"
            )
        return self

    def signals(self, batch: Batch) -> Signals:
        """The feature ``"sorted probabilities"``, float32 or better ``[N, C of the teacher's tokenizer]``.

        Raises:
            TeacherError: as :meth:`CrossTokenizerTeacher.signals`.
        """
        heard = _heard(self.teacher, self.crossing, batch)
        rows, said = _meeting(heard.steps)
        scores = some_rows(heard.scores, said.to(batch["ids"].device))
        logits = _precise(scores.at(1.0)[:, : len(self.crossing.first)])
        probabilities = torch.softmax(logits, dim=-1).sort(dim=-1, descending=True).values
        found = probabilities.new_zeros(heard.rows, probabilities.shape[1])
        found[rows.to(found.device)] = probabilities
        return Signals(None, {SORTED: found})


class _Heard(NamedTuple):
    """The teacher's scores of its own M rows, and what they say about the student's ``rows``."""

    scores: ClassScores
    steps: list[Step]
    rows: int


def _heard(teacher: Teacher, crossing: Crossing, batch: Batch) -> _Heard:
    completions = batch.get("completions")
    if completions is None or completions.teacher_completions is None or "teacher" not in batch:
        raise TeacherError(
            "the batch has no completions in the teacher's vocabulary: the student's token numbers would be read as the teacher's; give "
            "Completions(teacher_completions=…), as encode does where the two tokenizers differ"
        )
    mine, theirs = completions.completions, completions.teacher_completions
    steps: list[Step] = []
    row = said = 0
    for example, (student, own) in enumerate(zip(mine, theirs, strict=True)):
        try:
            found = crossing.steps(student, own)
        except DataError as error:
            raise TeacherError(f"the example with id {hex_id(int(batch['ids'][example]))}: {error}") from error
        steps += [step._replace(row=step.row + row, said=step.said + said) for step in found]
        row, said = row + len(student), said + len(own)
    scores = scores_in(teacher.signals(_of_the_teachers_own(batch, completions)), teacher)
    if scores.classes < len(crossing.teacher_bytes) or row_count(scores) != said:
        raise TeacherError(
            f"the teacher gave {row_count(scores):,} rows of {scores.classes:,} classes for {said:,} tokens of a vocabulary of "
            f"{len(crossing.teacher_bytes):,}: classes would be taken for other tokens; give the teacher its own tokenizer"
        )
    return _Heard(scores, steps, row)


def _of_the_teachers_own(batch: Batch, completions: Completions) -> Batch:
    """The batch as one whose rows are the teacher's tokens."""
    prompts, own = completions.prompts_of("teacher"), completions.completions_of("teacher")
    found: Batch = {
        "ids": batch["ids"],
        "labels": own.padded(NO_LABEL, at_least=2)[0].to(batch["ids"].device),
        "student": batch.get("teacher"),
        "completions": Completions(prompts, own),
    }
    if "teacher_rows" in batch:
        found["student_rows"] = batch["teacher_rows"]
    return found


def _meeting(steps: Sequence[Step]) -> tuple[Tensor, Tensor]:
    """Rows of both at which a token of both begins, int64."""
    pairs = [(step.row, step.said) for step in steps if step.choices is None]
    rows, said = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).unbind(1)
    return rows, said


def _precise(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _carried(heard: _Heard, crossing: Crossing, classes: int) -> Tensor:
    """Log-probabilities ``[N, C]`` in the student's vocabulary."""
    scores = for_slices(heard.scores)
    by_row = sorted(heard.steps, key=lambda step: step.said)
    ends = list(accumulate(_counts(by_row, row_count(heard.scores)), initial=0))
    out: Tensor | None = None
    mass: Tensor | None = None
    for start in range(0, len(ends) - 1, _ROWS):
        stop = min(start + _ROWS, len(ends) - 1)
        logits = some_rows(scores, slice(start, stop)).at(1.0)[:, : len(crossing.first)]
        probs = torch.softmax(_precise(logits), dim=-1)
        if out is None or mass is None:
            # one column more, for what has no place in the student's vocabulary
            out, mass = probs.new_zeros(heard.rows, classes + 1), probs.new_ones(heard.rows)
        _carry(by_row[ends[start] : ends[stop]], start, probs, crossing, out, mass)
    assert out is not None, "a completion has at least one token"
    kept = out[:, :classes]
    return (kept / kept.sum(1, keepdim=True)).log()


def _counts(steps: Sequence[Step], rows: int) -> list[int]:
    return torch.bincount(torch.tensor([step.said for step in steps], dtype=torch.int64), minlength=rows).tolist()


def _carry(steps: Sequence[Step], first: int, probs: Tensor, crossing: Crossing, out: Tensor, mass: Tensor) -> None:
    """Add what rows ``first``… of the teacher, probabilities ``[R, C of the teacher]``, say to the student's ``[N, C + 1]``."""
    if not steps:
        return
    nowhere = out.shape[1] - 1
    tokens = {step.said - first: step.token for step in steps}
    at = torch.tensor(list(tokens), device=out.device)
    written = torch.tensor(list(tokens.values()), device=out.device)
    # a label that the teacher holds for impossible is still what comes where nothing else can
    path = probs.new_zeros(len(probs)).index_put((at,), probs[at, written].clamp_min(torch.finfo(probs.dtype).tiny))
    probs[at, written] = 0.0
    whole = [(step.row, step.said - first) for step in steps if step.choices is None]
    if whole:
        rows, said = torch.tensor(whole, device=out.device).unbind(1)
        where = crossing.first.to(out.device)
        where = torch.where(where < 0, nowhere, where)
        out[rows] = out[rows].index_add(1, where, probs[said])
    for step in steps:
        row, said = step.row, step.said - first
        if step.choices is not None:
            pieces = step.choices.pieces.to(out.device)
            given = probs[said, step.choices.tokens.to(out.device)] * mass[row]
            out[row].index_add_(0, torch.where(pieces < 0, nowhere, pieces), given)
            if step.choices.other is not None:
                out[row, step.choices.other] += (probs[said].sum() * mass[row] - given.sum()).clamp_min(0.0)
        if step.label is None:
            mass[row] *= path[said]
        else:
            out[row, step.label] += mass[row] * path[said]
