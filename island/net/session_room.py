"""Selects which accepted session ends when there is no room for a new one. No I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Protocol, TypeVar

from island.kernel.ids import IslandId


class AcceptedSession(Protocol):
    """An accepted session."""

    island: IslandId

    @property
    def idle_since(self) -> float | None:
        """Since when the session is not used (monotonic seconds); None if it is, or must not end."""


A = TypeVar("A", bound=AcceptedSession)


def least_useful(accepted: Collection[A]) -> A | None:
    """Return an idle session of the island that has the most sessions, the one idle for longest; None if none is idle.

    One island with many sessions can therefore not displace those of others.
    """
    count = Counter(each.island for each in accepted)
    idle = [(-count[each.island], each.idle_since, each) for each in accepted if each.idle_since is not None]
    return min(idle, key=lambda each: each[:2])[2] if idle else None
