"""This island's own log: projected at once, signed when that is safe, restored from peers if lost.

state.db is authoritative. After a start, signing waits until a few peers have shown their head of
this log. Otherwise an island whose disk was restored from a backup would sign a second version
of entries that other islands already have: a fork. Without a session nobody could receive what is
signed, so waiting delays nothing: changes are stored and projected, and signed later. If state.db
records that it was restored from a backup, the wait lasts until a peer has shown its head.

Peers can also show batches of this log later. There are two cases, and the hash of the previous batch,
which each batch contains, distinguishes them exactly, without clocks:

- The batch does not continue a batch that this process signed. Before the restore, this island signed
  it, and the peers that were compared did not have it. It is imported. Nothing can contradict it: if
  this process had signed anything, that would be the batch's rival, and would prove a fork.
- The batch continues a batch that this process signed. No earlier life of this island can have signed it, so
  another program uses this key now, such as a clone of the machine. This island stops signing until it is started
  again: two signers would fork the log sooner or later, which freezes it everywhere and for ever, and until then
  each would undo the changes of the other. The batch is imported nevertheless, so that the own log stays equal to
  the copies at peers. The other program goes on, or stops in the same way; its sessions tell it of the copy.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence

import structlog

from island.gossip import core, own_log_store
from island.gossip.core import EPOCH, LogBatch
from island.gossip.logs import SIGNATURE, Logs
from island.gossip.messages import BATCH_LIMIT, Delta, SignedBatch
from island.gossip.store import Change, own_keys
from island.kernel import codec
from island.kernel.db import Database
from island.kernel.ids import IslandId, key_bytes
from island.kernel.ports import Clock, Peers, Signal
from island.kernel.telemetry import counter
from island.trust.core import decode_chain
from island.trust.service import Trust

log = structlog.get_logger("island")

BATCHES_OUT = counter("gossip_batches_signed", "Log batches that this island signed")

BOOT_PEERS, BOOT_WAIT = 3, 30.0
"""Before the first signature: the number of peers whose heads are awaited, and after how many linked seconds one is
enough."""

BOOT_SETTLE = 3.0
"""Seconds after the first session in which others are expected. After that, only linked islands are awaited."""

Derivation = Callable[[sqlite3.Connection], dict[str, bytes]]


class OwnLog:
    """Signs and projects the records of this island."""

    def __init__(self, state: Database, db: Database, logs: Logs, trust: Trust, peers: Peers, clock: Clock) -> None:
        self._state, self._db, self._logs = state, db, logs
        self._trust, self._peers, self._clock = trust, peers, clock
        self.wake = Signal()
        self._fork_problem = ""
        self._derived: dict[str, Derivation] = {}
        self._heard: set[IslandId] = set()
        self._waits_since: float | None = None
        """Since when this island has waited before its first signature; None if it does not wait."""
        self._linked_at: float | None = None
        """When this island was linked again after it had no session; None without a session."""
        self._ready = False
        self._founded_now = False
        """Whether this island belonged to no network when it was started: its state.db is no older copy then."""
        self._only_invited = False
        """Whether invitations are the only sign of others for which this island waits."""
        self._restored_from_backup = False
        """Whether `island restore` made this state.db, and no peer has shown its head since."""
        self._bytes = 0
        self._projected = 0
        self._whole_due = False
        """Whether all records must be projected again, because a part of the log was restored from peers."""
        self._projecting = asyncio.Lock()
        self._signed_at: dict[str, float] = {}
        self._signed_head = b""
        """The hash of the last batch that this process signed; b"" before the first one."""
        logs.returned = self._restore

    @property
    def problem(self) -> str:
        """Why this island does not sign its changes, or "". For health reports."""
        if forked := self._forked():
            return forked
        if self._restored_from_backup and self._trust.network is not None:
            return (
                "this island was restored from a backup and signs no changes until another island is linked, because "
                "others may have newer entries of its log. `island peer ls` shows which islands can be reached."
            )
        waits = self._waits_since is not None and self._clock.monotonic() - self._waits_since >= BOOT_WAIT
        if waits and not self._only_invited:
            return (
                "this island has not compared its log with another island since it started, so it signs no changes: "
                "others may have a newer version of its log. Changes are stored and take effect here, and other "
                "islands get them after the comparison. `island peer ls` shows whether there is a session."
            )
        if not self._is_full():
            return ""
        return (
            "this island's log has reached the maximum size that other islands accept, so they receive no more of its "
            f"changes. {own_log_store.NEW_LOG}"
        )

    def _forked(self) -> str:
        if self._logs.positions.get(self._logs.me).frozen:
            self._fork("two different log batches of this island were signed at the same position")
        return self._fork_problem

    def _is_full(self) -> bool:
        return self._bytes > core.MAX_LOG_BYTES - BATCH_LIMIT * 4

    def derive(self, prefix: str, wanted: Derivation) -> None:
        """Register a function that derives the records below `prefix` from other tables of state.db."""
        self._derived[prefix] = wanted

    async def start(self) -> None:
        """Bring the log in state.db and its copy in gossip.db to the same head, and project all records.

        Batches are copied to the database that is behind.
        """
        self._founded_now = self._trust.network is None
        self._bytes = await self._state.read(own_log_store.log_bytes)
        self._restored_from_backup = await self._state.read(own_log_store.is_restored)
        async with self._logs.lock:
            mine, copy = await self._state.read(own_log_store.head), self._logs.positions.get(self._logs.me)
            if copy.seq > mine.seq:
                found = await self._logs.own_batches(mine.seq)
                if not await self._restore(found):
                    self._fork("the copy of this island's log in gossip.db contradicts the one in state.db")
            elif copy.seq == mine.seq and copy.hash != mine.hash:
                self._fork("the copy of this island's log in gossip.db contradicts the one in state.db")
            else:
                await self._catch_up()
        await self._state.write(self._reconcile)
        await self.project(whole=True)

    def heard(self, peer: IslandId) -> None:
        """Record that `peer` has shown its heads, and that all its batches of this log are stored."""
        if not self._ready and peer not in self._heard:
            self._heard.add(peer)
            self.wake.set()

    async def project(self, *, whole: bool = False) -> None:
        """Project pending changes into gossip.db, or all records with `whole`."""
        async with self._projecting:  # otherwise an older state could be written after a newer one
            if whole or self._whole_due:
                self._whole_due = False
                try:
                    await self._project_whole()
                except BaseException:
                    self._whole_due = True
                    raise
            else:
                await self._project_pending()

    async def _project_whole(self) -> None:
        me = self._logs.me
        wanted = await self._state.read(own_log_store.state)
        changes = [Change(me, key, value, seq, EPOCH) for key, (value, seq) in sorted(wanted.items())]
        for key in await self._db.read(lambda conn: own_keys(conn, me)):
            if key not in wanted:
                changes.append(Change(me, key, None, 0, EPOCH))
        await self._logs.put_own(changes)

    async def _project_pending(self) -> None:
        me = self._logs.me
        pending = await self._state.read(lambda conn: own_log_store.pending(conn, self._projected))
        await self._logs.put_own([Change(me, key, value, 0, EPOCH) for _, key, value in pending])
        if pending:
            self._projected = max(self._projected, pending[-1][0])

    async def step(self) -> tuple[Delta | None, float | None]:
        """Project and sign pending changes. Returns (delta to spread, seconds until the next change is due)."""
        await self.project()
        if self._trust.network is None or self._forked():
            return None, None
        if not await self._is_ready():
            return None, 1.0
        if self._restored_from_backup:
            await self._state.write(own_log_store.unmark_restored, then=self._log_is_newest)
        now = self._clock.monotonic()
        pending = [] if self._is_full() else await self._state.read(own_log_store.pending)
        keys, later = core.due_keys(
            [key for change, key, _ in pending if change <= self._projected], self._signed_at, now
        )
        wait = None if later is None else later - now
        async with self._logs.lock:
            if keys:
                await self._state.write(
                    lambda conn: self._sign(conn, set(keys)), then=lambda signed: self._signed(keys, signed, now)
                )
            batches = await self._catch_up()  # also batches of an earlier step that could not be copied
        if not batches:
            return None, wait
        first = batches[0].first == 1
        delta = Delta(
            origin=key_bytes(self._logs.me),
            chain=self._trust.chain or b"" if first else b"",
            batches=tuple(batch.signed for batch in batches),
        )
        self._logs.changed.touch()
        return delta, wait

    def _signed(self, keys: Sequence[str], batches: Sequence[LogBatch], now: float) -> None:
        if not batches:
            return
        self._signed_head = batches[-1].hash
        self._bytes += sum(len(batch.signed) for batch in batches)
        if self._is_full():
            log.error("gossip.own_log_full", problem=self.problem)
        self._signed_at = {key: at for key, at in self._signed_at.items() if now - at < core.KEY_INTERVAL}
        self._signed_at.update(dict.fromkeys(keys, now))
        BATCHES_OUT.inc(len(batches))

    def _sign(self, conn: sqlite3.Connection, keys: set[str]) -> list[LogBatch]:
        own_log_store.prune(conn, self._projected)
        changes = [
            (key, value)
            for change, key, value in own_log_store.pending(conn)
            if key in keys and change <= self._projected
        ]
        batches = []
        for body in core.cut_batches(self._logs.me, own_log_store.head(conn), changes):
            signature = self._trust.sign(SIGNATURE, body)
            batches.append(core.open_batch(codec.encode(SignedBatch(body=body, signature=signature))))
        own_log_store.append(conn, batches)
        return batches

    async def _catch_up(self) -> list[LogBatch]:
        """Copy batches that only state.db has to gossip.db, and return them. The caller holds `lock`."""
        chain = self._trust.chain
        if chain is None:
            return []
        after = self._logs.positions.get(self._logs.me).seq
        missing = await self._state.read(lambda conn: own_log_store.batches(conn, after))
        if not missing:
            return []
        batches = [core.open_batch(signed) for signed in missing]
        if core.judge_batch(self._logs.positions.get(self._logs.me), batches[0]) is not core.BatchVerdict.FITS:
            self._fork("the copy of this island's log in gossip.db contradicts the one in state.db")
            return []
        await self._logs.add_own(batches, chain)
        return batches

    async def _restore(self, batches: Sequence[LogBatch]) -> bool:
        """Store batches of this log that state.db does not have; False if they do not extend it.

        They are from before a restore, or from another program with this key, in which case this island freezes.
        The caller holds `lock`.
        """
        if self._signed_head and batches[0].previous == self._signed_head:
            self._fork("another program signed changes in the name of this island while this one was running")

        def write(conn: sqlite3.Connection) -> bool:
            head = own_log_store.head(conn)
            for batch in batches:
                if core.judge_batch(head, batch) is not core.BatchVerdict.FITS:
                    return False
                own_log_store.append(conn, [batch])
                head = head.after(batch)
            self._reconcile(conn)
            return True

        if not await self._state.write(write, then=lambda fits: self._restored(batches) if fits else None):
            return False
        await self.project()
        return True

    def _log_is_newest(self, _: None) -> None:
        self._restored_from_backup = False
        log.info("gossip.restored_log_checked", heard=len(self._heard))

    def _restored(self, batches: Sequence[LogBatch]) -> None:
        self._bytes += sum(len(batch.signed) for batch in batches)
        log.warning("gossip.own_log_restored", batches=len(batches), seq=batches[-1].last)
        # `_reconcile` has added the differences to the other tables as pending changes. Project everything again.
        self._projected, self._whole_due = 0, True
        self.wake.set()

    def _reconcile(self, conn: sqlite3.Connection) -> None:
        for prefix in sorted(self._derived):
            own_log_store.replace(conn, prefix, self._derived[prefix](conn))

    def _fork(self, why: str) -> None:
        if not self._fork_problem:
            self._fork_problem = (
                f"{why}, so this island signs no more changes. Does another machine use a copy of this key? "
                "Stop it, then give this island a new key and join again."
            )
            log.error("gossip.own_log_frozen", problem=self._fork_problem)

    async def _is_ready(self) -> bool:
        """Whether this island may sign: enough peers have shown their heads of this log, or there are no others."""
        if not self._ready:
            now = self._clock.monotonic()
            self._waits_since = now if self._waits_since is None else self._waits_since
            if await self._may_begin(now):
                waited = now - self._waits_since
                self._ready, self._waits_since = True, None
                log.debug("gossip.signing_started", heard=len(self._heard), waited_s=round(waited, 1))
        return self._ready

    async def _may_begin(self, now: float) -> bool:
        links = len(self._peers.links())
        if not links:
            self._linked_at = None
            # A backup may be older than the admission of every other island, so that it knows of none.
            expects = self._restored_from_backup or await self._has_others()
            # A copy of state.db may be older than the first admission too, but have the invitation for it.
            self._only_invited = not expects and not self._founded_now and await self._trust.has_invited()
            return not (expects or self._only_invited)
        self._only_invited = False
        self._linked_at = now if self._linked_at is None else self._linked_at
        linked = now - self._linked_at
        expected = max(links, self._known_others()) if linked < BOOT_SETTLE else links
        # Without any comparison, this island would not know whether it was restored from a backup.
        awaited = min(BOOT_PEERS, expected) if linked < BOOT_WAIT else 1
        return len(self._heard) >= awaited

    async def _has_others(self) -> bool:
        """Whether the network has other islands, as far as gossip.db or state.db (after a restore) show."""
        joined = self._trust.chain is not None and bool(decode_chain(self._trust.chain).links)
        return joined or self._known_others() > 0 or await self._trust.has_admitted()

    def _known_others(self) -> int:
        return len(self._logs.positions) - int(self._logs.me in self._logs.positions)
