"""``EmbeddingStudy``: a sentence encoder distilled into a smaller one beside its controls, from texts to ``result.json`` and a verdict."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import nn

from tutelage import __version__
from tutelage.errors import ConfigError
from tutelage.files import write_atomically
from tutelage.objectives import Objective, Term, as_objective
from tutelage.studies.arm import Progress, Silent
from tutelage.studies.clock import Clock
from tutelage.studies.embedding.arms import UNTOUCHED, EmbeddingArm, Pupil
from tutelage.studies.embedding.data import EmbeddingData
from tutelage.studies.embedding.gates import EmbeddingGates
from tutelage.studies.embedding.recording import TEACHER, Findings, assemble_embedding
from tutelage.studies.embedding.work import begin
from tutelage.studies.gates import JUDGED
from tutelage.studies.records import provenance
from tutelage.studies.setting import alone_in
from tutelage.studies.study import CONFIG, RESULT
from tutelage.studies.yaml_text import to_yaml

_TAKEN = (TEACHER, UNTOUCHED, JUDGED, "student")

Json = dict[str, Any]


@dataclass(frozen=True)
class EmbeddingStudy:
    """The distilled encoder beside its controls, over several seeds, and what that proves.

    The arms share data order and budget in each seed: ``untouched`` is the student before any training, ``kd`` is judged. The test
    split is opened once for each finished arm.

    Args:
        data: the three splits.
        teacher: an encoder with its tokenizer (:class:`tutelage.models.sentence.SentenceEncoder` or a module of that kind).
        student: makes fresh students.
        objective: what the ``kd`` arm minimises; its terms listen to the layer ``embedding`` of both sides.
        training: arguments of :class:`DistillationArguments`, by name, for every arm.
        seeds: how many seeds, or which.
        arms: which of ``untouched`` and ``kd``; the first is measured for every student of another kind.
        extra_arms: more ways to teach, and more students, by name.
        max_length: tokens at which texts are cut, for every model.
        pairs: how many pairs of test texts similarities are compared on.
        ks: after how many texts an answer must have been found.
        gates: what the student must meet to be shipped.
        batch_size: texts in a call when models are asked and timed.
        title: of the page.
        config: the resolved config to write beside the results; by default what can be said of these arguments.
        fingerprint: more facts about the teacher that must not change between a run and its resumption.
        command: how the run was started, for the record.
        config_folder: where the config lies; None without one.

    Raises:
        ConfigError: arms, seeds or settings that contradict one another.
    """

    data: EmbeddingData
    teacher: nn.Module
    student: Pupil
    objective: Objective | Term
    training: Mapping[str, Any]
    seeds: int | Sequence[int] = 3
    arms: Sequence[str] = (UNTOUCHED, JUDGED)
    extra_arms: Mapping[str, EmbeddingArm] = field(default_factory=dict[str, EmbeddingArm])
    max_length: int = 128
    pairs: int = 5000
    ks: Sequence[int] = (1, 10)
    gates: EmbeddingGates = field(default_factory=EmbeddingGates)
    batch_size: int = 32
    title: str = "distillation of a sentence encoder"
    config: Mapping[str, Any] | None = None
    fingerprint: Mapping[str, Any] = field(default_factory=dict[str, Any])
    command: str = "tutelage.EmbeddingStudy(...).run(...)"
    config_folder: Path | None = None

    def __post_init__(self) -> None:
        if set(self.arms) - {UNTOUCHED, JUDGED} or JUDGED not in self.arms or len(set(self.arms)) < len(self.arms):
            raise ConfigError(
                f"arms are {list(self.arms)}, expected 'kd' with or without {UNTOUCHED}, each once; other ways are extra arms"
            )
        for name in self.extra_arms:
            if name in _TAKEN or re.fullmatch(r"[\w-]+", name) is None or name.startswith(f"{UNTOUCHED}_"):
                raise ConfigError(
                    f"an extra arm cannot be called {name!r}: it names a folder, so use letters, digits, '_' and '-' alone, not begun with "
                    f"'{UNTOUCHED}_', and none of {', '.join(_TAKEN)}"
                )
        if not self.seed_list or len(set(self.seed_list)) < len(self.seed_list):
            raise ConfigError(f"seeds are {self.seeds}: expected a number of at least 1, or different seeds")
        if self.pairs < 2:
            raise ConfigError(f"pairs is {self.pairs}, expected at least 2: a correlation of one similarity is none")

    @property
    def seed_list(self) -> list[int]:
        """The seeds."""
        return list(range(self.seeds)) if isinstance(self.seeds, int) else list(self.seeds)

    @property
    def lessons(self) -> dict[str, tuple[Objective, Pupil]]:
        """The arms that are trained, in the order they run: what each minimises, and whom it teaches."""
        found = {JUDGED: (as_objective(self.objective), self.student)}
        for name, arm in self.extra_arms.items():
            objective = arm.objective if arm.objective is not None else self.objective
            found[name] = (as_objective(objective), arm.student if arm.student is not None else self.student)
        return found

    @property
    def pupils(self) -> dict[str, Pupil]:
        """Each kind of student once, by the first arm that teaches it."""
        found: dict[str, Pupil] = {}
        for name, (_, pupil) in self.lessons.items():
            if all(pupil is not known for known in found.values()):
                found[name] = pupil
        return found

    @property
    def untouched(self) -> dict[str, Pupil]:
        """The arms that no training touches, one for each kind of student."""
        if UNTOUCHED not in self.arms:
            return {}
        return {UNTOUCHED if arm == JUDGED else f"{UNTOUCHED}_{arm}": pupil for arm, pupil in self.pupils.items()}

    @property
    def trainings(self) -> int:
        """How many pieces of work a whole run reports: the teacher's embeddings, the untouched students, and the trainings."""
        return 1 + len(self.untouched) + len(self.lessons) * len(self.seed_list)

    def run(self, out: str | Path, progress: Progress | None = None) -> Json:
        """Run what is not done yet, and write ``config.yaml`` and ``result.json`` into ``out``.

        The same call goes on with a study that was cut off; finished arms are not run again, and more seeds or arms, other ks and other
        gates may be asked for later.

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
            taught = work.taught()
            runs = work.runs(taught)
            costs, surgery = work.costs()
            found = assemble_embedding(
                Findings(
                    runs=runs,
                    descriptions={arm: self._describe(arm) for arm in runs},
                    data=self.data,
                    exam=work.exam(taught),
                    gates=self.gates,
                    cost=costs,
                    transfer=work.transfer(),
                    surgery=surgery,
                )
            )
            config_text = to_yaml(self.config if self.config is not None else self._described())
            result: Json = {
                "tutelage": __version__,
                "config_sha256": sha256(config_text.encode()).hexdigest(),
                **clock.to_json(),
                "title": self.title,
                "task": "embedding",
                "provenance": {**provenance(self.command, config_text, self._digest), **self._whereabouts(folder)},
                "objective": as_objective(self.objective).describe(),
                "taught": {"width": taught.width, "max_length": self.max_length, "seconds": taught.seconds},
                **found,
            }
            write_atomically(folder / CONFIG, config_text)
            write_atomically(folder / RESULT, json.dumps(result, indent=1, allow_nan=False))
        return result

    @property
    def _digest(self) -> str:
        splits = self.data.splits.values()
        return sha256(repr([(split.digest, split.groups, split.tasks) for split in splits]).encode()).hexdigest()

    def _whereabouts(self, folder: Path) -> Json:
        return {} if self.config_folder is None else {"config_folder": os.path.relpath(self.config_folder, folder)}

    def _describe(self, arm: str) -> str:
        if arm == TEACHER:
            return "; ".join(["the teacher", *getattr(self.teacher, "notes", ())])
        if arm in self.untouched:
            return f"the student before any training: {self.untouched[arm].words}"
        objective, pupil = self.lessons[arm]
        terms = " + ".join(component.name for component in objective.components)
        own = pupil is not self.student
        who = "another student" if own else "the student" if arm == JUDGED else "the same student"
        return f"{who}, {pupil.words}, trained on {terms}" if own or arm == JUDGED else f"{who}, trained on {terms}"

    def _described(self) -> Json:
        """What can be said of a study that was made in Python, as a config would."""
        extra = [
            {
                name: {
                    **({"objective": as_objective(arm.objective).describe()} if arm.objective is not None else {}),
                    **({"student": arm.student.words} if arm.student is not None else {}),
                }
            }
            for name, arm in self.extra_arms.items()
        ]
        return {
            "task": "embedding",
            "title": self.title,
            "data": {"max_length": self.max_length},
            "student": self.student.words,
            "objective": as_objective(self.objective).describe(),
            "training": dict(self.training),
            "study": {"seeds": self.seed_list, "arms": [*self.arms, *extra]},
            "similarity": {"pairs": self.pairs},
            "retrieval": {"k": list(self.ks)},
            "gates": asdict(self.gates),
        }
