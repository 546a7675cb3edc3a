"""A language study at work in its folder: what is checked first, what is written and kept, and its arms one after another."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tutelage.data import Completions, TransferSet
from tutelage.data.language import eos_ids
from tutelage.errors import ConfigError, TutelageError
from tutelage.evaluation.language import RememberedScores
from tutelage.evaluation.task_score import ChoiceScore, ExactMatch, Speaker
from tutelage.models.adapters import has_adapters, merged
from tutelage.objectives import as_objective
from tutelage.signals import ClassMap, SparseTargets
from tutelage.studies.arm import Progress, build_seeded, weights_digest
from tutelage.studies.gates import JUDGED
from tutelage.studies.label_binds import teacher_fact
from tutelage.studies.language.arms import UNTOUCHED, LanguageArm
from tutelage.studies.language.belonging import expect_own_folder
from tutelage.studies.language.budgets import as_many_steps
from tutelage.studies.language.costing import Deployed, language_costs, prompt_worth
from tutelage.studies.language.data import LanguageData
from tutelage.studies.language.generating import expect_a_batch, prompts_digest
from tutelage.studies.language.lessons import Lessons, Vocabularies, prepare_lessons, probe_of
from tutelage.studies.language.measuring import Exam
from tutelage.studies.language.meeting import check_meeting, compared_with, crossing_of
from tutelage.studies.language.recording import TEACHER
from tutelage.studies.language.room import check_room
from tutelage.studies.language.speaking import ModuleSpeaker, SignalSpeaker, Writer, choice_tokens
from tutelage.studies.language.training import (
    LanguagePlan,
    LanguageRun,
    commit_language_run,
    in_words,
    language_trainer,
    read_language_arm,
    run_language_arm,
)
from tutelage.studies.preflight import check_folder, check_student, check_training
from tutelage.studies.stored_labels import Kept, check_form, keep
from tutelage.studies.teaching import teacher_identity
from tutelage.teachers import ModuleTeacher, Teacher
from tutelage.training.checkpoints import compare_fingerprints
from tutelage.training.listening import first_signals
from tutelage.training.on_policy import bound_to_given

if TYPE_CHECKING:
    from tutelage.studies.language.study import LanguageStudy

Json = dict[str, Any]

#: Examples in a batch where the training's arguments do not say: transformers' own.
_BATCH = 8


@dataclass(frozen=True)
class Work:
    """A study in a folder, which was found to fit together.

    Args:
        study: what is asked for.
        folder: where.
        progress: who watches.
        teacher: whom the arms hear.
        class_map: which classes both models share, where their heads are padded differently; None for all.
        eos: tokens that end what the student writes.
        compared: with whom students are compared token by token; None where they cannot be.
    """

    study: LanguageStudy
    folder: Path
    progress: Progress
    teacher: Teacher
    class_map: ClassMap | None
    eos: Sequence[int]
    compared: Teacher | None = None

    @property
    def vocabularies(self) -> Vocabularies:
        """The tokenizers of both models."""
        study = self.study
        return Vocabularies(study.tokenizer, study.teacher_tokenizer, crossing_of(study.teacher), study.data.end)

    @cached_property
    def teacher_name(self) -> str:
        """What tells the teacher from another, as students are compared with it."""
        return teacher_identity(_inner(self.teacher) if self.compared is None else self.compared)

    def lessons(self) -> Lessons:
        """The data with completions; what is missing of them is written."""
        study = self.study
        speaker = self.teacher_speaker
        facts = {"teacher": teacher_fact(_inner(self.teacher)), "eos": _plain_eos(speaker)} if self._writes else {}
        if self._writes and not isinstance(speaker, Writer):
            raise ConfigError(
                f"the teacher is to write completions, and {type(_inner(self.teacher)).__name__} cannot: it has no model of its own, only "
                "what it says about given texts; let one model write (as the teacher, or as teacher_speaker), or give completions"
            )
        lessons = prepare_lessons(
            study.data,
            study.authors,
            study.generation,
            speaker if isinstance(speaker, Writer) else None,
            self.vocabularies,
            self.folder,
            facts,
            self.progress,
        )
        if lessons.written is not None:
            expect_a_batch(lessons.written, int(study.training.get("per_device_train_batch_size", _BATCH)))
        return lessons

    @property
    def _writes(self) -> bool:
        study = self.study
        return "teacher" in study.authors or any(
            split.set is None for split in (study.data.validation, study.data.test)
        )

    def kept(self, lessons: Lessons, *, verify: bool = False) -> dict[str, Kept]:
        """The stored labels of each arm that learns from some; arms with the same ones share a store."""
        found: dict[Any, Kept] = {}
        by_arm: dict[str, Kept] = {}
        for arm in self.study.lessons:
            labels = self.study.labels_of(arm)
            if labels is None:
                continue
            author = self.study.author(arm)
            key = (repr(labels), author)
            if key not in found:
                own = self.study.lessons[arm].labels is not None or author != self.study.completions
                place = self.folder / arm if own else self.folder
                train = lessons.shown(author, "student")
                found[key] = keep(labels, self.teacher, train, place, self.progress, verify=verify)
            by_arm[arm] = found[key]
        return by_arm

    def runs(self, lessons: Lessons, kept: Mapping[str, Kept]) -> dict[str, list[LanguageRun]]:
        """Every arm, the teacher and the untouched student among them; what is done is read."""
        study = self.study
        exam = self._exam(lessons)
        facts = {**study.fingerprint, **lessons.held_out, "compared with": self.teacher_name}
        found = {TEACHER: [self._asked(TEACHER, None, self.folder / TEACHER, exam, facts)]}
        if UNTOUCHED in study.arms:
            seed = study.seed_list[0]
            found[UNTOUCHED] = [self._asked(UNTOUCHED, seed, self.folder / UNTOUCHED / f"seed-{seed}", exam, facts)]
        judged = len(lessons.shown(study.author(JUDGED), "student"))
        for arm, lesson in study.lessons.items():
            heard = kept[arm].heard.teacher if arm in kept else self.teacher
            train = lessons.shown(study.author(arm), lesson.shows)
            watched = lessons.data.validation.set
            assert watched is not None
            training = study.training if study.seconds else as_many_steps(study.training, len(train), judged)
            plans = [self.plan(arm, lesson, seed, train, watched, heard, facts) for seed in study.seed_list]
            found[arm] = [run_language_arm(replace(plan, training=training), exam, self.progress) for plan in plans]
        return found

    def costs(self, lessons: Lessons) -> tuple[dict[str, Json], Json | None]:
        """What both models cost as they are shipped, and what the student's shorter prompt saves."""
        test = lessons.data.test
        assert test.completions is not None
        student = build_seeded(self.study.student, self.study.seed_list[0]).eval()
        # shipped with its adapters added in, so that is what is paid for
        student = merged(student) if has_adapters(student) else student
        deployed = {"student": Deployed(student, test.prompts)}
        model = model_of(self.teacher)
        if model is not None:
            deployed = {"teacher": Deployed(model, test.taught_prompts), **deployed}
        costs = language_costs(deployed, float(test.completions.completions.lengths.double().mean()))
        if test.teacher_prompts is None or self.study.teacher_tokenizer is not None:
            return costs, None
        return costs, prompt_worth(student, test.teacher_prompts, test.prompts)

    def speaker(self, student: nn.Module) -> ModuleSpeaker:
        """A student as one that can be asked."""
        return ModuleSpeaker(student, self.study.tokenizer, self.eos, self.study.batch_size)

    @property
    def teacher_speaker(self) -> Speaker | None:
        """The teacher as one that can be asked; None where it has answers about given completions alone."""
        study = self.study
        if study.teacher_speaker is not None:
            return study.teacher_speaker
        model, tokenizer = model_of(self.teacher), study.teacher_tokenizer or study.tokenizer
        if model is None:
            inner = _inner(self.teacher)
            return SignalSpeaker(inner, tokenizer, study.batch_size) if bound_to_given(inner) is None else None
        batch_size = study.generation.batch_size if study.generation is not None else study.batch_size
        return ModuleSpeaker(
            model, tokenizer, eos_ids(tokenizer, getattr(model, "generation_config", None)), batch_size
        )

    def _exam(self, lessons: Lessons) -> Exam:
        study = self.study
        return Exam(
            test=lessons.data.test,
            teacher=RememberedScores(self.compared) if self.compared is not None else None,
            score=study.score,
            samples=study.samples,
            sample_tokens=study.sample_tokens,
            batch_size=study.batch_size,
            class_map=self.class_map,
        )

    def _asked(self, arm: str, seed: int | None, folder: Path, exam: Exam, facts: Mapping[str, Any]) -> LanguageRun:
        """The teacher, or the student before any training, on the test split."""
        student = build_seeded(self.study.student, seed).eval() if seed is not None else None
        if student is not None:
            facts = {**facts, "initial_weights": weights_digest(student)}
        done = read_language_arm(folder, exam)
        if done is not None:
            compare_fingerprints(done.fingerprint, facts, folder)
            if done.asked:
                return done.run
        self.progress.started(_name(arm), 1, 0)
        if student is not None:
            measured = exam.of_student(student, self.speaker(student))
        else:
            measured = exam.of_teacher(exam.teacher, self.teacher_speaker)
        run = LanguageRun(arm, seed, None, None, None, None, [], measured, folder)
        commit_language_run(run, dict(facts), exam)
        self.progress.finished(_name(arm), in_words(measured))
        return run

    def plan(
        self,
        arm: str,
        lesson: LanguageArm,
        seed: int,
        train: TransferSet,
        validation: TransferSet,
        heard: Teacher,
        facts: Mapping[str, Any],
    ) -> LanguagePlan:
        """The plan of one arm with one seed.

        Args:
            arm: its name.
            lesson: what it is.
            seed: of initialisation and data order.
            train: what it learns from, as the student sees it.
            validation: what is watched.
            heard: its teacher, or the store of its answers.
            facts: what must not change between a run and its resumption.
        """
        study = self.study
        assert isinstance(train.inputs, Completions)
        return LanguagePlan(
            arm=arm,
            seed=seed,
            folder=self.folder / arm / f"seed-{seed}",
            build=study.student,
            objective=as_objective(lesson.objective),
            training=study.training,
            train=train,
            validation=validation,
            teacher=heard,
            speaker=self.speaker,
            tokenizer=study.tokenizer,
            on_policy=lesson.on_policy,
            seconds=study.seconds,
            class_map=self.class_map,
            fingerprint={**facts, "shown": lesson.shows, "prompts": prompts_digest(train.inputs.prompts)},
        )


