"""From a config's ``data`` and ``views`` to the tokens of a study's three splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from tutelage.config.language.checking import arms_of
from tutelage.config.language.schema import LanguageConfig, LanguageDataSection, PromptSection
from tutelage.config.models import naming, user_function
from tutelage.data import Ragged, TransferSet
from tutelage.data.language import (
    Columns,
    Encoded,
    PromptView,
    Row,
    TextSource,
    compare_tokenizers,
    encode,
    eos_ids,
    load_tokenizer,
    overlapping,
    read_parts,
    read_rows,
    refuse_other_tokenizer,
    split_rows,
)
from tutelage.data.language.crossing import Crossing
from tutelage.data.language.splitting import row_keys
from tutelage.errors import ConfigError, DataError
from tutelage.models.hub import expect_hub
from tutelage.studies.language import LanguageData, Split

#: How the two vocabularies meet, as a study has it.
Alignment = Literal["same", "text", "crossing", "uld"]


@dataclass(frozen=True)
class Tokenizers:
    """The student's tokenizer, and the teacher's where it is another one.

    Args:
        student: what the student reads and writes.
        teacher: None for the same.
        alignment: how the two meet, as a study has it.
        digests: what each holds, for the run's fingerprint.
    """

    student: PreTrainedTokenizerBase
    teacher: PreTrainedTokenizerBase | None
    alignment: Alignment
    digests: dict[str, str]


class Texts(NamedTuple):
    """What a study is about: ``data``, the splits · ``crossing``, where two vocabularies meet token by token, else None."""

    data: LanguageData
    crossing: Crossing | None


def read_tokenizers(config: LanguageConfig, folder: Path) -> Tokenizers:
    """Both tokenizers, found to be the same or said to meet in another way.

    Args:
        config: the config.
        folder: where it lies.

    Raises:
        ConfigError: none can be found; two that differ without ``teacher.alignment``, or an alignment of two that do not.
    """
    own = _tokenizer(*_named(config, "student"), folder=folder, where="student.tokenizer")
    digests = {"student": _digest(own)}
    name, revision = _named(config, "teacher")
    if name is None or (name, revision) == _named(config, "student"):
        other = None
    else:
        other = _tokenizer(name, revision, folder=folder, where="teacher.tokenizer")
        digests["teacher"] = _digest(other)
    alignment = config.teacher.alignment
    if alignment is not None and (other is None or compare_tokenizers(own, other).same):
        raise ConfigError(
            f"teacher.alignment is {alignment!r}, and student and teacher have the same tokenizer: they would meet less exactly than they "
            "can, token by token; leave it out"
        )
    if other is not None and alignment is None:
        with naming("teacher"):
            refuse_other_tokenizer(own, other)
    # of two that are the same the teacher's may still have another chat template, which its own prompts are written in
    return Tokenizers(own, other, alignment or "same", digests)


def read_data(config: LanguageConfig, folder: Path, tokenizers: Tokenizers) -> Texts:
    """The rows as tokens for both models, in three splits; of two vocabularies that meet token by token, the same texts in both.

    Args:
        config: the config.
        folder: where it lies.
        tokenizers: as :func:`read_tokenizers` has them.

    Raises:
        DataError: a source that cannot be read, a row that cannot be made into tokens (it is named), splits that overlap.
    """
    data, views = config.data, _views(config)
    with naming("data"):
        pool, given_test = read_rows(_source(data, folder))
        pool = pool[: data.limit]
        _check_test(data, given_test)
        answered = _answers_wanted(config) or _have_answers(pool, data)
        if given_test is not None:
            pool = _without_overlap(pool, given_test, data, views, answered)
        test, read = data.splits.test or 0.0, _read(pool, data, views, answered)
        parts = split_rows(pool, data.splits.validation, test, data.seed, data.splits.by, read)
    made = _encoded(config, tokenizers, pool, answered)
    crossing = _crossing(tokenizers, made)
    made = _met(made, crossing)
    tested = made
    if given_test is not None:
        with naming("the test set"):
            tested = _met(_encoded(config, tokenizers, given_test, answered), crossing)
    rows = [parts[0], parts[1], range(len(given_test)) if given_test is not None else parts[2]]
    alike = _alike(read, data)
    theirs = alike if given_test is None else _alike(_read(given_test, data, views, answered), data)
    train, validation, held_out = (
        _split(each, set(members), groups, data)
        for each, members, groups in zip((made, made, tested), rows, (alike, alike, theirs), strict=True)
    )
    dropped = 0
    if data.splits.drop_overlap:
        dropped = len(train) + len(validation)
        train, validation = train.without(validation, held_out), validation.without(held_out)
        dropped -= len(train) + len(validation)
    counts = [made.counts] if tested is made else [made.counts, tested.counts]
    found = LanguageData(
        train,
        validation,
        held_out,
        cut=sum(count.cut for count in counts),
        dropped=dropped + sum(count.dropped_prompts + count.dropped_empty for count in counts),
        end=_end(config, tokenizers, pool) if tokenizers.alignment == "text" else None,
        max_length=data.max_length,
        layout=data.layout,
    )
    return Texts(found, crossing)


def prompt_view(section: PromptSection) -> PromptView:
    """What one model sees, as the config says it."""
    said: dict[str, Any] = {name: getattr(section, name) for name in type(section).model_fields}
    said["shots"] = [shot.model_dump() for shot in section.shots]
    return PromptView(**said)


def _named(config: LanguageConfig, whose: str) -> tuple[str | None, str | None]:
    """Where a model's tokenizer is: a hub id, a folder or a ``file.py:function``, and its revision; None where nothing says."""
    teacher, student = config.teacher, config.student
    if whose == "teacher":
        model = teacher.model or (teacher.ensemble[0].model if teacher.ensemble else None)
        said = teacher.tokenizer
    else:
        if student.origin is not None:
            return _named(config, "teacher")
        model, said = student.model, student.tokenizer
    if said is not None:
        return said, None
    return (model.hub, model.revision) if model is not None else (None, None)


