"""The peer port: accepts connections, limits unauthenticated ones, and establishes TLS."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

from aiohappyeyeballs import start_connection

from island.config import split_address
from island.errors import ConfigError, IslandError, PeerMisbehaved, Unreachable
from island.kernel.host_resolver import HostResolver, NetworkAddress
from island.kernel.loops import Tasks
from island.kernel.stranger_log import StrangerLog
from island.net.half_open import HalfOpen
from island.net.limits import PeerLimits

READ_AHEAD = 512 * 1024
"""Buffer size of the stream reader, in bytes."""

_BATCH = 32
_NEXT_ADDRESS_S = 0.25

ConnectionHandler = Callable[[asyncio.StreamReader, asyncio.StreamWriter, str, Callable[[], None]], Awaitable[None]]
"""Serves a connection: reader, writer, remote `host:port`, and a function to call when the peer has proved its key."""


class Listener:
    """The listening socket of the peer port. `start` binds it, `close` closes it."""

    def __init__(
        self,
        listen: str,
        context: ssl.SSLContext,
        limits: PeerLimits,
        accepted: ConnectionHandler,
        resolver: HostResolver,
    ) -> None:
        self._listen, self._context, self._limits, self._accepted = listen, context, limits, accepted
        self._resolver = resolver
        self._socket: socket.socket | None = None
        self._tasks: Tasks | None = None
        self._half_open = HalfOpen[socket.socket](limits.shaking, limits.shaking_per_address)
        self._open: dict[socket.socket, tuple[str, asyncio.Task[None]]] = {}
        self._unserved: set[socket.socket] = set()
        self._strangers = StrangerLog()
        self.host = ""
        self.port: int | None = None
        self.bound: tuple[str, int] | None = None
        """The network address and the port to which the socket is bound."""

    async def start(self, tasks: Tasks) -> None:
        """Bind the port and accept connections.

        Raises `ConfigError` if the port is in use or the address is not one of this machine.
        """
        host, port = split_address(self._listen, "listen.peer")
        try:
            found = await self._resolver.resolve(host, port, flags=socket.AI_PASSIVE)
            self._socket = _bound(found[0].family, found[0].sockaddr)
        except OSError as error:
            raise ConfigError(
                f"listen.peer = '{self._listen}' cannot be bound: {error.strerror or error}",
                hint="Another program uses the port, or the address is not one of this machine: change [listen] in "
                "island.toml.",
            ) from error
        self.bound = self._socket.getsockname()[:2]
        self.host, self.port = host, self.bound[1]
        self._tasks = tasks
        self._resume()

    async def close(self) -> None:
        """Stop accepting connections and close the port."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None

    def _resume(self) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().add_reader(self._socket, self._accept)

    def _accept(self) -> None:
        """Accept waiting connections. A callback, because a cancelled task could lose an accepted connection."""
        for _ in range(_BATCH):
            if self._socket is None:
                return
            try:
                connection, remote = self._socket.accept()
            except (BlockingIOError, ConnectionError, InterruptedError):
                return
            except OSError as error:
                # Most likely the process has no file descriptors left. Pause accepting; existing sessions continue.
                self._strangers.warning("peer.accept_failed", self.host, error=str(error))
                loop = asyncio.get_running_loop()
                loop.remove_reader(self._socket)
                loop.call_later(0.5, self._resume)
                return
            connection.setblocking(False)
            self._take(connection, str(remote[0]), int(remote[1]))

    def _take(self, connection: socket.socket, source: str, port: int) -> None:
        if self._tasks is None:
            connection.close()
            return
        self._unserved.add(connection)
        task = self._tasks.spawn("peers.connection", self._serve(connection, source, port))
        task.add_done_callback(functools.partial(self._served, connection))
        self._open[connection] = source, task
        if (oldest := self._half_open.add(connection, source)) is not None:
            address, victim = self._open[oldest]
            self._strangers.info("peer.not_accepted", address, error="too many handshakes; this was the oldest")
            victim.cancel()

    def _served(self, connection: socket.socket, _: object) -> None:
        del self._open[connection]
        self._half_open.remove(connection)
        if connection in self._unserved:  # the task was cancelled before its first step
            self._unserved.discard(connection)
            connection.close()

    async def _serve(self, connection: socket.socket, source: str, port: int) -> None:
        self._unserved.discard(connection)
        try:
            await _first_byte(connection, self._limits.first_byte_s)
            await self._shake(connection, join_address(source, port))
        except PeerMisbehaved as error:
            self._strangers.warning("peer.misbehaved", source, port=port, error=error.message)
        except (IslandError, OSError, TimeoutError, asyncio.IncompleteReadError, ssl.SSLError) as error:
            self._strangers.info("peer.not_accepted", source, error=str(error) or type(error).__name__)

    async def _shake(self, connection: socket.socket, address: str) -> None:
        """Run TLS and the handshake within `handshake_s`, then the session without a time limit."""
        writer: asyncio.StreamWriter | None = None
        is_proved = False
        try:
            async with asyncio.timeout(self._limits.handshake_s) as deadline:

                def proved() -> None:
                    nonlocal is_proved
                    is_proved = True
                    self._half_open.remove(connection)
                    deadline.reschedule(None)

                reader, writer = await _encrypt(connection, self._context, self._limits.handshake_s, listening=True)
                await self._accepted(reader, writer, address, proved)
        except TimeoutError as error:
            raise Unreachable(f"the handshake took longer than {self._limits.handshake_s:g} s") from error
        except asyncio.CancelledError:
            if writer is not None and not is_proved:
                writer.transport.abort()  # a newer connection needs its place now
            raise
        finally:
            if writer is not None:
                await hang_up(writer)


