"""The students and assistants that a config names: models of their own as they are, or cut from these or from the teacher."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from tutelage.config.cut_keys import is_cut, is_plain, measures, start_words
from tutelage.config.models import HELD, in_full_precision, maker, model_source, naming
from tutelage.config.schema import AssistantSection, StudentSection, StudyConfig
from tutelage.data import Chain, Draws, Tokenise, TransferSet, View, is_random
from tutelage.errors import ConfigError
from tutelage.models import load_model
from tutelage.models.calling import Inputs, unwrapped
from tutelage.models.shrinking import Importance, importance_of, shrink
from tutelage.models.shrinking.building import drawn_anew
from tutelage.models.vocabulary_cut import VocabularyCut, cut_vocabulary
from tutelage.models.vocabulary_cut_rows import with_rows
from tutelage.signals import NO_LABEL
from tutelage.studies.arm import build_seeded
from tutelage.studies.starting import FromTeacher, Maker, Start, Uncut, bound
from tutelage.teachers import Teacher

#: Training examples on which it is measured what counts, and how many are shown at once.
MEASURED, _BATCH = 256, 32


@dataclass(frozen=True)
class Made:
    """What a section of a config makes.

    Args:
        maker: makes its fresh models.
        view: what they see of an example; the data's student view where None.
        tokenizer: of that view; None without one.
        facts: what decides their weights beside the section's keys.
        start: how they begin, for the record; None for a model of its own as it is.
        uncut: they as they pass a stage, where their vocabulary is cut after it.
    """

    maker: Maker
    view: View | None
    tokenizer: Any
    facts: Mapping[str, Any]
    start: Start | None
    uncut: Uncut | None = None


class Starts:
    """Makes what sections say of students and assistants. What takes looking at data or a model is looked at once.

    Args:
        config: the config.
        folder: where it lies.
        train: the transfer set, as the data's own views show it.
        tokenizer: of the student's view; None without one.
        teacher: gives the teacher as far as it can be seen before it is trained.
    """

    def __init__(
        self,
        config: StudyConfig,
        folder: Path,
        train: TransferSet,
        tokenizer: Any,
        teacher: Callable[[], nn.Module | Teacher],
    ) -> None:
        self._config, self._folder, self._train, self._tokenizer = config, folder, train, tokenizer
        self._teacher = teacher
        self._vocabularies: dict[str, tuple[View, VocabularyCut]] = {}

    @property
    def view(self) -> View | None:
        """What students see whose vocabulary is not cut."""
        return self._train.student_view

    def of(self, section: StudentSection | AssistantSection, where: str) -> Made:
        """What a section makes.

        Args:
            section: a student's or an assistant's.
            where: its key in the config, for messages.
        """
        if section.model is not None and is_plain(section):
            plain = maker(section.model, self._folder, f"{where}.model")
            return Made(plain, None, self._tokenizer, {}, Start(start_words(section), cut=False))
        whole = self._whole(section, where)
        view, tokenizer, kept, facts = None, self._tokenizer, None, dict[str, Any]()
        if section.vocabulary is not None:
            with naming(f"{where}.vocabulary"):
                view, vocabulary = self._vocabulary(section, bound(whole, self._teacher))
            tokenizer, kept = vocabulary.tokenizer, vocabulary.kept
            digest = sha256(",".join(map(str, kept)).encode()).hexdigest()[:16]
            facts = {"tokens kept": f"{len(kept):,}, {digest}"}
        measured = _Measured(section, where, self._batches)
        cut = _Cut(section, where, kept, measured)
        made_of_another = section.origin is not None or is_cut(section) or kept is not None
        start = Start(start_words(section), cut=made_of_another)
        if not isinstance(whole, FromTeacher) and section.origin is None:
            start = replace(start, whole=whole)
        uncut = None
        if kept is not None:
            uncut = Uncut(_Cut(section, where, None, measured).maker(whole), cut.with_kept_rows)
        return Made(cut.maker(whole), view, tokenizer, facts, start, uncut)

    def _whole(self, section: StudentSection | AssistantSection, where: str) -> Maker:
        """What is cut: a model of its own, or the teacher."""
        teacher = self._config.teacher.model
        if section.model is not None:
            return maker(section.model, self._folder, f"{where}.model")
        assert teacher is not None  # check_starts found one
        if self._config.teacher.training is None and any(name in teacher.arguments for name in HELD):
            # its weights are held in fewer bits, and a student is trained in float32 all the same
            source = in_full_precision(model_source(teacher, self._folder))
            return cache(lambda: load_model(source, trained=True))
        return FromTeacher(lambda module: module)

    def _vocabulary(
        self, section: StudentSection | AssistantSection, whole: Callable[[], nn.Module]
    ) -> tuple[View, VocabularyCut]:
        key = "teacher" if section.model is None else repr(section.model.resolved())
        if key not in self._vocabularies:
            cut = cut_vocabulary(build_seeded(whole, 0), self._tokenizer, self._texts())
            steps = [
                Tokenise(cut.tokenizer, step.max_length) if isinstance(step, Tokenise) else step
                for step in self._steps()
            ]
            self._vocabularies[key] = (steps[0] if len(steps) == 1 else Chain(steps)), cut
        return self._vocabularies[key]

    def _steps(self) -> Sequence[View]:
        view = self._train.student_view
        assert view is not None  # check_starts found a step that tokenises
        return list(view.views) if isinstance(view, Chain) else [view]

    def _texts(self) -> Sequence[str]:
        """The training texts, as they are tokenised."""
        train, texts = self._train, self._train.inputs
        draws = Draws(train.seed, 0, train.ids)
        for step in self._steps():
            if isinstance(step, Tokenise):
                break
            if is_random(step):
                raise ConfigError(
                    f"the view {step!r} before tokenise draws at random: other texts than the ones looked at now may hold words that "
                    "would be unknown to the student; take it out of the student's view, or leave vocabulary out"
                )
            texts = step(texts, draws)
        if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
            raise ConfigError(f"the student's tokenise is given a {type(texts).__name__}, expected texts")
        return texts

    def _batches(self, *, of_teacher: bool) -> list[Inputs]:
        """Training examples, evenly spread, as the model that is to be cut sees them; labelled ones, with labels, where there are some."""
        train = self._train.for_evaluation()
        known = torch.nonzero(train.known_labels != NO_LABEL)[:, 0]
        pool = known if len(known) else torch.arange(len(train))
        rows = pool[torch.linspace(0, len(pool) - 1, min(MEASURED, len(pool))).round().long()]
        found: list[Inputs] = []
        for few in rows.split(_BATCH):
            batch: Any = train.batch(few)
            seen = batch.get("teacher", batch["student"]) if of_teacher else batch["student"]
            labelled = len(known) > 0 and isinstance(seen, Mapping)
            found.append({**seen, "labels": batch["labels"]} if labelled else seen)
        return found


class _Measured:
    """What counts in the models that a section's students are cut from, where its keys ask for that; looked at once.

    Args:
        section: the keys.
        where: they stand, for messages.
        batches: gives what a model's units are measured on.
    """

    def __init__(
        self, section: StudentSection | AssistantSection, where: str, batches: Callable[..., list[Inputs]]
    ) -> None:
        self._asked, self._where, self._batches = measures(section), where, batches
        self._known: WeakKeyDictionary[Any, Importance] = WeakKeyDictionary()

    def of_one(self, module: nn.Module) -> Importance | None:
        """Of the teacher."""
        return self._of(module, lambda: module, of_teacher=True)

    def of_fresh(self, whole: Callable[[], nn.Module]) -> Importance | None:
        """Of models of its own, as one of them shows it for all."""
        return self._of(whole, lambda: build_seeded(whole, 0), of_teacher=False)

    def _of(self, key: Any, model: Callable[[], nn.Module], *, of_teacher: bool) -> Importance | None:
        if self._asked and key not in self._known:
            with naming(self._where):
                self._known[key] = importance_of(model(), self._batches(of_teacher=of_teacher))
        return self._known.get(key)


class _Cut:
    """Makes models by a section's keys.

    Args:
        section: the keys.
        where: they stand, for messages.
        kept: old numbers of the tokens that are left, by their new ones; None for all.
        measured: what counts in a model.
    """

    def __init__(
        self,
        section: StudentSection | AssistantSection,
        where: str,
        kept: Sequence[int] | None,
        measured: _Measured,
    ) -> None:
        self._section, self._where, self._kept, self._measured = section, where, kept, measured
        self._known: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()

    def maker(self, whole: Maker) -> Maker:
        """What makes students of what is cut."""
        if isinstance(whole, FromTeacher):
            return FromTeacher(self.of_one)
        if self._section.origin is not None:
            return lambda: self.of_one(whole())
        return lambda: self.of_fresh(whole)

    def of_one(self, module: nn.Module) -> nn.Module:
        """A fresh student of a module that is the same each time: the same weights, or with ``initial: random`` only the shape."""
        if module not in self._known:
            made = self._smaller(module, self._measured.of_one(module))
            self._known[module] = copy.deepcopy(made) if made is module else made
        return self._begun(copy.deepcopy(self._known[module]).requires_grad_(True))

    def of_fresh(self, whole: Callable[[], nn.Module]) -> nn.Module:
        """A fresh student of one of these models, some of whose weights the seed may draw; what is kept does not depend on that."""
        return self._begun(self._smaller(whole(), self._measured.of_fresh(whole)))

    def with_kept_rows(self, module: nn.Module) -> nn.Module:
        """A model with the rows of the tokens that are left."""
        assert self._kept is not None
        with naming(self._where):
            return with_rows(unwrapped(module), list(self._kept))

    def _smaller(self, module: nn.Module, importance: Importance | None) -> nn.Module:
        section = self._section
        with naming(self._where):
            if is_cut(section):
                module = shrink(
                    module,
                    layers=section.layers,
                    hidden=section.hidden,
                    heads=section.heads,
                    feed_forward=section.feed_forward,
                    importance=importance,
                )
        return module if self._kept is None else self.with_kept_rows(module)

    def _begun(self, module: nn.Module) -> nn.Module:
        if self._section.initial != "random":
            return module
        with naming(f"{self._where}.initial"):
            return drawn_anew(module)
