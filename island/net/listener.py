"""The peer port: accepts connections, bounds what strangers may hold, and makes their TLS."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from island.config import split_address
from island.errors import ConfigError, IslandError, PeerMisbehaved
from island.kernel.loops import Tasks
from island.net.limits import Limits

log = structlog.get_logger("island")

READ_AHEAD = 512 * 1024
"""Bytes that are read before they are asked for."""

_BATCH = 32

Accepted = Callable[[asyncio.StreamReader, asyncio.StreamWriter, str, Callable[[], None]], Awaitable[None]]
"""Serves one connection: reader, writer, remote `host:port`, and what to call once its key is proved."""


class Listener:
    """One bound port. `start` binds, `close` stops accepting."""

    def __init__(self, listen: str, context: ssl.SSLContext, limits: Limits, accepted: Accepted) -> None:
        self._listen, self._context, self._limits, self._accepted = listen, context, limits, accepted
        self._socket: socket.socket | None = None
        self._tasks: Tasks | None = None
        self._shaking: Counter[str] = Counter()
        self._unserved: set[socket.socket] = set()
        self._connections = 0
        self.host = ""
        self.port: int | None = None

    async def start(self, tasks: Tasks) -> None:
        """Bind and accept; raises `ConfigError` when the port is in use or not of this machine."""
        host, port = split_address(self._listen, "listen.peer")
        try:
            found = await asyncio.get_running_loop().getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            self._socket = _bound(found[0][0], found[0][4])
        except OSError as error:
            raise ConfigError(
                f"listen.peer = '{self._listen}' cannot be bound: {error.strerror or error}",
                hint="Another program has it, or the address is not of this machine: change [listen] in island.toml.",
            ) from error
        self.host, self.port = host, self._socket.getsockname()[1]
        self._tasks = tasks
        self._resume()

    async def close(self) -> None:
        """Accept nothing more and free the port."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None

    def _resume(self) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().add_reader(self._socket, self._accept)

    def _accept(self) -> None:
        """Take what waits at the port. A callback: a task that is cancelled could lose an accepted connection."""
        for _ in range(_BATCH):
            if self._socket is None:
                return
            try:
                connection, remote = self._socket.accept()
            except (BlockingIOError, ConnectionError, InterruptedError):
                return
            except OSError as error:
                # No descriptors left, most likely; what is there must go on.
                log.warning("peer.accept_failed", error=str(error))
                loop = asyncio.get_running_loop()
                loop.remove_reader(self._socket)
                loop.call_later(0.5, self._resume)
                return
            connection.setblocking(False)
            self._take(connection, str(remote[0]), int(remote[1]))

    def _take(self, connection: socket.socket, source: str, port: int) -> None:
        if self._tasks is None or not self._has_room(source):
            connection.close()
            return
        self._shaking[source] += 1
        self._connections += 1
        self._unserved.add(connection)
        task = self._tasks.spawn("peers.connection", self._serve(connection, source, port))
        task.add_done_callback(functools.partial(self._served, connection))

    def _served(self, connection: socket.socket, _: object) -> None:
        if connection in self._unserved:  # cancelled before its first step
            self._unserved.discard(connection)
            connection.close()

    def _has_room(self, source: str) -> bool:
        return (
            self._connections < self._limits.sessions
            and self._shaking.total() < self._limits.shaking
            and self._shaking[source] < self._limits.shaking_per_address
        )

    async def _serve(self, connection: socket.socket, source: str, port: int) -> None:
        shaking = True
        self._unserved.discard(connection)

        def proved() -> None:
            nonlocal shaking
            if shaking:
                shaking = False
                self._shaking[source] -= 1
                if not self._shaking[source]:
                    del self._shaking[source]

        writer: asyncio.StreamWriter | None = None
        try:
            reader, writer = await _encrypt(connection, self._context, self._limits.handshake_s, listening=True)
            await self._accepted(reader, writer, join_address(source, port), proved)
        except PeerMisbehaved as error:
            log.warning("peer.misbehaved", address=join_address(source, port), error=error.message)
        except (IslandError, OSError, TimeoutError, asyncio.IncompleteReadError, ssl.SSLError) as error:
            log.info("peer.not_accepted", address=source, error=str(error) or type(error).__name__)
        finally:
            proved()
            self._connections -= 1
            if writer is not None:
                await hang_up(writer)


