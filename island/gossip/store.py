"""SQL of gossip.db: the logs of all origins, their records, proofs of forks, fetched blobs."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass

from island.gossip.core import EPOCH, ZERO, Head, LogBatch
from island.kernel.ids import IslandId


@dataclass(frozen=True, slots=True)
class Change:
    """One change of one record, as passed to projections.

    `value` is None if the record was deleted. `seq` is 0 for a change of this island that is not signed yet.
    """

    origin: IslandId
    key: str
    value: bytes | None
    seq: int
    epoch: int


_HEADS = (
    "SELECT o.origin, epoch, seq, head, p.origin IS NOT NULL AS frozen"
    " FROM gossip_origins o LEFT JOIN gossip_proofs p ON p.origin = o.origin"
)


def heads(conn: sqlite3.Connection) -> dict[IslandId, Head]:
    """The head of every origin."""
    rows = conn.execute(f"{_HEADS} WHERE seq > 0 OR p.origin IS NOT NULL")
    return {row["origin"]: _head(row) for row in rows}


def head(conn: sqlite3.Connection, origin: IslandId) -> Head:
    """The head of one origin; the head of an empty log if nothing is stored."""
    row = conn.execute(f"{_HEADS} WHERE o.origin = ?", (origin,)).fetchone()
    return Head() if row is None else _head(row)


def _head(row: sqlite3.Row) -> Head:
    return Head(row["epoch"], row["seq"], row["head"], bool(row["frozen"]))


def add_origin(conn: sqlite3.Connection, origin: IslandId, chain: bytes) -> None:
    """Store an origin with the chain that admits it. Required before its first batch or proof."""
    conn.execute(
        "INSERT INTO gossip_origins (origin, chain, epoch, seq, head, keys, bytes) VALUES (?, ?, ?, 0, ?, 0, 0)"
        " ON CONFLICT DO NOTHING",
        (origin, chain, EPOCH, ZERO),
    )


def chain(conn: sqlite3.Connection, origin: IslandId) -> bytes | None:
    """The chain of an origin, or None if it is not known."""
    row = conn.execute("SELECT chain FROM gossip_origins WHERE origin = ?", (origin,)).fetchone()
    return row["chain"] if row else None


def size(conn: sqlite3.Connection, origin: IslandId) -> tuple[int, int]:
    """Return (number of records, bytes of batches) of one origin."""
    row = conn.execute("SELECT keys, bytes FROM gossip_origins WHERE origin = ?", (origin,)).fetchone()
    return (row["keys"], row["bytes"]) if row else (0, 0)


def append(conn: sqlite3.Connection, batch: LogBatch) -> int:
    """Store a batch that fits; returns the number of records that its origin then has."""
    conn.execute(
        "INSERT INTO gossip_batches (origin, epoch, first, last, hash, signed) VALUES (?, ?, ?, ?, ?, ?)",
        (batch.origin, batch.epoch, batch.first, batch.last, batch.hash, batch.signed),
    )
    fresh = sum(
        _put(conn, Change(batch.origin, entry.key, entry.value, entry.seq, batch.epoch)) for entry in batch.entries
    )
    row = conn.execute(
        "UPDATE gossip_origins SET epoch = ?, seq = ?, head = ?, keys = keys + ?, bytes = bytes + ?"
        " WHERE origin = ? RETURNING keys",
        (batch.epoch, batch.last, batch.hash, fresh, len(batch.signed), batch.origin),
    ).fetchone()
    return int(row["keys"])


def append_own(conn: sqlite3.Connection, batch: LogBatch) -> None:
    """Store a batch of this island. Its records were written before by `put_own`, possibly with newer values."""
    conn.execute(
        "INSERT INTO gossip_batches (origin, epoch, first, last, hash, signed) VALUES (?, ?, ?, ?, ?, ?)",
        (batch.origin, batch.epoch, batch.first, batch.last, batch.hash, batch.signed),
    )
    conn.execute(
        "UPDATE gossip_origins SET epoch = ?, seq = ?, head = ?, bytes = bytes + ? WHERE origin = ?",
        (batch.epoch, batch.last, batch.hash, len(batch.signed), batch.origin),
    )
    for entry in batch.entries:
        conn.execute(
            "UPDATE gossip_records SET epoch = ?, seq = ? WHERE origin = ? AND key = ? AND value IS ?",
            (batch.epoch, entry.seq, batch.origin, entry.key, entry.value),
        )


def put_own(conn: sqlite3.Connection, change: Change) -> bool:
    """Write a record of this island; returns False if it already has this value."""
    row = conn.execute(
        "SELECT value FROM gossip_records WHERE origin = ? AND key = ?", (change.origin, change.key)
    ).fetchone()
    if (row["value"] if row else None) == change.value:
        return False
    _put(conn, change)
    return True


def _put(conn: sqlite3.Connection, change: Change) -> bool:
    """Write a record; returns True if its key is new."""
    values = (change.value, change.epoch, change.seq, change.origin, change.key)
    updated = conn.execute(
        "UPDATE gossip_records SET value = ?, epoch = ?, seq = ? WHERE origin = ? AND key = ?", values
    )
    if updated.rowcount:
        return False
    conn.execute("INSERT INTO gossip_records (value, epoch, seq, origin, key) VALUES (?, ?, ?, ?, ?)", values)
    return True


def has(conn: sqlite3.Connection, batch: LogBatch) -> bool:
    """Whether a batch with the same body is stored. The signature is not compared."""
    row = conn.execute(
        "SELECT hash FROM gossip_batches WHERE origin = ? AND epoch = ? AND first = ?",
        (batch.origin, batch.epoch, batch.first),
    ).fetchone()
    return row is not None and row["hash"] == batch.hash


def overlapping(conn: sqlite3.Connection, batch: LogBatch) -> list[bytes]:
    """The stored batches that share a seq with `batch`, first to last."""
    rows = conn.execute(
        "SELECT signed FROM gossip_batches WHERE origin = ? AND epoch = ? AND last >= ? AND first <= ? ORDER BY first",
        (batch.origin, batch.epoch, batch.first, batch.last),
    )
    return [row["signed"] for row in rows]


def batches(conn: sqlite3.Connection, origin: IslandId, epoch: int, after: int) -> Iterator[bytes]:
    """The batches with entries above `after`, in order."""
    # The batch with `after + 1` may begin before it if this island has another version of the log.
    rows = conn.execute(
        "SELECT signed FROM gossip_batches WHERE origin = ?1 AND epoch = ?2 AND last > ?3 AND first >= coalesce("
        " (SELECT max(first) FROM gossip_batches WHERE origin = ?1 AND epoch = ?2 AND first <= ?3 + 1), 0)"
        " ORDER BY first",
        (origin, epoch, after),
    )
    for row in rows:
        yield row["signed"]


def records(
    conn: sqlite3.Connection, prefix: str, origin: IslandId | None = None, *, tombstones: bool = False
) -> Iterator[Change]:
    """The records whose key begins with `prefix`, of all origins or of one, sorted by origin and key."""
    rows = conn.execute(
        "SELECT origin, key, value, seq, epoch FROM gossip_records WHERE key >= ? AND key < ?"
        " AND (?3 IS NULL OR origin = ?3) AND (?4 OR value IS NOT NULL) ORDER BY origin, key",
        (prefix, prefix + "\x7f", origin, tombstones),
    )
    for row in rows:
        yield Change(row["origin"], row["key"], row["value"], row["seq"], row["epoch"])


def own_keys(conn: sqlite3.Connection, me: IslandId) -> list[str]:
    """The keys of this island's records, without tombstones."""
    rows = conn.execute("SELECT key FROM gossip_records WHERE origin = ? AND value IS NOT NULL ORDER BY key", (me,))
    return [row["key"] for row in rows]


