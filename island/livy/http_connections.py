"""Limits for connections to the port of a daemon's users or of an engine.

Limited are their number, their pauses, and the output that waits for them; if there are too many, one is closed for a
new one.

aiohttp has a timeout for idle connections only. Without these limits, a client that sends half a request, or does not
read its answer, could hold a file descriptor and memory without limit.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import StreamReader, web
from aiohttp.http_exceptions import HttpProcessingError

from island.kernel.stranger_log import StrangerLog

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_FULL = b'{"error":"busy","message":"too many requests are being served","hint":"Try again in a moment.","status":503}'
BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\nRetry-After: 1\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(_FULL), _FULL)
)

WRITE_BUFFER = 64 * 1024
"""Bytes of an answer that wait in a connection; above it, the handler waits until the client has read."""


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Limits of connections to one port. Durations are in seconds.

    There is no limit per address: connections come from this machine only, so all clients behind a tunnel or a
    reverse proxy have the same address.
    """

    connections: int = 1024
    """Maximum number of connections; a new one closes the oldest one that has no request."""
    head_s: float = 10.0
    """Timeout for a complete request head, from the connection or from the first byte of a later request."""
    stall_s: float = 30.0
    """Timeout for the next data of a request's body, and for the client to read more of an answer."""
    idle_s: float = 75.0
    """Timeout between two requests."""


