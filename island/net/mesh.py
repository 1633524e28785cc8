"""Keeps control sessions with the known islands: dials them, and redials with backoff."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import structlog

from island.errors import IslandError, Unreachable
from island.kernel.ids import IslandId
from island.kernel.loops import ENDED, Tasks, backoff
from island.kernel.ports import Rng, Signal
from island.kernel.stranger_log import StrangerLog
from island.net.limits import PeerLimits

log = structlog.get_logger("island")

_LOOK_S = 2.0


class PeerDialler(Protocol):
    """The operations on peer sessions that the mesh needs."""

    def targets(self) -> Mapping[IslandId, list[str]]:
        """Return the islands with which to keep a session, and their addresses."""

    def name(self, island: IslandId) -> str:
        """Return the name of an island for messages."""

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
    failures: int = 0
    last_error: str = ""


class Mesh:
    """The dialling loops: one per island, at most `limits.mesh`."""

    def __init__(self, sessions: PeerDialler, limits: PeerLimits, rng: Rng) -> None:
        self._sessions, self._limits, self._rng = sessions, limits, rng
        self._wanted: dict[IslandId, list[str]] = {}
        self._wake: dict[IslandId, Signal] = {}
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
        for island in self._chosen(targets):
            if self._wanted.get(island) == targets[island]:
                continue
            started = island in self._wanted
            self._wanted[island] = targets[island]
            if started:
                self._wake[island].set()
            else:
                self._wake[island] = Signal()
                keep = functools.partial(self._keep, island, _Dialling(self._wake[island]))
                tasks.forever(f"peers.dial.{island[:10]}", keep, rng=self._rng)
        for island in [each for each in self._wanted if each not in targets]:
            del self._wanted[island]
            self._wake.pop(island).set()
        await self._soon.wait(_LOOK_S)

    def _chosen(self, targets: Mapping[IslandId, list[str]]) -> list[IslandId]:
        kept = sorted(island for island in self._wanted if island in targets)
        fresh = sorted(island for island in targets if island not in self._wanted)
        self._rng.shuffle(fresh)
        return (kept + fresh)[: self._limits.mesh]

    async def _keep(self, island: IslandId, dialling: _Dialling) -> object:
        """Wait until there is no session, then dial once. After a failure wait for the backoff."""
        wake = dialling.wake
        await self._sessions.until_unlinked(island)
        # An island that was removed and added again has a new loop with its own signal; this loop ends.
        if self._wake.get(island) is not wake:
            return ENDED
        if (pause := self._sessions.paused(island)) > 0:
            return await wake.wait(pause)
        try:
            await self._sessions.dial_control(island, self._wanted[island])
            dialling.failures, dialling.last_error = 0, ""
            # A random pause before the first redial, so that the two islands do not dial each other at the same time.
            await self._sessions.until_unlinked(island)
            await wake.wait(0.5 * self._limits.redial_base_s * self._rng.random())
        except IslandError as error:
            dialling.failures += 1
            text, failures = error.message, dialling.failures
            name = self._sessions.name(island)
            if text == dialling.last_error:
                log.debug("peer.dial_failed", peer=name, key=island, error=text, failures=failures)
            else:  # limited, because anybody who announces an address for this island can change the text
                self._lines.info("peer.dial_failed", island, peer=name, error=text, failures=failures)
            dialling.last_error = text
            base, cap = self._limits.redial_base_s, self._limits.redial_cap_s
            await wake.wait(backoff(failures, self._rng, base=base, cap=cap))
        return None


async def first_that_works(addresses: list[str], dial: Callable[[str], Awaitable[None]], what: str) -> None:
    """Try addresses one after the other until `dial` succeeds for one; `what` names the island in messages.

    Raises `IslandError` with the reasons if it succeeds for none.
    """
    problems: list[tuple[str, IslandError]] = []
    for address in addresses:
        try:
            await dial(address)
        except IslandError as error:
            problems.append((address, error))
        else:
            return
    raise _summary(problems, what)


def _summary(problems: list[tuple[str, IslandError]], what: str) -> IslandError:
    if not problems:
        return Unreachable(
            f"{what} has no address that can be dialled",
            hint="It may be configured to dial out only; then it connects by itself.",
        )
    reasons = "; ".join(f"{address}: {error.message}" for address, error in problems)
    # The error of an island that answered is more specific than those of addresses that do not answer.
    best = next((error for _, error in problems if not isinstance(error, Unreachable)), problems[0][1])
    if len(problems) == 1 or not isinstance(best, Unreachable):
        return best
    return Unreachable(f"{what} does not answer ({reasons})", hint=best.hint)
