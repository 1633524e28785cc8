"""Chunks for other islands: an owner serves its published files in place, a holder what it has verified.

Every chunk is hashed before it is sent, so that an owner whose files changed says so, and no
holder is blamed for a disk that rots. What is sent is counted for its dataset.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import AsyncIterator, Callable, Sequence

import structlog

from island.errors import BadInput, IslandError, Unreachable
from island.kernel import codec, telemetry
from island.kernel.ids import IslandId
from island.kernel.ports import BulkStream, Peers
from island.replicas.chunk_store import ChunkStore
from island.replicas.messages import KIND, MAX_BYTES, MAX_RANGES, ChunkRequest

log = structlog.get_logger("island")

_SENT = telemetry.counter("replica_sent_bytes", "Bytes of chunks sent to other islands", ("dataset",))

ANSWERS, ANSWERS_A_PEER = 64, 8
"""Answers under way at once, to all and to one island; further ones wait."""
STALL_S = 30.0
"""Seconds in which an asker must take a block: one that takes nothing keeps others from their turn."""
BLOCK = 64 * 1024
"""Bytes in one block: a quarter of a stream's window, so that it never runs dry."""

Blocks = Callable[[int, int], AsyncIterator[bytes]]
"""Verified bytes from `start` to `end`, both at borders of chunks, in portions; raises where they are not here."""


class ChunkServer:
    """Answers the bulk kind `chunks`.

    `open_file(request, path)` is a context with the `Blocks` of one file, and raises `NotFound`
    where this island does not have the file, `Changed` where it is not what was published.
    """

    def __init__(
        self,
        chunk_store: ChunkStore,
        peers: Peers,
        open_file: Callable[[ChunkRequest, str], contextlib.AbstractAsyncContextManager[Blocks]],
        display: Callable[[IslandId], str],
    ) -> None:
        self._held, self._open_file, self._display = chunk_store, open_file, display
        self._slots = asyncio.Semaphore(ANSWERS)
        self._turns: weakref.WeakValueDictionary[IslandId, asyncio.Semaphore] = weakref.WeakValueDictionary()
        peers.on_bulk(KIND, self._serve)

    async def _serve(self, peer: IslandId, body: bytes, stream: BulkStream) -> None:
        request = codec.decode(body, ChunkRequest)
        check_request(request)
        key = (request.owner_id, request.name, request.snapshot)
        sent = 0
        if (turns := self._turns.get(peer)) is None:
            turns = self._turns[peer] = asyncio.Semaphore(ANSWERS_A_PEER)
        try:
            async with turns, self._slots:
                for piece in request.pieces:
                    async for block in self._blocks(request, piece.path, piece.ranges):
                        async with asyncio.timeout(STALL_S):
                            await stream.send(block)
                        sent += len(block)
                await stream.finish()
        except TimeoutError as error:
            log.info("replicas.not_taken", peer=self._display(peer), dataset=request.name, bytes=sent)
            raise Unreachable(f"nothing was taken for {STALL_S:g} s", hint="Ask again for what is missing.") from error
        except IslandError as error:
            log.info("replicas.not_served", peer=self._display(peer), dataset=request.name, error=error.message)
            raise
        finally:
            if sent:  # names that only an asker knows are not counted, or it could fill the memory with them
                self._held.count(key, sent=sent)
                _SENT.labels(f"{self._display(request.owner_id)}/{request.name}").inc(sent)

    async def _blocks(
        self, request: ChunkRequest, path: str, ranges: Sequence[tuple[int, int]]
    ) -> AsyncIterator[bytes]:
        async with self._open_file(request, path) as portions:
            for start, end in ranges:
                async for data in portions(start, end):
                    for at in range(0, len(data), BLOCK):
                        yield data[at : at + BLOCK]


def check_request(request: ChunkRequest) -> None:
    """Raises `BadInput` for a request over the limits, or with ranges that are empty."""
    ranges = [span for piece in request.pieces for span in piece.ranges]
    if len(ranges) > MAX_RANGES or any(start >= end for start, end in ranges):
        raise BadInput(f"a request has at most {MAX_RANGES} ranges, and none of them is empty")
    if request.size() > MAX_BYTES:
        raise BadInput(f"a request asks for at most {MAX_BYTES} bytes, this one for {request.size()}")
