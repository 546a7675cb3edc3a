"""An embedding study at work in its folder: what is checked first, the teacher's embeddings, and the arms one after another."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tutelage.data import Tokenise, content_ids, tokenizer_digest
from tutelage.errors import ConfigError, DataError, TutelageError
from tutelage.evaluation.surgery import surgery_table
from tutelage.models.saving import save_student
from tutelage.models.sentence import SentenceEncoder, longest_text
from tutelage.models.sentence_static import StaticEncoder
from tutelage.objectives import Objective
from tutelage.objectives.embeddings import wants_pca, with_pca
from tutelage.objectives.pca import PCA
from tutelage.studies.arm import Progress, build_seeded, weights_digest
from tutelage.studies.embedding.arms import Pupil, expect_embeddings_alone
from tutelage.studies.embedding.costing import Deployed, embedding_costs, sample
from tutelage.studies.embedding.data import TextSplit
from tutelage.studies.embedding.encoding import EmbeddingModel, as_inputs, encode, token_count
from tutelage.studies.embedding.measuring import LEAST_TEXTS, Exam
from tutelage.studies.embedding.recording import TEACHER
from tutelage.studies.embedding.taught import Asked, KeptEmbeddings, expect_same_teacher, kept_embeddings
from tutelage.studies.embedding.training import (
    EMBEDDING_DEFAULTS,
    EmbeddingPlan,
    EmbeddingRun,
    embedding_trainer,
    run_embedding_arm,
)
from tutelage.studies.gates import JUDGED
from tutelage.studies.preflight import OWNED_ARGUMENTS, check_folder, check_student
from tutelage.training import DistillationArguments

if TYPE_CHECKING:
    from tutelage.studies.embedding.study import EmbeddingStudy

Json = dict[str, Any]

#: Texts of which the fitting together of models and objectives is tried.
_TRIED = 8


@dataclass(frozen=True)
class Work:
    """A study in a folder, which was found to fit together.

    Args:
        study: what is asked for.
        folder: where.
        progress: who watches.
    """

    study: EmbeddingStudy
    folder: Path
    progress: Progress
    _views: dict[int, Tokenise] = field(default_factory=dict[int, Tokenise])

    @cached_property
    def asked(self) -> Asked:
        """The teacher, and every text of the study."""
        study = self.study
        view = view_of(study.teacher, study.max_length, "the teacher")
        return Asked(
            model=EmbeddingModel(study.teacher),
            view=view,
            texts=sorted({text for split in study.data.splits.values() for text in split.texts}),
            facts={
                **study.fingerprint,
                "teacher": weights_digest(study.teacher),
                "teacher's tokenizer": tokenizer_digest(view.tokenizer),
                "max_length": view.max_length,
            },
            batch_size=study.batch_size,
        )

    def taught(self) -> KeptEmbeddings:
        """The teacher's embeddings of all texts."""
        return kept_embeddings(self.asked, self.folder / TEACHER, self.progress)

    def exam(self, taught: KeptEmbeddings) -> Exam:
        """The test texts with what is asked of them."""
        test = self.study.data.test
        return Exam(test, taught.of(test.ids).numpy(), self.study.pairs, self.study.ks)

    def runs(self, taught: KeptEmbeddings) -> dict[str, list[EmbeddingRun]]:
        """Every arm, the teacher and the untouched students among them; what is done is read."""
        study, test = self.study, taught.of(self.study.data.test.ids).numpy()
        found = {TEACHER: [EmbeddingRun(TEACHER, None, None, None, [], test, self.folder / TEACHER)]}
        for arm, pupil in study.untouched.items():
            plan = self.plan(arm, study.seed_list[0], pupil, None, taught)
            found[arm] = [run_embedding_arm(plan, self.progress)]
        learnt = taught.of(study.data.train.ids)
        for arm, (given, pupil) in study.lessons.items():
            objective = with_axes(given, learnt)
            plans = [self.plan(arm, seed, pupil, objective, taught) for seed in study.seed_list]
            found[arm] = [run_embedding_arm(plan, self.progress) for plan in plans]
        return found

    def view(self, arm: str, pupil: Pupil) -> Tokenise:
        """What makes the inputs of a kind of student; an arm that has it names it in messages."""
        if id(pupil) not in self._views:
            first = build_seeded(pupil.make, self.study.seed_list[0])
            self._views[id(pupil)] = view_of(first, self.study.max_length, f"the student of the arm {arm!r}")
        return self._views[id(pupil)]

    def plan(
        self, arm: str, seed: int, pupil: Pupil, objective: Objective | None, taught: KeptEmbeddings
    ) -> EmbeddingPlan:
        """The plan of one arm with one seed."""
        study, view = self.study, self.view(arm, pupil)
        return EmbeddingPlan(
            arm=arm,
            seed=seed,
            folder=self.folder / arm / f"seed-{seed}",
            build=lambda: EmbeddingModel(pupil.make()),
            view=view,
            train=study.data.train,
            validation=study.data.validation,
            test=study.data.test,
            teacher=taught,
            objective=objective,
            training=study.training,
            save=_saver(view),
            fingerprint={
                **(pupil.facts or {}),
                "tokenizer": tokenizer_digest(view.tokenizer),
                "max_length": view.max_length,
            },
        )

    def costs(self) -> tuple[dict[str, Json], dict[str, Json]]:
        """What every model costs as it is shipped (the judged arm's as ``student``), and what was kept of those that were cut."""
        study = self.study
        made: dict[str, Any] = {
            arm: build_seeded(pupil.make, study.seed_list[0]) for arm, pupil in study.pupils.items()
        }
        models = {TEACHER: Deployed(EmbeddingModel(study.teacher), self.asked.view)}
        for arm, encoder in made.items():
            view = self.view(arm, study.pupils[arm])
            models["student" if arm == JUDGED else arm] = Deployed(EmbeddingModel(encoder), view)
        costs = embedding_costs(models, study.data.test.texts, study.batch_size)
        one = sample(study.data.test.texts, 1)
        inputs = as_inputs(self.asked.view, one)
        tables: dict[str, Json] = {}
        for arm, encoder in made.items():
            cut = study.pupils[arm].cut and isinstance(encoder, SentenceEncoder)
            if cut and isinstance(study.teacher, SentenceEncoder):
                tables[arm] = surgery_table(
                    study.teacher.transformer,
                    encoder.transformer,
                    inputs,
                    as_inputs(self.view(arm, study.pupils[arm]), one),
                )
        return costs, tables

    def transfer(self) -> Json:
        """What is known of the texts that are learnt from."""
        train = self.study.data.train
        tokens, cut = token_count(self.asked.view, train.texts)
        return {"texts": len(train), "tokens": tokens, "cut": cut, "repeated": self.study.data.repeated}


