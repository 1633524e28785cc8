"""The seal of the journal: a signature over its newest row, made in the transaction that adds the row.

A missing seal, or one that is older than the newest row, therefore always means that another
program wrote to state.db. The island then stops signing rows, because the next seal would hide
the mismatch, until an administrator accepts it (`Sealer.consent`).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from functools import partial

import structlog

from island.kernel.ids import IslandId, NetworkId
from island.trust import journal, store
from island.trust.journal import Tip
from island.trust.keys import Identity

log = structlog.get_logger("island")


def seal_problems(conn: sqlite3.Connection, me: IslandId) -> list[str]:
    """The problems of the journal's seal in state.db, as sentences. Reads only a few rows."""
    problems = journal.verify_seal(conn, me, journal.unsealed(conn))
    if not problems and journal.last(conn) == 0 and store.read_network(conn) is not None:
        return ["the journal is empty, although this island belongs to an archipelago: its rows were removed"]
    return problems


class Sealer:
    """Seals the journal at each commit of state.db. Call `start` before the first row is added."""

    def __init__(self, identity: Identity, network: Callable[[], NetworkId]) -> None:
        self.problem = ""
        """Why rows are no longer sealed, or ""."""
        self.generation = 1
        self._identity, self._network = identity, network
        self._started = False
        self._sealed: Tip | None = None
        self._consented = 0

    def start(self, conn: sqlite3.Connection) -> None:
        """Load the newest sealed row, and check the seal."""
        problems = seal_problems(conn, self._identity.id) or self._seal_upgraded(conn)
        self._sealed, self.generation = journal.sealed_tip(conn), journal.generation(conn)
        self._started = True
        if problems:
            self._refuse(problems[0])

    def _seal_upgraded(self, conn: sqlite3.Connection) -> list[str]:
        """Seal the rows that an earlier version left unsealed. Returns the problems of these rows instead, if any."""
        if journal.unsealed(conn):
            rows = journal.verify_rows(conn, journal.sealed_tip(conn), limit=-1)
            if problems := rows.problems + journal.verify_head(conn, rows.last):
                return problems
            journal.seal(conn, self._identity, self._network())
        journal.end_upgrade(conn)
        return []

    def consent(self, generation: int) -> None:
        """Seal the journal again from the row that begins this generation, despite earlier problems."""
        self._consented = generation

    def before_commit(self, conn: sqlite3.Connection) -> Callable[[], None] | None:
        """Seal the rows that this transaction added. For `Database.before_commit`."""
        if not self._started or (head := journal.tip(conn)) == self._sealed:
            return None
        if self._consented > self.generation and journal.generation(conn) == self._consented:
            journal.seal(conn, self._identity, self._network())
            return partial(self._committed, head, self._consented)
        if not self.problem and (change := self._changed_by_others(conn, head)):
            self._refuse(change)
        if self.problem:
            return None
        journal.seal(conn, self._identity, self._network())
        return partial(self._committed, head, self.generation)

    def _changed_by_others(self, conn: sqlite3.Connection, head: Tip | None) -> str:
        """How another program changed the journal since the last commit, or ""."""
        before = self._sealed
        if journal.sealed_tip(conn) != before:
            return "the seal was replaced or removed while this daemon ran"
        if before is None:
            return ""
        if head is None or head.seq <= before.seq or journal.hash_at(conn, before.seq) != before.hash:
            return f"rows up to {before.seq} were removed or replaced while this daemon ran"
        return ""

    def _refuse(self, problem: str) -> None:
        self.problem = problem
        log.error("journal.changed", problem=problem)

    def _committed(self, head: Tip | None, generation: int) -> None:
        if generation != self.generation:
            self.problem = ""
        self._sealed, self.generation = head, generation
