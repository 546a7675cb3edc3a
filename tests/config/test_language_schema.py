"""A language model's config: every mistake is one message, and senseless combinations are named before torch is loaded."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from tutelage.config import LanguageConfig, StudyConfig, load_config
from tutelage.config.language.checking import arms_of, check_language_config
from tutelage.config.reading import load_classifier_config
from tutelage.config.searching import set_key
from tutelage.errors import ConfigError
from tutelage.studies.yaml_text import to_yaml

BASE: dict[str, Any] = {
    "task": "language_model",
    "data": {"source": "jsonl", "path": "rows.jsonl", "splits": {"test": 0.2}},
    "teacher": {"model": {"hub": "teacher"}},
    "student": {"model": {"hub": "student"}},
    "objective": [{"term": "kl"}],
    "training": {"max_steps": 2},
}


def changed(**keys: Any) -> dict[str, Any]:
    """The config with dotted keys set (``__`` for the dot); None takes one out."""
    data = copy.deepcopy(BASE)
    for dotted, value in keys.items():
        set_key(data, dotted.replace("__", "."), value)
    return data


def mistake(**keys: Any) -> str:
    with pytest.raises(ConfigError) as refused:
        check_language_config(changed(**keys), "here.yaml")
    return str(refused.value)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"data__sauce": 1}, ["unknown key 'data.sauce'", "did you mean 'source'?"]),
        ({"data__source": "jsnol"}, ["unknown data source 'jsnol'", "did you mean 'jsonl'?"]),
        ({"data__path": None}, ["data.path is missing"]),
        ({"data__split": "train"}, ["data.split does nothing with the source 'jsonl'"]),
        ({"data__max_length": 1}, ["data.max_length is 1, expected at least 2"]),
        ({"data__layout": "packd"}, ["data.layout is 'packd', expected 'padded' or 'packed'"]),
        ({"data__completions": "teacher"}, ["data.completions is 'teacher'", "generate: {max_new_tokens"]),
        ({"data__completions": "teacher", "generate": {}, "data__turns": "all"}, ["data.turns is 'all'"]),
        ({"views": {"studnet": {}}}, ["unknown key 'views.studnet'", "'student'"]),
        ({"views": {"student": {"usr": "x"}}}, ["unknown key 'views.student.usr'", "'user'"]),
        ({"views": {"student": {"text": "x", "system": "y"}}}, ["views.student has text beside system"]),
        ({"views": {"teacher": {"text": "x", "chat": True}}}, ["views.teacher.chat is true beside text"]),
        ({"views": {"student": {"user": "x", "chat": False}}}, ["views.student.chat is false beside user"]),
        ({"views": {"student": {"shots": [{"user": "x"}]}}}, ["'views.student.shots.0.assistant' is missing"]),
        ({"teacher": {}}, ["none of model, remote, ensemble and self"]),
        ({"teacher__self": True}, ["teacher has model and self"]),
        ({"teacher": {"slef": True}}, ["unknown key 'teacher.slef'", "did you mean 'self'?"]),
        ({"teacher": {"self": True, "tokenizer": "x"}}, ["teacher.self is the student"]),
        ({"teacher": {"self": True}, "student": {"from": "teacher"}}, ["point at each other"]),
        ({"teacher": {"ensemble": [{"model": {"hub": "x"}}] * 2}}, ["teacher.ensemble.1 is the same model"]),
        ({"teacher": {"remote": {"url": "host:80", "model": "m"}}}, ["teacher.remote.url is 'host:80'"]),
        ({"teacher": {"remote": {"url": "http://h", "model": "m"}, "alignment": "uld"}}, ["likeliest tokens alone"]),
        ({"teacher": {"remote": {"url": "http://h", "model": "m"}}, "student": {"from": "teacher"}}, ["student.from"]),
        ({"teacher__alignment": "exact"}, ["teacher.alignment is 'exact', expected 'text', 'crossing' or 'uld'"]),
        ({"teacher__alignment": "uld"}, ["no term of the objective compares sorted probabilities"]),
        ({"teacher__alignment": "text", "objective": [{"term": "uld"}]}, ["has the term uld"]),
        ({"teacher__alignment": "crossing", "on_policy": {}}, ["on_policy with teacher.alignment: crossing"]),
        (
            {"study__seconds": 60, "training": {"num_train_epochs": 1, "lr_scheduler_type": "cosine"}},
            ["training.num_train_epochs is 1 beside a budget of seconds", "training.lr_scheduler_type is 'cosine'"],
        ),
        ({"student": {}}, ["student has neither model nor from"]),
        ({"student__from": "teacher"}, ["student has model beside from: teacher"]),
        ({"student": {"from": "teacher", "tokenizer": "x"}}, ["student.tokenizer beside from: teacher"]),
        ({"student": {"from": "teacher", "layers": [0, 0]}}, ["expected each layer once"]),
        ({"student": {"from": "teacher", "layers": 0}}, ["student.layers is 0, expected at least 1"]),
        ({"student__lora": {"rank": 3}}, ["unknown key 'student.lora.rank'"]),
        ({"labels": {"form": "top_k", "temperature": 1}}, ["labels.k is missing"]),
        ({"labels": {"features": ["0"]}, "teacher": {"ensemble": [{"model": {"hub": "x"}}]}}, ["has no features"]),
        ({"on_policy": {"share": 1.5}}, ["on_policy.share is 1.5, expected at most 1"]),
        ({"on_policy": {}, "labels": {}}, ["labels are of given completions"]),
        ({"on_policy": {}, "objective": [{"term": "cross_entropy"}]}, ["repeat what it wrote itself"]),
        ({"training__lr": 1}, ["did you mean 'learning_rate'?"]),
        ({"study": {"arms": ["sft"]}}, ["'kd', which the verdict is about, is missing"]),
        ({"study": {"arms": ["kd", "kd"]}}, ["'kd' is there twice"]),
        ({"study": {"arms": ["kd", "scratch"]}}, ["there is no arm 'scratch'"]),
        ({"study": {"arms": ["kd", {"sft": {}}]}}, ["'sft' is an arm of its own kind"]),
        ({"study": {"arms": ["kd", {"a": {}, "b": {}}]}}, ["has 2 names"]),
        ({"study": {"arms": ["kd", {"mine": {"show": "teacher"}}]}}, ["study.arms.mine.show", "did you mean 'shows'?"]),
        ({"study": {"arms": ["kd", {"mine": {"completions": "teacher"}}]}}, ["'mine', completions is 'teacher'"]),
        ({"study": {"arms": ["kd", {"mine": {"on_policy": {}, "labels": {}}}]}}, ["'mine': labels are of given"]),
        ({"study": {"seeds": [1, 1]}}, ["expected different seeds"]),
        ({"study": {"seconds": 0}}, ["study.seconds is 0, expected more than 0"]),
        ({"score": {}}, ["score has none of choices, exact_match and python"]),
        ({"score": {"choices": ["a", "b"]}}, ["score.column is missing"]),
        ({"score": {"exact_match": "a", "column": "b"}}, ["score.choices is missing beside score.column"]),
        ({"score": {"choices": ["a", "a"], "column": "b"}}, ["expected each choice once"]),
        ({"score": {"exact_match": "a", "python": "score.py:f"}}, ["score has exact_match and python"]),
        ({"gates": {"gain_over_scratch": 0}}, ["unknown key 'gates.gain_over_scratch'", "'gain_over_sft'"]),
        ({"search": {}}, ["unknown key 'search'"]),
    ],
)
def test_a_mistake_is_named_with_its_key(keys: dict[str, Any], said: list[str]) -> None:
    """A key that nothing reads, or two of which one would win, would be believed to be at work."""
    message = mistake(**keys)
    assert message.startswith("here.yaml:")
    for words in said:
        assert words in message, message
    assert "Input should" not in message


@pytest.mark.parametrize("section", ["data", "teacher", "student", "objective", "training"])
def test_a_missing_section_is_named_with_a_language_models_example(section: str) -> None:
    """A classifier's example here would be refused when it is written down."""
    whole = changed()
    del whole[section]
    with pytest.raises(ConfigError, match=f"the key '{section}' is missing; write for example  {section}:") as refused:
        check_language_config(whole, "here.yaml")
    assert "models.py" not in str(refused.value)


