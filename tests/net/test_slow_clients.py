"""Clients that begin and do not finish, at both ports: they are cut off, and pushed out by honest ones."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from aiohttp import web

from island.kernel.stranger_log import PER_ADDRESS
from island.livy.http_connections import HttpLimits
from island.net.api.user_port import UserServer, build
from island.net.condition import Condition
from island.net.limits import PeerLimits
from island.trust.users import Tokens
from tests.islands.sessions import Node, archipelago
from tests.standins.loop_time import LoopTime

TOKEN = "user-token"
NEVER = 3600.0
HALF = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Half: "
WHOLE = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
LONG = 16 * 2**20
"""Bytes of an answer that does not fit into the buffers of the system."""
BODY = (
    b"POST /echo HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer "
    + TOKEN.encode()
    + b"\r\nContent-Length: 9\r\n\r\n"
)


class Raw:
    """A connection on which anything can be sent."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def send(self, data: bytes) -> None:
        with contextlib.suppress(ConnectionError):
            self._writer.write(data)
            await self._writer.drain()

    async def answer(self) -> tuple[int, bytes]:
        """Status and body of the next answer."""
        async with asyncio.timeout(NEVER):
            head = await self._reader.readuntil(b"\r\n\r\n")
            length = next(
                int(li.split(b":")[1]) for li in head.split(b"\r\n") if li.lower().startswith(b"content-length")
            )
            return int(head.split()[1]), await self._reader.readexactly(length)

    async def closed(self) -> bytes:
        """Wait until the other side has closed the connection; what came before."""
        async with asyncio.timeout(NEVER):
            try:
                return await self._reader.read()
            except ConnectionError:
                return b""

    async def read(self, size: int) -> bytes:
        async with asyncio.timeout(NEVER):
            return await self._reader.read(size)

    def pause(self) -> None:
        self._writer.transport.pause_reading()  # type: ignore[attr-defined]  # StreamWriter's transport reads too

    def resume(self) -> None:
        self._writer.transport.resume_reading()  # type: ignore[attr-defined]  # as above

    def close(self) -> None:
        self._writer.transport.abort()


class Port:
    """One port of this process, and connections to it that end with the test."""

    def __init__(self, port: int) -> None:
        self._port, self._open = port, list[Raw]()

    async def connect(self, data: bytes = b"") -> Raw:
        made = Raw(*await asyncio.open_connection("127.0.0.1", self._port))
        self._open.append(made)
        await made.send(data)
        return made

    def close(self) -> None:
        for each in self._open:
            each.close()


