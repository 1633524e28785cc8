"""The seal of the journal: the signature over its newest row, made in the transaction that adds the row.

A seal that is missing or older than the newest row therefore always means that somebody else
wrote to state.db. This island then signs no further row, so that the mismatch does not vanish
under the next act; an administrator may accept it (`Sealer.consent`).
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
    """What is wrong with the seal of the journal in state.db, as sentences; reads a few rows only."""
    problems = journal.verify_seal(conn, me)
    if not problems and journal.last(conn) == 0 and store.read_network(conn) is not None:
        return ["the journal is empty, although this island belongs to an archipelago: its rows were removed"]
    return problems


class Sealer:
    """Seals the journal at each commit of state.db. `start` before the first row is added."""

    def __init__(self, identity: Identity, network: Callable[[], NetworkId]) -> None:
        self.problem = ""
        """Why no row is sealed any more, or ""."""
        self.generation = 1
        self._identity, self._network = identity, network
        self._started = False
        self._sealed: Tip | None = None
        self._consented = 0

    def start(self, conn: sqlite3.Connection) -> None:
        """Take over the journal as it is stored, and find out whether its seal is right."""
        self._sealed, self.generation = journal.sealed_tip(conn), journal.generation(conn)
        self._started = True
        if problems := seal_problems(conn, self._identity.id):
            self._refuse(problems[0])

    def consent(self, generation: int) -> None:
        """Seal the journal again with the row that begins this generation, whatever happened before."""
        self._consented = generation

    def before_commit(self, conn: sqlite3.Connection) -> Callable[[], None] | None:
        """Seal what this transaction added; for `Database.before_commit`."""
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
        """What somebody else did to the journal since the last commit, or ""."""
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
