"""The cache of fetched blobs in gossip.db: its size is known without reading it, and is bounded."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from island.gossip import store
from island.kernel.db import Database


@pytest.fixture
def conn(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    db = Database.open(tmp_path, "gossip")
    yield db._writer
    db.close()


def _kept(conn: sqlite3.Connection) -> list[str]:
    return [row["hash"] for row in conn.execute("SELECT hash FROM gossip_blobs ORDER BY fetched")]


def _steps(conn: sqlite3.Connection, name: str) -> int:
    """The number of instructions of SQLite's virtual machine for one more blob."""
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    conn.set_progress_handler(count, 1)
    store.keep_blob(conn, name, bytes(10), 10**9)
    conn.set_progress_handler(None, 0)
    return steps


def test_the_oldest_blobs_are_deleted_while_the_total_exceeds_the_limit(conn: sqlite3.Connection) -> None:
    for number in range(5):
        store.keep_blob(conn, str(number), bytes(100), 300)
    assert _kept(conn) == ["2", "3", "4"]
    store.keep_blob(conn, "large", bytes(250), 300)
    assert _kept(conn) == ["large"]
    store.keep_blob(conn, "small", bytes(50), 300)
    assert _kept(conn) == ["large", "small"]


def test_stored_blob_is_counted_once(conn: sqlite3.Connection) -> None:
    for _ in range(5):
        store.keep_blob(conn, "same", bytes(100), 300)
    store.keep_blob(conn, "other", bytes(200), 300)
    assert _kept(conn) == ["same", "other"]


async def test_the_total_survives_failed_commits_and_restarts(tmp_path: Path) -> None:
    db = Database.open(tmp_path, "gossip")

    def fail(conn: sqlite3.Connection) -> None:
        store.keep_blob(conn, "lost", bytes(300), 300)
        raise ValueError("the commit fails")

    await db.write(lambda conn: store.keep_blob(conn, "a", bytes(100), 300))
    with pytest.raises(ValueError, match="the commit fails"):
        await db.write(fail)
    await db.write(lambda conn: store.keep_blob(conn, "b", bytes(200), 300))
    db.close()
    db = Database.open(tmp_path, "gossip")
    assert await db.read(_kept) == ["a", "b"]
    await db.write(lambda conn: store.keep_blob(conn, "c", bytes(100), 300))
    assert await db.read(_kept) == ["b", "c"]
    db.close()


def test_keeping_a_blob_does_not_read_the_others(conn: sqlite3.Connection) -> None:
    few = _steps(conn, "first")
    for number in range(500):
        store.keep_blob(conn, str(number), bytes(10), 10**9)
    assert _steps(conn, "last") < few + 100
