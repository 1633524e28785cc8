"""The logs of all islands at this one: verifies, stores, projects and serves batches."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import structlog
from blake3 import blake3

from island.errors import IslandError, PeerMisbehaved
from island.gossip import core, store
from island.gossip.core import BatchVerdict, Head, HeadVector, LogBatch, RecentHashes, TokenBucket
from island.gossip.messages import PAGE_LIMIT, Delta, DeltaPage, ForkProof, PullRange
from island.gossip.projections import Projections
from island.gossip.store import Change
from island.kernel.db import Database
from island.kernel.ids import IslandId, island_id, key_bytes
from island.kernel.loops import is_database
from island.kernel.ports import Clock, Topic
from island.kernel.telemetry import counter, gauge
from island.trust.service import Trust
from island.trust.signing import verify

log = structlog.get_logger("island")

BATCHES_IN = counter("gossip_batches_received", "Log batches received from other islands and stored")
BYTES_IN = counter("gossip_received_bytes", "Bytes of log batches received from other islands and stored")
DUPLICATES = counter("gossip_batches_duplicate", "Received log batches that were already stored")
REJECTS = counter("gossip_batches_rejected", "Received log batches that were not stored, by reason", ("reason",))
ORIGINS = gauge("gossip_origins", "Islands whose logs are stored")

RECORDS = gauge("gossip_records", "Stored records of all islands")

SIGNATURE = "gossip-batch"
"""The kind of a batch's signature."""

VERIFY_RATE, VERIFY_BURST = 2000.0, 4000.0
"""Maximum number of signatures verified for one peer: per second, and in a burst."""


@dataclass(slots=True)
class IntakeResult:
    """The result of processing the deltas of one message."""

    fresh: list[Delta] = field(default_factory=list)
    """Stored batches and proofs, to be relayed."""
    gap: bool = False
    """Whether earlier batches or a chain are missing, which the sender has."""
    throttled: bool = False
    """Whether the rate limit of signatures for the sender was reached."""
    doubts: list[PullRange] = field(default_factory=list)
    """Ranges to request from the sender, to find where two versions of a log differ."""


@dataclass(slots=True)
class _Intake:
    """The checked content of one message, before it is stored."""

    source: IslandId
    heads: dict[IslandId, Head] = field(default_factory=dict)
    chains: dict[IslandId, bytes] = field(default_factory=dict)
    batches: dict[IslandId, list[LogBatch]] = field(default_factory=dict)
    proofs: dict[IslandId, ForkProof] = field(default_factory=dict)
    taken: IntakeResult = field(default_factory=IntakeResult)

    @property
    def origins(self) -> list[IslandId]:
        """The origins with batches or proofs to store."""
        return sorted({*self.batches, *self.proofs})


@dataclass(slots=True)
class _Outcome:
    """The result of writing an intake to the database."""

    limited: dict[IslandId, int] = field(default_factory=dict)
    """Origins whose batches exceed the limits of an origin, with the number of batches that fit and are stored."""
    failed: dict[IslandId, Exception] = field(default_factory=dict)
    """Errors of origins whose batches or proofs could not be stored."""
    found: dict[IslandId, Head] = field(default_factory=dict)
    """Heads in the database, of origins whose head in memory differed or whose batches could not be stored."""
    projected: dict[IslandId, list[Change]] = field(default_factory=dict)
    """The changes of each origin whose batches are stored."""


