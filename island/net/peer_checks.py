"""Asks linked islands whether they can dial this island, and what time it is there.

Both questions are cheap for the other side: `session.dial` makes it dial the addresses that this island has announced,
as it does for a bulk session, and `clock.read` has a fixed answer. Specification: `protocols/peer-session-v1.md`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from island.errors import IslandError, PeerMisbehaved, PeerRefused, Unreachable
from island.kernel import codec
from island.kernel.codec import Message
from island.kernel.ids import IslandId
from island.kernel.ports import Clock
from island.net.peers import TlsPeers

KIND = "clock.read"
"""The kind of the request for the other island's time; its body is empty."""

TIMEOUT_S = 8.0


class ClockReading(Message, frozen=True, kw_only=True):
    """The answer to `clock.read`: the wall time of the island that answers, in Unix seconds."""

    MAX_BYTES = 64

    wall: Annotated[float, Meta(ge=-1e14, le=1e14)]


@dataclass(frozen=True, slots=True)
class PeerCheck:
    """How this island looks from one linked island."""

    island: IslandId
    reached: bool | None
    """Whether that island could dial this one; None if this island has no peer port."""
    reason: str
    """Why it could not; empty if it could."""
    clock_ahead_s: float | None
    """Seconds by which the clock there is ahead of this one; None if that island did not tell."""
    clock_error_s: float | None
    """Maximum error of `clock_ahead_s`, in seconds: half of the time that the answer took."""


class PeerChecks:
    """Runs the checks, one at a time, and answers the `clock.read` of other islands."""

    def __init__(self, peers: TlsPeers, clock: Clock) -> None:
        self._peers, self._clock = peers, clock
        self._one = asyncio.Lock()
        peers.on_request(KIND, self._on_clock)

    async def run(self, at_most: int = 4) -> list[PeerCheck]:
        """Ask linked islands at the same time, those with the shortest round-trip times."""
        async with self._one, asyncio.TaskGroup() as group:
            links = sorted(self._peers.links(), key=lambda link: (link.rtt or 1.0, link.island))[:at_most]
            asked = [group.create_task(self._ask(link.island)) for link in links]
        return [task.result() for task in asked]

    async def _ask(self, island: IslandId) -> PeerCheck:
        reached, reason = None, ""
        if self._peers.port is not None:
            try:
                await self._peers.let_dial(island, TIMEOUT_S)
                reached = True
            except Unreachable as error:
                told = error.__cause__
                reached, reason = False, (told if isinstance(told, PeerRefused) else error).message
        ahead, accuracy = await self._compare_clocks(island)
        return PeerCheck(island, reached, reason, ahead, accuracy)

    async def _compare_clocks(self, island: IslandId) -> tuple[float | None, float | None]:
        began, wall = self._clock.monotonic(), self._clock.wall()
        try:
            answer = await self._peers.request(island, KIND, b"", timeout=TIMEOUT_S)
            reading = codec.decode(answer, ClockReading)
        except PeerMisbehaved as error:
            self._peers.blame(island, error)
            return None, None
        except IslandError:  # an older version does not answer this; the check says that the clock is not known
            return None, None
        half = (self._clock.monotonic() - began) / 2
        return reading.wall - (wall + half), half

    async def _on_clock(self, _sender: IslandId, _body: bytes) -> bytes:
        return codec.encode(ClockReading(wall=self._clock.wall()))
