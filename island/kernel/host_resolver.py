"""Resolves host names in worker threads.

The event loop's own `getaddrinfo` is not used: uvloop runs it in the four threads of libuv, in which names that no
server answers for delay all others, and also the end of the program.
"""

from __future__ import annotations

import asyncio
import functools
import socket
from typing import Any, NamedTuple

from island.kernel.work import Workers

TIMEOUT_S = 5.0

_Key = tuple[str, int, int]


class NetworkAddress(NamedTuple):
    """An address of a host, as `socket.connect` takes it."""

    family: socket.AddressFamily
    protocol: int
    sockaddr: tuple[Any, ...]


class HostResolver:
    """Looks up names with a timeout. There is at most one look-up of a name at a time; its callers share it."""

    def __init__(self, workers: Workers, timeout_s: float = TIMEOUT_S) -> None:
        self._workers, self._timeout_s = workers, timeout_s
        self._pending: dict[_Key, asyncio.Future[list[NetworkAddress]]] = {}

    async def resolve(self, host: str, port: int, *, family: int = 0, flags: int = 0) -> list[NetworkAddress]:
        """Return the addresses of `host`, with `port`, for TCP. `family` and `flags` are those of `getaddrinfo`.

        Raises `OSError`: `socket.gaierror` if the name is unknown, `TimeoutError` if nobody answers. Raises
        `ValueError` if `host` cannot be the name of a host.
        """
        key = host, family, flags
        try:
            found = _look_up(host, family, flags | socket.AI_NUMERICHOST)  # does not block
        except socket.gaierror:
            found = await self._shared(key)
        return [each._replace(sockaddr=(each.sockaddr[0], port, *each.sockaddr[2:])) for each in found]

    async def _shared(self, key: _Key) -> list[NetworkAddress]:
        if (work := self._pending.get(key)) is None:
            work = self._pending[key] = self._workers.blocking(_look_up, *key)
            work.add_done_callback(functools.partial(self._done, key))
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asyncio.shield(work)
        except TimeoutError as error:
            raise TimeoutError(f"no name server answered for {key[0]} within {self._timeout_s:g} s") from error

    def _done(self, key: _Key, work: asyncio.Future[list[NetworkAddress]]) -> None:
        del self._pending[key]
        if not work.cancelled():
            work.exception()  # mark as retrieved: every caller may have left


def _look_up(host: str, family: int, flags: int) -> list[NetworkAddress]:
    found = socket.getaddrinfo(host, None, family, socket.SOCK_STREAM, flags=flags)
    return [NetworkAddress(family, protocol, address) for family, _, protocol, _, address in found]