@contextlib.asynccontextmanager
async def user_port(hold: asyncio.Event | None = None, **limits: Any) -> AsyncIterator[Port]:
    """A user port with operations: `/echo` reads its body, `/hold` waits for `hold`, `/pour` and `/whole` are long."""

    async def echo(request: web.Request) -> web.Response:
        return web.Response(body=await request.read())

    async def wait(_: web.Request) -> web.Response:
        assert hold is not None
        await hold.wait()
        return web.Response(text="held")

    async def pour(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(LONG // 65_536):
            await response.write(bytes(65_536))
        await response.write_eof()
        return response

    async def whole(_: web.Request) -> web.Response:
        return web.Response(body=bytes(LONG))

    async def lost(_: web.Request) -> web.Response:
        raise ConnectionResetError("the client closed its connection")

    async def bug(_: web.Request) -> web.StreamResponse:
        return None  # type: ignore[return-value]  # a bug that only aiohttp notices

    routes = [
        web.post("/echo", echo),
        *(web.get(f"/{each.__name__}", each) for each in (pour, whole, lost, bug)),
        web.get("/hold", wait),
    ]
    application = build(Tokens({"user": TOKEN, "administrator": "other"}), routes, Condition)
    usual = {"head_s": NEVER, "stall_s": NEVER, "idle_s": NEVER}
    server = UserServer(application, "127.0.0.1:0", HttpLimits(**{**usual, **limits}))
    await server.start()
    port = Port(int(server.url.rpartition(":")[2]))
    try:
        yield port
    finally:
        port.close()
        await server.stop()


@pytest.mark.parametrize("data", [b"", HALF, WHOLE])
async def test_honest_requests_are_answered_among_many_that_are_not_finished(data: bytes) -> None:
    async with user_port(connections=8) as port:
        for _ in range(40):
            await port.connect(data)
        for _ in range(10):
            assert (await (await port.connect(WHOLE)).answer())[0] == 200


async def test_what_is_half_open_goes_before_what_is_idle() -> None:
    async with user_port(connections=3) as port:
        idle = await port.connect(WHOLE)
        await idle.answer()
        half = [await port.connect(HALF), await port.connect(HALF)]
        newer = await port.connect(WHOLE)
        assert (await newer.answer())[0] == 200
        assert await half[0].closed() == b""
        await idle.send(WHOLE)
        assert (await idle.answer())[0] == 200


async def test_requests_that_are_answered_are_never_pushed_out() -> None:
    hold = asyncio.Event()
    request = f"GET /hold HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()
    async with user_port(hold, connections=2) as port:
        held = [await port.connect(request) for _ in range(2)]
        await asyncio.sleep(0)  # let the server see both
        while (refused := await (await port.connect(WHOLE)).answer())[0] == 200:
            pass  # one of the two had not been read yet
        assert refused[0] == 503 and b'"hint"' in refused[1]
        hold.set()
        assert [(await each.answer())[1] for each in held] == [b"held", b"held"]
        assert (await (await port.connect(WHOLE)).answer())[0] == 200


async def test_a_head_has_a_time_limit_that_bytes_do_not_renew() -> None:
    time = LoopTime()
    async with user_port(head_s=30) as port:
        silent, trickling, second = await port.connect(), await port.connect(HALF), await port.connect(WHOLE)
        await second.answer()
        await second.send(HALF)
        closing = [asyncio.ensure_future(each.closed()) for each in (silent, trickling, second)]
        for _ in range(300):
            await trickling.send(b"x")
            time.advance(1)
            await asyncio.sleep(0.001)
            if closing[1].done():
                break
        assert closing[1].done()
        await time.pass_until_done(*closing)


async def test_a_body_that_stalls_ends_its_connection() -> None:
    async with user_port(stall_s=0.2) as port:
        whole = await port.connect(BODY + b"123456789")
        assert await whole.answer() == (200, b"123456789")
        stalled = await port.connect(BODY + b"1234")
        await stalled.closed()
        await whole.send(WHOLE)  # no limit of that kind between two requests
        assert (await whole.answer())[0] == 200


def asking(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()


@pytest.mark.parametrize("path", ["/pour", "/whole"])
async def test_an_answer_that_is_not_read_ends_its_connection(path: str) -> None:
    with structlog.testing.capture_logs() as lines:
        async with user_port(stall_s=0.2) as port:
            deaf = await port.connect()
            deaf.pause()
            await deaf.send(asking(path))
            async with asyncio.timeout(NEVER):
                while not any(line["event"] == "http.dropped" for line in lines):
                    await asyncio.sleep(0.01)
            deaf.resume()
            assert len(await deaf.closed()) < LONG


async def test_an_answer_that_is_read_slowly_arrives() -> None:
    time = LoopTime()
    async with user_port(stall_s=60) as port:
        slow, received = await port.connect(asking("/pour")), 0
        while received < LONG:
            block = await slow.read(65_536)
            assert block, "the connection was closed"
            received += len(block)
            time.advance(1)  # 256 s in all, with progress all the time


async def test_lost_connections_are_not_logged_and_bugs_of_handlers_are_limited() -> None:
    with structlog.testing.capture_logs() as lines:
        async with user_port() as port:
            for _ in range(20):
                for path in ("/lost", "/bug"):
                    assert (await (await port.connect(asking(path))).answer())[0] == 500
    assert Counter(line["event"] for line in lines) == {"http.failed": PER_ADDRESS}


async def test_an_idle_connection_ends() -> None:
    async with user_port(idle_s=0.2) as port:
        connection = await port.connect(WHOLE)
        assert (await connection.answer())[0] == 200
        await connection.closed()


async def test_a_stranger_cannot_fill_the_log_by_the_user_port() -> None:
    with structlog.testing.capture_logs() as lines:
        async with user_port(connections=4) as port:
            for number in range(200):
                connection = await port.connect(b"GET / HTTP/9.9\r\n\r\n" if number % 2 else HALF)
                if number % 2:
                    await connection.answer()
    counts = Counter(line["event"] for line in lines)
    assert counts["http.malformed"] == counts["http.dropped"] == PER_ADDRESS and counts.total() == 2 * PER_ADDRESS


PATIENT = PeerLimits(first_byte_s=NEVER, handshake_s=NEVER, redial_base_s=0.05, redial_cap_s=0.2, retire_s=0.2)
"""Time alone closes nothing."""


@contextlib.asynccontextmanager
async def besieged(folder: Path, limits: PeerLimits) -> AsyncIterator[tuple[Port, Node, Node]]:
    """The peer port of an island, that island, and a member that knows its address and has no session yet."""
    async with archipelago(folder, 2, mesh=False, limits=limits) as (victim, member):
        assert victim.peers.port is not None
        port = Port(victim.peers.port)
        try:
            yield port, victim, member
        finally:
            port.close()


@pytest.mark.parametrize("data", [b"", b"\x16\x03\x01\x02\x00\x01\x00", b"x"])
async def test_an_honest_handshake_succeeds_among_silent_connections(tmp_path: Path, data: bytes) -> None:
    async with besieged(tmp_path, PATIENT) as (port, victim, member):
        for _ in range(200):
            await port.connect(data)
        member.knows(victim)
        await member.linked(victim)
        await victim.linked(member)
        before = victim.peers.link(member.id)
        for _ in range(200):
            await port.connect(data)
        after = victim.peers.link(member.id)
        assert before is not None and after is not None and after.since == before.since  # it is not pushed out


async def test_a_silent_connection_to_the_peer_port_ends(tmp_path: Path) -> None:
    async with besieged(tmp_path, PeerLimits(first_byte_s=0.2, handshake_s=NEVER)) as (port, _, _):
        await (await port.connect()).closed()


async def test_a_handshake_that_does_not_end_is_ended(tmp_path: Path) -> None:
    async with besieged(tmp_path, PeerLimits(first_byte_s=NEVER, handshake_s=0.2)) as (port, _, _):
        await (await port.connect(b"\x16\x03\x01\x02\x00\x01\x00")).closed()


async def test_a_stranger_cannot_fill_the_log_by_the_peer_port(tmp_path: Path) -> None:
    with structlog.testing.capture_logs() as lines:
        async with besieged(tmp_path, PATIENT) as (port, _, _):
            for _ in range(200):
                await (await port.connect(b"GET / HTTP/1.1\r\n\r\n")).closed()
    assert Counter(line["event"] for line in lines)["peer.not_accepted"] == PER_ADDRESS
