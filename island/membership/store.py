"""SQL of membership: own servers, names and times of contact in state.db, projections in gossip.db."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass

from island.kernel.ids import IslandId
from island.membership.messages import SelfRecord, ServerRecord


@dataclass(frozen=True, slots=True)
class ServerRow:
    """One server of one island."""

    island: IslandId
    id: str
    kind: str
    url: str
    comment: str


# --- state.db


def own_servers(conn: sqlite3.Connection) -> dict[str, ServerRecord]:
    """This island's servers by id."""
    rows = conn.execute("SELECT id, kind, url, comment FROM membership_own_servers ORDER BY id")
    return {row["id"]: ServerRecord(kind=row["kind"], url=row["url"], comment=row["comment"]) for row in rows}


def put_server(conn: sqlite3.Connection, server: str, record: ServerRecord, at: float) -> None:
    """Add or change one of this island's servers."""
    conn.execute(
        "INSERT INTO membership_own_servers (id, kind, url, comment, at) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (id) DO UPDATE SET kind = excluded.kind, url = excluded.url, comment = excluded.comment",
        (server, record.kind, record.url, record.comment, at),
    )


def drop_server(conn: sqlite3.Connection, server: str) -> None:
    """Remove one of this island's servers."""
    conn.execute("DELETE FROM membership_own_servers WHERE id = ?", (server,))


def names(conn: sqlite3.Connection) -> list[tuple[IslandId, str]]:
    """Every (island, name) that has ever been used."""
    rows = conn.execute("SELECT island, name FROM membership_names ORDER BY island, name")
    return [(row["island"], row["name"]) for row in rows]


def remember_names(
    conn: sqlite3.Connection, claims: Iterable[tuple[IslandId, str]], at: float, kept: int
) -> list[tuple[IslandId, str]]:
    """Store used names, at most `kept` per island; returns those that were stored."""
    stored = []
    for island, name in claims:
        done = conn.execute(
            "INSERT INTO membership_names (island, name, since) SELECT ?1, ?2, ?3"
            " WHERE (SELECT count(*) FROM membership_names WHERE island = ?1) < ?4 ON CONFLICT DO NOTHING",
            (island, name, at, kept),
        )
        if done.rowcount:
            stored.append((island, name))
    return stored


def seen(conn: sqlite3.Connection) -> dict[IslandId, float]:
    """The wall time at which each island was last linked."""
    return {row["island"]: row["at"] for row in conn.execute("SELECT island, at FROM membership_seen")}


def remember_seen(conn: sqlite3.Connection, islands: Iterable[IslandId], at: float) -> None:
    """Store that these islands were linked at `at` (wall time)."""
    conn.executemany(
        "INSERT INTO membership_seen (island, at) VALUES (?, ?) ON CONFLICT (island) DO UPDATE SET at = excluded.at",
        [(island, at) for island in islands],
    )


# --- gossip.db


def put_island(conn: sqlite3.Connection, island: IslandId, record: SelfRecord) -> None:
    """Store the projection of `island/self`."""
    conn.execute(
        "INSERT OR REPLACE INTO membership_islands (island, name, addresses, version, software, started)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        (island, record.name, json.dumps(record.addresses), record.version, record.software, record.started),
    )


def drop_island(conn: sqlite3.Connection, island: IslandId) -> None:
    """Remove the projection of `island/self`."""
    conn.execute("DELETE FROM membership_islands WHERE island = ?", (island,))


def islands(conn: sqlite3.Connection, some: Iterable[IslandId] | None = None) -> dict[IslandId, SelfRecord]:
    """The `island/self` records of all islands, or of `some`."""
    sql = "SELECT island, name, addresses, version, software, started FROM membership_islands"
    rows: Iterable[sqlite3.Row] = conn.execute(sql + " ORDER BY island")
    if some is not None:
        rows = [row for island in some for row in conn.execute(sql + " WHERE island = ?", (island,))]
    return {
        row["island"]: SelfRecord(
            name=row["name"],
            addresses=tuple(json.loads(row["addresses"])),
            version=row["version"],
            software=row["software"],
            started=row["started"],
        )
        for row in rows
    }


def put_row(conn: sqlite3.Connection, row: ServerRow, limit: int) -> None:
    """Store the projection of `server/ID`, at most `limit` per island."""
    conn.execute(
        "INSERT INTO membership_servers (island, id, kind, url, comment) SELECT ?1, ?2, ?3, ?4, ?5"
        " WHERE (SELECT count(*) FROM membership_servers WHERE island = ?1 AND id != ?2) < ?6"
        " ON CONFLICT (island, id) DO UPDATE SET kind = excluded.kind, url = excluded.url, comment = excluded.comment",
        (row.island, row.id, row.kind, row.url, row.comment, limit),
    )


def drop_row(conn: sqlite3.Connection, island: IslandId, server: str) -> None:
    """Remove the projection of `server/ID`."""
    conn.execute("DELETE FROM membership_servers WHERE island = ? AND id = ?", (island, server))


def servers(conn: sqlite3.Connection) -> list[ServerRow]:
    """The servers of all islands, sorted by island, kind and id."""
    rows = conn.execute("SELECT island, id, kind, url, comment FROM membership_servers ORDER BY island, kind, id")
    return [ServerRow(row["island"], row["id"], row["kind"], row["url"], row["comment"]) for row in rows]
