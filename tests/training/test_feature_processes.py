"""Two processes train the student and the projector that one process trains."""

import pytest
import torch
from test_processes import SCRIPT, launch, results
from training_helpers import assert_close

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not torch.distributed.is_available(), reason="no torch.distributed")]


def test_two_processes_train_one_projector(tmp_path):
    """A projector is outside DDP: unaveraged, each process would have its own, and the student be led two ways."""
    for processes in (1, 2):
        done = launch(tmp_path / str(processes), processes, 64, "never", "hint")
        assert done.returncode == 0, done.stderr
    (alone,), together = results(tmp_path / "1", 1), results(tmp_path / "2", 2)
    assert set(alone["terms"]) == {"hint.weight", "hint.bias"}
    for rank in together:
        assert_close(rank["weights"], alone["weights"], 1e-10)
        assert_close(rank["terms"], alone["terms"], 1e-10)
        torch.testing.assert_close(
            torch.tensor(rank["log"]["loss/hint"]), torch.tensor(alone["log"]["loss/hint"]), rtol=1e-5, atol=1e-6
        )


def test_two_processes_leave_out_the_same_padding(tmp_path):
    """Each process has its own share of the texts and its own mask: another one's would cut out words."""
    for processes in (1, 2):
        done = launch(tmp_path / str(processes), processes, script=SCRIPT.with_name("padded_processes_run.py"))
        assert done.returncode == 0, done.stderr
    (alone,), together = results(tmp_path / "1", 1), results(tmp_path / "2", 2)
    for rank in together:
        assert_close(rank["weights"], alone["weights"], 1e-10)
        assert_close(rank["terms"], alone["terms"], 1e-10)


def test_two_processes_that_were_killed_go_on_with_it(tmp_path):
    """Only one process writes the projector, and both must read it."""
    assert launch(tmp_path / "whole", 2, 64, "never", "hint").returncode == 0
    assert launch(tmp_path / "cut", 2, 64, 3, "hint").returncode != 0
    assert (tmp_path / "cut" / "checkpoint-2" / "term_weights.safetensors").is_file()
    done = launch(tmp_path / "cut", 2, 64, "never", "hint")
    assert done.returncode == 0, done.stderr
    for whole, cut in zip(results(tmp_path / "whole", 2), results(tmp_path / "cut", 2), strict=True):
        assert_close(cut["weights"], whole["weights"], 0.0)
        assert_close(cut["terms"], whole["terms"], 0.0)


def test_features_alone_are_refused_in_several_processes(tmp_path):
    """DDP would wait for the head's gradient, which never comes, and fail at the second step with a page of advice."""
    done = launch(tmp_path, 2, 64, "never", "alone")
    assert done.returncode != 0
    assert "DDP waits for the gradient of every weight" in done.stderr
