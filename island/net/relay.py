"""Relaying requests between two islands that cannot reach each other; limited to public reads.

The origin of a relayed request is only claimed by the relay, so a handler sees the relay as the sender.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Iterator

from island.errors import BadInput, Denied, IslandError, PeerMisbehaved
from island.kernel.ids import IslandId, island_id, key_bytes
from island.net.bulk import SessionStream
from island.net.frames import MAX_HOPS, RequestHead

TIMEOUT_S = 30.0
"""Timeout for the answer of the next island to a relayed request, in seconds."""


def check_relay(head: RequestHead, relayed: Collection[str]) -> IslandId:
    """Return the destination of a request; raises `Denied` if its kind is not relayed or it was relayed already."""
    if head.kind not in relayed:
        raise Denied(f"'{head.kind}' is not relayed for other islands", code="not_relayed")
    if head.hops >= MAX_HOPS:
        raise Denied("the request was relayed before", code="too_many_hops")
    return island_id(head.to)


def onward(head: RequestHead, sender: IslandId) -> RequestHead:
    """Return the head for the next island."""
    return RequestHead(kind=head.kind, to=head.to, origin=head.origin or key_bytes(sender), hops=head.hops + 1)


@contextlib.contextmanager
def blameless(head: RequestHead, relayed: Collection[str]) -> Iterator[None]:
    """Raise `BadInput` instead of `PeerMisbehaved` while a handler serves a request that came through a relay.

    A relay does not read the bodies that it relays. Any member could otherwise end its sessions with the destination.
    """
    try:
        yield
    except PeerMisbehaved as error:
        if head.hops < MAX_HOPS or head.kind not in relayed:
            raise
        raise BadInput(error.message, hint=error.hint, code=error.code) from error


async def pump(requester: SessionStream, server: SessionStream) -> None:
    """Relay blocks in both directions until `server` has ended; flow control limits the memory.

    Raises the `IslandError` with which `server` ended.
    """

    async def carry_there() -> None:
        try:
            await _carry(requester, server)
        except IslandError:
            # The requester has left, or its stream failed: stop fetching from the server.
            requester_gone.set()

    requester_gone = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        there = group.create_task(carry_there())
        back = group.create_task(_carry_back(server, requester))
        gone = group.create_task(requester_gone.wait())
        await asyncio.wait({back, gone}, return_when=asyncio.FIRST_COMPLETED)
        for task in (there, back, gone):
            task.cancel()
    if back.done() and not back.cancelled() and (error := back.result()) is not None:
        raise error


async def _carry_back(source: SessionStream, target: SessionStream) -> IslandError | None:
    try:
        await _carry(source, target)
    except IslandError as error:
        return error
    return None


async def _carry(source: SessionStream, target: SessionStream) -> None:
    while (block := await source.receive()) is not None:
        await target.send(block)
    await target.finish()
