"""SQL over the statements of home and of the executor: which files of HOME/results are still needed."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import Final

SINCE: Final = 15
"""The version of state.db with which results became files."""


def needed(conn: sqlite3.Connection) -> set[str]:
    """The hashes of all results that a statement refers to."""
    rows = conn.execute(
        "SELECT result FROM job_statement WHERE result != '' UNION SELECT result FROM run_statement WHERE result != ''"
    )
    return {row["result"] for row in rows}


def needed_of(conn: sqlite3.Connection, hashes: Iterable[str]) -> set[str]:
    """Those of some hashes that a statement refers to."""
    found = set()
    for each in hashes:
        row = conn.execute(
            "SELECT 1 FROM job_statement WHERE result = ? AND result != ''"
            " UNION ALL SELECT 1 FROM run_statement WHERE result = ? AND result != '' LIMIT 1",
            (each, each),
        ).fetchone()
        if row is not None:
            found.add(each)
    return found


def live_jobs(conn: sqlite3.Connection) -> set[str]:
    """The public ids of the jobs of this home that have not ended."""
    return {row["id"] for row in conn.execute("SELECT id FROM job WHERE phase != 'ended'")}
