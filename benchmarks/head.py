"""A head of 262,144 classes: one pass over it, beside TRL's and Liger's, plain PyTorch and the bare matrix products.

    pip install --no-deps trl==1.16.0 liger-kernel==0.8.5
    python -m benchmarks.head [--rounds N]

Forward KL on 512 rows of width 640, forward and backward, in turns; the peak memory of each in a process of its own. Then
hard labels and stored targets through a head of 49,152 classes. Written to ``docs/benchmarks.md``. What is not installed is left out.
"""

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.page import write_section
from benchmarks.timing import Times, in_turns
from tutelage.objectives.head import head_divergence, head_losses
from tutelage.objectives.row_loss import RowLoss
from tutelage.signals import HeadLogits, SparseTargets

ROWS, CLASSES, WIDTH = 512, 262_144, 640
SPARSE_ROWS, SPARSE_CLASSES, SPARSE_WIDTH = 1024, 49_152, 576
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
#: Not more than these times as fast as ours, and above the inputs not more than these bytes.
TARGETS = {"fp32": {"TRL": 2.7, "Liger": 1.8, "memory": 1.2e9}, "bf16": {"TRL": 5.0, "Liger": 1.8, "memory": 1.3e9}}
OURS, BARE = "tutelage", "the four products alone"


class Inputs:
    """Student's and teacher's hidden states and heads."""

    def __init__(self, dtype: torch.dtype, rows: int = ROWS, classes: int = CLASSES, width: int = WIDTH) -> None:
        generator = torch.Generator().manual_seed(0)

        def made(*shape: int, scale: float = 1.0) -> Tensor:
            return (scale * torch.randn(*shape, generator=generator)).to(dtype)

        self.hidden = made(rows, width).requires_grad_()
        self.weight = made(classes, width, scale=0.05).requires_grad_()
        self.their_hidden, self.their_weight = made(rows, width), made(classes, width, scale=0.05)
        self.labels = torch.randint(0, classes, (rows,), generator=generator)

    @property
    def student(self) -> HeadLogits:
        return HeadLogits(self.hidden, self.weight)

    @property
    def teacher(self) -> HeadLogits:
        return HeadLogits(self.their_hidden, self.their_weight)

    def forget(self) -> None:
        self.hidden.grad = self.weight.grad = None


def ours(given: Inputs, divergence: str = "forward_kl") -> Tensor:
    return head_divergence(given.student, given.teacher, divergence)[0]


def trl(given: Inputs) -> Tensor:
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    parts = (given.hidden, given.weight, None, given.their_hidden, given.their_weight, None, 0.0)
    return ChunkedDivergenceFunction.apply(*parts)[0].sum()


def liger(given: Inputs) -> Tensor:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.0)
    return loss(given.hidden, given.weight, given.their_hidden, given.their_weight, given.labels) * len(given.labels)


def plain(given: Inputs) -> Tensor:
    log_p = torch.log_softmax((given.hidden @ given.weight.T).float(), -1)
    log_q = torch.log_softmax((given.their_hidden @ given.their_weight.T).float(), -1)
    return F.kl_div(log_p, log_q, reduction="sum", log_target=True)


def products(given: Inputs) -> None:
    """What no implementation can do without: both heads' logits and two gradients, in the CPU's fastest dtype for these inputs."""
    native = given.hidden.dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    dtype = given.hidden.dtype if native else torch.float32
    hidden, weight, their_hidden, their_weight = (
        t.detach().to(dtype) for t in (given.hidden, given.weight, given.their_hidden, given.their_weight)
    )
    started = time.perf_counter()
    gradient = hidden @ weight.T
    gradient = their_hidden @ their_weight.T
    gradient @ weight
    gradient.T @ hidden
    products.seconds = time.perf_counter() - started  # pyright: ignore[reportFunctionMemberAccess]


