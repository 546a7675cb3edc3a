"""A finished run, opened again: its students, its teacher and what they said, each found to be what the run left."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import nn

from tutelage.data import TransferSet, hex_id
from tutelage.errors import CheckpointError, ConfigError, ModelError
from tutelage.evaluation import classification_metrics
from tutelage.models.saving import load_student
from tutelage.studies.arm import PREDICTIONS, RECORD, ArmRun, build_seeded, predict, read_arm
from tutelage.studies.gates import JUDGED
from tutelage.studies.setting import Setting
from tutelage.studies.study import RESULT, Study
from tutelage.studies.teaching import teacher_predictions
from tutelage.teachers import Teacher

Json = dict[str, Any]

#: How many stored answers a reloaded student is asked again, and how far it may be from them, relative to the largest logit.
_ASKED_AGAIN = 64
_SAME = 1e-3


@dataclass(frozen=True)
class FinishedRun:
    """A study with the folder that it left.

    Args:
        study: what ran.
        folder: where.
        result: what ``result.json`` holds.
    """

    study: Study
    folder: Path
    result: Mapping[str, Any]

    def arm(self, name: str, seed: int) -> ArmRun:
        """What an arm with a seed left.

        Raises:
            ConfigError: it did not finish; nothing of it can be exported.
        """
        folder = self.folder / name / f"seed-{seed}"
        found = read_arm(folder)
        if found is None:
            have = sorted(path.parent.name for path in (self.folder / name).glob(f"seed-*/{RECORD}"))
            there = f" (there are {', '.join(have)})" if have else ""
            raise ConfigError(
                f"{folder} holds no finished student{there}: an unfinished one would be taken "
                " for the one that was judged; finish the run with the same `tutelage run` command"
            )
        return found[0]

    @cached_property
    def _setting(self) -> Setting:
        return self.study._setting(self.folder, None, lambda: self.teacher)  # pyright: ignore[reportPrivateUsage]  # what ran

    def fresh(self, seed: int, name: str = JUDGED) -> nn.Module:
        """A student of an arm as it is before its training, for weights to be loaded into."""
        return build_seeded(self.study.setting_of(name, self._setting).student, seed)

    def student(self, seed: int, name: str = JUDGED) -> nn.Module:
        """The trained student of an arm and seed on the CPU, in eval mode, found to give the answers that the run recorded.

        Raises:
            ConfigError: it did not finish.
            CheckpointError: its code or data are not those of the run any more.
        """
        run = self.arm(name, seed)
        try:
            student = load_student(self.fresh(seed, name), run.folder).cpu().eval()
        except ModelError as error:
            raise CheckpointError(
                f"the weights in {run.folder} do not fit the student that its code builds now: the code changed since the run, and "
                "nothing else than what was judged may be exported; bring back the code of the run, or run the study again"
            ) from error
        _same_answers(student, run, self.study.setting_of(name, self._setting).splits.test)
        return student

    @cached_property
    def seed(self) -> int:
        """The seed whose student does best on the validation split: more right answers, then the lower NLL."""
        scored: list[tuple[float, float, int]] = []
        for seed in self.seeds:
            metrics = self.validation_metrics(self.student(seed))
            scored.append((-metrics["accuracy"], metrics["nll"], seed))
        return min(scored)[2]

    @property
    def seeds(self) -> list[int]:
        """The seeds that the run recorded."""
        return [row["seed"] for row in self.result["arms"][JUDGED]["seeds"]]

    def validation_metrics(self, module: nn.Module) -> dict[str, float]:
        """A module's metrics on the validation split."""
        validation = self.study.splits.validation
        return classification_metrics(predict(module, validation).numpy(), validation.known_labels.numpy())

    @cached_property
    def teacher(self) -> Teacher:
        """The teacher: the given one, or the one that the run trained."""
        return self.study.trained_teacher(self.folder)

    @cached_property
    def test_logits(self) -> dict[str, NDArray[np.float32]]:
        """What the teacher ``[1, N, C]`` and each arm ``[S, N, C]`` said of the test split when they finished."""
        test = self.study.splits.test
        recorded = read_arm(self.folder / "teacher") if (self.folder / "teacher" / RECORD).is_file() else None
        logits = {
            "teacher": recorded[0].test_logits if recorded is not None else teacher_predictions(self.teacher, test)
        }
        logits = {"teacher": logits["teacher"][None]}
        for name in self.study.objectives:
            if name in self.result["arms"]:
                runs = [self.arm(name, row["seed"]) for row in self.result["arms"][name]["seeds"]]
                for run in runs:
                    _same_examples(run, test)
                logits[name] = np.stack([run.test_logits for run in runs])
        return logits


def open_run(study: Study, folder: str | Path) -> FinishedRun:
    """Open the folder that ``study.run(folder)`` left.

    Raises:
        ConfigError: there is no run, or it did not finish.
    """
    folder = Path(folder)
    return FinishedRun(study, folder, read_result(folder))


def read_result(folder: Path) -> Json:
    """``result.json`` of a finished run.

    Raises:
        ConfigError: there is none, or it is no record of a run.
    """
    path = folder / RESULT
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        unfinished = folder.is_dir() and any(folder.glob("*/seed-*"))
        what = (
            "is a run that did not finish"
            if unfinished
            else "is no folder of a run"
            if folder.is_dir()
            else "does not exist"
        )
        raise ConfigError(
            f"{folder} {what}: there is no {RESULT}, so no student has been judged; "
            + (
                "finish it with the same `tutelage run` command"
                if unfinished
                else "name the folder that `tutelage run` left"
            )
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} cannot be read as JSON ({error}); the same `tutelage run` command writes it anew"
        ) from error
    if not isinstance(result, dict) or JUDGED not in result.get("arms", {}):
        raise ConfigError(
            f"{path} is no record of a run with the arm {JUDGED!r}; the same `tutelage run` command writes it anew"
        )
    return result


def _same_examples(run: ArmRun, test: TransferSet) -> None:
    stored = load_file(run.folder / PREDICTIONS)
    ids = stored["ids"]
    if torch.equal(ids, test.ids) and not torch.equal(stored["labels"], test.known_labels):
        changed = int((stored["labels"] != test.known_labels).sum())
        raise CheckpointError(
            f"{changed:,} of the {len(ids):,} test examples have other labels than when {run.folder} was tested: its accuracy would be "
            "judged by labels that it was not; bring back those of the run, or run the study again"
        )
    if not torch.equal(ids, test.ids):
        raise CheckpointError(
            f"{run.folder} was tested on other examples than the test split holds now ({len(ids):,} then, {len(test):,} now): its answers "
            "would be held against the wrong labels; bring back the data of the run, or run the study again"
        )


def _same_answers(student: nn.Module, run: ArmRun, test: TransferSet) -> None:
    _same_examples(run, test)
    rows = torch.arange(min(_ASKED_AGAIN, len(test)))
    now, then = predict(student, test.select(rows)).numpy(), run.test_logits[: len(rows)]
    apart = np.abs(now - then)
    if not (apart.max() <= _SAME * max(1.0, float(np.abs(then).max()))):
        worst = int(apart.max(axis=1).argmax())
        raise CheckpointError(
            f"the student in {run.folder} does not answer as it did when it was judged (logits up to {apart.max():.2g} apart, most on "
            f"example {hex_id(int(test.ids[worst]))}): its code, its views or a library changed since, and what is exported "
            "would not be what was judged; bring back the code of the run, or run the study again"
        )