def begin(study: EmbeddingStudy, folder: Path, progress: Progress) -> Work:
    """Find out, before anything is written or trained, what could only fail later.

    Raises:
        TutelageError: something does not fit together; the message says what.
    """
    check_folder(folder)
    _check_training(study.training)
    work = Work(study, folder, progress)
    _expect_room(study.teacher, study.max_length, "the teacher", work.asked.view)
    probe = sample(study.data.train.texts, min(_TRIED, len(study.data.train)))
    texts = sorted({*probe, *study.data.validation.texts[:_TRIED]})
    ids = content_ids(texts)
    order = torch.argsort(ids)
    values = encode(work.asked.model, work.asked.view, [texts[place] for place in order.tolist()])
    taught = KeptEmbeddings(ids[order], values, "", 0.0)
    if len(study.data.validation) < LEAST_TEXTS:
        raise DataError(
            f"the validation split has {len(study.data.validation):,} texts, expected at least {LEAST_TEXTS}: what is watched would be a "
            "number without meaning; give more texts, or a larger splits.validation"
        )
    Exam(study.data.test, values.numpy(), study.pairs, study.ks)  # for what it refuses
    for arm, pupil in study.pupils.items():
        try:
            check_student(pupil.make, study.seed_list[0])
        except TutelageError as error:
            raise type(error)(f"the student of the arm {arm!r}: {error}") from error
    with tempfile.TemporaryDirectory() as aside:
        for arm, (objective, pupil) in study.lessons.items():
            expect_embeddings_alone(arm, objective)
            tried = _with_any_axes(objective, values.shape[1], len(study.data.train))
            trial = replace(work, folder=Path(aside)).plan(arm, study.seed_list[0], pupil, tried, taught)
            _try_arm(trial, study.max_length, sorted(set(probe)))
    expect_same_teacher(work.asked, folder / TEACHER)
    return work


def view_of(encoder: nn.Module, max_length: int, who: str) -> Tokenise:
    """Makes an encoder's inputs of texts, by its own tokenizer.

    Args:
        encoder: it.
        max_length: tokens at which its texts are cut; those of a :class:`StaticEncoder` are read whole.
        who: the encoder, for messages.

    Raises:
        ConfigError: it has none, or one without a padding token.
    """
    tokenizer = getattr(encoder, "tokenizer", None)
    if tokenizer is None:
        raise ConfigError(
            f"{who} has no tokenizer, and texts cannot be given to it: give the encoder one (SentenceEncoder(…, tokenizer=…); in a config "
            "'tokenizer' beside its model)"
        )
    try:
        # a table of tokens has no limit, in no folder either: cut, it would be measured on other texts than it is served
        return Tokenise(tokenizer, None if isinstance(encoder, StaticEncoder) else max_length)
    except ConfigError as error:
        raise ConfigError(f"{who}: {error}") from error


