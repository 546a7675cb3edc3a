"""What the arms of a language study learn from: the given completions, or those that the teacher writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from tutelage.data import Completions, Ragged, TransferSet
from tutelage.data.language.crossing import Crossing
from tutelage.data.language.cutting import Cutter
from tutelage.data.language.same_text import same_text
from tutelage.data.language.token_bytes import END
from tutelage.errors import ConfigError, DataError
from tutelage.models.writing import Sampling
from tutelage.studies.arm import Progress
from tutelage.studies.language.arms import Author, Shown
from tutelage.studies.language.data import LanguageData, Split
from tutelage.studies.language.generating import GENERATED, Filters, Generated, Generation, generate
from tutelage.studies.language.speaking import Writer, texts_of
from tutelage.studies.setting import bytes_of

Json = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Vocabularies:
    """The tokenizers of both models.

    Args:
        student: the student's.
        teacher: the teacher's own; None for the student's.
        crossing: where the two meet token by token, so that the teacher needs its own tokens of every completion too; else None.
        end: the student's token that ends an answer, as its chat template may have one of its own; None for its tokenizer's EOS.
    """

    student: Any
    teacher: Any = None
    crossing: Crossing | None = None
    end: int | None = None

    def completions(self, split: Split, written: Generated) -> Completions:
        """What the teacher wrote, as prompts and completions of both models."""
        rows = written.sources
        prompts = split.prompts.take(rows)
        taught = None if split.teacher_prompts is None else split.teacher_prompts.take(rows)
        if self.teacher is None:
            return Completions(prompts, written.completions, taught)
        if self.crossing is None:
            return Completions(prompts, self._rewritten(written, prompts))
        written = replace(written, completions=_with_end(written, self.crossing))
        both = Completions(prompts, self._rewritten(written, prompts), taught, written.completions)
        return same_text(both, self.crossing, [f"the completion of example {row}" for row in rows.tolist()])

    def _rewritten(self, written: Generated, prompts: Ragged) -> Ragged:
        """The same texts in the student's tokens, cut as they follow its prompts, as given completions are, with its own token at the
        end of those that were ended."""
        usual = self.student.eos_token_id if self.end is None else self.end
        end: int | None = usual if self.crossing is None else self.crossing.student_end
        if end is None and bool(written.finished.any()):
            raise ConfigError(
                "the student's tokenizer has no token that ends a text: it would never learn to stop where the teacher does; set its "
                "eos_token"
            )
        lists: list[list[int]] = []
        texts, ended = self._texts(written)
        cutter = Cutter(self.student)
        for text, finished, prompt in zip(texts, ended, prompts.lists(), strict=True):
            tokens = _cut(cutter, prompt, text)
            lists.append([*tokens, *([end] if finished and end is not None else [])])
        empty = next((index for index, tokens in enumerate(lists) if not tokens), None)
        if empty is not None:
            raise DataError(
                f"the completion {texts[empty]!r} of example {int(written.sources[empty])} has no token in the student's vocabulary: "
                "nothing would be learnt from it; drop such completions (generate.filters)"
            )
        return Ragged.of(lists)

    def _texts(self, written: Generated) -> tuple[list[str], list[bool]]:
        """What was written, as far as it is a text, and whether it ends."""
        if self.crossing is not None:
            said = [self.crossing.text_of(tokens) for tokens in written.completions.lists()]
            return [text for text, _ in said], [ended for _, ended in said]
        texts, ended = texts_of(self.teacher, written.completions), written.finished.tolist()
        # half of a letter, where the last token allowed is a part of one, is no letter to be learnt
        return [text if over else text.rstrip("\ufffd") for text, over in zip(texts, ended, strict=True)], ended


@dataclass(frozen=True, eq=False)
class Lessons:
    """A study's data with completions.

    Args:
        data: the splits; those of validation and test have completions.
        taught: the train split's completions by who wrote them.
        written: what the teacher wrote for it; None for nothing.
    """

    data: LanguageData
    taught: Mapping[Author, TransferSet]
    written: Generated | None = None

    def shown(self, author: Author, shows: Shown) -> TransferSet:
        """The transfer set of an arm.

        Args:
            author: who wrote the completions.
            shows: whose prompts the student is given; where the teacher's, both models see the same.
        """
        found = self.taught[author]
        inputs = found.inputs
        if shows == "student" or not isinstance(inputs, Completions):
            return found
        return _set_of(
            replace(inputs, prompts=inputs.prompts_of("teacher"), teacher_prompts=None), self.data, found.seed
        )

    @property
    def held_out(self) -> Json:
        """Validation and test split, by a hash of ids, labels and the student's prompts."""
        return held_out_facts(self.data)

    @property
    def digest(self) -> str:
        """A hash of everything that is learnt from or measured on."""
        parts = [bytes_of(each) for each in self.taught.values()]
        rest = [split_digest(split).encode() for name, split in self.data.splits.items() if name != "train"]
        return sha256(b"".join([*parts, *rest])).hexdigest()


