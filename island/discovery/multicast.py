"""Multicast DNS on one network interface, by the library zeroconf: the announcement of this island, and of others."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import socket
from collections.abc import Callable, Iterator
from ipaddress import IPv4Interface
from typing import Any

import ifaddr
import zeroconf
from zeroconf import (  # type: ignore[attr-defined]  # it offers the types of records, but not in its __all__
    DNSAddress,
    DNSPointer,
    DNSService,
    DNSText,
    IPVersion,
    current_time_millis,
)
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from island.discovery.core import SERVICE_TYPE, TTL_S, Heard, Interface, OwnAnnouncement, PacketGate
from island.errors import IslandError

MAX_INSTANCES = 256
"""Maximum number of instances of the service that are read. The library keeps at most 10,000 records of any kind."""

MAX_RECORDS = 8
"""Maximum number of records of one host that are read."""


_GROUP = "224.0.0.251"


class NoMulticast(IslandError):
    """The operating system refuses multicast on an interface."""

    code = "no_multicast"


def interfaces() -> list[Interface]:
    """Return the network interfaces of this machine that have IPv4 addresses, once for each address."""
    return [
        Interface(adapter.nice_name, IPv4Interface(f"{ip.ip}/{ip.network_prefix}"))
        for adapter in ifaddr.get_adapters()
        for ip in adapter.ips
        if isinstance(ip.ip, str)
    ]


class Responder:
    """Announces this island on one interface, and hears what is announced there.

    `changed` is called in the event loop whenever something else is announced, or is no longer announced.
    """

    def __init__(
        self, interface: Interface, own: OwnAnnouncement | None, label: str, changed: Callable[[], None]
    ) -> None:
        self.interface, self.own = interface, own
        self.announced = False
        """Whether `own` is announced; False if another host has contested its name."""
        self._label, self._changed = label, changed
        self._multicast: AsyncZeroconf | None = None
        self._browser: AsyncServiceBrowser | None = None

    async def open(self) -> None:
        """Open the sockets, begin to listen, and announce this island; raises `NoMulticast`.

        The announcement takes about a second: first the other hosts are asked whether the name is in use. If one says
        so, `announced` is False, and `announce` can try another name.
        """
        try:
            with self._explained():
                _check(self.interface)
                await self._begin()
        except BaseException:
            await self.close()
            raise

    async def _begin(self) -> None:
        self._multicast = AsyncZeroconf(interfaces=[str(self.interface.ip)], ip_version=IPVersion.V4Only)
        await self._multicast.zeroconf.async_wait_for_start()
        for reader in self._multicast.zeroconf.engine.readers:
            listener: Any = reader.transport.get_protocol()
            reader.transport.set_protocol(_Gated(listener, PacketGate(self.interface.network)))
        self._browser = AsyncServiceBrowser(self._multicast.zeroconf, SERVICE_TYPE, handlers=[self._on_change])
        await self._announce(self._label)

    async def announce(self, label: str) -> bool:
        """Announce this island, if it is to be, under the name `label`; False if another host contests the name.

        Raises `NoMulticast`.
        """
        with self._explained():
            return await self._announce(label)

    async def _announce(self, label: str) -> bool:
        if self.own is not None and self._multicast is not None:
            self._label = label
            try:
                await (await self._multicast.async_register_service(self._service(self.own)))
            except zeroconf.NonUniqueNameException:
                return False
            self.announced = True
        return True

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (OSError, zeroconf.Error) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise NoMulticast(f"multicast DNS does not work on {self.interface.name}: {reason}") from error

    async def close(self) -> None:
        """Withdraw the announcement, so that other hosts forget it at once, and close the sockets."""
        if self._browser is not None:
            await self._browser.async_cancel()
            self._browser = None
        if self._multicast is not None:
            await self._multicast.async_close()
            self._multicast = None

    def _service(self, own: OwnAnnouncement) -> AsyncServiceInfo:
        return AsyncServiceInfo(
            SERVICE_TYPE,
            f"{self._label}.{SERVICE_TYPE}",
            port=own.port,
            properties=own.text,
            server=f"{self._label}.local.",  # not the name of this machine, which is nobody's business
            addresses=[own.address.packed],
            host_ttl=TTL_S,
            other_ttl=TTL_S,
        )

    def _on_change(self, **_: Any) -> None:
        self._changed()

    def heard(self) -> Iterator[Heard]:
        """Yield the instances of the service whose records were received completely, those heard first coming first."""
        if self._multicast is None:
            return
        cache, now = self._multicast.zeroconf.cache, current_time_millis()

        @functools.cache  # many instances may name one host
        def addresses(host: str) -> list[bytes]:
            records = itertools.islice(cache.async_entries_with_name(host), MAX_RECORDS)
            return [each.address for each in records if isinstance(each, DNSAddress) and not each.is_expired(now)]

        for pointer in itertools.islice(cache.async_entries_with_name(SERVICE_TYPE), MAX_INSTANCES):
            if not isinstance(pointer, DNSPointer) or pointer.is_expired(now):
                continue
            service, text = None, None
            for record in cache.async_entries_with_name(pointer.alias):
                if isinstance(record, DNSService) and not record.is_expired(now):
                    service = record
                elif isinstance(record, DNSText) and not record.is_expired(now):
                    text = record
            if service is not None and text is not None:
                yield Heard(service.port, addresses(service.server), text.text, (now - pointer.created) / 1000)


class _Gated(asyncio.DatagramProtocol):
    """Passes packets that the gate lets through to the library, which reads packets from anywhere."""

    def __init__(self, listener: asyncio.DatagramProtocol, gate: PacketGate) -> None:
        self._listener, self._gate = listener, gate

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        if self._gate.passes(addr[0], asyncio.get_running_loop().time()):
            self._listener.datagram_received(data, addr)

    def error_received(self, exc: Exception) -> None:
        self._listener.error_received(exc)

    def connection_lost(self, exc: Exception | None) -> None:
        self._listener.connection_lost(exc)


def _check(interface: Interface) -> None:
    """Raise `OSError` if the operating system refuses multicast on an interface.

    The library would log some of these errors only, and leave a socket open for others.
    """
    with socket.socket(type=socket.SOCK_DGRAM) as probe:
        probe.bind((str(interface.ip), 0))
        member = socket.inet_aton(_GROUP) + interface.ip.packed
        probe.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
