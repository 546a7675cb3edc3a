"""``search:`` in a config: each mistake is one message with the key and the value, and a point is the config with its values."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from tutelage.config.reading import check_config
from tutelage.config.searching import build_search, set_key
from tutelage.errors import ConfigError, TutelageError
from tutelage.studies.sweeping.search import Search
from tutelage.studies.sweeping.space import Choices, Range

MODELS = """\
from torch import nn


def student(width=4):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


def teacher():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
"""


def config(tmp_path: Path, **search: Any) -> dict[str, Any]:
    (tmp_path / "models.py").write_text(MODELS)
    return {
        "data": {"source": "digits", "splits": {"validation": 0.2, "test": 0.2}},
        "teacher": {"model": {"python": "models.py:teacher"}, "training": {"num_train_epochs": 1}},
        "student": {"model": {"python": "models.py:student"}},
        "objective": [{"term": "kl", "temperature": 2, "weight": 0.9}, {"term": "cross_entropy", "weight": 0.1}],
        "training": {"num_train_epochs": 1, "learning_rate": 1e-3},
        **({"search": search} if search else {}),
    }


def built(tmp_path: Path, **search: Any) -> Search:
    return build_search(check_config(config(tmp_path, **search), "config.yaml"), tmp_path, "tutelage sweep")


def test_a_section_becomes_a_search(tmp_path: Path) -> None:
    """A key that is read and not passed on is a wish that nobody hears of."""
    space = {"objective.0.temperature": {"low": 1, "high": 8, "log": True}, "training.learning_rate": [1e-3, 2e-3]}
    found = built(
        tmp_path, space=space, trials=12, seeds=[3, 4], metric="nll", batch=5, seed=7, storage="sqlite:///near.db"
    )
    assert found.space == {
        "objective.0.temperature": Range(1, 8, log=True),
        "training.learning_rate": Choices((1e-3, 2e-3)),
    }
    assert (found.trials, found.batch, found.seed, found.metric) == (12, 5, 7, "nll")
    assert list(found.seeds) == [3, 4]
    assert found.storage == f"sqlite:///{tmp_path / 'near.db'}"
    assert found.direction == "minimize"
    assert list(built(tmp_path, space={"training.learning_rate": [1e-3]}).seeds) == [0, 1, 2]


def test_a_point_is_the_config_with_its_values_and_ties(tmp_path: Path) -> None:
    """A tie left out makes weights that no longer sum to 1, and a sweep of the weight a sweep of the learning rate too."""
    found = built(
        tmp_path,
        space={"objective.0.weight": [0.3, 0.7], "student.model.arguments.width": [4, 8]},
        tie={"objective.1.weight": {"one_minus": "objective.0.weight"}},
    )
    candidate = found.make({"objective.0.weight": 0.7, "student.model.arguments.width": 8})
    kl, hard = candidate.study.objective.describe()  # pyright: ignore[reportAttributeAccessIssue]
    assert (kl["weight"], hard["weight"], kl["temperature"]) == (0.7, 0.3, 2)
    assert sum(p.numel() for p in candidate.study.student().parameters()) == 65 * 8 + 9 * 10
    assert candidate.study.config is not None
    assert candidate.study.config["student"]["model"]["arguments"] == {"width": 8}
    assert "search" not in candidate.study.config
    as_it_stands = found.make({})
    assert as_it_stands.study.objective.describe()[1]["weight"] == 0.1  # pyright: ignore[reportAttributeAccessIssue]


def test_what_decides_a_trial_and_what_its_teacher(tmp_path: Path) -> None:
    """Were the gates to decide a trial's folder, changing one would train the whole sweep anew; were the teacher's budget not to
    decide the teacher's, all trials would hear the first one."""
    found = built(tmp_path, space={"objective.0.temperature": [1, 4], "teacher.training.num_train_epochs": [1, 2]})
    make = found.make
    a, b = (make({"objective.0.temperature": T}) for T in (1, 4))
    c = make({"teacher.training.num_train_epochs": 2})
    assert a.folder != b.folder != c.folder
    assert a.teacher_folder == b.teacher_folder == make({}).teacher_folder != c.teacher_folder
    assert a.study.splits is b.study.splits is c.study.splits, "many copies of the data would fill the memory"
    raw = config(tmp_path, space={"objective.0.temperature": [1, 4]})
    raw["gates"] = {"ece": 0.1}
    other = build_search(check_config(raw, "config.yaml"), tmp_path, "tutelage sweep")
    assert other.make({"objective.0.temperature": 1}).folder == a.folder
    assert found.name != other.name