async def dial(
    address: str, context: ssl.SSLContext, limits: PeerLimits, resolver: HostResolver
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a TLS connection to `host:port`; raises `OSError`, `TimeoutError` or `ConfigError`."""
    host, port = split_address(address, "address")
    async with asyncio.timeout(limits.connect_s):
        connection = await _connect(await resolver.resolve(host, port), host)
        return await _encrypt(connection, context, limits.connect_s, listening=False)


async def _connect(addresses: list[NetworkAddress], host: str) -> socket.socket:
    """Connect to the first address that answers; the next is tried after `_NEXT_ADDRESS_S` or a failure (RFC 8305)."""
    if not addresses:
        raise OSError(f"{host} has no address")
    found = [(family, socket.SOCK_STREAM, protocol, "", address) for family, protocol, address in addresses]
    return await start_connection(found, happy_eyeballs_delay=_NEXT_ADDRESS_S, interleave=1)


async def _first_byte(connection: socket.socket, seconds: float) -> None:
    """Wait for the first byte before memory is allocated for TLS; closes the socket on failure."""
    loop = asyncio.get_running_loop()
    heard = asyncio.Event()
    try:
        loop.add_reader(connection, heard.set)
        try:
            async with asyncio.timeout(seconds):
                await heard.wait()
        finally:
            loop.remove_reader(connection)
    except TimeoutError as error:
        connection.close()
        raise Unreachable(f"no data were received within {seconds:g} s") from error
    except BaseException:
        connection.close()
        raise


async def _encrypt(
    connection: socket.socket, context: ssl.SSLContext, seconds: float, *, listening: bool
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Establish TLS over a connected socket; closes the socket on failure."""
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
        # The end of the connection ends the handshake. If `making` were cancelled instead, asyncio would not close a
        # transport that has not started yet, and would keep one open whose handshake has just ended until the other
        # side answers its end of TLS. Its closed descriptor could then not be used for the next connection.
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        making.add_done_callback(functools.partial(_abandon, connection))
        await asyncio.wait({making})
        raise
    except BaseException:
        connection.close()
        raise
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


def _abandon(connection: socket.socket, making: asyncio.Task[asyncio.WriteTransport]) -> None:
    if not making.cancelled() and making.exception() is None:
        making.result().abort()
    connection.close()


async def hang_up(writer: asyncio.StreamWriter) -> None:
    """Close a connection; abort it if it is not closed within half a second."""
    writer.close()
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(0.5):
            await writer.wait_closed()
    writer.transport.abort()


async def own_addresses(host: str, port: int, resolver: HostResolver) -> list[str]:
    """Return the addresses at which others can dial a port that is bound to `host`, at most 8.

    For a wildcard address these are the addresses of this machine.
    """
    if host not in {"0.0.0.0", "::", "*"}:
        return [join_address(host, port)]
    hosts = {_source(socket.AF_INET, "192.0.2.1")}
    if host == "::":
        hosts.add(_source(socket.AF_INET6, "2001:db8::1"))
    with contextlib.suppress(OSError):
        for found in await resolver.resolve(socket.gethostname(), port):
            if found.family == socket.AF_INET or host == "::":
                hosts.add(str(found.sockaddr[0]))
    real = sorted(each for each in hosts if each and "%" not in each and not each.startswith("127.") and each != "::1")
    return [join_address(each, port) for each in (real or ["127.0.0.1"])][:8]


def join_address(host: str, port: int) -> str:
    """Return `host:port`, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _source(family: int, target: str) -> str:
    # Connecting a datagram socket sends no packet. It only selects the local address for the route to `target`.
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((target, 9))
        return str(probe.getsockname()[0])
    return ""


def _bound(family: int, address: object) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)  # type: ignore[arg-type]  # an address from getaddrinfo
        made.listen(128)
        made.setblocking(False)
    except OSError:
        made.close()
        raise
    return made