def test_a_key_in_a_url_or_in_the_place_of_a_variables_name_is_refused_without_being_told() -> None:
    """The message goes to logs: it must not hold the secret that it is about."""
    for remote in (
        {"url": "https://me:sk-secret@host/v1", "model": "m"},
        {"url": "me:sk-secret@host/v1", "model": "m"},
        {"url": "https://host", "model": "m", "key_env": "sk-secret"},
    ):
        message = mistake(teacher={"remote": remote})
        assert "sk-secret" not in message
        assert "environment variable" in message
    assert "sk-secret" not in mistake(teacher={"remote": {"url": "host/v1?key=sk-secret", "model": "m"}})


def test_an_objective_on_its_own_is_short_for_an_arm() -> None:
    """The same words as a classifier's: an arm by its terms alone."""
    terms = [{"term": "reverse_kl"}]
    config = check_language_config(
        changed(study__arms=["kd", {"mine": terms}, {"other": {"objective": terms}}]), "here"
    )
    standard, own = arms_of(config)
    assert standard == ["kd"]
    assert own["mine"] == own["other"]
    assert own["mine"].objective == terms


def test_the_task_decides_which_config_it_is(tmp_path: Path) -> None:
    """A config without a task stays a classifier's; a language model's is never read as one."""
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(BASE))
    assert isinstance(load_config(path), LanguageConfig)
    with pytest.raises(ConfigError, match=r"this works on classifiers: do it by hand"):
        load_classifier_config(path, instead="do it by hand")
    with pytest.raises(
        ConfigError,
        match="'language_modle', expected 'classification' or 'language_model' or 'embedding'; did you mean",
    ):
        load_config(path, ["task=language_modle"])
    classifier = {name: value for name, value in BASE.items() if name != "task"} | {
        "data": {"source": "digits"},
        "student": {"model": {"hub": "x"}},
    }
    path.write_text(to_yaml(classifier))
    assert isinstance(load_config(path), StudyConfig)


def test_a_resolved_config_reads_back_as_the_same(tmp_path: Path) -> None:
    """The names ``self`` and ``from`` are no names in Python: written under others, a run's own config could not be read again."""
    path = tmp_path / "config.yaml"
    for change in (
        {"teacher": {"self": True}},
        {"student": {"from": "teacher", "layers": [0, 5], "lora": {"r": 4}}},
        {
            "gates": {"score_drop_vs_teacher": None, "kl": 0.1},
            "study": {"arms": ["kd", {"mine": {"shows": "teacher"}}]},
        },
        {"views": {"teacher": {"system": "Sort.", "shots": [{"user": "a", "assistant": "b"}], "user": "{{ gloss }}"}}},
    ):
        config = check_language_config(changed(**change), "here")
        path.write_text(to_yaml(config.resolved()))
        assert load_config(path) == config
