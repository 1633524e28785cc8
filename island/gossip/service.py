"""Gossip: publishes this island's records and receives those of all islands.

Other packages publish records with `put` in their own transactions on state.db, and read the records
of all islands from projections, which are written to gossip.db together with the logs.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator

import structlog

from island.gossip import own_log_store, store
from island.gossip.blobs import Blobs
from island.gossip.core import Head
from island.gossip.logs import Logs
from island.gossip.own_log import OwnLog
from island.gossip.projections import Projections
from island.gossip.spread import Spread
from island.gossip.store import Change
from island.kernel.db import Database
from island.kernel.ids import IslandId, key_prefix
from island.kernel.loops import ENDED, Tasks
from island.kernel.ports import Clock, Peers, Rng, Topic
from island.trust.service import Trust

__all__ = ["Change", "Gossip"]

log = structlog.get_logger("island")


class Gossip:
    """The signed logs of the archipelago. Register projections before `start`."""

    def __init__(self, state: Database, db: Database, trust: Trust, peers: Peers, clock: Clock, rng: Rng) -> None:
        self._state, self._db, self._trust, self._rng = state, db, trust, rng
        self._projections = Projections()
        self._logs = Logs(db, trust, self._projections, clock)
        self._own = OwnLog(state, db, self._logs, trust, peers, clock)
        self._spread = Spread(self._logs, self._own, peers, clock, rng)
        self.blobs = Blobs(state, db, peers, clock)
        self._wait: float | None = None

    @property
    def changed(self) -> Topic:
        """Touched after each transaction that stored or projected records."""
        return self._logs.changed

    async def start(self, tasks: Tasks) -> None:
        """Load the logs, bring projections up to date, and begin to sign and spread."""
        await self._logs.start()
        await self._own.start()
        self._own.wake.set()
        tasks.forever("gossip.sign", self._sign, rng=self._rng)
        tasks.forever("gossip.network", self._await_network, rng=self._rng)
        self._spread.start(tasks)

    # --- this island's records ------------------------------------------------------------------

    def put(self, conn: sqlite3.Connection, key: str, value: bytes) -> None:
        """Set the record `key` (`kind/rest`, ≤ 200 bytes) to `value` (≤ 4 KiB), in a transaction on state.db.

        Call `publish_soon` after the commit. Raises `BadInput` for an invalid key or a value that is too large,
        and `Full` if this island has too many records.
        """
        own_log_store.put(conn, key, value)

    def delete(self, conn: sqlite3.Connection, key: str) -> None:
        """Delete the record `key`, in a transaction on state.db. Does nothing if it does not exist."""
        own_log_store.put(conn, key, None)

    def own(self, conn: sqlite3.Connection, prefix: str = "") -> dict[str, bytes]:
        """The records of this island by key, read from state.db."""
        return {key: value for key, (value, _) in own_log_store.state(conn, prefix).items()}

    def derive(self, prefix: str, wanted: Callable[[sqlite3.Connection], dict[str, bytes]]) -> None:
        """Register `wanted(conn)`, which derives this island's records below `prefix` from tables of state.db.

        It is called at every start, and after a part of the log was restored from peers, so that the
        log agrees with these tables after any restore. Call before `start`.
        """
        self._own.derive(prefix, wanted)

    def publish_soon(self) -> None:
        """Project, sign and spread committed changes soon."""
        self._own.wake.set()

    async def flush(self) -> None:
        """Wait until all committed changes are in the projections of this island."""
        await self._own.project()
        self.publish_soon()

    # --- records of all islands -------------------------------------------------------------------

    def project(
        self,
        kind: str,
        apply: Callable[[sqlite3.Connection, Change], str | None],
        *,
        committed: Callable[[Change], None] | None = None,
        version: str = "1",
    ) -> None:
        """Register `apply(conn of gossip.db, change)` for all changes of records of `kind`. Call before `start`.

        `apply` runs in the transaction that stores the change, for records of this and of other
        islands, and must ignore records that it cannot decode: it returns the reason, which is logged
        after the commit. It runs in the writer's thread before the commit, so it must not change state
        that the event loop reads. That is for `committed`, which is called in the event loop with each
        change after the commit.

        With a new `version` or a new gossip.db, `start` applies all records again, so `apply` must be
        idempotent. `committed` is not called for these: read the tables after `start` instead.
        """
        self._projections.register(kind, apply, version, committed)

    def read_records(self, conn: sqlite3.Connection, prefix: str, origin: IslandId | None = None) -> Iterator[Change]:
        """The records whose key begins with `prefix`, sorted by origin and key, read from gossip.db."""
        return store.records(conn, prefix, origin)

    def on_growth(self, listener: Callable[[IslandId], None]) -> None:
        """Call `listener(origin)` after each commit that extended the log of another island."""
        self._logs.grown.append(listener)

    def head(self, origin: IslandId) -> Head:
        """The stored head of the log of `origin`."""
        return self._logs.positions.get(origin)

    def origins(self) -> list[IslandId]:
        """The known origins, sorted by key."""
        return list(self._logs.positions.roster)

    def digest(self) -> bytes:
        """The state root: equal on two islands if and only if they have the same logs."""
        return self._logs.positions.digest().root

    def problems(self, display: Callable[[IslandId], str] = key_prefix) -> list[str]:
        """Problems of the logs, for health reports. `display` returns the displayed name of an island."""
        problems = [self._own.problem] if self._own.problem else []
        reasons: dict[str, list[str]] = {}
        for origin, reason in sorted(self._logs.unstored().items()):
            reasons.setdefault(reason, []).append(display(origin))
        for reason, names in reasons.items():
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            problems.append(f"changes from {', '.join(names[:5])}{more} cannot be stored: {reason}.")
        return problems

    # --- loops ----------------------------------------------------------------------------------

    async def _sign(self) -> None:
        await self._own.wake.wait(self._wait)
        self._wait = 1.0  # if the step fails, the signal is consumed: try again after a second
        delta, self._wait = await self._own.step()
        if delta is not None:
            self._spread.push([delta])

    async def _await_network(self) -> object:
        version = self._trust.network_known.version
        if self._trust.network is None:
            return await self._trust.network_known.after(version)
        self._own.wake.set()
        return ENDED
