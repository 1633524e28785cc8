"""One poller for each engine: it lists all sessions and batches, and wakes those whose session or batch has changed.

One listing serves any number of followers, where one request for each session would not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from island.errors import EngineFailed, IslandError
from island.jobs.engines.port import RemoteJob, RemoteRef
from island.kernel.ports import Rng, Signal
from island.livy.messages import SESSION_STARTING

SOON_S, LATER_S, HEALTH_S = 0.5, 3.0, 10.0
"""Seconds between two listings: while something starts or a batch runs, while sessions are idle, without followers."""

PREFIX: Final = "isl-"
"""How the names of sessions and batches that islands create begin."""

Key = tuple[str, str]
"""Kind (`session` or `batch`) and name."""


@dataclass(eq=False, slots=True)
class _Follower:
    key: Key
    known: RemoteJob
    found: asyncio.Future[RemoteJob | None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    """The changed session or batch, or None if a listing does not have it."""


class EnginePoller:
    """Lists an engine while somebody follows something there, and otherwise at times, to notice that it is down."""

    def __init__(
        self,
        listing: Callable[[], Awaitable[dict[Key, RemoteJob]]],
        *,
        changes: Callable[[float], Awaitable[bool]],
        rng: Rng,
    ) -> None:
        """`listing()` is everything that the engine shows by name.

        `changes(seconds)` waits until something has changed at the engine or the time is over. It returns False at
        once if this engine cannot tell.
        """
        self._listing, self._changes, self._rng = listing, changes, rng
        self._followers: set[_Follower] = set()
        self._hurry = Signal()

    async def follow(self, ref: RemoteRef, known: RemoteJob) -> RemoteJob | None:
        """Wait until a listing shows a session or batch differently from `known`; None if one does not have it.

        Raises `EngineFailed` if the engine does not answer.
        """
        follower = _Follower((ref.kind, ref.name), known)
        self._followers.add(follower)
        self._hurry.set()
        try:
            return await follower.found
        finally:
            self._followers.discard(follower)

    async def step(self) -> None:
        """List once, wake the followers of what has changed, and wait for the time of the next listing."""
        asked = tuple(self._followers)  # who follows later may mean what this listing does not have yet
        found = await self._listing()
        self._wake(asked, found)
        await self._pause()

    def fail(self, error: IslandError) -> None:
        """Tell all followers that the engine does not answer."""
        for each in self._followers:
            if not each.found.done():
                each.found.set_exception(EngineFailed(error.message, hint=error.hint, code=error.code))

    @staticmethod
    def _wake(asked: Iterable[_Follower], found: dict[Key, RemoteJob]) -> None:
        for each in asked:
            shown = found.get(each.key)
            if shown != each.known and not each.found.done():
                each.found.set_result(shown)

    def hasten(self) -> None:
        """List soon: a request has failed, so the engine may be down."""
        self._hurry.set()

    async def _pause(self) -> None:
        """Wait until the next listing is due: earlier if somebody begins to follow what may change soon."""
        seconds = self._interval() * (0.75 + 0.5 * self._rng.random())
        if self._followers and await self._changes(seconds):
            return
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        while (left := due - loop.time()) > 0 and await self._hurry.wait(left):
            due = min(due, loop.time() + self._interval())

    def _interval(self) -> float:
        if not self._followers:
            return HEALTH_S
        soon = any(each.key[0] == "batch" or each.known.state in SESSION_STARTING for each in self._followers)
        return SOON_S if soon else LATER_S
