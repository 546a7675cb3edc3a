"""Completions that the teacher writes: asked for once, filtered, and kept with where they came from."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from tutelage import __version__
from tutelage.data import Ragged
from tutelage.data.language import Row
from tutelage.errors import CheckpointError, ConfigError, DataError
from tutelage.files import digest_of_lines, sha256_of, write_atomically
from tutelage.models.writing import Sampling
from tutelage.studies.arm import Progress, Silent
from tutelage.studies.language.speaking import Writer, texts_of
from tutelage.training.checkpoints import compare_fingerprints

logger = logging.getLogger(__name__)

#: The folder of a run in which they lie, and what lists them there.
GENERATED, MANIFEST = "generated", "manifest.json"
#: Completions in a shard: so many are written anew at most when the writing is cut off.
_SHARD = 256

Json = dict[str, Any]


@dataclass(frozen=True)
class Filters:
    """Which completions are kept.

    Args:
        finished: only those that the writer ended itself.
        min_tokens: at least so many tokens, the one that ends them included.
        max_tokens: at most so many; None for any number.
        python: a function of the text and the example's row that says whether it is kept; None for none.
        python_name: that function in words, for the record.
        python_digest: of the code that it is made of, such as its file; None for its own lines.
    """

    finished: bool = True
    min_tokens: int = 1
    max_tokens: int | None = None
    python: Callable[[str, Row], bool] | None = None
    python_name: str | None = None
    python_digest: str | None = None

    def __post_init__(self) -> None:
        if self.min_tokens < 1 or (self.max_tokens is not None and self.max_tokens < self.min_tokens):
            raise ConfigError(
                f"completions of {self.min_tokens} to {self.max_tokens} tokens are to be kept: none could be; expected at least 1, and no "
                "more than the most"
            )

    def why_dropped(self, line: Mapping[str, Any], row: Row) -> str | None:
        """Why a completion is not kept, in a word; None where it is."""
        tokens = len(line["tokens"])
        if self.finished and not line["finished"]:
            return "unfinished"
        if tokens < self.min_tokens:
            return "too short"
        if self.max_tokens is not None and tokens > self.max_tokens:
            return "too long"
        return "refused" if self.python is not None and not self._keeps(self.python, line, row) else None

    def _keeps(self, function: Callable[[str, Row], bool], line: Mapping[str, Any], row: Row) -> bool:
        name, text = self.python_name or getattr(function, "__qualname__", "of the user's"), line["text"]
        try:
            found: Any = function(text, row)
        except Exception as error:
            raise DataError(
                f"the filter {name} fails for the completion {text!r} of example {line['example']}: {type(error).__name__}: {error}; it is "
                "asked about whatever the teacher writes, also about nothing: mend the function"
            ) from error
        if found is None:
            raise DataError(
                f"the filter {name} gave None for the completion {text!r} of example {line['example']}, expected whether it is kept: all "
                "would be dropped without a word; return True or False"
            )
        return bool(found)

    def describe(self) -> Json:
        """What decides what is kept."""
        name = self.python_name or getattr(self.python, "__qualname__", None)
        said: Json = {
            "finished": self.finished,
            "min_tokens": self.min_tokens,
            "max_tokens": self.max_tokens,
            "python": name,
        }
        if self.python is not None:
            said["python contents"] = self.python_digest or digest_of_lines(self.python)
        return {key: value for key, value in said.items() if value is not None}


@dataclass(frozen=True)
class Generation:
    """How the teacher writes the completions of the train split.

    Args:
        sampling: how each token is drawn.
        n: completions for each prompt.
        filters: which are kept.
        deduplicate: keep one of equal completions of equal prompts.
        batch_size: prompts that are continued at once.
    """

    sampling: Sampling
    n: int = 1
    filters: Filters = field(default_factory=Filters)
    deduplicate: bool = True
    batch_size: int = 16

    def __post_init__(self) -> None:
        if self.n < 1 or self.batch_size < 1:
            raise ConfigError(
                f"generate: n is {self.n} and batch_size {self.batch_size}, expected at least 1 of each: nothing would be written"
            )
        if self.n > 1 and self.sampling.greedy:
            raise ConfigError(
                f"generate: n is {self.n} with greedy writing: all of them would be one and the same; leave n out, or draw (greedy: false)"
            )

    def describe(self) -> Json:
        """What decides what is written and kept."""
        return {
            "sampling": asdict(self.sampling),
            "n": self.n,
            "filters": self.filters.describe(),
            "deduplicate": self.deduplicate,
        }


@dataclass(frozen=True, eq=False)
class Generated:
    """Completions that were kept.

    Args:
        sources: int64 ``[M]``, of each completion the example it belongs to.
        completions: M of them, in the writer's vocabulary.
        finished: bool ``[M]``, whether the writer ended it.
        manifest: what is known of them.
    """

    sources: torch.Tensor
    completions: Ragged
    finished: torch.Tensor
    manifest: Json

    @property
    def summary(self) -> Json:
        """What a run's record says of them."""
        return {name: self.manifest[name] for name in ("facts", "counts", "made")}


