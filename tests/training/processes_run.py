"""Trains in as many processes as it is launched with, by ``torchrun``: ``processes_run.py FOLDER EXAMPLES [DIE_AT [HINT]]``."""

import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn
from training_helpers import OBJECTIVE, network, trainer_of, training_log, transfer_set
from transformers import TrainerCallback

from tutelage.data import GaussianNoise
from tutelage.objectives import Hint

HINT = 0.5 * Hint("inner.1", "1")  # 8 wide and 12


class Seen(nn.Module):
    """Notes what it is shown in training."""

    def __init__(self):
        super().__init__()
        self.inner = network(1, dtype=torch.float64)
        self.shown = []

    def forward(self, inputs):
        if self.training:
            self.shown.append(inputs.detach().clone())
        return self.inner(inputs)


class DieAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def main(folder, examples, die_at=None, hint=""):
    examples, world = int(examples), int(os.environ.get("WORLD_SIZE", "1"))
    student = Seen()
    unlabelled = [*range(16), *range(16, examples, 5)]
    held_out = transfer_set(11, seed=5, dtype=torch.float64)
    best = {"compute_metrics": lambda p: {"count": len(p.predictions), "score": float(p.predictions.sum())}}
    trainer = trainer_of(
        folder,
        student=student,
        teacher=network(2, width=12, dtype=torch.float64),
        objective={"": OBJECTIVE, "hint": OBJECTIVE + HINT, "alone": 1.0 * HINT}[hint],
        data=transfer_set(examples, unlabelled=unlabelled, dtype=torch.float64, augment=GaussianNoise(0.1)),
        trainer_options={"eval_dataset": held_out, **best},
        per_device_train_batch_size=16 // world,
        gradient_accumulation_steps=2,
        num_train_epochs=3,
        ddp_backend="gloo" if world > 1 else None,
        per_device_eval_batch_size=3,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=die_at != "never",
        metric_for_best_model="score",
        greater_is_better=True,
    )
    if die_at is not None and die_at.isdigit():
        trainer.add_callback(DieAt(int(die_at)))
    trainer.train(resume_from_checkpoint=True)
    torch.save(
        {
            "weights": student.inner.state_dict(),
            "shown": student.shown,
            "terms": trainer.objective.weights.state_dict(),
            "log": {
                key: training_log(trainer, key)
                for key in ("loss", "loss/kl", "loss/cross_entropy", "loss/hint", "eval_count")
            },
            "best": trainer.state.best_model_checkpoint,
        },
        Path(folder) / f"rank-{os.environ.get('RANK', '0')}.pt",
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # its threads would otherwise outlive the interpreter, now and then
