"""Gossip of one island: its own records out, everyone's records in.

Other concerns put records with `put` in their own transactions of state.db, and see everyone's
through projections, which are written in gossip.db together with the logs.
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
    """The signed logs of the archipelago. Register projections first, then `start`."""

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
        """Touched after each transaction that stored or projected something."""
        return self._logs.changed

    async def start(self, tasks: Tasks) -> None:
        """Load the logs, bring projections up to date, and begin to sign and spread."""
        await self._logs.start()
        await self._own.start()
        self._own.poked.set()
        tasks.forever("gossip.sign", self._sign, rng=self._rng)
        tasks.forever("gossip.network", self._await_network, rng=self._rng)
        self._spread.start(tasks)

    # --- this island's records ------------------------------------------------------------------

    def put(self, conn: sqlite3.Connection, key: str, value: bytes) -> None:
        """Make `key` (`kind/rest`, ≤ 200 bytes) say `value` (≤ 4 KiB), in a transaction of state.db.

        `poke` after the commit. Raises `BadInput` for a key or value over the limits, `Full`.
        """
        own_log_store.put(conn, key, value)

    def delete(self, conn: sqlite3.Connection, key: str) -> None:
        """Withdraw `key`, in a transaction of state.db. Nothing happens if it was never put."""
        own_log_store.put(conn, key, None)

    def own(self, conn: sqlite3.Connection, prefix: str = "") -> dict[str, bytes]:
        """What this island wants known, by key, read from state.db."""
        return {key: value for key, (value, _) in own_log_store.state(conn, prefix).items()}

    def truth(self, prefix: str, wanted: Callable[[sqlite3.Connection], dict[str, bytes]]) -> None:
        """Let `wanted(conn of state.db)` say what the own records below `prefix` are.

        It is asked at every start, and after a part of the log came back from peers, so that
        the log follows the owner's tables whatever was restored from where. Before `start`.
        """
        self._own.truth(prefix, wanted)

    def poke(self) -> None:
        """Something was put and committed: project, sign and spread it soon."""
        self._own.poked.set()

    async def flush(self) -> None:
        """Return once all that was put and committed is in the projections of this island."""
        await self._own.project()
        self.poke()

    # --- everyone's records -----------------------------------------------------------------------

    def project(
        self,
        kind: str,
        apply: Callable[[sqlite3.Connection, Change], None],
        *,
        committed: Callable[[Change], None] | None = None,
        version: str = "1",
    ) -> None:
        """Call `apply(conn of gossip.db, change)` for every change of a record of `kind`, before `start`.

        It runs in the transaction that stores the change, for own and others' records alike,
        and must store nothing of what it cannot read. It runs in the writer's thread, before the
        commit, and must not change what the event loop reads: that is for `committed`, which is
        called in the event loop with each change once it is committed.

        At start with a new `version`, and with a new gossip.db, it sees all records again: it must
        not mind what it has seen before. `committed` does not hear of these, for who starts later
        reads the tables.
        """
        self._projections.register(kind, apply, version, committed)

    def read_records(self, conn: sqlite3.Connection, prefix: str, origin: IslandId | None = None) -> Iterator[Change]:
        """The records that begin with `prefix`, by origin and key, read from gossip.db."""
        return store.records(conn, prefix, origin)

    def head(self, origin: IslandId) -> Head:
        """How far the log of `origin` is here."""
        return self._logs.positions.get(origin)

    def origins(self) -> list[IslandId]:
        """The islands of which anything is known, by key."""
        return list(self._logs.positions.roster)

    def digest(self) -> bytes:
        """The state root: equal on two islands if and only if they have the same logs."""
        return self._logs.positions.digest().root

    def problems(self, display: Callable[[IslandId], str] = key_prefix) -> list[str]:
        """What a health report should say about the logs; `display` is what people see of an island."""
        problems = [self._own.problem] if self._own.problem else []
        reasons: dict[str, list[str]] = {}
        for origin, reason in sorted(self._logs.unstored().items()):
            reasons.setdefault(reason, []).append(display(origin))
        for reason, names in reasons.items():
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            problems.append(f"news of {', '.join(names[:5])}{more} cannot be stored: {reason}.")
        return problems

    # --- loops ----------------------------------------------------------------------------------

    async def _sign(self) -> None:
        await self._own.poked.wait(self._wait)
        self._wait = 1.0  # after a failure the poke is used up, and the work is not done
        delta, self._wait = await self._own.step()
        if delta is not None:
            self._spread.push([delta])

    async def _await_network(self) -> object:
        version = self._trust.network_known.version
        if self._trust.network is None:
            return await self._trust.network_known.after(version)
        self._own.poked.set()
        return ENDED