def _tokenizer(name: str | None, revision: str | None, *, folder: Path, where: str) -> PreTrainedTokenizerBase:
    if name is None:
        raise ConfigError(
            f"{where} is missing, and the model comes from Python code, which does not say what its tokens are: give an id or a folder "
            "with a tokenizer's files, or 'file.py:function'"
        )
    if name.rpartition(":")[0].endswith(".py"):
        made = user_function(name, folder, where, 0)()
        if not isinstance(made, PreTrainedTokenizerBase):
            raise ConfigError(f"{where}: {name!r} returned a {type(made).__name__}, expected a transformers tokenizer")
        return made
    with naming(where):
        expect_hub(name, folder)
        return load_tokenizer(folder / name if (folder / name).is_dir() else name, revision)


def _digest(tokenizer: Any) -> str:
    """Of what decides a text's tokens: the tokenizer's own rules, its marks and its chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    marks = repr(sorted((name, str(mark)) for name, mark in tokenizer.special_tokens_map.items()))
    whole = "\0".join([rules, marks, repr(tokenizer.chat_template)])
    return sha256(whole.encode()).hexdigest()[:16]


def _source(data: LanguageDataSection, folder: Path) -> TextSource:
    make = user_function(data.python, folder, "data.python", 0) if data.python is not None else None
    return TextSource(
        source=data.source,
        path=data.path,
        test_path=data.test_path,
        name=data.name,
        revision=data.revision,
        split=data.split or "train",
        test_split=data.test_split,
        folder=folder,
        make=make,
    )


def _check_test(data: LanguageDataSection, given: Sequence[Row] | None) -> None:
    if data.splits.test is None and given is None:
        raise ConfigError(
            "splits.test is missing, and the source brings no test set of its own: give a fraction, e.g. 0.2"
        )
    if data.splits.test is not None and given is not None:
        raise ConfigError(
            f"splits.test is {data.splits.test}, but the source brings a test set of its own: leave the fraction out to use it, or name "
            "only the training part"
        )


def _views(config: LanguageConfig) -> list[PromptView]:
    return [prompt_view(view) for view in (config.views.student, config.views.teacher) if view is not None]


def _read(rows: Sequence[Row], data: LanguageDataSection, views: Sequence[PromptView], answered: bool) -> Sequence[Row]:
    """Of each row what decides whether it is another one's equal: the columns that are named, else what models read."""
    if data.splits.by is not None:
        return rows
    return read_parts(rows, views, _columns(data), answered=answered)


def _columns(data: LanguageDataSection) -> Columns:
    return Columns(messages=data.messages, prompt=data.prompt, completion=data.completion, text=data.text)


def _without_overlap(
    pool: Sequence[Row], test: Sequence[Row], data: LanguageDataSection, views: Sequence[PromptView], answered: bool
) -> list[Row]:
    ours, theirs = (_read(rows, data, views, answered) for rows in (pool, test))
    shared = set(overlapping(ours, theirs, data.splits.by))
    if shared and not data.splits.drop_overlap:
        raise DataError(
            f"{len(shared):,} of {len(pool):,} rows also stand in the test set, the first in row {min(shared)}: the student would be "
            "tested on what it was taught; take them out with splits.drop_overlap: true"
        )
    return [row for index, row in enumerate(pool) if index not in shared]


def _answers_wanted(config: LanguageConfig) -> bool:
    """Whether some arm learns from the data's own completions."""
    _, own = arms_of(config)
    return "data" in (config.data.completions, *(arm.completions for arm in own.values()))


