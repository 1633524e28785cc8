"""The data of the engine that persist across restarts: ids, names, and how each job ended.

One small SQLite file, written by the event loop itself: writes are rare (start and end of a
session), and an answer must not be sent before its row is on disk.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final, Literal

import msgspec

from island.errors import ConfigError

Table = Literal["session", "batch"]
SCHEMA: Final = 1
KEPT: Final = 10_000
KEPT_LOG_CHARS: Final = 16_384
_CREATE: Final = """
CREATE TABLE IF NOT EXISTS job (
  what TEXT NOT NULL, id INTEGER NOT NULL, name TEXT, kind TEXT NOT NULL, instance TEXT NOT NULL,
  state TEXT NOT NULL, log TEXT NOT NULL, PRIMARY KEY (what, id)
) STRICT;
CREATE INDEX IF NOT EXISTS job_name ON job (what, name, id);
CREATE TABLE IF NOT EXISTS next_id (what TEXT PRIMARY KEY, id INTEGER NOT NULL) STRICT;
INSERT OR IGNORE INTO next_id VALUES ('session', 0), ('batch', 0);
"""


class EndedJob(msgspec.Struct, frozen=True):
    """A stored session or batch. `log` has its last lines."""

    id: int
    name: str | None
    kind: str
    instance: str
    state: str
    log: list[str]


class EngineStore:
    """The database of an engine's folder. Raises `ConfigError` if it is not usable, or of a newer version."""

    def __init__(self, path: Path) -> None:
        try:
            self._db = sqlite3.connect(path, isolation_level=None)
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version > SCHEMA:
                raise ConfigError(
                    f"{path} was written by a newer version of island (schema {version}, this version: {SCHEMA})",
                    hint="Run the newer version, or choose another folder for the engine.",
                )
            self._db.executescript(f"PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; {_CREATE}")
            self._db.execute(f"PRAGMA user_version={SCHEMA}")
        except sqlite3.DatabaseError as error:
            raise ConfigError(
                f"{path} cannot be used: {error}", hint="Choose another folder for the engine."
            ) from error

    def begin(self, what: Table, name: str | None, kind: str, instance: str) -> int:
        """Insert a new job and return its id. Ids are never reused."""
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            (number,) = self._db.execute(
                "UPDATE next_id SET id = id + 1 WHERE what = ? RETURNING id - 1", (what,)
            ).fetchone()
            self._db.execute(
                "INSERT INTO job VALUES (?, ?, ?, ?, ?, 'starting', '[]')", (what, number, name, kind, instance)
            )
            self._db.execute("DELETE FROM job WHERE what = ? AND id <= ?", (what, number - KEPT))
            self._db.execute("COMMIT")
        return int(number)

    def end(self, what: Table, number: int, state: str, log: list[str]) -> None:
        """Store the last state of a job and the end of its log."""
        kept: list[str] = []
        room = KEPT_LOG_CHARS
        for line in reversed(log):
            room -= len(line) + 4
            if room < 0:
                break
            kept.insert(0, line)
        text = msgspec.json.encode(kept).decode()
        self._db.execute("UPDATE job SET state = ?, log = ? WHERE what = ? AND id = ?", (state, text, what, number))

    def forget(self, what: Table, number: int) -> None:
        """Delete a job. Its id is not used again."""
        self._db.execute("DELETE FROM job WHERE what = ? AND id = ?", (what, number))

    def find(self, what: Table, key: int | str) -> EndedJob | None:
        """The job with this id, or the newest one with this name; None if there is none."""
        column = "id" if isinstance(key, int) else "name"
        row = self._db.execute(
            f"SELECT id, name, kind, instance, state, log FROM job WHERE what = ? AND {column} = ? ORDER BY id DESC",
            (what, key),
        ).fetchone()
        if row is None:
            return None
        number, known, kind, instance, state, lines = row
        return EndedJob(number, known, kind, instance, state, msgspec.json.decode(lines, type=list[str]))

    def close(self) -> None:
        """Close the database."""
        self._db.close()
