"""The disk of one simulated island: it can be full, slow, fail once, and lose what was not synced."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from island.kernel.db import Database, Kind
from island.kernel.work import Workers


@dataclass
class SimDisk:
    """What is wrong with a disk at the moment. Its databases are real files in `folder`."""

    folder: Path
    full: bool = False
    """Whether no write fits: commits fail as SQLite's do."""
    slow: float = 0.0
    """The most seconds by which each step of each piece of work on it is late."""
    failures: int = 0
    """How many of the next transactions fail with an I/O error."""
    skip: int = 0
    """How many transactions succeed before those that fail."""

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
        if self.failures > 0 and self.skip > 0:
            self.skip -= 1
        elif self.failures > 0:
            self.failures -= 1
            raise sqlite3.OperationalError("disk I/O error")

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
