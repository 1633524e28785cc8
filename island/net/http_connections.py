"""Connections to the user port: how many there may be, how long each may take, and which goes for a newer one.

aiohttp closes idle connections only; a client that sends half a request could hold a descriptor for ever.
"""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import StreamReader, web

from island.kernel.stranger_log import StrangerLog
from island.net.api.base import Handler
from island.net.limits import HttpLimits

_FULL = b'{"error":"busy","message":"too many requests are under way","hint":"Try again in a moment.","status":503}'
BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\nRetry-After: 1\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(_FULL), _FULL)
)


class HttpConnections:
    """All connections to one port. `accept` makes the protocol of a new one; `watch` is the outermost middleware."""

    def __init__(self, limits: HttpLimits) -> None:
        self.limits = limits
        self.strangers = StrangerLog()
        self._all: set[HttpConnection] = set()
        # Oldest first. A connection in neither has a request that is being answered.
        self._half_open: dict[HttpConnection, None] = {}
        self._idle: dict[HttpConnection, None] = {}

    def accept(self, server: web.Server, **options: Any) -> HttpConnection:
        """The protocol of a connection to `server`; `options` are those of `aiohttp.web.RequestHandler`."""
        return HttpConnection(self, server, keepalive_timeout=self.limits.idle_s, **options)

    @web.middleware
    async def watch(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Note when a request is complete but for its body, and when it is answered."""
        connection = request.protocol
        assert isinstance(connection, HttpConnection)
        connection.request_began(request.content)
        try:
            return await handler(request)
        finally:
            connection.request_ended()

    def has_room(self, newcomer: HttpConnection) -> bool:
        """Count a new connection, and close the oldest that waits if there are too many; False if none waits."""
        self._all.add(newcomer)
        if len(self._all) <= self.limits.connections:
            return True
        oldest = next(iter(self._half_open or self._idle), None)
        if oldest is None:
            self.strangers.warning("http.full", newcomer.address, connections=len(self._all))
            return False
        oldest.drop("the oldest without a request is closed for a newer one")
        return True

    def half_open(self, connection: HttpConnection) -> None:
        """A request head is due."""
        self._idle.pop(connection, None)
        self._half_open[connection] = None

    def busy(self, connection: HttpConnection) -> None:
        """A request is being answered."""
        self._idle.pop(connection, None)
        self._half_open.pop(connection, None)

    def idle(self, connection: HttpConnection) -> None:
        """Nothing is due."""
        self._idle[connection] = None

    def is_idle(self, connection: HttpConnection) -> bool:
        """Whether nothing was due."""
        return connection in self._idle

    def gone(self, connection: HttpConnection) -> None:
        """Forget a connection."""
        self._all.discard(connection)
        self.busy(connection)


class HttpConnection(web.RequestHandler):
    """One connection, with a limit for a request's head and for pauses in its body."""

    __slots__ = ("_body", "_connections", "_heard", "_timer", "address")

    def __init__(self, connections: HttpConnections, server: web.Server, **options: Any) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(server, loop=loop, **options)
        self._connections = connections
        self._timer: asyncio.TimerHandle | None = None
        self._body: StreamReader | None = None
        self._heard = loop.time()
        self.address = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for a request head, or refuse when everything is busy."""
        super().connection_made(transport)
        self.address = str((transport.get_extra_info("peername") or ("",))[0])
        if self._connections.has_room(self):
            self._head_is_due()
        elif self.transport is not None:
            self.transport.write(BUSY)
            self.force_close()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Give the place to another."""
        self._set_timer(None)
        self._connections.gone(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Note when something came; the first byte after an answer begins another head."""
        self._heard = self._loop.time()
        if data and self._connections.is_idle(self):
            self._head_is_due()
        super().data_received(data)

    def request_began(self, body: StreamReader) -> None:
        """The head is complete; from now on its body is watched."""
        self._connections.busy(self)
        self._set_timer(None)
        if not body.is_eof():
            self._body, self._heard = body, self._loop.time()
            self._set_timer(self._loop.call_later(self._connections.limits.stall_s, self._look_at_body))

    def request_ended(self) -> None:
        """The request was answered; another may follow."""
        self._set_timer(None)
        self._body = None
        if self.transport is not None:
            self._connections.idle(self)

    def drop(self, reason: str) -> None:
        """Close the connection at once."""
        self._connections.strangers.info("http.dropped", self.address, reason=reason)
        self._connections.gone(self)
        if self.transport is not None:
            self.transport.abort()

    def _head_is_due(self) -> None:
        seconds = self._connections.limits.head_s
        self._connections.half_open(self)
        self._set_timer(self._loop.call_later(seconds, self.drop, f"no whole request head within {seconds:g} s"))

    def _look_at_body(self) -> None:
        if self._body is None or self._body.is_eof() or self.transport is None:
            return
        seconds = self._connections.limits.stall_s
        # While reading is paused it is this side that is slow.
        silent = self._loop.time() - self._heard if self.transport.is_reading() else 0.0
        if silent >= seconds:
            self.drop(f"no byte of the request's body within {seconds:g} s")
        else:
            self._set_timer(self._loop.call_later(seconds - silent, self._look_at_body))

    def _set_timer(self, timer: asyncio.TimerHandle | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = timer