def contestants(dtype: str) -> dict[str, Callable[[Inputs], Tensor]]:
    found: dict[str, Callable[[Inputs], Tensor]] = {OURS: ours}
    if dtype == "bf16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return found  # the others multiply bfloat16 as it is, which is emulated here and takes minutes
    if find_spec("trl") is not None:
        found["TRL"] = trl
    if find_spec("liger_kernel") is not None:
        found["Liger"] = liger
    return {**found, "plain PyTorch": plain}


def timed(given: Inputs, loss: Callable[[Inputs], Tensor]) -> float:
    """Milliseconds of forward and backward."""
    given.forget()
    started = time.perf_counter()
    loss(given).backward()
    return 1e3 * (time.perf_counter() - started)


def bare(given: Inputs) -> float:
    products(given)
    return 1e3 * products.seconds  # pyright: ignore[reportFunctionMemberAccess]


def measure(dtype: str, rounds: int) -> tuple[Times, Times]:
    """Forward KL of everybody, and our other divergences beside it."""
    given = Inputs(DTYPES[dtype])
    runs: dict[str, Callable[[], float]] = {
        name: lambda loss=loss: timed(given, loss) for name, loss in contestants(dtype).items()
    }
    everybody = in_turns({**runs, BARE: lambda: bare(given)}, rounds)
    names = ("forward_kl", "reverse_kl", "jensen_shannon")
    return everybody, in_turns({n: lambda n=n: timed(given, lambda i: ours(i, n)) for n in names}, rounds)


def peak_above_inputs(dtype: str, name: str) -> tuple[float, float]:
    """Bytes above the inputs, and the loss, of one forward and backward in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.head", "--peak", dtype, name]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(said[-2]), float(said[-1])


def say_peak(dtype: str, name: str) -> None:
    given = Inputs(DTYPES[dtype])
    loss = contestants(dtype)[name]
    small = Inputs(DTYPES[dtype], 2, 8, 4)
    loss(small).backward()  # libraries and the thread pool are not the loss's
    Path("/proc/self/clear_refs").write_text("5")
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    total = loss(given)
    total.backward()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(int(status["VmHWM"].split()[0]) * 1024 - before, total.item())


def reference(dtype: str) -> float:
    """The loss in float64, a few rows at a time."""
    given, total = Inputs(DTYPES[dtype]), 0.0
    weight, their_weight = given.weight.detach().double(), given.their_weight.double()
    for start in range(0, ROWS, 64):
        of = slice(start, start + 64)
        log_p = torch.log_softmax(given.hidden.detach()[of].double() @ weight.T, -1)
        log_q = torch.log_softmax(given.their_hidden[of].double() @ their_weight.T, -1)
        total += float((log_q.exp() * (log_q - log_p)).sum())
    return total


def table(dtype: str, rounds: int) -> str:
    times, others = measure(dtype, rounds)
    exact, lines = reference(dtype), []
    for name in times.rounds:
        ratio, low, high = times.ratio(name, OURS)
        beside = "" if name == OURS else f"{ratio:.2f}× ({low:.2f} to {high:.2f})"
        if name == BARE:
            share = [a / b for a, b in zip(times.rounds[OURS], times.rounds[BARE], strict=True)]
            beside = f"ours takes {statistics.median(share):.2f}× ({min(share):.2f} to {max(share):.2f}); target at most 1.5×"
            lines.append(f"| {dtype} | {name} | {times.median(name) / 1e3:.2f} s | {beside} | | |")
            continue
        peak, loss = peak_above_inputs(dtype, name)
        goal = TARGETS[dtype].get(name)
        beside += f", target {goal:g}×" if goal else ""
        memory = f"{peak / 1e9:.2f} GB" + (f" (target {TARGETS[dtype]['memory'] / 1e9:g})" if name == OURS else "")
        lines.append(
            f"| {dtype} | {name} | {times.median(name) / 1e3:.2f} s | {beside} | {memory} | {abs(loss / exact - 1):.0e} |"
        )
    for name in ("reverse_kl", "jensen_shannon"):
        ratio, low, high = others.ratio(name, "forward_kl")
        lines.append(
            f"| {dtype} | tutelage, {name} | {others.median(name) / 1e3:.2f} s | {ratio:.2f}× forward KL ({low:.2f} to {high:.2f}); "
            "target at most 1.3× | | |"
        )
    return "\n".join(lines)


def sparse(kept: int, form: str) -> SparseTargets:
    generator = torch.Generator().manual_seed(1)
    shape = (SPARSE_ROWS, kept)
    ids = torch.stack([torch.randperm(SPARSE_CLASSES, generator=generator)[:kept] for _ in range(SPARSE_ROWS)])
    probs = torch.rand(shape, generator=generator)
    share = 1.0 if form == "sampled" else 0.9
    return SparseTargets(ids, share * probs / probs.sum(-1, keepdim=True), SPARSE_CLASSES, 1.0, form)  # pyright: ignore[reportArgumentType]


def sparse_table(rounds: int = 5) -> str:
    given = Inputs(torch.float32, SPARSE_ROWS, SPARSE_CLASSES, SPARSE_WIDTH)
    sampled, top_k = sparse(12, "sampled"), sparse(64, "top_k")
    peer = "`F.cross_entropy(F.linear(…))`"
    runs: dict[str, Callable[[Inputs], Tensor]] = {
        peer: lambda i: F.cross_entropy(F.linear(i.hidden, i.weight), i.labels, reduction="sum"),
        "hard labels": lambda i: head_losses(i.student, None, [RowLoss(None)], [1.0], labels=i.labels)[0],
        "sampled, 12 kept": lambda i: head_divergence(i.student, sampled)[0],
        "top-k, 64 kept": lambda i: head_divergence(i.student, top_k)[0],
    }
    times = in_turns({name: lambda loss=loss: timed(given, loss) for name, loss in runs.items()}, rounds)
    lines: list[str] = []
    for name in runs:
        ratio, low, high = times.ratio(name, peer)
        beside = "" if name == peer else f"{ratio:.2f}× ({low:.2f} to {high:.2f})"
        goal = "at most 1.05×" if name.startswith("sampled") else ""
        lines.append(f"| {name} | {times.median(name) / 1e3:.2f} s | {beside} | {goal} |")
    return "\n".join(lines)


SECTION = """## A head of {classes:,} classes

