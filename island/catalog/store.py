"""SQL of the catalog: datasets of this island in state.db, datasets of all islands in gossip.db."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

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
    """The dataset records that this island's log should have, by key."""
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
    """Delete a dataset of this island. Delete its snapshots separately."""
    conn.execute("DELETE FROM catalog_dataset WHERE name = ?", (name,))


def snapshots(conn: sqlite3.Connection, name: str) -> list[OwnSnapshot]:
    """The snapshots of one dataset of this island, newest first."""
    rows = conn.execute("SELECT * FROM catalog_snapshot WHERE name = ? ORDER BY id DESC", (name,))
    return [_own_snapshot(row) for row in rows]


def all_snapshots(conn: sqlite3.Connection) -> list[OwnSnapshot]:
    """All snapshots of this island, newest first."""
    return [_own_snapshot(row) for row in conn.execute("SELECT * FROM catalog_snapshot ORDER BY id DESC")]


def with_hash(conn: sqlite3.Connection, snapshot: str) -> list[OwnSnapshot]:
    """The rows of one snapshot, which may be published under several names; newest first."""
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
    """Delete a snapshot, so that it is no longer served."""
    conn.execute("DELETE FROM catalog_snapshot WHERE id = ?", (id,))


def newest_id(conn: sqlite3.Connection) -> int:
    """The highest snapshot id that was ever assigned."""
    row = conn.execute("SELECT seq FROM sqlite_sequence WHERE name = 'catalog_snapshot'").fetchone()
    return int(row[0]) if row else 0


def _own_dataset(row: sqlite3.Row) -> OwnDataset:
    fields = {key: row[key] for key in row.keys() if key != "record"}  # noqa: SIM118 - a Row iterates over its values
    return OwnDataset(**fields, record=codec.decode(row["record"], DatasetRecord))


def _own_snapshot(row: sqlite3.Row) -> OwnSnapshot:
    record = codec.decode(row["record"], DatasetRecord)
    return OwnSnapshot(row["id"], row["name"], row["snapshot"], row["base"], row["local"], row["card"], record)


# --- state.db: pages of own manifests -------------------------------------------------------


def put_pages(conn: sqlite3.Connection, pack: str, pages: Iterable[tuple[str, int, int]]) -> None:
    """Store the pages of a pack: (hash, offset, size) of each."""
    conn.executemany(
        "INSERT OR REPLACE INTO catalog_page (hash, pack, at, size) VALUES (?, ?, ?, ?)",
        [(name, pack, at, size) for name, at, size in pages],
    )


def page_place(conn: sqlite3.Connection, name: str) -> tuple[str, int, int] | None:
    """Return (pack, offset, size) of a page; None if it is not stored."""
    row = conn.execute("SELECT pack, at, size FROM catalog_page WHERE hash = ?", (name,)).fetchone()
    return (row["pack"], row["at"], row["size"]) if row else None


def page_names(conn: sqlite3.Connection) -> list[str]:
    """The hashes of all pages."""
    return [row["hash"] for row in conn.execute("SELECT hash FROM catalog_page")]


def drop_pages(conn: sqlite3.Connection, names: Iterable[str]) -> None:
    """Delete pages from the index."""
    conn.executemany("DELETE FROM catalog_page WHERE hash = ?", [(name,) for name in names])


def packs(conn: sqlite3.Connection) -> set[str]:
    """The names of all packs with pages."""
    return {row["pack"] for row in conn.execute("SELECT DISTINCT pack FROM catalog_page")}


def move_folder(conn: sqlite3.Connection, old: str, new: str) -> None:
    """Record that the published files below the folder `old` are now below `new`."""
    for table, column in (("catalog_dataset", "path"), ("catalog_snapshot", "base")):
        conn.execute(
            f"UPDATE {table} SET {column} = ?2 || substr({column}, length(?1) + 1)"
            f" WHERE {column} = ?1 OR substr({column}, 1, length(?1) + 1) = ?1 || '/'",
            (old, new),
        )


# --- gossip.db: datasets of all islands -----------------------------------------------------


# `put_entry` has encoded these records within their limits. A listing decodes thousands of them.
_RECORD = msgspec.msgpack.Decoder(DatasetRecord)  # noqa: TID251  # trusted input: needs no checks by the codec


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """One dataset of any island."""

    owner: IslandId
    name: str
    record: DatasetRecord


