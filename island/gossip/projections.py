"""Projections: tables of other packages in gossip.db, derived from records and written with the logs."""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Callable, Iterable

import structlog

from island.gossip import store
from island.gossip.store import Change
from island.kernel.loops import is_database
from island.kernel.stranger_log import StrangerLog

log = structlog.get_logger("island")

Apply = Callable[[sqlite3.Connection, Change], str | None]
"""Applies a change; returns why its record is ignored, or None."""

Committed = Callable[[Change], None]

IGNORED_KEPT = 10_000
"""Maximum number of ignored records that wait for their report: those of one transaction, except for a rebuild."""


class Projections:
    """The registered functions that apply changes, by kind of record."""

    def __init__(self) -> None:
        self._applies: dict[str, list[tuple[Apply, str]]] = {}
        self._listeners: dict[str, list[Committed]] = {}
        self._ignored = deque[tuple[Change, str]](maxlen=IGNORED_KEPT)
        """Ignored records with the reason. The writer's thread appends them, and the event loop reports them."""
        self._lines = StrangerLog("origin")

    def register(self, kind: str, apply: Apply, version: str, committed: Committed | None) -> None:
        """Call `apply` for every change of a record of `kind`. With a new `version`, apply all records again.

        `committed` is called in the event loop with each change after its commit.
        """
        kind = kind.rstrip("/")
        self._applies.setdefault(kind, []).append((apply, version))
        if committed is not None:
            self._listeners.setdefault(kind, []).append(committed)

    def apply(self, conn: sqlite3.Connection, changes: Iterable[Change]) -> None:
        """Apply changes in the transaction that stores them."""
        for change in changes:
            for apply, _ in self._applies.get(_kind(change), ()):
                if reason := _guarded(conn, apply, change):
                    self._ignored.append((change, reason))

    def committed(self, changes: Iterable[Change]) -> None:
        """Call the listeners with applied changes. Runs in the event loop, after the commit."""
        self._report_ignored()
        for change in changes:
            for listener in self._listeners.get(_kind(change), ()):
                listener(change)

    def _report_ignored(self) -> None:
        """Log the ignored records: a line for each origin and kind, with the first record and the number of records."""
        found: dict[tuple[str, str], list[tuple[Change, str]]] = {}
        while self._ignored:
            change, reason = self._ignored.popleft()
            found.setdefault((change.origin, _kind(change)), []).append((change, reason))
        for (origin, _), ignored in found.items():
            change, reason = ignored[0]
            self._lines.warning("gossip.records_ignored", origin, key=change.key, reason=reason, records=len(ignored))

    def rebuild(self, conn: sqlite3.Connection) -> list[str]:
        """Apply all records of the kinds whose projection is new or changed; returns these kinds."""
        stored, done = store.versions(conn), []
        for kind in sorted(self._applies):
            version = ",".join(version for _, version in self._applies[kind])
            if stored.get(kind) == version:
                continue
            self.apply(conn, list(store.records(conn, f"{kind}/", tombstones=True)))
            store.set_version(conn, kind, version)
            done.append(kind)
        return done


def _kind(change: Change) -> str:
    return change.key.partition("/")[0]


def _guarded(conn: sqlite3.Connection, apply: Apply, change: Change) -> str | None:
    reason = None
    conn.execute("SAVEPOINT projection")
    try:
        reason = apply(conn, change)
    except sqlite3.OperationalError:
        raise  # a full disk rolls back the whole transaction
    except Exception as error:  # a bug, logged with its traceback: a record of another island must not stop the log
        if is_database(error):
            raise
        conn.execute("ROLLBACK TO projection")
        log.exception("gossip.projection_failed", origin=change.origin, key=change.key)
    conn.execute("RELEASE projection")
    return reason
