"""A gate that could never be decided is refused where a config names it, and left out where it is there by default."""

from __future__ import annotations

from typing import Any

import pytest

from tutelage.config import LanguageConfig, StudyConfig, gate_keys
from tutelage.config.language.checking import check_language_config
from tutelage.config.reading import check_config
from tutelage.errors import ConfigError
from tutelage.studies import gates
from tutelage.studies.language import gates as language_gates

CLASSIFIER: dict[str, Any] = {
    "data": {"source": "digits", "splits": {"validation": 0.15, "test": 0.2}},
    "teacher": {"model": {"python": "models.py:teacher"}},
    "student": {"model": {"python": "models.py:student"}},
    "objective": [{"term": "kl"}],
    "training": {"num_train_epochs": 1},
}
LANGUAGE: dict[str, Any] = {
    "task": "language_model",
    "data": {"source": "jsonl", "path": "rows.jsonl", "splits": {"test": 0.2}},
    "teacher": {"model": {"hub": "teacher"}},
    "student": {"model": {"hub": "student"}},
    "objective": [{"term": "kl"}],
    "training": {"max_steps": 2},
}


def classifier(**sections: Any) -> StudyConfig:
    return check_config({**CLASSIFIER, **sections}, "here.yaml")


def language(**sections: Any) -> LanguageConfig:
    return check_language_config({**LANGUAGE, **sections}, "here.yaml")


def arms(*names: str) -> dict[str, Any]:
    return {"arms": list(names)}


@pytest.mark.parametrize(
    ("read", "sections", "gate", "needs"),
    [
        (classifier, {"study": arms("kd")}, {"gain_over_scratch": 0.01}, "the arm scratch"),
        (classifier, {"study": arms("kd", "scratch")}, {"gain_over_label_smoothing": 0.1}, "the arm label_smoothing"),
        (classifier, {}, {"worst_slice_drop": 0.1}, "data.metadata"),
        (language, {"study": arms("kd", "untouched")}, {"gain_over_sft": 0.01}, "the arm sft"),
        (language, {"study": arms("kd", "sft")}, {"gain_over_untouched": 0.01}, "the arm untouched"),
        (language, {"study": arms("kd", "sft")}, {"gap_closed": 0.9}, "the arm untouched"),
        (language, {}, {"score_drop_vs_teacher": 0.05}, "the section score"),
        (
            language,
            {"teacher": {"model": {"hub": "t"}, "alignment": "text"}, "objective": [{"term": "cross_entropy"}]},
            {"kl": 0.1},
            "a vocabulary",
        ),
        (
            language,
            {"teacher": {"remote": {"url": "http://host/v1", "model": "m"}}},
            {"latency_ratio": 0.5},
            "one model on this machine",
        ),
    ],
)
def test_a_named_gate_that_could_never_be_decided_is_refused(
    read: Any, sections: dict[str, Any], gate: dict[str, float], needs: str
) -> None:
    """Everything would be trained for hours, to end with 'this cannot be decided'."""
    (name,) = gate
    with pytest.raises(ConfigError, match=rf"^here\.yaml: gates\.{name} needs .*never be decided") as refused:
        read(**sections, gates=gate)
    assert needs in str(refused.value)
    assert getattr(read(**sections, gates={name: None}).gates, name) is None, "null asks for nothing"


def test_default_gates_are_left_out_where_they_have_nothing_to_compare_with() -> None:
    """Who asked for nothing is not to be refused, and what is written down as what ran must read back."""
    for read, kd in ((classifier, classifier(study=arms("kd"))), (language, language(study=arms("kd")))):
        section = kd.gates.resolved()
        assert all(section[gate] is None for gate in section if gate.startswith(("gain_over", "score_drop")))
        again = read(**{name: value for name, value in kd.resolved().items() if name != "task"})
        assert again.gates == kd.gates
    assert classifier().gates.gain_over_scratch == 0.0
    assert language(score={"exact_match": "answer"}).gates.score_drop_vs_teacher == 0.03


def test_slices_may_come_with_a_function_of_the_users() -> None:
    """A data set that is made in Python brings its metadata along, which no key says."""
    python = {"source": "python", "python": "data.py:splits", "splits": {"test": 0.2}}
    assert classifier(data=python, gates={"worst_slice_drop": 0.1}).gates.worst_slice_drop == 0.1


def test_config_and_study_know_the_same_controls() -> None:
    """The config's table stands by itself, so that reading a config loads no torch."""
    assert gate_keys.CONTROL_OF == gates.CONTROL_OF
    assert gate_keys.LANGUAGE_CONTROL_OF == language_gates.CONTROL_OF


def test_a_config_that_a_run_left_opens_again() -> None:
    """It has every default written out: a finished run without that arm could be neither exported nor checked."""
    assert classifier(study=arms("kd"), gates={"gain_over_scratch": 0.0}).gates.gain_over_scratch is None


def test_texts_that_are_only_aligned_tell_no_gain_without_a_score() -> None:
    """A gate that was named was left out in silence: neither a KL nor a score says who is better."""
    with pytest.raises(ConfigError, match=r"gates\.gap_closed needs the section score, or a vocabulary"):
        language(
            teacher={"model": {"hub": "t"}, "alignment": "text"},
            objective=[{"term": "cross_entropy"}],
            gates={"gap_closed": 0.9},
        )