def test_another_tie_or_another_models_py_is_another_search(tmp_path: Path) -> None:
    """A full board of the old search would be reported as the new one's, and its winner be a configuration nobody tried."""
    space = {"objective.0.weight": [0.5, 0.9]}
    names = [built(tmp_path, space=space).name]
    for kind in ("one_minus", "same_as"):
        names.append(built(tmp_path, space=space, tie={"objective.1.weight": {kind: "objective.0.weight"}}).name)
    raw = config(tmp_path, space=space)
    folder = built(tmp_path, space=space).make({"objective.0.weight": 0.5}).folder
    (tmp_path / "models.py").write_text(MODELS + "\n# edited\n")
    edited = build_search(check_config(raw, "config.yaml"), tmp_path, "tutelage sweep")
    names.append(edited.name)
    assert len(set(names)) == 4
    assert edited.make({"objective.0.weight": 0.5}).folder != folder


def test_points_that_are_one_configuration_are_named(tmp_path: Path) -> None:
    """Trained twice, one configuration would count as two draws of the best of many."""
    found = built(tmp_path, space={"objective": [[{"term": "kl"}], [{"term": "kl", "weight": 1}]]})
    with pytest.raises(ConfigError, match="are one configuration"):
        found.check(tmp_path / "out")


def test_a_search_travels_to_another_process_without_its_data(tmp_path: Path) -> None:
    """Each worker is sent the search: with the data and the teacher inside it would take minutes and gigabytes."""
    found = built(tmp_path, space={"objective.0.temperature": [1, 4]})
    found.make({})
    sent = pickle.dumps(found)
    assert len(sent) < 20_000
    assert pickle.loads(sent).make({}).folder == found.make({}).folder


def test_a_section_and_a_key_inside_it_may_both_vary(tmp_path: Path) -> None:
    """Set in the wrong order, the section would silently undo the key."""
    terms = [[{"term": "kl", "weight": 1.0}], [{"term": "reverse_kl", "weight": 1.0}]]
    found = built(tmp_path, space={"objective.0.temperature": [3, 5], "objective": terms})
    candidate = found.make({"objective.0.temperature": 5, "objective": terms[1]})
    (term,) = candidate.study.objective.describe()  # pyright: ignore[reportAttributeAccessIssue]
    assert (term["term"], term["temperature"]) == ("reverse_kl", 5)
    assert "temperature" not in terms[1][0], "the choice itself must not be changed"


def test_a_layer_map_may_vary(tmp_path: Path) -> None:
    """A map by name is resolved against the two models: in the study of another map it would be that one's layers."""
    raw = config(tmp_path, space={"objective.0.layers": ["last", [["3", "3"]]], "objective.0.weight": [0.1, 0.2]})
    raw["objective"] = [{"term": "hint", "layers": "last", "weight": 0.1}, {"term": "kl", "weight": 0.9}]
    raw["teacher"]["model"] = raw["student"]["model"]
    found = build_search(check_config(raw, "config.yaml"), tmp_path, "tutelage sweep")
    pairs: list[list[tuple[str, str]]] = []
    for layers in ("last", [["3", "3"]]):
        terms = found.make({"objective.0.layers": layers}).study.objective.describe()  # pyright: ignore[reportAttributeAccessIssue]
        pairs.append([(term["student"], term["teacher"]) for term in terms if term["term"] == "hint"])
    assert pairs == [[("1", "1")], [("3", "3")]]


