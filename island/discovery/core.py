"""Pure functions of discovery: what is announced, which announcements are valid, and which addresses are dialled.

Announcements come from anybody on the local network and are not authenticated. An address in one is only
tried: the handshake then proves the key and the network. See `protocols/discovery-v1.md`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Literal

from island.kernel.ids import KEY_PREFIX_DIGITS, IslandId, NetworkId, key_prefix

SERVICE_TYPE = "_island._tcp.local."

TTL_S = 1200
"""Time to live of announced records, in seconds."""

MAX_AGE_S = 2.0 * TTL_S
"""An announcement that was not heard again for so long is ignored, whatever time to live it claims."""

MAX_TEXT = 400
"""Maximum size of a TXT record in bytes."""

MAX_PACKETS = 100
"""Maximum number of packets that are read in one second on one interface; more are dropped."""

MAX_ANNOUNCEMENTS = 128
"""Maximum number of islands nearby that are taken into account; the first ones stay."""

MAX_ADDRESSES = 4
"""Maximum number of addresses of one announced island."""

MAX_HINTED = 16
"""Maximum number of islands that are dialled at announced addresses. It is less than the number of islands that
are dialled altogether, so that false announcements do not displace the others."""

MAX_HINTS = 2
"""Maximum number of announced addresses at which one island is dialled."""

HOLD_S = 15.0
"""Minimum time in seconds between two changes of the announced addresses at which an island is dialled."""

State = Literal["off", "on", "failed"]

_VERSION = b"1"
_WILDCARDS = frozenset({"0.0.0.0", "::"})
_NETWORK = re.compile(rb"[0-9a-f]{64}\Z")
_KEY_PREFIX = re.compile(rb"[0-9a-f]{%d}\Z" % KEY_PREFIX_DIGITS)


@dataclass(frozen=True, slots=True, order=True)
class Interface:
    """A network interface of this machine, with one of its IPv4 addresses."""

    name: str
    address: IPv4Interface

    @property
    def ip(self) -> IPv4Address:
        return self.address.ip

    @property
    def network(self) -> IPv4Network:
        return self.address.network


@dataclass(frozen=True, slots=True)
class Heard:
    """The records of one instance of the service, as they were received."""

    port: int
    addresses: Sequence[bytes]
    """Contents of its A records."""
    text: bytes
    """Content of its TXT record."""
    age: float
    """Seconds since it was last heard."""


@dataclass(frozen=True, slots=True, order=True)
class Announcement:
    """An island that somebody has announced on the local network. Nothing in it is proved."""

    network: NetworkId
    key_prefix: str
    addresses: tuple[str, ...]
    """`host:port` with IPv4 addresses of the interface's own network, at most `MAX_ADDRESSES`."""


@dataclass(frozen=True, slots=True)
class OwnAnnouncement:
    """What this island announces on one interface."""

    address: IPv4Address
    port: int
    text: bytes

    @property
    def shown(self) -> str:
        """The announced address as `host:port`."""
        return f"{self.address}:{self.port}"


# What is announced


def choose(interfaces: Iterable[Interface], wanted: Sequence[str]) -> tuple[list[Interface], list[str]]:
    """Return the interfaces to use, and the items of `wanted` that match none.

    `wanted` has names or addresses of interfaces; empty means all except loopback interfaces.
    """
    found = sorted(set(interfaces))
    if not wanted:
        return [each for each in found if not each.ip.is_loopback], []
    chosen = [each for each in found if each.name in wanted or str(each.ip) in wanted]
    matched = {each.name for each in chosen} | {str(each.ip) for each in chosen}
    return chosen, [each for each in wanted if each not in matched]


def own_announcement(
    interface: Interface, network: NetworkId | None, me: IslandId, bound: tuple[str, int] | None
) -> OwnAnnouncement | None:
    """Return what this island announces on an interface, or None if others could not connect to it there.

    `bound` is the host and the port to which its peer port is bound, or None if it has none.
    """
    if network is None or bound is None:
        return None
    host, port = bound
    if host not in _WILDCARDS and host != str(interface.ip):
        return None
    return OwnAnnouncement(interface.ip, port, _text(network, me))


def silence(network: NetworkId | None, bound: tuple[str, int] | None) -> str:
    """Return why an island that announces nothing does so, as a sentence."""
    if bound is None:
        return "listen.peer is empty, so this island dials out only and is not announced."
    if network is None:
        return "This island does not belong to an archipelago yet and is not announced."
    return f"The peer port listens on {bound[0]}, which is not an address of these interfaces, and is not announced."


def _text(network: NetworkId, me: IslandId) -> bytes:
    pairs = [b"txtvers=" + _VERSION, b"network=" + network.encode(), b"key=" + key_prefix(me).encode()]
    return b"".join(bytes([len(pair)]) + pair for pair in pairs)


# What is heard


