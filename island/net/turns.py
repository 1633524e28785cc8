"""Turns: how many requests, or streams, may be under way at the same time."""

from __future__ import annotations

import asyncio

from island.errors import Unreachable
from island.net.frames import MAX_HOPS, RequestHead
from island.net.limits import PeerLimits


class SessionTurns:
    """The turns of this side of one session.

    Requests that are relayed for other islands have their own, fewer turns, so that they cannot delay the requests of
    this island.
    """

    def __init__(self, limits: PeerLimits) -> None:
        self._own, self._relayed = asyncio.Semaphore(limits.calls), asyncio.Semaphore(limits.relayed)

    def of(self, head: RequestHead) -> asyncio.Semaphore:
        """Return the turns for requests like this one."""
        return self._relayed if head.hops == MAX_HOPS else self._own


async def take(turns: asyncio.Semaphore, seconds: float, what: str) -> None:
    """Wait for a turn, which the caller must release; `what` describes what holds the others, for messages.

    Raises `Unreachable` (`busy`) if none is free within `seconds`.
    """
    try:
        async with asyncio.timeout(seconds):
            await turns.acquire()
    except TimeoutError as error:
        raise Unreachable(
            f"too many {what} are under way, and none has ended within {seconds:g} s",
            hint="Try again later.",
            code="busy",
        ) from error