def begin(study: LanguageStudy, folder: Path, progress: Progress) -> Work:
    """Find out, before anything is written, labelled or trained, what could only fail later.

    Raises:
        TutelageError: something does not fit together; the message says what.
    """
    check_folder(folder)
    student = check_student(study.student, study.seed_list[0])
    _expect_tokens(student, study.data)
    check_meeting(study)
    check_room(study, student, model_of(study.teacher))
    _try_score(study)
    eos = study.eos
    if eos is None:
        eos = eos_ids(study.tokenizer, getattr(student, "generation_config", None))
    work = Work(study, folder, progress, study.teacher, None, eos)
    probe = probe_of(study.data.train, eos[0], work.vocabularies)
    teacher, class_map = _sharing(study, student, probe)
    compared = compared_with(study, teacher, student, probe)
    work = replace(work, teacher=teacher, class_map=class_map, compared=compared)
    check_training(study.training, "training", student, as_objective(study.objective), probe, probe)
    with tempfile.TemporaryDirectory() as aside:
        for arm, lesson in study.lessons.items():
            as_objective(lesson.objective).validate()
            shown = Lessons(study.data, {"data": probe}).shown("data", lesson.shows)
            seen = replace(work, folder=Path(aside))
            plan = seen.plan(arm, lesson, study.seed_list[0], shown, probe, teacher, {})
            try:
                language_trainer(plan, student).identify()
            except TutelageError as error:
                raise type(error)(f"the arm {arm!r}: {error}") from error
            labels = study.labels_of(arm)
            if labels is not None:
                check_form(labels, {arm: plan.objective}, student, probe)
    expect_own_folder(work)
    return work