def put_entry(conn: sqlite3.Connection, owner: str, name: str, record: DatasetRecord) -> None:
    """Insert or replace a dataset, and mark it to be indexed and its card to be fetched if it is missing."""
    # Encode the record again: decoders may interpret the bytes of another island differently.
    data = codec.encode(record)
    before = _card_of(conn, owner, name)
    conn.execute(
        "INSERT OR REPLACE INTO catalog_entry (owner, name, snapshot, card, format, time_from, time_to, record)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (owner, name, record.snapshot, record.card, record.format, *(record.time or (None, None)), data),
    )
    conn.execute("DELETE FROM catalog_wanted WHERE owner = ? AND name = ?", (owner, name))
    conn.execute(
        "INSERT INTO catalog_wanted (card, owner, name) SELECT ?1, ?2, ?3"
        " WHERE NOT EXISTS (SELECT 1 FROM catalog_card WHERE hash = ?1)",
        (record.card, owner, name),
    )
    _forget_card(conn, before)
    _unindexed(conn, owner, name)


def drop_entry(conn: sqlite3.Connection, owner: str, name: str) -> None:
    """Delete a dataset, and mark it to be removed from the index."""
    before = _card_of(conn, owner, name)
    conn.execute("DELETE FROM catalog_entry WHERE owner = ? AND name = ?", (owner, name))
    conn.execute("DELETE FROM catalog_wanted WHERE owner = ? AND name = ?", (owner, name))
    _forget_card(conn, before)
    _unindexed(conn, owner, name)


def _card_of(conn: sqlite3.Connection, owner: str, name: str) -> str | None:
    row = conn.execute("SELECT card FROM catalog_entry WHERE owner = ? AND name = ?", (owner, name)).fetchone()
    return row["card"] if row else None


def _forget_card(conn: sqlite3.Connection, card: str | None) -> None:
    """Delete a card to which no dataset refers any more."""
    conn.execute(
        "DELETE FROM catalog_card WHERE hash = ?1 AND NOT EXISTS (SELECT 1 FROM catalog_entry WHERE card = ?1)", (card,)
    )


def _unindexed(conn: sqlite3.Connection, owner: str, name: str) -> None:
    # REPLACE gives the row a new, higher `change`.
    conn.execute("INSERT OR REPLACE INTO catalog_unindexed (owner, name) VALUES (?, ?)", (owner, name))


def entry(conn: sqlite3.Connection, owner: str, name: str) -> CatalogEntry | None:
    """One dataset, or None."""
    row = conn.execute("SELECT * FROM catalog_entry WHERE owner = ? AND name = ?", (owner, name)).fetchone()
    return _entry(row) if row else None


def entries(conn: sqlite3.Connection, form: str = "", times: tuple[float, float] | None = None) -> list[CatalogEntry]:
    """All datasets, or those with this format and with a time range that overlaps `times`; by owner and name."""
    conditions, values = ["1"], list[object]()
    if form:
        conditions.append("format = ?")
        values.append(form)
    if times is not None:
        conditions.append("time_from <= ? AND time_to >= ?")
        values += [times[1], times[0]]
    rows = conn.execute(
        f"SELECT owner, name, record FROM catalog_entry WHERE {' AND '.join(conditions)} ORDER BY owner, name", values
    )
    return [_entry(row) for row in rows]


def names(conn: sqlite3.Connection, owner: str | None = None) -> list[tuple[IslandId, str]]:
    """(owner, name) of all datasets, or of those of one island."""
    rows = conn.execute(
        "SELECT owner, name FROM catalog_entry WHERE ?1 IS NULL OR owner = ?1 ORDER BY owner, name", (owner,)
    )
    return [(IslandId(row["owner"]), row["name"]) for row in rows]


def _entry(row: sqlite3.Row) -> CatalogEntry:
    return CatalogEntry(IslandId(row["owner"]), row["name"], _RECORD.decode(row["record"]))


# --- gossip.db: cards -----------------------------------------------------------------------


