"""Passing on what one island asks of another that it cannot reach: public reads only, bounded.

Who began is the word of the one that passes on, so a handler sees the relay as the sender.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from island.errors import Denied, IslandError
from island.kernel.ids import IslandId, island_id, key_bytes
from island.net.bulk import SessionStream
from island.net.frames import MAX_HOPS, RequestHead

TIMEOUT_S = 30.0
"""How long the next island may take to answer what is passed on."""


def check_relay(head: RequestHead, relayed: Collection[str]) -> IslandId:
    """For whom a request is; raises `Denied` if its kind is not passed on or it went too far."""
    if head.kind not in relayed:
        raise Denied(f"'{head.kind}' is not passed on for others", code="not_relayed")
    if head.hops >= MAX_HOPS:
        raise Denied(f"passed on {MAX_HOPS} times already", code="too_many_hops")
    return island_id(head.to)


def onward(head: RequestHead, sender: IslandId) -> RequestHead:
    """The head for the next island."""
    return RequestHead(kind=head.kind, to=head.to, origin=head.origin or key_bytes(sender), hops=head.hops + 1)


async def pump(one: SessionStream, other: SessionStream) -> None:
    """Carry blocks both ways until `other`, the serving side, has ended. Each side's credit bounds it."""
    forward = asyncio.Event()

    async def carry_there() -> None:
        try:
            await _carry(one, other)
        except IslandError:
            # The asker has gone, or its stream failed: what it did not take need not be fetched.
            one_gone.set()
        forward.set()

    one_gone = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        there = group.create_task(carry_there())
        back = group.create_task(_carry_back(other, one))
        gone = group.create_task(one_gone.wait())
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
