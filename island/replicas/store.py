"""SQL of the chunk store's database, `chunks.db`. Every function runs in the caller's transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass

from island.kernel.ids import IslandId


@dataclass(frozen=True, slots=True)
class ReplicaSnapshotRow:
    """A row of the table `snapshot`: the replica of a snapshot of another island."""

    id: int
    owner: IslandId
    name: str
    snapshot: str
    folder: str
    bytes: int
    bytes_local: int
    complete: bool
    pinned: bool
    used_at: float
    kept_until: float


@dataclass(frozen=True, slots=True)
class ReplicaFileRow:
    """A row of the table `file`: one file of a replica, with the bitmap of its local chunks."""

    id: int
    path: str
    bytes_local: int
    bits: bytes
    mtime_ns: int | None


@dataclass(frozen=True, slots=True)
class ReplicaFileState:
    """The columns of one file that are written back after its data were synced."""

    id: int
    bytes_local: int
    bits: bytes
    mtime_ns: int | None


def add_snapshot(
    conn: sqlite3.Connection, owner: IslandId, name: str, snapshot: str, folder: str, size: int, now: float
) -> ReplicaSnapshotRow:
    """The row of a snapshot; inserted if there is none."""
    conn.execute(
        "INSERT INTO snapshot (owner, name, snapshot, folder, bytes, used_at) VALUES (?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (owner, name, snapshot) DO NOTHING",
        (owner, name, snapshot, folder, size, now),
    )
    row = find_snapshot(conn, owner, name, snapshot)
    assert row is not None
    return row


def find_snapshot(conn: sqlite3.Connection, owner: IslandId, name: str, snapshot: str) -> ReplicaSnapshotRow | None:
    """The row of a snapshot, or None."""
    row = conn.execute(
        "SELECT * FROM snapshot WHERE owner = ? AND name = ? AND snapshot = ?", (owner, name, snapshot)
    ).fetchone()
    return _snapshot(row) if row else None


def snapshots(conn: sqlite3.Connection) -> list[ReplicaSnapshotRow]:
    """All snapshots, least recently used first."""
    return [_snapshot(row) for row in conn.execute("SELECT * FROM snapshot ORDER BY used_at, id")]


def drop_snapshot(conn: sqlite3.Connection, ident: int) -> None:
    """Delete the row of a snapshot and, by cascade, its files and pages."""
    conn.execute("DELETE FROM snapshot WHERE id = ?", (ident,))


def update_snapshot(
    conn: sqlite3.Connection,
    ident: int,
    *,
    used_at: float | None = None,
    kept_until: float | None = None,
    complete: bool | None = None,
    pinned: bool | None = None,
) -> None:
    """Change the given columns; None leaves a column unchanged. Times are never set back; see `release_snapshot`."""
    conn.execute(
        "UPDATE snapshot SET used_at = MAX(used_at, COALESCE(?, used_at)),"
        " kept_until = MAX(kept_until, COALESCE(?, kept_until)),"
        " complete = COALESCE(?, complete), pinned = COALESCE(?, pinned) WHERE id = ?",
        (used_at, kept_until, complete, pinned, ident),
    )


def release_snapshot(conn: sqlite3.Connection, ident: int) -> None:
    """Mark a snapshot as not reserved for a session."""
    conn.execute("UPDATE snapshot SET kept_until = 0 WHERE id = ?", (ident,))


def add_file(conn: sqlite3.Connection, snapshot: int, path: str) -> ReplicaFileRow:
    """The row of a file; inserted if there is none."""
    conn.execute(
        "INSERT INTO file (snapshot, path, bits) VALUES (?, ?, x'') ON CONFLICT (snapshot, path) DO NOTHING",
        (snapshot, path),
    )
    row = find_file(conn, snapshot, path)
    assert row is not None
    return row


def find_file(conn: sqlite3.Connection, snapshot: int, path: str) -> ReplicaFileRow | None:
    """The row of a file, or None."""
    row = conn.execute(
        "SELECT id, path, bytes_local, bits, mtime_ns FROM file WHERE snapshot = ? AND path = ?",
        (snapshot, path),
    ).fetchone()
    return ReplicaFileRow(*row) if row else None


def files(conn: sqlite3.Connection, snapshot: int) -> list[ReplicaFileRow]:
    """All files of a snapshot that have a row, sorted by path."""
    rows = conn.execute(
        "SELECT id, path, bytes_local, bits, mtime_ns FROM file WHERE snapshot = ? ORDER BY path", (snapshot,)
    )
    return [ReplicaFileRow(*row) for row in rows]


def save_files(conn: sqlite3.Connection, snapshot: int, states: Iterable[ReplicaFileState], now: float) -> None:
    """Write the bitmaps of files whose data were synced, and the sums of their snapshot."""
    conn.executemany(
        "UPDATE file SET bytes_local = ?, bits = ?, mtime_ns = ? WHERE id = ?",
        [(state.bytes_local, state.bits, state.mtime_ns, state.id) for state in states],
    )
    conn.execute(
        "UPDATE snapshot SET used_at = MAX(used_at, ?),"
        " bytes_local = (SELECT COALESCE(SUM(bytes_local), 0) FROM file WHERE snapshot = snapshot.id) WHERE id = ?",
        (now, snapshot),
    )


def add_page(conn: sqlite3.Connection, snapshot: int, page: str, data: bytes) -> None:
    """Store a manifest page of a snapshot; it is deleted with the snapshot."""
    conn.execute(
        "INSERT INTO page (snapshot, hash, data) SELECT id, ?, ? FROM snapshot WHERE id = ? ON CONFLICT DO NOTHING",
        (bytes.fromhex(page), data, snapshot),
    )


def page(conn: sqlite3.Connection, name: str) -> bytes | None:
    """A stored page by its hash, or None."""
    row = conn.execute("SELECT data FROM page WHERE hash = ? LIMIT 1", (bytes.fromhex(name),)).fetchone()
    return row[0] if row else None


def add_moved(
    conn: sqlite3.Connection, owner: IslandId, name: str, snapshot: str, *, received: int = 0, sent: int = 0
) -> None:
    """Add to the counters of bytes transferred between islands."""
    conn.execute(
        "INSERT INTO moved (owner, name, snapshot, received, sent) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (owner, name, snapshot) DO UPDATE SET"
        " received = received + excluded.received, sent = sent + excluded.sent",
        (owner, name, snapshot, received, sent),
    )


def moved(conn: sqlite3.Connection, owner: IslandId, name: str, snapshot: str) -> tuple[int, int]:
    """Bytes (received, sent) of a snapshot."""
    row = conn.execute(
        "SELECT received, sent FROM moved WHERE owner = ? AND name = ? AND snapshot = ?", (owner, name, snapshot)
    ).fetchone()
    return (row[0], row[1]) if row else (0, 0)


def add_fault(conn: sqlite3.Connection, holder: IslandId, what: str, now: float) -> None:
    """Record that an island sent bytes that do not match their hash."""
    conn.execute(
        "INSERT INTO fault (holder, times, last_at, what) VALUES (?, 1, ?, ?) ON CONFLICT (holder) DO UPDATE SET"
        " times = times + 1, last_at = excluded.last_at, what = excluded.what",
        (holder, now, what),
    )


def faults(conn: sqlite3.Connection) -> dict[IslandId, tuple[int, float, str]]:
    """Holder → (number of times, Unix time of the last one, its description)."""
    rows = conn.execute("SELECT holder, times, last_at, what FROM fault ORDER BY holder")
    return {IslandId(row[0]): (row[1], row[2], row[3]) for row in rows}


def _snapshot(row: sqlite3.Row) -> ReplicaSnapshotRow:
    return ReplicaSnapshotRow(
        row["id"],
        IslandId(row["owner"]),
        row["name"],
        row["snapshot"],
        row["folder"],
        row["bytes"],
        row["bytes_local"],
        bool(row["complete"]),
        bool(row["pinned"]),
        row["used_at"],
        row["kept_until"],
    )
