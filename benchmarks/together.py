"""Thirty small students together, beside thirty separate runs of the same trainings.

    python -m benchmarks.together

784-128-10 MLPs, batch 128, ``0.1 * CrossEntropy() + 0.9 * KL(temperature=T)`` for six temperatures and five seeds, two epochs
of 20,000 images of Fashion-MNIST (random images of its size where it is not installed), with all that a study does: validation
twenty times a training, checkpoints, the test split, the committed folder. The teacher's answers are computed once beforehand.

Three roads in turns: the stack (``run_all(plans, together=True)``); one by one in this process (``together=False``); and
processes of one training each, of which three a round are run, in the same order for all, and counted ten times. Written to
``docs/benchmarks.md``, between its marks.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.page import write_section
from benchmarks.timing import Times, in_turns
from tutelage import KL, CrossEntropy, TransferSet
from tutelage.data import DataSource, load_source
from tutelage.objectives import as_objective
from tutelage.studies.arm import ArmPlan, ArmRun, Silent, run_arm
from tutelage.studies.together import run_all
from tutelage.teachers import MemoryTeacher, ModuleTeacher

FASHION = Path("/usr/share/datasets/fashion-mnist")
TRAIN, VALIDATION, TEST = 20_000, 1_000, 10_000
TEMPERATURES, SEEDS = (1, 2, 4, 16, 32, 64), 5
SAMPLED = 3
TRAINING = {"num_train_epochs": 2, "per_device_train_batch_size": 128, "learning_rate": 1e-3}

SECTION = """## Thirty students together

Thirty 784-128-10 MLPs (six temperatures × five seeds), batch 128, {steps:,} steps each on {data}, with validation, checkpoints and
the test split, as a study trains them. Medians of {rounds} rounds on {date}, {threads} threads; the ratio beside the stack, with the
least and the greatest ratio within one round.

| road | all thirty | ratio | target |
|---|---|---|---|
| together, one stack | {together:.1f} s | | |
| one by one, in one process | {alone:.1f} s | {alone_ratio} | |
| thirty processes, one after the other ({sampled} run a round, counted {times}×) | {processes:.1f} s | {process_ratio} | at least 4× |

Largest difference between the first two roads: {logits:.1e} in a logit of the test split, {accuracy:.2%} in a test accuracy.
"""


@dataclass(frozen=True)
class Found:
    """What was measured.

    Args:
        times: milliseconds of ``together``, ``one by one`` and ``processes``.
        steps: of each training.
        logits, accuracy: largest differences between the first two roads.
    """

    times: Times
    steps: int
    logits: float
    accuracy: float


def sets() -> tuple[TransferSet, TransferSet, TransferSet]:
    """Train, validation and test."""
    if FASHION.is_dir():
        pool, test = load_source(DataSource("idx", path=str(FASHION)))
        assert test is not None
    else:
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(TRAIN + VALIDATION + TEST, 28, 28, generator=generator)
        whole = TransferSet(images, torch.randint(0, 10, (len(images),), generator=generator))
        rows = torch.arange(len(whole))
        pool, test = whole.select(rows[:-TEST]), whole.select(rows[-TEST:])
    return (
        pool.select(torch.arange(TRAIN)),
        pool.select(torch.arange(TRAIN, TRAIN + VALIDATION)),
        test.select(torch.arange(TEST)),
    )


def student() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))


def teacher() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 10))


def plans(folder: Path, kept: Path) -> list[ArmPlan]:
    """All thirty; ``kept`` has the teacher's answers."""
    train, validation, test = sets()
    answers = load_file(kept)
    memory = MemoryTeacher(answers["ids"], answers["logits"])
    return [
        ArmPlan(
            arm=f"t{temperature}",
            seed=seed,
            folder=folder / f"t{temperature}" / f"seed-{seed}",
            build=student,
            objective=0.1 * CrossEntropy() + 0.9 * KL(temperature=float(temperature)),
            training=TRAINING,
            train=train,
            validation=validation,
            test=test,
            teacher=lambda: memory,
            given_teacher=memory,
        )
        for temperature in TEMPERATURES
        for seed in range(SEEDS)
    ]