class PacketGate:
    """Decides which received packets are read: those of the interface's own network, limited in rate.

    Reading a packet takes processor time, and a question is answered, so other networks must not cause either
    (RFC 6762, section 11).
    """

    def __init__(self, network: IPv4Network) -> None:
        self._network = network
        self._second, self._passed = 0, 0

    def passes(self, source: str, now: float) -> bool:
        """Return whether to read a packet from the IPv4 address `source` at `now` (monotonic seconds)."""
        if IPv4Address(source) not in self._network:
            return False
        if int(now) != self._second:
            self._second, self._passed = int(now), 0
        self._passed += 1
        return self._passed <= MAX_PACKETS


def read(heard: Heard, interface: IPv4Network) -> Announcement | None:
    """Return the announcement in received records, or None if they are not a valid one.

    Addresses outside the network of the interface are ignored: an announcement must not make this island
    connect to other networks, or to services on its own loopback interface.
    """
    if not 0 < heard.port <= 65535 or not 0 <= heard.age <= MAX_AGE_S:
        return None
    text = parse_text(heard.text)
    network, prefix = text.get(b"network", b""), text.get(b"key", b"")
    if text.get(b"txtvers") != _VERSION or not _NETWORK.match(network) or not _KEY_PREFIX.match(prefix):
        return None
    local = [each for each in map(_address, heard.addresses) if each is not None and _is_host(each, interface)]
    if not local:
        return None
    addresses = tuple(f"{each}:{heard.port}" for each in sorted(set(local))[:MAX_ADDRESSES])
    return Announcement(NetworkId(network.decode()), prefix.decode(), addresses)


def parse_text(text: bytes) -> dict[bytes, bytes]:
    """Return keys and values of a TXT record (RFC 6763, section 6); empty if it is malformed or too large.

    Keys are converted to lower case, and the first of several equal keys counts.
    """
    if len(text) > MAX_TEXT:
        return {}
    found: dict[bytes, bytes] = {}
    at = 0
    while at < len(text):
        end = at + 1 + text[at]
        if end > len(text):
            return {}
        key, _, value = text[at + 1 : end].partition(b"=")
        found.setdefault(key.lower(), value)
        at = end
    return found


def _address(packed: bytes) -> IPv4Address | None:
    return IPv4Address(packed) if len(packed) == 4 else None


def _is_host(address: IPv4Address, network: IPv4Network) -> bool:
    if address not in network or address.is_multicast or address.is_unspecified:
        return False
    # A network with two addresses or one has neither a network address nor a broadcast address.
    return network.prefixlen >= 31 or address not in (network.network_address, network.broadcast_address)


def gather(announcements: Iterable[Announcement], network: NetworkId | None, me: IslandId) -> list[Announcement]:
    """Return announcements without this island's own, with one for each island, sorted.

    Addresses that are announced for one island on several interfaces, or by several hosts, are merged.
    """
    merged: dict[tuple[NetworkId, str], list[str]] = {}
    for each in announcements:
        island = each.network, each.key_prefix
        if island == (network, key_prefix(me)) or (island not in merged and len(merged) >= MAX_ANNOUNCEMENTS):
            continue
        merged.setdefault(island, []).extend(each.addresses)
    return sorted(
        Announcement(*island, tuple(dict.fromkeys(addresses))[:MAX_ADDRESSES]) for island, addresses in merged.items()
    )


# Which addresses are dialled


def suggest(
    announcements: Iterable[Announcement], network: NetworkId | None, me: IslandId, known: Iterable[IslandId]
) -> dict[IslandId, tuple[str, ...]]:
    """Return the addresses that are announced for islands of this archipelago that are already known.

    An announcement has only a prefix of the key. An island that gossip has not made known is not dialled.
    """
    announced = {each.key_prefix: each.addresses[:MAX_HINTS] for each in announcements if each.network == network}
    return {
        island: announced[key_prefix(island)]
        for island in sorted(known)
        if island != me and key_prefix(island) in announced
    }


@dataclass(slots=True)
class _Held:
    addresses: tuple[str, ...]
    since: float


class Hints:
    """The announced addresses at which islands are dialled, limited in number and in rate of change.

    Every change makes the mesh dial at once, so without a limit an attacker could make this island dial all the time.
    """

    def __init__(self) -> None:
        self._held: dict[IslandId, _Held] = {}

    def update(self, suggested: Mapping[IslandId, tuple[str, ...]], now: float) -> list[IslandId]:
        """Adopt what is announced at `now` (monotonic seconds); return the islands that got other addresses."""
        for island, held in list(self._held.items()):
            if island not in suggested:
                held.addresses = ()
                if now >= held.since + HOLD_S:
                    del self._held[island]
        return [island for island, addresses in suggested.items() if self._adopt(island, addresses, now)]

    def _adopt(self, island: IslandId, addresses: tuple[str, ...], now: float) -> bool:
        held = self._held.get(island)
        if held is None:
            if len(self._held) >= MAX_HINTED:
                return False
        elif held.addresses == addresses or now < held.since + HOLD_S:
            return False
        self._held[island] = _Held(addresses, now)
        return True

    def addresses(self) -> dict[IslandId, tuple[str, ...]]:
        """Return the addresses to try for each island."""
        return {island: held.addresses for island, held in self._held.items() if held.addresses}