class Logs:
    """The logs of all origins. `lock` is held from the check of a batch to its commit, so there is one writer."""

    def __init__(self, db: Database, trust: Trust, projections: Projections, clock: Clock) -> None:
        self._db, self._trust, self._projections, self._clock = db, trust, projections, clock
        self.me: IslandId = trust.me
        self.positions = HeadVector()
        self.lock = asyncio.Lock()
        self.changed = Topic()
        self.returned: Callable[[Sequence[LogBatch]], Awaitable[bool]] | None = None
        """Called with batches of this island's own log that only peers have, before they are stored."""
        self.grown: list[Callable[[IslandId], None]] = []
        """Called with the origin after each commit that extended the log of another island."""
        self._recent = RecentHashes(8192)
        self._budgets: dict[IslandId, TokenBucket] = {}
        self._refused: set[IslandId] = set()
        self._unstored: dict[IslandId, str] = {}
        """By origin: why its newest batches could not be stored."""

    async def start(self) -> None:
        """Load the heads, and rebuild projections that are new or have a new version."""
        self.positions = HeadVector(await self._db.read(store.heads))
        rebuilt = await self._db.write(self._projections.rebuild)
        if rebuilt:
            log.info("gossip.projected", kinds=",".join(rebuilt))
        ORIGINS.set(len(self.positions))

    async def count(self) -> None:
        """Update the number of records in the metrics."""
        RECORDS.set(await self._db.read(store.count_records))

    def forget(self, peer: IslandId) -> None:
        """Drop the rate limit of `peer` after its session has ended."""
        self._budgets.pop(peer, None)

    def accepts(self, origin: IslandId) -> bool:
        """Whether further batches of this origin would be stored."""
        return origin not in self._refused

    def unstored(self) -> dict[IslandId, str]:
        """The origins whose newest batches cannot be stored, with the reason and a hint."""
        return dict(self._unstored)

    async def take(self, source: IslandId, deltas: Sequence[Delta]) -> IntakeResult:
        """Check and store the deltas that a peer sent. Raises `PeerMisbehaved` for data that no honest peer relays."""
        async with self.lock:
            intake = _Intake(source)
            try:
                for delta in deltas:
                    await self._examine(intake, delta)
            finally:
                # Store the valid batches before an invalid one: they are signed by their origin.
                await self._store(intake)
        return intake.taken

    async def _examine(self, intake: _Intake, delta: Delta) -> None:
        origin = island_id(delta.origin)
        if origin not in self.positions and not self._admit(intake, origin, delta):
            return
        intake.heads.setdefault(origin, self.positions.get(origin))
        for place, signed in enumerate(delta.batches):
            if place % 16 == 15:
                await asyncio.sleep(0)  # verifying signatures must not block the event loop
            if not await self._examine_batch(intake, origin, signed):
                break
        if delta.proof is not None and not intake.heads[origin].frozen:
            self._check_proof(origin, delta.proof)
            intake.proofs[origin] = delta.proof

    def _admit(self, intake: _Intake, origin: IslandId, delta: Delta) -> bool:
        """Whether a new origin may be stored. It needs a valid chain."""
        if origin in intake.chains:
            return True
        if not delta.chain:
            intake.taken.gap = True
            return False
        if self._trust.check_chain(delta.chain) != origin:
            raise PeerMisbehaved(f"a chain that does not admit {origin[:10]}", code="bad_chain")
        if len(self.positions) + len(intake.chains) >= core.MAX_ORIGINS:
            self._refuse(origin, "origins")
            return False
        intake.chains[origin] = delta.chain
        return True

    async def _examine_batch(self, intake: _Intake, origin: IslandId, signed: bytes) -> bool:
        """Check one batch and add it to the intake; returns False if the batches after it cannot be used."""
        mark = blake3(signed).digest(16)
        if mark in self._recent:
            DUPLICATES.inc()
            return True
        batch = core.open_batch(signed)
        if batch.origin != origin:
            raise PeerMisbehaved("a batch whose origin differs from that of its delta")
        head = intake.heads[origin]
        verdict = core.judge_batch(head, batch)
        if verdict is BatchVerdict.GAP:
            intake.taken.gap = True
            return False
        if verdict in (BatchVerdict.FROZEN, BatchVerdict.OTHER_EPOCH) or not self.accepts(origin):
            REJECTS.labels(verdict.value if self.accepts(origin) else "limit").inc()
            return False
        if verdict is BatchVerdict.PAST and await self._is_known(intake, batch, mark):
            DUPLICATES.inc()
            return True
        if not self._verified(intake, batch):
            return False
        if verdict is BatchVerdict.PAST:
            # Only after the signature was verified: comparing with the stored batches is expensive.
            rival = await self._rival(intake, batch)
            if rival is None:
                DUPLICATES.inc()
                return True
            intake.proofs[origin] = ForkProof(one=rival, other=signed)
            return False
        if verdict is BatchVerdict.BREAKS:
            intake.taken.doubts.append(
                PullRange(origin=key_bytes(origin), epoch=head.epoch, after=max(0, head.seq - 1))
            )
            return False
        intake.batches.setdefault(origin, []).append(batch)
        intake.heads[origin] = head.after(batch)
        return True

    async def _is_known(self, intake: _Intake, batch: LogBatch, mark: bytes) -> bool:
        """Whether a batch with the same body is stored, or precedes it in this message."""
        if any(other.hash == batch.hash for other in intake.batches.get(batch.origin, ())):
            return True  # without adding `mark`: the commit of this message may fail
        if not await self._db.read(lambda conn: store.has(conn, batch)):
            return False
        self._recent.add(mark)
        return True

    async def _rival(self, intake: _Intake, batch: LogBatch) -> bytes | None:
        """The stored batch that contradicts `batch` at the same position, or None."""
        stored = await self._db.read(lambda conn: store.overlapping(conn, batch))
        stored += [other.signed for other in intake.batches.get(batch.origin, ())]
        return next((other for other in stored if core.contradict(core.open_batch(other), batch)), None)

    def _verified(self, intake: _Intake, batch: LogBatch) -> bool:
        """Verify the signature; returns False if the rate limit of the peer is reached.

        Raises `PeerMisbehaved` if the signature is wrong.
        """
        budget = self._budgets.setdefault(intake.source, TokenBucket(VERIFY_RATE, VERIFY_BURST))
        if not budget.take(1, self._clock.monotonic()):
            intake.taken.gap = intake.taken.throttled = True
            REJECTS.labels("throttled").inc()
            return False
        self._check_signature(batch)
        return True

    def _check_signature(self, batch: LogBatch) -> None:
        network = self._trust.network
        if network is None or not verify(batch.origin, SIGNATURE, network, batch.body, batch.signature):
            REJECTS.labels("signature").inc()
            raise PeerMisbehaved(f"a batch of {batch.origin[:10]} whose signature is wrong", code="bad_signature")

    def _check_proof(self, origin: IslandId, proof: ForkProof) -> None:
        one, other = core.open_batch(proof.one), core.open_batch(proof.other)
        if one.origin != origin or not core.contradict(one, other):
            raise PeerMisbehaved(f"a proof against {origin[:10]} that is not valid")
        self._check_signature(one)
        self._check_signature(other)

    async def _store(self, intake: _Intake) -> None:
        own = intake.batches.get(self.me)
        if own and (self.returned is None or not await self.returned(own)):
            del intake.batches[self.me]
        if not intake.batches and not intake.proofs:
            return
        based = {origin: self.positions.get(origin) for origin in intake.origins}
        try:
            await self._db.write(
                lambda conn: self._write(conn, intake, based), then=lambda outcome: self._committed(intake, outcome)
            )
        except (sqlite3.Error, IslandError) as error:
            for origin in intake.origins:
                self._unstored[origin] = _disk_reason(error)
            raise

    def _write(self, conn: sqlite3.Connection, intake: _Intake, based: Mapping[IslandId, Head]) -> _Outcome:
        outcome = _Outcome()
        for origin in intake.origins:
            conn.execute("SAVEPOINT origin")
            try:
                self._write_origin(conn, intake, origin, based[origin], outcome)
            except sqlite3.OperationalError:
                raise  # a full or broken disk affects all origins
            except Exception as error:
                if is_database(error):
                    raise
                # The other origins are stored; `_committed` reports this one.
                conn.execute("ROLLBACK TO origin")
                outcome.projected.pop(origin, None)
                outcome.failed[origin] = error
                outcome.found[origin] = store.head(conn, origin)
            conn.execute("RELEASE origin")
        return outcome

    def _write_origin(
        self, conn: sqlite3.Connection, intake: _Intake, origin: IslandId, based: Head, outcome: _Outcome
    ) -> None:
        stored = store.head(conn, origin)
        if stored != based:
            # The batches were checked against an outdated head. The next comparison brings them again.
            outcome.found[origin] = stored
            return
        self._enter(conn, intake, origin)
        batches = intake.batches.get(origin, [])
        outcome.projected[origin], fitting = self._append(conn, batches)
        if fitting < len(batches):
            outcome.limited[origin] = fitting
        if origin in intake.proofs:
            self._enter(conn, intake, origin)
            store.add_proof(conn, origin, intake.proofs[origin].one, intake.proofs[origin].other)

    @staticmethod
    def _enter(conn: sqlite3.Connection, intake: _Intake, origin: IslandId) -> None:
        if origin in intake.chains:
            store.add_origin(conn, origin, intake.chains[origin])

    def _append(self, conn: sqlite3.Connection, batches: Sequence[LogBatch]) -> tuple[list[Change], int]:
        """Store and project batches of one origin up to its limits; returns their changes and their number.

        All islands with the same limits store the same batches, in whatever portions these arrive.
        """
        projected: list[Change] = []
        for place, batch in enumerate(batches):
            if batch.origin == self.me:
                store.append_own(conn, batch)
                continue
            conn.execute("SAVEPOINT batch")
            keys = store.append(conn, batch)
            if keys > core.MAX_KEYS or store.size(conn, batch.origin)[1] > core.MAX_LOG_BYTES:
                conn.execute("ROLLBACK TO batch")
                conn.execute("RELEASE batch")
                return projected, place
            conn.execute("RELEASE batch")
            changes = [Change(batch.origin, e.key, e.value, e.seq, batch.epoch) for e in batch.entries]
            self._projections.apply(conn, changes)
            projected += changes
        return projected, len(batches)

    def _committed(self, intake: _Intake, outcome: _Outcome) -> None:
        """Update memory after the transaction of an intake was committed."""
        for origin, error in outcome.failed.items():
            self._note_failure(origin, error)
        for origin, head in outcome.found.items():
            self._reread(intake, origin, head)
        for origin, batches in sorted(intake.batches.items()):
            stored = batches[: outcome.limited.get(origin, len(batches))]
            if stored and origin not in outcome.found:
                self._keep(intake, origin, stored)
        for origin in outcome.limited:
            self._refuse(origin, "limit")
        for origin, proof in sorted(intake.proofs.items()):
            if origin not in outcome.found:
                self._freeze(intake, origin, proof)
        for changes in outcome.projected.values():
            self._projections.committed(changes)
        ORIGINS.set(len(self.positions))
        self.changed.touch()

    def _keep(self, intake: _Intake, origin: IslandId, batches: Sequence[LogBatch]) -> None:
        self.positions.set(origin, Head().after(batches[-1]))
        self._unstored.pop(origin, None)
        chain = intake.chains.get(origin, b"")
        signed = tuple(batch.signed for batch in batches)
        intake.taken.fresh.append(Delta(origin=key_bytes(origin), chain=chain, batches=signed))
        for batch in signed:
            self._recent.add(blake3(batch).digest(16))
            BYTES_IN.inc(len(batch))
        BATCHES_IN.inc(len(batches))
        for listener in self.grown:
            listener(origin)

    def _freeze(self, intake: _Intake, origin: IslandId, proof: ForkProof) -> None:
        self.positions.freeze(origin)
        self._unstored.pop(origin, None)
        log.warning("gossip.fork", origin=origin, relayed_by=intake.source, own=origin == self.me)
        chain = intake.chains.get(origin, b"")
        intake.taken.fresh.append(Delta(origin=key_bytes(origin), chain=chain, proof=proof))

    def _reread(self, intake: _Intake, origin: IslandId, head: Head) -> None:
        """Replace the head in memory by the head in the database."""
        known = self.positions.get(origin)
        if head == known:
            return
        self.positions.set(origin, head)
        self._recent.clear()  # the database may have lost batches, which must not count as duplicates
        intake.taken.gap = True
        log.warning("gossip.head_reread", origin=origin, known=known.seq, stored=head.seq)

    def _note_failure(self, origin: IslandId, error: Exception) -> None:
        reason = (
            f"gossip.db cannot store its batches ({type(error).__name__}: {error}). They are requested again at every"
            " comparison. If this persists, stop the island and remove gossip.db; it is rebuilt from other islands"
        )
        if self._unstored.get(origin) != reason:
            log.error("gossip.not_stored", origin=origin, exc_info=error)
        self._unstored[origin] = reason
        REJECTS.labels("failed").inc()

    def _refuse(self, origin: IslandId, why: str) -> None:
        if origin not in self._refused and len(self._refused) < core.MAX_ORIGINS:
            self._refused.add(origin)
            self._unstored[origin] = _LIMITS[why]
            log.warning("gossip.refused", origin=origin, why=why)
        REJECTS.labels(why).inc()

    async def add_own(self, batches: Sequence[LogBatch], chain: bytes) -> None:
        """Store batches that this island signed. The caller holds `lock`."""

        def write(conn: sqlite3.Connection) -> None:
            store.add_origin(conn, self.me, chain)
            for batch in batches:
                store.append_own(conn, batch)

        def committed(_: None) -> None:
            head = self.positions.get(self.me)
            for batch in batches:
                head = head.after(batch)
                self._recent.add(blake3(batch.signed).digest(16))
            self.positions.set(self.me, head)

        await self._db.write(write, then=committed)

    async def own_batches(self, after: int) -> list[LogBatch]:
        """The batches of this island in gossip.db with entries above `after`."""
        epoch = self.positions.get(self.me).epoch
        signed = await self._db.read(lambda conn: list(store.batches(conn, self.me, epoch, after)))
        return [core.open_batch(batch) for batch in signed]

    async def put_own(self, changes: Sequence[Change]) -> None:
        """Write and project records of this island, which may be signed or not."""

        def write(conn: sqlite3.Connection) -> list[Change]:
            fresh = [change for change in changes if store.put_own(conn, change)]
            self._projections.apply(conn, fresh)
            return fresh

        def committed(fresh: list[Change]) -> None:
            if fresh:
                self._projections.committed(fresh)
                self.changed.touch()

        if changes:
            await self._db.write(write, then=committed)

    async def page(self, wants: Sequence[PullRange]) -> DeltaPage:
        """The answer to a pull: as many of the wanted batches as fit in one message."""
        return await self._db.read(lambda conn: _page(conn, wants))