def _try_score(study: LanguageStudy) -> None:
    """Find out that the test rows have what the score reads, and both tokenizers its choices.

    Raises:
        TutelageError: they have not.
    """
    score = study.score
    if isinstance(score, ChoiceScore | ExactMatch):
        score.expected(study.data.test.rows)
    if isinstance(score, ChoiceScore):
        for tokenizer in (study.tokenizer, study.teacher_tokenizer):
            if tokenizer is not None:
                choice_tokens(tokenizer, score.choices)


def _expect_tokens(student: nn.Module, data: LanguageData) -> None:
    """Find out that the student has an embedding of every token that it will be given.

    Raises:
        ConfigError: it has not.
    """
    embeddings: Any = getattr(student, "get_input_embeddings", lambda: None)()
    known = getattr(embeddings, "num_embeddings", None)
    given = [split.prompts for split in data.splits.values()]
    given += [split.completions.completions for split in data.splits.values() if split.completions is not None]
    largest = max(int(part.values.max()) for part in given)
    if known is not None and largest >= known:
        raise ConfigError(
            f"the student reads {known:,} tokens, and the data hold token {largest:,}: its tokenizer is another one's; give the student's "
            "own, or resize its embeddings (resize_token_embeddings)"
        )


def _sharing(study: LanguageStudy, student: nn.Module, probe: TransferSet) -> tuple[Teacher, ClassMap | None]:
    """Teacher and class map under which both speak of the same tokens, where their heads are padded differently.

    Raises:
        ConfigError: one of the two has fewer classes than the tokenizer has tokens.
    """
    if study.alignment != "same":
        return study.teacher, None
    batch: Any = probe.batch(torch.arange(1))
    with torch.random.fork_rng(devices=[]):
        said = study.teacher.signals(batch).logits
        own = first_signals(student, batch, ()).logits
    assert own is not None
    if said is None or said.classes == own.classes:
        return study.teacher, None
    shared, tokens = min(said.classes, own.classes), len(study.tokenizer)
    if shared < tokens:
        raise ConfigError(
            f"the student has {own.classes:,} classes, the teacher {said.classes:,}, and the tokenizer {tokens:,} tokens: some of them one "
            "model does not know; resize its embeddings, or give each model its own tokenizer and say how they are aligned"
        )
    teacher = study.teacher
    if isinstance(teacher, ModuleTeacher) and said.classes > shared:
        teacher = ModuleTeacher(teacher.model, allow_masked_classes=teacher.allow_masked_classes, classes=shared)
    elif isinstance(said, SparseTargets) and said.classes > shared:
        raise ConfigError(
            f"the teacher tells of {said.classes:,} classes and the student has {own.classes:,}: of a distribution whose tail is one "
            "number no classes can be taken away; give the student as many"
        )
    return teacher, ClassMap(
        student=shared if own.classes > shared else None,
        teacher=shared if said.classes > shared and teacher is study.teacher else None,
    )


def _inner(teacher: Teacher) -> Teacher:
    """The teacher whose answers another one carries over into the student's vocabulary."""
    while isinstance(inner := getattr(teacher, "teacher", None), Teacher):
        teacher = inner
    return teacher


def model_of(teacher: Teacher) -> nn.Module | None:
    """The one model behind a teacher; None where there is none on this machine, or several."""
    inner = _inner(teacher)
    return inner.model if isinstance(inner, ModuleTeacher) else None


def _plain_eos(speaker: Any) -> list[int] | None:
    eos = getattr(speaker, "eos", None)
    return None if eos is None else sorted(int(token) for token in eos)


def _name(arm: str) -> str:
    return "the teacher on the test split" if arm == TEACHER else "the untouched student"
