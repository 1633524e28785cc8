"""SQL of trust: the network, invitations, admissions, heads of other islands' journals, users."""

from __future__ import annotations

import sqlite3

from island.kernel import codec
from island.kernel.ids import IslandId, NetworkId
from island.trust.core import HeldHead, IssuedInvitation
from island.trust.messages import JournalHead
from island.trust.users import UserRow


def read_network(conn: sqlite3.Connection) -> tuple[NetworkId, bytes] | None:
    """Return (network id, this island's chain), or None before it belongs to a network."""
    row = conn.execute("SELECT id, chain FROM network").fetchone()
    return (NetworkId(row["id"]), row["chain"]) if row else None


def write_network(conn: sqlite3.Connection, network: NetworkId, chain: bytes, now: float) -> None:
    """Store the network of this island. There can be only one."""
    conn.execute("INSERT INTO network (one, id, chain, since) VALUES (1, ?, ?, ?)", (network, chain, now))


def add_invitation(conn: sqlite3.Connection, secret_hash: bytes, created: float, expires: float, uses: int) -> None:
    """Store an invitation by the hash of its secret. Times are Unix seconds."""
    conn.execute(
        "INSERT INTO invitation (secret_hash, created, expires, uses) VALUES (?, ?, ?, ?)",
        (secret_hash, created, expires, uses),
    )


def issued(conn: sqlite3.Connection, secret_hash: bytes) -> IssuedInvitation | None:
    """The stored invitation with this hash, or None."""
    row = conn.execute("SELECT expires, uses, used FROM invitation WHERE secret_hash = ?", (secret_hash,)).fetchone()
    return IssuedInvitation(row["expires"], row["uses"], row["used"]) if row else None


def expire_invitations(conn: sqlite3.Connection, now: float) -> None:
    """End the validity of all invitations."""
    conn.execute("UPDATE invitation SET expires = min(expires, ?)", (now,))


def admission(conn: sqlite3.Connection, key: IslandId) -> bytes | None:
    """The chain with which this island admitted `key`, or None."""
    row = conn.execute("SELECT chain FROM admission WHERE key = ?", (key,)).fetchone()
    return row["chain"] if row else None


def has_admissions(conn: sqlite3.Connection) -> bool:
    """Whether this island has admitted any island."""
    return conn.execute("SELECT 1 FROM admission LIMIT 1").fetchone() is not None


def has_invitations(conn: sqlite3.Connection) -> bool:
    """Whether an invitation of this island is stored."""
    return conn.execute("SELECT 1 FROM invitation LIMIT 1").fetchone() is not None


def add_admission(
    conn: sqlite3.Connection, key: IslandId, name: str, secret_hash: bytes, chain: bytes, now: float
) -> None:
    """Store an admission and count the use of its invitation."""
    conn.execute("UPDATE invitation SET used = used + 1 WHERE secret_hash = ?", (secret_hash,))
    conn.execute(
        "INSERT INTO admission (key, name, secret_hash, chain, at) VALUES (?, ?, ?, ?, ?)",
        (key, name, secret_hash, chain, now),
    )


def held_heads(conn: sqlite3.Connection, island: IslandId | None = None) -> dict[IslandId, HeldHead]:
    """The stored journal heads of other islands, or only that of `island`."""
    rows = conn.execute(
        "SELECT island, head, mismatch, claimed FROM journal_heads WHERE ?1 IS NULL OR island = ?1 ORDER BY island",
        (island,),
    )
    return {row["island"]: HeldHead(_head(row["head"]), row["mismatch"], _head(row["claimed"])) for row in rows}


def put_held_head(conn: sqlite3.Connection, island: IslandId, held: HeldHead, now: float) -> None:
    """Store the journal head of another island."""
    conn.execute(
        "INSERT OR REPLACE INTO journal_heads (island, head, mismatch, claimed, at) VALUES (?, ?, ?, ?, ?)",
        (
            island,
            held.head and codec.encode(held.head),
            held.mismatch,
            held.claimed and codec.encode(held.claimed),
            now,
        ),
    )


def _head(data: bytes | None) -> JournalHead | None:
    return codec.decode(data, JournalHead) if data is not None else None


# --- users ---------------------------------------------------------------------------------


def users(conn: sqlite3.Connection) -> list[UserRow]:
    """All users with tokens of their own, also revoked ones, by name."""
    return [_user(row) for row in conn.execute("SELECT * FROM user ORDER BY name")]


def user(conn: sqlite3.Connection, name: str) -> UserRow | None:
    """The user with this name, or None."""
    row = conn.execute("SELECT * FROM user WHERE name = ?", (name,)).fetchone()
    return None if row is None else _user(row)


def put_user(conn: sqlite3.Connection, user: UserRow) -> None:
    """Store a user, in place of the one with the same name."""
    conn.execute(
        "INSERT OR REPLACE INTO user (name, role, token_hash, created, issued, expires, revoked)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (user.name, user.role, user.token_hash, user.created, user.issued, user.expires, user.revoked),
    )


def _user(row: sqlite3.Row) -> UserRow:
    return UserRow(
        name=row["name"],
        role=row["role"],
        token_hash=row["token_hash"],
        created=row["created"],
        issued=row["issued"],
        expires=row["expires"],
        revoked=row["revoked"],
    )
