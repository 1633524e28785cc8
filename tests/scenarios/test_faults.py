"""Faults of a complete island over real TLS: a session that is lost during a commit, and problems in its status."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest

from island import daemon as daemon_module
from island.errors import Full, Unreachable
from island.gossip import store
from tests.standins.faults import Fault, full_disk
from tests.standins.member import get, member, until, victim


async def test_gossip_continues_after_a_session_is_lost_during_a_commit(tmp_path: Path) -> None:
    async with victim(tmp_path) as daemon, member(daemon, tmp_path) as other:
        await other.told(("test/a", b"1"))
        logs, busy, gate, storing = daemon.gossip._logs, threading.Event(), threading.Event(), asyncio.Event()
        original = logs._store

        async def tapped(intake: Any) -> None:
            if other.id in intake.batches:
                storing.set()
            await original(intake)

        def hold(_: sqlite3.Connection) -> None:
            busy.set()
            gate.wait(60)

        logs._store = tapped  # type: ignore[method-assign]  # tells the moment at which the session is to be lost
        holding = asyncio.get_running_loop().create_task(daemon.gossip_db.write(hold))
        assert await asyncio.to_thread(busy.wait, 60)
        other.say(("test/b", b"2"))
        await asyncio.wait_for(storing.wait(), 60)
        ends = (daemon.peers._control, other.id), (other.peers._control, daemon.trust.me)
        cut = [control[island] for control, island in ends]
        cut[0].end(Unreachable("cut by the test"))
        await asyncio.sleep(0)
        gate.set()
        await holding
        await until(lambda: daemon.gossip.head(other.id) == other.head)
        await until(lambda: all(control.get(island) not in (None, *cut) for control, island in ends))
        await other.told(("test/c", b"3"))
        assert (await daemon.gossip_db.read(store.heads))[other.id] == other.head == daemon.gossip.head(other.id)
        assert (await get(daemon, "/api/v1/island"))["problems"] == []


async def test_status_shows_an_origin_that_cannot_be_stored_and_a_failing_loop(tmp_path: Path) -> None:
    async with victim(tmp_path) as daemon, member(daemon, tmp_path) as other:
        await other.told(("test/a", b"1"))
        fault = Fault(daemon.gossip_db, times=None)
        batches = other.signed(("test/b", b"2"))
        other.send(batches)
        await until(lambda: bool(daemon.gossip.problems()))
        daemon.faults.met("some.loop", ValueError("odd"))
        unstored, loop = (await get(daemon, "/api/v1/island"))["problems"]
        assert unstored.startswith(f"changes from {daemon.membership.display(other.id)} cannot be stored")
        assert "disk I/O error" in unstored
        assert loop.startswith("some.loop fails and is retried (ValueError: odd)")
        fault.mend()
        daemon.faults.over("some.loop")
        other.send(batches)
        await until(lambda: daemon.gossip.head(other.id) == other.head)
        assert (await get(daemon, "/api/v1/island"))["problems"] == []


async def test_status_shows_a_full_disk_until_a_write_succeeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon_module, "TRY_SECONDS", 3600.0)  # else the daemon may repair the database at any moment

    def full(_: sqlite3.Connection) -> None:
        raise full_disk()

    def write(conn: sqlite3.Connection) -> None:
        conn.execute("CREATE TABLE test (n)")
        conn.execute("INSERT INTO test VALUES (1)")

    async with victim(tmp_path) as daemon:
        with pytest.raises(Full):
            await daemon.chunks.write(full)
        (problem,) = (await get(daemon, "/api/v1/island"))["problems"]
        assert "chunks.db is full" in problem
        await daemon.chunks.write(write)
        assert (await get(daemon, "/api/v1/island"))["problems"] == []
