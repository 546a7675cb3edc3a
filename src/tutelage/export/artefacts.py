"""An artefact: one folder with a model, all it needs, and a manifest by whose hashes it is known.

It is built aside and gets its name when everything in it is on the disk. One that fails is set aside under another name, so that
a folder which stands where a good artefact is expected is a good one. A folder that is read is trusted in nothing: what its
manifest names must lie inside it and be what was written.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tutelage.errors import ExportError
from tutelage.export.specs import TensorSpec
from tutelage.files import flush, sha256_of

MANIFEST = "manifest.json"
README = "README.md"
FAILED = ".failed"

#: The version of the manifest's layout, told by its key ``artefact``.
LAYOUT = 1

Format = Literal["onnx", "executorch", "safetensors"]
Precision = Literal["fp32", "int8"]

Json = dict[str, Any]


@dataclass(frozen=True)
class Artefact:
    """An artefact whose files have been found to be what its manifest says.

    Args:
        folder: where it lies.
        manifest: what ``manifest.json`` holds.
    """

    folder: Path
    manifest: Mapping[str, Any]

    @property
    def format(self) -> Format:
        """``onnx``, ``executorch`` or ``safetensors``."""
        return self.manifest["format"]

    @property
    def precision(self) -> Precision:
        """``fp32`` or ``int8``."""
        return self.manifest["precision"]

    @property
    def model(self) -> Path:
        """The file to load."""
        return self.folder / self.manifest["model"]

    @property
    def inputs(self) -> list[TensorSpec]:
        """What it takes."""
        return [TensorSpec.from_json(fields) for fields in self.manifest["inputs"]]

    @property
    def classes(self) -> list[str]:
        """One name a class, in the order of the logits."""
        return list(self.manifest["classes"])

    @property
    def temperature(self) -> float:
        """What the logits are divided by before the softmax."""
        return self.manifest["temperature"]

    @property
    def bytes(self) -> int:
        """Bytes of the model's own files: not of the tokenizer, the README and the like."""
        return sum(self.manifest["files"][name]["bytes"] for name in self.manifest["model_files"])

    @property
    def digest(self) -> str:
        """What tells this artefact from every other."""
        return self.manifest["digest"]


class _Tensor(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)
    name: str
    dtype: str
    shape: list[int | str]


