"""``result.json`` is the contract for every tool that reads a run: its keys, its types, and no NaN anywhere."""

import json
import math
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import TRAINING, good_teacher, study

from tutelage import KL, CrossEntropy
from tutelage.config import read_yaml
from tutelage.report import render_report
from tutelage.studies import Study, TeacherTraining

METRICS = {"accuracy", "macro_f1", "nll", "brier", "ece"}
FIDELITY = {"agreement", "kl", "negative_flips"}
NUMBER = (int, float)


def trained_teacher_study(**changes: Any) -> Study:
    whole = study()
    recipe = TeacherTraining(whole.splits.train, TRAINING, seed=4)
    return study(teacher=lambda: torch.nn.Linear(8, 3), teacher_training=recipe, **changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("runs") / "new" / "run"
    trained_teacher_study(extra_arms={"hot": 1.0 * KL(temperature=8.0)}).run(folder)
    return folder, json.loads((folder / "result.json").read_text(), parse_constant=refuse)


def refuse(name: str) -> float:
    raise AssertionError(f"result.json holds {name}")


def check_interval(value: Any) -> None:
    assert isinstance(value, list)
    assert len(value) == 2
    if value != [None, None]:
        low, high = value
        assert isinstance(low, NUMBER)
        assert isinstance(high, NUMBER)
        assert low <= high


def check_arm(name: str, arm: dict[str, Any], seeds: int) -> None:
    assert isinstance(arm["description"], str)
    assert len(arm["seeds"]) == seeds
    for row in arm["seeds"]:
        assert isinstance(row["seed"], int)
        assert isinstance(row["seconds"], float)
        assert isinstance(row["steps"], int)
        assert set(row["metrics"]) >= METRICS
        assert ("fidelity" in row) == (name != "teacher")
        fidelity = row.get("fidelity", {})
        assert not fidelity or set(fidelity) >= FIDELITY
        for value in (*row["metrics"].values(), *fidelity.values()):
            assert isinstance(value, NUMBER)
            assert math.isfinite(value)
    measured = METRICS if name == "teacher" else METRICS | FIDELITY
    assert set(arm["mean"]) >= measured
    assert set(arm["mean"]) == set(arm["ci95"]) == set(arm["ci_method"])
    for value in arm["mean"].values():
        assert isinstance(value, NUMBER)
    for interval in arm["ci95"].values():
        check_interval(interval)


def check_result(result: dict[str, Any], seeds: int) -> None:
    """The layout of the design, and nothing that JSON cannot hold."""
    assert isinstance(result["tutelage"], str)
    assert len(result["config_sha256"]) == 64
    assert result["started"].endswith("+00:00")
    assert result["seconds"] > 0
    assert {"python", "torch", "transformers", "cpu", "threads", "command"} <= set(result["provenance"])
    assert set(result["splits"]) == {"train", "validation", "test"}
    assert all(isinstance(count, int) and count > 0 for count in result["splits"].values())
    for name, arm in result["arms"].items():
        check_arm(name, arm, 1 if name == "teacher" else seeds)
    keys = {"a", "b", "metric", "difference", "ci95", "p_value", "method", "seeds"}
    for row in result["comparisons"]:
        assert set(row) >= keys
        assert row["a"] == "kd"
        assert row["b"] in result["arms"]
        assert 0 <= row["p_value"] <= 1
        assert row["seeds"] == seeds
        check_interval(row["ci95"])
    for cost in result["cost"].values():
        assert set(cost) >= {"parameters", "bytes", "flops_per_example", "latency_ms"}
        assert set(cost["latency_ms"]) >= {"p50", "p95", "batch"}
    verdict = result["verdict"]
    assert verdict["decision"] in ("ship", "hold", "reject")
    for gate in verdict["gates"]:
        assert set(gate) - {"needs"} == {"name", "value", "limit", "passed", "why"}
        if "needs" in gate:
            assert gate["passed"] is None, "only what is undecided needs more"
            assert set(gate["needs"]) == {"seeds", "examples", "why"}
        assert gate["passed"] in (True, False, None)
        assert gate["why"][0].isupper()
        assert gate["why"].endswith(".")


def test_the_record_obeys_the_contract(finished: tuple[Path, dict[str, Any]]) -> None:
    _, result = finished
    check_result(result, seeds=2)
    assert list(result["arms"]) == ["teacher", "kd", "scratch", "label_smoothing", "hot"]
    assert [row["seed"] for row in result["arms"]["kd"]["seeds"]] == [0, 1]
    assert result["arms"]["teacher"]["seeds"][0]["seed"] == 4
    assert {(row["b"], row["metric"]) for row in result["comparisons"]} == {
        (other, metric)
        for other in ("teacher", "scratch", "label_smoothing", "hot")
        for metric in ("accuracy", "nll", "brier")
    }
    assert set(result["cost"]) == {"teacher", "student"}


def test_means_are_those_of_the_seeds(finished: tuple[Path, dict[str, Any]]) -> None:
    for arm in finished[1]["arms"].values():
        for metric in ("accuracy", "nll", "brier"):
            values = [row["metrics"][metric] for row in arm["seeds"]]
            assert arm["mean"][metric] == pytest.approx(sum(values) / len(values))


def test_the_folder_holds_what_the_design_says(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, result = finished
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    left = {"model.safetensors", "predictions.safetensors", "record.json"}
    expected = {".lock", "config.yaml", "result.json"} | {f"teacher/{name}" for name in left}
    expected |= {
        f"{arm}/seed-{seed}/{name}" for arm in result["arms"] if arm != "teacher" for seed in (0, 1) for name in left
    }
    assert found == expected
    text = (folder / "config.yaml").read_text()
    assert sha256(text.encode()).hexdigest() == result["config_sha256"]
    assert result["provenance"]["config"] == text


def test_config_yaml_says_what_ran(finished: tuple[Path, dict[str, Any]]) -> None:
    written = read_yaml(finished[0] / "config.yaml")
    assert written["training"] == TRAINING
    assert written["study"]["arms"] == [
        "kd",
        "scratch",
        "label_smoothing",
        {"hot": (1.0 * KL(temperature=8.0)).describe()},
    ]
    assert written["teacher"] == {"training": TRAINING, "seed": 4}
    assert written["gates"]["accuracy_drop_vs_teacher"] == 0.03


def test_a_page_can_be_made_of_it(finished: tuple[Path, dict[str, Any]]) -> None:
    page = render_report(finished[1])
    for gate in finished[1]["verdict"]["gates"]:
        assert gate["why"] in page.replace("&#39;", "'")


def test_each_student_reloads_and_predicts_the_same(finished: tuple[Path, dict[str, Any]]) -> None:
    """What is shipped must be what was measured."""
    folder, result = finished
    test = study().splits.test
    for arm in ("kd", "scratch", "label_smoothing", "hot"):
        for seed in (0, 1):
            place = folder / arm / f"seed-{seed}"
            module = torch.nn.Linear(8, 3)
            module.load_state_dict(load_file(place / "model.safetensors"))
            kept = load_file(place / "predictions.safetensors")
            with torch.inference_mode():
                assert torch.equal(module(test.inputs), kept["logits"])
            assert torch.equal(kept["ids"], test.ids)
            accuracy = float((kept["logits"].argmax(1) == test.known_labels).float().mean())
            assert accuracy == pytest.approx(result["arms"][arm]["seeds"][seed]["metrics"]["accuracy"])


def test_a_given_teacher_leaves_no_folder_and_no_seed(tmp_path: Path) -> None:
    result = study(arms=["kd"], seeds=[7]).run(tmp_path)
    assert not (tmp_path / "teacher").exists()
    (row,) = result["arms"]["teacher"]["seeds"]
    assert (row["seed"], row["steps"], row["seconds"]) == (None, None, None)
    assert result["verdict"]["decision"] == "hold"
    assert "kd" in result["arms"]
    render_report(result)


def test_models_may_have_a_class_that_the_data_never_shows(tmp_path: Path) -> None:
    """A rare class may be absent from a small set: its column still needs a name, or the tables are one name short."""
    wide = torch.nn.Linear(8, 5)
    result = study(arms=["kd"], seeds=1, student=lambda: torch.nn.Linear(8, 5), teacher=wide).run(tmp_path)
    assert result["classes"] == ["0", "1", "2", "3", "4"]
    assert len(result["evidence"]["per_class"]["kd"]) == 5


def test_settings_that_yaml_has_no_word_for_are_written_as_text(tmp_path: Path) -> None:
    """Otherwise the study would crash at its very end, or before it begins, over a NumPy number."""
    import numpy as np
    from transformers import SchedulerType

    training = {
        **TRAINING,
        "learning_rate": np.float64(0.05),
        "lr_scheduler_type": SchedulerType.COSINE,
        "max_steps": 2,
    }
    study(arms=["kd"], seeds=1, training=training, objective=CrossEntropy(), teacher=good_teacher()).run(tmp_path)
    written = read_yaml(tmp_path / "config.yaml")["training"]
    assert written["learning_rate"] == 0.05
    assert written["lr_scheduler_type"] == "cosine"
