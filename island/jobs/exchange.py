"""Transport of requests about jobs: on the control session, or through a bulk stream when they are long.

Requests to this island itself are plain calls, so home and executor use the same code whether
or not they are the same island. A refusal raises `PeerRefused` in both cases.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from island.errors import DiskFailed, IslandError, PeerRefused, Unreachable
from island.jobs.messages import MAX_MESSAGE, AnswerTooLarge, JobBulkRequest
from island.kernel import codec
from island.kernel.codec import Malformed, Message
from island.kernel.ids import IslandId
from island.kernel.ports import BulkStream, Peers

R = TypeVar("R", bound=Message)
A = TypeVar("A", bound=Message)

Handler = Callable[[IslandId, Any], Awaitable[Message]]

PREFIX = "job."
BULK = "job"
_ROOM = codec.CONTROL_LIMIT - 1024
_SIZE = 4
"""Bytes of the length prefix of an answer in a bulk stream. The length shows whether an answer is complete."""

_BLOCK = codec.BULK_LIMIT - 1024
_AT_ONCE = 8
"""Maximum number of long requests of one island that are handled at a time; more of them wait."""
_PARTS = 1024
"""Maximum number of blocks of one long message. Empty blocks cost the sender nothing, but the receiver memory."""
_LONG_S = 60.0
"""Time limit in seconds for receiving a long request, and again for sending its answer; homes repeat requests."""


class JobExchange:
    """Sends and answers the requests `job.*`."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self._served: dict[str, tuple[type[Message], Handler]] = {}
        self._turns: weakref.WeakValueDictionary[IslandId, asyncio.Semaphore] = weakref.WeakValueDictionary()
        peers.on_bulk(BULK, self._on_bulk)

    def serve(self, kind: str, request: type[R], handler: Callable[[IslandId, R], Awaitable[Message]]) -> None:
        """Answer requests of a kind with what `handler(sender, request)` returns."""
        self._served[kind] = (request, handler)

        async def answer(sender: IslandId, body: bytes) -> bytes:
            encoded = codec.encode(await handler(sender, codec.decode(body, request)))
            return encoded if len(encoded) <= _ROOM else codec.encode(AnswerTooLarge(large=len(encoded)))

        self._peers.on_request(PREFIX + kind, answer)

    async def ask(self, to: IslandId, kind: str, request: Message, answer: type[A], *, timeout: float = 10.0) -> A:
        """Send a request to an island, which may be this one, and return its answer.

        `timeout` is in seconds; 50 s are added for a request or an answer that needs a bulk stream. A request to
        this island is cancelled after `timeout`, because an engine that hangs must not stop the routing of a job.
        Raises `Unreachable`, or `PeerRefused` with the code of the refusal.
        """
        if to == self._peers.me:
            return await self._ask_here(kind, request, answer, timeout)
        body = codec.encode(request)
        if len(body) <= _ROOM:
            encoded = await self._peers.request(to, PREFIX + kind, body, timeout=timeout)
            size = _large(encoded)
            if size is None:
                return codec.decode(encoded, answer)
        async with _within(timeout + 50):
            return codec.decode(await self._ask_bulk(to, kind, body, timeout), answer)

    async def _ask_here(self, kind: str, request: Message, answer: type[A], timeout: float) -> A:
        try:
            async with asyncio.timeout(timeout):
                found = await self._served[kind][1](self._peers.me, request)
            assert isinstance(found, answer)
            return found
        except TimeoutError as error:
            raise Unreachable(
                f"this island's engine or disk gave no answer within {timeout:.0f} s",
                hint="Restart the Livy server if it hangs. The built-in engine restarts when its process is ended.",
            ) from error
        except (Unreachable, DiskFailed):
            raise
        except IslandError as error:
            raise PeerRefused(error.message, hint=error.hint, code=error.code) from error

    async def _ask_bulk(self, to: IslandId, kind: str, body: bytes, timeout: float) -> bytes:
        head = codec.encode(JobBulkRequest(kind=kind, size=len(body)))
        async with self._peers.bulk(to, BULK, head, timeout=timeout) as stream:
            await _send(stream, body)
            await stream.finish()
            found = await _receive(stream, MAX_MESSAGE + _SIZE)
        size = int.from_bytes(found[:_SIZE], "big")
        if len(found) != _SIZE + size:
            raise Unreachable("the answer was incomplete", hint="The request is repeated.")
        return found[_SIZE:]

    async def _on_bulk(self, sender: IslandId, opening: bytes, stream: BulkStream) -> None:
        head = codec.decode(opening, JobBulkRequest)
        served = self._served.get(head.kind)
        if served is None:
            raise Malformed(f"unknown request about jobs: '{head.kind[:50]}'")
        if (turns := self._turns.get(sender)) is None:
            turns = self._turns[sender] = asyncio.Semaphore(_AT_ONCE)
        async with turns:
            async with _within(_LONG_S):
                body = await _receive(stream, head.size)
            if len(body) < head.size:
                return  # the sender closed the stream before the request was complete
            request = codec.decode(body, served[0])
            answer = codec.encode(await served[1](sender, request))
            async with _within(_LONG_S):
                await _send(stream, len(answer).to_bytes(_SIZE, "big") + answer)
                await stream.finish()


@contextlib.asynccontextmanager
async def _within(seconds: float) -> Any:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise Unreachable(f"no complete answer within {seconds:.0f} s", hint="The request is repeated.") from error


async def _send(stream: BulkStream, data: bytes) -> None:
    for start in range(0, max(len(data), 1), _BLOCK):
        await stream.send(data[start : start + _BLOCK])


async def _receive(stream: BulkStream, limit: int) -> bytes:
    parts, size = [], 0
    while (block := await stream.receive()) is not None:
        size += len(block)
        if size > limit:
            raise Malformed(f"a message about jobs has more than {limit} bytes")
        parts.append(block)
        if len(parts) > _PARTS:
            raise Malformed(f"a message about jobs has more than {_PARTS} blocks")
    return b"".join(parts)


def _large(encoded: bytes) -> int | None:
    # `AnswerTooLarge` is the only struct with the single key "large"; a longer answer is another struct.
    if len(encoded) > 16 or b"large" not in encoded:
        return None
    return codec.decode(encoded, AnswerTooLarge).large
