"""What stored labels cost: bytes a token, the share of writing in labelling, the share of reading in a student's step.

    python -m benchmarks.labels

A Llama of SmolLM2-135M's shape with random weights (hidden 576, 30 layers, a vocabulary of 49,152) answers sequences of 256
tokens; its logits are sharpened until 50 draws meet about as many classes as they do with a trained model. Writing is timed
apart from drawing, both beside the forward pass that it follows; reading beside the forward and backward pass of a student of 6
of the layers, from a larger store, which holds the same answers many times over. Written to ``docs/benchmarks.md``, between its
marks.
"""

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.page import write_section
from benchmarks.timing import Times, in_turns
from tutelage.labels import Form, LabelStore, LabelWriter, row_keys, sample
from tutelage.signals import Logits, SparseTargets
from tutelage.teachers import StoredTeacher

CLASSES, WIDTH, LAYERS, HEADS = 49_152, 576, 30, 9
TOKENS, EXAMPLES, DRAWS = 256, 32, 50
REPEATED = 16
FORM = Form("sampled", CLASSES, temperature=1.0, draws=DRAWS)

SECTION = """## Stored labels

A vocabulary of {classes:,} and {draws} draws a token, {kept:.1f} classes kept in a row on average, {rows:,} tokens; a Llama of
SmolLM2-135M's shape with random weights, sequences of {tokens} tokens. Medians of {rounds} rounds on {date}, {threads} threads, with
the least and the greatest ratio within one round.

| what | measured | target |
|---|---|---|
| bytes a token, all files of the store | {bytes:.1f} | at most 36 |
| the same of DistillKit, k = 50 ("budget") and k = 128 ("recommended") | {budget:.0f}, {recommended:.0f} | |
| encoding and writing, beside the teacher's forward pass ({forward:.0f} ms) | {write:.1f} ms, {write_share} | at most 5% |
| drawing, beside the same | {draw:.1f} ms, {draw_share} | |
| reading {tokens} tokens, everything in memory, beside a student's step ({step:.0f} ms) | {read:.2f} ms, {read_share} | at most 3% |
| reading them from disk, nothing in memory | {cold:.2f} ms, {cold_share} | at most 3% |
| of the store's bytes, read for one example of {examples} ({tokens} tokens each) | {touched:.1%} | not the shard |

DistillKit's bytes follow from the layout in its README: k ids of ⌈log2 C⌉ bits, the logarithms of the most probable `exact_k` in
bfloat16, and the float32 coefficients of a curve for the others; its top-k targets are biased, whatever they take.
"""


@dataclass(frozen=True)
class Found:
    """What was measured.

    Args:
        times: milliseconds of ``forward``, ``draw``, ``write``, ``step``, ``read`` and ``cold``, for one sequence.
        bytes, rows, kept: of a store of different answers: all bytes, tokens, and classes kept in a row on average.
        touched: share of the bytes that is read for one example, in a store of the same answers many times over.
    """

    times: Times
    bytes: int
    rows: int
    kept: float
    touched: float


def llama(layers: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=CLASSES,
        hidden_size=WIDTH,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=3,
        tie_word_embeddings=True,
        use_cache=False,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


def answers(logits_NC: Tensor) -> Tensor:
    """Random logits as a trained model's are: a Zipf prior, and sharpness that differs from token to token."""
    generator = torch.Generator().manual_seed(0)
    prior = -torch.log(torch.arange(CLASSES) + 2.7)
    rows = len(logits_NC)
    gamma = sum(-torch.rand(rows, generator=generator).log() for _ in range(3))
    noise = logits_NC * (2.0 / logits_NC.std())
    return (0.85 + 0.5 * gamma)[:, None] * (prior + noise)


def drawn(logits_NC: Tensor, ids: Tensor) -> SparseTargets:
    rows = torch.full((len(ids),), TOKENS)
    return sample(Logits(logits_NC), row_keys(ids, rows, seed=0), temperature=1.0, draws=DRAWS)


def timed(work: Callable[[], object]) -> float:
    """Milliseconds of ``work``."""
    started = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - started)


def fill(folder: Path, targets: SparseTargets, ids: Tensor) -> LabelStore:
    """A store of every example."""
    with LabelWriter(folder, FORM, {"benchmark": "labels"}) as writer:
        writer.add(ids, None, torch.full((len(ids),), TOKENS), targets)
        return writer.finish()


def share_touched(folder: Path) -> float:
    """The share of the store's bytes that lies in the greatest row group, which is what is read for one example."""
    import pyarrow.parquet as pq

    store = LabelStore.open(folder)
    metadata = pq.read_metadata(folder / store.manifest.shards[0].name)
    groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
    sizes = [sum(group.column(column).total_compressed_size for column in range(group.num_columns)) for group in groups]
    return max(sizes) / store.bytes


