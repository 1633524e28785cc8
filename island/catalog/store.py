"""SQL of the catalog: what this island publishes (state.db), what all islands do (gossip.db)."""

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


# --- where the pages of own manifests lie ---------------------------------------------------


def put_pages(conn: sqlite3.Connection, pack: str, pages: Iterable[tuple[str, int, int]]) -> None:
    """Name the pages of a pack: (hash, offset, size) each."""
    conn.executemany(
        "INSERT OR REPLACE INTO catalog_page (hash, pack, at, size) VALUES (?, ?, ?, ?)",
        [(name, pack, at, size) for name, at, size in pages],
    )


def page_place(conn: sqlite3.Connection, name: str) -> tuple[str, int, int] | None:
    """The pack in which a page lies, its offset there and its size; None if it is not here."""
    row = conn.execute("SELECT pack, at, size FROM catalog_page WHERE hash = ?", (name,)).fetchone()
    return (row["pack"], row["at"], row["size"]) if row else None


def page_names(conn: sqlite3.Connection) -> list[str]:
    """The hashes of all pages."""
    return [row["hash"] for row in conn.execute("SELECT hash FROM catalog_page")]


def drop_pages(conn: sqlite3.Connection, names: Iterable[str]) -> None:
    """Forget pages."""
    conn.executemany("DELETE FROM catalog_page WHERE hash = ?", [(name,) for name in names])


def packs(conn: sqlite3.Connection) -> set[str]:
    """The packs that have pages."""
    return {row["pack"] for row in conn.execute("SELECT DISTINCT pack FROM catalog_page")}


# --- gossip.db: everyone's records ----------------------------------------------------------


# `put_entry` encoded these records itself, within their limits; a listing decodes thousands of them.
_RECORD = msgspec.msgpack.Decoder(DatasetRecord)  # noqa: TID251  # without the checks of what others sent


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """One dataset of any island."""

    owner: IslandId
    name: str
    record: DatasetRecord


def put_entry(conn: sqlite3.Connection, owner: str, name: str, record: DatasetRecord) -> None:
    """Insert or replace a dataset; have it indexed, and its card fetched if that is not here."""
    # Encoded anew: bytes of another's making may mean one thing to one decoder and nothing to the next.
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
    """Forget a dataset, and have the index forget it."""
    before = _card_of(conn, owner, name)
    conn.execute("DELETE FROM catalog_entry WHERE owner = ? AND name = ?", (owner, name))
    conn.execute("DELETE FROM catalog_wanted WHERE owner = ? AND name = ?", (owner, name))
    _forget_card(conn, before)
    _unindexed(conn, owner, name)


def _card_of(conn: sqlite3.Connection, owner: str, name: str) -> str | None:
    row = conn.execute("SELECT card FROM catalog_entry WHERE owner = ? AND name = ?", (owner, name)).fetchone()
    return row["card"] if row else None


def _forget_card(conn: sqlite3.Connection, card: str | None) -> None:
    """Forget a card that no dataset names any more."""
    conn.execute(
        "DELETE FROM catalog_card WHERE hash = ?1 AND NOT EXISTS (SELECT 1 FROM catalog_entry WHERE card = ?1)", (card,)
    )


def _unindexed(conn: sqlite3.Connection, owner: str, name: str) -> None:
    # REPLACE gives the row a new, higher `change`.
    conn.execute("INSERT OR REPLACE INTO catalog_unindexed (owner, name) VALUES (?, ?)", (owner, name))


def entry(conn: sqlite3.Connection, owner: str, name: str) -> CatalogEntry | None:
    """One dataset."""
    row = conn.execute("SELECT * FROM catalog_entry WHERE owner = ? AND name = ?", (owner, name)).fetchone()
    return _entry(row) if row else None


def entries(conn: sqlite3.Connection, form: str = "", times: tuple[float, float] | None = None) -> list[CatalogEntry]:
    """All datasets, or those of a format or with a moment in common with `times`; by owner and name."""
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
    """(owner, name) of all datasets, or of one island's."""
    rows = conn.execute(
        "SELECT owner, name FROM catalog_entry WHERE ?1 IS NULL OR owner = ?1 ORDER BY owner, name", (owner,)
    )
    return [(IslandId(row["owner"]), row["name"]) for row in rows]


def _entry(row: sqlite3.Row) -> CatalogEntry:
    return CatalogEntry(IslandId(row["owner"]), row["name"], _RECORD.decode(row["record"]))


# --- gossip.db: cards -----------------------------------------------------------------------


def missing_cards(conn: sqlite3.Connection, after: str, limit: int) -> list[tuple[str, list[IslandId]]]:
    """(hash, owners of the datasets that name it) of cards above `after` that are not here, by hash."""
    rows = conn.execute(
        "SELECT card, group_concat(DISTINCT owner) AS owners FROM catalog_wanted WHERE card > ?"
        " GROUP BY card ORDER BY card LIMIT ?",
        (after, limit),
    )
    return [(row["card"], [IslandId(owner) for owner in sorted(row["owners"].split(","))]) for row in rows]


def put_card(conn: sqlite3.Connection, name: str, card: bytes | None) -> None:
    """Keep a card (None: what came is not one), and have the datasets indexed that name it."""
    conn.execute("DELETE FROM catalog_wanted WHERE card = ?", (name,))
    conn.execute("INSERT OR REPLACE INTO catalog_card (hash, card) VALUES (?, ?)", (name, card))
    for row in conn.execute("SELECT owner, name FROM catalog_entry WHERE card = ?", (name,)).fetchall():
        _unindexed(conn, row["owner"], row["name"])
    _forget_card(conn, name)


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
    conn.execute("UPDATE catalog_version SET replicas = replicas + 1")
    conn.execute("DELETE FROM catalog_replica WHERE holder = ? AND owner = ? AND name = ?", (holder, owner, name))
    conn.executemany(
        "INSERT OR REPLACE INTO catalog_replica (holder, owner, name, snapshot, state, size) VALUES (?, ?, ?, ?, ?, ?)",
        [(holder, owner, name, held.snapshot, held.state, held.size) for held in (record.held if record else ())],
    )


@dataclass(frozen=True, slots=True)
class ReplicaEntry:
    """What one island holds of another's snapshot."""

    holder: IslandId
    owner: IslandId
    name: str
    snapshot: str
    state: str
    size: int


def versions(conn: sqlite3.Connection) -> tuple[int, int]:
    """(of datasets and cards, of replicas): each rises with every change."""
    datasets = conn.execute("SELECT seq FROM sqlite_sequence WHERE name = 'catalog_unindexed'").fetchone()
    return int(datasets[0]) if datasets else 0, int(conn.execute("SELECT replicas FROM catalog_version").fetchone()[0])


def count_entries(conn: sqlite3.Connection) -> int:
    """How many datasets are known."""
    return int(conn.execute("SELECT count(*) FROM catalog_entry").fetchone()[0])


def replicas(conn: sqlite3.Connection) -> list[ReplicaEntry]:
    """All replicas that are known, by holder."""
    rows = conn.execute("SELECT * FROM catalog_replica ORDER BY holder, owner, name, snapshot")
    return [
        ReplicaEntry(IslandId(r["holder"]), IslandId(r["owner"]), r["name"], r["snapshot"], r["state"], r["size"])
        for r in rows
    ]
