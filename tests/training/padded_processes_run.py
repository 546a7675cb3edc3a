"""Trains on layers of padded texts in as many processes as it is launched with, by ``torchrun``: ``padded_processes_run.py FOLDER``."""

import os
import sys
from pathlib import Path

import torch
from test_padded_layers import learnt


def main(folder):
    world = int(os.environ.get("WORLD_SIZE", "1"))
    backend = {"ddp_backend": "gloo"} if world > 1 else {}
    options = {"per_device_train_batch_size": 4 // world, "gradient_accumulation_steps": 2, **backend}
    weights, trainer = learnt(folder, **options)
    found = {"weights": weights, "terms": trainer.objective.weights.state_dict()}
    torch.save(found, Path(folder) / f"rank-{os.environ.get('RANK', '0')}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # its threads would otherwise outlive the interpreter, now and then