def _have_answers(rows: Sequence[Row], data: LanguageDataSection) -> bool:
    """Whether the rows bring completions of their own, where none is learnt from: then they are what is measured on.

    Raises:
        DataError: some do and some do not.
    """
    has = [_has_answer(row, data) for row in rows]
    if any(has) and not all(has):
        raise DataError(
            f"row {has.index(True)} has a completion of its own and row {has.index(False)} has none: with completions: teacher the "
            "held-out rows are measured on their own completions or on those that the teacher writes, never on a mixture; complete the "
            f"others, or take them out of all (such as with data.completion: none, where the column is {data.completion!r})"
        )
    return all(has)


def _has_answer(row: Row, data: LanguageDataSection) -> bool:
    messages = row.get(data.messages)
    last = messages[-1] if isinstance(messages, Sequence) and messages else None
    return row.get(data.completion) is not None or (isinstance(last, Mapping) and last.get("role") == "assistant")


def _encoded(config: LanguageConfig, tokenizers: Tokenizers, rows: Sequence[Row], answered: bool) -> Encoded:
    data, views = config.data, config.views
    return encode(
        rows,
        student=prompt_view(views.student),
        student_tokenizer=tokenizers.student,
        teacher=prompt_view(views.teacher) if views.teacher is not None else None,
        teacher_tokenizer=tokenizers.teacher,
        columns=_columns(data),
        max_length=data.max_length,
        turns=data.turns,
        needs_completion=answered,
        drop_long=data.drop_long,
        drop_empty=data.drop_empty,
        pack_text=data.pack_text,
    )


def _end(config: LanguageConfig, tokenizers: Tokenizers, rows: Sequence[Row]) -> int:
    """The token that ends what the student answers, by its view."""
    data, view = config.data, prompt_view(config.views.student)
    own, length = tokenizers.student, 1 << 30
    answered = encode(
        rows[:1], student=view, student_tokenizer=own, columns=_columns(data), max_length=length, completions=["b"]
    )
    assert answered.completions is not None
    return int(answered.completions.completions[0][-1])


def _crossing(tokenizers: Tokenizers, encoded: Encoded) -> Crossing | None:
    """How the two vocabularies meet token by token, with what ends the given completions as what ends one."""
    if tokenizers.alignment not in ("crossing", "uld"):
        return None
    given = encoded.completions
    with naming("teacher.alignment"):
        return Crossing(
            tokenizers.student,
            tokenizers.teacher,
            student_ends=_ends(tokenizers.student, given.completions if given is not None else None),
            teacher_ends=_ends(tokenizers.teacher, given.teacher_completions if given is not None else None),
        )


def _ends(tokenizer: Any, completions: Ragged | None) -> list[int]:
    """The tokens that end a text, first the one that ends most of the completions; without any, the tokenizer's EOS."""
    ends = eos_ids(tokenizer)
    if completions is None:
        return sorted(ends, key=lambda end: end != tokenizer.eos_token_id)
    last = completions.values[completions.offsets[1:] - 1]
    return sorted(ends, key=lambda end: -int((last == end).sum()))


def _met(encoded: Encoded, crossing: Crossing | None) -> Encoded:
    if crossing is None:
        return encoded
    with naming("teacher.alignment"):
        return encoded.in_same_text(crossing)


def _alike(rows: Sequence[Row], data: LanguageDataSection) -> list[int]:
    """Of each row the first one that is its equal, by what the rows are divided by."""
    first: dict[bytes, int] = {}
    return [first.setdefault(key, index) for index, key in enumerate(row_keys(rows, data.splits.by))]


def _split(encoded: Encoded, members: set[int], alike: Sequence[int], data: LanguageDataSection) -> Split:
    """The examples made of these rows, those of rows that are alike from one source."""
    places = torch.tensor([place for place, row in enumerate(encoded.sources) if row in members], dtype=torch.int64)
    if not len(places):
        raise DataError(
            "no example of one of the splits is left: all of its prompts leave no room within data.max_length, or are empty; raise it, or "
            "give more rows"
        )
    completions = encoded.completions.take(places) if encoded.completions is not None else None
    made = (
        TransferSet.of_completions(completions, layout=data.layout, seed=data.seed) if completions is not None else None
    )
    taught = encoded.teacher_prompts
    told = encoded.references
    return Split(
        set=made,
        rows=[encoded.rows[place] for place in places.tolist()],
        prompts=encoded.prompts.take(places),
        teacher_prompts=taught.take(places) if taught is not None else None,
        references=[told[place] for place in places.tolist()] if told is not None else None,
        sources=torch.tensor([alike[encoded.sources[place]] for place in places.tolist()]),
    )
