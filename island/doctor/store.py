"""Checks a database file without changing it, whether or not a daemon uses it."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from urllib.parse import quote

from island.doctor import home_facts
from island.doctor.facts import DatabaseFacts
from island.kernel.db import DAMAGED, Kind, migrations, primary_code
from island.kernel.ports import Clock

_STEPS = 100_000
"""Instructions of SQLite between two looks at the clock."""

LOCK_SECONDS = 5.0
"""Time to wait for a lock of another program."""

_FAILED_READ = frozenset({sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_SHORT_READ})
"""Errors of the disk. Other I/O errors are those of the index of a write-ahead log, which SQLite could not write."""

_HINDERED = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_READONLY,
    }
)
"""Primary codes of errors that say nothing about the file, but about its surroundings."""


def database(folder: Path, kind: Kind, clock: Clock, *, seconds: float) -> DatabaseFacts:
    """Return the version of a database and the errors that `quick_check` finds within `seconds`."""
    path, newest = folder / f"{kind}.db", migrations(kind)[-1][0]
    if not path.exists() or path.stat().st_size == 0:
        return DatabaseFacts(path.name, str(path), None, newest)
    files = (path, *(path.with_name(path.name + suffix) for suffix in ("-wal", "-shm")))
    if (denied := home_facts.denied(folder, files)) is not None:
        return DatabaseFacts(path.name, str(path), 0, newest, denied=denied)
    try:
        connection = sqlite3.connect(_read_only(path), uri=True, timeout=LOCK_SECONDS)
    except sqlite3.Error as error:
        return _not_read(path, newest, error)
    end = clock.monotonic() + seconds
    connection.set_progress_handler(lambda: clock.monotonic() > end, _STEPS)
    version = 0
    try:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        found = [str(row[0]) for row in connection.execute("PRAGMA quick_check(3)")]
    except sqlite3.DatabaseError as error:
        code = primary_code(error)
        if code == sqlite3.SQLITE_INTERRUPT:
            return DatabaseFacts(path.name, str(path), version, newest, complete=False)
        if code not in DAMAGED:
            return _not_read(path, newest, error)
        return DatabaseFacts(path.name, str(path), version, newest, [str(error)])
    finally:
        connection.close()
    return DatabaseFacts(path.name, str(path), version, newest, [] if found == ["ok"] else found)


def _not_read(path: Path, newest: int, error: sqlite3.Error) -> DatabaseFacts:
    hindered = primary_code(error) in _HINDERED and error.sqlite_errorcode not in _FAILED_READ
    return DatabaseFacts(path.name, str(path), 0, newest, unreadable=str(error), hindered=hindered)


def _read_only(path: Path) -> str:
    """Return a URI for reading only. Without a write-ahead log, SQLite would have to create files beside it."""
    log = path.with_name(f"{path.name}-wal")
    return f"file:{quote(str(path))}?" + ("mode=ro" if log.exists() else "mode=ro&immutable=1")
