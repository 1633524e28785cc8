"""Selects which unauthenticated connection is closed when there are too many. No I/O."""

from __future__ import annotations

import ipaddress
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class HalfOpen(Generic[K]):
    """Connections whose peer has not proved its key yet: at most `total`, and `per_address` per network address."""

    def __init__(self, total: int, per_address: int) -> None:
        self._total, self._per_address = total, per_address
        self._address: dict[K, str] = {}
        self._by_address: dict[str, dict[K, None]] = {}

    def __len__(self) -> int:
        return len(self._address)

    def __contains__(self, key: K) -> bool:
        return key in self._address

    def add(self, key: K, address: str) -> K | None:
        """Add a connection; return the connection that the caller has to close for it, or None.

        If `address` has reached its limit, that is its oldest connection. Otherwise, if the total limit is
        reached, it is the oldest connection of the address with the most connections, so that a few addresses
        cannot displace all others.
        """
        network = network_of(address)
        victim: K | None = None
        if len(own := self._by_address.get(network, {})) >= self._per_address:
            victim = next(iter(own))
        elif len(self._address) >= self._total:
            largest = max(self._by_address, key=lambda each: len(self._by_address[each]))
            victim = next(iter(self._by_address[largest]))
        if victim is not None:
            self.remove(victim)
        self._address[key] = network
        self._by_address.setdefault(network, {})[key] = None
        return victim

    def remove(self, key: K) -> None:
        """Remove a connection that is authenticated or closed; does nothing if it is not present."""
        network = self._address.pop(key, None)
        if network is not None:
            del self._by_address[network][key]
            if not self._by_address[network]:
                del self._by_address[network]


def network_of(address: str) -> str:
    """Return the part of an IP address that its holder cannot choose freely: all of IPv4, the first 64 bits of IPv6."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is None:
        return str(ipaddress.IPv6Network((found, 64), strict=False))
    return address
