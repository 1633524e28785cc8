"""The disk of one simulated island: it can be full, slow, fail once, and lose what was not synced."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import sqlite3
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, TypeVarTuple

from island.kernel.db import Database, Kind
from island.kernel.work import Workers

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


@dataclass
class SimDisk:
    """What is wrong with a disk at the moment. Its databases are real files in `folder`."""

    folder: Path
    full: bool = False
    """Whether no write fits: commits fail as SQLite's do."""
    slow: float = 0.0
    """The most seconds by which each step of each piece of work on it is late."""
    failures: int = 0
    """How many of the next transactions and pieces of work on files fail with an I/O error."""
    skip: int = 0
    """How many of them succeed before those that fail."""
    synced: dict[int, bytes] = field(default_factory=dict)
    """What was in each file, by inode, when it was last synced."""

    def open(self, kind: Kind, workers: Workers) -> Database:
        """Open or create a database on this disk."""
        self.folder.mkdir(parents=True, exist_ok=True)
        disk = self

        class Connection(_Connection):
            def __init__(self, *args: Any, **options: Any) -> None:
                super().__init__(*args, **options)
                self.disk = disk

        return Database(self.folder / f"{kind}.db", kind, workers, connection=Connection)

    def check_begin(self) -> None:
        """Raise what SQLite raises for a disk that cannot be read."""
        if self._fails():
            raise sqlite3.OperationalError("disk I/O error")

    def work(self, function: Callable[[*Ts], T], /, *args: *Ts) -> T:
        """Run a piece of work on files: it may fail at once, and no write of it fits on a full disk."""
        if self._fails():
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        with self._without_room() if self.full else contextlib.nullcontext(), self._watched():
            return function(*args)

    def lose_unsynced(self, folder: Path) -> int:
        """Put every file below `folder` back to what was last synced of it; returns how many lost something."""
        lost = 0
        for path in sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()):
            kept = self.synced.get(path.stat().st_ino, b"")
            if path.read_bytes() != kept:
                path.write_bytes(kept)
                lost += 1
        return lost

    def _fails(self) -> bool:
        if self.failures > 0 and self.skip > 0:
            self.skip -= 1
            return False
        failing = self.failures > 0
        self.failures -= failing
        return failing

    @contextlib.contextmanager
    def _without_room(self) -> Iterator[None]:
        """No file can grow. The system says EFBIG then, and not ENOSPC as a full disk does."""
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """Remember what is synced."""
        real = os.fsync

        def fsync(handle: int) -> None:
            status = os.fstat(handle)
            if stat.S_ISREG(status.st_mode):
                self.synced[status.st_ino] = Path(f"/proc/self/fd/{handle}").read_bytes()

        os.fsync = fsync  # type: ignore[assignment]  # the same for a file's number
        try:
            yield
        finally:
            os.fsync = real

    def check_commit(self) -> None:
        """Raise what SQLite raises for a disk without room."""
        if self.full:
            raise sqlite3.OperationalError("database or disk is full")


class _Connection(sqlite3.Connection):
    """A connection whose transactions meet the faults of a disk.

    It never syncs: a simulated power loss is played by `lose_unsynced`, and the tests wait for no disk.
    """

    disk: SimDisk | None = None

    def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
        if sql.startswith("PRAGMA synchronous"):
            sql = "PRAGMA synchronous=OFF"
        if self.disk is not None and sql.startswith("BEGIN"):
            self.disk.check_begin()
        if self.disk is not None and sql == "COMMIT":
            self.disk.check_commit()
        return super().execute(sql, *args)


def last_checkpoint(database: Database) -> bytes:
    """What a database file holds without its write-ahead log: all that `synchronous=NORMAL` has synced for sure."""
    return database.path.read_bytes()


def lose_unsynced(path: Path, checkpoint: bytes) -> None:
    """Put a closed database back to its last checkpoint."""
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    path.write_bytes(checkpoint)
