"""One road of the language benchmark: a few steps in this process, each measured."""

import ctypes
import gc
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PrinterCallback, TrainerCallback

from benchmarks.language_data import BATCH, STEPS, WRITTEN, Material, load_student, load_teacher
from benchmarks.language_products import seconds_of_products
from tutelage import KL
from tutelage.data import Layout
from tutelage.models.writing import Sampling
from tutelage.teachers import ModuleTeacher, StoredTeacher
from tutelage.training import DistillationArguments, DistillationTrainer, OnPolicy

TRL = "TRL's GKD trainer"
LIVE, STORED = "tutelage, live teacher", "tutelage, stored teacher"
PACKED, PACKED_STORED = f"{LIVE}, packed", f"{STORED}, packed"
LIVE_PRODUCTS, STORED_PRODUCTS = "the products alone, live teacher", "the products alone, stored teacher"
#: So near to 0 that every road writes the likeliest token, though each draws.
TEMPERATURE = 1e-4
SETTINGS: dict[str, Any] = {
    "per_device_train_batch_size": BATCH,
    "max_steps": STEPS + 1,
    "learning_rate": 1e-4,
    "lr_scheduler_type": "constant",
    "optim": "adamw_torch_fused",
    "train_sampling_strategy": "sequential",
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "dataloader_pin_memory": False,
}


class Meter(TrainerCallback):
    """Milliseconds of each step with the fetching of its batch, and how many bytes more than before it the process held at most."""

    def __init__(self) -> None:
        self.milliseconds: list[float] = []
        self.bytes: list[int] = []
        self._libc = ctypes.CDLL("libc.so.6")

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Nothing ends a text: transformers has just set the tokenizer's token again, which TRL's road would stop at."""
        model.generation_config.eos_token_id = None

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A step begins where the last one's line was written: before on_step_begin batches are fetched, or written."""
        gc.collect()
        self._libc.malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        self._before = _status("VmRSS")
        self._started = time.perf_counter()

    on_epoch_begin = on_log

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.milliseconds.append(1e3 * (time.perf_counter() - self._started))
        self.bytes.append(_status("VmHWM") - self._before)


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{key}:")).split()[1])


def with_tutelage(
    model: Path, material: Material, dtype: str, store: Path | None, layout: Layout | None, writes: bool, **own: Any
) -> Any:
    teacher = StoredTeacher(store) if store is not None else ModuleTeacher(load_teacher(model, dtype))
    plan = OnPolicy(1.0, Sampling(max_new_tokens=WRITTEN, temperature=TEMPERATURE), []) if writes else None
    arguments = DistillationArguments(bf16=dtype == "bf16", output_dir=own["output_dir"], **SETTINGS)
    data = material.transfer_set(layout)
    trainer = DistillationTrainer(load_student(model), arguments, KL(), data, teacher=teacher, on_policy=plan)
    trainer.add_callback(own["meter"])
    return trainer


def with_trl(model: Path, material: Material, dtype: str, writes: bool, **own: Any) -> Any:
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    random.seed(0)
    arguments = GKDConfig(
        output_dir=own["output_dir"],
        lmbda=1.0 if writes else 0.0,
        beta=0.0,
        bf16=dtype == "bf16",
        gradient_checkpointing=False,
        max_new_tokens=WRITTEN,
        temperature=TEMPERATURE if writes else 0.9,
        **SETTINGS,
    )
    rows = [{"row": row} for row in range(len(material.prompts))]
    return GKDTrainer(
        model=load_student(model),
        teacher_model=load_teacher(model, dtype),
        args=arguments,
        data_collator=lambda given: _for_trl(material, torch.tensor([one["row"] for one in given])),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(str(model)),
        callbacks=[own["meter"]],
    )


def _for_trl(material: Material, rows: Tensor) -> dict[str, Tensor]:
    """What its own collator gives: everything padded in front, prompts not learnt."""
    some = Material(material.prompts.take(rows), material.completions.take(rows))
    ids, mask = some.whole().padded(0, left=True)
    learnt = torch.arange(ids.shape[1]) >= ids.shape[1] - some.completions.lengths[:, None]
    prompts, prompt_mask = some.prompts.padded(0, left=True)
    return {
        "input_ids": ids,
        "attention_mask": mask.long(),
        "labels": ids.masked_fill(~learnt, -100),
        "prompts": prompts,
        "prompt_attention_mask": prompt_mask.long(),
    }


def trained(road: str, setting: str, model: Path, aside: Path, dtype: str) -> dict[str, list[float]]:
    """Milliseconds, bytes and losses of a road's steps; the first step is not among the first two."""
    material, meter = Material.load(aside / "material.safetensors"), Meter()
    writes = setting == "on-policy"
    with tempfile.TemporaryDirectory() as folder:
        own: dict[str, Any] = {"output_dir": folder, "meter": meter}
        if road == TRL:
            trainer = with_trl(model, material, dtype, writes, **own)
        else:
            store = aside / "labels" if road in (STORED, PACKED_STORED) else None
            layout: Layout | None = "packed" if road in (PACKED, PACKED_STORED) else "padded"
            layout = None if setting == "running texts" else layout
            trainer = with_tutelage(model, material, dtype, store, layout, writes, **own)
        trainer.remove_callback(PrinterCallback)
        gc.collect()
        trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return {"ms": meter.milliseconds[1:], "bytes": meter.bytes[1:], "losses": losses}


def multiplied(road: str, model: Path, aside: Path, dtype: str) -> dict[str, list[float]]:
    """As :func:`trained`, of the products alone."""
    student = load_student(model)
    teacher = load_teacher(model, dtype) if road == LIVE_PRODUCTS else None
    products = torch.bfloat16 if dtype == "bf16" else torch.float32
    batches = Material.load(aside / "material.safetensors").batches()
    seconds = [seconds_of_products(step, student, teacher, products) for step in batches]
    return {"ms": [1e3 * each for each in seconds[1:]], "bytes": [], "losses": []}


def one(road: str, setting: str, model: Path, aside: Path, dtype: str) -> None:
    """Go a road in this process, and leave what was measured."""
    if road in (LIVE_PRODUCTS, STORED_PRODUCTS):
        found = multiplied(road, model, aside, dtype)
    else:
        found = trained(road, setting, model, aside, dtype)
    (aside / "found.json").write_text(json.dumps(found))
