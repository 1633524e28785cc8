"""Keeps a control session with every known island: dials, and redials for ever."""

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
from island.net.limits import PeerLimits

log = structlog.get_logger("island")

_LOOK_S = 2.0


class PeerDialler(Protocol):
    """What the mesh asks of the sessions."""

    def targets(self) -> Mapping[IslandId, list[str]]:
        """The islands to have a session with, and where they can be dialled."""

    def name(self, island: IslandId) -> str:
        """What people call an island."""

    async def until_unlinked(self, island: IslandId) -> None:
        """Wait while there is a control session with an island."""

    def paused(self, island: IslandId) -> float:
        """Seconds for which an offender is not dialled."""

    async def dial_control(self, island: IslandId, addresses: list[str]) -> None:
        """Make a control session; raises an `IslandError`."""


@dataclass(slots=True)
class _Dialling:
    """One dialling loop between two of its steps."""

    wake: Signal
    failures: int = 0
    said: str = ""


class Mesh:
    """One dialling loop an island, at most `limits.mesh` of them."""

    def __init__(self, sessions: PeerDialler, limits: PeerLimits, rng: Rng) -> None:
        self._sessions, self._limits, self._rng = sessions, limits, rng
        self._wanted: dict[IslandId, list[str]] = {}
        self._wake: dict[IslandId, Signal] = {}
        self._soon = Signal()

    def connect_soon(self) -> None:
        """Addresses may have changed: look now, and dial those at once."""
        self._soon.set()

    async def look(self, tasks: Tasks) -> None:
        """Start and wake dialling loops as addresses come and change; then wait for the next change."""
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
        """Dial once, when there is no session; then wait until there is none again, or until the next try."""
        wake = dialling.wake
        await self._sessions.until_unlinked(island)
        # A loop whose island went and came again has been replaced by another, with a signal of its own.
        if self._wake.get(island) is not wake:
            return ENDED
        if (pause := self._sessions.paused(island)) > 0:
            return await wake.wait(pause)
        try:
            await self._sessions.dial_control(island, self._wanted[island])
            dialling.failures, dialling.said = 0, ""
            # A short pause before the first redial, so that two that lost each other do not collide.
            await self._sessions.until_unlinked(island)
            await wake.wait(0.5 * self._limits.redial_base_s * self._rng.random())
        except IslandError as error:
            dialling.failures += 1
            text, failures = error.message, dialling.failures
            report = log.info if text != dialling.said else log.debug
            report("peer.dial_failed", peer=self._sessions.name(island), key=island, error=text, failures=failures)
            dialling.said = text
            base, cap = self._limits.redial_base_s, self._limits.redial_cap_s
            await wake.wait(backoff(failures, self._rng, base=base, cap=cap))
        return None


async def first_that_works(addresses: list[str], dial: Callable[[str], Awaitable[None]], what: str) -> None:
    """Try addresses one after the other; raises the only error, or one that tells all."""
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
    told = "; ".join(f"{address}: {error.message}" for address, error in problems)
    # The reason of an island that did answer says more than those of addresses where nobody did.
    spoke = next((error for _, error in problems if not isinstance(error, Unreachable)), problems[0][1])
    if len(problems) == 1 or not isinstance(spoke, Unreachable):
        return spoke
    return Unreachable(f"{what} does not answer ({told})", hint=spoke.hint)