def _with_end(written: Generated, crossing: Crossing) -> Ragged:
    """What was written, by whichever token of the model's it was ended, with one that the two vocabularies know as an end."""
    lists = written.completions.lists()
    known = crossing.teacher_bytes
    for tokens, finished in zip(lists, written.finished.tolist(), strict=True):
        if finished and (tokens[-1] >= len(known) or known[tokens[-1]] != END):
            tokens[-1] = crossing.teacher_end
    return Ragged.of(lists)


def _cut(cutter: Cutter, prompt: list[int], text: str) -> list[int]:
    """The tokens of a text behind a prompt of which no more than the tokens is known."""
    front = list(cutter.front)
    bare = prompt[len(front) :] if prompt[: len(front)] == front else prompt
    for before in (bare, prompt):
        whole = cutter.one(cutter.text(before) + text) if text else []
        if whole[: len(before)] == before:
            return whole[len(before) :]
    return cutter.after(prompt, [], text)


def split_digest(split: Split) -> str:
    """A hash of a split's ids, labels and prompts: ids are of what the teacher sees."""
    given = b"" if split.set is None else bytes_of(split.set)
    return sha256(given + split.prompts.values.numpy().tobytes() + split.prompts.offsets.numpy().tobytes()).hexdigest()


def held_out_facts(data: LanguageData) -> Json:
    """Validation and test split as far as they have completions, by a hash of ids, labels and the student's prompts."""
    return {
        f"{name}_set": f"{len(split)} examples, {split_digest(split)[:16]}"
        for name, split in data.splits.items()
        if name != "train" and split.set is not None
    }


def prepare_lessons(
    data: LanguageData,
    authors: set[Author],
    generation: Generation | None,
    writer: Writer | None,
    vocabularies: Vocabularies,
    folder: Path,
    facts: Json,
    progress: Progress,
) -> Lessons:
    """Have the teacher write what is needed and not there: the train split's completions for the arms that learn from them, and a
    held-out split's where the data have none, one a prompt, greedily.

    Args:
        data: the splits.
        authors: whose completions of the train split are learnt from.
        generation: how they are written; None where nothing is.
        writer: the teacher; None where nothing is written.
        vocabularies: of both models.
        folder: of the run.
        facts: what the completions depend on; who the teacher is among it.
        progress: who watches.
    """
    tokenizer = vocabularies.student if vocabularies.teacher is None else vocabularies.teacher

    def write(name: str, split: Split, how: Generation, where: Path) -> Generated:
        assert writer is not None
        return generate(
            writer, tokenizer, split.taught_prompts, split.rows, how, where, facts, progress, f"completions, {name}"
        )

    taught: dict[Author, TransferSet] = {}
    written = None
    if "data" in authors:
        assert data.train.set is not None
        taught["data"] = data.train.set
    if "teacher" in authors:
        assert generation is not None
        written = write("train", data.train, generation, folder / GENERATED)
        taught["teacher"] = _set_of(vocabularies.completions(data.train, written), data)
    held_out: dict[str, Split] = {}
    for name in ("validation", "test"):
        split = data.splits[name]
        if split.set is None:
            assert generation is not None
            sampling = Sampling(generation.sampling.max_new_tokens, greedy=True)
            plain = Generation(sampling, filters=Filters(finished=False), deduplicate=False)
            found = write(name, split, plain, folder / GENERATED / name)
            split = replace(split, set=_set_of(vocabularies.completions(split, found), data))
        held_out[name] = split
    return Lessons(replace(data, **held_out), taught, written)


def probe_of(split: Split, end: int, vocabularies: Vocabularies) -> TransferSet:
    """A few examples to try models on before anything is written: the given ones, or prompts with a token that ends them."""
    few = split.first(4)
    if few.set is not None:
        return few.set
    crossing = vocabularies.crossing
    if crossing is not None:
        ends, theirs = (Ragged.of([[each]] * len(few)) for each in (crossing.student_end, crossing.teacher_end))
        return TransferSet.of_completions(Completions(few.prompts, ends, few.teacher_prompts, theirs))
    taught = None if vocabularies.teacher is not None else few.teacher_prompts
    return TransferSet.of_completions(Completions(few.prompts, Ragged.of([[end]] * len(few)), taught))


def _set_of(completions: Completions, data: LanguageData, seed: int = 0) -> TransferSet:
    return TransferSet.of_completions(completions, layout=data.layout, seed=seed)