def with_axes(objective: Objective, embeddings: Tensor) -> Objective:
    """The objective with the axes of the teacher's embeddings ``[N, D]``, where a term takes them along these."""
    return with_pca(objective, PCA.of(embeddings)) if wants_pca(objective) else objective


def _with_any_axes(objective: Objective, width: int, texts: int) -> Objective:
    """The objective with as many axes as so many texts have at most: those of the few that are tried would be too few."""
    shares = torch.zeros(width, dtype=torch.float64)
    shares[: min(width, texts)] = 1.0 / min(width, texts)
    return (
        with_pca(objective, PCA(torch.eye(width, dtype=torch.float64), shares)) if wants_pca(objective) else objective
    )


def _saver(view: Tokenise) -> Callable[[EmbeddingModel, Path], None]:
    """Writes a trained student so that it is opened without this library: an encoder in the layout of sentence-transformers."""

    def save(model: EmbeddingModel, folder: Path) -> None:
        encoder: Any = model.encoder
        if isinstance(encoder, SentenceEncoder):
            encoder.max_length = view.max_length  # what it was measured with
        if callable(getattr(encoder, "save", None)):
            encoder.save(folder)
        else:
            save_student(encoder, folder, view.tokenizer)

    return save


def _try_arm(plan: EmbeddingPlan, max_length: int, probe: list[str]) -> None:
    """Find out that a student takes its texts, and that its objective can meet the teacher's embeddings."""
    few = TextSplit(probe)
    held_out = TextSplit(list(plan.validation.texts[:_TRIED]))
    try:
        student = build_seeded(plan.build, plan.seed)
        assert isinstance(student, EmbeddingModel)
        _expect_room(student.encoder, max_length, "the student", plan.view)
        assert plan.objective is not None
        plan.objective.validate()
        embedding_trainer(replace(plan, train=few, validation=held_out), student).identify()
    except TutelageError as error:
        raise type(error)(f"the arm {plan.arm!r}: {error}") from error
    except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"the arm {plan.arm!r}: the student does not take texts as its tokenizer gives them: {type(error).__name__}: {error}; look at "
            "its forward, and at whether the tokenizer is its own"
        ) from error


def _expect_room(encoder: nn.Module, max_length: int, who: str, view: Tokenise) -> None:
    """Find out that an encoder has positions for the longest text, and an embedding of every token.

    Raises:
        ConfigError: it has not.
    """
    inner: Any = encoder.transformer if isinstance(encoder, SentenceEncoder) else encoder
    positions = longest_text(inner)
    if positions is not None and max_length > positions:
        raise ConfigError(
            f"data.max_length is {max_length:,} tokens, and {who} has positions for {positions:,}: what it says of longer texts is noise, "
            f"or an error; lower it to {positions:,} or less"
        )
    table = inner.get_input_embeddings() if hasattr(inner, "get_input_embeddings") else getattr(inner, "table", None)
    known, tokens = getattr(table, "num_embeddings", None), len(view.tokenizer)
    if isinstance(known, int) and known < tokens:
        raise ConfigError(
            f"{who} has embeddings of {known:,} tokens, and its tokenizer {tokens:,}: a text with one of the others cannot be read; give "
            "the tokenizer that belongs to the model"
        )


def _check_training(training: Mapping[str, Any]) -> None:
    """Find out what the training's arguments are worth.

    Raises:
        ConfigError: an argument that is the study's to set, a metric that is not watched, or what ``transformers`` refuses.
    """
    for owned in OWNED_ARGUMENTS:
        if owned in training:
            raise ConfigError(f"training.{owned} is the study's to set (seeds and folders of all arms); leave it out")
    best = training.get("metric_for_best_model")
    if best is not None and str(best).removeprefix("eval_") != "spearman":
        raise ConfigError(
            f"training.metric_for_best_model is {best!r}, and what is watched here is 'spearman' alone: the first evaluation would end in "
            "an error; write spearman, or leave it out"
        )
    with tempfile.TemporaryDirectory() as aside:
        try:
            DistillationArguments(output_dir=aside, **{**EMBEDDING_DEFAULTS, **training})
        except TutelageError as error:
            raise type(error)(f"training: {error}") from error
        except (ValueError, TypeError, ImportError, RuntimeError) as error:
            raise ConfigError(f"training: transformers.TrainingArguments does not take it: {error}") from error
