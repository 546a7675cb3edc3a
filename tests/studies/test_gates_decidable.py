"""A study in Python that asks for what it could never show says so before it trains anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import language_tiny
import pytest
import torch
from tiny import good_teacher, splits, study

from tutelage.errors import ConfigError
from tutelage.studies import Gates
from tutelage.studies.language import LanguageGates
from tutelage.teachers import MemoryTeacher


@pytest.mark.parametrize(
    ("arms", "gates", "needs"),
    [
        (["kd"], {"gain_over_scratch": 0.01}, "the arm 'scratch'"),
        (["kd", "scratch"], {"gain_over_label_smoothing": 0.0}, "the arm 'label_smoothing'"),
        (["kd", "scratch"], {"worst_slice_drop": 0.1}, "metadata of the test examples"),
    ],
)
def test_a_gate_without_what_it_compares_is_refused(arms: list[str], gates: dict[str, float], needs: str) -> None:
    """Everything was trained, and the verdict was 'this cannot be decided'."""
    with pytest.raises(ConfigError, match=f"needs {needs}.* never be decided"):
        study(arms=arms, gates=Gates(**gates))


def test_the_default_gain_is_left_out_without_its_arm_and_asked_with_it() -> None:
    """A default that nobody named must neither stop a study nor keep its verdict on 'hold' for ever."""
    assert study(arms=["kd"]).gates == Gates(gain_over_scratch=None)
    assert study(arms=["kd", "scratch"]).gates == Gates()
    assert study(arms=["kd", "label_smoothing"]).gates.gain_over_scratch is None


@pytest.mark.parametrize("gate", ["size_ratio", "latency_ratio"])
def test_a_ratio_to_a_teacher_that_is_no_module_is_refused(tmp_path: Path, gate: str) -> None:
    """Of answers kept in memory there are no bytes and no time to compare the student's with."""
    whole = splits()
    parts = (whole.train, whole.validation, whole.test)
    with torch.no_grad():
        answers = good_teacher()(torch.cat([part.inputs for part in parts]))  # type: ignore[misc]
    kept = MemoryTeacher(torch.cat([part.ids for part in parts]), answers)
    made = study(splits=whole, teacher=kept, seeds=1, gates=Gates(**{gate: 0.5}))
    with pytest.raises(ConfigError, match=f"the gate {gate} needs a teacher that is a module"):
        made.run(tmp_path / "run")
    assert not (tmp_path / "run").exists(), "nothing was trained"


@pytest.mark.parametrize(
    ("changes", "gates", "needs"),
    [
        ({"arms": ("kd", "untouched")}, {"gain_over_sft": 0.1}, "the arm 'sft'"),
        ({"arms": ("kd", "sft")}, {"gap_closed": 0.9}, "the arm 'untouched'"),
        ({"score": None}, {"score_drop_vs_teacher": 0.1}, "a score of the task"),
    ],
)
def test_a_language_models_gate_without_what_it_compares_is_refused(
    changes: dict[str, Any], gates: dict[str, float], needs: str
) -> None:
    """The same hole as a classifier's."""
    with pytest.raises(ConfigError, match=f"needs {needs}.* never be decided"):
        language_tiny.study(**changes, gates=LanguageGates(**gates))


def test_a_language_models_default_gains_are_left_out_without_their_arms() -> None:
    """The controls' gains would stay undecided whatever is trained."""
    gates = language_tiny.study(arms=("kd",)).gates
    assert (gates.gain_over_sft, gates.gain_over_untouched) == (None, None)
    assert language_tiny.study().gates.gain_over_sft == 0.0
