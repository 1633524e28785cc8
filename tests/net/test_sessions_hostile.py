"""Attacks by a member whose session is made: it ends, the member is named, the island goes on."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import structlog

from island.errors import BadInput, PeerMisbehaved
from island.kernel import codec
from island.kernel.ids import IslandId, NetworkId, key_bytes
from island.kernel.ports import BulkStream, SystemClock
from island.kernel.stranger_log import PER_ADDRESS
from island.net import frames
from island.net.bulk import BulkSession, SessionStream
from island.net.frames import FrameType, Ping, Refusal, RequestHead
from island.net.handshake import transcript
from island.net.limits import STREAM_WINDOW, PeerLimits
from tests.islands.sessions import Node, archipelago
from tests.net.test_handshake_hostile import Raw, hello_of, prove


@contextlib.asynccontextmanager
async def session(victim: Node, member: Node, kind: str) -> AsyncIterator[Raw]:
    """A session that the member makes by hand."""
    async with Raw.to(victim.address) as raw:
        hello = hello_of(member, session=kind)
        mine = codec.encode(hello)
        await raw.send(FrameType.HELLO, mine)
        theirs = (await raw.receive()).payload
        await raw.receive()
        payload = transcript("dialler", victim.trust.network or NetworkId(""), mine, theirs, raw.certificate)
        await raw.send(FrameType.PROOF, prove(member.identity, hello, payload))
        assert (await raw.receive()).type is FrameType.READY
        yield raw


def headed(kind: FrameType, number: int, head: RequestHead | bytes, body: bytes = b"") -> bytes:
    encoded = head if isinstance(head, bytes) else codec.encode(head)
    return b"".join(frames.pack_frame(kind, number, len(encoded).to_bytes(2, "big"), encoded, body))


def frame(kind: FrameType, number: int, payload: bytes = b"") -> bytes:
    return b"".join(frames.pack_frame(kind, number, payload))


ECHO = RequestHead(kind="echo")

CONTROL: dict[str, bytes] = {
    "an oversized frame": frames.HEAD.pack(10**8, FrameType.REQUEST, 1),
    "a little too large": frames.HEAD.pack(frames.CONTROL_FRAME + 6, FrameType.REQUEST, 1),
    "an unknown type": frame(FrameType.PING, 0)[:4] + b"\xee" + bytes(4),
    "a bulk frame": frame(FrameType.DATA, 1, b"x"),
    "another hello": frame(FrameType.HELLO, 0, b"\x80"),
    "a request without a head": frame(FrameType.REQUEST, 1),
    "a head that is cut": frame(FrameType.REQUEST, 1, b"\x01\x00abc"),
    "a head of garbage": headed(FrameType.REQUEST, 1, b"\xc1\xc1"),
    "a head nested deep": headed(FrameType.REQUEST, 1, b"\x91" * 900 + b"\x90"),
    "a kind that is none": headed(FrameType.REQUEST, 1, codec.encode({"kind": "../x"})),
    "too many hops": headed(FrameType.REQUEST, 1, codec.encode({"kind": "echo", "hops": 3})),
    "a body that is too large": headed(FrameType.REQUEST, 1, ECHO, b"x" * (64 * 1024 + 1)),
    "an id used again": headed(FrameType.REQUEST, 7, ECHO) * 2,
    "an id that falls": headed(FrameType.REQUEST, 7, ECHO) + headed(FrameType.REQUEST, 6, ECHO),
    "an answer to nothing": frame(FrameType.ANSWER, 1, b"x"),
    "an error to nothing": frame(FrameType.ERROR, 1, b"\x80"),
    "a pong to nothing": frame(FrameType.PONG, 0, codec.encode(Ping(nonce=5))),
    "a ping of garbage": frame(FrameType.PING, 0, b"\xc1"),
    "a ping too large": frame(FrameType.PING, 0, b"\xc4\xff" + bytes(255)),
    "a goodbye of garbage": frame(FrameType.GOODBYE, 0, b"\xc1"),
    "an endless error": frame(FrameType.GOODBYE, 0, codec.encode({"code": "x", "message": "y" * 5000})),
}

BULK: dict[str, bytes] = {
    "an oversized frame": frames.HEAD.pack(10**8, FrameType.DATA, 1),
    "a control frame": headed(FrameType.REQUEST, 1, ECHO),
    "a stream that was not opened": frame(FrameType.DATA, 5, b"x"),
    "a stream of the other side": frame(FrameType.DATA, 2, b"x"),
    "stream zero": frame(FrameType.DATA, 0, b"x"),
    "an id of the other side": headed(FrameType.OPEN, 2, ECHO),
    "an id used again": headed(FrameType.OPEN, 1, ECHO) * 2,
    "more than the credit": headed(FrameType.OPEN, 1, RequestHead(kind="hold"))
    + frame(FrameType.DATA, 1, bytes(STREAM_WINDOW))
    + frame(FrameType.DATA, 1, b"x"),
    "small blocks without end": headed(FrameType.OPEN, 1, RequestHead(kind="hold")) + frame(FrameType.DATA, 1) * 5000,
    "a block after the end": headed(FrameType.OPEN, 1, RequestHead(kind="hold"))
    + frame(FrameType.END, 1)
    + frame(FrameType.DATA, 1, b"x"),
    "credit out of nowhere": headed(FrameType.OPEN, 1, RequestHead(kind="hold"))
    + frame(FrameType.CREDIT, 1, b"\0\0\0\1"),
    "malformed CREDIT frame": headed(FrameType.OPEN, 1, RequestHead(kind="hold")) + frame(FrameType.CREDIT, 1, b"\1"),
    "an error of garbage": headed(FrameType.OPEN, 1, RequestHead(kind="hold")) + frame(FrameType.ERROR, 1, b"\xc1"),
}


async def hold(_sender: str, _body: bytes, stream: BulkStream) -> None:
    await asyncio.Event().wait()


def handlers(node: Node) -> None:
    async def echo(_sender: str, body: bytes) -> bytes:
        return body

    node.peers.on_request("echo", echo)
    node.peers.on_bulk("hold", hold)
    node.peers.on_bulk("echo", hold)


async def attack(folder: Path, kind: str, data: bytes) -> None:
    with structlog.testing.capture_logs() as logs:
        async with archipelago(folder, 3, mesh=False, register=handlers) as (victim, member, honest):
            honest.knows(victim)
            await honest.linked(victim)
            async with session(victim, member, kind) as raw:
                raw.writer.write(data)
                said = await raw.goodbye()
                assert said.code != "internal_error"
            await victim.unlinked(member)
            assert await honest.peers.request(victim.id, "echo", b"well") == b"well"
    named = [line for line in logs if line["event"] == "peer.misbehaved"]
    assert [(line["peer"], line["key"]) for line in named] == [(member.name, member.id)]


@pytest.mark.parametrize("what", CONTROL)
async def test_hostile_frames_on_a_control_session(tmp_path: Path, what: str) -> None:
    await attack(tmp_path, "control", CONTROL[what])


@pytest.mark.parametrize("what", BULK)
async def test_hostile_frames_on_a_bulk_session(tmp_path: Path, what: str) -> None:
    await attack(tmp_path, "bulk", BULK[what])


async def test_a_repeat_offender_is_let_in_only_after_a_pause(tmp_path: Path) -> None:
    limits = PeerLimits(pause_s=600, redial_base_s=0.05, redial_cap_s=0.1)
    async with archipelago(tmp_path, 2, mesh=False, limits=limits) as (victim, member):
        for _ in range(2):  # the first is forgiven
            async with session(victim, member, "control") as raw:
                raw.writer.write(CONTROL["an oversized frame"])
                await raw.goodbye()
        async with Raw.to(victim.address) as raw:
            hello = hello_of(member)
            mine = codec.encode(hello)
            await raw.send(FrameType.HELLO, mine)
            theirs = (await raw.receive()).payload
            await raw.receive()
            payload = transcript("dialler", victim.trust.network or NetworkId(""), mine, theirs, raw.certificate)
            await raw.send(FrameType.PROOF, prove(member.identity, hello, payload))
            assert (await raw.goodbye()).code == "paused"
        victim.clock.monotonic = lambda: SystemClock().monotonic() + 600  # type: ignore[method-assign]  # its clock, later
        member.knows(victim)
        await victim.linked(member)


async def test_more_requests_at_once_than_there_may_be_are_refused(tmp_path: Path) -> None:
    running = 0

    def register(node: Node) -> None:
        async def never(_sender: str, _body: bytes) -> bytes:
            nonlocal running
            running += 1
            await asyncio.Event().wait()
            return b""

        node.peers.on_request("never", never)

    limits = PeerLimits(calls=4)
    async with archipelago(tmp_path, 2, mesh=False, register=register, limits=limits) as (victim, member):
        async with session(victim, member, "control") as raw:
            for number in range(1, 12):
                raw.writer.write(headed(FrameType.REQUEST, number, RequestHead(kind="never")))
            refused = [await raw.receive() for _ in range(3)]
        assert [answer.type for answer in refused] == [FrameType.ERROR] * 3 and running == 8
        assert all(b"busy" in answer.payload for answer in refused)


async def test_a_bug_in_a_handler_cannot_be_used_to_fill_the_log(tmp_path: Path) -> None:
    def register(node: Node) -> None:
        async def bug(_sender: str, _body: bytes) -> bytes:
            raise ZeroDivisionError

        node.peers.on_request("bug", bug)

    with structlog.testing.capture_logs() as logs:
        async with (
            archipelago(tmp_path, 2, mesh=False, register=register) as (victim, member),
            session(victim, member, "control") as raw,
        ):
            for number in range(1, 20):
                raw.writer.write(headed(FrameType.REQUEST, number, RequestHead(kind="bug")))
                assert codec.decode((await raw.receive()).payload, Refusal).code == "internal_error"
    failed = [line for line in logs if line["event"] == "peer.handler_failed"]
    assert [line["key"] for line in failed] == [member.id] * PER_ADDRESS


async def test_one_who_asks_and_never_reads_is_cut_off(tmp_path: Path) -> None:
    def register(node: Node) -> None:
        async def blow(_sender: str, _body: bytes) -> bytes:
            return bytes(60_000)

        node.peers.on_request("blow", blow)

    limits = PeerLimits(ping_s=0.1, dead_s=0.5)
    async with archipelago(tmp_path, 2, mesh=False, register=register, limits=limits) as (victim, member):
        async with session(victim, member, "control") as raw:
            raw.writer.transport.pause_reading()  # type: ignore[attr-defined]  # StreamWriter's transport reads too
            number = 0
            with contextlib.suppress(OSError):
                while victim.peers.link(member.id) is not None:
                    for _ in range(50):
                        number += 1
                        raw.writer.write(headed(FrameType.REQUEST, number, RequestHead(kind="blow")))
                    await asyncio.sleep(0.01)
            assert number
        await victim.unlinked(member)


async def test_a_silent_peer_is_dead_after_a_while(tmp_path: Path) -> None:
    limits = PeerLimits(ping_s=0.1, dead_s=0.3)
    async with archipelago(tmp_path, 2, mesh=False, limits=limits) as (victim, member):
        told, lost = list[bool](), asyncio.Event()

        def tell(_island: IslandId, up: bool) -> None:
            told.append(up)
            if not up:
                lost.set()

        victim.peers.on_link(tell)
        async with session(victim, member, "control"), asyncio.timeout(60):  # never pings, never hangs up
            await lost.wait()
        assert told == [True, False]


@pytest.mark.parametrize("limits", [PeerLimits(push_queue=10), PeerLimits(push_bytes=10_000)])
async def test_a_flood_of_pushes_is_dropped_not_kept(tmp_path: Path, limits: PeerLimits) -> None:
    gate, taken = asyncio.Event(), 0

    def register(node: Node) -> None:
        async def take(_sender: str, _body: bytes) -> None:
            nonlocal taken
            await gate.wait()
            taken += 1

        async def echo(_sender: str, body: bytes) -> bytes:
            return body

        node.peers.on_push("news", take)
        node.peers.on_request("echo", echo)

    async with archipelago(tmp_path, 2, mesh=False, register=register, limits=limits) as (victim, member):
        async with session(victim, member, "control") as raw:
            for _ in range(100):
                raw.writer.write(headed(FrameType.PUSH, 0, RequestHead(kind="news"), bytes(1000)))
            raw.writer.write(headed(FrameType.REQUEST, 1, ECHO, b"still here"))
            assert (await raw.receive()).payload == b"still here"
            gate.set()
            async with asyncio.timeout(60):
                while taken < 10:
                    await asyncio.sleep(0)
            raw.writer.write(headed(FrameType.REQUEST, 2, ECHO))
            await raw.receive()
        assert 10 <= taken <= 12


async def test_pushes_to_one_who_does_not_read_are_turned_away(tmp_path: Path) -> None:
    limits = PeerLimits(write_queue=256 * 1024)
    async with (
        archipelago(tmp_path, 2, mesh=False, limits=limits) as (victim, member),
        session(victim, member, "control") as raw,
    ):
        raw.writer.transport.pause_reading()  # type: ignore[attr-defined]  # as above
        await victim.linked(member)
        pushed = 0
        while victim.peers.push(member.id, "news", bytes(60_000)):
            pushed += 1
            await asyncio.sleep(0)
        assert 0 < pushed < 1000


class _Sent(BulkSession):
    """A session that only notes what it would send."""

    def __init__(self) -> None:
        self.island, self.credits = "ab" * 32, list[int]()  # type: ignore[assignment]  # a name is enough here

    def write_credit(self, number: int, count: int) -> None:
        self.credits.append(count)


async def test_credit_comes_back_when_the_reader_waits_so_that_a_large_block_always_fits() -> None:
    session = _Sent()
    stream = SessionStream(session, 1)
    stream.on_data(bytes(1000))
    assert await stream.receive() == bytes(1000) and session.credits == []
    waiting = asyncio.ensure_future(stream.receive())
    await asyncio.sleep(0)
    assert session.credits == [1000]
    stream.on_data(bytes(STREAM_WINDOW))
    assert await waiting == bytes(STREAM_WINDOW)


# --- room for sessions ---------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def crowded(folder: Path, streams: int) -> AsyncIterator[tuple[Node, Node]]:
    """An island with room for 6 sessions, 2 of them reserved, and an honest one. A third one has 4 bulk sessions."""
    limits = PeerLimits(sessions=6, reserved=2, redial_base_s=0.05, redial_cap_s=0.1)
    opening = headed(FrameType.OPEN, 1, RequestHead(kind="hold")) * streams
    async with (
        archipelago(folder, 3, mesh=False, register=handlers, limits=limits) as (victim, member, honest),
        contextlib.AsyncExitStack() as stack,
    ):
        for _ in range(4):
            raw = await stack.enter_async_context(session(victim, member, "bulk"))
            raw.writer.write(opening)
        async with asyncio.timeout(60):
            while [len(each._streams) for each in victim.peers._bulk.get(member.id, [])] != [streams] * 4:
                await asyncio.sleep(0.01)
        yield victim, honest


async def test_an_idle_bulk_session_ends_for_another_session(tmp_path: Path) -> None:
    async with crowded(tmp_path, 0) as (victim, honest):
        honest.knows(victim)
        await honest.linked(victim)
        async with honest.peers.bulk(victim.id, "echo", b""):
            pass


async def test_room_is_reserved_for_control_sessions_of_known_islands(tmp_path: Path) -> None:
    async with crowded(tmp_path, 1) as (victim, honest):
        honest.knows(victim)
        async with asyncio.timeout(60):
            while "too many sessions" not in honest.peers._last_error.get(victim.id, ""):
                await asyncio.sleep(0.01)
        victim.known[honest.id] = ["127.0.0.1:1"]
        await honest.linked(victim)


async def test_a_listener_closes_idle_bulk_sessions_too(tmp_path: Path) -> None:
    limits = PeerLimits(idle_s=0.1, ping_s=0.05)
    async with (
        archipelago(tmp_path, 2, mesh=False, limits=limits) as (victim, member),
        session(victim, member, "bulk") as raw,
    ):
        assert (await raw.goodbye()).code == "idle"


# --- relaying ----------------------------------------------------------------------------------


def strict(node: Node) -> None:
    """Two kinds that are relayed, and one that is not; a body that is not a `Ping` is a violation."""

    async def answer(_sender: IslandId, body: bytes) -> bytes:
        codec.decode(body, Ping)
        return b"well"

    async def serve(_sender: IslandId, body: bytes, stream: BulkStream) -> None:
        codec.decode(body, Ping)
        await stream.finish()

    node.peers.on_request("read", answer, relay=True)
    node.peers.on_bulk("pour", serve, relay=True)
    node.peers.on_request("private", answer)


@pytest.mark.parametrize(
    ("kind", "opening"),
    [
        ("control", (FrameType.REQUEST, "read")),
        ("bulk", (FrameType.OPEN, "pour")),
    ],
)
async def test_a_relay_is_not_blamed_for_what_it_relays(
    tmp_path: Path, kind: str, opening: tuple[FrameType, str]
) -> None:
    limits = PeerLimits(pause_s=600, redial_base_s=0.05, redial_cap_s=0.1)
    with structlog.testing.capture_logs() as logs:
        async with archipelago(tmp_path, 3, mesh=False, register=strict, limits=limits) as (relayer, member, server):
            relayer.knows(server)
            await relayer.linked(server)
            before = relayer.peers.link(server.id)
            async with session(relayer, member, kind) as raw:
                for number in (1, 3, 5):
                    head = RequestHead(kind=opening[1], to=key_bytes(server.id), hops=1)
                    raw.writer.write(headed(opening[0], number, head, b"\xc1 garbage"))
                    refused = await raw.receive()
                    assert (
                        refused.type is FrameType.ERROR and codec.decode(refused.payload, Refusal).code == "malformed"
                    )
            assert await relayer.peers.request(server.id, "read", codec.encode(Ping(nonce=1))) == b"well"
            after = relayer.peers.link(server.id)
            assert before is not None and after is not None and after.since == before.since
    assert not [line for line in logs if line["event"] == "peer.misbehaved"]


@pytest.mark.parametrize("head", [RequestHead(kind="private", hops=2), RequestHead(kind="read", hops=1)])
async def test_only_a_relayed_public_read_is_excused(tmp_path: Path, head: RequestHead) -> None:
    async with (
        archipelago(tmp_path, 2, mesh=False, register=strict) as (victim, member),
        session(victim, member, "control") as raw,
    ):
        raw.writer.write(headed(FrameType.REQUEST, 1, head, b"\xc1 garbage"))
        assert (await raw.receive()).type is FrameType.ERROR
        assert (await raw.goodbye()).code == "malformed"


# --- the log -------------------------------------------------------------------------------------


async def test_a_member_cannot_fill_the_log_with_sessions_or_pushes(tmp_path: Path) -> None:
    def register(node: Node) -> None:
        async def refuse(_sender: IslandId, _body: bytes) -> None:
            raise BadInput("not that")

        async def echo(_sender: IslandId, body: bytes) -> bytes:
            return body

        node.peers.on_push("news", refuse)
        node.peers.on_request("echo", echo)

    with structlog.testing.capture_logs() as lines:
        async with archipelago(tmp_path, 2, mesh=False, register=register) as (victim, member):
            for _ in range(3 * PER_ADDRESS):
                async with session(victim, member, "control") as raw:
                    raw.writer.write(headed(FrameType.PUSH, 0, RequestHead(kind="news")) * 2)
                    raw.writer.write(headed(FrameType.REQUEST, 1, ECHO))
                    await raw.receive()
                await victim.unlinked(member)
    counts = Counter(line["event"] for line in lines if line.get("key") == member.id)
    assert counts == {"peer.linked": PER_ADDRESS, "peer.lost": PER_ADDRESS, "peer.push_failed": PER_ADDRESS}


async def test_an_island_whose_answer_is_blamed_loses_its_sessions_and_is_paused(tmp_path: Path) -> None:
    async with archipelago(tmp_path, 2, register=handlers) as (victim, member):
        for offence in (1, 2):
            await victim.linked(member)
            assert await victim.peers.request(member.id, "echo", b"x") == b"x"
            victim.peers.blame(member.id, PeerMisbehaved("a false answer"))
            assert victim.peers.link(member.id) is None
            assert bool(victim.peers.paused(member.id)) is (offence == 2)


async def test_a_relay_is_not_blamed_for_an_answer_that_it_relays(tmp_path: Path) -> None:
    def served(node: Node) -> None:
        handlers(node)
        node.peers._handlers.relayed.add("echo")

    nobody_listens = {1: "", 2: ""}
    async with archipelago(
        tmp_path, 3, mesh=False, register=served, listen=lambda n: nobody_listens.get(n, "127.0.0.1:0")
    ) as (relay, one, other):
        for node in (one, other):
            node.knows(relay)
            await node.linked(relay)
        await relay.linked(one, other)
        assert await one.peers.request(other.id, "echo", b"x") == b"x"
        one.peers.blame(other.id, PeerMisbehaved("a false answer"))
        assert one.peers.link(relay.id) is not None
        assert not one.peers.paused(relay.id)
        assert await one.peers.request(other.id, "echo", b"x") == b"x"
