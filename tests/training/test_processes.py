"""Two processes train the student that one process trains."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training_helpers import assert_close

SCRIPT = Path(__file__).with_name("processes_run.py")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not torch.distributed.is_available(), reason="no torch.distributed")]


def launch(folder, processes, *given, script=SCRIPT):
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    return subprocess.run(
        [sys.executable, *launcher, str(script), str(folder), *map(str, given)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        check=False,
        text=True,
        timeout=240,
    )


def results(folder, processes):
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in range(processes)]


@pytest.mark.parametrize("examples", [64, 75])
def test_two_processes_equal_one(tmp_path, examples):
    """Each process dividing by its own counts would weigh the labels of a process with few of them too much; and what is shown
    twice or left out, because two processes share it out wrongly, is seen nowhere."""
    for processes in (1, 2):
        done = launch(tmp_path / str(processes), processes, examples)
        assert done.returncode == 0, done.stderr
    (alone,), together = results(tmp_path / "1", 1), results(tmp_path / "2", 2)
    for rank in together:
        assert_close(rank["weights"], alone["weights"], 1e-10)
        assert rank["best"] == alone["best"].replace("/1/", "/2/"), (
            "every process must load the best from where it stays"
        )
        for key, values in alone["log"].items():
            torch.testing.assert_close(torch.tensor(rank["log"][key]), torch.tensor(values), rtol=1e-5, atol=1e-6)
        assert set(rank["log"]["eval_count"]) == {11.0}
    shown = [
        sorted(map(tuple, torch.cat(of).tolist())) for of in (alone["shown"], [x for r in together for x in r["shown"]])
    ]
    assert shown[0] == shown[1], "each example is shown once an epoch, by one process"


def test_two_processes_that_were_killed_go_on(tmp_path):
    """Each process has its own generators and must find the same checkpoint as the others."""
    assert launch(tmp_path / "whole", 2, 64, "never").returncode == 0
    assert launch(tmp_path / "cut", 2, 64, 3).returncode != 0
    assert (tmp_path / "cut" / "checkpoint-2" / "rng_state_1.pth").is_file()
    done = launch(tmp_path / "cut", 2, 64, "never")
    assert done.returncode == 0, done.stderr
    for whole, cut in zip(results(tmp_path / "whole", 2), results(tmp_path / "cut", 2), strict=True):
        assert_close(cut["weights"], whole["weights"], 0.0)