def test_an_assistant_follows_the_students_objective(tmp_path: Path) -> None:
    """An assistant without an objective of its own has the trial's, not that of the trial which was made first."""
    raw = config(tmp_path, space={"objective.0.temperature": [1, 4]})
    raw["assistants"] = [{"name": "middle", "model": {"python": "models.py:student"}}]
    found = build_search(check_config(raw, "config.yaml"), tmp_path, "tutelage sweep")
    a, b = (found.make({"objective.0.temperature": T}) for T in (1, 4))
    assert a.teacher_folder != b.teacher_folder
    assert a.study.splits is b.study.splits
    assert [s.study.objective.describe()[0]["temperature"] for s in (a, b)] == [1, 4]  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("search", "said"),
    [
        ({"space": {"objective.0.temperature": 4}}, "expected a list of choices"),
        ({"space": {"objective.0.temperature": {"low": 1, "hgih": 4}}}, "no key 'hgih'; did you mean 'high'"),
        ({"space": {"objective.0.temperature": {"low": 1}}, "trials": 2}, "has no 'high'"),
        ({"space": {"objective.0.temperature": {"low": "1", "high": 4}}, "trials": 2}, "low is '1', expected a number"),
        ({"space": {"objective.0.temperature": {"low": 1, "high": 4, "log": 1}}}, "log is 1, expected true or false"),
        ({"space": {"objective.0.temperature": [1, 1]}}, "there twice"),
        ({"space": {"study.seeds": [1, 2]}}, "decides nothing about a student"),
        ({"space": {"gates.ece": [1, 2]}}, "decides nothing about a student"),
        ({"space": {"objectiv.0.temperature": [1, 2]}}, "no section of a config; did you mean 'objective'"),
        (
            {"space": {"objective.0.weight": [0.1]}, "tie": {"objective.1.weight": {"one_minus": "objective.0.wight"}}},
            "not in search.space; did you mean 'objective.0.weight'",
        ),
        (
            {"space": {"objective.0.weight": [0.1]}, "tie": {"objective.0.weight": {"same_as": "objective.0.weight"}}},
            "is in search.space too",
        ),
        ({"space": {"objective.0.weight": [0.1]}, "tie": {"objective.1.weight": {}}}, "expected one of"),
        (
            {"space": {"objective.0.term": ["kl"]}, "tie": {"objective.1.weight": {"one_minus": "objective.0.term"}}},
            "needs numbers there",
        ),
    ],
)
def test_spaces_that_cannot_be_meant(tmp_path: Path, search: dict[str, Any], said: str) -> None:
    """Each would end in an error of Optuna's, or vary something else than the user believes."""
    with pytest.raises(ConfigError, match=said):
        built(tmp_path, **search)


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({"objective.0.temprature": [1]}, r"search.space, objective.0.temprature = 1: .*did you mean 'temperature'"),
        ({"objective.0.temperature": [1, -1]}, r"search.space, objective.0.temperature = -1: "),
        ({"training.learning_rate": [1e-3, "fast"]}, r'search.space, training.learning_rate = "fast": .*a number'),
        ({"objective.7.temperature": [1]}, r"search.space, objective.7.temperature = 1: .*'7' is not a position"),
        ({"training.lr": [1e-3]}, r"training.lr = 0.001: .*did you mean 'learning_rate'"),
        ({"data.splits.validation": [0.2, 0.3]}, "changes the validation split"),
    ],
)
def test_a_bad_value_is_named_before_anything_is_trained(tmp_path: Path, space: dict[str, Any], said: str) -> None:
    """One message that names the key and the value: the user wrote no config with that value in it."""
    found = built(tmp_path, space=space)
    with pytest.raises(TutelageError, match=said):
        found.check(tmp_path / "out")


def test_no_section_and_a_section_in_a_run(tmp_path: Path) -> None:
    """A run of a config with a search is the run it would be without: what is swept beside it must not enter its record."""
    with pytest.raises(ConfigError, match="no search section"):
        built(tmp_path)
    plain = check_config(config(tmp_path), "config.yaml")
    searched = check_config(config(tmp_path, space={"objective.0.temperature": [1]}), "config.yaml")
    assert searched.resolved() == plain.resolved()
    with pytest.raises(ConfigError, match=r"unknown key .search\.sapce."):
        check_config({**config(tmp_path), "search": {"sapce": {}}}, "config.yaml")


def test_keys_that_lead_nowhere() -> None:
    """A key set inside a number would be lost."""
    with pytest.raises(ConfigError, match="a is 1, which has no keys"):
        set_key({"a": 1}, "a.b.c", 2)
    with pytest.raises(ConfigError, match="a is 1, which has no keys"):
        set_key({"a": 1}, "a.b", 2)
    data: dict[str, Any] = {"a": [{"b": None}]}
    set_key(data, "a.0.b.c", 3)
    assert data == {"a": [{"b": {"c": 3}}]}
