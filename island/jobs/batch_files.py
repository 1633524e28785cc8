"""SQL of `job_file`: the files of batches, at home and at the executor."""

from __future__ import annotations

import sqlite3


def keep(conn: sqlite3.Connection, digest: str, data: bytes) -> None:
    """Store the file of a batch under its SHA-256."""
    conn.execute("INSERT OR IGNORE INTO job_file (hash, data) VALUES (?, ?)", (digest, data))


def read(conn: sqlite3.Connection, digest: str) -> bytes:
    """The file with this SHA-256; empty if there is none."""
    row = conn.execute("SELECT data FROM job_file WHERE hash = ?", (digest,)).fetchone()
    return b"" if row is None else bytes(row["data"])


def drop_unused(conn: sqlite3.Connection) -> None:
    """Delete the files that no live job and no live run needs."""
    conn.execute(
        "DELETE FROM job_file WHERE hash NOT IN (SELECT file_hash FROM job WHERE phase != 'ended')"
        " AND hash NOT IN (SELECT file_hash FROM run WHERE phase NOT IN ('clearing', 'cleared'))"
    )
