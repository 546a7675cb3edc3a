"""A study's stored labels: what is kept of its teacher's answers, where, and how its trainings hear them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tutelage.data import Splits, TransferSet, rows_of
from tutelage.errors import ConfigError, TutelageError
from tutelage.labels import Form, Kind, LabelStore
from tutelage.labels.manifest import read_manifest, refuse_differences
from tutelage.labels.place import Place
from tutelage.objectives import Objective, as_objective
from tutelage.signals import Signals, SparseTargets, layers_needed
from tutelage.studies.arm import Progress, build_seeded
from tutelage.studies.chain import DIRECT, Chain
from tutelage.studies.label_binds import set_binds, settled, store_digest
from tutelage.studies.labelling import MADE, class_count, label
from tutelage.studies.setting import Setting
from tutelage.studies.spot_check import SpotCheck, spot_check
from tutelage.studies.teaching import Heard, listens
from tutelage.teachers import StoredTeacher, Teacher, as_teacher
from tutelage.training.listening import first_signals, showing

#: The folder of a run in which its labels lie, where no other place is named.
LABELS = "labels"

Json = dict[str, Any]


@dataclass(frozen=True)
class Labels:
    """What a study keeps of its teacher's answers, and where; see :class:`tutelage.labels.Form`.

    Args:
        form: ``"dense"``, ``"sampled"`` or ``"top_k"``.
        store: a folder or an fsspec URL; ``labels`` in the run's folder where None.
        dtype: of what is kept; the form's own default where None.
        temperature: T of the distribution, for sparse forms.
        draws, scheme: of a sampled row.
        k: of a top-k row.
        views: augmented views of each example, where what the teacher sees is random: the study trains on these and no others.
        features: layers of the teacher whose features are kept too.
        batch_size: examples in a call of the teacher; chosen where None.
        spot_check: random examples that the live teacher is asked about again when a study opens the store; 0 for none.
    """

    form: Kind = "dense"
    store: str | Path | None = None
    dtype: str | None = None
    temperature: float | None = None
    draws: int | None = None
    scheme: str | None = None
    k: int | None = None
    views: int | None = None
    features: Sequence[str] = ()
    batch_size: int | None = None
    spot_check: int = 8

    def describe(self) -> Json:
        """As a config's ``labels`` section says it."""
        said = {**vars(self), "store": None if self.store is None else str(self.store), "features": list(self.features)}
        return {name: value for name, value in said.items() if value not in (None, [])}

    def form_of(self, classes: int) -> Form:
        """The form for a teacher of so many classes.

        Raises:
            TeacherError: settings that contradict one another.
        """
        given: Json = {
            "dtype": self.dtype,
            "scheme": self.scheme,
            "temperature": self.temperature,
            "draws": self.draws,
            "k": self.k,
        }
        said = {name: value for name, value in given.items() if value is not None}
        return Form(kind=self.form, classes=classes, features=tuple(self.features), **said)

    def place(self, folder: Path) -> str | Path:
        """Where the labels of a run in ``folder`` lie."""
        return self.store if self.store is not None else folder / LABELS

    def seen(self, train: TransferSet) -> TransferSet:
        """The transfer set with as many views as are kept.

        Raises:
            ConfigError: rows that are tokens; random views without a number of them, or a number where nothing is random.
        """
        refuse_tokens(train)
        if train.teacher_varies and self.views is None:
            raise ConfigError(
                "labels are to be kept, and what the teacher sees of an example is random: no number of stored answers would do for ever "
                "new views; say how many views are kept of each example, labels.views, on which the study then trains (8, for example), "
                "or leave out labels or the augmentation"
            )
        if not train.teacher_varies and (self.views or 1) > 1:
            raise ConfigError(
                f"labels.views is {self.views}, and what the teacher sees of an example is always the same: it would be asked the same "
                f"thing {self.views} times; leave labels.views out"
            )
        if not train.teacher_varies or train.views == self.views:
            return train
        seen = replace(train, views=self.views)
        seen.__dict__["ids"] = train.ids
        return seen


def refuse_tokens(train: TransferSet) -> None:
    """Say beforehand that this study's students are classifiers.

    Raises:
        ConfigError: rows are tokens.
    """
    if train.token_level:
        raise ConfigError(
            "the transfer set's rows are tokens, and this study judges classifiers, an answer to each example: every number would be of "
            "something else; a language model is distilled and judged by tutelage.studies.LanguageStudy (in a config: task: "
            "language_model), which learns from stored labels too"
        )


def check_kept(
    labels: Labels,
    objectives: Mapping[str, Objective],
    student: nn.Module,
    teacher: nn.Module | Teacher,
    splits: Splits,
    chain: Chain | None,
    setting: Setting,
) -> None:
    """Find out, before anything is trained or labelled, that the labels can be kept and learnt from.

    Args:
        labels: what is to be kept.
        objectives: of the arms that hear the teacher, by their names.
        student: a fresh one.
        teacher: as far as it can be looked at yet.
        splits: the data; a few examples of the transfer set are shown to the student.
        chain: the assistants, where there are some: the first of a road hears the teacher too.
        setting: of the run: its folder, and what assistants are made of.

    Raises:
        TutelageError: they cannot; the message has the reason.
    """
    showing(as_teacher(teacher), labels.features)
    check_form(labels, objectives, student, splits.train)
    _check_there(labels, student, splits.train, setting.folder)
    for name, first in {path[0].name: path[0] for path in chain.paths}.items() if chain is not None else ():
        objective = objectives[DIRECT] if first.objective is None else as_objective(first.objective)
        seen = splits.train if first.view is None else splits.train.with_student_view(first.view)
        check_form(labels, {name: objective}, build_seeded(setting.made(first.model), first.seed), seen)


