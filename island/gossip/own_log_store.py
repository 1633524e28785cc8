"""SQL of this island's own log in state.db: pending changes, signed records and batches, and own blobs."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping

from blake3 import blake3

from island.errors import BadInput, Full
from island.gossip.core import MAX_KEYS, Head, LogBatch, check_record
from island.kernel.codec import BULK_LIMIT

NEW_LOG = "Create a new home folder with `island init`, join the archipelago from there, and publish again."
"""What to do if a log is full. Records and batches of a log are never removed, so nothing else makes room."""


def put(conn: sqlite3.Connection, key: str, value: bytes | None) -> None:
    """Add a change of `key` to `value` (None: delete) in the caller's transaction. Raises `BadInput`, `Full`."""
    check_record(key, value)
    signed = conn.execute("SELECT value FROM gossip_own_records WHERE key = ?", (key,)).fetchone()
    if (signed["value"] if signed else None) == value:
        # The value is that of the signed record (or there is neither). An existing pending row is kept,
        # so that the change is projected too; `prune` removes it.
        if conn.execute("SELECT 1 FROM gossip_own_pending WHERE key = ?", (key,)).fetchone() is None:
            return
    elif signed is None and value is not None:
        _check_room(conn)
    # REPLACE gives the row a new, higher `change`.
    conn.execute("INSERT OR REPLACE INTO gossip_own_pending (key, value) VALUES (?, ?)", (key, value))


def _check_room(conn: sqlite3.Connection) -> None:
    count = conn.execute(
        "SELECT (SELECT count(*) FROM gossip_own_records) + (SELECT count(*) FROM gossip_own_pending)"
    ).fetchone()[0]
    if count >= MAX_KEYS:
        raise Full(
            f"this island's log has {count} records, the maximum that other islands accept",
            hint=f"Withdrawn records count too. {NEW_LOG}",
        )


def replace(conn: sqlite3.Connection, prefix: str, wanted: Mapping[str, bytes]) -> None:
    """Make `wanted` the only records below `prefix`, in the caller's transaction."""
    for key in sorted(set(state(conn, prefix)) - set(wanted)):
        put(conn, key, None)
    for key in sorted(wanted):
        put(conn, key, wanted[key])


def state(conn: sqlite3.Connection, prefix: str = "") -> dict[str, tuple[bytes, int]]:
    """The current records of this island: key → (value, its seq, or 0 if it is not signed yet)."""
    rows = conn.execute(
        "SELECT key, value, seq FROM gossip_own_records WHERE key >= ?1 AND key < ?2"
        " AND key NOT IN (SELECT key FROM gossip_own_pending)"
        " UNION ALL SELECT key, value, 0 FROM gossip_own_pending WHERE key >= ?1 AND key < ?2 ORDER BY key",
        (prefix, prefix + "\x7f"),
    )
    return {row["key"]: (row["value"], row["seq"]) for row in rows if row["value"] is not None}


def pending(conn: sqlite3.Connection, after: int = 0) -> list[tuple[int, str, bytes | None]]:
    """The unsigned changes above `after`, in order: (change, key, value)."""
    rows = conn.execute("SELECT change, key, value FROM gossip_own_pending WHERE change > ? ORDER BY change", (after,))
    return [(row["change"], row["key"], row["value"]) for row in rows]


def prune(conn: sqlite3.Connection, upto: int) -> None:
    """Delete pending changes up to `upto` whose value is that of the signed record."""
    conn.execute(
        "DELETE FROM gossip_own_pending WHERE change <= ? AND value IS"
        " (SELECT value FROM gossip_own_records r WHERE r.key = gossip_own_pending.key)",
        (upto,),
    )


def append(conn: sqlite3.Connection, batches: Iterable[LogBatch]) -> None:
    """Store signed batches, update the signed records, and delete the pending changes that they contain."""
    for batch in batches:
        conn.execute(
            "INSERT INTO gossip_own_batches (epoch, first, last, hash, signed) VALUES (?, ?, ?, ?, ?)",
            (batch.epoch, batch.first, batch.last, batch.hash, batch.signed),
        )
        for entry in batch.entries:
            conn.execute(
                "INSERT INTO gossip_own_records (key, value, epoch, seq) VALUES (?, ?, ?, ?) ON CONFLICT (key)"
                " DO UPDATE SET value = excluded.value, epoch = excluded.epoch, seq = excluded.seq",
                (entry.key, entry.value, batch.epoch, entry.seq),
            )
            conn.execute("DELETE FROM gossip_own_pending WHERE key = ? AND value IS ?", (entry.key, entry.value))


def head(conn: sqlite3.Connection) -> Head:
    """The head of this island's log."""
    row = conn.execute(
        "SELECT epoch, last, hash FROM gossip_own_batches ORDER BY epoch DESC, first DESC LIMIT 1"
    ).fetchone()
    return Head(row["epoch"], row["last"], row["hash"]) if row else Head()


def batches(conn: sqlite3.Connection, after: int) -> list[bytes]:
    """The signed batches with entries above `after`, in order."""
    rows = conn.execute("SELECT signed FROM gossip_own_batches WHERE last > ? ORDER BY epoch, first", (after,))
    return [row["signed"] for row in rows]


def log_bytes(conn: sqlite3.Connection) -> int:
    """Bytes of all signed batches."""
    return int(conn.execute("SELECT coalesce(sum(length(signed)), 0) FROM gossip_own_batches").fetchone()[0])


def mark_restored(conn: sqlite3.Connection, at: float) -> None:
    """Record that this database was restored from a backup at `at` (Unix seconds): the log may lack its newest part."""
    conn.execute("INSERT OR REPLACE INTO gossip_own_restored (one, at) VALUES (1, ?)", (at,))


def is_restored(conn: sqlite3.Connection) -> bool:
    """Whether `mark_restored` was called, and `unmark_restored` was not called since."""
    return conn.execute("SELECT 1 FROM gossip_own_restored").fetchone() is not None


def unmark_restored(conn: sqlite3.Connection) -> None:
    """Record that another island has shown its copy of this island's log since the restore."""
    conn.execute("DELETE FROM gossip_own_restored")


def put_blob(conn: sqlite3.Connection, data: bytes) -> str:
    """Store a blob of this island and count one use; `drop_blob` must follow later. Returns its hash."""
    if len(data) > BULK_LIMIT:
        raise BadInput(f"a blob of {len(data)} bytes is over the limit of {BULK_LIMIT}")
    name = blake3(data).hexdigest()
    conn.execute(
        "INSERT INTO gossip_own_blobs (hash, uses, data) VALUES (?, 1, ?)"
        " ON CONFLICT (hash) DO UPDATE SET uses = uses + 1",
        (name, data),
    )
    return name


def drop_blob(conn: sqlite3.Connection, name: str) -> None:
    """Release one use of a blob, and delete it after the last."""
    conn.execute("UPDATE gossip_own_blobs SET uses = uses - 1 WHERE hash = ?", (name,))
    conn.execute("DELETE FROM gossip_own_blobs WHERE hash = ? AND uses <= 0", (name,))


def blob(conn: sqlite3.Connection, name: str) -> bytes | None:
    """A blob of this island by its hash."""
    row = conn.execute("SELECT data FROM gossip_own_blobs WHERE hash = ?", (name,)).fetchone()
    return row["data"] if row else None
