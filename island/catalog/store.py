"""SQL of the catalog: what this island publishes (state.db), what all islands do (gossip.db)."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from island.catalog.messages import DatasetRecord, ReplicaRecord
from island.kernel import codec
from island.kernel.ids import IslandId

# --- state.db: own datasets and snapshots ---------------------------------------------------


@dataclass(frozen=True, slots=True)
class OwnDataset:
    """One dataset that this island publishes."""

    name: str
    path: str
    snapshot: str
    title: str
    description: str
    licence: str
    ra: str
    dec: str
    created: float
    updated: float
    who: str
    record: DatasetRecord


@dataclass(frozen=True, slots=True)
class OwnSnapshot:
    """One snapshot that this island still serves."""

    id: int
    name: str
    snapshot: str
    base: str
    local: str
    card: str
    record: DatasetRecord


def own_dataset(conn: sqlite3.Connection, name: str) -> OwnDataset | None:
    """A dataset of this island by its name."""
    row = conn.execute("SELECT * FROM catalog_dataset WHERE name = ?", (name,)).fetchone()
    return _own_dataset(row) if row else None


def own_datasets(conn: sqlite3.Connection) -> list[OwnDataset]:
    """All datasets of this island, by name."""
    return [_own_dataset(row) for row in conn.execute("SELECT * FROM catalog_dataset ORDER BY name")]


def own_records(conn: sqlite3.Connection) -> dict[str, bytes]:
    """The records that this island's log should have, by key."""
    rows = conn.execute("SELECT name, record FROM catalog_dataset")
    return {f"dataset/{row['name']}": row["record"] for row in rows}


def put_own(conn: sqlite3.Connection, dataset: OwnDataset) -> None:
    """Insert or replace a dataset of this island."""
    conn.execute(
        "INSERT OR REPLACE INTO catalog_dataset (name, path, snapshot, title, description, licence, ra, dec,"
        " created, updated, who, record) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            dataset.name,
            dataset.path,
            dataset.snapshot,
            dataset.title,
            dataset.description,
            dataset.licence,
            dataset.ra,
            dataset.dec,
            dataset.created,
            dataset.updated,
            dataset.who,
            codec.encode(dataset.record),
        ),
    )


def drop_own(conn: sqlite3.Connection, name: str) -> None:
    """Forget a dataset of this island; its snapshots are dropped apart."""
    conn.execute("DELETE FROM catalog_dataset WHERE name = ?", (name,))


def snapshots(conn: sqlite3.Connection, name: str) -> list[OwnSnapshot]:
    """The snapshots of one dataset of this island, the newest first."""
    rows = conn.execute("SELECT * FROM catalog_snapshot WHERE name = ? ORDER BY id DESC", (name,))
    return [_own_snapshot(row) for row in rows]


def all_snapshots(conn: sqlite3.Connection) -> list[OwnSnapshot]:
    """Every snapshot of this island, the newest first."""
    return [_own_snapshot(row) for row in conn.execute("SELECT * FROM catalog_snapshot ORDER BY id DESC")]


def with_hash(conn: sqlite3.Connection, snapshot: str) -> list[OwnSnapshot]:
    """The names under which one snapshot is published, the newest first."""
    rows = conn.execute("SELECT * FROM catalog_snapshot WHERE snapshot = ? ORDER BY id DESC", (snapshot,))
    return [_own_snapshot(row) for row in rows]


def add_snapshot(
    conn: sqlite3.Connection, record: DatasetRecord, *, name: str, base: str, local: str, published: float
) -> None:
    """Add a snapshot as the newest of its dataset."""
    conn.execute(
        "INSERT INTO catalog_snapshot (name, snapshot, base, local, card, record, published)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (name, record.snapshot, base, local, record.card, codec.encode(record), published),
    )


def drop_snapshot(conn: sqlite3.Connection, id: int) -> None:
    """Stop serving a snapshot."""
    conn.execute("DELETE FROM catalog_snapshot WHERE id = ?", (id,))


def newest_id(conn: sqlite3.Connection) -> int:
    """The id of the snapshot that was added last, ever."""
    row = conn.execute("SELECT seq FROM sqlite_sequence WHERE name = 'catalog_snapshot'").fetchone()
    return int(row[0]) if row else 0


def _own_dataset(row: sqlite3.Row) -> OwnDataset:
    fields = {key: row[key] for key in row.keys() if key != "record"}  # noqa: SIM118 - a Row iterates over its values
    return OwnDataset(**fields, record=codec.decode(row["record"], DatasetRecord))


def _own_snapshot(row: sqlite3.Row) -> OwnSnapshot:
    record = codec.decode(row["record"], DatasetRecord)
    return OwnSnapshot(row["id"], row["name"], row["snapshot"], row["base"], row["local"], row["card"], record)


# --- gossip.db: everyone's records ----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Entry:
    """One dataset of any island."""

    owner: IslandId
    name: str
    record: DatasetRecord


def put_entry(conn: sqlite3.Connection, owner: str, name: str, record: DatasetRecord, data: bytes) -> None:
    """Insert or replace a dataset, and have it indexed."""
    conn.execute(
        "INSERT OR REPLACE INTO catalog_entry (owner, name, snapshot, card, record) VALUES (?, ?, ?, ?, ?)",
        (owner, name, record.snapshot, record.card, data),
    )
    _unindexed(conn, owner, name)


def drop_entry(conn: sqlite3.Connection, owner: str, name: str) -> None:
    """Forget a dataset, and have the index forget it."""
    conn.execute("DELETE FROM catalog_entry WHERE owner = ? AND name = ?", (owner, name))
    _unindexed(conn, owner, name)


