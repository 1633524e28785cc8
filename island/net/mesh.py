"""Keeps control sessions with the known islands: dials them, and redials with backoff."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import structlog

from island.errors import IslandError
from island.kernel.ids import IslandId
from island.kernel.loops import ENDED, Tasks, backoff
from island.kernel.ports import Clock, Rng, Signal
from island.kernel.stranger_log import StrangerLog
from island.net.limits import PeerLimits

log = structlog.get_logger("island")

GIVE_UP = 5
"""Failures in a row after which an island gives up its place, if another one waits that has failed less often."""
_LOOK_S = 2.0


class PeerDialler(Protocol):
    """The operations on peer sessions that the mesh needs."""

    def targets(self) -> Mapping[IslandId, list[str]]:
        """Return the islands with which to keep a session, and their addresses."""

    def name(self, island: IslandId) -> str:
        """Return the name of an island for messages."""

    def is_linked(self, island: IslandId) -> bool:
        """Return whether there is a control session with an island."""

    def is_preferred(self, island: IslandId) -> bool:
        """Return whether an island is dialled before others, because there was a session or this island joins there."""

    async def until_unlinked(self, island: IslandId) -> None:
        """Wait until there is no control session with an island."""

    def paused(self, island: IslandId) -> float:
        """Return for how many seconds an island is not dialled because it violated the protocol; 0 if it did not."""

    async def dial_control(self, island: IslandId, addresses: list[str]) -> None:
        """Establish a control session; raises `IslandError`."""


@dataclass(slots=True)
class _Dialling:
    """State of one dialling loop."""

    wake: Signal
    is_made: bool = False
    """Whether this loop has established a session whose end it has not noticed yet."""
    last_error: str = ""


class Mesh:
    """The dialling loops: one per island, at most `limits.mesh`.

    If more islands are known, those that could not be dialled repeatedly give their places to others.
    """

    def __init__(self, sessions: PeerDialler, limits: PeerLimits, clock: Clock, rng: Rng) -> None:
        self._sessions, self._limits, self._clock, self._rng = sessions, limits, clock, rng
        self._wanted: dict[IslandId, list[str]] = {}
        self._dialling: dict[IslandId, _Dialling] = {}
        self._failures: dict[IslandId, int] = {}
        """Number of consecutive failures, also of islands that have no place at present."""
        self._soon = Signal()
        self._lines = StrangerLog("key")

    def connect_soon(self) -> None:
        """Read the addresses now instead of at the next interval, and dial islands whose addresses have changed."""
        self._soon.set()

    async def look(self, tasks: Tasks) -> None:
        """Start dialling loops for new islands and wake those whose addresses have changed; then wait.

        The wait ends after two seconds, or with `connect_soon`.
        """
        targets = self._sessions.targets()
        chosen = self._chosen(targets)
        for island in [each for each in self._wanted if each not in chosen]:
            del self._wanted[island]
            self._dialling.pop(island).wake.set()
        for island in [each for each in self._failures if each not in targets]:
            del self._failures[island]
        for island in chosen:
            if self._wanted.get(island) == targets[island]:
                continue
            started = island in self._wanted
            self._wanted[island] = targets[island]
            if started:
                self._dialling[island].wake.set()
            else:
                dialling = self._dialling[island] = _Dialling(Signal())
                keep = functools.partial(self._keep, island, dialling)
                tasks.forever(f"peers.dial.{island[:10]}", keep, rng=self._rng)
        await self._soon.wait(_LOOK_S)

    def _chosen(self, targets: Mapping[IslandId, list[str]]) -> list[IslandId]:
        islands = sorted(targets)
        self._rng.shuffle(islands)
        return sorted(islands, key=self._rank)[: self._limits.mesh]

    def _rank(self, island: IslandId) -> tuple[int, int]:
        """Return a key that is smaller for islands that get a place first."""
        failures, has_place = self._failures.get(island, 0), island in self._wanted
        if has_place and (not failures or self._sessions.is_linked(island)):
            return -1, 0
        return failures // GIVE_UP, 0 if self._sessions.is_preferred(island) else 1 if has_place else 2

    async def _keep(self, island: IslandId, dialling: _Dialling) -> object:
        """Wait until there is no session, then dial once. After a failure wait for the backoff."""
        wake = dialling.wake
        if dialling.is_made or self._sessions.is_linked(island):
            began = self._clock.monotonic()
            await self._sessions.until_unlinked(island)
            dialling.is_made = False
            if self._clock.monotonic() - began < self._limits.settled_s:
                # Two machines may use the same key, each session replacing the other's.
                await wake.wait(self._failed(island))
            else:
                self._failures.pop(island, None)
                # A random pause, so that the two islands do not dial each other at the same time.
                await wake.wait(0.5 * self._limits.redial_base_s * self._rng.random())
            return None
        # An island that lost its place and got one again has a new loop; this loop ends.
        if self._dialling.get(island) is not dialling:
            return ENDED
        if (pause := self._sessions.paused(island)) > 0:
            return await wake.wait(pause)
        try:
            await self._sessions.dial_control(island, self._wanted[island])
            dialling.is_made, dialling.last_error = True, ""
        except IslandError as error:
            pause = self._failed(island)
            text, failures = error.message, self._failures[island]
            name = self._sessions.name(island)
            if text == dialling.last_error:
                log.debug("peer.dial_failed", peer=name, key=island, error=text, failures=failures)
            else:  # limited, because anybody who announces an address for this island can change the text
                self._lines.info("peer.dial_failed", island, peer=name, error=text, failures=failures)
            dialling.last_error = text
            await wake.wait(pause)
        return None

    def _failed(self, island: IslandId) -> float:
        """Count a failure; return the seconds to wait."""
        failures = self._failures[island] = self._failures.get(island, 0) + 1
        if failures % GIVE_UP == 0:
            self._soon.set()
        return backoff(failures, self._rng, base=self._limits.redial_base_s, cap=self._limits.redial_cap_s)
