"""SQL of trust: the network, invitations, admissions."""

from __future__ import annotations

import sqlite3

from island.kernel.ids import IslandId, NetworkId
from island.trust.core import Issued


def read_network(conn: sqlite3.Connection) -> tuple[NetworkId, bytes] | None:
    """The network id and this island's chain, or None before it belongs to one."""
    row = conn.execute("SELECT id, chain FROM network").fetchone()
    return (NetworkId(row["id"]), row["chain"]) if row else None


def write_network(conn: sqlite3.Connection, network: NetworkId, chain: bytes, now: float) -> None:
    """Belong to a network, once."""
    conn.execute("INSERT INTO network (one, id, chain, since) VALUES (1, ?, ?, ?)", (network, chain, now))


def add_invitation(conn: sqlite3.Connection, secret_hash: bytes, created: float, expires: float, uses: int) -> None:
    """Remember an invitation by the hash of its secret."""
    conn.execute(
        "INSERT INTO invitation (secret_hash, created, expires, uses) VALUES (?, ?, ?, ?)",
        (secret_hash, created, expires, uses),
    )


def issued(conn: sqlite3.Connection, secret_hash: bytes) -> Issued | None:
    """What is stored of an invitation."""
    row = conn.execute("SELECT expires, uses, used FROM invitation WHERE secret_hash = ?", (secret_hash,)).fetchone()
    return Issued(row["expires"], row["uses"], row["used"]) if row else None


def admission(conn: sqlite3.Connection, key: IslandId) -> bytes | None:
    """The chain under which this island admitted `key`."""
    row = conn.execute("SELECT chain FROM admission WHERE key = ?", (key,)).fetchone()
    return row["chain"] if row else None


def add_admission(
    conn: sqlite3.Connection, key: IslandId, name: str, secret_hash: bytes, chain: bytes, now: float
) -> None:
    """Store an admission and count the use of its invitation."""
    conn.execute("UPDATE invitation SET used = used + 1 WHERE secret_hash = ?", (secret_hash,))
    conn.execute(
        "INSERT INTO admission (key, name, secret_hash, chain, at) VALUES (?, ?, ?, ?, ?)",
        (key, name, secret_hash, chain, now),
    )
