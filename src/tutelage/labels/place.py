"""Where a store lies: a local folder, or a folder behind an fsspec URL.

Locally a file is written aside, flushed and renamed, and one writer holds the folder's lock. Elsewhere there is neither renaming
nor a lock: a file is put there whole in one call, as object stores do it, a shard before the manifest that lists it; that no
second writer is at work is the user's to see to, and one that is noticed (:mod:`tutelage.labels.writer`) ends the first.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec
from filelock import FileLock, Timeout
from fsspec.implementations.local import LocalFileSystem

from tutelage.errors import TeacherError
from tutelage.files import flush

LOCK = ".lock"
_PART = ".part"


class Place:
    """A store's folder.

    Args:
        path: local path or fsspec URL (``s3://…``, ``memory://…``).

    Raises:
        TeacherError: a URL of a kind that nothing installed can read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.url = os.fspath(path)
        try:
            filesystem, root = cast("tuple[Any, str]", fsspec.core.url_to_fs(self.url))
        except (ImportError, ValueError) as error:
            raise TeacherError(
                f"{self.url} is of a kind that no installed file system can read ({error}): install fsspec's package for it, or give a "
                "local folder"
            ) from error
        self._filesystem = filesystem
        self._root = root
        self._lock: FileLock | None = None
        self.local = isinstance(filesystem, LocalFileSystem)

    def __str__(self) -> str:
        return self.url

    def at(self, name: str) -> str:
        """The path of a file of the store, as its file system knows it."""
        return f"{self._root.rstrip('/')}/{name}"

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where there is none."""
        try:
            return int(self._filesystem.size(self.at(name)))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def names(self, folder: str) -> list[str]:
        """The names in a folder of the store; none where there is no such folder."""
        try:
            self._filesystem.invalidate_cache(self.at(folder))
            return sorted(str(path).rsplit("/", 1)[-1] for path in self._filesystem.ls(self.at(folder), detail=False))
        except FileNotFoundError:
            return []

    def read(self, name: str) -> bytes:
        """A small file's contents; FileNotFoundError where there is none."""
        try:
            return cast("bytes", self._filesystem.cat_file(self.at(name)))
        except NotADirectoryError as error:
            raise FileNotFoundError(self.at(name)) from error

    def tail(self, name: str, count: int) -> bytes:
        """The last ``count`` bytes of a file."""
        return cast("bytes", self._filesystem.cat_file(self.at(name), start=-count))

    def open(self, name: str) -> BinaryIO:
        """A file to read parts of, fetched as they are asked for and no further."""
        return cast("BinaryIO", self._filesystem.open(self.at(name), "rb", cache_type="none"))

    def sha256(self, name: str) -> str:
        """The SHA-256 of a file, in hexadecimal."""
        digest = sha256()
        with self._filesystem.open(self.at(name), "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()

    def write(self, name: str, contents: bytes) -> None:
        """Write a file that is whole or not there, and on the disk when this returns.

        Raises:
            TeacherError: there is no room for it, or no right to write it; nothing is left of it.
        """
        try:
            if self.local:
                self._write_locally(Path(self.at(name)), contents)
            else:
                self._filesystem.pipe_file(self.at(name), contents)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise TeacherError(
                f"{'no room for' if full else 'cannot write'} {name} ({len(contents):,} bytes) in the label store {self}: {error}. The "
                f"shards that were finished are whole and stay; {'make room' if full else 'mend that'} and run the same command again, "
                "which continues after them"
            ) from error

    @staticmethod
    def _write_locally(path: Path, contents: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(_aside(path.name))
        try:
            aside.write_bytes(contents)
            flush(aside)
            aside.rename(path)
        except OSError:
            with suppress(OSError):
                aside.unlink(missing_ok=True)
            raise
        flush(path.parent)

    def remove(self, name: str) -> None:
        """Remove a file, and what a write of it that was cut short left, where they are there."""
        folder, _, file = name.rpartition("/")
        for each in (name, f"{folder}/{_aside(file)}") if self.local else (name,):
            with suppress(FileNotFoundError):
                self._filesystem.rm_file(self.at(each))

    def lock(self) -> None:
        """Be the one that writes here; the system ends it with the process, however that dies. Nothing at a remote place.

        Raises:
            TeacherError: another process writes here.
        """
        if not self.local:
            return
        lock = FileLock(self.at(LOCK), timeout=0)
        try:
            Path(self._root).mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout as error:
            raise TeacherError(
                f"another process is writing to the label store {self}: two would label the same examples twice; wait for it to end, "
                "or give this one another folder"
            ) from error
        except OSError as error:
            raise TeacherError(
                f"cannot write to the label store {self}: {error}; mend that, or give another folder"
            ) from error
        self._lock = lock

    def unlock(self) -> None:
        """Let another process write here."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def _aside(name: str) -> str:
    """What a file is called while it is being written."""
    return f".{name}{_PART}"
