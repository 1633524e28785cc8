"""Lets aiohttp resolve host names in worker threads. See `kernel.host_resolver`."""

from __future__ import annotations

import socket

from aiohttp.abc import AbstractResolver, ResolveResult

from island.kernel.host_resolver import HostResolver


class WorkerResolver(AbstractResolver):
    """A resolver for `aiohttp.TCPConnector`."""

    def __init__(self, resolver: HostResolver) -> None:
        self._resolver = resolver

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the addresses of a host; raises `OSError`."""
        try:
            addresses = await self._resolver.resolve(host, port, family=family)
        except TimeoutError as error:
            # aiohttp would report a `TimeoutError` as that of the whole request, which may have had an effect.
            raise socket.gaierror(socket.EAI_AGAIN, str(error)) from error
        return [
            ResolveResult(
                hostname=host,
                host=str(found.sockaddr[0]),
                port=port,
                family=found.family,
                proto=found.protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for found in addresses
        ]

    async def close(self) -> None:
        """Do nothing: the threads belong to the workers."""
