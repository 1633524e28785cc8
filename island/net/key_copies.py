"""Detects that two running programs use one key, such as after a machine was cloned.

Each start of the program has a new instance id, which is in its hellos. After a restart the earlier
id does not return. If it does, the program with that id is still running, so there are two. The
program whose session is replaced by that of the other one learns it from the reason that the peer
sends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from island.kernel.ids import IslandId
from island.kernel.ports import Clock

KEY_IN_USE = "key_in_use"
"""The code with which a session ends that is replaced by the session of another program with the same key."""

FORGET_S = 900.0
"""Seconds after which an observation is forgotten."""

RETURNS = 2
"""Number of times that earlier ids must return before it is reported. A late message of a stopped program is one."""

_ISLANDS, _IDS = 1000, 4


@dataclass(slots=True)
class _Starts:
    ids: list[bytes] = field(default_factory=list)
    """The last instance ids, the current one last."""
    returned: list[float] = field(default_factory=list)
    """When an earlier id returned, for the last `RETURNS` times."""


class KeyCopies:
    """Observes the instance ids of other islands, and what they report about this island's key."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._starts: dict[IslandId, _Starts] = {}
        self._reports: dict[IslandId, float] = {}

    def observe(self, island: IslandId, instance: bytes) -> None:
        """Record the instance id of a new session; programs of early versions send an empty one."""
        if not instance:
            return
        starts = self._starts.pop(island, None) or _Starts()
        self._starts[island] = starts
        _drop_oldest(self._starts)
        if starts.ids and instance == starts.ids[-1]:
            return
        if instance in starts.ids:
            starts.ids.remove(instance)
            starts.returned = [*starts.returned, self._clock.monotonic()][-RETURNS:]
        starts.ids = [*starts.ids, instance][-_IDS:]

    def reported_by(self, island: IslandId) -> None:
        """Record that `island` replaced a session of this program by that of another one with the same key."""
        self._reports.pop(island, None)
        self._reports[island] = self._clock.monotonic()
        _drop_oldest(self._reports)

    def problems(self, name: Callable[[IslandId], str]) -> list[str]:
        """Describe the keys that two programs use now, for the status. `name` returns the name of an island."""
        since = self._clock.monotonic() - FORGET_S
        found = []
        if reporters := sorted(name(island) for island, at in self._reports.items() if at > since):
            more = f" and {len(reporters) - 3} more" if len(reporters) > 3 else ""
            found.append(
                f"another running program uses this island's key: its sessions with {', '.join(reporters[:3])}{more} "
                "replace those of this one. Was this machine or home folder copied? Stop the other program."
            )
        for island, starts in sorted(self._starts.items()):
            if len(starts.returned) == RETURNS and starts.returned[0] > since:
                found.append(
                    f"two running programs use the key of {name(island)} ({island[:10]}), and their sessions replace "
                    "each other. Its administrator must stop one of them, such as the clone of a machine."
                )
        return found


def _drop_oldest(known: dict[IslandId, _Starts] | dict[IslandId, float]) -> None:
    while len(known) > _ISLANDS:
        del known[next(iter(known))]