_LIMITS = {
    "limit": f"it has more than {core.MAX_KEYS:,} records or {core.MAX_LOG_BYTES // 2**20} MiB of changes, which is"
    " the limit. Its stored records do not change any more; it needs a new key and must join again",
    "origins": f"this island knows {core.MAX_ORIGINS:,} islands, which is the limit",
}
"""The problem in health reports for a refused origin, by the reason in the metrics."""


def _disk_reason(error: Exception) -> str:
    return (
        f"gossip.db cannot be written ({str(error).splitlines()[0]}). Check the disk and free some space;"
        " the batches are requested again at every comparison"
    )


def _page(conn: sqlite3.Connection, wants: Sequence[PullRange]) -> DeltaPage:
    deltas: list[Delta] = []
    left = PAGE_LIMIT
    for want in wants:
        origin = island_id(want.origin)
        chain = store.chain(conn, origin)
        if chain is None:
            continue
        chain = chain if want.after == 0 else b""
        left -= 100 + len(chain)
        batches: list[bytes] = []
        whole = True
        for signed in store.batches(conn, origin, want.epoch, want.after):
            if left < len(signed) + 8 or len(batches) == 1000:
                whole = False
                break
            left -= len(signed) + 8
            batches.append(signed)
        found = store.proof(conn, origin) if whole else None
        if found is not None:
            if left < len(found[0]) + len(found[1]) + 32:
                found, whole = None, False
            else:
                left -= len(found[0]) + len(found[1]) + 32
        proof = ForkProof(one=found[0], other=found[1]) if found else None
        if batches or proof:
            deltas.append(Delta(origin=want.origin, chain=chain, batches=tuple(batches), proof=proof))
        if not whole:
            return DeltaPage(deltas=tuple(deltas), more=True)
    return DeltaPage(deltas=tuple(deltas))
