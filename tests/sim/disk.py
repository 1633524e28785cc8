"""The disk of one simulated island. It can be full or slow, hang, fail, and lose data that were not synced."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import resource
import sqlite3
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, TypeVarTuple

from island.kernel.db import Database, Kind
from island.kernel.work import Workers
from tests.standins.faults import busy, failed_read, failed_sync, failed_write, full_disk

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


@dataclass
class SimDisk:
    """A disk with simulated faults. Its databases are real files in `folder`."""

    folder: Path
    full: bool = False
    """Whether the disk is full: commits fail as in SQLite, and files cannot grow."""
    busy: bool = False
    """Whether another process holds the locks of the databases: no transaction that writes can begin."""
    unsynced: bool = False
    """Whether every sync fails: a commit is undone, and it is unknown whether it would be there after a crash."""
    slow: float = 0.0
    """Maximum delay in seconds of each step of the work on this disk."""
    hangs: set[str] = field(default_factory=set)
    """The names of the folders whose mounts do not answer, as given to `Workers.folder`."""
    failures: int = 0
    """Number of the next transactions and calls of `work` that fail with an I/O error."""
    skip: int = 0
    """Number of transactions and calls that succeed before the failures."""
    synced: dict[int, bytes] = field(default_factory=dict)
    """The content of each file at its last sync, by inode."""

    def open(self, kind: Kind, workers: Workers) -> Database:
        """Open or create a database on this disk."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{kind}.db"
        if not path.exists():
            path.write_bytes(_empty(kind))
            path.chmod(0o600)
        disk = self

        class Connection(_Connection):
            def __init__(self, *args: Any, **options: Any) -> None:
                super().__init__(*args, **options)
                self.disk = disk

        return Database(path, kind, workers, connection=Connection)

    def check_begin(self, sql: str) -> None:
        """Raise SQLite's error for a transaction that cannot read or write the disk, if a failure is due."""
        if self._fails():
            raise failed_write() if sql == "BEGIN IMMEDIATE" else failed_read()
        if self.busy and sql == "BEGIN IMMEDIATE":
            raise busy()

    def work(self, function: Callable[[*Ts], T], /, *args: *Ts) -> T:
        """Call a function that works on files. It fails at once if a failure is due; on a full disk its writes fail."""
        if self._fails():
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        with self._without_room() if self.full else contextlib.nullcontext(), self._watched():
            return function(*args)

    def lose_unsynced(self, folder: Path) -> int:
        """Reset every file below `folder` to its last synced content. Returns the number of files that changed."""
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
        """Prevent files from growing. Writes then fail with EFBIG, not with ENOSPC as on a full disk."""
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """Record the content of each file that is synced."""
        real = os.fsync

        def fsync(handle: int) -> None:
            status = os.fstat(handle)
            if stat.S_ISREG(status.st_mode):
                self.synced[status.st_ino] = Path(f"/proc/self/fd/{handle}").read_bytes()

        os.fsync = fsync  # type: ignore[assignment]  # accepts file descriptors only
        try:
            yield
        finally:
            os.fsync = real

    def check_commit(self) -> None:
        """Raise SQLite's error for a full disk, if the disk is full."""
        if self.full:
            raise full_disk()
        if self.unsynced:
            raise failed_sync()


class _Connection(sqlite3.Connection):
    """A connection with the faults of a disk.

    It never syncs, which makes the tests faster. `lose_unsynced` simulates the loss of power.
    """

    disk: SimDisk | None = None

    def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
        if sql.startswith("PRAGMA synchronous"):
            sql = "PRAGMA synchronous=OFF"
        if self.disk is not None and sql.startswith("BEGIN"):
            self.disk.check_begin(sql)
        if self.disk is not None and (sql == "COMMIT" or sql.startswith("PRAGMA user_version=")):
            try:
                self.disk.check_commit()
            except sqlite3.Error:
                if self.disk.unsynced and self.in_transaction:  # SQLite ends the transaction after a failed sync
                    super().execute("ROLLBACK")
                raise
        return super().execute(sql, *args)


@functools.cache
def _empty(kind: Kind) -> bytes:
    """The file of a new database: creating its tables takes longer than most of what a simulation does with it."""
    with tempfile.TemporaryDirectory() as folder:
        Database.open(Path(folder), kind, connection=_Connection).close()
        return (Path(folder) / f"{kind}.db").read_bytes()


def last_checkpoint(database: Database) -> bytes:
    """The content of a database file without its write-ahead log, which `synchronous=NORMAL` does not always sync."""
    return database.path.read_bytes()


def lose_unsynced(path: Path, checkpoint: bytes) -> None:
    """Reset a closed database to its last checkpoint."""
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    path.write_bytes(checkpoint)
