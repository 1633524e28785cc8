"""Announcements over real multicast DNS on the loopback interface, also beside hosts that send anything."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from ipaddress import IPv4Address, IPv4Interface
from typing import cast

import pytest
import uvloop
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

from island.discovery import core, multicast
from island.discovery.core import Announcement, Interface, OwnAnnouncement
from island.discovery.multicast import NoMulticast, Responder
from island.kernel.ids import IslandId, NetworkId
from island.kernel.ports import SystemRng

NETWORK = NetworkId(SystemRng().bytes(32).hex())
"""A network of this test run. Other runs may be heard on the same interface."""
KEY = IslandId(SystemRng().bytes(32).hex())
MDNS = ("224.0.0.251", 5353)


class Host:
    """A host with a responder, and what it hears of the network of this test run."""

    def __init__(self, address: str, port: int | None = None, prefix: int = 8) -> None:
        self.interface = Interface("lo", IPv4Interface(f"{address}/{prefix}"))
        own = None if port is None else core.own_announcement(self.interface, NETWORK, KEY, (address, port))
        self.changed = asyncio.Event()
        self.label = f"test-{SystemRng().bytes(8).hex()}"
        self.responder = Responder(self.interface, own, self.label, self.changed.set)

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Host]:
        await self.responder.open()
        try:
            yield self
        finally:
            await self.responder.close()

    def found(self) -> list[Announcement]:
        heard = (core.read(each, self.interface.network) for each in self.responder.heard())
        return [each for each in heard if each is not None and each.network == NETWORK]

    async def finds(self, *expected: Announcement) -> None:
        async with asyncio.timeout(60):
            while self.found() != list(expected):
                self.changed.clear()
                await self.changed.wait()


def announcement(address: str, port: int) -> Announcement:
    return Announcement(NETWORK, KEY[:10], (f"{address}:{port}",))


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_an_announcement_is_heard_until_it_is_withdrawn_and_no_task_is_left(
    loopback: str, loop_factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(announce_and_withdraw(loopback))


async def announce_and_withdraw(loopback: str) -> None:
    before = asyncio.all_tasks()
    async with Host(loopback).open() as first:
        async with Host(loopback, 8991).open():
            await first.finds(announcement(loopback, 8991))
            async with Host(loopback).open() as later:
                await later.finds(announcement(loopback, 8991))
        await first.finds()
    assert asyncio.all_tasks() == before


async def test_the_packets_name_neither_the_machine_nor_the_island(loopback: str) -> None:
    heard: list[bytes] = []
    with socket.socket(type=socket.SOCK_DGRAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("", MDNS[1]))
        member = socket.inet_aton(MDNS[0]) + socket.inet_aton(loopback)
        listener.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
        listener.setblocking(False)
        async with Host(loopback, 8991).open():
            pass
        with contextlib.suppress(BlockingIOError):
            while True:
                heard.append(listener.recv(9000))
    ours = [packet for packet in heard if NETWORK.encode() in packet]
    assert ours
    for packet in ours:
        assert socket.gethostname().encode() not in packet
        assert KEY[:10].encode() in packet and KEY[:11].encode() not in packet


class Rival(asyncio.DatagramProtocol):
    """A host that answers each question whether the name `label` is in use with yes."""

    def __init__(self, label: str) -> None:
        self._label = label.encode()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)  # the class does not say so before Python 3.12

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if self._label in data and not data[2] & 0x80:  # a question
            service = b"\x07_island\x04_tcp\x05local\x00"
            name = bytes([len(self._label)]) + self._label + service
            pointer = service + bytes.fromhex("000c000100001194") + len(name).to_bytes(2, "big") + name
            self._transport.sendto(bytes.fromhex("000084000000000100000000") + pointer, MDNS)


@contextlib.asynccontextmanager
async def contested(label: str, address: str) -> AsyncIterator[None]:
    with socket.socket(type=socket.SOCK_DGRAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(address))
        member = socket.inet_aton(MDNS[0]) + socket.inet_aton(address)
        listener.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
        listener.bind(("", MDNS[1]))
        listener.setblocking(False)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(lambda: Rival(label), sock=listener)
        try:
            yield
        finally:
            transport.close()


async def test_a_host_that_contests_the_name_does_not_end_listening(loopback: str) -> None:
    """Anyone on the network can answer the question whether a name is in use."""
    host, other = Host(loopback, 8991), Host(loopback, 8992)
    async with contested(host.label, loopback), host.open(), other.open():
        assert (host.responder.announced, other.responder.announced) == (False, True)
        await host.finds(announcement(loopback, 8992))
        assert not await host.responder.announce(host.label)
        assert await host.responder.announce(f"test-{SystemRng().bytes(8).hex()}")
        assert host.responder.announced


async def test_hosts_of_other_networks_get_no_answer(loopback: str) -> None:
    """The network of the responder is one address, so that another address of the loopback interface is outside."""
    question = bytes.fromhex("00000001000000000000") + b"\x07_island\x04_tcp\x05local\x00\x00\x0c\x00\x01"
    async with Host(loopback, 8991, prefix=32).open():
        with asker("127.0.0.2") as outside, asker(loopback) as inside:
            outside.sendto(b"\x00\x01" + question, MDNS)
            inside.sendto(b"\x00\x02" + question, MDNS)
            async with asyncio.timeout(60):
                while NETWORK.encode() not in await asyncio.get_running_loop().sock_recv(inside, 9000):
                    pass
            with pytest.raises(BlockingIOError):
                while NETWORK.encode() not in outside.recv(9000):
                    pass


@contextlib.contextmanager
def asker(address: str) -> Iterator[socket.socket]:
    """A socket that sends to the multicast group from an address of the loopback interface."""
    with socket.socket(type=socket.SOCK_DGRAM) as made:
        made.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
        made.bind((address, 0))
        made.setblocking(False)
        yield made


async def test_malformed_packets_and_foreign_announcements_change_nothing(loopback: str) -> None:
    rng = random.Random(7)
    async with Host(loopback).open() as host, Host(loopback, 8991).open():
        await host.finds(announcement(loopback, 8991))
        with socket.socket(type=socket.SOCK_DGRAM) as sender:
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(loopback))
            for size in range(core.MAX_PACKETS // 2):
                head = bytes.fromhex("000084000000000500000000") if size % 2 else b""
                sender.sendto(head + rng.randbytes(size * 30), MDNS)
        stranger = AsyncZeroconf(interfaces=[loopback])
        liar = AsyncServiceInfo(
            core.SERVICE_TYPE,
            f"liar-{SystemRng().bytes(4).hex()}.{core.SERVICE_TYPE}",
            port=22,
            properties={"txtvers": "1", "network": NETWORK, "key": "\x1b[31m", "dataset": "x" * 100},
            server="liar.local.",
            addresses=[IPv4Address(loopback).packed],
        )
        await (await stranger.async_register_service(liar, strict=False))
        async with asyncio.timeout(60):  # other test runs are heard, too
            while not any(b"\x1b[31m" in each.text for each in host.responder.heard()):
                host.changed.clear()
                await host.changed.wait()
        assert host.found() == [announcement(loopback, 8991)]
        await stranger.async_close()


async def test_an_address_that_is_not_of_this_machine_is_refused_and_nothing_is_left_open() -> None:
    before = asyncio.all_tasks()
    interface = Interface("gone0", IPv4Interface("203.0.113.77/24"))
    responder = Responder(interface, OwnAnnouncement(interface.ip, 8991, b""), "test-gone", lambda: None)
    with pytest.raises(NoMulticast, match="gone0"):
        await responder.open()
    assert list(responder.heard()) == []
    assert asyncio.all_tasks() == before


def test_the_interfaces_of_this_machine_include_loopback() -> None:
    assert IPv4Address("127.0.0.1") in {each.ip for each in multicast.interfaces()}
