"""Trains a tiny Llama in as many processes as it is launched with, by ``torchrun``: ``token_processes_run.py FOLDER HOW``."""

import os
import sys
from pathlib import Path

import torch
from token_helpers import TOKEN_OBJECTIVE, llama, texts, token_trainer

from tutelage.data import rows_of
from tutelage.models import scores_and_features
from tutelage.objectives import CosineHidden
from tutelage.signals import HeadLogits, Signals
from tutelage.teachers import ModuleTeacher

WHOLE_TEXTS = CosineHidden("hidden_states.-1", "hidden_states.-1")


def by_trainer(folder, how, world):
    trainer = token_trainer(
        folder,
        student=llama(tied=how == "tied"),
        data=texts(20, unsupervised=range(4)),
        per_device_train_batch_size=8 // world,
        ddp_backend="gloo" if world > 1 else None,
        ddp_find_unused_parameters="every" not in how,
        objective=TOKEN_OBJECTIVE + 0.5 * WHOLE_TEXTS if "layers" in how else TOKEN_OBJECTIVE,
        options={"eval_dataset": texts(5, seed=9)},
    )
    trainer.train()
    measured = trainer.evaluate()
    return trainer.model.state_dict(), {key: measured[key] for key in ("eval_nll", "eval_tokens")}


def sharded(how, rank, world):
    """A loop by hand with FSDP2: the trainer's own gradients' mean over processes, times their number."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    student, teacher = llama(tied=how == "fsdp tied"), ModuleTeacher(llama(2, width=12))
    if world > 1:
        mesh = init_device_mesh("cpu", (world,))
        for layer in student.model.layers:
            fully_shard(layer, mesh=mesh)
        if how == "fsdp head":
            fully_shard(student.lm_head, mesh=mesh)
        fully_shard(student, mesh=mesh, reshard_after_forward=how != "fsdp whole")
    data = texts(20, unsupervised=range(4))
    optimizer = torch.optim.SGD(student.parameters(), lr=0.5)
    kinds = set()
    for step in range(4):
        rows = torch.arange(step * 8, step * 8 + 8) % len(data)
        counts = TOKEN_OBJECTIVE.counts(rows_of(data.batch(rows)))
        batch = data.batch(rows.chunk(world)[rank])
        scores, _ = scores_and_features(student, batch["student"], batch["labels"])
        kinds.add(type(scores) is HeadLogits)
        value = TOKEN_OBJECTIVE(Signals(scores), teacher.signals(batch), rows_of(batch), counts=counts)
        (value.total * world).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert kinds == {True}
    return {
        name: getattr(values, "full_tensor", lambda v=values: v)() for name, values in student.state_dict().items()
    }, {}


def main(folder, how):
    rank, world = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    Path(folder).mkdir(parents=True, exist_ok=True)
    if how.startswith("fsdp"):
        if world > 1:
            torch.distributed.init_process_group("gloo")
        weights, measured = sharded(how, rank, world)
    else:
        weights, measured = by_trainer(folder, how, world)
    torch.save({"weights": weights, "measured": measured}, Path(folder) / f"rank-{rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