def _unindexed(conn: sqlite3.Connection, owner: str, name: str) -> None:
    # REPLACE gives the row a new, higher `change`.
    conn.execute("INSERT OR REPLACE INTO catalog_unindexed (owner, name) VALUES (?, ?)", (owner, name))


def entry(conn: sqlite3.Connection, owner: str, name: str) -> Entry | None:
    """One dataset."""
    row = conn.execute("SELECT * FROM catalog_entry WHERE owner = ? AND name = ?", (owner, name)).fetchone()
    return _entry(row) if row else None


def entries(conn: sqlite3.Connection) -> list[Entry]:
    """All datasets, by owner and name."""
    return [_entry(row) for row in conn.execute("SELECT * FROM catalog_entry ORDER BY owner, name")]


def entries_of(conn: sqlite3.Connection, keys: Iterable[tuple[str, str]]) -> list[Entry]:
    """The datasets with these (owner, name), in this order; those that are gone are left out."""
    found = []
    for owner, name in keys:
        if (one := entry(conn, owner, name)) is not None:
            found.append(one)
    return found


def names(conn: sqlite3.Connection, owner: str | None = None) -> list[tuple[IslandId, str]]:
    """(owner, name) of all datasets, or of one island's."""
    rows = conn.execute(
        "SELECT owner, name FROM catalog_entry WHERE ?1 IS NULL OR owner = ?1 ORDER BY owner, name", (owner,)
    )
    return [(IslandId(row["owner"]), row["name"]) for row in rows]


def _entry(row: sqlite3.Row) -> Entry:
    return Entry(IslandId(row["owner"]), row["name"], codec.decode(row["record"], DatasetRecord))


# --- gossip.db: cards -----------------------------------------------------------------------


def missing_cards(conn: sqlite3.Connection, limit: int) -> list[tuple[str, IslandId, str]]:
    """(hash, owner, name) of cards that are named and not here."""
    rows = conn.execute(
        "SELECT e.card, min(e.owner) AS owner, min(e.name) AS name FROM catalog_entry e"
        " LEFT JOIN catalog_card c ON c.hash = e.card WHERE c.hash IS NULL GROUP BY e.card LIMIT ?",
        (limit,),
    )
    return [(row["card"], IslandId(row["owner"]), row["name"]) for row in rows]


def put_card(conn: sqlite3.Connection, name: str, card: bytes | None) -> None:
    """Keep a card (None: what came is not one), and have the datasets indexed that name it."""
    conn.execute("INSERT OR REPLACE INTO catalog_card (hash, card) VALUES (?, ?)", (name, card))
    for row in conn.execute("SELECT owner, name FROM catalog_entry WHERE card = ?", (name,)).fetchall():
        _unindexed(conn, row["owner"], row["name"])


def prune_cards(conn: sqlite3.Connection) -> None:
    """Forget the cards that no dataset names."""
    conn.execute("DELETE FROM catalog_card WHERE hash NOT IN (SELECT card FROM catalog_entry)")


def card(conn: sqlite3.Connection, name: str) -> bytes | None:
    """A card by its hash, if it is here."""
    row = conn.execute("SELECT card FROM catalog_card WHERE hash = ?", (name,)).fetchone()
    return row["card"] if row else None


# --- gossip.db: what is to be indexed -------------------------------------------------------


def unindexed(conn: sqlite3.Connection, limit: int) -> list[tuple[int, IslandId, str]]:
    """(change, owner, name) of the datasets that the index has not seen, the oldest change first."""
    rows = conn.execute("SELECT * FROM catalog_unindexed ORDER BY change LIMIT ?", (limit,))
    return [(row["change"], IslandId(row["owner"]), row["name"]) for row in rows]


def indexed(conn: sqlite3.Connection, changes: Sequence[int]) -> None:
    """The index has seen these changes. One that came later has another number, and stays."""
    conn.executemany("DELETE FROM catalog_unindexed WHERE change = ?", [(change,) for change in changes])


def index_all(conn: sqlite3.Connection) -> None:
    """Have every dataset indexed again."""
    conn.execute("INSERT OR REPLACE INTO catalog_unindexed (owner, name) SELECT owner, name FROM catalog_entry")


# --- gossip.db: replicas --------------------------------------------------------------------


def put_replica(conn: sqlite3.Connection, holder: str, owner: str, name: str, record: ReplicaRecord | None) -> None:
    """Replace what a holder says it has of a dataset."""
    conn.execute("DELETE FROM catalog_replica WHERE holder = ? AND owner = ? AND name = ?", (holder, owner, name))
    conn.executemany(
        "INSERT OR REPLACE INTO catalog_replica (holder, owner, name, snapshot, state, size) VALUES (?, ?, ?, ?, ?, ?)",
        [(holder, owner, name, held.snapshot, held.state, held.size) for held in (record.held if record else ())],
    )


@dataclass(frozen=True, slots=True)
class Replica:
    """What one island holds of another's snapshot."""

    holder: IslandId
    owner: IslandId
    name: str
    snapshot: str
    state: str
    size: int


def replicas(conn: sqlite3.Connection) -> list[Replica]:
    """All replicas that are known, by holder."""
    rows = conn.execute("SELECT * FROM catalog_replica ORDER BY holder, owner, name, snapshot")
    return [
        Replica(IslandId(r["holder"]), IslandId(r["owner"]), r["name"], r["snapshot"], r["state"], r["size"])
        for r in rows
    ]