async def dial(
    address: str, context: ssl.SSLContext, limits: Limits
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A TLS connection to `host:port`; raises `OSError`, `TimeoutError`, `ConfigError`."""
    host, port = split_address(address, "address")
    async with asyncio.timeout(limits.connect_s):
        connection = await _connect(host, port)
        return await _encrypt(connection, context, limits.connect_s, listening=False)


async def _connect(host: str, port: int) -> socket.socket:
    loop = asyncio.get_running_loop()
    problem: OSError = OSError(f"{host} has no address")
    for family, kind, protocol, _, address in (await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM))[:4]:
        connection = socket.socket(family, kind, protocol)
        try:
            connection.setblocking(False)
            await loop.sock_connect(connection, address)
        except OSError as error:
            connection.close()
            problem = error
        except BaseException:
            connection.close()
            raise
        else:
            return connection
    raise problem


async def _encrypt(
    connection: socket.socket, context: ssl.SSLContext, seconds: float, *, listening: bool
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """TLS over a connected socket, which is closed if that fails."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=READ_AHEAD, loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)

    async def make() -> asyncio.WriteTransport:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        options: dict[str, Any] = {"ssl": context, "ssl_handshake_timeout": seconds, "ssl_shutdown_timeout": 1.0}
        if listening:
            return (await loop.connect_accepted_socket(lambda: protocol, connection, **options))[0]
        return (await loop.create_connection(lambda: protocol, sock=connection, server_hostname="", **options))[0]

    making = loop.create_task(make())
    try:
        transport = await asyncio.shield(making)
    except asyncio.CancelledError:
        # asyncio forgets to close a TLS transport that is cancelled before it has begun, in the
        # first turns of the loop: let it begin, then cancel it.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        making.cancel()
        await asyncio.wait({making})
        if not making.cancelled() and making.exception() is None:
            making.result().abort()
        connection.close()
        raise
    except BaseException:
        connection.close()
        raise
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


async def hang_up(writer: asyncio.StreamWriter) -> None:
    """Close a connection, politely for a moment, then for good."""
    writer.close()
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(0.5):
            await writer.wait_closed()
    writer.transport.abort()


async def own_addresses(host: str, port: int) -> list[str]:
    """Where others can dial a port that is bound to `host`; every address of this machine for a wildcard."""
    if host not in {"0.0.0.0", "::", "*"}:
        return [join_address(host, port)]
    hosts = {_source(socket.AF_INET, "192.0.2.1")}
    if host == "::":
        hosts.add(_source(socket.AF_INET6, "2001:db8::1"))
    with contextlib.suppress(OSError):
        for found in await asyncio.get_running_loop().getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM):
            if found[0] == socket.AF_INET or host == "::":
                hosts.add(str(found[4][0]))
    real = sorted(each for each in hosts if each and "%" not in each and not each.startswith("127.") and each != "::1")
    return [join_address(each, port) for each in (real or ["127.0.0.1"])][:8]


def join_address(host: str, port: int) -> str:
    """`host:port`, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _source(family: int, target: str) -> str:
    # Connecting a datagram socket sends nothing; it only asks the routing table for our address.
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((target, 9))
        return str(probe.getsockname()[0])
    return ""


def _bound(family: int, address: object) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)  # type: ignore[arg-type]  # what getaddrinfo gives is what bind takes
        made.listen(128)
        made.setblocking(False)
    except OSError:
        made.close()
        raise
    return made
