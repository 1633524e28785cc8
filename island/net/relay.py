"""Relaying requests between two islands that cannot reach each other; limited to public reads.

The origin of a relayed request is only claimed by the relay, so a handler sees the relay as the sender.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Coroutine, Iterator

from island.errors import BadInput, Denied, IslandError, PeerMisbehaved, Unreachable
from island.kernel.ids import IslandId, island_id, key_bytes
from island.net.bulk import SessionStream
from island.net.frames import MAX_HOPS, RequestHead

TIMEOUT_S = 30.0
"""Timeout for the answer of the next island to a relayed request, and for each wait for a turn, in seconds."""


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


async def pump(requester: SessionStream, server: SessionStream, stall_s: float) -> None:
    """Relay blocks in both directions until `server` has ended; flow control limits the memory.

    Raises the `IslandError` with which `server` ended, or because of which the requester gets no more blocks:
    `Unreachable` (`stalled`) if one side accepts no block for `stall_s` seconds.
    """
    async with asyncio.TaskGroup() as group:
        there = group.create_task(_outcome(_carry(requester, server, stall_s)))
        back = group.create_task(_outcome(_carry(server, requester, stall_s)))
        await asyncio.wait({there, back}, return_when=asyncio.FIRST_COMPLETED)
        if not back.done() and requester.is_open and not _is_stalled(there.result()):
            await asyncio.wait({back})  # the server accepts no more blocks, and may still send some
        there.cancel()
        back.cancel()
    if (error := (back if back.done() and not back.cancelled() else there).result()) is not None:
        raise error


async def _outcome(work: Coroutine[None, None, None]) -> IslandError | None:
    try:
        await work
    except IslandError as error:
        return error
    return None


def _is_stalled(error: IslandError | None) -> bool:
    return error is not None and error.code == "stalled"


async def _carry(source: SessionStream, target: SessionStream, stall_s: float) -> None:
    while (block := await source.receive()) is not None:
        try:
            async with asyncio.timeout(stall_s):
                await target.send(block)
        except TimeoutError as error:
            raise Unreachable(
                f"the relayed stream was stopped: no block was accepted for {stall_s:g} s", code="stalled"
            ) from error
    await target.finish()