class HttpConnections:
    """All connections to one port. `accept` is the protocol factory; `watch` must be the outermost middleware."""

    def __init__(self, limits: HttpLimits) -> None:
        self.limits = limits
        self.strangers = StrangerLog()
        self._logger = _logger(self.strangers)
        self._all: set[HttpConnection] = set()
        # Oldest first. A connection that is in neither dict has a request that is being served.
        self._half_open: dict[HttpConnection, None] = {}
        self._idle: dict[HttpConnection, None] = {}

    def accept(self, server: web.Server, **options: Any) -> HttpConnection:
        """Return the protocol of a new connection; `options` are those of `aiohttp.web.RequestHandler`."""
        options = {"access_log": None, "logger": self._logger, "keepalive_timeout": self.limits.idle_s, **options}
        return HttpConnection(self, server, **options)

    @web.middleware
    async def watch(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Record when the head of a request is complete, and when the request is answered."""
        connection = request.protocol
        assert isinstance(connection, HttpConnection)
        connection.request_began(request.content)
        try:
            return await handler(request)
        finally:
            connection.request_ended()

    def has_room(self, newcomer: HttpConnection) -> bool:
        """Add a connection; above the limit, close the oldest one without a request, or return False if none."""
        self._all.add(newcomer)
        if len(self._all) <= self.limits.connections:
            return True
        oldest = next(iter(self._half_open or self._idle), None)
        if oldest is None:
            self.strangers.warning("http.full", newcomer.address, connections=len(self._all))
            return False
        oldest.drop("the connection limit was reached; this was the oldest connection without a request")
        return True

    def half_open(self, connection: HttpConnection) -> None:
        """Mark a connection as waiting for a request head."""
        self._idle.pop(connection, None)
        self._half_open[connection] = None

    def busy(self, connection: HttpConnection) -> None:
        """Mark a connection as serving a request."""
        self._idle.pop(connection, None)
        self._half_open.pop(connection, None)

    def idle(self, connection: HttpConnection) -> None:
        """Mark a connection as idle between two requests."""
        self._idle[connection] = None

    def is_idle(self, connection: HttpConnection) -> bool:
        """Return whether a connection is idle."""
        return connection in self._idle

    def gone(self, connection: HttpConnection) -> None:
        """Remove a connection that is closed."""
        self._all.discard(connection)
        self.busy(connection)


class HttpConnection(web.RequestHandler):
    """A connection with timeouts for the head of a request, for pauses in its body, and for an answer that waits."""

    __slots__ = ("_body", "_connections", "_heard", "_timer", "_unread_timer", "_wire", "address")

    def __init__(self, connections: HttpConnections, server: web.Server, **options: Any) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(server, loop=loop, **options)
        self._connections = connections
        self._timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None
        # A reference of its own: aiohttp forgets the transport when it closes a connection, but the transport stays
        # open until the client has read everything.
        self._wire: asyncio.Transport | None = None
        self._body: StreamReader | None = None
        self._heard = loop.time()
        self.address = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the timeout for the first request head, or refuse the connection if all others are busy."""
        super().connection_made(transport)
        self._wire = self.transport
        if self._wire is not None:
            self._wire.set_write_buffer_limits(WRITE_BUFFER)
        self.address = str((transport.get_extra_info("peername") or ("",))[0])
        if self._connections.has_room(self):
            self._head_is_due()
        elif self.transport is not None:
            self.transport.write(BUSY)
            self.force_close()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Stop the timers and remove the connection."""
        self._set_timer(None)
        self._set_unread_timer(None)
        self._wire = None
        self._connections.gone(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Record the time; the first byte after an answer starts the timeout for the next head."""
        self._heard = self._loop.time()
        if data and self._connections.is_idle(self):
            self._head_is_due()
        super().data_received(data)

    def pause_writing(self) -> None:
        """Start the timeout for the client to read more of its answer."""
        super().pause_writing()
        if self._wire is not None:
            self._answer_waits(self._wire.get_write_buffer_size())

    def resume_writing(self) -> None:
        """Stop the timeout for the client to read more of its answer."""
        super().resume_writing()
        self._set_unread_timer(None)

    def request_began(self, body: StreamReader) -> None:
        """Stop the timeout for the head, and start that for pauses in the body."""
        self._connections.busy(self)
        self._set_timer(None)
        if not body.is_eof():
            self._body, self._heard = body, self._loop.time()
            self._set_timer(self._loop.call_later(self._connections.limits.stall_s, self._look_at_body))

    def request_ended(self) -> None:
        """Mark the connection as idle after the answer."""
        self._set_timer(None)
        self._body = None
        if self.transport is not None:
            self._connections.idle(self)

    def drop(self, reason: str) -> None:
        """Abort the connection and log the reason."""
        self._connections.strangers.info("http.dropped", self.address, reason=reason)
        self._connections.gone(self)
        if self._wire is not None:
            self._wire.abort()

    def _head_is_due(self) -> None:
        seconds = self._connections.limits.head_s
        self._connections.half_open(self)
        self._set_timer(self._loop.call_later(seconds, self.drop, f"no complete request head within {seconds:g} s"))

    def _look_at_body(self) -> None:
        if self._body is None or self._body.is_eof() or self.transport is None:
            return
        seconds = self._connections.limits.stall_s
        # While reading is paused, the pause is caused by this side.
        silent = self._loop.time() - self._heard if self.transport.is_reading() else 0.0
        if silent >= seconds:
            self.drop(f"no data of the request's body within {seconds:g} s")
        else:
            self._set_timer(self._loop.call_later(seconds - silent, self._look_at_body))

    def _answer_waits(self, unread: int) -> None:
        seconds = self._connections.limits.stall_s
        self._set_unread_timer(self._loop.call_later(seconds, self._look_at_answer, unread))

    def _look_at_answer(self, unread: int) -> None:
        if self._wire is None:
            return
        if (left := self._wire.get_write_buffer_size()) < unread:
            self._answer_waits(left)
        else:
            self.drop(f"nothing of an answer was read for {self._connections.limits.stall_s:g} s")

    def _set_unread_timer(self, timer: asyncio.TimerHandle | None) -> None:
        if self._unread_timer is not None:
            self._unread_timer.cancel()
        self._unread_timer = timer

    def _set_timer(self, timer: asyncio.TimerHandle | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = timer


class _Lines(logging.Handler):
    """Writes log messages of aiohttp to the island's log, limited in rate.

    A malformed request is one line without a traceback. A connection that the client has closed is not an error.
    """

    def __init__(self, strangers: StrangerLog) -> None:
        super().__init__()
        self._strangers = strangers

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, ConnectionError):
            return
        # The only argument of aiohttp's log message is the address.
        address = str(record.args[0]) if isinstance(record.args, tuple) and record.args else "unknown"
        if isinstance(error, HttpProcessingError | web.RequestPayloadError):
            self._strangers.info("http.malformed", address, error=" ".join(str(error).split())[:300])
        else:
            self._strangers.error("http.failed", address, message=record.getMessage(), exc_info=record.exc_info)


def _logger(strangers: StrangerLog) -> logging.Logger:
    logger = logging.Logger("island.http", logging.WARNING)
    logger.addHandler(_Lines(strangers))
    return logger
