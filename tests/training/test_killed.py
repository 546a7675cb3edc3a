"""The same command continues a run that was killed, and ends with the weights of an undisturbed one, bit for bit."""

import random
import signal
from pathlib import Path

import pytest
import torch
from killed_run import MAX_STEPS, SAVE_STEPS, STEPS_AN_EPOCH
from training_helpers import assert_same_bits

from forked import forked
from tutelage.training import latest_checkpoint
from tutelage.training.checkpoints import STAGING

SCRIPT = Path(__file__).with_name("killed_run.py")


def sitting(folder, *death):
    """Run the command once; whether it was killed."""
    done = forked(SCRIPT, folder, *death)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode != 0


def final(folder):
    return torch.load(folder / "final.pt", weights_only=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    assert not sitting(folder)
    return final(folder)


def test_killed_twice_once_within_a_file(tmp_path, undisturbed):
    """In-process tests share generators, modules and open files with the run that was cut off; a killed process leaves only what
    was on disk, the half-written file included."""
    assert sitting(tmp_path, "gradient", 10)
    assert latest_checkpoint(tmp_path)[0] == tmp_path / "checkpoint-9"
    assert sitting(tmp_path, "file", 15)
    assert (tmp_path / STAGING / "checkpoint-15" / "optimizer.pt").exists()
    assert latest_checkpoint(tmp_path) == (tmp_path / "checkpoint-12", {})
    assert not sitting(tmp_path)
    assert_same_bits(final(tmp_path), undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0])
def test_killed_at_ten_random_steps(tmp_path, undisturbed, seed):
    """Each place in a step and in a save, at seeded steps; the run moves on between most of them."""
    draw = random.Random(seed)
    steps = sorted(draw.sample(range(1, MAX_STEPS), 7))
    deaths = [
        (step, draw.choice(("step", "gradient", "micro") if (step + 1) % STEPS_AN_EPOCH else ("step", "gradient")))
        for step in steps
    ]
    saves = draw.sample(range(3 * SAVE_STEPS, MAX_STEPS, SAVE_STEPS), 3)
    deaths += list(zip(saves, ("file", "commit", "rotation"), strict=True))
    killed = sum(sitting(tmp_path, where, step) for step, where in sorted(deaths))
    assert killed == 10
    assert not sitting(tmp_path)
    assert_same_bits(final(tmp_path), undisturbed)
