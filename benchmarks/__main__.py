"""Run every benchmark that needs no model of its own, and write its section of ``docs/benchmarks.md``."""

import platform
import statistics
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks import head, labels, startup, student_step, together
from benchmarks.page import PAGE, write_section
from benchmarks.timing import row

SECTION = """## A student's step

{cpu}, {threads} threads, Python {python}, torch {torch}, transformers {transformers}, {date}.

784-128-10 MLP, batch 128, `0.1 * CrossEntropy() + 0.9 * KL(temperature=4)`, fused AdamW, gradient clipping, linear schedule;
steady state. The loops by hand do the same work.

| step | tutelage | peer | ratio | target |
|---|---|---|---|---|
{in_memory}
{loader}

## A live teacher

784-1200-1200-10 teacher. What a live teacher adds to the step with its logits in memory, beside its own forward pass as
timed inside it: {added:.3f} ms against {forward:.3f} ms, {share:.2f}× (median of rounds; {least:.2f} to {most:.2f}).
Target: at most 1.05×. In the loop by hand the same teacher adds {by_hand:.3f} ms: its weights drive the student's out of the
caches, whoever calls it. Beside that the trainer's live teacher adds {more:.2f}× ({shift:.0f} µs more a step).

## Start-up

| process | median | target |
|---|---|---|
| `python -c pass` | {bare:.3f} s | |
| `import tutelage` | {imported:.3f} s | below 0.3 s |
| `tutelage --help` | {helped:.3f} s | below 0.5 s |
"""


def cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def main() -> None:
    step, live = student_step.measure()
    start = startup.measure()
    added = [a - b for a, b in zip(live.rounds["live"], live.rounds["memory"], strict=True)]
    share = [extra / forward for extra, forward in zip(added, live.rounds["forward"], strict=True)]
    plain = [a - b for a, b in zip(live.rounds["live by hand"], live.rounds["memory by hand"], strict=True)]
    shift = [extra - by_hand for extra, by_hand in zip(added, plain, strict=True)]
    text = SECTION.format(
        date=f"{datetime.now(UTC):%Y-%m-%d}",
        cpu=cpu(),
        threads=torch.get_num_threads(),
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=version("transformers"),
        in_memory=row(
            "logits in memory, beside the loop by hand over tensors",
            step,
            "tutelage",
            "by hand, in memory",
            "at most 1.6×",
        ),
        loader=row(
            "the same, beside the loop by hand over a `DataLoader`", step, "tutelage", "by hand, DataLoader", "below 1×"
        ),
        added=statistics.median(added),
        forward=live.median("forward"),
        share=statistics.median(share),
        by_hand=statistics.median(plain),
        more=statistics.median(added) / statistics.median(plain),
        shift=1e3 * statistics.median(shift),
        least=min(share),
        most=max(share),
        bare=start.median("python") / 1e3,
        imported=start.median("import") / 1e3,
        helped=start.median("help") / 1e3,
    )
    write_section("step", text)
    for benchmark in (together, head, labels):
        benchmark.main()
    print(
        f"{PAGE} is written; python -m benchmarks.language MODEL adds a language model's step, for which a model is needed"
    )


if __name__ == "__main__":
    main()
