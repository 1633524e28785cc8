"""In-memory bulk streams: a subscription of an island to its own source runs through the same code, without network."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from island.errors import IslandError, PeerRefused, Unreachable
from island.kernel.ids import IslandId
from island.kernel.loops import Tasks
from island.kernel.ports import BulkHandler, BulkStream, Peers

_BLOCKS = 4
_End = IslandError | None


class LocalStream:
    """One end of an in-memory stream with a buffer of a few blocks."""

    def __init__(self, peer: IslandId, inbox: asyncio.Queue[bytes | _End], outbox: asyncio.Queue[bytes | _End]) -> None:
        self.peer, self.sent, self.received = peer, 0, 0
        self._inbox, self._outbox = inbox, outbox
        self._ended: _End | bool = False
        self.closed = asyncio.Event()

    async def send(self, block: bytes) -> None:
        """Send a block; waits while the buffer is full. Raises `Unreachable` if the stream is closed."""
        if self.closed.is_set():
            raise Unreachable("the stream is closed")
        await self._outbox.put(block)
        self.sent += len(block)

    async def receive(self) -> bytes | None:
        """The next block, or None at the end. Raises `PeerRefused` with the error of the other end."""
        if self._ended is False:
            item = await self._inbox.get()
            if isinstance(item, bytes):
                self.received += len(item)
                return item
            self._ended = item
        if isinstance(self._ended, IslandError):
            raise PeerRefused(self._ended.message, hint=self._ended.hint, code=self._ended.code)
        return None

    async def finish(self) -> None:
        """Send the end of the stream."""
        await self._outbox.put(None)


@contextlib.asynccontextmanager
async def open_local(me: IslandId, handler: BulkHandler, body: bytes, tasks: Tasks) -> AsyncIterator[BulkStream]:
    """Run `handler` for a stream from this island to itself."""
    down: asyncio.Queue[bytes | _End] = asyncio.Queue(_BLOCKS)
    up: asyncio.Queue[bytes | _End] = asyncio.Queue(_BLOCKS)
    near, far = LocalStream(me, down, up), LocalStream(me, up, down)

    async def serve() -> None:
        try:
            await handler(me, body, far)
        except IslandError as error:
            await down.put(error)
        except Exception as error:  # reported to the other end, and logged by the task
            await down.put(IslandError(f"the source failed: {error}", hint="The channel tries again by itself."))
            raise
        else:
            await down.put(None)

    task = tasks.spawn("streams.local", serve())
    try:
        yield near
    finally:
        near.closed.set()
        far.closed.set()
        task.cancel()
        await asyncio.wait({task})


@contextlib.asynccontextmanager
async def open_bulk(
    peers: Peers, to: IslandId, kind: str, body: bytes, *, local: dict[str, BulkHandler], tasks: Tasks
) -> AsyncIterator[BulkStream]:
    """A bulk stream to any island, this one included."""
    if to == peers.me:
        async with open_local(to, local[kind], body, tasks) as stream:
            yield stream
    else:
        async with peers.bulk(to, kind, body) as stream:
            yield stream
