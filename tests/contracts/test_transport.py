"""The contract of `kernel.ports.Peers`, which every transport must fulfil.

A subject runs several islands that know each other, has `register` add handlers to each island
before its sessions start, and can remove an island abruptly. To add a subject, write such a class
and add it to `SUBJECTS`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Protocol

import pytest

from island.errors import BadInput, NotFound, PeerMisbehaved, PeerRefused, Unreachable
from island.kernel.codec import BULK_LIMIT, CONTROL_LIMIT
from island.kernel.ids import IslandId
from island.kernel.ports import BulkStream, Peers, SeededRng
from island.trust.keys import Identity
from tests.islands.sessions import Node, archipelago
from tests.sim.network import Network, SimPeers, Weather
from tests.sim.virtual import SimTasks

Register = Callable[[Peers], None]


class Subject(Protocol):
    """A transport under test."""

    def islands(
        self, folder: Path, count: int, register: Register
    ) -> contextlib.AbstractAsyncContextManager[list[Peers]]:
        """`count` islands, all linked with each other."""

    def cut(self, peers: Peers) -> None:
        """Remove one island from the network abruptly."""


class Tls:
    """Real sessions on loopback."""

    @contextlib.asynccontextmanager
    async def islands(self, folder: Path, count: int, register: Register) -> AsyncIterator[list[Peers]]:
        def on_node(node: Node) -> None:
            register(node.peers)

        async with archipelago(folder, count, register=on_node) as nodes:
            self._nodes = {node.id: node for node in nodes}
            yield [node.peers for node in nodes]

    def cut(self, peers: Peers) -> None:
        node = self._nodes[peers.me]
        node.known.clear()
        node.peers._learned.clear()
        listener = node.peers._listener
        assert listener is not None and listener._socket is not None
        asyncio.get_running_loop().remove_reader(listener._socket)
        for session in list(node.peers._all):
            session._writer.transport.abort()


class Simulated:
    """The simulated network without faults."""

    @contextlib.asynccontextmanager
    async def islands(self, folder: Path, count: int, register: Register) -> AsyncIterator[list[Peers]]:
        network = Network("contract", Weather(delay=(0.001, 0.001)))
        tasks = SimTasks("contract")
        made = [SimPeers(network, Identity.generate(SeededRng(n)).id, tasks) for n in range(count)]
        for peers in made:
            register(peers)
            network.join(peers)
        async with asyncio.timeout(60):
            while any(len(peers.links()) < count - 1 for peers in made):
                await asyncio.sleep(0.01)
        yield list(made)
        await tasks.crash()

    def cut(self, peers: Peers) -> None:
        assert isinstance(peers, SimPeers)
        peers.network.leave(peers)


SUBJECTS: list[type[Subject]] = [Tls, Simulated]


@pytest.fixture(params=SUBJECTS, ids=lambda kind: kind.__name__)
def subject(request: pytest.FixtureRequest) -> Subject:
    made: Subject = request.param()
    return made


async def echo(sender: IslandId, body: bytes) -> bytes:
    return sender.encode() + b":" + body


async def refuse(_sender: IslandId, body: bytes) -> bytes:
    raise NotFound(f"no {body.decode()}", hint="look elsewhere", code="no_such_thing")


async def never(_sender: IslandId, _body: bytes) -> bytes:
    await asyncio.Event().wait()
    return b""


async def bug(_sender: IslandId, _body: bytes) -> bytes:
    raise ZeroDivisionError("a secret detail")


def nothing(_: Peers) -> None:
    return


async def test_links_are_sorted_and_have_the_island(subject: Subject, tmp_path: Path) -> None:
    async with subject.islands(tmp_path, 3, nothing) as islands:
        for peers in islands:
            links = peers.links()
            assert [link.island for link in links] == sorted(other.me for other in islands if other is not peers)
            assert all(peers.link(link.island) is not None and link.since > 1e9 for link in links)
            assert peers.link(peers.me) is None
        first, second, _ = islands
        async with asyncio.timeout(60):
            while True:  # two islands that dial at the same time agree on one session later
                one, other = first.link(second.me), second.link(first.me)
                if one is not None and other is not None and one.dialled != other.dialled:
                    break
                await asyncio.sleep(0.01)


async def test_a_request_has_its_answer_and_the_sender_is_known(subject: Subject, tmp_path: Path) -> None:
    async with subject.islands(tmp_path, 2, lambda peers: peers.on_request("echo", echo)) as (a, b):
        assert await a.request(b.me, "echo", b"x") == a.me.encode() + b":x"
        assert await b.request(a.me, "echo", b"") == b.me.encode() + b":"
        bodies = [str(n).encode() * 100 for n in range(300)]
        answers = await asyncio.gather(*(a.request(b.me, "echo", body) for body in bodies))
        assert answers == [a.me.encode() + b":" + body for body in bodies]


async def test_errors_of_handlers_reach_the_caller(subject: Subject, tmp_path: Path) -> None:
    def register(peers: Peers) -> None:
        peers.on_request("refuse", refuse)
        peers.on_request("never", never)

    async with subject.islands(tmp_path, 2, register) as (a, b):
        with pytest.raises(PeerRefused) as refused:
            await a.request(b.me, "refuse", b"bread")
        assert (refused.value.code, refused.value.message) == ("no_such_thing", "no bread")
        with pytest.raises(PeerRefused) as unknown:
            await a.request(b.me, "unheard-of", b"")
        assert unknown.value.code == "unknown_kind"
        with pytest.raises(Unreachable):
            await a.request(b.me, "never", b"", timeout=0.05)
        assert a.link(b.me) is not None


async def test_a_bug_in_a_handler_is_answered_as_an_internal_error(tmp_path: Path) -> None:
    # For real sessions only: a simulation fails at a bug.
    async with Tls().islands(tmp_path, 2, lambda peers: peers.on_request("bug", bug)) as (a, b):
        with pytest.raises(PeerRefused) as internal:
            await a.request(b.me, "bug", b"")
        assert internal.value.code == "internal_error" and "secret" not in str(internal.value)
        assert a.link(b.me) is not None


async def test_requests_and_answers_of_the_largest_size_pass_and_larger_do_not(
    subject: Subject, tmp_path: Path
) -> None:
    async def blow(_sender: IslandId, body: bytes) -> bytes:
        return b"y" * int(body)

    async def size(_sender: IslandId, body: bytes) -> bytes:
        return str(len(body)).encode()

    def register(peers: Peers) -> None:
        peers.on_request("blow", blow)
        peers.on_request("size", size)

    async with subject.islands(tmp_path, 2, register) as (a, b):
        assert await a.request(b.me, "size", b"x" * CONTROL_LIMIT) == str(CONTROL_LIMIT).encode()
        assert len(await a.request(b.me, "blow", str(CONTROL_LIMIT).encode())) == CONTROL_LIMIT
        with pytest.raises(BadInput):
            await a.request(b.me, "size", b"x" * (CONTROL_LIMIT + 1))
        with pytest.raises(PeerRefused):
            await a.request(b.me, "blow", str(CONTROL_LIMIT + 1).encode())
        assert a.link(b.me) is not None


async def test_pushes_arrive_in_order(subject: Subject, tmp_path: Path) -> None:
    got: asyncio.Queue[tuple[IslandId, bytes]] = asyncio.Queue()

    async def take(sender: IslandId, body: bytes) -> None:
        await got.put((sender, body))

    async with subject.islands(tmp_path, 2, lambda peers: peers.on_push("news", take)) as (a, b):
        assert all(a.push(b.me, "news", str(n).encode()) for n in range(50))
        assert a.push(b.me, "unheard-of", b"is ignored")
        async with asyncio.timeout(60):
            assert [await got.get() for _ in range(50)] == [(a.me, str(n).encode()) for n in range(50)]
        assert not a.push(IslandId("ab" * 32), "news", b"nobody")


async def test_an_unknown_island_is_unreachable(subject: Subject, tmp_path: Path) -> None:
    async with subject.islands(tmp_path, 1, nothing) as (a,):
        with pytest.raises(Unreachable):
            await a.request(IslandId("ab" * 32), "echo", b"")
        with pytest.raises(Unreachable):
            async with a.bulk(IslandId("ab" * 32), "echo", b"", timeout=1):
                pass


async def count_up(_sender: IslandId, body: bytes, stream: BulkStream) -> None:
    for n in range(int(body)):
        await stream.send(n.to_bytes(4, "big") * 1000)


async def mirror(_sender: IslandId, _body: bytes, stream: BulkStream) -> None:
    while (block := await stream.receive()) is not None:
        await stream.send(block)


async def test_a_stream_delivers_blocks_in_order(subject: Subject, tmp_path: Path) -> None:
    async with (
        subject.islands(tmp_path, 2, lambda peers: peers.on_bulk("count", count_up)) as (a, b),
        a.bulk(b.me, "count", b"500") as stream,
    ):
        blocks = []
        while (block := await stream.receive()) is not None:
            blocks.append(block)
        assert blocks == [n.to_bytes(4, "big") * 1000 for n in range(500)]
        assert await stream.receive() is None
        assert (stream.peer, stream.received, stream.sent) == (b.me, 500 * 4000, 0)


async def test_streams_go_both_ways_at_once(subject: Subject, tmp_path: Path) -> None:
    async with subject.islands(tmp_path, 2, lambda peers: peers.on_bulk("mirror", mirror)) as islands:

        async def reflect(one: Peers, other: Peers, letter: bytes) -> None:
            async with one.bulk(other.me, "mirror", b"") as stream, asyncio.TaskGroup() as group:

                async def feed() -> None:
                    for n in range(40):
                        await stream.send(letter * (n * 1000))
                    await stream.finish()

                group.create_task(feed())
                for n in range(40):
                    assert await stream.receive() == letter * (n * 1000)
                assert await stream.receive() is None
                assert stream.sent == stream.received

        a, b = islands
        async with asyncio.timeout(60):
            await asyncio.gather(
                *(reflect(a, b, bytes([65 + n])) for n in range(10)),
                *(reflect(b, a, bytes([97 + n])) for n in range(10)),
            )


async def test_blocks_of_the_largest_size_pass_and_larger_do_not(subject: Subject, tmp_path: Path) -> None:
    async with (
        subject.islands(tmp_path, 2, lambda peers: peers.on_bulk("mirror", mirror)) as (a, b),
        a.bulk(b.me, "mirror", b"") as stream,
    ):
        for _ in range(4):
            await stream.send(b"z" * BULK_LIMIT)
            assert await stream.receive() == b"z" * BULK_LIMIT
        with pytest.raises(BadInput):
            await stream.send(b"z" * (BULK_LIMIT + 1))


async def test_a_slow_reader_stops_its_stream_and_no_other(subject: Subject, tmp_path: Path) -> None:
    sent = 0

    async def pour(_sender: IslandId, _body: bytes, stream: BulkStream) -> None:
        nonlocal sent
        while sent < 100:
            await stream.send(b"x" * 64 * 1024)
            sent += 1

    def register(peers: Peers) -> None:
        peers.on_bulk("pour", pour)
        peers.on_bulk("count", count_up)

    async with (
        subject.islands(tmp_path, 2, register) as (a, b),
        a.bulk(b.me, "pour", b"") as slow,
        a.bulk(b.me, "count", b"200") as quick,
    ):
        assert await slow.receive() is not None
        while await quick.receive() is not None:
            pass
        assert sent <= 8  # the window and what had been taken, never the whole
        rest = 1
        while await slow.receive() is not None:
            rest += 1
        assert rest == 100


async def test_errors_of_bulk_handlers_reach_the_reader_after_the_blocks(subject: Subject, tmp_path: Path) -> None:
    async def some_then_refuse(_sender: IslandId, _body: bytes, stream: BulkStream) -> None:
        await stream.send(b"first")
        raise NotFound("no second", code="no_second")

    async with subject.islands(tmp_path, 2, lambda peers: peers.on_bulk("some", some_then_refuse)) as (a, b):
        async with a.bulk(b.me, "some", b"") as stream:
            assert await stream.receive() == b"first"
            with pytest.raises(PeerRefused) as refused:
                await stream.receive()
            assert (refused.value.code, refused.value.message) == ("no_second", "no second")
        async with a.bulk(b.me, "unheard-of", b"") as stream:
            with pytest.raises(PeerRefused) as unknown:
                await stream.receive()
            assert unknown.value.code == "unknown_kind"


async def test_a_reader_that_leaves_frees_the_handler(subject: Subject, tmp_path: Path) -> None:
    left = asyncio.Event()

    async def pour(_sender: IslandId, _body: bytes, stream: BulkStream) -> None:
        try:
            while True:
                await stream.send(b"x" * 10_000)
        except Unreachable:
            left.set()
            raise

    async with subject.islands(tmp_path, 2, lambda peers: peers.on_bulk("pour", pour)) as (a, b):
        async with a.bulk(b.me, "pour", b"") as stream:
            await stream.receive()
        async with asyncio.timeout(60):
            await left.wait()


async def test_bad_bytes_end_the_session_of_their_sender_only(subject: Subject, tmp_path: Path) -> None:
    async def blame(_sender: IslandId, _body: bytes) -> bytes:
        raise PeerMisbehaved("this is garbage")

    def register(peers: Peers) -> None:
        peers.on_request("blame", blame)
        peers.on_request("echo", echo)

    async with subject.islands(tmp_path, 3, register) as (a, b, c):
        lost = asyncio.Event()
        b.on_link(lambda island, up: lost.set() if island == a.me and not up else None)
        with pytest.raises((PeerRefused, Unreachable)):
            await a.request(b.me, "blame", b"")
        async with asyncio.timeout(60):
            await lost.wait()
        assert await c.request(b.me, "echo", b"") == c.me.encode() + b":"


async def test_the_loss_of_an_island_is_reported_at_once(subject: Subject, tmp_path: Path) -> None:
    def register(peers: Peers) -> None:
        peers.on_request("never", never)
        peers.on_bulk("pour", count_up)

    async with subject.islands(tmp_path, 2, register) as (a, b):
        told: list[tuple[IslandId, bool]] = []
        a.on_link(lambda island, up: told.append((island, up)))
        async with a.bulk(b.me, "pour", b"1000000") as stream:
            await stream.receive()
            asked = asyncio.ensure_future(a.request(b.me, "never", b"", timeout=60))
            await asyncio.sleep(0)
            subject.cut(b)
            with pytest.raises(Unreachable):
                async with asyncio.timeout(60):
                    await asked
            with pytest.raises(Unreachable):
                async with asyncio.timeout(60):
                    while await stream.receive() is not None:
                        pass
        assert told == [(b.me, False)] and a.links() == [] and not a.push(b.me, "x", b"")
