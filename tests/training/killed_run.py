"""A training script as a user would write one, that kills itself where it is told to: ``killed_run.py FOLDER [WHERE STEP]``.

WHERE is ``step`` (before the step), ``gradient`` (between backward and the optimiser), ``micro`` (between two micro-batches),
``file`` (half-way through a checkpoint file), ``commit`` (all files are there, the name is not) or ``rotation`` (an old
checkpoint is half removed). The command is the same each time but for that; without it, it runs to the end and leaves
``final.pt``.
"""

import os
import shutil
import signal
import sys
from pathlib import Path

import torch
from training_helpers import CLASSES, network, trainer_of, transfer_set
from transformers import TrainerCallback

from tutelage.data import GaussianNoise
from tutelage.objectives import KL, CrossEntropy, Linear
from tutelage.training import checkpoints

MAX_STEPS, SAVE_STEPS = 36, 3
STEPS_AN_EPOCH = 7  # 100 examples in windows of 2×8: the last window has one micro-batch only
OPTIONS = {
    "max_steps": MAX_STEPS,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 2,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 4,
    "save_strategy": "steps",
    "save_steps": SAVE_STEPS,
    "save_total_limit": 2,
    "eval_strategy": "steps",
    "eval_steps": 5,
    "logging_steps": 4,
}


def die():
    os.kill(os.getpid(), signal.SIGKILL)


class DieAt(TrainerCallback):
    def __init__(self, where, step):
        event = {"step": "on_step_begin", "gradient": "on_pre_optimizer_step", "micro": "on_substep_end"}[where]
        setattr(self, event, lambda args, state, control, **_: die() if state.global_step == step else None)


def die_in_a_file(step):
    """Half of the optimiser's file is on disk, flushed, and then nothing more."""
    save = torch.save

    def half(content, path, *args, **options):
        save(content, path, *args, **options)
        if str(path).endswith(f"checkpoint-{step}/optimizer.pt"):
            with open(path, "rb+") as file:
                file.truncate(os.path.getsize(path) // 2)
                os.fsync(file.fileno())
            die()

    torch.save = half


def die_in_a_commit(step):
    rename = Path.rename
    Path.rename = lambda self, to: die() if Path(to).name == f"checkpoint-{step}" else rename(self, to)


def die_in_a_rotation(step):
    remove = shutil.rmtree

    def half(path, *args, **options):
        if Path(path).name.startswith("checkpoint-") and (Path(path).parent / f"checkpoint-{step}").exists():
            next(Path(path).iterdir()).unlink()
            die()
        return remove(path, *args, **options)

    shutil.rmtree = half


def main(folder, where=None, step="0"):
    torch.set_num_threads(1)
    data = transfer_set(100, augment=GaussianNoise(0.3), unlabelled=range(0, 100, 3))
    extra = {
        "eval_dataset": transfer_set(20, seed=5),
        "compute_metrics": lambda p: {"share": float((p.predictions.argmax(1) < CLASSES / 2).mean())},
    }
    trainer = trainer_of(
        folder,
        student=network(1, dropout=0.3),
        objective=Linear(1, 0.2) * CrossEntropy() + KL(temperature=Linear(4, 1)),
        data=data,
        trainer_options=extra,
        **OPTIONS,
    )
    in_a_save = {"file": die_in_a_file, "commit": die_in_a_commit, "rotation": die_in_a_rotation}
    if where in in_a_save:
        in_a_save[where](int(step))
    elif where is not None:
        trainer.add_callback(DieAt(where, int(step)))
    trainer.train(resume_from_checkpoint=True)
    torch.save(trainer.model.state_dict(), Path(folder) / "final.pt")
    assert checkpoints.latest_checkpoint(Path(folder))[1] == {}


if __name__ == "__main__":
    main(*sys.argv[1:])
