"""``tutelage sweep`` at the terminal: where it is, what it found, and one message where it cannot begin."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from tutelage.cli import sweep as command

COMMAND = Path(sys.executable).with_name("tutelage")

MODELS = """\
import os
import time
from torch import nn


class Slow(nn.Sequential):
    def forward(self, inputs):
        time.sleep(float(os.environ.get("STEP_SECONDS", "0")) if self.training else 0.0)
        return super().forward(inputs)


def student():
    return Slow(nn.Flatten(), nn.Linear(64, 10))


def teacher():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
"""

CONFIG = """\
title: digits
data: {source: digits, labelled: 128, splits: {validation: 0.2, test: 0.2}}
teacher:
  model: {python: "models.py:teacher"}
  training: {num_train_epochs: 2, learning_rate: 1e-2, per_device_train_batch_size: 128}
student: {model: {python: "models.py:student"}}
objective: [{term: kl, weight: 0.9}, {term: cross_entropy, weight: 0.1}]
training: {num_train_epochs: 1, learning_rate: 1e-2, per_device_train_batch_size: 128, eval_strategy: "no"}
study: {seeds: 1, arms: [kd, scratch]}
search: {space: {objective.0.temperature: [1, 4]}, seeds: 1}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "models.py").write_text(MODELS)
    (tmp_path / "config.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_sweep_from_the_terminal(project: Path, tutelage: Any) -> None:
    """The table and the folder are all that most users see of it."""
    left = tutelage("sweep", "config.yaml", "--set", "search.storage=sqlite:///own.db")
    assert left.code == 0, left.err
    folder = project / "runs" / f"{project.name}-sweep"
    result = json.loads((folder / "sweep.json").read_text())
    assert [trial["params"] for trial in result["trials"]] == [
        {"objective.0.temperature": 1},
        {"objective.0.temperature": 4},
    ]
    assert (project / "own.db").is_file()
    assert (folder / "winner" / "report.html").is_file()
    assert (folder / "sweep.html").is_file()
    assert "2 trials over objective.0.temperature, 1 seed each" in left.err
    assert "validation accuracy" in left.err
    assert "winner: trial" in left.out
    assert "scratch" in left.out
    run = json.loads((folder / "winner" / "result.json").read_text())
    assert run["provenance"]["command"] == "tutelage sweep config.yaml --set 'search.storage=…'"
    again = tutelage("sweep", "config.yaml", "--set", "search.storage=sqlite:///own.db")
    assert again.code == 0
    assert "steps" not in again.err


def test_it_cannot_begin(project: Path, tutelage: Any) -> None:
    """A traceback is no message."""
    left = tutelage("sweep", "config.yaml", "--set", "search.space={objective.0.temperature: [1, 0]}")
    assert left.code == 2
    assert "error: search.space, objective.0.temperature = 0: " in left.err
    (project / "config.yaml").write_text(CONFIG.partition("search:")[0])
    left = tutelage("sweep", "config.yaml")
    assert (left.code, "has no search section" in left.err) == (2, True)
    assert not (project / "runs").exists() or not list((project / "runs").glob("*/trials"))


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the workers by /proc")
def test_a_sweep_that_is_terminated_says_how_it_goes_on(project: Path) -> None:
    """A scheduler ends a job with SIGTERM: unheard, its workers outlive it and the log ends in the middle of a line."""
    environment = {**os.environ, "STEP_SECONDS": "0.3", "OMP_NUM_THREADS": "1"}
    words = [str(COMMAND), "sweep", "config.yaml", "--out", "out", "--workers", "2"]
    with subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as sweep:
        until = time.monotonic() + 200
        while not (project / "out" / "trials").is_dir() and time.monotonic() < until and sweep.poll() is None:
            time.sleep(0.1)
        workers = Path(f"/proc/{sweep.pid}/task/{sweep.pid}/children").read_text().split()
        sweep.send_signal(signal.SIGTERM)
        _, said = sweep.communicate(timeout=60)
    assert sweep.returncode == 130
    assert len(workers) == 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    assert said.rstrip().endswith("stopped; the same command goes on where the sweep is")


def test_the_table_fits_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Beyond 80 columns a table is a heap of broken lines."""
    space = {
        "objective.0.temperature": [1, 2],
        "training.learning_rate": [0.001],
        "objective": [[{"term": "kl", "temperature": 4, "weight": 0.9}]],
    }
    metrics = {"mean": {"accuracy": 0.9, "nll": 0.3}, "ci95": {"accuracy": [0.85, 0.95], "nll": [0.2, 0.4]}}
    trials = [
        {"number": n, "state": "complete", "params": {key: values[0] for key, values in space.items()}, **metrics}
        for n in range(30)
    ]
    command.summarise_sweep(
        {
            "title": "digits",
            "seconds": 12.0,
            "search": {"space": space, "seeds": 3, "direction": "maximize", "metric": "accuracy"},
            "trials": [*trials, {"number": 30, "state": "failed", "params": {}}],
            "scratch": {**metrics, "ci95": {"accuracy": [None, None]}},
            "best": 0,
            "winner": {"accuracy": 0.89, "ci95": [0.8, 0.9], "decision": "ship"},
        }
    )
    out = capsys.readouterr().out
    table = [line for line in out.splitlines() if not line.startswith(("  its", "winner"))]
    assert max(cell_len(line) for line in table) <= 80
    assert "30 trials, 1 failed, 3 seeds each" in out
    assert "the best 10 of 30" in out
    assert "85.0% to 95.0%" in out
