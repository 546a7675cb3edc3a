"""``LanguageStudy``: a language model distilled beside its controls, from prompts and completions to ``result.json`` and a verdict."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from torch import nn

from tutelage import __version__
from tutelage.errors import ConfigError
from tutelage.evaluation.task_score import Speaker, TaskScore
from tutelage.files import write_atomically
from tutelage.objectives import CrossEntropy, Objective, Term, as_objective
from tutelage.studies.arm import Progress, Silent
from tutelage.studies.clock import Clock
from tutelage.studies.gates import JUDGED, decidable
from tutelage.studies.language.arms import SFT, UNTOUCHED, Author, LanguageArm
from tutelage.studies.language.budgets import against_the_time, time_left
from tutelage.studies.language.data import LanguageData
from tutelage.studies.language.describing import arm_in_words
from tutelage.studies.language.gates import LanguageGates, lacking
from tutelage.studies.language.generating import GENERATED, Generation
from tutelage.studies.language.lessons import Lessons
from tutelage.studies.language.recording import TEACHER, Findings, assemble_language
from tutelage.studies.language.training import LanguageRun
from tutelage.studies.language.work import Work, begin, model_of
from tutelage.studies.records import provenance
from tutelage.studies.setting import alone_in
from tutelage.studies.stored_labels import LABELS, Labels
from tutelage.studies.study import CONFIG, RESULT
from tutelage.studies.teaching import listens
from tutelage.studies.yaml_text import to_yaml
from tutelage.teachers import Teacher
from tutelage.training.on_policy import OnPolicy

_TAKEN = (TEACHER, GENERATED, LABELS, UNTOUCHED, SFT, JUDGED)

Json = dict[str, Any]


@dataclass(frozen=True)
class LanguageStudy:
    """The distilled language model beside its controls, over several seeds, and what that proves.

    The arms share the student's initialisation, data order and budget in each seed: ``untouched`` is the student before any
    training, ``sft`` is fine-tuned on the same completions without a teacher, ``kd`` is judged. The test split is opened once for each
    finished arm.

    Args:
        data: the three splits.
        student: makes a fresh student; called once a seed, seeded.
        teacher: its signals, in the student's vocabulary (for ``alignment="uld"`` its sorted probabilities).
        tokenizer: of the student; saved beside every one.
        objective: what the ``kd`` arm minimises.
        training: arguments of :class:`DistillationArguments`, by name, for every arm.
        seeds: how many seeds, or which.
        arms: which of ``untouched``, ``sft``, ``kd``.
        extra_arms: more ways to teach the same student, by name.
        on_policy: of the arm ``kd``: where the student itself writes completions that the teacher marks.
        completions: who wrote those that are learnt from, where an arm does not say otherwise: the data, or the teacher.
        generation: how the teacher writes them; needed where some arm learns from them, or a split has none.
        seconds: of training for each arm and seed, which then decide how many steps it makes (``max_steps`` is the most of them, and the
            learning rate stays as it is after a warm-up); None where ``training`` alone sets the budget.
        score: the task's own; None for the per-token KL to the teacher.
        samples: how many test prompts are shown on the page with what each model writes.
        sample_tokens: how much each of these is at most.
        gates: what the student must meet to be shipped, as far as arms and data can show it.
        labels: how the teacher's answers are kept, from which all arms that listen to it then learn, but those in which the student
            writes; None for asking it at each step.
        teacher_tokenizer: where it is another one than the student's.
        teacher_speaker: who writes and scores in the teacher's place; None for its own model.
        alignment: how the teacher's vocabulary meets the student's: ``same``; ``crossing``, where ``teacher`` gives distributions in
            the student's; ``uld``, where it gives sorted probabilities; or ``text``, where they meet in text alone, and no per-token KL
            can be told.
        eos: tokens that end what the student writes; None for what its tokenizer and model say.
        batch_size: examples in a call when models are measured.
        title: of the page.
        config: the resolved config to write beside the results; by default what can be said of these arguments.
        fingerprint: more facts that must not change between a run and its resumption.
        command: how the run was started, for the record.
        config_folder: where the config lies; None without one.

    Raises:
        ConfigError: arms, seeds or settings that contradict one another.
    """

    data: LanguageData
    student: Callable[[], nn.Module]
    teacher: Teacher
    tokenizer: Any
    objective: Objective | Term
    training: Mapping[str, Any]
    seeds: int | Sequence[int] = 3
    arms: Sequence[str] = (UNTOUCHED, SFT, JUDGED)
    extra_arms: Mapping[str, LanguageArm] = field(default_factory=dict[str, LanguageArm])
    on_policy: OnPolicy | None = None
    completions: Author = "data"
    generation: Generation | None = None
    seconds: float | None = None
    score: TaskScore | None = None
    samples: int = 6
    sample_tokens: int = 64
    gates: LanguageGates = field(default_factory=LanguageGates)
    labels: Labels | None = None
    teacher_tokenizer: Any = None
    teacher_speaker: Speaker | None = None
    alignment: Literal["same", "crossing", "uld", "text"] = "same"
    eos: Sequence[int] | None = None
    batch_size: int = 8
    title: str = "distillation of a language model"
    config: Mapping[str, Any] | None = None
    fingerprint: Mapping[str, Any] = field(default_factory=dict[str, Any])
    command: str = "tutelage.LanguageStudy(...).run(...)"
    config_folder: Path | None = None

    def __post_init__(self) -> None:
        standard = (UNTOUCHED, SFT, JUDGED)
        if (
            any(arm not in standard for arm in self.arms)
            or JUDGED not in self.arms
            or len(set(self.arms)) < len(self.arms)
        ):
            raise ConfigError(
                f"arms are {list(self.arms)}, expected 'kd' with any of {UNTOUCHED}, {SFT}, each once; other ways are extra arms"
            )
        for name in self.extra_arms:
            if name in _TAKEN or re.fullmatch(r"[\w-]+", name) is None:
                raise ConfigError(
                    f"an extra arm cannot be called {name!r}: it names a folder, so use letters, digits, '_' and '-' alone, and none of "
                    f"{', '.join(_TAKEN)}"
                )
        if not self.seed_list or len(set(self.seed_list)) < len(self.seed_list):
            raise ConfigError(f"seeds are {self.seeds}: expected a number of at least 1, or different seeds")
        if isinstance(self.student, nn.Module):
            raise ConfigError(
                f"student is a {type(self.student).__name__}, expected a function that makes a fresh one: every arm and seed starts anew"
            )
        if self.seconds is not None and (problems := against_the_time(self.training)):
            raise ConfigError("training: " + "; ".join(problems))
        for name, arm in self.lessons.items():
            self._check_arm(name, arm)
        self._check_written()
        met, known = self.alignment != "text", model_of(self.teacher) is not None
        never = lacking(self.arms, score=self.score is not None, shared=met, measured=known)
        object.__setattr__(self, "gates", decidable(self.gates, never))

    def _check_arm(self, name: str, arm: LanguageArm) -> None:
        writes = arm.on_policy is not None and arm.on_policy.share > 0
        if writes and arm.labels is not None:
            raise ConfigError(
                f"the arm {name!r} is on-policy and has labels: stored answers are to given completions, and the student writes others; "
                "leave its labels out"
            )
        if arm.shows == "teacher" and (self.teacher_tokenizer is not None or self.data.train.teacher_prompts is None):
            raise ConfigError(
                f"the arm {name!r} shows the student the teacher's prompt, which is "
                + ("in another vocabulary" if self.teacher_tokenizer is not None else "the student's own already")
                + ": leave shows out"
            )
        if arm.labels is not None and (arm.labels.views or 1) > 1:
            raise ConfigError(
                "labels.views is of augmentations, which a language model's data does not have; leave it out"
            )
        if self.alignment == "text" and listens(as_objective(arm.objective)):
            raise ConfigError(
                f"the arm {name!r} listens to the teacher's distributions, and alignment 'text' says that it shares no vocabulary with the "
                "student: a token would be taught the probability of another one; learn what it writes (completions 'teacher' with "
                "CrossEntropy; in a config objective: [{term: cross_entropy}]), or align the two (crossing, uld)"
            )
        if self._author(arm) == "data" and self.data.train.set is None:
            raise ConfigError(
                f"the arm {name!r} learns from the data's completions, and the train split has none: let the teacher write them "
                "(completions 'teacher' with a Generation; in a config data.completions: teacher and a section generate)"
            )

    def _check_written(self) -> None:
        lacking = [name for name, split in self.data.splits.items() if split.set is None]
        wanted = "teacher" in self.authors or bool(lacking)
        if wanted and self.generation is None:
            why = f"the splits {', '.join(lacking)} have none" if lacking else "an arm learns from them"
            raise ConfigError(
                f"completions by the teacher are needed ({why}), and it is not said how they are written: give a Generation (in a config "
                "a section generate)"
            )

    @property
    def seed_list(self) -> list[int]:
        """The seeds."""
        return list(range(self.seeds)) if isinstance(self.seeds, int) else list(self.seeds)

    @property
    def lessons(self) -> dict[str, LanguageArm]:
        """The arms that are trained, in the order they run."""
        own = LanguageArm(self.objective, self.on_policy)
        standard = {SFT: LanguageArm(CrossEntropy()), JUDGED: own}
        return {name: arm for name, arm in standard.items() if name in self.arms} | dict(self.extra_arms)

    def _author(self, arm: LanguageArm) -> Author:
        return arm.completions if arm.completions is not None else self.completions

    @property
    def authors(self) -> set[Author]:
        """Whose completions of the train split some arm learns from."""
        return {self._author(arm) for arm in self.lessons.values()}

    def author(self, arm: str) -> Author:
        """Who wrote the completions that an arm learns from."""
        return self._author(self.lessons[arm])

    def labels_of(self, arm: str) -> Labels | None:
        """How the teacher's answers are kept that an arm hears; None where it asks the teacher, or nobody."""
        lesson = self.lessons[arm]
        writes = lesson.on_policy is not None and lesson.on_policy.share > 0
        if writes or not listens(as_objective(lesson.objective)):
            return None
        return lesson.labels if lesson.labels is not None else self.labels

    @property
    def trainings(self) -> int:
        """How many pieces of work a whole run reports: trainings, the teacher and the untouched student on the test split, and each
        labelling and writing."""
        stores = {
            (repr(labels), self.author(arm)) for arm in self.lessons if (labels := self.labels_of(arm)) is not None
        }
        written = sum(split.set is None for split in (self.data.validation, self.data.test)) + (
            "teacher" in self.authors
        )
        asked = 1 + (UNTOUCHED in self.arms)
        return asked + len(self.lessons) * len(self.seed_list) + len(stores) + written

    def run(self, out: str | Path, progress: Progress | None = None) -> Json:
        """Run what is not done yet, and write ``config.yaml`` and ``result.json`` into ``out``.

        The same call goes on with a study that was cut off; finished arms are not run again, and more seeds or arms may be
        asked for later.

        Returns:
            What ``result.json`` holds.

        Raises:
            ConfigError: something does not fit together; nothing has been trained yet.
            CheckpointError: ``out`` holds a study with other settings; the message shows the difference.
        """
        folder = Path(out)
        clock = Clock(folder, RESULT)
        work = begin(self, folder, progress if progress is not None else Silent())
        with alone_in(folder):
            lessons = work.lessons()
            kept = work.kept(lessons)
            runs = work.runs(lessons, kept)
            found = assemble_language(self._findings(work, lessons, runs))
            config_text = to_yaml(self.config if self.config is not None else self._described())
            result: Json = {
                "tutelage": __version__,
                "config_sha256": sha256(config_text.encode()).hexdigest(),
                **clock.to_json(),
                "title": self.title,
                "task": "language_model",
                "provenance": {**provenance(self.command, config_text, lessons.digest), **self._whereabouts(folder)},
                "objective": as_objective(self.objective).describe(),
                **found,
                **({"generated": lessons.written.summary} if lessons.written is not None else {}),
            }
            stores = {arm: store.to_json(folder) for arm, store in kept.items()}
            for arm, store in stores.items():
                result["arms"][arm]["labels"] = store
            for arm in self.lessons:
                taken = self._prepared(arm, lessons, stores.get(arm))
                result["arms"][arm] |= {"preparation_seconds": taken} if taken is not None else {}
            if stores:
                result["labels"] = stores.get(JUDGED, next(iter(stores.values())))
            write_atomically(folder / CONFIG, config_text)
            write_atomically(folder / RESULT, json.dumps(result, indent=1, allow_nan=False))
        return result

    def label(self, out: str | Path, progress: Progress | None = None) -> Json:
        """The teacher's labels alone, kept where a later :meth:`run` finds them; its completions are written first where that is to be
        done. The same call goes on with labelling that was cut off, and makes damaged shards again.

        Returns:
            What a run's record would say of them: of the ``kd`` arm's, or of the first arm's that has some.

        Raises:
            ConfigError: something does not fit together, or no labels are asked for.
            TeacherError: the store holds other labels; the message shows the difference.
        """
        folder = Path(out)
        if all(self.labels_of(arm) is None for arm in self.lessons):
            raise ConfigError("this study keeps no labels: give labels=Labels(...) (in a config: a section 'labels')")
        work = begin(self, folder, progress if progress is not None else Silent())
        with alone_in(folder):
            kept = work.kept(work.lessons(), verify=True)
            return kept.get(JUDGED, next(iter(kept.values()))).to_json(folder)

    def generate(self, out: str | Path, progress: Progress | None = None) -> Json:
        """The teacher's completions alone, kept in ``out/generated``, where a later :meth:`run` finds them.

        Returns:
            What a run's record would say of them.

        Raises:
            ConfigError: something does not fit together, or no completions are to be written.
            CheckpointError: there are completions of another teacher or written otherwise; the message shows the difference.
        """
        folder = Path(out)
        if "teacher" not in self.authors:
            raise ConfigError(
                "no arm of this study learns from completions that the teacher writes: say completions='teacher' (in a config "
                "data.completions: teacher)"
            )
        work = begin(self, folder, progress if progress is not None else Silent())
        with alone_in(folder):
            written = work.lessons().written
            assert written is not None
            return written.summary

    def _findings(self, work: Work, lessons: Lessons, runs: Mapping[str, Sequence[LanguageRun]]) -> Findings:
        cost, context = work.costs(lessons)
        return Findings(
            runs=runs,
            descriptions={arm: self._describe(arm) + self._beside(arm, runs[arm]) for arm in runs},
            data=lessons.data,
            learnt=lessons.shown(self.author(JUDGED), "student"),
            author=self.author(JUDGED),
            score=self.score,
            gates=self.gates,
            cost=cost,
            context=context,
            tokenizers=(self.tokenizer, self.teacher_tokenizer or self.tokenizer),
        )

    def _prepared(self, arm: str, lessons: Lessons, store: Json | None) -> float | None:
        """Seconds in which the teacher wrote and labelled what an arm learns from, which are in no arm's training time."""
        made = (
            [lessons.written.manifest["made"]] if self.author(arm) == "teacher" and lessons.written is not None else []
        )
        made += [store["made"]] if store is not None and store["made"] is not None else []
        return sum(each["seconds"] for each in made) if made else None

    def _whereabouts(self, folder: Path) -> Json:
        if self.config_folder is None:
            return {}
        return {"config_folder": os.path.relpath(self.config_folder, folder)}

    def _describe(self, arm: str) -> str:
        fixed = {TEACHER: "the teacher", UNTOUCHED: "the student before any training"}
        if arm in fixed:
            return fixed[arm] + (
                ", with its own prompt" if self.data.test.teacher_prompts is not None and arm == TEACHER else ""
            )
        who = "the student" if arm == JUDGED else "the same student"
        stored = self.labels_of(arm) is not None
        return f"{who}, trained on {arm_in_words(self.lessons[arm], self.author(arm), self.alignment, stored=stored)}"

    def _beside(self, arm: str, runs: Sequence[LanguageRun]) -> str:
        early = next((said for run in runs if (said := time_left(run.seconds, self.seconds)) is not None), None)
        if early is not None:
            return f"; {early}"
        silent = arm == TEACHER and self.samples > 0 and not runs[0].measured.answers
        return "; it does not write here, and no sample of it is shown" if silent else ""

    def _described(self) -> Json:
        """What can be said of a study that was made in Python, as a config would."""
        return {
            "task": "language_model",
            "title": self.title,
            "data": {"completions": self.completions, "layout": self.data.layout},
            "teacher": {"alignment": self.alignment},
            "objective": as_objective(self.objective).describe(),
            **({"on_policy": self.on_policy.describe()} if self.on_policy is not None else {}),
            **({"generate": self.generation.describe()} if self.generation is not None else {}),
            **({"labels": self.labels.describe()} if self.labels is not None else {}),
            "training": dict(self.training),
            "study": {
                "seeds": self.seed_list,
                "arms": [*self.arms, *({name: _arm_in_words(arm)} for name, arm in self.extra_arms.items())],
                "seconds": self.seconds,
            },
            **({"score": self.score.describe()} if self.score is not None else {}),
            "samples": {"count": self.samples, "max_new_tokens": self.sample_tokens},
            "gates": asdict(self.gates),
        }


def _arm_in_words(arm: LanguageArm) -> Json:
    said: Json = {"objective": as_objective(arm.objective).describe(), "shows": arm.shows}
    said |= {"completions": arm.completions} if arm.completions is not None else {}
    said |= {"on_policy": arm.on_policy.describe()} if arm.on_policy is not None else {}
    return said | ({"labels": arm.labels.describe()} if arm.labels is not None else {})
