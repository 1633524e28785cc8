"""Serves chunks to other islands: an owner from its published files, another holder from its chunk store.

Every chunk is verified before it is sent. An owner whose files have changed answers with an
error, and a holder never sends data that were damaged on its disk. Sent bytes are counted per
snapshot.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import AsyncIterator, Callable, Sequence

from island.errors import BadInput, IslandError, Unreachable
from island.kernel import codec, telemetry
from island.kernel.ids import IslandId
from island.kernel.ports import BulkStream, Peers
from island.kernel.stranger_log import StrangerLog
from island.replicas.chunk_store import ChunkStore
from island.replicas.messages import KIND, MAX_BYTES, MAX_RANGES, ChunkRequest

_SENT = telemetry.BoundedCounter("replica_sent_bytes", "Bytes of chunks sent to other islands", "dataset", 100)

ANSWERS, ANSWERS_A_PEER = 64, 8
"""Maximum number of answers in progress, in total and to one island. Further requests wait."""
STALL_S = 30.0
"""Seconds within which the requesting island must accept a block. A stalled answer would block other requests."""
BLOCK = 64 * 1024
"""Bytes in one block: a quarter of a stream's window, so that there is always data to send."""

Blocks = Callable[[int, int], AsyncIterator[bytes]]
"""Yields the verified bytes from `start` to `end`, which are chunk borders. Raises `NotFound` if they are absent."""


class ChunkServer:
    """Answers requests of the bulk kind `chunks`.

    `open_file(request, path)` is an async context manager with the `Blocks` of one file. It
    raises `NotFound` if this island does not have the file; the blocks raise `FilesChanged` if
    a published file has changed.
    """

    def __init__(
        self,
        chunk_store: ChunkStore,
        peers: Peers,
        open_file: Callable[[ChunkRequest, str], contextlib.AbstractAsyncContextManager[Blocks]],
        display: Callable[[IslandId], str],
    ) -> None:
        self._chunk_store, self._open_file, self._display = chunk_store, open_file, display
        self._slots = asyncio.Semaphore(ANSWERS)
        self._turns: weakref.WeakValueDictionary[IslandId, asyncio.Semaphore] = weakref.WeakValueDictionary()
        self._lines = StrangerLog("key")
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
            self._lines.info(
                "replicas.answer_stalled", peer, peer=self._display(peer), dataset=request.name, bytes=sent
            )
            raise Unreachable(
                f"the answer was stopped: no block was accepted for {STALL_S:g} s",
                hint="Request the missing chunks again.",
            ) from error
        except IslandError as error:
            self._lines.info(
                "replicas.not_served", peer, peer=self._display(peer), dataset=request.name, error=error.message
            )
            raise
        finally:
            if sent:  # unknown names are not counted: another island could fill the memory with them
                self._chunk_store.count(key, sent=sent)
                dataset = f"{self._display(request.owner_id)}/{request.name}"
                _SENT.labels(dataset).inc(sent)

    async def _blocks(
        self, request: ChunkRequest, path: str, ranges: Sequence[tuple[int, int]]
    ) -> AsyncIterator[bytes]:
        async with self._open_file(request, path) as portions:
            for start, end in ranges:
                async for data in portions(start, end):
                    for at in range(0, len(data), BLOCK):
                        yield data[at : at + BLOCK]


def check_request(request: ChunkRequest) -> None:
    """Raise `BadInput` for a request that exceeds a limit or has an empty range."""
    ranges = [span for piece in request.pieces for span in piece.ranges]
    if len(ranges) > MAX_RANGES or any(start >= end for start, end in ranges):
        raise BadInput(f"a request must have at most {MAX_RANGES} ranges, and no empty range")
    if request.size() > MAX_BYTES:
        raise BadInput(f"a request may ask for at most {MAX_BYTES} bytes; this one asks for {request.size()}")