def measure(rounds: int = 5) -> Found:
    teacher, student = llama(LAYERS), llama(6)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(CLASSES, (1, TOKENS), generator=generator)
    ids = torch.randint(2**62, (EXAMPLES,), generator=generator)
    with tempfile.TemporaryDirectory() as aside, torch.no_grad():
        folder = Path(aside)
        parts: list[SparseTargets] = []
        for example in range(EXAMPLES):
            inputs = torch.randint(CLASSES, (1, TOKENS), generator=generator)
            hidden = student.model(inputs).last_hidden_state[0]
            parts.append(drawn(answers(student.lm_head(hidden)), ids[example : example + 1]))
        store = fill(folder / "store", together(parts), ids)
        more = torch.randint(2**62, (EXAMPLES * REPEATED,), generator=generator)
        large = fill(folder / "large", together(parts * REPEATED), more)
        whole, cold = StoredTeacher(large), large.within(0)
        logits = answers(teacher(tokens).logits[0])
        targets = drawn(logits, ids[:1])
        writer = LabelWriter(folder / "timed", FORM, {"benchmark": "labels"})
        fresh = iter(range(2**40))
        order = iter(torch.randint(len(more), (1000,), generator=generator).tolist())
        labels = torch.zeros(1, TOKENS, dtype=torch.int64)

        def write() -> None:
            for _ in range(8):
                writer.add(torch.tensor([next(fresh)]), None, torch.tensor([TOKENS]), targets)
            writer.flush()  # its share of a shard, with the hash and the flush to disk, though a shard is larger

        def read() -> None:
            row = next(order)
            whole.signals({"ids": more[row : row + 1], "labels": labels, "student": None})

        def read_cold() -> None:
            row = next(order)
            cold.lookup(more[row : row + 1])

        def step() -> None:
            with torch.enable_grad():
                student(tokens, labels=tokens).loss.backward()
            student.zero_grad()

        times = in_turns(
            {
                "forward": lambda: timed(lambda: teacher(tokens)),
                "draw": lambda: timed(lambda: drawn(logits, ids[:1])),
                "write": lambda: timed(write) / 8,
                "step": lambda: timed(step),
                "read": lambda: timed(read),
                "cold": lambda: timed(read_cold),
            },
            rounds,
        )
        writer.place.unlock()
        kept = sum(float((part.ids >= 0).sum()) for part in parts) / store.manifest.rows
        touched = share_touched(folder / "large")
        return Found(times, store.bytes, store.manifest.rows, kept, touched)


def top_k_bytes(k: int, exact: int, terms: int) -> float:
    """Bytes a token of a top-k layout with bit-packed ids, some exact 16-bit values and float32 coefficients for the rest."""
    return k * math.ceil(math.log2(CLASSES)) / 8 + 2 * exact + 4 * terms


def together(parts: list[SparseTargets]) -> SparseTargets:
    """The rows of several targets."""
    width = max(part.ids.shape[1] for part in parts)
    ids = torch.cat([torch.nn.functional.pad(part.ids, (0, width - part.ids.shape[1]), value=-1) for part in parts])
    probs = torch.cat([torch.nn.functional.pad(part.probs, (0, width - part.probs.shape[1])) for part in parts])
    entropies = [part.entropy for part in parts if part.entropy is not None]
    return SparseTargets(ids, probs, CLASSES, 1.0, "sampled", torch.cat(entropies) if entropies else None)


def section(found: Found, date: str) -> str:
    """The section of the page."""

    def share(name: str, peer: str) -> str:
        ratio, low, high = found.times.ratio(name, peer)
        return f"{ratio:.2%} ({low:.2%} to {high:.2%})"

    return SECTION.format(
        classes=CLASSES,
        draws=DRAWS,
        kept=found.kept,
        rows=found.rows,
        tokens=TOKENS,
        examples=EXAMPLES * REPEATED,
        rounds=len(found.times.rounds["forward"]),
        date=date,
        threads=torch.get_num_threads(),
        bytes=found.bytes / found.rows,
        budget=top_k_bytes(k=50, exact=1, terms=3),
        recommended=top_k_bytes(k=128, exact=16, terms=6),
        touched=found.touched,
        write_share=share("write", "forward"),
        draw_share=share("draw", "forward"),
        read_share=share("read", "step"),
        cold_share=share("cold", "step"),
        **{name: found.times.median(name) for name in ("forward", "draw", "write", "step", "read", "cold")},
    )


def main() -> None:
    write_section("labels", section(measure(), f"{datetime.now(UTC):%Y-%m-%d}"))


if __name__ == "__main__":
    main()
