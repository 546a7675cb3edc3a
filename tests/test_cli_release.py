"""``tutelage export`` and ``tutelage check`` at the end of a pipeline: what they print, leave and exit with."""

import json
import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tutelage.studies import checking

MODELS = """
import torch
from torch import nn
from tutelage import TransferSet


def student():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))


def teacher():
    return nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 3))


def blobs():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 3
    inputs = 2 * torch.eye(3, 8)[labels] + torch.randn(300, 8, generator=generator)
    site = [["north", "south"][index % 2] for index in range(300)]
    return TransferSet(inputs, labels, ["ash", "beech", "c|edar"], metadata={"site": site})
"""

CONFIG = """
title: three trees
data: {source: python, python: "models.py:blobs", splits: {validation: 0.2, test: 0.3}}
teacher: {model: {python: "models.py:teacher"}, training: {num_train_epochs: 4, learning_rate: 0.02}}
student: {model: {python: "models.py:student"}}
objective: [{term: kl, weight: 0.9}, {term: cross_entropy, weight: 0.1}]
training: {num_train_epochs: 4, per_device_train_batch_size: 16, learning_rate: 0.02}
study: {seeds: 2}
gates: {accuracy_drop_vs_teacher: 0.5, gain_over_scratch: -0.9, size_ratio: 1.9, worst_slice_drop: 0.9}
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tutelage.config import load_config
    from tutelage.config.building import build_study
    from tutelage.studies import export_student, open_run

    folder = tmp_path_factory.mktemp("project")
    (folder / "models.py").write_text(MODELS)
    (folder / "config.yaml").write_text(CONFIG)
    study = build_study(load_config(folder / "config.yaml"), folder, "tutelage run config.yaml")
    study.run(folder / "runs" / "trees")
    export_student(open_run(study, folder / "runs" / "trees"), "onnx")
    return folder


@pytest.fixture
def project(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run with one artefact. The measuring has tests of its own: here it takes no time."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)

    class Measured:
        def __init__(self, subjects: Any, **_: Any) -> None:
            self.names = [subject.name for subject in subjects]

        def to_json(self) -> dict[str, Any]:
            rows = [
                {"model": name, "threads": 1, "batch": batch, "length": None, "p50": 1.0, "p95": 1.1, "p99": 1.2}
                | {"spread": [0.9, 1.1], "throughput": 1000.0, "calls": 10, "waited": 0.0}
                for name in self.names
                for batch in (1, 32)
            ]
            memory = {name: {"peak_bytes": 2_000_000, "runtime_bytes": 1_000_000} for name in self.names}
            return {
                "cpu": {"name": "a cpu", "cores": 1, "flags": [], "int8_note": None},
                "rows": rows,
                "memory": memory,
            }

    monkeypatch.setattr(checking, "measure_running", Measured)
    return tmp_path


def with_gates(project: Path, **gates: float) -> None:
    path = project / "runs" / "trees" / "config.yaml"
    text = path.read_text()
    for name, limit in gates.items():
        lines = [f"  {name}: {limit}" if line.startswith(f"  {name}:") else line for line in text.splitlines()]
        assert f"  {name}: {limit}" in lines
        text = "\n".join(lines) + "\n"
    path.write_text(text)
    # as the same `tutelage run` with other gates would leave it
    record = project / "runs" / "trees" / "result.json"
    result = json.loads(record.read_text())
    record.write_text(json.dumps({**result, "config_sha256": sha256(text.encode()).hexdigest()}))


def test_export_leaves_an_artefact_a_page_and_the_numbers(project: Path, tutelage: Any) -> None:
    """The command is what a pipeline calls: with nothing at the path it prints, the next step fails far from the cause."""
    left = tutelage("export", "runs/trees", "--to", "onnx", "--out", "shipped/trees", "--price", "2")
    assert left.code == 0, left.err
    assert (project / "shipped" / "trees" / "manifest.json").is_file()
    assert "parity" in left.out
    assert "largest difference of a logit" in left.out
    assert "a million inferences at $2 an hour" in left.out
    assert "As shipped" in (project / "runs" / "trees" / "report.html").read_text()
    assert tutelage("check", "runs/trees").code == 0, "an artefact elsewhere is found again"
    recorded = json.loads((project / "runs" / "trees" / "shipped.json").read_text())
    assert set(recorded["artefacts"]) == {"onnx", "trees"}
    assert "check" in recorded["artefacts"]["trees"]


@pytest.mark.parametrize(
    ("gates", "code", "decision"),
    [({}, 0, "ship"), ({"accuracy_drop_vs_teacher": 0.005}, 3, "hold"), ({"size_ratio": 0.01}, 4, "reject")],
)
def test_check_leaves_with_the_code_of_its_verdict(
    project: Path, tutelage: Any, gates: dict[str, float], code: int, decision: str
) -> None:
    """A pipeline reads nothing but the code: hold as 0 would release what nobody showed."""
    with_gates(project, **gates)
    left = tutelage("check", "runs/trees", "--summary", "verdict.md", "--card", "card.md", "--license", "apache-2.0")
    assert left.code == code, left.out + left.err
    assert f"verdict: {decision}" in left.out
    assert decision in (project / "verdict.md").read_text().lower()
    assert "c|edar" not in (project / "verdict.md").read_text(), "a bare pipe would break the table"
    assert "license: apache-2.0" in (project / "card.md").read_text()


def test_a_held_release_says_what_would_decide(project: Path, tutelage: Any) -> None:
    """'Hold' alone leaves nothing to do but to lower the gate."""
    with_gates(project, accuracy_drop_vs_teacher=0.005)
    left = tutelage("check", "runs/trees")
    assert left.code == 3
    assert "test examples" in left.out
    gates = json.loads((project / "runs" / "trees" / "shipped.json").read_text())["artefacts"]["onnx"]["check"]["gates"]
    assert any("needs" in gate for gate in gates)


def damaged_weights(project: Path) -> list[str]:
    (project / "runs" / "trees" / "export" / "onnx" / "model.onnx").write_bytes(b"")
    return ["check", "runs/trees"]


def unfinished(project: Path) -> list[str]:
    (project / "runs" / "trees" / "result.json").unlink()
    return ["export", "runs/trees"]


def moved(project: Path) -> list[str]:
    shutil.move(project / "runs" / "trees", project / "elsewhere")
    return ["export", "elsewhere"]


def nothing_exported(project: Path) -> list[str]:
    (project / "runs" / "trees" / "shipped.json").unlink()
    return ["check", "runs/trees"]


def edited_gates(project: Path) -> list[str]:
    path = project / "runs" / "trees" / "config.yaml"
    path.write_text(path.read_text().replace("size_ratio: 1.9", "size_ratio: 99"))
    return ["check", "runs/trees"]


def foreign_model(project: Path) -> list[str]:
    (project / "downloaded").mkdir()
    (project / "downloaded" / "model.onnx").write_bytes(b"\x08\x07")
    return ["check", "runs/trees", "--artifact", "downloaded"]


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (damaged_weights, "is not what was exported"),
        (unfinished, "is a run that did not finish"),
        (moved, "give --config"),
        (nothing_exported, "nothing of runs/trees was exported yet"),
        (foreign_model, "no artefact of tutelage"),
        (edited_gates, "is not what ran"),
        (lambda _: ["check", "runs/trees", "--summary", "nowhere/verdict.md"], "there is no folder nowhere"),
        (lambda _: ["check", "runs/trees", "--price", "-1"], "a price of -1"),
        (lambda _: ["export", "runs/trees", "--to", "safetensors", "--int8"], "--int8 with --to safetensors"),
        (lambda _: ["export", "runs/trees", "--config", "absent.yaml"], "--config absent.yaml does not exist"),
        (lambda _: ["export", "config.yaml"], "config.yaml"),
    ],
)
def test_a_mistake_is_one_message_and_code_2(project: Path, tutelage: Any, prepare: Any, message: str) -> None:
    """A traceback tells a user nothing, and any other code would be read as a verdict."""
    left = tutelage(*prepare(project))
    assert left.code == 2, left.out
    assert message in left.err
    assert "Traceback" not in left.err


def test_a_moved_run_is_found_with_its_config(project: Path, tutelage: Any) -> None:
    """A run trained on one machine is released from another, where nothing lies where it lay."""
    shutil.move(project / "runs" / "trees", project / "elsewhere")
    left = tutelage("check", "elsewhere", "--config", "config.yaml")
    assert left.code == 0, left.err


def test_mlflow_is_asked_for_before_the_work_and_logs_what_was_found(
    project: Path, tutelage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Missing, it would be found out after the work; and a verdict logged under another name is one that nobody finds."""
    import sys
    from types import SimpleNamespace

    monkeypatch.setitem(sys.modules, "mlflow", None)
    left = tutelage("check", "runs/trees", "--mlflow")
    assert left.code == 2
    assert "pip install 'tutelage[mlflow]'" in left.err

    logged: dict[str, Any] = {}

    class Started:
        info = SimpleNamespace(run_id="run-7")

        def __enter__(self) -> "Started":
            return self

        def __exit__(self, *_: object) -> None: ...

    def started(run_name: str) -> Started:
        logged["name"] = run_name
        return Started()

    fake = SimpleNamespace(
        start_run=started,
        set_tags=lambda tags: logged.update(tags=tags),
        log_params=lambda parameters: logged.update(parameters=parameters),
        log_metrics=lambda metrics: logged.update(metrics=metrics),
        log_dict=lambda fields, name: logged.update({name: fields}),
        log_artifacts=lambda folder, artifact_path: logged.update(folder=folder, path=artifact_path),
        get_tracking_uri=lambda: "nowhere",
    )
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    left = tutelage("check", "runs/trees", "--mlflow")
    assert left.code == 0, left.err
    assert "run-7" in left.out
    assert logged["name"] == "three trees: onnx"
    assert logged["tags"]["tutelage.verdict"] == "ship"
    check = json.loads((project / "runs" / "trees" / "shipped.json").read_text())["artefacts"]["onnx"]["check"]
    assert logged["metrics"]["test/accuracy"] == check["test"]["metrics"]["accuracy"]
    assert logged["metrics"]["latency_ms_p50/onnx"] == 1.0
    assert (logged["folder"], logged["path"]) == ("runs/trees/export/onnx", "onnx")
    assert logged["parameters"]["objective"] == "0.9 kl + 0.1 cross_entropy"

    def down(*_: object) -> None:
        raise ConnectionError("refused")

    fake.log_metrics = down
    left = tutelage("check", "runs/trees", "--mlflow")
    assert left.code == 2
    assert "MLflow did not take it at nowhere" in left.err