def count_records(conn: sqlite3.Connection) -> int:
    """The number of records of all origins, without tombstones."""
    return int(conn.execute("SELECT count(*) FROM gossip_records WHERE value IS NOT NULL").fetchone()[0])


def add_proof(conn: sqlite3.Connection, origin: IslandId, one: bytes, other: bytes) -> bool:
    """Store a proof, which freezes its origin; returns False if there already is one."""
    done = conn.execute(
        "INSERT INTO gossip_proofs (origin, one, other) VALUES (?, ?, ?) ON CONFLICT DO NOTHING", (origin, one, other)
    )
    return done.rowcount > 0


def proof(conn: sqlite3.Connection, origin: IslandId) -> tuple[bytes, bytes] | None:
    """The proof that froze an origin, or None."""
    row = conn.execute("SELECT one, other FROM gossip_proofs WHERE origin = ?", (origin,)).fetchone()
    return (row["one"], row["other"]) if row else None


def versions(conn: sqlite3.Connection) -> dict[str, str]:
    """The version of the projection that was last applied, by kind."""
    return {row["kind"]: row["version"] for row in conn.execute("SELECT kind, version FROM gossip_projections")}


def set_version(conn: sqlite3.Connection, kind: str, version: str) -> None:
    """Store that all records of `kind` were projected with `version`."""
    conn.execute(
        "INSERT INTO gossip_projections (kind, version) VALUES (?, ?)"
        " ON CONFLICT (kind) DO UPDATE SET version = excluded.version",
        (kind, version),
    )


def blob(conn: sqlite3.Connection, name: str) -> bytes | None:
    """A fetched blob by its hash, or None."""
    row = conn.execute("SELECT data FROM gossip_blobs WHERE hash = ?", (name,)).fetchone()
    return row["data"] if row else None


def keep_blob(conn: sqlite3.Connection, name: str, data: bytes, limit: int) -> None:
    """Store a fetched blob. Deletes the blobs that were fetched first while the total exceeds `limit` bytes."""
    added = conn.execute("INSERT INTO gossip_blobs (hash, data) VALUES (?, ?) ON CONFLICT DO NOTHING", (name, data))
    total = _add_bytes(conn, len(data) if added.rowcount else 0)
    while total > limit:
        oldest = conn.execute(
            "DELETE FROM gossip_blobs WHERE fetched = (SELECT min(fetched) FROM gossip_blobs)"
            " RETURNING length(data) AS size"
        ).fetchone()
        if oldest is None:
            return
        total = _add_bytes(conn, -oldest["size"])


def _add_bytes(conn: sqlite3.Connection, size: int) -> int:
    row = conn.execute("UPDATE gossip_blob_bytes SET total = total + ? RETURNING total", (size,)).fetchone()
    return int(row["total"])
