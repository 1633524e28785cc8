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
from island.replicas.chunk_store import ChunkStore, ReplicaSnapshot

log = structlog.get_logger("island")

_EVICTED = telemetry.counter("replica_evicted_bytes", "Bytes of replicas that were dropped to make room")


class SpaceClaim:
    """Room that is held; `spend` what of it was written, which then counts as kept."""

    def __init__(self, size: int) -> None:
        self.left = size

    def spend(self, size: int) -> None:
        """So many bytes of the claim were written."""
        self.left = max(0, self.left - size)


class DiskQuota:
    """Says whether bytes may be taken, and makes room where it may.

    `await elsewhere(held)` says whether another island holds a snapshot whole; `dropped(held)` is
    awaited after one was evicted. `other_bytes` are bytes of converted copies.
    """

    def __init__(
        self,
        chunk_store: ChunkStore,
        clock: Clock,
        *,
        quota: int,
        reserve: int,
        elsewhere: Callable[[ReplicaSnapshot], Awaitable[bool]],
        dropped: Callable[[ReplicaSnapshot], Awaitable[None]],
    ) -> None:
        self._held, self._clock = chunk_store, clock
        self._quota, self._reserve = quota, reserve
        self._elsewhere, self._dropped = elsewhere, dropped
        self._claims: set[SpaceClaim] = set()
        self._lock = asyncio.Lock()
        self.other_bytes = 0

    @property
    def used(self) -> int:
        """Bytes of the quota that are in use, those under way included."""
        return self._held.total + self.other_bytes + self._claimed()

    @contextlib.asynccontextmanager
    async def claim(self, size: int, what: str) -> AsyncIterator[SpaceClaim]:
        """Hold room for `size` bytes that are about to be written.

        Raises `Full` that says what to do when they do not fit, even after eviction.
        """
        async with self._lock:
            await self._make_room(size, what)
            claim = SpaceClaim(size)
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
                f" of the {format_bytes(self._quota)} that it may use",
                hint="Raise `quota` under [replicas] in island.toml, or drop replicas that are not needed"
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
        by_id = {chunk_store.id: chunk_store for chunk_store in list(self._held.snapshots.values())}
        kept = [
            core.EvictionCandidate(
                id=chunk_store.id,
                bytes_local=chunk_store.bytes_local,
                used_at=chunk_store.used_at,
                pinned=chunk_store.pinned,
                in_use=chunk_store.users > 0 or chunk_store.kept_until > now,
                elsewhere=chunk_store.bytes_local > 0 and await self._elsewhere(chunk_store),
            )
            for chunk_store in by_id.values()
        ]
        chosen = core.evict(kept, needed)
        for ident in chosen:
            chunk_store = by_id[ident]
            if chunk_store.users:  # taken into use while another one was being dropped
                return False
            log.info(
                "replicas.evict",
                owner=chunk_store.owner,
                name=chunk_store.name,
                bytes=chunk_store.bytes_local,
                needed=needed,
            )
            _EVICTED.inc(chunk_store.bytes_local)
            await self._held.drop(chunk_store)
            await self._dropped(chunk_store)
        return bool(chosen)
