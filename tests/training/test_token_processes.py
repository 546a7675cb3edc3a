"""Two processes train the language model that one process trains, with DDP and with FSDP2's shards."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training_helpers import assert_close

SCRIPT = Path(__file__).with_name("token_processes_run.py")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not torch.distributed.is_available(), reason="no torch.distributed")]


def results(folder, how, processes):
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    done = subprocess.run(
        [sys.executable, *launcher, str(SCRIPT), str(folder), how],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        check=False,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in range(processes)]


@pytest.mark.parametrize(
    "how", ["ddp, every parameter used", "ddp, unused ones looked for", "tied", "layers, every parameter used"]
)
def test_two_processes_equal_one(tmp_path, how):
    """DDP looks for the head in what the model returns: taken for unused, it is marked twice, or its gradient is not shared.
    And processes have other numbers of tokens, but as many texts, which terms on layers count: a mean in each, or one number for
    both, would weigh the tokens of short texts too much."""
    (alone,), together = results(tmp_path / "1", how, 1), results(tmp_path / "2", how, 2)
    for rank in together:
        assert_close(rank["weights"], alone["weights"], 1e-10)
        assert rank["measured"] == pytest.approx(alone["measured"], rel=1e-6)


@pytest.mark.parametrize("how", ["fsdp", "fsdp head", "fsdp whole", "fsdp tied"])
def test_two_processes_with_shards_equal_one(tmp_path, how):
    """Only a part of the head's weight lies in a process, and its gradient must reach the others' parts: alone, resharded after
    the forward pass or not, or as the embeddings that it is tied to."""
    (alone,), together = results(tmp_path / "1", how, 1), results(tmp_path / "2", how, 2)
    for rank in together:
        assert_close(rank["weights"], alone["weights"], 1e-10)
