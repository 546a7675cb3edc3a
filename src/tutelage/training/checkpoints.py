"""Checkpoints that commit: written aside, flushed, listed with hashes, and only then given their name.

A checkpoint folder exists under its final name only when every byte of it is on disk. One that was damaged later is
found by its manifest and never resumed from; the one before it is.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from tutelage.errors import CheckpointError
from tutelage.files import flush, sha256_of

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
STAGING = ".checkpoint-being-written"
PREFIX = "checkpoint-"
SET_ASIDE = "set-aside-"

#: What a run is, as far as its weights are concerned: resuming under another fingerprint is refused.
Fingerprint = Mapping[str, Any]


def commit_checkpoint(staged: Path, final: Path, fingerprint: Fingerprint) -> None:
    """Flush every file of ``staged``, add the manifest, and rename it to ``final`` in one step.

    A folder that already stands at ``final`` gives way: it is the same step of the same run, written before a crash.
    """
    files = sorted(path for path in staged.rglob("*") if path.is_file())
    contents: dict[str, Any] = {
        "fingerprint": dict(fingerprint),
        "files": {
            str(path.relative_to(staged)): {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in files
        },
    }
    manifest = {**contents, "sha256": _digest(contents)}
    (staged / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True))
    for path in [*files, staged / MANIFEST]:
        flush(path)
    for folder in [*(path for path in staged.rglob("*") if path.is_dir()), staged]:
        flush(folder)
    if final.exists():
        final.rename(staged.with_name("replaced"))  # removed with the staging folder
    staged.rename(final)
    flush(final.parent)


def verify_checkpoint(folder: Path) -> Fingerprint:
    """Check every file of a checkpoint against its manifest, and return the fingerprint of the run that wrote it.

    Files that are not listed, which a callback may have added later, are nobody's business.

    Raises:
        CheckpointError: there is no manifest, or it or a file is missing, cut short or altered.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        files: dict[str, dict[str, Any]] = manifest["files"]
        fingerprint: Fingerprint = manifest["fingerprint"]
        expected_digest = manifest.pop("sha256")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{folder} has no readable {MANIFEST} ({type(error).__name__}: {error}): it was not written to its end by tutelage, and "
            "resuming from a part of it would train another model; resume from an earlier checkpoint"
        ) from error
    if _digest(manifest) != expected_digest:
        raise CheckpointError(
            f"{folder / MANIFEST} is not what was written (its hash differs), so nothing in the folder can be trusted; "
            "resume from an earlier checkpoint"
        )
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing, though the manifest lists it; resume from an earlier checkpoint")
        size = path.stat().st_size
        if size != expected["bytes"]:
            raise CheckpointError(
                f"{path} has {size:,} bytes, {expected['bytes']:,} were written; resume from an earlier checkpoint"
            )
        if sha256_of(path) != expected["sha256"]:
            raise CheckpointError(
                f"{path} is not what was written (its hash differs); resume from an earlier checkpoint"
            )
    return fingerprint


def verify_resumable(folder: Path) -> Fingerprint:
    """As :func:`verify_checkpoint`, for a checkpoint that training can go on from.

    Raises:
        CheckpointError: also where it holds the weights alone.
    """
    fingerprint = verify_checkpoint(folder)
    if not any(folder.glob("rng_state*.pth")):
        raise CheckpointError(
            f"{folder} holds weights alone (save_only_model=True): without the optimiser's and the generators' state the run would "
            "become another one; start anew, or save whole checkpoints"
        )
    return fingerprint


def latest_checkpoint(output_dir: Path) -> tuple[Path | None, dict[Path, CheckpointError]]:
    """The newest checkpoint that training can go on from, or None, and why each newer one is not it."""
    damaged: dict[Path, CheckpointError] = {}
    for _, path in reversed(_numbered(output_dir)):
        try:
            verify_resumable(path)
        except CheckpointError as error:
            damaged[path] = error
        else:
            return path, damaged
    return None, damaged


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint was written at, whatever its folder is called now."""
    return int(json.loads((checkpoint / "trainer_state.json").read_text())["global_step"])


def set_aside_later(output_dir: Path, step: int) -> None:
    """Rename the checkpoints of later steps than ``step``, where this run begins: they are not on its way.

    Left in place, a damaged or foreign one would count as the newest: rotation would keep it and remove this run's.
    """
    for number, path in _numbered(output_dir):
        if number > step:
            aside = path.with_name(SET_ASIDE + path.name)
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            logger.warning("this run begins at step %d: %s is set aside as %s", step, path, aside.name)


def compare_fingerprints(then: Fingerprint, now: Fingerprint, where: Path) -> None:
    """Refuse to go on with a run that has become another one.

    Raises:
        CheckpointError: lists what the checkpoint says and what is asked for now.
    """
    now = json.loads(json.dumps(now))
    changed = sorted(key for key in {*then, *now} if then.get(key) != now.get(key))
    if changed:
        lines = "\n".join(f"  {key}: {then.get(key)!r} in the checkpoint, {now.get(key)!r} now" for key in changed)
        raise CheckpointError(
            f"{where} was written by a run that differs from this one:\n{lines}\nGoing on would mix the two into a model that neither "
            "describes. Restore the settings, or start anew in another folder"
        )


def clear_staging(output_dir: Path) -> None:
    """Remove what a crash left half written."""
    shutil.rmtree(output_dir / STAGING, ignore_errors=True)


def _numbered(output_dir: Path) -> list[tuple[int, Path]]:
    """The folders that are named like checkpoints, by step."""
    return sorted(
        (int(path.name.removeprefix(PREFIX)), path)
        for path in (output_dir.glob(f"{PREFIX}*") if output_dir.is_dir() else [])
        if path.is_dir() and path.name.removeprefix(PREFIX).isdigit()
    )


def _digest(contents: Mapping[str, Any]) -> str:
    return sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()