def missing_cards(conn: sqlite3.Connection, after: str, limit: int) -> list[tuple[str, list[IslandId]]]:
    """(hash, owners of datasets that refer to it) of missing cards with hashes above `after`, sorted by hash."""
    rows = conn.execute(
        "SELECT card, group_concat(DISTINCT owner) AS owners FROM catalog_wanted WHERE card > ?"
        " GROUP BY card ORDER BY card LIMIT ?",
        (after, limit),
    )
    return [(row["card"], [IslandId(owner) for owner in sorted(row["owners"].split(","))]) for row in rows]


def put_card(conn: sqlite3.Connection, name: str, card: bytes | None) -> None:
    """Store a card (None: the fetched blob is not a valid card), and mark datasets that refer to it to be indexed."""
    conn.execute("DELETE FROM catalog_wanted WHERE card = ?", (name,))
    conn.execute("INSERT OR REPLACE INTO catalog_card (hash, card) VALUES (?, ?)", (name, card))
    for row in conn.execute("SELECT owner, name FROM catalog_entry WHERE card = ?", (name,)).fetchall():
        _unindexed(conn, row["owner"], row["name"])
    _forget_card(conn, name)


def card(conn: sqlite3.Connection, name: str) -> bytes | None:
    """A card by its hash; None if it is not stored or not valid."""
    row = conn.execute("SELECT card FROM catalog_card WHERE hash = ?", (name,)).fetchone()
    return row["card"] if row else None


# --- gossip.db: datasets to be indexed ------------------------------------------------------


def unindexed(conn: sqlite3.Connection, limit: int) -> list[tuple[int, IslandId, str]]:
    """(change, owner, name) of datasets that are not indexed yet, oldest change first."""
    rows = conn.execute("SELECT * FROM catalog_unindexed ORDER BY change LIMIT ?", (limit,))
    return [(row["change"], IslandId(row["owner"]), row["name"]) for row in rows]


def indexed(conn: sqlite3.Connection, changes: Sequence[int]) -> None:
    """Delete changes that were indexed. Later changes of the same datasets have other numbers and are kept."""
    conn.executemany("DELETE FROM catalog_unindexed WHERE change = ?", [(change,) for change in changes])


def index_all(conn: sqlite3.Connection) -> None:
    """Mark all datasets to be indexed again."""
    conn.execute("INSERT OR REPLACE INTO catalog_unindexed (owner, name) SELECT owner, name FROM catalog_entry")


# --- gossip.db: replicas --------------------------------------------------------------------


def put_replica(conn: sqlite3.Connection, holder: str, owner: str, name: str, record: ReplicaRecord | None) -> None:
    """Replace the replicas of a dataset at one holder."""
    conn.execute("UPDATE catalog_version SET replicas = replicas + 1")
    conn.execute("DELETE FROM catalog_replica WHERE holder = ? AND owner = ? AND name = ?", (holder, owner, name))
    conn.executemany(
        "INSERT OR REPLACE INTO catalog_replica (holder, owner, name, snapshot, state, size) VALUES (?, ?, ?, ?, ?, ?)",
        [(holder, owner, name, held.snapshot, held.state, held.size) for held in (record.held if record else ())],
    )


@dataclass(frozen=True, slots=True)
class ReplicaEntry:
    """The replica of a snapshot at one island."""

    holder: IslandId
    owner: IslandId
    name: str
    snapshot: str
    state: str
    size: int


def versions(conn: sqlite3.Connection) -> tuple[int, int]:
    """Return (version of datasets and cards, version of replicas). Each increases with every change."""
    datasets = conn.execute("SELECT seq FROM sqlite_sequence WHERE name = 'catalog_unindexed'").fetchone()
    return int(datasets[0]) if datasets else 0, int(conn.execute("SELECT replicas FROM catalog_version").fetchone()[0])


def count_entries(conn: sqlite3.Connection) -> int:
    """The number of known datasets."""
    return int(conn.execute("SELECT count(*) FROM catalog_entry").fetchone()[0])


def replicas(conn: sqlite3.Connection) -> list[ReplicaEntry]:
    """All known replicas, sorted by holder."""
    rows = conn.execute("SELECT * FROM catalog_replica ORDER BY holder, owner, name, snapshot")
    return [
        ReplicaEntry(IslandId(r["holder"]), IslandId(r["owner"]), r["name"], r["snapshot"], r["state"], r["size"])
        for r in rows
    ]
