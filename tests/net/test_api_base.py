"""What every operation shares: times as text, and progress that ends with a result or an error."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from island.errors import BadInput, Full
from island.kernel.db import Database
from island.net.api import base


@pytest.mark.parametrize(
    ("at", "text"),
    [
        (None, None),
        (0.0, "1970-01-01T00:00:00.000Z"),
        (1_700_000_000.25, "2023-11-14T22:13:20.250Z"),
        (-62_135_596_800.0, "0001-01-01T00:00:00.000Z"),
        (-62_135_596_801.0, "+000000-12-31T23:59:59.000Z"),
        (253_402_300_800.0, "+010000-01-01T00:00:00.000Z"),
        (1e14, "+3170843-11-07T09:46:40.000Z"),
        (-1e14, "-3166904-02-24T14:13:20.000Z"),
        (float("nan"), None),
        (float("inf"), None),
        (1e300, None),
    ],
)
def test_any_time_has_a_text(at: float | None, text: str | None) -> None:
    assert base.iso(at) == text


async def _lines(work: Any) -> list[dict[str, Any]]:
    async def handler(request: web.Request) -> web.StreamResponse:
        return await base.stream(request, work)

    app = web.Application(middlewares=[base.errors])
    app.add_routes([web.post("/", handler)])
    async with TestClient(TestServer(app)) as client, client.post("/") as answer:
        assert answer.status == 200 and answer.content_type == "application/x-ndjson"
        return [json.loads(line) for line in (await answer.text()).splitlines()]


async def test_progress_ends_with_the_result() -> None:
    async def work(progress: base.Progress) -> Any:
        progress(1, 2, "half")
        return {"answer": 42}

    assert (await _lines(work))[-1] == {"result": {"answer": 42}}


async def test_progress_ends_with_the_error_even_of_a_bug() -> None:
    async def full(_: base.Progress) -> Any:
        raise Full("the disk is full", hint="Make room.")

    async def bug(progress: base.Progress) -> Any:
        progress(1, 2, "half")
        return 1 // 0

    assert (await _lines(full)) == [
        {"error": "full", "message": "the disk is full", "hint": "Make room.", "status": 507}
    ]
    assert (await _lines(bug))[-1] == base.BUG


async def test_a_failing_disk_is_answered_with_its_code(tmp_path: Path) -> None:
    database = Database.open(tmp_path, "state")

    async def handler(_: web.Request) -> web.StreamResponse:
        await database.read(lambda conn: conn.execute("SELECT 1 FROM sqlite_master").fetchall())
        return base.reply({})

    app = web.Application(middlewares=[base.errors])
    app.add_routes([web.get("/", handler)])
    try:
        async with TestClient(TestServer(app)) as client:
            database.path.with_name("state.db-wal").unlink()
            with database.path.open("r+b") as file:
                file.write(bytes(100))
            async with client.get("/") as answer:
                assert answer.status == 503
                assert (await answer.json())["error"] == "disk_failed"
    finally:
        database.close()


async def test_an_operation_that_says_nothing_is_cancelled_when_its_client_goes() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def silent(progress: base.Progress) -> Any:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def handler(request: web.Request) -> web.StreamResponse:
        return await base.stream(request, silent)

    await _leave(handler, begun, ended)


async def test_a_wait_ends_when_its_client_goes() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def wait(request: web.Request) -> web.Response:
        try:
            async with base.attended(request):
                begun.set()
                await asyncio.Event().wait()
        finally:
            ended.set()
        return base.reply({})

    await _leave(wait, begun, ended)


async def _leave(handler: base.Handler, begun: asyncio.Event, ended: asyncio.Event) -> None:
    """Close the connection of a request once its handler has begun, and wait for the handler's end."""
    app = web.Application(middlewares=[base.errors])
    app.add_routes([web.post("/", handler)])
    # The server stays until the handler has ended, for its own end would cancel the handler.
    async with TestServer(app) as server, asyncio.timeout(30):
        _, writer = await asyncio.open_connection(server.host, server.port)
        writer.write(b"POST / HTTP/1.1\r\nHost: island\r\nContent-Length: 0\r\n\r\n")
        await begun.wait()
        writer.close()
        await writer.wait_closed()
        await ended.wait()


async def test_work_is_not_cancelled_while_its_client_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "ATTENDANCE_S", 0.001)

    async def work(progress: base.Progress) -> Any:
        for number in range(20):
            progress(number, 20, "")
            await asyncio.sleep(0.005)
        return "done"

    assert (await _lines(work))[-1] == {"result": "done"}


async def test_a_timeout_of_the_work_itself_stays_one() -> None:
    async def handler(request: web.Request) -> web.Response:
        with pytest.raises(TimeoutError):
            async with base.attended(request), asyncio.timeout(0):
                await asyncio.Event().wait()
        return base.reply("told")

    app = web.Application()
    app.add_routes([web.post("/", handler)])
    async with TestClient(TestServer(app)) as client, client.post("/") as answer:
        assert await answer.json() == "told"


@pytest.mark.parametrize(
    "text",
    ["", "0", "-1", "1.5", "x", "1001", "²", "1" * 5000, "0" * 18 + "1" + "9" * 9],
    ids=lambda text: text[:20],
)
def test_a_number_that_is_not_in_its_range_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="limit = "):
        base.whole_number(text, "limit", 1000)


def test_a_number_in_its_range() -> None:
    assert base.whole_number("1", "limit", 1000) == 1
    assert base.whole_number("1000", "limit", 1000) == 1000
