"""Clients of the engine's port that begin a request and do not finish it. No Spark is needed."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from island.engine.lifecycle import EngineContext
from island.engine.limits import EngineLimits
from island.engine.main import serving
from island.engine.rest_api import EngineApi
from island.engine.service import EngineService
from island.engine.store import EngineStore
from island.livy.http_connections import HttpLimits
from tests.standins.loop_time import LoopTime

TOKEN = "token-of-the-tests"
HALF = b"GET /version HTTP/1.1\r\nHost: localhost\r\nX-Half: "
WHOLE = f"GET /version HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()

NEVER = 3600.0


class Client:
    """A connection on which anything can be sent."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def status(self) -> bytes:
        async with asyncio.timeout(NEVER):
            return (await self._reader.readuntil(b"\r\n")).split()[1]

    async def closed(self) -> None:
        """Wait until the engine has closed the connection."""
        async with asyncio.timeout(NEVER):
            with contextlib.suppress(ConnectionError):
                await self._reader.read()

    def close(self) -> None:
        self._writer.transport.abort()


class EnginePort:
    """The port of an engine, and connections to it that end with the test."""

    def __init__(self, number: int) -> None:
        self._number, self._stack = number, contextlib.ExitStack()

    async def connect(self, data: bytes) -> Client:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._number)
        client = Client(reader, writer)
        self._stack.callback(client.close)
        writer.write(data)
        await writer.drain()
        return client

    def close(self) -> None:
        self._stack.close()


@contextlib.asynccontextmanager
async def engine_port(folder: Path, **limits: Any) -> AsyncIterator[EnginePort]:
    """The API of an engine without sessions, at a free port."""
    store = EngineStore(folder / "engine.db")
    listening = socket.create_server(("127.0.0.1", 0))
    port = EnginePort(listening.getsockname()[1])
    bounds = HttpLimits(**{"head_s": NEVER, "stall_s": NEVER, "idle_s": NEVER, **limits})
    try:
        async with asyncio.TaskGroup() as group:
            engine = EngineService(EngineContext(folder, "test", "", {}, EngineLimits(), store, None), group)
            async with serving(EngineApi(engine, TOKEN).app(), listening, bounds):
                try:
                    yield port
                finally:
                    port.close()
    finally:
        store.close()


async def test_a_request_head_that_is_not_finished_ends_its_connection(tmp_path: Path) -> None:
    time = LoopTime()
    async with engine_port(tmp_path, head_s=30) as port:
        for data in (b"", HALF):
            await time.pass_until_done(asyncio.ensure_future((await port.connect(data)).closed()))
        assert await (await port.connect(WHOLE)).status() == b"200"


async def test_honest_requests_are_answered_among_many_that_are_not_finished(tmp_path: Path) -> None:
    async with engine_port(tmp_path, connections=8) as port:
        half = [await port.connect(HALF) for _ in range(40)]
        assert await (await port.connect(WHOLE)).status() == b"200"
        for each in half[:32]:
            await each.closed()