def keep_answers(folder: Path) -> Path:
    """Train the teacher and keep what it says of the transfer set."""
    train, validation, test = sets()
    plan = ArmPlan(
        "teacher", 0, folder / "teacher", teacher, as_objective(CrossEntropy()), TRAINING, train, validation, test
    )
    run_arm(plan, Silent())
    model = teacher()
    model.load_state_dict(load_file(plan.folder / "model.safetensors"))
    memory = MemoryTeacher.of(ModuleTeacher(model), train)
    said = memory.signals({"ids": train.ids, "labels": train.known_labels, "student": None}).logits
    assert said is not None
    kept = folder / "answers.safetensors"
    save_file({"ids": train.ids, "logits": said.at(1.0).contiguous()}, str(kept))
    return kept


def timed(folder: Path, work: Callable[[], object]) -> float:
    """Milliseconds of ``work``, into a folder that is not there yet."""
    shutil.rmtree(folder, ignore_errors=True)
    started = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - started)


def process(folder: Path, kept: Path, index: int) -> None:
    command = [sys.executable, "-m", "benchmarks.together", "--one", str(index), str(folder), str(kept)]
    subprocess.run(command, check=True, capture_output=True)


def measure(rounds: int = 3) -> Found:
    with tempfile.TemporaryDirectory() as aside:
        folder = Path(aside)
        kept = keep_answers(folder)
        planned = {road: plans(folder / road, kept) for road in ("together", "one by one")}
        count = len(planned["together"])
        sample = [count * part // SAMPLED for part in range(SAMPLED)]
        runs: dict[str, list[ArmRun]] = {}

        def run(road: str) -> float:
            def work() -> None:
                runs[road] = run_all(planned[road], Silent(), together=road == "together")

            return timed(folder / road, work)

        def processes() -> float:
            own = folder / "processes"
            return count / SAMPLED * timed(own, lambda: [process(own, kept, index) for index in sample])

        times = in_turns(
            {
                "together": lambda: run("together"),
                "one by one": lambda: run("one by one"),
                "processes": processes,
            },
            rounds,
        )
        labels = planned["together"][0].test.known_labels.numpy()
        pairs = list(zip(runs["together"], runs["one by one"], strict=True))
        return Found(
            times,
            pairs[0][0].steps,
            max(float(abs(a.test_logits - b.test_logits).max()) for a, b in pairs),
            max(abs(_accuracy(a, labels) - _accuracy(b, labels)) for a, b in pairs),
        )


def _accuracy(run: ArmRun, labels: object) -> float:
    return float((run.test_logits.argmax(1) == labels).mean())


def section(found: Found, date: str) -> str:
    """The section of the page."""

    def beside(road: str) -> str:
        ratio, low, high = found.times.ratio(road, "together")
        return f"{ratio:.1f}× ({low:.1f} to {high:.1f})"

    return SECTION.format(
        steps=found.steps,
        data=f"{TRAIN:,} images of {'Fashion-MNIST' if FASHION.is_dir() else 'random pixels'}",
        rounds=len(found.times.rounds["together"]),
        date=date,
        threads=torch.get_num_threads(),
        together=found.times.median("together") / 1e3,
        alone=found.times.median("one by one") / 1e3,
        processes=found.times.median("processes") / 1e3,
        alone_ratio=beside("one by one"),
        process_ratio=beside("processes"),
        sampled=SAMPLED,
        times=len(TEMPERATURES) * SEEDS // SAMPLED,
        logits=found.logits,
        accuracy=found.accuracy,
    )


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        index, folder, kept = sys.argv[2:]
        run_arm(plans(Path(folder), Path(kept))[int(index)], Silent())
        return
    write_section("together", section(measure(), f"{datetime.now(UTC):%Y-%m-%d}"))


if __name__ == "__main__":
    main()
