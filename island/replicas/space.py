"""Room for what is fetched: the quota and the reserve of the disk, checked before bytes are taken; eviction."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import structlog

from island.errors import Full
from island.kernel import telemetry
from island.kernel.ports import Clock
from island.kernel.units import format_bytes
from island.replicas import core
from island.replicas.held import HeldSnapshot, Store

log = structlog.get_logger("island")

_EVICTED = telemetry.counter("replica_evicted_bytes", "Bytes of replicas that were dropped to make room")


class Claim:
    """Room that is held; `spend` what of it was written, which then counts as kept."""

    def __init__(self, size: int) -> None:
        self.left = size

    def spend(self, size: int) -> None:
        """So many bytes of the claim were written."""
        self.left = max(0, self.left - size)


class Space:
    """Says whether bytes may be taken, and makes room where it may.

    `await elsewhere(held)` says whether another island holds a snapshot whole; `dropped(held)` is
    awaited after one was evicted. `other_bytes` are bytes of converted copies.
    """

    def __init__(
        self,
        held: Store,
        clock: Clock,
        *,
        quota: int,
        reserve: int,
        elsewhere: Callable[[HeldSnapshot], Awaitable[bool]],
        dropped: Callable[[HeldSnapshot], Awaitable[None]],
    ) -> None:
        self._held, self._clock = held, clock
        self._quota, self._reserve = quota, reserve
        self._elsewhere, self._dropped = elsewhere, dropped
        self._claims: set[Claim] = set()
        self._lock = asyncio.Lock()
        self.other_bytes = 0

    @property
    def used(self) -> int:
        """Bytes of the quota that are in use, those under way included."""
        return self._held.total + self.other_bytes + self._claimed()

    @contextlib.asynccontextmanager
    async def claim(self, size: int, what: str) -> AsyncIterator[Claim]:
        """Hold room for `size` bytes that are about to be written.

        Raises `Full` that says what to do when they do not fit, even after eviction.
        """
        async with self._lock:
            await self._make_room(size, what)
            claim = Claim(size)
            self._claims.add(claim)
        try:
            yield claim
        finally:
            self._claims.discard(claim)

    def _claimed(self) -> int:
        return sum(claim.left for claim in self._claims)

    async def check(self, size: int, what: str) -> None:
        """Make room for `size` bytes that will be claimed in portions; raises `Full`."""
        async with self._lock:
            await self._make_room(size, what)

    async def _make_room(self, size: int, what: str) -> None:
        over = self.used + size - self._quota
        if over > 0 and not await self._evict(over):
            raise Full(
                f"{what} needs {format_bytes(size)} more, and the chunk store holds {format_bytes(self.used)}"
                f" of the {format_bytes(self._quota)} that it may",
                hint="Raise `quota` under [replicas] in island.toml, or drop replicas that nobody needs"
                " (`island dataset drop OWNER/NAME`).",
            )
        short = size + self._claimed() + self._reserve - await self._held.run(self._held.files.free)
        if short > 0 and not await self._evict(short):
            raise Full(
                f"{what} needs {format_bytes(size)} more, and the disk would be left with less than"
                f" the reserve of {format_bytes(self._reserve)}",
                hint="Free some space, or lower `reserve` under [replicas] in island.toml; what is here is kept.",
            )

    async def _evict(self, needed: int) -> bool:
        now = self._clock.wall()
        by_id = {held.id: held for held in list(self._held.snapshots.values())}
        kept = [
            core.Kept(
                id=held.id,
                bytes_local=held.bytes_local,
                used_at=held.used_at,
                pinned=held.pinned,
                in_use=held.users > 0 or held.kept_until > now,
                elsewhere=held.bytes_local > 0 and await self._elsewhere(held),
            )
            for held in by_id.values()
        ]
        chosen = core.evict(kept, needed)
        for ident in chosen:
            held = by_id[ident]
            if held.users:  # taken into use while another one was being dropped
                return False
            log.info("replicas.evict", owner=held.owner, name=held.name, bytes=held.bytes_local, needed=needed)
            _EVICTED.inc(held.bytes_local)
            await self._held.drop(held)
            await self._dropped(held)
        return bool(chosen)
