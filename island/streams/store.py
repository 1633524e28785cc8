"""SQL of the tables for streams in `state.db`: sources with their source journals, subscriptions with their segments.

Every function runs in the caller's transaction.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Literal

from island.kernel.ids import IslandId
from island.streams.core import FileStat
from island.streams.messages import Lag, StreamPosition

Connection = sqlite3.Connection


@dataclass(frozen=True, slots=True)
class SourceRow:
    """A source of this island. `columns` is its Arrow schema as IPC bytes, None before the first file."""

    name: str
    kind: str
    path: str
    incarnation: str
    added: float
    added_by: str
    format: str
    columns: bytes | None
    changes: int
    files: int
    rows: int
    bytes: int
    updated: float


@dataclass(frozen=True, slots=True)
class SourceFileRow:
    """A file in a source journal, identified by its content. `gone` is the change that removed its last path."""

    source: str
    seq: int
    path: str
    size: int
    hash: str
    format: str
    rows: int
    arrived: float
    gone: int | None
    problem: str
    note: str


@dataclass(frozen=True, slots=True)
class SubscriptionRow:
    """A subscription. `halted` is `stopped` if it will not continue by itself; `reason` is the reason."""

    id: str
    name: str
    owner: IslandId
    owner_name: str
    source: str
    predicate: str
    region: str
    start: str
    user: str
    created: float
    incarnation: str
    position: bytes
    columns: bytes | None
    rows: int
    bytes: int
    segments: int
    halted: str
    reason: str
    updated: float


# --- sources -----------------------------------------------------------------------------------


def move_folder(conn: Connection, old: str, new: str) -> None:
    """Record that the watched folders below the folder `old` are now below `new`."""
    conn.execute(
        "UPDATE stream_sources SET path = ?2 || substr(path, length(?1) + 1)"
        " WHERE path = ?1 OR substr(path, 1, length(?1) + 1) = ?1 || '/'",
        (old, new),
    )


def insert_source(conn: Connection, row: SourceRow) -> None:
    """Insert a source."""
    conn.execute(
        "INSERT INTO stream_sources VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)",
        tuple(getattr(row, name) for name in SourceRow.__slots__),
    )


def delete_source(conn: Connection, name: str) -> bool:
    """Delete a source and its source journal; returns False if there is none."""
    return conn.execute("DELETE FROM stream_sources WHERE name=?", (name,)).rowcount > 0


def sources(conn: Connection) -> list[SourceRow]:
    """All sources, sorted by name."""
    return [SourceRow(**dict(row)) for row in conn.execute("SELECT * FROM stream_sources ORDER BY name")]


def source(conn: Connection, name: str) -> SourceRow | None:
    """The source with this name, or None."""
    row = conn.execute("SELECT * FROM stream_sources WHERE name=?", (name,)).fetchone()
    return SourceRow(**dict(row)) if row else None


def names(conn: Connection, name: str) -> dict[str, FileStat]:
    """The known paths of a source, with the FileStat of each."""
    rows = conn.execute("SELECT path, size, mtime_ns, inode FROM stream_names WHERE source=?", (name,))
    return {row["path"]: FileStat(row["size"], row["mtime_ns"], row["inode"]) for row in rows}


def locations(conn: Connection, name: str, digest: str) -> list[tuple[str, FileStat]]:
    """The current paths of the files with this content, with the FileStat of each."""
    rows = conn.execute(
        "SELECT path, size, mtime_ns, inode FROM stream_names WHERE source=? AND hash=? ORDER BY path", (name, digest)
    )
    return [(row["path"], FileStat(row["size"], row["mtime_ns"], row["inode"])) for row in rows]


def set_columns(conn: Connection, name: str, format_: str, columns: bytes) -> None:
    """Set the schema of a source, if it has none. It is never changed afterwards."""
    conn.execute(
        "UPDATE stream_sources SET format=?, columns=? WHERE name=? AND columns IS NULL", (format_, columns, name)
    )


def _change(conn: Connection, name: str, now: float) -> int:
    conn.execute("UPDATE stream_sources SET changes=changes+1, updated=? WHERE name=?", (now, name))
    return int(conn.execute("SELECT changes FROM stream_sources WHERE name=?", (name,)).fetchone()[0])


def journal_file(
    conn: Connection,
    name: str,
    path: str,
    stat: FileStat,
    *,
    digest: str,
    format_: str,
    rows: int,
    now: float,
    problem: str = "",
    note: str = "",
) -> SourceFileRow | None:
    """Record a complete file at `path`; returns the new row, or None if its content is already known.

    If the path had another content before, that content loses the path. A known content that was
    marked as removed is available again.
    """
    former = conn.execute("SELECT hash FROM stream_names WHERE source=? AND path=?", (name, path)).fetchone()
    conn.execute(
        "INSERT INTO stream_names VALUES (?,?,?,?,?,?) ON CONFLICT (source, path) DO UPDATE SET "
        "size=excluded.size, mtime_ns=excluded.mtime_ns, inode=excluded.inode, hash=excluded.hash",
        (name, path, stat.size, stat.mtime_ns, stat.inode, digest),
    )
    if former and former["hash"] != digest:
        _mark_gone(conn, name, former["hash"], now)
    known = conn.execute("SELECT seq, gone FROM stream_files WHERE source=? AND hash=?", (name, digest)).fetchone()
    if known:
        if known["gone"] is not None:
            _change(conn, name, now)
            conn.execute("UPDATE stream_files SET gone=NULL WHERE source=? AND seq=?", (name, known["seq"]))
        return None
    seq = _change(conn, name, now)
    row = SourceFileRow(name, seq, path, stat.size, digest, format_, rows, now, None, problem, note)
    conn.execute(
        "INSERT INTO stream_files VALUES (?,?,?,?,?,?,?,?,?,?,?)",
        tuple(getattr(row, column) for column in SourceFileRow.__slots__),
    )
    if not problem:
        conn.execute(
            "UPDATE stream_sources SET files=files+1, rows=rows+?, bytes=bytes+? WHERE name=?", (rows, stat.size, name)
        )
    return row


def forget_names(conn: Connection, name: str, paths: tuple[str, ...], now: float) -> None:
    """Delete paths that are no longer in the folder, and mark contents without any path as removed."""
    for path in paths:
        row = conn.execute("SELECT hash FROM stream_names WHERE source=? AND path=?", (name, path)).fetchone()
        if row:
            conn.execute("DELETE FROM stream_names WHERE source=? AND path=?", (name, path))
            _mark_gone(conn, name, row["hash"], now)


def _mark_gone(conn: Connection, name: str, digest: str, now: float) -> None:
    if not locations(conn, name, digest):
        change = _change(conn, name, now)
        conn.execute(
            "UPDATE stream_files SET gone=? WHERE source=? AND hash=? AND gone IS NULL", (change, name, digest)
        )


# Files to be delivered to a reader: those from its position on, except files that were removed
# before its subscription began, and removed files with a problem.
_OWED = "source=? AND seq>=? AND (rows>0 OR problem<>'') AND (gone IS NULL OR (gone>? AND problem=''))"


def next_file(conn: Connection, name: str, position: StreamPosition) -> SourceFileRow | None:
    """The next file for a reader at `position`, or None. It may be removed (a gap) or have a problem."""
    row = conn.execute(
        f"SELECT * FROM stream_files WHERE {_OWED} ORDER BY seq LIMIT 1", (name, position.seq, position.since)
    ).fetchone()
    return SourceFileRow(**dict(row)) if row else None


def head(conn: Connection, name: str) -> StreamPosition | None:
    """The position after the last file of the source journal; None if there is no such source."""
    row = conn.execute("SELECT changes FROM stream_sources WHERE name=?", (name,)).fetchone()
    return StreamPosition(seq=row["changes"] + 1, since=row["changes"]) if row else None


def lag(conn: Connection, name: str, position: StreamPosition, now: float) -> Lag:
    """The files and rows after `position`, and the seconds since the oldest of these files arrived."""
    row = conn.execute(
        "SELECT count(*) AS files, coalesce(sum(rows), 0) AS rows, min(arrived) AS oldest"
        f" FROM stream_files WHERE {_OWED}",
        (name, position.seq, position.since),
    ).fetchone()
    oldest = now if row["oldest"] is None else row["oldest"]
    rows = max(0, row["rows"] - position.row) if row["files"] else 0
    return Lag(files=row["files"], rows=rows, seconds=max(0.0, now - oldest))


def file_texts(conn: Connection, name: str, what: Literal["problem", "note"]) -> list[str]:
    """The problems or notes of at most 50 files that have not been removed."""
    rows = conn.execute(
        f"SELECT {what} FROM stream_files WHERE source=? AND gone IS NULL AND {what}<>'' ORDER BY seq LIMIT 50", (name,)
    )
    return [row[0] for row in rows]


# --- subscriptions -----------------------------------------------------------------------------


def insert_subscription(conn: Connection, row: SubscriptionRow) -> None:
    """Insert a subscription."""
    conn.execute(
        "INSERT INTO subscriptions VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
        tuple(getattr(row, name) for name in SubscriptionRow.__slots__),
    )


def delete_subscription(conn: Connection, ident: str) -> bool:
    """Delete a subscription; returns False if there is none. Its dataset stays."""
    return conn.execute("DELETE FROM subscriptions WHERE id=?", (ident,)).rowcount > 0


def subscriptions(conn: Connection) -> list[SubscriptionRow]:
    """All subscriptions, oldest first."""
    rows = conn.execute("SELECT * FROM subscriptions ORDER BY created, id")
    return [SubscriptionRow(**dict(row)) for row in rows]


def subscription(conn: Connection, ident: str) -> SubscriptionRow | None:
    """The subscription with this id, or None."""
    row = conn.execute("SELECT * FROM subscriptions WHERE id=?", (ident,)).fetchone()
    return SubscriptionRow(**dict(row)) if row else None


def segment_files(conn: Connection, ident: str) -> set[str]:
    """The names of the committed files of a subscription."""
    return {row["file"] for row in conn.execute("SELECT file FROM stream_segments WHERE subscription=?", (ident,))}


def committed_files(conn: Connection) -> dict[str, set[str]]:
    """The names of the committed files of all subscriptions, by their names; other files are swept."""
    found: dict[str, set[str]] = {row["name"]: set() for row in conn.execute("SELECT name FROM subscriptions")}
    for row in conn.execute(
        "SELECT name, file FROM stream_segments JOIN subscriptions ON subscriptions.id = stream_segments.subscription"
    ):
        found[row["name"]].add(row["file"])
    return found


def add_segment(conn: Connection, ident: str, number: int, file: str, rows: int, size: int, now: float) -> None:
    """Add a committed file to a subscription."""
    conn.execute("INSERT INTO stream_segments VALUES (?,?,?,?,?,?)", (ident, number, file, rows, size, now))
    conn.execute(
        "UPDATE subscriptions SET segments=segments+1, rows=rows+?, bytes=bytes+?, updated=? WHERE id=?",
        (rows, size, now, ident),
    )


def set_subscription_columns(conn: Connection, ident: str, columns: bytes) -> None:
    """Set the schema of a subscription's dataset, if it has none. It is never changed afterwards."""
    conn.execute("UPDATE subscriptions SET columns=? WHERE id=? AND columns IS NULL", (columns, ident))


def advance(conn: Connection, ident: str, frm: bytes, to: bytes, now: float) -> bool:
    """Advance the committed position from `frm` to `to`; returns False if it is not `frm`."""
    moved = conn.execute(
        "UPDATE subscriptions SET position=?, updated=? WHERE id=? AND position=?", (to, now, ident, frm)
    )
    return moved.rowcount > 0


def halt(conn: Connection, ident: str, state: str, reason: str, now: float) -> None:
    """Record that a subscription will not continue by itself."""
    conn.execute("UPDATE subscriptions SET halted=?, reason=?, updated=? WHERE id=?", (state, reason, now, ident))
