"""A fault of one session's process ends that session only. The engine and the other sessions go on. Without Spark."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from island.engine.lifecycle import EngineContext
from island.engine.limits import EngineLimits
from island.engine.service import EngineService
from island.engine.sessions import EngineSession
from island.engine.store import EngineStore
from island.livy.messages import SessionRequest, StatementRequest

CHILD = """
import json, os, sys
incoming, outgoing = int(sys.argv[1]), int(sys.argv[2])

def read(count):
    data = b""
    while len(data) < count:
        data += os.read(incoming, count - len(data))
    return data

def send(raw):
    raw = len(raw).to_bytes(4, "big") + raw
    while raw:
        raw = raw[os.write(outgoing, raw):]

def receive():
    return json.loads(read(int.from_bytes(read(4), "big")))

receive()
send(b'{"t": "ready"}')
while True:
    order = receive()
    deep = {"flat": 0, "nested": 200_000, "unknown": 200_000}.get(order["code"], 700)
    value = b"[" * deep + b"]" * deep if deep else b'"well"'
    name = b"data" if order["code"] != "unknown" else b"other"
    output = b'{"status": "ok", "execution_count": 0, "%s": {"application/json": %s}}' % (name, value)
    send(b'{"t": "done", "id": %d, "output": %s}' % (order["id"], output))
"""


@asynccontextmanager
async def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[EngineService]:
    """An engine whose sessions run `CHILD`."""
    (tmp_path / "pretend_session.py").write_text(CHILD)
    monkeypatch.setattr(EngineSession, "module", "pretend_session")
    place = EngineContext(
        directory=tmp_path,
        instance="one",
        java_home="",
        environ={**os.environ, "PYTHONPATH": str(tmp_path)},
        limits=EngineLimits(),
        store=EngineStore(tmp_path / "engine.db"),
        archive=None,
    )
    async with asyncio.timeout(120), asyncio.TaskGroup() as group:
        service = EngineService(place, group)
        try:
            yield service
        finally:
            await service.close()
            place.store.close()


async def ended(session: EngineSession, code: str) -> str:
    """Run a statement and wait for its last state."""
    statement = session.post(StatementRequest(code, "pyspark"))
    while statement.state in ("waiting", "running"):
        await asyncio.sleep(0.01)  # its frame comes from another process
    return statement.state


@pytest.mark.parametrize("code", ["nested", "unknown"])
async def test_a_deeply_nested_frame_ends_its_session_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    async with engine(tmp_path, monkeypatch) as service:
        bad, good = (service.open_session(SessionRequest(kind="pyspark")) for _ in range(2))
        assert await ended(bad, code) == "error"
        await bad.gone.wait()
        assert bad.state == "dead"
        assert any("invalid frame" in line for line in bad.log.lines())
        assert await ended(good, "flat") == "available"


async def test_an_unforeseen_exception_ends_its_session_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with engine(tmp_path, monkeypatch) as service:
        bad, good = (service.open_session(SessionRequest(kind="pyspark")) for _ in range(2))

        def broken() -> None:
            raise ZeroDivisionError("a bug in the engine")

        monkeypatch.setattr(bad, "_forget_old", broken)
        await ended(bad, "flat")
        await bad.gone.wait()
        assert bad.state == "dead"
        assert any("a bug in the engine" in line for line in bad.log.lines())
        assert await ended(good, "flat") == "available"
