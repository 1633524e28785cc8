"""Registry of the handlers for requests, pushes and streams of other islands."""

from __future__ import annotations

from typing import TypeVar

from island.errors import IslandError, NotFound
from island.kernel.codec import CONTROL_LIMIT
from island.kernel.ids import IslandId
from island.kernel.ports import BulkHandler, BulkStream, PushHandler, RequestHandler
from island.kernel.stranger_log import StrangerLog

T = TypeVar("T")


class Handlers:
    """The registered handlers, by kind. A handler may raise `IslandError`, which is sent to the other side."""

    def __init__(self, lines: StrangerLog) -> None:
        self._lines = lines
        self._requests: dict[str, RequestHandler] = {}
        self._pushes: dict[str, PushHandler] = {}
        self._bulks: dict[str, BulkHandler] = {}
        self.relayed: set[str] = set()
        """Kinds that this island relays for other islands: public reads only."""

    def add_request(self, kind: str, handler: RequestHandler) -> None:
        """Register the handler of a request kind; raises `IslandError` if the kind has one already."""
        _once(self._requests, kind, handler)

    def add_push(self, kind: str, handler: PushHandler) -> None:
        """Register the handler of a push kind; raises `IslandError` if the kind has one already."""
        _once(self._pushes, kind, handler)

    def add_bulk(self, kind: str, handler: BulkHandler) -> None:
        """Register the handler of a bulk kind; raises `IslandError` if the kind has one already."""
        _once(self._bulks, kind, handler)

    async def request(self, sender: IslandId, kind: str, body: bytes) -> bytes:
        """Return the answer to a request; exceptions of the handler are raised as `IslandError`."""
        if (handler := self._requests.get(kind)) is None:
            raise _unknown(kind)
        try:
            answer = await handler(sender, body)
        except IslandError:
            raise
        except Exception as error:  # an unexpected error of a handler is reported as an internal error of this island
            raise self._bug(sender, kind, error) from error
        if len(answer) > CONTROL_LIMIT:
            self._lines.error("peer.answer_too_large", sender, kind=kind, bytes=len(answer))
            raise IslandError("the answer is too large", code="too_large")
        return answer

    async def push(self, sender: IslandId, kind: str, body: bytes) -> None:
        """Handle a push; an unknown kind is ignored. Exceptions of the handler are raised as `IslandError`."""
        if (handler := self._pushes.get(kind)) is None:
            return
        try:
            await handler(sender, body)
        except IslandError:
            raise
        except Exception as error:  # as above
            raise self._bug(sender, kind, error) from error

    async def bulk(self, sender: IslandId, kind: str, body: bytes, stream: BulkStream) -> None:
        """Serve a stream; exceptions of the handler are raised as `IslandError`."""
        if (handler := self._bulks.get(kind)) is None:
            raise _unknown(kind)
        try:
            await handler(sender, body, stream)
        except IslandError:
            raise
        except Exception as error:  # as above
            raise self._bug(sender, kind, error) from error

    def _bug(self, sender: IslandId, kind: str, error: Exception) -> IslandError:
        self._lines.error("peer.handler_failed", sender, kind=kind, exc_info=error)
        return IslandError(
            "an internal error of this island", code="internal_error", hint="See its log: event peer.handler_failed."
        )


def _once(registry: dict[str, T], kind: str, handler: T) -> None:
    if kind in registry:
        raise IslandError(f"'{kind}' already has a handler")
    registry[kind] = handler


def _unknown(kind: str) -> NotFound:
    return NotFound(
        f"this island does not support '{kind}'", hint="It may run another version of island.", code="unknown_kind"
    )
