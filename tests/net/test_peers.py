"""Sessions between honest islands: joining, redialling, NAT, passing on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from island.cli.demo.demo_island import free_ports
from island.errors import BadInput, ConfigError, Conflict, Denied, PeerRefused, Unreachable
from island.kernel.codec import encode
from island.kernel.host_resolver import HostResolver, NetworkAddress
from island.kernel.ids import IslandId, key_bytes
from island.kernel.ports import BulkStream, SystemClock, SystemRng
from island.kernel.stranger_log import PER_ADDRESS
from island.kernel.work import ThreadWorkers
from island.net import peers, relay
from island.net.attempts import SilentAddresses
from island.net.bulk import BandwidthMeter
from island.net.frames import DialBack, RequestHead
from island.net.handshake import WrongKey
from island.net.limits import PeerLimits
from island.net.listener import dial, hang_up, own_addresses
from island.net.tls import dialler_context, listener_context
from island.trust.keys import Identity
from tests.islands.sessions import QUICK, Node, admit, archipelago
from tests.standins.member import logged


def served(node: Node) -> None:
    """A public read, a private one, and their bulk kinds."""

    async def echo(_sender: IslandId, body: bytes) -> bytes:
        return node.name.encode() + b":" + body

    async def pour(_sender: IslandId, body: bytes, stream: BulkStream) -> None:
        for n in range(int(body)):
            await stream.send(n.to_bytes(4, "big") * 5000)

    async def mirror(_sender: IslandId, _body: bytes, stream: BulkStream) -> None:
        while (block := await stream.receive()) is not None:
            await stream.send(block)

    async def deny(_sender: IslandId, _body: bytes, _stream: BulkStream) -> None:
        raise Denied("not for you")

    node.peers.on_request("echo", echo)
    node.peers.on_request("public", echo, relay=True)
    node.peers.on_bulk("pour", pour, relay=True)
    node.peers.on_bulk("mirror", mirror, relay=True)
    node.peers.on_bulk("deny", deny, relay=True)
    node.peers.on_bulk("private", pour)


async def read(one: Node, other: Node, kind: str = "pour", count: int = 50) -> list[bytes]:
    blocks = []
    async with one.peers.bulk(other.id, kind, str(count).encode()) as stream:
        while (block := await stream.receive()) is not None:
            blocks.append(block)
    return blocks


EXPECTED = [n.to_bytes(4, "big") * 5000 for n in range(50)]


# --- joining -------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def strangers(folder: Path, **changes: Any) -> AsyncIterator[tuple[Node, Node, Node]]:
    """Three islands of no network."""
    nodes = [Node(folder / name, name, register=served, **changes) for name in ("a", "b", "c")]
    async with contextlib.AsyncExitStack() as stack:
        for node in nodes:
            await stack.enter_async_context(node.running())
        yield nodes[0], nodes[1], nodes[2]


async def test_join_admits_links_and_can_be_repeated(tmp_path: Path) -> None:
    async with strangers(tmp_path) as (a, b, c):
        word = await a.trust.invite(a.peers.local_addresses())
        assert await b.peers.join(word) == a.id
        assert b.peers.link(a.id) is not None and b.trust.network == a.trust.network
        assert await b.peers.request(a.id, "echo", b"x") == b"a:x"
        await a.linked(b)
        await b.peers.join(word)
        with pytest.raises(PeerRefused) as used_up:
            await c.peers.join(word)
        assert used_up.value.code == "invitation_used_up" and "new invitation" in used_up.value.hint
        assert c.trust.network is None
        # One that was admitted invites in turn.
        await c.peers.join(await b.trust.invite(b.peers.local_addresses()))
        assert c.trust.network == a.trust.network


async def test_join_says_what_is_wrong_with_an_invitation(tmp_path: Path) -> None:
    async with strangers(tmp_path) as (a, b, c):
        word = await a.trust.invite(a.peers.local_addresses())
        with pytest.raises(BadInput) as altered:
            await b.peers.join(word[:-3] + "xyz")
        assert altered.value.code == "invitation_altered"
        with pytest.raises(BadInput, match="itself"):
            await a.peers.join(word)
        other = await c.trust.invite(c.peers.local_addresses())
        await b.peers.join(word)
        with pytest.raises(Conflict, match="another archipelago"):
            await b.peers.join(other)
        with pytest.raises(Conflict, match="another archipelago"):
            await c.peers.join(word)


async def test_join_says_that_the_inviter_cannot_be_dialled(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{taken.getsockname()[1]}"
        async with strangers(tmp_path) as (a, b, c):
            with pytest.raises(Unreachable) as refused:
                await b.peers.join(await a.trust.invite([nobody]))
            assert nobody in refused.value.message and "refused" in refused.value.message
            assert "loopback" in refused.value.hint
            with pytest.raises(Unreachable, match="unknown host name"):
                await b.peers.join(await a.trust.invite(["no-such-host.invalid:1"]))
            # Another island is there now, of no network, and says so.
            with pytest.raises(PeerRefused, match="does not belong to an archipelago"):
                await b.peers.join(await a.trust.invite(c.peers.local_addresses()))
            # A bad address before a good one does not matter.
            await b.peers.join(await a.trust.invite([nobody, *a.peers.local_addresses()]))


async def test_join_when_the_inviter_cannot_be_reached_any_more_is_told(tmp_path: Path) -> None:
    async with strangers(tmp_path) as (a, b, _):
        word = await a.trust.invite(a.peers.local_addresses(), valid_s=1)
        a.trust._clock.wall = lambda: SystemClock().wall() + 60  # type: ignore[method-assign]  # its clock, later
        with pytest.raises(PeerRefused) as expired:
            await b.peers.join(word)
        assert expired.value.code == "invitation_expired"


# --- the mesh ------------------------------------------------------------------------------


async def test_islands_that_dial_at_once_keep_one_session(tmp_path: Path) -> None:
    for attempt in range(5):
        async with archipelago(tmp_path / str(attempt), 3, register=served, mesh=False) as nodes:
            for node in nodes:
                node.knows(*(other for other in nodes if other is not node))
            async with asyncio.timeout(60):  # until those that were replaced have ended
                while not all(settled(node, other) for node in nodes for other in nodes if other is not node):
                    await asyncio.sleep(0.01)
            for node in nodes:
                for other in nodes:
                    if other is not node:
                        assert await node.peers.request(other.id, "echo", b"") == other.name.encode() + b":"


def settled(one: Node, other: Node) -> bool:
    """Whether two islands have one session, of which both think the same."""
    mine, theirs = one.peers.link(other.id), other.peers.link(one.id)
    between = [session for session in one.peers._all if session.island == other.id]
    return mine is not None and theirs is not None and mine.dialled != theirs.dialled and len(between) == 1


async def test_both_sides_know_the_round_trip(tmp_path: Path) -> None:
    async with archipelago(tmp_path, 2) as (a, b):
        async with asyncio.timeout(60):
            while True:
                links = (a.peers.link(b.id), b.peers.link(a.id))
                if all(link is not None and link.rtt is not None for link in links):
                    break
                await asyncio.sleep(0.01)
        assert all(link is not None and link.rtt is not None and 0 < link.rtt < 5 for link in links)


async def test_a_restart_on_the_same_port_is_redialled(tmp_path: Path) -> None:
    async with archipelago(tmp_path, 1, register=served) as (a,):
        told: list[tuple[IslandId, bool]] = []
        a.peers.on_link(lambda island, up: told.append((island, up)))
        identity, listen = Identity.generate(SystemRng()), f"127.0.0.1:{free_ports(1)[0]}"
        for start in range(3):
            b = Node(tmp_path / "b", "b", listen=listen, identity=identity, register=served)
            if start == 0:
                await admit(a, b)
            async with b.running():
                a.knows(b)
                await a.linked(b)
                assert await a.peers.request(b.id, "echo", b"1") == b"b:1"
            await a.unlinked(b)
        assert told == [(b.id, True), (b.id, False)] * 3


async def test_two_programs_with_one_key_are_reported_by_their_peer_and_by_both(tmp_path: Path) -> None:
    async with archipelago(tmp_path, 2) as (a, b):
        clone = Node(tmp_path / "clone", b.name, identity=b.identity)
        async with clone.running():
            assert b.trust.network is not None and b.trust.chain is not None
            await clone.trust.adopt(b.trust.network, b.trust.chain)
            clone.knows(a)  # now both dial `a` whenever their session was replaced
            async with asyncio.timeout(60):
                while not (a.peers.problems() and b.peers.problems() and clone.peers.problems()):
                    await asyncio.sleep(0.05)
            assert a.peers.problems()[0].startswith(f"two running programs use the key of {b.name} ({b.id[:10]})")
            for each in (b, clone):
                (problem,) = each.peers.problems()
                assert problem.startswith("another running program uses this island's key: its sessions with island-0")


async def test_a_changed_address_is_dialled_at_once(tmp_path: Path) -> None:
    slow = PeerLimits(redial_base_s=3600, redial_cap_s=3600)
    async with archipelago(tmp_path, 2, mesh=False, limits=slow) as (a, b):
        a.known[b.id] = ["127.0.0.1:1"]
        a.peers.connect_soon()
        async with asyncio.timeout(60):
            while b.id not in a.peers._last_error:
                await asyncio.sleep(0.01)
        a.knows(b)
        await a.linked(b)


async def test_hints_are_tried_after_the_addresses_of_an_island(tmp_path: Path) -> None:
    async with Node(tmp_path / "a", "a", listen="").running() as a, Node(tmp_path / "b", "b").running() as b:
        await admit(b, a)
        own = [f"127.0.0.1:{port}" for port in free_ports(8)]
        a.known[b.id], a.hints[b.id] = own, [b.address]
        assert a.peers.targets() == {b.id: [*own, b.address]}
        a.peers.connect_soon()
        await a.linked(b)


async def test_a_false_hint_links_with_nobody_and_does_not_fill_the_log(tmp_path: Path) -> None:
    """Somebody announces the address of c as that of b."""
    async with (
        Node(tmp_path / "a", "a", listen="").running() as a,
        Node(tmp_path / "b", "b").running() as b,
        Node(tmp_path / "c", "c").running() as c,
    ):
        await admit(b, a, c)
        with logged() as logs:
            for _ in range(2 * PER_ADDRESS):
                with pytest.raises(WrongKey):
                    await a.peers.dial_control(b.id, [c.address])
        assert len(logs.of("peer.misbehaved")) == PER_ADDRESS
        assert a.peers.links() == [] and a.peers.paused(b.id) == 0
        a.hints[b.id] = [c.address, b.address]
        a.peers.connect_soon()
        await a.linked(b)


async def test_the_status_tells_that_more_islands_are_known_than_are_dialled(tmp_path: Path) -> None:
    async with archipelago(tmp_path, 3, mesh=False, limits=PeerLimits(mesh=1, redial_base_s=0.05)) as (a, b, c):
        a.knows(b)
        await a.linked(b)
        assert a.peers.problems() == []
        a.knows(c)
        assert a.peers.problems()[0].startswith("1 of 2 known islands are linked")


async def test_an_island_whose_address_leads_to_itself_notices(tmp_path: Path) -> None:
    async with archipelago(tmp_path, 2, mesh=False) as (a, b):
        a.known[b.id] = [a.address]
        a.peers.connect_soon()
        async with asyncio.timeout(60):
            while (b.id, a.address) not in a.peers._not_there:
                await asyncio.sleep(0.01)
        a.known[b.id] = [a.address, b.address]
        a.peers.connect_soon()
        await a.linked(b)


async def test_a_port_in_use_is_said(tmp_path: Path) -> None:
    async with archipelago(tmp_path, 1) as (a,):
        other = Node(tmp_path / "other", "other", listen=a.address)
        with pytest.raises(ExceptionGroup) as caught:
            async with other.running():
                pass
        [error] = caught.value.exceptions
        assert isinstance(error, ConfigError) and "listen.peer" in str(error) and "cannot be bound" in str(error)


async def test_stop_ends_the_sessions_and_tells_the_others(tmp_path: Path) -> None:
    async with archipelago(tmp_path, 3, register=served) as (a, b, c):
        async with b.peers.bulk(a.id, "pour", b"100000") as stream:
            await stream.receive()
            async with asyncio.timeout(60):
                await a.peers.stop()
            with pytest.raises(Unreachable):
                while await stream.receive() is not None:
                    pass
        await b.unlinked(a)
        await c.unlinked(a)
        assert b.peers.link(c.id) is not None


SILENT_KILL = """
import asyncio, sys
from pathlib import Path
from tests.islands.sessions import Node
from island.trust.keys import Identity

