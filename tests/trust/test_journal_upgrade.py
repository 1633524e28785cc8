"""The journal of an earlier version, which sealed it from time to time only, and was killed after some more rows."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest

from island.kernel.db import Database, migrations
from island.kernel.ports import SeededRng, SystemClock
from island.trust import journal
from island.trust.keys import NO_NETWORK, Identity
from island.trust.service import Trust

SEALS_EACH_ROW = 8
"""The migration that comes with the version that seals each row."""

IDENTITY = Identity.generate(SeededRng("upgrade"))


def _append(conn: sqlite3.Connection, act: str) -> None:
    journal.append(conn, at=1.0, who="user@kiso", act=act, what="x", outcome="accepted", detail={})


def _write_earlier(path: Path, *, sealed: int, rows: int) -> None:
    """Write a state.db of the earlier version, whose seal is that of the row `sealed`; 0 for none."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.row_factory = sqlite3.Row
        for number, sql in migrations("state"):
            if number < SEALS_EACH_ROW:
                conn.executescript(sql)
                conn.execute(f"PRAGMA user_version={number}")
        for number in range(1, rows + 1):
            _append(conn, f"test.{number}")
            if number == sealed:
                journal.seal(conn, IDENTITY, NO_NETWORK)


async def _started(folder: Path) -> tuple[str, list[str]]:
    """Start twice, and add a row each time. Returns the problem of the sealer, and those of a verification."""
    for _ in range(2):
        with contextlib.closing(Database.open(folder, "state")) as state:
            trust = Trust(state, IDENTITY, "kiso", "test", SystemClock(), SeededRng(1))
            await trust.load()
            await state.write(lambda conn: _append(conn, "test.later"))
            found = trust.sealer.problem, (await trust.verify_journal())[1]
    return found


@pytest.mark.parametrize(("sealed", "rows"), [(3, 5), (0, 2), (4, 4), (0, 0)])
async def test_rows_from_before_the_upgrade_are_sealed(tmp_path: Path, sealed: int, rows: int) -> None:
    _write_earlier(tmp_path / "state.db", sealed=sealed, rows=rows)
    assert await _started(tmp_path) == ("", [])


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE journal SET outcome = 'refused' WHERE seq = 5",
        "UPDATE journal_seal SET signature = zeroblob(64)",
        "DELETE FROM journal WHERE seq = 3",
    ],
)
async def test_rows_that_were_changed_before_the_upgrade_are_reported(tmp_path: Path, change: str) -> None:
    _write_earlier(tmp_path / "state.db", sealed=3, rows=5)
    with contextlib.closing(sqlite3.connect(tmp_path / "state.db", isolation_level=None)) as conn:
        conn.execute(change)
    problem, problems = await _started(tmp_path)
    assert problem and problems


async def test_only_rows_from_before_the_upgrade_are_sealed(tmp_path: Path) -> None:
    _write_earlier(tmp_path / "state.db", sealed=3, rows=5)
    assert await _started(tmp_path) == ("", [])
    with contextlib.closing(sqlite3.connect(tmp_path / "state.db", isolation_level=None)) as conn:
        conn.row_factory = sqlite3.Row
        _append(conn, "test.forged")
    problem, _ = await _started(tmp_path)
    assert "another program wrote the newer rows" in problem
