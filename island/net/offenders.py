"""Islands that violated the protocol: the first violation is tolerated, further ones lead to a pause."""

from __future__ import annotations

from island.errors import Denied
from island.kernel.ids import IslandId
from island.kernel.ports import Clock
from island.net.limits import PeerLimits

_FORGET_S = 3600.0
_REMEMBERED = 1000


class Offenders:
    """Counts violations per island. A violation is forgotten after an hour without another one."""

    def __init__(self, clock: Clock, limits: PeerLimits) -> None:
        self._clock, self._limits = clock, limits
        self._known: dict[IslandId, tuple[int, float]] = {}

    def add(self, island: IslandId) -> float:
        """Record a violation; return for how many seconds the island is paused, 0 after the first violation."""
        count, at = self._known.pop(island, (0, 0.0))
        now = self._clock.monotonic()
        count = 1 if now - at > _FORGET_S else count + 1
        self._known[island] = (count, now)
        while len(self._known) > _REMEMBERED:
            del self._known[next(iter(self._known))]
        return self.pause(island)

    def pause(self, island: IslandId) -> float:
        """Return the remaining seconds of an island's pause; 0 if it is not paused."""
        count, at = self._known.get(island, (0, 0.0))
        if count < 2:
            return 0.0
        length = min(self._limits.pause_cap_s, self._limits.pause_s * 2.0 ** min(count - 2, 20))
        return max(0.0, at + float(length) - self._clock.monotonic())

    def check(self, island: IslandId) -> None:
        """Raise `Denied` if an island is paused."""
        if (left := self.pause(island)) > 0:
            raise Denied(
                f"this island violated the protocol repeatedly; try again in {left:.0f} s",
                hint="The reason is in the logs of both islands: event peer.misbehaved.",
                code="paused",
            )
