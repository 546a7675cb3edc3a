"""Classes that the transfer set did not show: what each arm says of them, before and after its prior is put right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.data import Splits
from tutelage.evaluation import crossed_interval, fit_class_offsets, paired_comparison
from tutelage.models.saving import load_student
from tutelage.studies.arm import ArmRun, build_seeded, predict
from tutelage.studies.evidence import correctness
from tutelage.studies.setting import Setting

Json = dict[str, Any]

METHOD = "an offset for each class that the transfer set lacks, with the least NLL on the validation split (Hinton et al. 2015, §3)"


def prior_correction(
    splits: Splits,
    runs: Mapping[str, Sequence[ArmRun]],
    logits: Mapping[str, NDArray[np.float32]],
    settings: Mapping[str, Setting],
    class_names: Sequence[str],
) -> Json | None:
    """The ``prior_correction`` of ``result.json``; None where the transfer set lacks no class.

    Args:
        splits: with the classes that were omitted.
        runs: the arms' runs, a seed each, whose students are asked about the validation split.
        logits: of the same arms on the test split, ``[S, N, C]``.
        settings: of the same arms: what makes a student to load weights into, and what it sees.
        class_names: C names.
    """
    if not splits.omitted:
        return None
    labels = splits.test.known_labels.numpy()
    unseen = np.isin(labels, splits.omitted)
    arms: Json = {}
    for arm, arm_runs in runs.items():
        offsets = np.stack([_offsets(run, settings[arm], splits.omitted) for run in arm_runs])
        before = correctness(logits[arm], labels)
        after = correctness(logits[arm] + offsets[:, None].astype(np.float32), labels)
        arms[arm] = {
            "offsets": offsets[:, list(splits.omitted)].tolist(),
            "accuracy": {"before": _estimate(before), "after": _estimate(after)},
            "recall": {"before": _estimate(before[:, unseen]), "after": _estimate(after[:, unseen])},
            "gain": paired_comparison(after, before, "accuracy", higher_is_better=True).to_json(),
        }
    return {
        "classes": [class_names[index] for index in splits.omitted],
        "test_examples": int(unseen.sum()),
        "method": METHOD,
        "arms": arms,
    }


def _offsets(run: ArmRun, setting: Setting, omitted: Sequence[int]) -> NDArray[np.float64]:
    student, validation = load_student(build_seeded(setting.student, run.seed), run.folder), setting.splits.validation
    return fit_class_offsets(predict(student, validation).numpy(), validation.known_labels.numpy(), omitted)


def _estimate(correct: NDArray[np.float64]) -> Json:
    estimate = crossed_interval(correct)
    return {"mean": estimate.mean, "ci95": estimate.to_json()["ci95"]}
