"""The files of the chunk store: sparse files under the relative paths of their dataset.

HOME/replicas/OWNER-KEY-PREFIX/NAME/SNAPSHOT/PATH. The bitmap in `chunks.db` lists the chunks
that a file contains: a chunk is written, then synced, then marked in the bitmap. A complete
file can be read by any program. All functions block; `ChunkStore` runs them in threads.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from island.errors import Corrupt, Full, IslandError
from island.kernel.ids import IslandId, key_prefix
from island.kernel.loops import DISK_FAILED
from island.regular_file import open_regular
from island.replicas import core

_GONE = ".gone-"


def folder_of(owner: IslandId, name: str, snapshot: str) -> str:
    """The folder of a snapshot, relative to the root of the store."""
    return f"{key_prefix(owner)}/{name}/{snapshot}"


class ChunkFiles:
    """The folder HOME/replicas."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, folder: str, relative: str) -> Path:
        """The path of a file of a snapshot. Raises `Corrupt` for a path that could lead out of the store."""
        if not core.safe_path(relative):
            raise Corrupt(
                f"the manifest lists a file {relative[:200]!r}, which is not a valid relative path",
                hint="Ask the owner to publish the file under a plain relative path.",
            )
        return self.root / folder / relative

    def create(self, folder: str, relative: str, size: int) -> None:
        """Create the sparse file with its full size. The content of an existing file is kept."""
        path = self.path(folder, relative)
        with _Explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                if os.fstat(handle).st_size != size:
                    os.ftruncate(handle, size)
            finally:
                os.close(handle)

    def write(self, folder: str, relative: str, offset: int, data: bytes | memoryview) -> None:
        """Write bytes at an offset. Raises `Full` if the disk is full, else `IslandError` if the write fails."""
        path = self.path(folder, relative)
        with _Explained(path):
            handle = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                rest = memoryview(data)
                while rest:
                    written = os.pwrite(handle, rest, offset)
                    rest, offset = rest[written:], offset + written
            finally:
                os.close(handle)

    def read(self, folder: str, relative: str, start: int, end: int) -> bytes:
        """The bytes from `start` to `end`; fewer if the file ends before `end`."""
        return read_range(self.path(folder, relative), start, end)

    def sync(self, folder: str, relative: str) -> int:
        """Sync a file to disk; returns its modification time in nanoseconds."""
        path = self.path(folder, relative)
        with _Explained(path):
            handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                os.fsync(handle)
                return os.fstat(handle).st_mtime_ns
            finally:
                os.close(handle)

    def stat(self, folder: str, relative: str) -> tuple[int, int] | None:
        """(size, modification time in ns) of a file, or None if it is not a regular file."""
        try:
            found = self.path(folder, relative).lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return (found.st_size, found.st_mtime_ns) if (found.st_mode & 0o170000) == 0o100000 else None

    def remove(self, folder: str) -> None:
        """Delete the folder of a snapshot. It is renamed first, so that a partly deleted folder is never used."""
        path = self.root / folder
        gone = path.with_name(_GONE + path.name)
        try:
            os.rename(path, gone)
        except FileNotFoundError:
            return
        except OSError:
            gone = path
        shutil.rmtree(gone, ignore_errors=True)

    def sweep(self, known: Iterable[str]) -> int:
        """Delete all folders except the `known` ones, including leftovers of `remove`; returns their number."""
        keep, swept = set(known), 0
        for folder in sorted(self.root.glob("*/*/*")):
            if folder.relative_to(self.root).as_posix() not in keep:
                shutil.rmtree(folder, ignore_errors=True)
                swept += 1
        return swept

    def free(self) -> int:
        """Free bytes on the disk of the store."""
        return shutil.disk_usage(self.root).free


def read_range(path: Path, start: int, end: int) -> bytes:
    """The bytes of a file from `start` to `end`; fewer if the file ends before `end`. Raises `IslandError`."""
    with _Explained(path), open_regular(path) as file:
        pieces = []
        while start < end and (piece := os.pread(file.fileno(), end - start, start)):
            pieces.append(piece)
            start += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class _Explained:
    """Context manager that replaces an `OSError` by the `IslandError` of `explained`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, OSError):
            raise explained(error, self._path) from error


def explained(error: OSError, path: Path) -> IslandError:
    """The error for a failed file operation: `Full` for a full disk, else `IslandError`.

    Its code is `disk_failed`, unless the file is missing or must not be accessed.
    """
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return Full(
            f"the disk is full: {path} cannot be written",
            hint="Free disk space and try again. Data that were fetched before are kept.",
        )
    code = "" if isinstance(error, (FileNotFoundError, NotADirectoryError, PermissionError)) else DISK_FAILED
    text = f"{path}: {error.strerror or error}"
    return IslandError(text, hint="Check the disk and the permissions of the file.", code=code)