class _File(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class _Manifest(BaseModel):
    """What every reader relies on; more keys inform people."""

    model_config = ConfigDict(extra="allow", strict=True)
    artefact: int
    tutelage: str
    format: Format
    precision: Precision
    model: str
    model_files: list[str]
    files: dict[str, _File]
    inputs: list[_Tensor] = Field(min_length=1)
    outputs: list[_Tensor] = Field(min_length=1)
    classes: list[str] = Field(min_length=1)
    temperature: float = Field(gt=0, allow_inf_nan=False)
    run: dict[str, Any]
    digest: str


def check_destination(out: Path) -> None:
    """Find out, before anything is made, whether an artefact may be written to ``out``.

    Raises:
        ExportError: it is a file, or a folder that holds something else than an artefact.
    """
    if out.is_file():
        raise ExportError(f"--out {out} is a file, expected a folder that is new, empty or an earlier artefact")
    if out.is_dir() and any(out.iterdir()) and not _looks_like_ours(out):
        raise ExportError(
            f"--out {out} holds files that are no artefact of tutelage: they would be deleted; name a folder that is new, or empty it"
        )


@contextmanager
def staging(out: Path) -> Generator[Path]:
    """A fresh folder beside ``out`` to build an artefact in; what is left in it at the end is removed."""
    check_destination(out)
    folder = out.parent / f".{out.name}.{os.getpid()}.part"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def commit(staged: Path, out: Path, facts: Mapping[str, Any]) -> Artefact:
    """Give a built artefact its manifest and its name.

    Args:
        staged: the folder of :func:`staging` with every file but the manifest.
        out: the name; an artefact that stands there gives way.
        facts: the manifest without ``files`` and ``digest``.
    """
    manifest = _seal(staged, facts)
    before = out.with_name(f".{out.name}.{os.getpid()}.before")
    if out.is_dir():
        out.rename(before)
    staged.rename(out)
    flush(out.parent)
    shutil.rmtree(before, ignore_errors=True)
    shutil.rmtree(out.with_name(out.name + FAILED), ignore_errors=True)
    return Artefact(out, manifest)


def set_aside(staged: Path, out: Path, facts: Mapping[str, Any]) -> Path:
    """Keep a built artefact that failed, under a name where nobody expects a good one; returns that folder.

    An older artefact at ``out`` is left as it is: it was good for the run that made it.
    """
    _seal(staged, {**facts, "failed": True})
    aside = out.with_name(out.name + FAILED)
    shutil.rmtree(aside, ignore_errors=True)
    staged.rename(aside)
    return aside


def read_artefact(folder: Path) -> Artefact:
    """Read an artefact, and find out that it is whole and its own.

    Raises:
        ExportError: no artefact, one that failed its parity, a damaged or foreign manifest, a file that is missing, has another
            hash, or lies outside the folder.
    """
    manifest = _read_manifest(folder)
    if manifest.get("failed"):
        raise ExportError(
            f"{folder} holds an artefact that failed when it was exported ({manifest.get('parity', {}).get('why', 'no reason kept')}): "
            "it would not answer as the student does; export it anew"
        )
    named = {*manifest["model_files"], manifest["model"]} - manifest["files"].keys()
    if named:
        raise ExportError(
            f"{folder / MANIFEST} names {', '.join(sorted(named))} and has no hash of it: anything could stand in its place; "
            "export it anew"
        )
    for name, expected in manifest["files"].items():
        path = contained(folder, name)
        if not path.is_file():
            raise ExportError(
                f"{folder} lacks {name}, which its manifest lists: the model would not load, or not as it was judged; copy the "
                "whole folder, or export it anew"
            )
        if path.stat().st_size != expected["bytes"] or sha256_of(path) != expected["sha256"]:
            raise ExportError(
                f"{path} is not what was exported, its hash differs from the manifest's: what was judged would not be what runs; "
                "copy the folder again, or export it anew"
            )
    return Artefact(folder, manifest)


def contained(folder: Path, name: str) -> Path:
    """The path of a file that a manifest or model names, which must lie inside ``folder``.

    Raises:
        ExportError: it is absolute, climbs out with ``..``, or is a link that leads outside.
    """
    parts = {*PurePosixPath(name).parts, *PureWindowsPath(name).parts}
    rooted = PurePosixPath(name).is_absolute() or bool(PureWindowsPath(name).anchor)
    path = folder / name
    if not name or rooted or ".." in parts or not path.resolve().is_relative_to(folder.resolve()):
        raise ExportError(
            f"{folder} names the file {name!r}, which lies outside the folder: a foreign file would be read as a part of the model; "
            "this artefact was not made by tutelage, do not use it"
        )
    return path


def _read_manifest(folder: Path) -> Json:
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        packed = folder.suffix in (".zip", ".tar", ".gz", ".tgz", ".xz", ".zst")
        raise ExportError(
            f"{folder} {what}, expected the folder of an artefact, with its {MANIFEST}"
            + ("; unpack the archive where you trust it, and name the folder" if packed else "")
        )
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ExportError(
            f"{folder} has no {MANIFEST}, so it is no artefact of tutelage: nothing is known of how its model was made or judged; "
            "`tutelage export` writes one"
        ) from None
    except (OSError, ValueError) as error:
        raise ExportError(
            f"{path} cannot be read as JSON ({error}): copy the artefact again, or export it anew"
        ) from error
    layout = manifest.get("artefact") if isinstance(manifest, dict) else None
    if isinstance(layout, int) and layout > LAYOUT:
        raise ExportError(
            f"{path} has layout {layout}, this tutelage reads up to {LAYOUT}: it would be misread; upgrade tutelage"
        )
    try:
        _Manifest.model_validate(manifest)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise ExportError(
            f"{path} is no manifest of an artefact ({place}: {first['msg']}): nothing it says can be relied on; export it anew"
        ) from error
    if _digest(manifest) != manifest["digest"]:
        raise ExportError(
            f"{path} was changed since it was written: its inputs, classes or temperature may not be the model's; export it anew"
        )
    return manifest


def _looks_like_ours(folder: Path) -> bool:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and "artefact" in manifest and "tutelage" in manifest


def _seal(staged: Path, facts: Mapping[str, Any]) -> Json:
    files = sorted(path for path in staged.rglob("*") if path.is_file() and path != staged / MANIFEST)
    contents: Json = {
        **facts,
        "artefact": LAYOUT,
        "files": {
            path.relative_to(staged).as_posix(): {"sha256": sha256_of(path), "bytes": path.stat().st_size}
            for path in files
        },
    }
    # what is written is what JSON gives back: a tuple that becomes a list must not change the digest
    contents = json.loads(json.dumps(contents, allow_nan=False))
    manifest = {**contents, "digest": _digest(contents)}
    (staged / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    for path in (*files, staged / MANIFEST, staged):
        flush(path)
    return manifest


def _digest(manifest: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in manifest.items() if key != "digest"}
    return sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
