"""Whole database files, outside of a daemon: their schema version, consistent copies, checks, and changes to a copy."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from island.errors import ConfigError, Conflict, Corrupt, DiskFailed, Full, IslandError
from island.kernel.db import DAMAGED, Kind, check_version, explained, migrate, primary_code, unusable
from island.private_files import create_private

WAIT_S = 10.0
"""Seconds to wait for a lock of another process."""


def check_file_version(path: Path, kind: Kind) -> int:
    """Return the schema version of a database, 0 if the file does not exist. The file is not changed.

    Raises `ConfigError` if it was written by a newer version of the program or is not a database.
    """
    if not path.exists():
        return 0
    try:
        with _opened(path) as conn:
            return check_version(conn, path, kind)
    except sqlite3.Error as error:
        raise unusable(error, path) from error


def copy_database(source: Path, target: Path, kind: Kind) -> int:
    """Copy a database as it is at one moment into the new file `target`, and return its schema version.

    Another process may use it meanwhile; its writers do not wait. Raises `ConfigError` as
    `check_file_version` does, `Full` and `DiskFailed`, and `Conflict` if another process writes to a
    database whose folder this process cannot write to.
    """
    if not source.exists():
        raise ConfigError(f"{source} is missing", hint="Start the island once with `island run`, which creates it.")
    create_private(target)
    try:
        if not os.access(source.parent, os.W_OK):  # SQLite has to create files beside a database that it reads
            return _copy_files(source, target, kind)
        with _opened(source) as conn, contextlib.closing(sqlite3.connect(target)) as copy:
            version = check_version(conn, source, kind)
            conn.backup(copy)  # in one step, which reads one snapshot
            return version
    except sqlite3.Error as error:
        raise _not_copied(error, source, target) from error


def _copy_files(source: Path, target: Path, kind: Kind) -> int:
    """Copy a database with its write-ahead log, and bring the content of the log into the copy."""
    before = _changes(source)
    for path in before:
        shutil.copyfile(path, target.with_name(target.name + path.name.removeprefix(source.name)))
    if _changes(source) != before:
        raise Conflict(
            f"{source} was changed while it was copied", hint="Run the command where its folder is writable."
        )
    with _opened(target) as conn:
        version = check_version(conn, source, kind)
        conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return version


def _changes(database: Path) -> dict[Path, tuple[int, int]]:
    """Return time of the last change in ns and size in bytes of a database and of its write-ahead log, if any."""
    paths = (database, database.with_name(f"{database.name}-wal"))
    found = {path: path.stat() for path in paths if path.exists()}
    return {path: (status.st_mtime_ns, status.st_size) for path, status in found.items()}


def _not_copied(error: sqlite3.Error, source: Path, target: Path) -> IslandError:
    code = primary_code(error)
    if code in DAMAGED or code == sqlite3.SQLITE_CANTOPEN:
        return unusable(error, source)
    problem = explained(error, target)
    if isinstance(problem, Full):
        return problem
    # SQLite does not tell which of the two files it could not read or write.
    return DiskFailed(f"{source} cannot be copied to {target.parent}: {error}", hint="Check the disks of both.")


@contextlib.contextmanager
def reading_copy(copy: Path, source: Path) -> Iterator[sqlite3.Connection]:
    """Read the file that `copy_database` has made of `source`; nothing is created beside it.

    Raises `DiskFailed`, and `ConfigError` if a table is missing.
    """
    uri = f"file:{quote(str(copy.absolute()))}?mode=ro&immutable=1"
    try:
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as conn:
            conn.row_factory = sqlite3.Row
            yield conn
    except sqlite3.Error as error:
        problem = explained(error, source if primary_code(error) in DAMAGED else copy)
        raise problem if isinstance(problem, IslandError) else unusable(error, source) from error


def check_content(path: Path) -> None:
    """Raise `Corrupt` if SQLite finds errors in the file, and `Full` or `DiskFailed` if it cannot be read."""
    try:
        with _opened(path) as conn:
            found = [row[0] for row in conn.execute("PRAGMA quick_check(3)")]
    except sqlite3.Error as error:
        problem = explained(error, path)
        if isinstance(problem, IslandError) and primary_code(error) not in DAMAGED:
            raise problem from error
        found = [str(error)]
    if found != ["ok"]:
        raise Corrupt(f"{path.name} is damaged: {'; '.join(found)[:300]}", hint="Use another backup.")


@contextlib.contextmanager
def migrated(path: Path, kind: Kind) -> Iterator[sqlite3.Connection]:
    """Migrate a database that no daemon uses, and run the block in one transaction on it.

    Raises `ConfigError` as `check_file_version` does, `Full` and `DiskFailed`, and `Corrupt` for other tables.
    """
    try:
        with _opened(path) as conn:
            conn.row_factory = sqlite3.Row
            migrate(conn, path, kind)
            conn.execute("BEGIN IMMEDIATE")
            yield conn
            conn.execute("COMMIT")
    except sqlite3.Error as error:
        problem = explained(error, path)
        if not isinstance(problem, IslandError):
            problem = Corrupt(f"{path.name} is not a database of an island: {error}", hint="Use another backup.")
        raise problem from error


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    uri = f"file:{quote(str(path.absolute()))}?mode=rw"
    with contextlib.closing(sqlite3.connect(uri, uri=True, isolation_level=None, timeout=WAIT_S)) as conn:
        yield conn
