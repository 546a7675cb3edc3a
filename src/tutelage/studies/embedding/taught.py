"""The teacher's embeddings of all texts: computed once, kept in the run's folder, and heard from there by every arm."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tutelage.data import Batch, Tokenise, content_ids, hex_id
from tutelage.errors import TeacherError
from tutelage.files import flush, sha256_of, write_atomically
from tutelage.signals import Signals
from tutelage.studies.arm import Progress
from tutelage.studies.embedding.encoding import EMBEDDING, EmbeddingModel, encode
from tutelage.training.checkpoints import compare_fingerprints

#: Of the embeddings, in the teacher's folder.
MANIFEST = "embeddings.json"
#: Texts in a file: what a kill may lose.
_TEXTS_A_PART = 2048

Json = dict[str, Any]


@dataclass(frozen=True, eq=False)
class KeptEmbeddings:
    """A teacher's embeddings by content id, as a teacher that training can hear.

    Args:
        ids: int64 ``[U]``, rising.
        values: float32 ``[U, D]``.
        digest: a short hash of both.
        seconds: that the teacher took for them, in all sessions.
    """

    ids: Tensor
    values: Tensor
    digest: str
    seconds: float

    @property
    def width(self) -> int:
        """Width D."""
        return self.values.shape[1]

    def of(self, ids: Tensor) -> Tensor:
        """The embeddings ``[B, D]`` of these ids, on their device.

        Raises:
            TeacherError: an id that the teacher was not asked about.
        """
        places = torch.searchsorted(self.ids, ids.cpu()).clamp_(max=len(self.ids) - 1)
        unknown = self.ids[places] != ids.cpu()
        if bool(unknown.any()):
            raise TeacherError(
                f"{int(unknown.sum())} texts were never shown to the teacher, the first with id {hex_id(int(ids.cpu()[unknown][0]))}: the "
                "student would learn another text's embedding; the teacher is asked about all texts of the study before it begins"
            )
        return self.values.index_select(0, places).to(ids.device)

    def signals(self, batch: Batch) -> Signals:
        """The kept embeddings of the batch's texts, and nothing else."""
        return Signals(None, {EMBEDDING: self.of(batch["ids"])})


@dataclass(frozen=True, eq=False)
class Asked:
    """A teacher, and the texts that it is asked about.

    Args:
        model: the teacher.
        view: makes its inputs of texts.
        texts: U different ones.
        facts: what decides the answers: the teacher's weights and what it reads.
        batch_size: texts in a call.
    """

    model: EmbeddingModel
    view: Tokenise
    texts: Sequence[str]
    facts: Mapping[str, Any]
    batch_size: int = 64


def expect_same_teacher(asked: Asked, folder: Path) -> None:
    """Find out that the embeddings in a folder, if there are some, are this teacher's of these texts.

    Raises:
        CheckpointError: they are another one's; the message shows the difference. Nothing was written.
    """
    manifest = _read_manifest(folder)
    if manifest is not None:
        compare_fingerprints(manifest["fingerprint"], _fingerprint(asked), folder)


def kept_embeddings(asked: Asked, folder: Path, progress: Progress) -> KeptEmbeddings:
    """The teacher's embeddings of all texts; what a folder holds of them already is read, the rest computed and added.

    Args:
        asked: whom, and about what.
        folder: where they are kept, a few thousand texts a file; a file that is not what was written is made anew.
        progress: who watches.

    Raises:
        CheckpointError: the folder holds another teacher's, or of other texts.
        TeacherError: an embedding that is not finite.
    """
    expect_same_teacher(asked, folder)
    manifest = _read_manifest(folder) or {"fingerprint": _fingerprint(asked), "parts": {}, "seconds": 0.0}
    folder.mkdir(parents=True, exist_ok=True)
    texts = sorted(asked.texts, key=lambda text: (len(text), text))
    parts = [texts[start : start + _TEXTS_A_PART] for start in range(0, len(texts), _TEXTS_A_PART)]
    values: list[Tensor] = []
    sure = [_read_part(folder, manifest, number, part) for number, part in enumerate(parts)]
    before = sum(len(part) for part, known in zip(parts, sure, strict=True) if known is not None)
    if before < len(texts):
        progress.started("the teacher's embeddings", len(texts), before)
    for number, part in enumerate(parts):
        known = sure[number]
        if known is None:
            known = _asked(
                asked, part, lambda count, at=before: progress.advanced(at + count), folder, number, manifest
            )
            before += len(part)
        values.append(known)
    table, ids = torch.cat(values), content_ids(texts)
    order = torch.argsort(ids)
    ids, table = ids[order], table[order]
    digest = sha256(ids.numpy().tobytes() + table.numpy().tobytes()).hexdigest()[:16]
    progress.finished(
        "the teacher's embeddings", f"{len(texts):,} texts, width {table.shape[1]:,}, {manifest['seconds']:.0f} s"
    )
    return KeptEmbeddings(ids, table, digest, float(manifest["seconds"]))


def _asked(
    asked: Asked, part: Sequence[str], done: Callable[[int], None], folder: Path, number: int, manifest: Json
) -> Tensor:
    """A part's embeddings, computed, written and entered into the manifest."""
    clock = time.perf_counter()
    values = encode(asked.model, asked.view, part, asked.batch_size, done)
    path = folder / _name(number)
    save_file({"ids": content_ids(part), EMBEDDING: values}, str(path))
    flush(path)
    manifest["parts"][_name(number)] = sha256_of(path)
    manifest["seconds"] += time.perf_counter() - clock
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True))
    return values


def _read_part(folder: Path, manifest: Json, number: int, part: Sequence[str]) -> Tensor | None:
    """What is kept of a part; None where it is not there or not what was written."""
    path, digest = folder / _name(number), manifest["parts"].get(_name(number))
    if digest is None or not path.is_file() or sha256_of(path) != digest:
        return None
    try:
        found = load_file(str(path))
    except SafetensorError:
        return None
    return found[EMBEDDING] if torch.equal(found["ids"], content_ids(part)) else None


def _read_manifest(folder: Path) -> Json | None:
    """The manifest; None where there is none, or nothing can be read from it, so that all is made anew."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return {name: manifest[name] for name in ("fingerprint", "parts", "seconds")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _fingerprint(asked: Asked) -> Json:
    ids = torch.sort(content_ids(list(asked.texts))).values
    texts = f"{len(ids):,} texts, {sha256(ids.numpy().tobytes()).hexdigest()[:16]}"
    return json.loads(json.dumps({**asked.facts, "texts": texts}))


def _name(number: int) -> str:
    return f"embeddings-{number:05}.safetensors"