async def main():
    folder = Path(sys.argv[1])
    node = Node(folder, "victim", identity=Identity.load(folder / "key"))
    async with node.running():
        print(node.address, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_sigkill_of_the_other_side_is_noticed_at_once(tmp_path: Path) -> None:
    async with archipelago(tmp_path, 1) as (a,):
        victim = Node(tmp_path / "victim", "victim")
        victim.identity.save(tmp_path / "victim" / "key")
        await admit(a, victim)
        victim.state.close()
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            SILENT_KILL,
            str(tmp_path / "victim"),
            stdout=asyncio.subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        try:
            assert child.stdout is not None
            async with asyncio.timeout(60):
                while b"127.0.0.1" not in (line := await child.stdout.readline()):
                    pass
            a.known[victim.id] = [line.decode().strip()]
            a.peers.connect_soon()
            await a.linked(victim)
            os.kill(child.pid, signal.SIGKILL)
            await a.unlinked(victim)  # not by the keepalive, which takes longer
        finally:
            if child.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    child.kill()
            await child.wait()


# --- bulk sessions where one or both cannot be dialled ---------------------------------------


def nat(*which: int) -> Any:
    """`listen` of an archipelago where some do not listen."""
    return lambda n: "" if n in which else "127.0.0.1:0"


async def test_streams_from_one_who_cannot_be_dialled(tmp_path: Path) -> None:
    async with archipelago(tmp_path, 2, mesh=False, register=served, listen=nat(1)) as (a, hidden):
        assert hidden.peers.local_addresses() == [] and hidden.peers.port is None
        hidden.knows(a)
        await a.linked(hidden)
        assert await read(a, hidden) == EXPECTED
        assert await read(hidden, a) == EXPECTED
        assert len(a.peers._all) == 2  # one control, one bulk for both directions
        assert all(not session.dialled for session in a.peers._all)


async def test_streams_where_an_advertised_address_does_not_work(tmp_path: Path) -> None:
    async with archipelago(tmp_path, 2, mesh=False, register=served, listen=nat(1)) as (a, hidden):
        hidden.knows(a)
        await a.linked(hidden)
        a.known[hidden.id] = ["127.0.0.1:1"]
        assert await read(a, hidden) == EXPECTED


@contextlib.asynccontextmanager
async def silent_address() -> AsyncIterator[str]:
    """An address where connections are accepted and nothing ever answers."""
    connections: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, writer: connections.append(writer), "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for each in connections:
            each.transport.abort()


PATIENT = PeerLimits(redial_base_s=0.05, redial_cap_s=0.2, connect_s=3600, handshake_s=3600, head_start_s=0.05)
"""Dialling an address that does not answer takes longer than any test."""


async def test_addresses_that_do_not_answer_do_not_delay_a_session_from_the_other_side(tmp_path: Path) -> None:
    async with (
        silent_address() as silent,
        archipelago(tmp_path, 2, mesh=False, register=served, listen=nat(1), limits=PATIENT) as (a, hidden),
    ):
        hidden.knows(a)
        await a.linked(hidden)
        a.known[hidden.id] = [silent]
        assert await read(a, hidden) == EXPECTED


async def test_addresses_that_do_not_answer_do_not_delay_the_relay(tmp_path: Path) -> None:
    async with (
        silent_address() as silent,
        archipelago(tmp_path, 3, mesh=False, register=served, listen=nat(1, 2), limits=PATIENT) as (third, one, other),
    ):
        for node in (one, other):
            node.knows(third)
            await node.linked(third)
            await third.linked(node)
        one.known[other.id] = [silent]
        assert await read(one, other) == EXPECTED


class TwoAddresses(HostResolver):
    """Resolves every name to two addresses."""

    def __init__(self, *addresses: tuple[str, int]) -> None:
        super().__init__(ThreadWorkers())
        self._addresses = addresses

    async def resolve(self, host: str, port: int, **_: Any) -> list[NetworkAddress]:
        return [NetworkAddress(socket.AF_INET, socket.IPPROTO_TCP, each) for each in self._addresses]


async def test_a_host_is_dialled_whose_first_address_drops_packets(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        hole = stack.enter_context(socket.socket())
        hole.bind(("127.0.0.1", 0))
        hole.listen(0)
        for _ in range(3):  # they fill its queue; later ones are not answered
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(hole.getsockname())
        async with archipelago(tmp_path, 1) as (a,):
            names = TwoAddresses(hole.getsockname(), ("127.0.0.1", a.peers.port or 0))
            _, writer = await dial("two.example:1", dialler_context(), QUICK, names)
            await hang_up(writer)


class HalfShaken(asyncio.Protocol):
    """Does the server's part of a TLS handshake. What comes then has no answer."""

    CONTEXT = listener_context(Identity.generate(SystemRng()))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = self.CONTEXT.wrap_bio(self._incoming, self._outgoing, server_side=True)

    def data_received(self, data: bytes) -> None:
        self._incoming.write(data)
        with contextlib.suppress(ssl.SSLError):
            self._tls.do_handshake()
        self._transport.write(self._outgoing.read())


async def test_a_dial_that_is_cancelled_at_any_moment_frees_its_descriptor() -> None:
    loop, context, resolver = asyncio.get_running_loop(), dialler_context(), HostResolver(ThreadWorkers())
    server = await loop.create_server(HalfShaken, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    for turns in range(1000):
        dialling = loop.create_task(dial(f"127.0.0.1:{address[1]}", context, QUICK, resolver))
        for _ in range(turns):
            await asyncio.sleep(0)
        if dialling.done():
            break
        dialling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await dialling
        with contextlib.ExitStack() as stack:
            for _ in range(8):  # they get the lowest free descriptors, which asyncio refuses if a transport has them
                other = stack.enter_context(socket.socket())
                other.setblocking(False)
                await loop.sock_connect(other, address)
    (await dialling)[1].transport.abort()
    server.close()
    await server.wait_closed()


async def test_islands_that_do_not_answer_do_not_delay_the_search_for_a_relay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "_ROUTE_S", 3600.0)  # waiting for one of them takes longer than any test

    async def never(_sender: IslandId, _body: bytes) -> bytes:
        await asyncio.Event().wait()
        return b""

    async with archipelago(tmp_path, 5, mesh=False, register=served, listen=nat(0, 1)) as (one, other, *three):
        for each in three[:2]:
            each.peers._handlers._requests["session.route"] = never
        one.knows(*three)
        await one.linked(*three)
        other.knows(three[2])
        await other.linked(three[2])
        await three[2].linked(one, other)
        one.peers._control[three[2].id].rtt = 1000.0  # asked last
        assert await one.peers.request(other.id, "public", b"x", timeout=60) == b"island-1:x"


class HandClock(SystemClock):
    """A clock that the test sets."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_an_address_that_did_not_answer_is_dialled_again_after_a_pause() -> None:
    clock = HandClock()
    silent = SilentAddresses(clock)
    for pause in (10, 20, 40):
        assert "a:1" not in silent
        silent.failed("a:1")
        clock.now += pause - 1
        assert "a:1" in silent
        clock.now += 2
    assert "a:1" not in silent
    silent.failed("a:1")
    silent.answered("a:1")
    assert "a:1" not in silent


async def test_two_that_cannot_dial_each_other_read_through_a_third(tmp_path: Path) -> None:
    async with archipelago(tmp_path, 3, mesh=False, register=served, listen=nat(1, 2)) as (third, one, other):
        for node in (one, other):
            node.knows(third)
            await node.linked(third)
            await third.linked(node)
        assert one.peers.link(other.id) is None
        assert await one.peers.request(other.id, "public", b"x") == b"island-2:x"
        assert await read(one, other) == EXPECTED
        async with one.peers.bulk(other.id, "mirror", b"") as stream:
            for n in range(20):
                await stream.send(bytes([n]) * 100_000)
                assert await stream.receive() == bytes([n]) * 100_000
            await stream.finish()
            assert await stream.receive() is None
        async with one.peers.bulk(other.id, "deny", b"") as stream:
            with pytest.raises(PeerRefused, match="not for you"):
                await stream.receive()
        # What is not a public read is never passed on.
        with pytest.raises(Unreachable):
            await one.peers.request(other.id, "echo", b"x")
        with pytest.raises(Unreachable):
            await read(one, other, "private")
        via = one.peers._control[third.id]
        with pytest.raises(PeerRefused) as refused:
            await via.request(RequestHead(kind="echo", to=key_bytes(other.id), hops=1), b"", 5)
        assert refused.value.code == "not_relayed"
        for hops, code in ((2, "too_many_hops"), (1, "no_route")):
            with pytest.raises(PeerRefused) as refused:
                await via.request(RequestHead(kind="public", to=bytes(32), hops=hops), b"", 5)
            assert refused.value.code == code


async def test_a_reader_through_a_third_that_leaves_frees_all(tmp_path: Path) -> None:
    async with archipelago(tmp_path, 3, mesh=False, register=served, listen=nat(1, 2)) as (third, one, other):
        for node in (one, other):
            node.knows(third)
            await node.linked(third)
            await third.linked(node)
        async with one.peers.bulk(other.id, "pour", b"100000") as stream:
            assert await stream.receive() is not None
        async with asyncio.timeout(60):
            while any(session._serving for node in (third, other) for s in node.peers._bulk.values() for session in s):
                await asyncio.sleep(0.01)
        assert await read(one, other) == EXPECTED


@contextlib.asynccontextmanager
async def relayed(folder: Path, limits: PeerLimits, count: int) -> AsyncIterator[tuple[Node, Node, Node]]:
    """A relay and two islands that cannot dial each other; the first has `count` streams with the second, unread."""
    async with archipelago(folder, 3, mesh=False, register=served, listen=nat(1, 2), limits=limits) as nodes:
        third, one, other = nodes
        for node in (one, other):
            node.knows(third)
            await node.linked(third)
            await third.linked(node)
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(count):
                await stack.enter_async_context(one.peers.bulk(other.id, "pour", b"1000"))
            async with asyncio.timeout(60):
                while sum(session._serving for session in third.peers._bulk.get(one.id, [])) < count:
                    await asyncio.sleep(0.01)
            yield third, one, other


async def test_relayed_streams_leave_room_for_the_streams_of_the_relay(tmp_path: Path) -> None:
    limits = PeerLimits(calls=8, relayed=4, relayed_per_island=8, redial_base_s=0.05)
    async with relayed(tmp_path, limits, 8) as (third, _, other):
        assert await read(third, other) == EXPECTED


async def test_relayed_streams_of_one_island_leave_room_for_those_of_others(tmp_path: Path) -> None:
    limits = PeerLimits(calls=8, relayed=4, relayed_per_island=3, redial_base_s=0.05)
    async with relayed(tmp_path, limits, 8) as (third, _, other):
        fourth = Node(tmp_path / "fourth", "fourth", listen="", limits=limits, register=served)
        await admit(third, fourth)
        async with fourth.running():
            fourth.knows(third)
            await fourth.linked(third)
            assert await read(fourth, other) == EXPECTED


async def test_a_relayed_stream_that_is_not_read_ends(tmp_path: Path) -> None:
    limits = PeerLimits(relayed_per_island=1, stall_s=0.2, redial_base_s=0.05)
    async with relayed(tmp_path, limits, 1) as (_, one, other):
        # Waits for the turn of the stream that is not read. Two blocks fit into the window: they cannot stall.
        assert await read(one, other, count=2) == EXPECTED[:2]


async def test_waiting_for_a_turn_has_a_time_limit(tmp_path: Path) -> None:
    limits = PeerLimits(calls=1, redial_base_s=0.05)
    async with (
        archipelago(tmp_path, 2, register=served, limits=limits) as (a, b),
        a.peers.bulk(b.id, "mirror", b""),
    ):
        with pytest.raises(Unreachable, match="streams with island-1") as busy:
            async with a.peers.bulk(b.id, "mirror", b"", timeout=0.05):
                pass
        assert busy.value.code == "busy"


async def test_a_ticket_is_good_for_the_one_it_was_given_to(tmp_path: Path) -> None:
    async with archipelago(tmp_path, 3, mesh=False) as (a, b, c):
        made: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        a.peers._tickets[b"t" * 16] = (b.id, made)
        for node in (b, c):
            node.knows(a)
            await node.linked(a)
        with pytest.raises(PeerRefused) as refused:
            await c.peers._dial(a.id, "bulk", b"t" * 16, a.address)
        assert refused.value.code == "bad_ticket" and not made.done()
        await b.peers._dial(a.id, "bulk", b"t" * 16, a.address)
        assert (await made).island == b.id


async def test_what_answers_at_a_wrong_address_is_not_blamed_on_who_asks_for_a_stream(tmp_path: Path) -> None:
    async with archipelago(tmp_path, 3, mesh=False, register=served) as (a, b, c):
        a.known[b.id] = [c.address]
        with pytest.raises(Unreachable) as wrong:
            await read(a, b)
        assert wrong.value.code in {"wrong_key", "unreachable"}
        hidden = Node(tmp_path / "h", "hidden")
        a.known[hidden.id] = [a.address]
        with pytest.raises(Unreachable):
            await read(a, hidden)
        hidden.state.close()
        with pytest.raises(Unreachable):
            await read(a, a)


async def test_an_island_that_asks_to_be_dialled_is_not_blamed_for_who_answers_at_its_address(tmp_path: Path) -> None:
    async with archipelago(tmp_path, 3, mesh=False, register=served) as (a, b, c):
        a.knows(b)
        await a.linked(b)
        await b.linked(a)
        b.peers._learned[a.id] = [c.address]
        with pytest.raises(PeerRefused) as refused:
            await a.peers.request(b.id, "session.dial", encode(DialBack(ticket=b"x" * 16)))
        assert refused.value.code == "wrong_key"
        assert await a.peers.request(b.id, "echo", b"x") == b"island-1:x"


async def test_a_bug_in_a_listener_costs_nothing(tmp_path: Path) -> None:
    def register(node: Node) -> None:
        def bug(_island: IslandId, _up: bool) -> None:
            raise ZeroDivisionError

        served(node)
        node.peers.on_link(bug)

    async with archipelago(tmp_path, 2, register=register) as (a, b):
        assert await a.peers.request(b.id, "echo", b"") == b"island-1:"


async def test_what_another_island_says_cannot_move_a_terminal(tmp_path: Path) -> None:
    def register(node: Node) -> None:
        async def escape(_sender: IslandId, _body: bytes) -> bytes:
            raise Denied("\x1b[2Jall gone\r\n", hint="\x07")

        node.peers.on_request("escape", escape)

    async with archipelago(tmp_path, 2, register=register) as (a, b):
        with pytest.raises(PeerRefused) as refused:
            await a.peers.request(b.id, "escape", b"")
        assert str(refused.value).replace("\n", "").isprintable() and "all gone" in refused.value.message


async def test_a_bulk_session_serves_both_and_is_closed_when_idle(tmp_path: Path) -> None:
    limits = PeerLimits(idle_s=600, dead_s=3600, ping_s=0.05, redial_base_s=0.05)
    async with archipelago(tmp_path, 2, register=served, limits=limits) as (a, b):
        assert await read(a, b) == EXPECTED and await read(b, a) == EXPECTED
        for node in (a, b):
            node.clock.monotonic = lambda: SystemClock().monotonic() + 700  # type: ignore[method-assign]  # its clock, later
        async with asyncio.timeout(60):
            while a.peers._bulk or b.peers._bulk:
                await asyncio.sleep(0.02)
        assert a.peers.link(b.id) is not None
        assert await read(b, a) == EXPECTED


async def test_bandwidth_is_measured_where_data_arrive(tmp_path: Path) -> None:
    async with archipelago(tmp_path, 2, register=served) as (a, b):
        for _ in range(50):
            await read(a, b, count=500)
            if (link := a.peers.link(b.id)) is not None and link.bandwidth is not None:
                break
        assert link is not None and link.bandwidth is not None and link.bandwidth > 1e5
        sender = b.peers.link(a.id)
        assert sender is not None and sender.bandwidth is None


def test_the_meter_counts_only_while_bytes_flow() -> None:
    meter = BandwidthMeter()
    for second in range(3):
        meter.add(10**6, second * 10.0)  # one block now and then says nothing
    assert meter.rate is None
    for n in range(20):
        meter.add(100_000, 100 + n * 0.01)
    assert meter.rate is not None and abs(meter.rate - 1e7) < 1e4


# --- odds ------------------------------------------------------------------------------------


async def test_own_addresses() -> None:
    resolver = HostResolver(ThreadWorkers())
    assert await own_addresses("127.0.0.1", 5, resolver) == ["127.0.0.1:5"]
    assert await own_addresses("::1", 5, resolver) == ["[::1]:5"]
    for wild in ("0.0.0.0", "::"):
        found = await own_addresses(wild, 5, resolver)
        assert found and all(each.endswith(":5") and "0.0.0.0" not in each for each in found)


def test_what_is_passed_on_names_who_began() -> None:
    first, sender = Identity.generate(SystemRng()).id, Identity.generate(SystemRng()).id
    head = RequestHead(kind="chunks", to=key_bytes(first), hops=1)
    passed = relay.onward(head, sender)
    assert (passed.origin, passed.hops, passed.to) == (key_bytes(sender), 2, head.to)
    assert relay.check_relay(head, {"chunks"}) == first
    with pytest.raises(Denied):
        relay.check_relay(passed, {"chunks"})
    assert encode(RequestHead(kind="x")) == b"\x81\xa4kind\xa1x"
