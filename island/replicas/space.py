"""Disk space of the chunk store: checks the quota and the reserve before data are fetched, and evicts replicas."""

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

_EVICTED = telemetry.counter("replica_evicted_bytes", "Bytes of replicas that were evicted to free space")


class SpaceClaim:
    """Disk space that is reserved for data about to be written. `spend` reduces it as data are written."""

    def __init__(self, size: int) -> None:
        self.left = size

    def spend(self, size: int) -> None:
        """Release `size` bytes of the claim, because they were written."""
        self.left = max(0, self.left - size)


class DiskQuota:
    """Enforces the quota and the disk reserve, and evicts replicas when space is needed.

    `await elsewhere(replica)` returns whether a replica can be fetched again from another island.
    `dropped(replica)` is awaited after an eviction. `other_bytes` is the size of the converted
    copies of Avro datasets, which count towards the quota.
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
        self._chunk_store, self._clock = chunk_store, clock
        self._quota, self._reserve = quota, reserve
        self._elsewhere, self._dropped = elsewhere, dropped
        self._claims: set[SpaceClaim] = set()
        self._lock = asyncio.Lock()
        self.other_bytes = 0

    @property
    def used(self) -> int:
        """Bytes of the quota that are in use or claimed."""
        return self._chunk_store.total + self.other_bytes + self._claimed()

    @contextlib.asynccontextmanager
    async def claim(self, size: int, what: str) -> AsyncIterator[SpaceClaim]:
        """Reserve space for `size` bytes that are about to be written, for the length of the context.

        Raises `Full` if they do not fit, even after eviction. `what` begins the error message.
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
        """Free space for `size` bytes that will be claimed in portions. Raises `Full`."""
        async with self._lock:
            await self._make_room(size, what)

    async def _make_room(self, size: int, what: str) -> None:
        over = self.used + size - self._quota
        if over > 0 and not await self._evict(over):
            raise Full(
                f"{what} needs {format_bytes(size)} more, but the chunk store uses {format_bytes(self.used)}"
                f" of its quota of {format_bytes(self._quota)}",
                hint="Raise `quota` under [replicas] in island.toml, or delete replicas that are not needed"
                " (`island dataset drop OWNER/NAME`).",
            )
        short = size + self._claimed() + self._reserve - await self._chunk_store.run(self._chunk_store.files.free)
        if short > 0 and not await self._evict(short):
            raise Full(
                f"{what} needs {format_bytes(size)} more, but less than the reserve of"
                f" {format_bytes(self._reserve)} would stay free on the disk",
                hint="Free disk space, or lower `reserve` under [replicas] in island.toml.",
            )

    async def _evict(self, needed: int) -> bool:
        now = self._clock.wall()
        by_id = {replica.id: replica for replica in list(self._chunk_store.snapshots.values())}
        kept = [
            core.EvictionCandidate(
                id=replica.id,
                bytes_local=replica.bytes_local,
                used_at=replica.used_at,
                pinned=replica.pinned,
                in_use=replica.users > 0 or replica.kept_until > now,
                elsewhere=replica.bytes_local > 0 and await self._elsewhere(replica),
            )
            for replica in by_id.values()
        ]
        chosen = core.evict(kept, needed)
        for ident in chosen:
            replica = by_id[ident]
            if replica.users:  # a reader opened it while another replica was being dropped
                return False
            log.info(
                "replicas.evicting",
                owner=replica.owner,
                name=replica.name,
                bytes=replica.bytes_local,
                needed=needed,
            )
            _EVICTED.inc(replica.bytes_local)
            await self._chunk_store.drop(replica)
            await self._dropped(replica)
        return bool(chosen)
