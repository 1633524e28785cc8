"""Islands in memory: bulk streams between islands of one process, which can be broken and made unreachable."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator

from island.errors import IslandError, PeerMisbehaved, PeerRefused, Unreachable
from island.kernel.ids import IslandId
from island.kernel.ports import BulkHandler, BulkStream, Link, LinkListener, PushHandler, RequestHandler

ROOM = 4


class End:
    """One end of a stream. Only `ROOM` blocks are buffered, so a slow reader blocks the sender."""

    def __init__(self, peer: IslandId, condition: asyncio.Condition) -> None:
        self.peer, self.sent, self.received = peer, 0, 0
        self.inbox: deque[bytes | IslandError | None] = deque()
        self.other: End = self
        self.broken = False
        self._condition = condition

    async def send(self, block: bytes) -> None:
        async with self._condition:
            await self._condition.wait_for(lambda: self.broken or len(self.other.inbox) < ROOM)
            if self.broken:
                raise Unreachable("the session was lost")
            self.other.inbox.append(block)
            self.sent += len(block)
            self._condition.notify_all()

    async def receive(self) -> bytes | None:
        async with self._condition:
            await self._condition.wait_for(lambda: self.broken or bool(self.inbox))
            if self.broken:
                raise Unreachable("the session was lost")
            item = self.inbox[0]
            if isinstance(item, bytes):
                self.inbox.popleft()
                self.received += len(item)
                self._condition.notify_all()
                return item
        if isinstance(item, IslandError):
            raise PeerRefused(item.message, hint=item.hint, code=item.code)
        return None

    async def finish(self, error: IslandError | None = None) -> None:
        async with self._condition:
            self.other.inbox.append(error)
            self._condition.notify_all()

    async def sever(self) -> None:
        async with self._condition:
            self.broken = self.other.broken = True
            self._condition.notify_all()


class Wire:
    """The reachable islands of a test by id, and the open streams between them."""

    def __init__(self) -> None:
        self.islands: dict[IslandId, MemoryPeers] = {}
        self.open: set[tuple[IslandId, End]] = set()

    def join(self, island: IslandId) -> MemoryPeers:
        """Add a new island, or an island after a restart."""
        peers = MemoryPeers(island, self)
        self.islands[island] = peers
        return peers

    def announce(self, island: IslandId) -> None:
        """Notify the other islands of a new session with `island`."""
        for peers in self.islands.values():
            if peers.me != island:
                for listener in peers.listeners:
                    listener(island, True)

    async def take_down(self, island: IslandId) -> None:
        """Remove an island and break its streams."""
        self.islands.pop(island, None)
        await self.cut(island)

    async def cut(self, island: IslandId) -> None:
        """Break all streams of an island."""
        for other, end in list(self.open):
            if island in (other, end.peer):
                await end.sever()


class MemoryPeers:
    """The part of `kernel.ports.Peers` that streams use."""

    def __init__(self, me: IslandId, wire: Wire) -> None:
        self.me, self._wire = me, wire
        self.bulk_handlers: dict[str, BulkHandler] = {}
        self.requests: dict[str, RequestHandler] = {}
        self.pushes: dict[str, PushHandler] = {}
        self.listeners: list[LinkListener] = []

    def links(self) -> list[Link]:
        return [self._link(other) for other in sorted(self._wire.islands) if other != self.me]

    def link(self, island: IslandId) -> Link | None:
        return self._link(island) if island in self._wire.islands else None

    @staticmethod
    def _link(island: IslandId) -> Link:
        return Link(island=island, since=0.0, dialled=True, address="", rtt=0.001, bandwidth=None)

    async def request(self, to: IslandId, kind: str, body: bytes, *, timeout: float = 10.0) -> bytes:
        peers = self._wire.islands.get(to)
        if peers is None or kind not in peers.requests:
            raise Unreachable(f"{to[:8]} is not there")
        try:
            return await peers.requests[kind](self.me, body)
        except IslandError as error:
            raise PeerRefused(error.message, hint=error.hint, code=error.code) from error

    def push(self, to: IslandId, kind: str, body: bytes) -> bool:
        return False

    def blame(self, island: IslandId, error: PeerMisbehaved) -> None:
        raise AssertionError(f"{island[:8]} is blamed") from error

    @contextlib.asynccontextmanager
    async def bulk(self, to: IslandId, kind: str, body: bytes, *, timeout: float = 10.0) -> AsyncIterator[BulkStream]:
        peers = self._wire.islands.get(to)
        if peers is None:
            raise Unreachable(f"{to[:8]} is not there")
        condition = asyncio.Condition()
        near, far = End(to, condition), End(self.me, condition)
        near.other, far.other = far, near

        async def serve() -> None:
            try:
                await peers.bulk_handlers[kind](self.me, body, far)
            except IslandError as error:
                await far.finish(error)
            else:
                await far.finish()

        self._wire.open.add((self.me, near))
        task = asyncio.create_task(serve())
        try:
            yield near
        finally:
            self._wire.open.discard((self.me, near))
            await near.sever()
            await asyncio.wait({task}, timeout=5)
            task.cancel()

    def on_request(self, kind: str, handler: RequestHandler) -> None:
        self.requests[kind] = handler

    def on_push(self, kind: str, handler: PushHandler) -> None:
        self.pushes[kind] = handler

    def on_bulk(self, kind: str, handler: BulkHandler) -> None:
        self.bulk_handlers[kind] = handler

    def on_link(self, listener: LinkListener) -> None:
        self.listeners.append(listener)
