"""`data.omit` and `data.label_noise`: what the student lacks, and what the teacher that this run trains still sees."""

from __future__ import annotations

from pathlib import Path

import pytest

from tutelage.config import load_config
from tutelage.config.building import build_study
from tutelage.errors import ConfigError, DataError

DIGITS = Path(__file__).parents[2] / "examples" / "digits"


def _study(*overrides: str):
    return build_study(load_config(DIGITS / "config.yaml", list(overrides)), DIGITS, "")


def test_an_omitted_class_is_unseen_by_the_student_alone():
    """A teacher that had not seen the class either could say nothing of it."""
    study = _study("data.omit=[3]", "data.labelled=null")
    assert study.teacher_training is not None
    assert 3 not in study.splits.train.known_labels
    assert 3 in study.teacher_training.data.known_labels
    assert 3 in study.splits.validation.known_labels
    assert study.splits.omitted == (3,)


def test_label_noise_reaches_the_teacher_and_no_held_out_label():
    """A teacher with clean labels would make the comparison with the controls unfair; noisy test labels measure nothing."""
    clean, noisy = _study("data.labelled=null"), _study("data.label_noise=0.2", "data.labelled=null")
    assert clean.teacher_training is not None
    assert noisy.teacher_training is not None
    for before, after in (
        (clean.splits.train, noisy.splits.train),
        (clean.teacher_training.data, noisy.teacher_training.data),
    ):
        wrong = (before.known_labels != after.known_labels).float().mean()
        assert float(wrong) == pytest.approx(0.2, abs=1e-3)
    assert bool((clean.splits.test.known_labels == noisy.splits.test.known_labels).all())


def test_noise_and_omission_decide_the_weights():
    """A finished arm taken over by a run with other noise would be reported under the wrong name."""
    assert _study("data.label_noise=0.2").fingerprint != _study().fingerprint
    assert _study("data.omit=[3]").fingerprint != _study().fingerprint


@pytest.mark.parametrize("override", ["data.label_noise=0", "data.label_noise=1.5", "data.omit=[]", "data.omit=3"])
def test_values_that_mean_nothing(override: str):
    """An option that does nothing is taken for one that was tried."""
    with pytest.raises(ConfigError, match=r"data\.(label_noise|omit)"):
        load_config(DIGITS / "config.yaml", [override])


def test_an_unknown_class_is_an_error():
    """Nothing would be omitted, and the run be called "without 12"."""
    with pytest.raises(DataError, match="there is no class 12"):
        _study("data.omit=[12]")


def test_a_class_and_noise_cannot_both_be_taken_away():
    """A wrong label would hide an example of the omitted class among the others: a class "never seen" that was."""
    with pytest.raises(ConfigError, match=r"data\.omit and data\.label_noise together"):
        load_config(DIGITS / "config.yaml", ["data.omit=[3]", "data.label_noise=0.2"])