Forward KL, {rows} rows of width {width}, forward and backward, {threads} threads, {date}. Medians of {rounds_run} rounds in turns; each
ratio is to tutelage's time, with the least and the greatest within one round. Memory is the peak above the inputs in a process
of its own; the error is the loss's, relative to float64 on the same inputs. {native}

| inputs | | time | beside tutelage | peak memory | error of the loss |
|---|---|---|---|---|---|
{table}

Stored targets through a head of {sparse_classes:,} classes, {sparse_rows:,} rows of width {sparse_width}, float32, beside plain
linear cross-entropy:

| | time | ratio | target |
|---|---|---|---|
{sparse}
"""

EMULATED = (
    "This CPU emulates products of bfloat16, so that the others, which use them, were left out there; tutelage upcasts, and the bare "
    "products are those of float32."
)


def section(dtypes: list[str], rounds: int) -> str:
    return SECTION.format(
        classes=CLASSES,
        rows=ROWS,
        rounds_run=rounds,
        width=WIDTH,
        threads=torch.get_num_threads(),
        date=f"{datetime.now(UTC):%Y-%m-%d}",
        native="" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else EMULATED,
        table="\n".join(table(dtype, rounds) for dtype in dtypes),
        sparse_classes=SPARSE_CLASSES,
        sparse_rows=SPARSE_ROWS,
        sparse_width=SPARSE_WIDTH,
        sparse=sparse_table(),
    )


def main() -> None:
    if sys.argv[1:2] == ["--peak"]:
        say_peak(*sys.argv[2:])
        return
    rounds = int(sys.argv[sys.argv.index("--rounds") + 1]) if "--rounds" in sys.argv else 3
    write_section("head", section(list(DTYPES), rounds))


if __name__ == "__main__":
    main()