def _check_there(labels: Labels, student: nn.Module, train: TransferSet, folder: Path) -> None:
    """Refuse a store of another form or of other examples before a teacher is trained for it."""
    path = labels.place(folder)
    found = read_manifest(Place(path))
    if found is None:
        return
    said = first_signals(student, train.for_evaluation().batch(torch.arange(1)), ())
    assert said.logits is not None
    form = labels.form_of(said.logits.classes)
    refuse_differences(found.form.to_json(), form.to_json(), path)
    binds = set_binds(train, form)
    kept = {name: value for name, value in found.binds.items() if name in binds}
    refuse_differences(kept, settled(binds, kept), path)


def check_form(labels: Labels, objectives: Mapping[str, Objective], student: nn.Module, train: TransferSet) -> None:
    """Find out, before anything is labelled, that every arm can learn from labels of this form.

    Each objective is asked for its value once at the beginning, in the middle and at the end of training, with made-up labels.

    Args:
        labels: what is to be kept.
        objectives: of the arms that hear the teacher, by their names.
        student: a fresh one.
        train: the transfer set; a few of its examples are shown to the student.

    Raises:
        ConfigError: an arm cannot; the message has the reason.
    """
    train = train.for_evaluation()
    batch: Any = train.batch(torch.arange(min(4, len(train))))
    for arm, objective in objectives.items():
        if not listens(objective):
            continue
        lacking = [layer for layer in layers_needed(objective.needs, "teacher") if layer not in labels.features]
        if lacking:
            raise ConfigError(
                f"the objective of the arm {arm!r} listens to the teacher's {', '.join(map(repr, lacking))}, which the labels would not "
                f"hold: name them under labels.features ({', '.join(map(repr, labels.features)) or 'nothing is named there'})"
            )
        if labels.form == "dense" or "teacher.logits" not in objective.needs:
            continue
        try:
            with torch.random.fork_rng(devices=[]):
                said = first_signals(student, batch, layers_needed(objective.needs, "student"))
                assert said.logits is not None
                form = labels.form_of(said.logits.classes)
                rows = rows_of(batch)
                heard = Signals(_made_up(form, len(rows["labels"])))
                for component in objective.components:
                    if component.term.needs <= {"student.logits", "teacher.logits", "labels"}:
                        for progress in (0.0, 0.5, 1.0):
                            component.term(said, heard, rows, progress)
        except TutelageError as error:
            raise ConfigError(
                f"the arm {arm!r} cannot learn from labels of the form {labels.form!r}: {error}"
            ) from error


@dataclass(frozen=True)
class Kept:
    """A study's teacher as its trainings hear it, from the store.

    Args:
        heard: it.
        store: the labels.
        checked: the spot check; None where none was asked for.
        wrote: whether this run wrote any of the labels.
    """

    heard: Heard
    store: LabelStore
    checked: SpotCheck | None
    wrote: bool

    def to_json(self, folder: Path) -> Json:
        """What a run's record says of its labels.

        Args:
            folder: of the run, to which a store in it is relative.
        """
        manifest, path = self.store.manifest, str(self.store.place)
        inside = Path(path).resolve().is_relative_to(folder.resolve()) if "://" not in path else False
        certificate = dict(manifest.certificate or {})
        return {
            "store": os.path.relpath(path, folder) if inside else path,
            "form": manifest.form.to_json(),
            "views": len(manifest.views),
            "examples": manifest.examples,
            "distinct": manifest.examples // max(1, len(manifest.views)),
            "rows": manifest.rows,
            "bytes": self.store.bytes,
            "digest": store_digest(self.store),
            "made": certificate.pop(MADE, None),
            "certificate": certificate or None,
            "spot_check": self.checked.to_json() if self.checked is not None else None,
            "written": "by this run" if self.wrote else "before this run",
        }


def keep(
    labels: Labels, teacher: Teacher, train: TransferSet, folder: Path, progress: Progress, *, verify: bool = False
) -> Kept:
    """The store of a study's labels: written where it is not there or not finished, and found to be this teacher's.

    Args:
        labels: what is kept.
        teacher: whose.
        train: the transfer set, as :meth:`Labels.seen` has it.
        folder: of the run.
        progress: who watches.
        verify: read every byte of a store that is there, and make again what is damaged.

    Raises:
        TeacherError: the store holds other labels, or not what the teacher says now.
    """
    path = labels.place(folder)
    form = labels.form_of(class_count(teacher, train))
    before = read_manifest(Place(path))
    store = label(teacher, train, path, form, batch_size=labels.batch_size, progress=progress, verify=verify)
    checked = spot_check(store, teacher, train, labels.spot_check) if labels.spot_check else None
    return Kept(Heard(StoredTeacher(store), train), store, checked, before is None or not before.complete)


def _made_up(form: Form, rows: int) -> SparseTargets:
    kept = form.most_kept
    ids = torch.arange(kept).expand(rows, kept).contiguous()
    probs = torch.full((rows, kept), (1.0 if form.kind == "sampled" else 0.9) / kept)
    assert form.temperature is not None
    return SparseTargets(
        ids, probs, form.classes, form.temperature, "sampled" if form.kind == "sampled" else "top_k", torch.ones(rows)
    )