def generate(
    writer: Writer,
    tokenizer: Any,
    prompts: Ragged,
    rows: Sequence[Row],
    generation: Generation,
    folder: Path,
    facts: Mapping[str, Any],
    progress: Progress | None = None,
    what: str = "completions",
) -> Generated:
    """Let a model complete prompts, as far as that is not done yet, and keep what passes the filters.

    Everything that was written is kept in shards of JSON lines with why it was dropped, if it was; ``manifest.json`` lists them with
    their hashes. A call that was cut off is gone on with by the same call; a shard that was damaged is written again alone.

    Args:
        writer: the model.
        tokenizer: of its vocabulary.
        prompts: N prompts.
        rows: N rows that they were made of, for the filters.
        generation: how.
        folder: where they are kept.
        facts: more that they depend on, by name; who the writer is among it.
        progress: who watches, told of prompts.
        what: the completions' name there.

    Raises:
        CheckpointError: the folder holds completions of other facts; the message shows the difference.
        DataError: none was kept.
    """
    watch = progress if progress is not None else Silent()
    known: Json = {**facts, **generation.describe(), "prompts": prompts_digest(prompts)}
    manifest = _manifest_of(folder, known)
    shards: dict[str, Json] = {shard["name"]: shard for shard in manifest["shards"]}
    step = max(1, _SHARD // generation.n)
    parts = torch.arange(len(prompts)).split(step)
    named = {f"part-{index:05}.jsonl": part for index, part in enumerate(parts)}
    missing = [name for name in named if name not in shards or not _whole(folder / name, shards[name])]
    if not missing and manifest["complete"]:
        watch.finished(what, "done in an earlier run")
        return _kept(folder, list(named), prompts, manifest)
    done = sum(len(part) for name, part in named.items() if name not in missing)
    watch.started(what, len(prompts), done)
    for name in missing:
        began = time.perf_counter()
        lines = _shard(writer, tokenizer, prompts, rows, generation, named[name])
        write_atomically(folder / name, "".join(json.dumps(line) + "\n" for line in lines))
        shards[name] = {"name": name, "sha256": sha256_of(folder / name), "completions": len(lines)}
        made = manifest["made"]
        made["seconds"] += time.perf_counter() - began
        made["tokens"] += sum(len(line["tokens"]) for line in lines)
        manifest["shards"] = [shards[each] for each in named if each in shards]
        _write_manifest(folder, manifest)
        done += len(named[name])
        watch.advanced(done)
    found = _kept(folder, list(named), prompts, manifest)
    manifest["complete"] = True
    _write_manifest(folder, manifest)
    counts = manifest["counts"]
    watch.finished(what, kept_in_words(counts))
    if 10 * counts["kept"] < counts["written"]:
        logger.warning(
            "%s: %s, less than a tenth: what is left may be a kind of its own; let them be longer (max_new_tokens), or ask less of them "
            "(filters)",
            what,
            kept_in_words(counts),
        )
    return found


def kept_in_words(counts: Mapping[str, Any]) -> str:
    """How many completions were kept, and why others were not."""
    dropped = ", ".join(f"{count:,} {why}" for why, count in counts["dropped"].items())
    return f"{counts['kept']:,} of {counts['written']:,} kept" + (f" ({dropped})" if dropped else "")


def expect_a_batch(written: Generated, batch_size: int) -> None:
    """Find out that the filters left as much as one batch, where as much was written.

    Raises:
        DataError: they did not.
    """
    counts = written.manifest["counts"]
    different = counts["written"] - counts["dropped"].get("there already", 0)
    if counts["kept"] < batch_size <= different:
        raise DataError(
            f"of the teacher's completions {kept_in_words(counts)}, fewer than one batch of {batch_size:,}: a student would repeat them "
            "until it knew them by heart, and nothing would look wrong; let them be longer (max_new_tokens) or ask less of them (filters), "
            "and start in another folder (--out)"
        )


def prompts_digest(prompts: Ragged) -> str:
    """A short hash of prompts, in their order."""
    digest = sha256(prompts.offsets.numpy().tobytes() + prompts.values.numpy().tobytes())
    return f"{len(prompts)}, {digest.hexdigest()[:16]}"


def _shard(
    writer: Writer, tokenizer: Any, prompts: Ragged, rows: Sequence[Row], generation: Generation, part: torch.Tensor
) -> list[Json]:
    sources = part.repeat_interleave(generation.n)
    streams = sources * generation.n + torch.arange(generation.n).repeat(len(part))
    written = writer.write(prompts.take(sources), generation.sampling, streams)
    lines: list[Json] = []
    given = zip(
        sources.tolist(),
        streams.tolist(),
        written.completions.lists(),
        texts_of(tokenizer, written.completions),
        written.finished.tolist(),
        strict=True,
    )
    for source, stream, tokens, text, finished in given:
        line: Json = {"example": source, "draw": stream % generation.n, "tokens": tokens, "text": text}
        line["finished"] = finished
        line["dropped"] = generation.filters.why_dropped(line, rows[source])
        lines.append(line)
    return lines


def _kept(folder: Path, names: Sequence[str], prompts: Ragged, manifest: Json) -> Generated:
    """What is kept of all shards; the manifest's counts are brought up to date."""
    lines: list[Json] = []
    counts: Counter[str] = Counter()
    seen: set[tuple[Any, ...]] = set()
    for name in names:
        for text in (folder / name).read_text(encoding="utf-8").splitlines():
            line = json.loads(text)
            counts["written"] += 1
            if line["dropped"] is None and manifest["facts"]["deduplicate"]:
                key = (tuple(prompts[line["example"]].tolist()), tuple(line["tokens"]))
                if key in seen:
                    line["dropped"] = "there already"
                seen.add(key)
            if line["dropped"] is None:
                lines.append(line)
            else:
                counts[line["dropped"]] += 1
    written = counts.pop("written", 0)
    manifest["counts"] = {"prompts": len(prompts), "written": written, "kept": len(lines), "dropped": dict(counts)}
    if not lines:
        why = ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common())
        raise DataError(
            f"none of the {written:,} completions that were written is kept ({why}): there is nothing to learn; let them be longer "
            "(max_new_tokens), or ask less of them (filters)"
        )
    return Generated(
        torch.tensor([line["example"] for line in lines], dtype=torch.int64),
        Ragged.of([line["tokens"] for line in lines]),
        torch.tensor([line["finished"] for line in lines], dtype=torch.bool),
        manifest,
    )


def _manifest_of(folder: Path, facts: Json) -> Json:
    path = folder / MANIFEST
    facts = json.loads(json.dumps(facts))
    if not path.is_file():
        made = {"tutelage": __version__, "started": datetime.now(UTC).isoformat(timespec="seconds")}
        return {
            "facts": facts,
            "complete": False,
            "shards": [],
            "counts": {},
            "made": {**made, "seconds": 0.0, "tokens": 0},
        }
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        then = found["facts"]
        if not all({"name", "sha256"} <= shard.keys() for shard in found["shards"]):
            raise KeyError("shards without a name or a hash")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}): what is in {folder} could be anybody's; remove {folder} to have them written anew"
        ) from error
    compare_fingerprints(then, facts, folder)
    return found


def _whole(path: Path, shard: Mapping[str, Any]) -> bool:
    if path.is_file() and sha256_of(path) == shard["sha256"]:
        return True
    logger.warning("%s is not what was written; these completions are written again", path)
    return False


def _write_manifest(folder: Path, manifest: Json) -> None:
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=1))
